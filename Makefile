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
.PHONY: help install quickstart test test-slow test-oldest lint format typecheck coverage golden benchmark fuzz faults \
	mutants matrix audit docs wheel clean

help:  ## show this list
	@echo 'make TARGET [ARGS="..."] [WORKERS=$(WORKERS)] [PYTHON=$(PYTHON)] [VENV=$(VENV)]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c $(CONSTRAINTS) -e ".[dev]"
	mkdir -p $(VENV)/package && ln -sfn ../.. $(VENV)/package/vtfusion
	touch $@

# For every day -------------------------------------------------------------------------------------------------------

install: $(INSTALLED)  ## set up .venv with the tested versions and this checkout, editable; the others begin with it

quickstart: $(INSTALLED)  ## train a small model from nothing and show what it finds; ARGS="--seed 1"
	$(BIN)/python scripts/quickstart.py --output_dir outputs/quickstart $(ARGS)

test: $(INSTALLED)  ## run the tests that take a few seconds at most; ARGS="-k gate" goes to pytest
	$(PYTEST) --timeout 120 -m "not slow" $(ARGS)

test-slow: $(INSTALLED)  ## run the tests that take longer
	$(PYTEST) --timeout 900 -m slow $(ARGS)

test-oldest:  ## run `make test` on the oldest versions that pyproject.toml allows, but the tested torch
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

lint: $(INSTALLED)  ## check rules and format (ruff), and who imports whom (import-linter)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo

format: $(INSTALLED)  ## mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(INSTALLED)  ## check the types (mypy) of the package, the scripts and the benchmarks
	cd $(VENV)/package && ../bin/mypy --config-file ../../pyproject.toml -p vtfusion

coverage: $(INSTALLED)  ## run `make test` and list the lines that no test runs
	$(PYTEST) --timeout 240 -m "not slow" --cov --cov-report term $(ARGS)

golden: $(INSTALLED)  ## store what every model computes now in tests/golden/outputs.json: CONTRIBUTING.md says when
	$(BIN)/python tests/golden_outputs.py

# Longer searches and measurements ------------------------------------------------------------------------------------

benchmark: $(INSTALLED)  ## measure speed beside peers and how it grows into outputs/benchmarks, half an hour; ARGS="--quick" to try
	$(BIN)/python benchmarks/run_all.py --output_dir outputs/benchmarks $(ARGS)

fuzz: $(INSTALLED)  ## give bad input by the thousand, a minute to each reader; ARGS="image conll --seconds 600"
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) -e ".[fuzz]"
	$(BIN)/python tests/campaigns/fuzz.py $(ARGS)

faults: $(INSTALLED)  ## kill, cut short and damage trainings, which must lose nothing; ARGS="--kills 20"
	$(BIN)/python tests/campaigns/faults.py $(ARGS)

mutants: $(INSTALLED)  ## break the code in one place after the other: does a test notice? Takes hours
	$(BIN)/python -m pip install -q mutmut==3.8.1
	OMP_NUM_THREADS=1 $(BIN)/python tests/campaigns/mutants.py $(ARGS)

matrix: $(INSTALLED)  ## test every Python, transformers and torch that we claim, and folders saved by one and loaded by another
	$(BIN)/python tests/campaigns/matrix.py $(ARGS)

audit: $(INSTALLED)  ## look for known vulnerabilities of the pinned versions; asks PyPI, and fails without an answer
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) -e ".[audit]"
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r $(CONSTRAINTS)

# What is handed out --------------------------------------------------------------------------------------------------

docs: $(INSTALLED)  ## write the API reference to outputs/docs/index.html, from the docstrings
	$(BIN)/python docs/build_reference.py outputs/docs

wheel: $(INSTALLED)  ## build dist/vtfusion-*.whl
	rm -rf build
	$(BIN)/python -m pip wheel --no-deps -w dist .
	rm -rf build

clean:  ## remove what the other targets made, outputs/ included
	rm -rf .venv .venv-* build dist outputs *.egg-info .coverage* .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
