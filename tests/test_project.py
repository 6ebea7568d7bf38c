"""What the project says about itself: pins, warnings that are errors, its architecture, campaigns that can find something."""

import ast
import importlib.util
import re
import tomllib
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements):
    """Names of packages as they are compared, without versions and extras."""
    found = {re.split(r"[<>=!~;\[ ]", line, maxsplit=1)[0] for line in requirements}
    return {re.sub(r"[-_.]+", "-", name).lower() for name in found}


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-oldest.txt"])
def test_every_direct_dependency_is_pinned(file):
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!+]+", pin) for pin in pins)
    extras = PROJECT["optional-dependencies"].values()
    direct = names(PROJECT["dependencies"]).union(*map(names, extras)) - {"vtfusion"}
    assert {"torch", "gradio", "atheris"} <= direct <= names(pins)


@pytest.mark.parametrize("kind", [DeprecationWarning, FutureWarning])
def test_what_our_own_code_calls_must_not_be_on_its_way_out(kind):
    code = "warnings.warn('old', kind)"
    for module in ("vtfusion", "vtfusion.training.token_data", "transformers_modules.a.modeling_vtfusion"):
        with pytest.raises(kind, match="old"):
            exec(code, {"__name__": module, "warnings": warnings, "kind": kind})
    for module in ("datasets.arrow", "vtfusion_other", "a.vtfusion"):
        exec(code, {"__name__": module, "warnings": warnings, "kind": kind})


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def test_places_that_the_architecture_names_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    places = re.findall(r"`([\w/]+\.py):([\w.]+)`", text)
    assert len(places) > 20
    for file, names in places:
        scope = parse(ROOT / file)
        for name in names.split("."):
            found = [node for node in scope.body if getattr(node, "name", None) == name]
            assert found, f"{file} has no {names}"
            scope = found[0]


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "app").glob("[!_]*.py") if path.stem != "cli"))
def test_a_file_of_app_says_what_is_public(name):
    """Whatever has no underscore before its name; functions and classes with a docstring, and with types."""
    public, said = set(), None
    for node in parse(ROOT / "app" / f"{name}.py").body:
        names = {getattr(node, "name", "_")}
        if isinstance(node, ast.Assign):
            names = {each.id for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name)}
        if names == {"__all__"}:
            said = set(ast.literal_eval(node.value))
        names = {each for each in names if not each.startswith("_")}
        public |= names
        if names and isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert ast.get_docstring(node), node.name
        if names and isinstance(node, ast.FunctionDef):
            assert node.returns is not None and all(each.annotation for each in node.args.args), node.name
    assert said == public


def test_nothing_in_the_package_takes_from_what_is_outside_of_it():
    """What import-linter does not see: bare names, as scripts, benchmarks and tests have them beside each other."""
    allowed = {"scripts/quickstart.py": {"run_ner"}}  # which it is, on data that it draws
    seen = {}
    outside = {path.stem for folder in ("scripts", "benchmarks", "tests") for path in (ROOT / folder).glob("*.py")}
    outside = outside - {"__init__"} | {"scripts", "benchmarks", "tests"}
    assert {"run_ner", "measuring", "tiny"} <= outside
    for path in (path for folder in (".", "training", "app", "scripts") for path in (ROOT / folder).glob("*.py")):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Import):
                taken = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                taken = {node.module.split(".")[0]}
            else:
                continue
            if taken & outside:
                seen.setdefault(path.relative_to(ROOT).as_posix(), set()).update(taken & outside)
    assert seen == allowed


def test_no_file_of_tests_takes_from_another():
    """It would run twice; what several need is in conftest.py or in a helper module."""
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(parse(path)):
            taken = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            taken += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in taken if name.startswith("test_")], path.name


@pytest.mark.parametrize("folder", ["benchmarks", "docs", "scripts", "tests/campaigns"])
def test_what_is_imported_when_a_program_runs_is_there(folder):
    """Also inside its functions, which no other test may call."""
    for path in (ROOT / folder).glob("*.py"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vtfusion":
                module = importlib.import_module(node.module)
                for name in (alias.name for alias in node.names):
                    there = hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}")
                    assert there, f"{path.name}, line {node.lineno}: {node.module} has no {name}"
            elif isinstance(node, ast.Import):
                for name in (alias.name for alias in node.names if alias.name.startswith("vtfusion.")):
                    assert importlib.util.find_spec(name), f"{path.name}, line {node.lineno}: there is no {name}"


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "tests" / "campaigns" / "fuzz.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("target", ["processor", "image", "conll", "jsonl", "csv", "pairing", "tags"])
def test_nothing_is_found_where_the_search_begins(fuzz, target):
    assert target in fuzz.TARGETS
    for seed in fuzz.seeds(target):
        for data in (seed, seed[: len(seed) // 2], b""):
            assert fuzz.find(target, data) is None


def test_what_is_wrong_is_found(fuzz, monkeypatch):
    def fails_at(error):
        def fail(*args, **kwargs):
            raise error

        return fail

    data = fuzz.seeds("tags")[1]
    for error in (KeyError("B"), ValueError("a message without a place")):
        monkeypatch.setattr(fuzz, "detect_scheme", fails_at(error))
        assert type(error).__name__ in fuzz.find("tags", data)
    monkeypatch.setattr(fuzz, "detect_scheme", fails_at(ValueError("row 0, position 3: no tag")))
    assert fuzz.find("tags", data) is None
    monkeypatch.setattr(fuzz, "detect_scheme", lambda sequences: "IOB3")
    assert "Finding: IOB3" in fuzz.find("tags", data)
