# Everything here runs on a fresh machine with Python >= 3.11 (and its venv module) and make: what is missing is
# installed into .venv first.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
WORKERS ?= 2
ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# worksteal: the scripts' tests at the end are the longest, and no worker should wait beside them
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist worksteal
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-slow test-oldest lint format typecheck coverage golden fuzz audit benchmark faults mutants matrix docs wheel clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c $(CONSTRAINTS) -e ".[dev]"
	mkdir -p $(VENV)/package && ln -sfn ../.. $(VENV)/package/vtfusion
	touch $@

install: $(INSTALLED)  ## .venv with the tested versions and this checkout, editable

quickstart: $(INSTALLED)  ## train and look at a small model, from nothing to entities
	$(BIN)/python scripts/quickstart.py --output_dir outputs/quickstart $(ARGS)

test: $(INSTALLED)  ## the tests that take a few seconds at most; ARGS="-k gate" goes to pytest
	$(PYTEST) --timeout 120 -m "not slow" $(ARGS)

test-slow: $(INSTALLED)  ## the tests that take longer
	$(PYTEST) --timeout 900 -m slow $(ARGS)

test-oldest:  ## `make test` on the oldest versions that pyproject.toml allows, but the tested torch
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

lint: $(INSTALLED)  ## ruff: rules and format; import-linter: who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo

format: $(INSTALLED)  ## ruff: mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(INSTALLED)  ## mypy over the package, the scripts and the benchmarks
	cd $(VENV)/package && ../bin/mypy --config-file ../../pyproject.toml -p vtfusion

coverage: $(INSTALLED)  ## `make test` with a report of the lines that no test runs
	$(PYTEST) --timeout 240 -m "not slow" --cov --cov-report term $(ARGS)

mutants: $(INSTALLED)  ## break the code in one place after the other: which changes does no test notice? Takes hours
	$(BIN)/python -m pip install -q mutmut==3.8.1
	OMP_NUM_THREADS=1 $(BIN)/python tests/campaigns/mutants.py $(ARGS)

golden: $(INSTALLED)  ## tests/golden/outputs.json: what later versions are compared with, see CONTRIBUTING.md
	$(BIN)/python tests/golden_outputs.py

fuzz: $(INSTALLED)  ## bad input by the thousand, a minute for each reader of it; ARGS="image conll --seconds 600"
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) -e ".[fuzz]"
	$(BIN)/python tests/campaigns/fuzz.py $(ARGS)

audit: $(INSTALLED)  ## known vulnerabilities of the pinned versions; asks PyPI, and fails where that does not answer
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) -e ".[audit]"
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r $(CONSTRAINTS)

benchmark: $(INSTALLED)  ## outputs/benchmarks: speed beside peers and how it grows, half an hour; ARGS="--quick" to try
	$(BIN)/python benchmarks/run_all.py --output_dir outputs/benchmarks $(ARGS)

faults: $(INSTALLED)  ## kill, cut short and damage trainings, which must lose nothing; ARGS="--kills 20"
	$(BIN)/python tests/campaigns/faults.py $(ARGS)

matrix: $(INSTALLED)  ## every Python, transformers and torch that we claim: tests, and folders that one saves and the others load
	$(BIN)/python tests/campaigns/matrix.py $(ARGS)

docs: $(INSTALLED)  ## outputs/docs/index.html: the API reference, from the docstrings
	$(BIN)/python docs/build_reference.py outputs/docs

wheel: $(INSTALLED)  ## dist/vtfusion-*.whl
	rm -rf build
	$(BIN)/python -m pip wheel --no-deps -w dist .
	rm -rf build

clean:  ## remove what the other targets made
	rm -rf .venv .venv-* build dist outputs *.egg-info .coverage* .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
