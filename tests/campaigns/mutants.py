"""
Breaks the code in one small place after the other and counts how often a test notices: `make mutants`.

The mutants are those of mutmut's operators (another operator, number, string or branch, an argument or an assignment
left out), in every function of a module: methods with decorators too, which mutmut itself leaves out. Types, docstrings
and the wording of error messages stay as they are. One process imports torch, the package and the tests; for each
mutant it forks, puts the mutated function's code into the function that is there, and runs the tests that come by the
mutated statement, until one fails. mutmut itself renames what it mutates, which files that are copied to the Hub and
read by `inspect` do not survive, and starts from a copy in which the package has another name.
"""

import argparse
import ast
import contextlib
import difflib
import importlib
import inspect
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import coverage
import libcst as cst
import pytest
import torch
from libcst.metadata import MetadataWrapper, PositionProvider, WhitespaceInclusivePositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_string

ROOT = Path(__file__).resolve().parents[2]
MODELS = [
    "tests/test_modeling_vtfusion.py",
    "tests/test_fusion_vtfusion.py",
    "tests/test_heads.py",
    "tests/test_pretraining_heads.py",
    "tests/test_encoder_matrix.py",
    "tests/test_numbers.py",
    "tests/test_golden.py",
]
PROCESSING = ["tests/test_processing_vtfusion.py", "tests/test_prompts.py", "tests/test_question_answering.py"]
TESTS = {
    "processing_vtfusion": PROCESSING,
    "postprocessing_vtfusion": PROCESSING,
    "words_vtfusion": PROCESSING,
    "images_vtfusion": ["tests/test_processing_vtfusion.py", "tests/test_bad_images.py"],
    "fusion_vtfusion": [*MODELS, "tests/test_generation_vtfusion.py"],
    "base_vtfusion": [*MODELS, "tests/test_generation_vtfusion.py", "tests/test_pipeline_vtfusion.py"],
    "modeling_vtfusion": [*MODELS, "tests/test_question_answering.py"],
    "visual_vtfusion": MODELS,
    "training.manifest": ["tests/test_pairing.py", "tests/test_image_paths.py"],
    "training.pairing": ["tests/test_pairing.py", "tests/test_image_paths.py", "tests/test_contact_sheet.py"],
}
GROUPS = {
    "processing": ["processing_vtfusion", "postprocessing_vtfusion", "words_vtfusion", "images_vtfusion"],
    "modeling maths": ["fusion_vtfusion", "base_vtfusion", "modeling_vtfusion", "visual_vtfusion"],
    "pairing": ["training.pairing", "training.manifest"],
}
# Beyond it a fork that allocates without end is stopped.
_MEMORY = 16 * 2**30


@dataclass
class Mutant:
    """One change of a module: `new` in the place of `source[start:end]`."""

    function: str
    line: int
    start: int
    end: int
    new: str
    status: str = ""
    diff: str = ""


class _Finder(cst.CSTVisitor):
    """Collects what mutmut's operators make of the functions of a module."""

    METADATA_DEPENDENCIES = (PositionProvider, WhitespaceInclusivePositionProvider)

    def __init__(self, module: cst.Module):
        super().__init__()
        self.module, self.lines = module, module.code.splitlines(keepends=True)
        self.path: list[cst.CSTNode] = []
        self.mutants: list[Mutant] = []
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Annotation | cst.Decorator):
            return False
        # Evaluated with the definition: an error there would be no test's merit.
        if isinstance(node, cst.Param) and node.default and not isinstance(node.default, cst.Name | cst.BaseNumber):
            return False
        if isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value in ("len", "isinstance"):
            return False
        scopes = [scope for scope in self.path if isinstance(scope, cst.ClassDef | cst.FunctionDef)]
        if any(isinstance(scope, cst.FunctionDef) for scope in scopes):
            for kind, operator in mutation_operators:
                wording = operator is operator_string and self._is_message()
                if isinstance(node, kind) and not wording:
                    self.mutants += [self._mutant(node, mutated, scopes) for mutated in operator(node)]
        self.path.append(node)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if self.path and self.path[-1] is original_node:
            self.path.pop()

    def _is_message(self) -> bool:
        return any(isinstance(node, cst.Raise) for node in self.path)

    def _mutant(self, node: cst.CSTNode, mutated: cst.CSTNode, scopes: list[cst.CSTNode]) -> Mutant:
        place = self.get_metadata(WhitespaceInclusivePositionProvider, node)
        start = self.starts[place.start.line - 1] + place.start.column
        end = self.starts[place.end.line - 1] + place.end.column
        names = []
        for scope in scopes:
            names.append(scope.name.value)
            if isinstance(scope, cst.FunctionDef):
                break
        line = self.get_metadata(PositionProvider, node).start.line
        # libcst writes the node as if it stood at the left edge
        indent = "    " * sum(isinstance(parent, cst.IndentedBlock) for parent in self.path)
        new = self.module.code_for_node(mutated).replace("\n", f"\n{indent}")
        return Mutant(".".join(names), line, start, end, new)


def find_mutants(source: str) -> list[Mutant]:
    """All mutants of a module that are Python, with their diffs."""
    wrapper = MetadataWrapper(cst.parse_module(source))
    finder = _Finder(wrapper.module)
    wrapper.visit(finder)
    found = []
    for mutant in finder.mutants:
        mutated = source[: mutant.start] + mutant.new + source[mutant.end :]
        try:
            compile(mutated, "mutant", "exec")
        except SyntaxError:
            continue
        # only the lines around: difflib is slow on a whole module
        low = source.rfind("\n", 0, mutant.start) + 1
        high = source.find("\n", mutant.end) + 1 or len(source)
        before = source[low:high].splitlines()
        after = mutated[low : high + len(mutated) - len(source)].splitlines()
        if before != after:
            mutant.diff = "\n".join(list(difflib.unified_diff(before, after, lineterm="", n=0))[3:])
            found.append(mutant)
    return found


def function_of(module: types.ModuleType, path: str) -> types.FunctionType:
    """The function of a module that `path` names, from under its decorators."""
    found = module
    for name in path.split("."):
        found = vars(found)[name]
    if isinstance(found, classmethod | staticmethod):
        found = found.__func__
    elif isinstance(found, property):
        found = found.fget
    elif isinstance(found, cached_property):
        found = found.func
    return inspect.unwrap(found)


def apply(module: types.ModuleType, source: str, mutant: Mutant) -> None:
    """Gives the function that is there, and that everyone holds, the mutated code."""
    mutated = types.ModuleType(module.__name__)
    mutated.__package__, mutated.__file__ = module.__package__, module.__file__
    text = source[: mutant.start] + mutant.new + source[mutant.end :]
    exec(compile(text, module.__file__, "exec"), vars(mutated))
    new, function = function_of(mutated, mutant.function), function_of(module, mutant.function)
    function.__code__ = new.__code__
    function.__defaults__, function.__kwdefaults__ = new.__defaults__, new.__kwdefaults__


def statements(source: str) -> dict[int, range]:
    """For each line the lines of the innermost statement that it is a part of (without the body of a block)."""
    found: dict[int, range] = {}
    for node in ast.walk(ast.parse(source)):  # outer statements come first
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if body else node.end_lineno
            if isinstance(node, ast.FunctionDef):  # run with the definition: who calls it runs its first lines
                last = body[-1].end_lineno
            lines = range(node.lineno, max(last, node.lineno) + 1)
            found.update(dict.fromkeys(range(node.lineno, node.end_lineno + 1), lines))
    return found


class Campaign:
    """A pytest plugin that runs mutants in the place of the tests that were collected."""

    def __init__(self, modules: list[str], options: argparse.Namespace):
        self.modules, self.options = modules, options
        self.in_fork = self.ok = False
        self.cover: coverage.Coverage | None = None
        self.results: dict[str, list[Mutant]] = {}

    # ---------------------------------------------------------------------------------------------------- hooks

    def pytest_collection(self) -> None:
        from hypothesis import Phase, settings

        # A failed example is enough; the smallest one is not looked for.
        phases = [Phase.explicit, Phase.generate]
        settings.register_profile("mutants", settings.get_profile("tests"), phases=phases)
        settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self.ok = False
            if self.in_fork and report.failed:
                os._exit(1)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef) -> Iterator[None]:
        """What a fixture of many tests runs is run by all of them, not by the first one."""
        if self.cover is None or fixturedef.scope == "function":
            return (yield)
        self.cover.switch_context(f"fixture {fixturedef.argname}")
        try:
            return (yield)
        finally:
            self.cover.switch_context(self.current)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        torch.set_num_threads(1)
        self.items = {item.nodeid: item for item in session.items}
        folder = Path(self.options.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        # in a fork too: nothing of the tests stays in this process
        code, answer = _fork(lambda path: path.write_text(json.dumps(self._cover())))
        if code:
            raise SystemExit(f"The tests without mutants ended with {code}.")
        covering, self.seconds = json.loads(answer)
        print(
            f"{len(self.seconds)} of {len(self.items)} tests pass, in {time.monotonic() - started:.0f} s", flush=True
        )
        for name in self.modules:
            self.results[name] = self._run_module(name, covering[name], folder)
        return True

    # ------------------------------------------------------------------------------------------- which tests run what

    def _cover(self) -> tuple[dict[str, dict[str, list[str]]], dict[str, float]]:
        files = {name: importlib.import_module(f"vtfusion.{name}").__file__ for name in self.modules}
        paths = {name: os.path.realpath(file) for name, file in files.items()}
        self.cover = coverage.Coverage(data_file=None, include=list(paths.values()), config_file=False)
        self.cover.start()
        seconds: dict[str, float] = {}
        items = list(self.items.values())
        for item, following in zip(items, [*items[1:], None], strict=True):
            self.current, self.ok = item.nodeid, True
            self.cover.switch_context(item.nodeid)
            started = time.monotonic()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.ok:  # neither failed nor skipped
                seconds[item.nodeid] = time.monotonic() - started
        self.cover.stop()
        users = defaultdict(set)
        for item in items:
            for fixture in item.fixturenames:
                users[f"fixture {fixture}"].add(item.nodeid)
        covering: dict[str, dict[str, list[str]]] = {}
        for name, path in paths.items():
            covering[name] = {}
            for line, contexts in self.cover.get_data().contexts_by_lineno(path).items():
                tests = set().union(*(users.get(context, {context}) for context in contexts))
                covering[name][str(line)] = sorted(tests & seconds.keys())
        return covering, seconds

    # ------------------------------------------------------------------------------------------------------- mutants

    def _run_module(self, name: str, covering: dict[str, list[str]], folder: Path) -> list[Mutant]:
        module = importlib.import_module(f"vtfusion.{name}")
        source = Path(module.__file__).read_text(encoding="utf-8")
        mutants, extents = find_mutants(source), statements(source)
        total = len(mutants)
        report = folder / f"{name}.json"
        if self.options.survivors:
            known = Counter((m["function"], m["diff"]) for m in json.loads(report.read_text())["survivors"])
            mutants = [mutant for mutant in mutants if known[mutant.function, mutant.diff] > 0]
        random.Random(self.options.seed).shuffle(mutants)
        if self.options.sample:
            mutants = mutants[: self.options.sample]
        kills: Counter[tuple[str, str]] = Counter()
        started = time.monotonic()
        for done, mutant in enumerate(mutants, 1):
            tests = set().union(*(covering.get(str(line), ()) for line in extents[mutant.line]))
            # those that killed the most mutants of the function come first, then the fastest ones
            order = sorted(tests, key=lambda test: (-kills[mutant.function, test], self.seconds[test], test))
            mutant.status, killer = self._run_mutant(module, source, mutant, order)
            kills[mutant.function, killer] += 1
            if done == len(mutants) or (done % 50 == 0 and not self.options.survivors):
                counts = Counter(m.status for m in mutants[:done])
                print(
                    f"{name}: {done}/{len(mutants)} in {time.monotonic() - started:.0f} s: {dict(counts)}", flush=True
                )
                self._write(folder / name, total, mutants[:done])  # now: what takes hours may be stopped
        return mutants

    def _write(self, path: Path, total: int, mutants: list[Mutant]) -> None:
        survivors = [asdict(m) for m in mutants if m.status in ("survived", "no test")]
        survivors.sort(key=lambda m: m["line"])
        kept = {"mutants": total, "run": len(mutants), "survivors": survivors}
        path.with_name(f"{path.name}.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
        text = [f"{m['function']}, line {m['line']} ({m['status']})\n{m['diff']}\n" for m in survivors]
        path.with_name(f"{path.name}.txt").write_text("\n".join(text), encoding="utf-8")

    def _run_mutant(self, module: types.ModuleType, source: str, mutant: Mutant, order: list[str]) -> tuple[str, str]:
        """What became of the mutant, and the test that was running at the end."""
        if not order:
            return "no test", ""
        chosen, spent = [], 0.0
        for test in order:
            spent += self.seconds[test]
            if chosen and spent > self.options.budget:
                break
            chosen.append(test)

        def body(answer: Path) -> None:
            apply(module, source, mutant)
            for test, following in zip(chosen, [*chosen[1:], None], strict=True):
                answer.write_text(test)
                # Of its own time on a core: a busy machine makes no endless loop. What sleeps without end waits longer.
                # The default action of both signals ends the process, whatever it is doing.
                limit = 10 * self.seconds[test] + 5
                signal.setitimer(signal.ITIMER_PROF, limit)
                signal.setitimer(signal.ITIMER_REAL, 20 * limit)
                item = self.items[test]
                next_item = None if following is None else self.items[following]
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=next_item)

        self.in_fork = True
        code, last = _fork(body)
        if code == 0:
            return "survived", ""
        return "timed out" if code in (-signal.SIGALRM, -signal.SIGPROF) else "killed", last


def _fork(body: Callable[[Path], None]) -> tuple[int, str]:
    """Runs in a fork: its exit code (negative: of a signal), and what it wrote. All that it left is removed."""
    scratch = tempfile.mkdtemp(prefix="vtfusion-mutant-")
    answer = Path(scratch) / "answer"
    child = os.fork()
    if child == 0:
        code = 2
        try:
            os.setsid()
            os.chdir(scratch)  # a mutant may write anywhere
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
            os.environ["PYTEST_DEBUG_TEMPROOT"] = tempfile.tempdir = scratch
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nowhere, stream)
            body(answer)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # servers and the like that its tests started
    output = answer.read_text() if answer.exists() else ""
    shutil.rmtree(scratch, ignore_errors=True)
    return os.waitstatus_to_exitcode(status), output


def interval(killed: int, run: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate."""
    z, rate = 1.96, killed / run
    middle = (rate + z * z / (2 * run)) / (1 + z * z / run)
    half = z / (1 + z * z / run) * math.sqrt(rate * (1 - rate) / run + z * z / (4 * run * run))
    return middle - half, middle + half


def table(results: dict[str, list[Mutant]]) -> str:
    """What became of the mutants of each module, and of each group of modules that is whole."""
    rows = [(name, mutants) for name, mutants in results.items() if mutants]
    for group, names in GROUPS.items():
        if len(names) > 1 and all(results.get(name) for name in names):
            rows.append((group, [mutant for name in names for mutant in results[name]]))
    lines = [f"{'':<22}{'mutants':>8}{'killed':>8}{'timed out':>11}{'survived':>10}{'no test':>9}{'rate':>9}   95 %"]
    for name, mutants in rows:
        counts = Counter(mutant.status for mutant in mutants)
        killed = counts["killed"] + counts["timed out"]
        low, high = interval(killed, len(mutants))
        lines.append(
            f"{name:<22}{len(mutants):>8}{counts['killed']:>8}{counts['timed out']:>11}{counts['survived']:>10}"
            f"{counts['no test']:>9}{100 * killed / len(mutants):>7.1f} %   {100 * low:.1f} to {100 * high:.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--modules", nargs="+", choices=TESTS, default=list(TESTS), help="which modules (default: all)"
    )
    parser.add_argument("--sample", type=int, help="so many mutants of each module, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of tests; who lives longer has survived")
    parser.add_argument("--survivors", action="store_true", help="only those that survived the last run")
    parser.add_argument("--output_dir", default="outputs/mutants", help="where the survivors are written")
    options = parser.parse_args()
    os.chdir(ROOT)
    files = dict.fromkeys(file for name in options.modules for file in TESTS[name])
    campaign = Campaign(options.modules, options)
    quiet = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:timeout", "--no-header", "--no-summary"]
    code = pytest.main([*quiet, "-m", "not slow", *files], plugins=[campaign])
    if not campaign.results:
        sys.exit(int(code))
    print(table(campaign.results))


if __name__ == "__main__":
    main()
