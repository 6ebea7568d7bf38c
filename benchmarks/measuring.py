"""
How the benchmarks measure: contenders that take turns, ratios with their spread, peak memory in a process of its own, the
machine and the versions, and results as JSON and as tables.

A speed that is measured alone says as much about what else the machine did. So contenders run one after the other, round
after round, each round beginning with another one, and what counts is the ratio of two times of the same round.
"""

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

Name = TypeVar("Name", bound=Hashable)
Arguments = TypeVar("Arguments", bound="QuickArguments")

MB = 2**20


@dataclass
class BenchmarkArguments:
    """What every benchmark takes that saves its results."""

    output_dir: str = field(default="outputs/benchmarks", metadata={"help": "Folder of the JSON file."})
    seed: int = field(default=0, metadata={"help": "Of weights and inputs."})


@dataclass
class QuickArguments(BenchmarkArguments):
    """What every benchmark takes that [`parse`] can make small."""

    quick: bool = field(default=False, metadata={"help": "Tiny sizes, to see that it runs; no numbers to quote."})


@dataclass
class RoundsArguments(QuickArguments):
    """What every benchmark takes whose contenders take turns."""

    repeats: int = field(default=5, metadata={"help": "Rounds."})


def parse(arguments: type[Arguments], quick: Mapping[str, Any]) -> Arguments:
    """The arguments of the command line. With `--quick` the defaults are those of `quick`; flags still override them."""
    from transformers import HfArgumentParser

    parser = HfArgumentParser(arguments)
    if "--quick" in sys.argv:
        parser.set_defaults(**quick)
    return parser.parse_args_into_dataclasses()[0]


def quiet() -> None:
    """No progress bars between the tables."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


# ------------------------------------------------------------------------------------------------------------ time


def rotations(names: Sequence[Name]) -> Iterator[list[Name]]:
    """The names over and over, each time beginning one further."""
    order = list(names)
    while True:
        yield list(order)
        order.append(order.pop(0))


def timed(action: Callable[[], Any]) -> Callable[[], float]:
    """The action as a measure: its seconds in place of its result."""

    def measure() -> float:
        started = time.perf_counter()
        action()
        return time.perf_counter() - started

    return measure


def take_turns(measures: Mapping[Name, Callable[[], float]], repeats: int) -> dict[Name, list[float]]:
    """What each measure gave in each of `repeats` rounds, in an order that rotates; a first round does not count."""
    for measure in measures.values():
        measure()
    times: dict[Name, list[float]] = {name: [] for name in measures}
    for _, order in zip(range(repeats), rotations(list(measures)), strict=False):
        for name in order:
            times[name].append(measures[name]())
    return times


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile; of one value three times itself."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def ratios(times: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Quartiles of the ratios of two contenders' times, round by round."""
    return quartiles([mine / theirs for mine, theirs in zip(times, base, strict=True)])


@dataclass(frozen=True)
class Compared:
    """A contender's median time, and the quartiles of its ratios to another's times of the same rounds."""

    seconds: float
    ratio: float
    ratio_low: float
    ratio_high: float

    @property
    def spread(self) -> str:
        """The quartiles around the ratio, for a table."""
        return f"{self.ratio_low:.2f} … {self.ratio_high:.2f}"


def compare(times: Mapping[Name, Sequence[float]], base: Name) -> dict[Name, Compared]:
    """What [`take_turns`] measured, each contender beside `base`."""
    compared = {}
    for name, values in times.items():
        low, ratio, high = ratios(values, times[base])
        compared[name] = Compared(quartiles(values)[1], ratio, low, high)
    return compared


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent by which a cost grows with a size: the slope of the line through their logarithms."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


# ---------------------------------------------------------------------------------------------------------- memory


def resident_mb() -> float:
    """Memory of this process now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MB


def peak_mb() -> float:
    """The most memory that this process has had since its program started (Linux)."""
    # `ru_maxrss` would be no less than what the parent had when it started this process
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


class OwnMemory:
    """
    A block's peak of memory that is not mapped from files, over what there was before it (Linux). Pages of files count as
    resident too, but the system takes them back where it needs them.
    """

    def __init__(self, seconds: float = 0.02):
        self.seconds, self.mb = seconds, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @staticmethod
    def now() -> float:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("RssAnon:")[2].split()[0]) / 1024

    def _watch(self) -> None:
        while not self._stop.wait(self.seconds):
            self.mb = max(self.mb, self.now() - self._before)

    def __enter__(self) -> "OwnMemory":
        self._before = self.now()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.mb = max(self.mb, self.now() - self._before)


def in_child(file: str, function: str, **kwargs: Any) -> dict[str, Any]:
    """
    Runs a function in a process of its own, since a peak of memory is that of a process since its start.

    Args:
        file (`str`): the program that has the function; `__file__` of the caller.
        function (`str`): its name. It returns a `dict`.
        kwargs: its arguments; these and the result pass through JSON.

    Returns:
        `dict[str, Any]`: what it returned, with `peak_mb`, the peak of that process.
    """
    command = [sys.executable, __file__, file, function, json.dumps(kwargs)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _run_child(file: str, function: str, kwargs: str) -> None:
    sys.path.insert(0, str(Path(file).parent))
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python program.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks for its module there
    spec.loader.exec_module(module)
    result = getattr(module, function)(**json.loads(kwargs))
    print(json.dumps({**result, "peak_mb": peak_mb()}))


# --------------------------------------------------------------------------------------------------------- results


def machine() -> dict[str, Any]:
    """Where and with what a benchmark runs."""
    import torch

    from vtfusion.training.versions import package_versions

    cpu = platform.processor() or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 2**30, 1),
        "threads": torch.get_num_threads(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "versions": package_versions(),
    }


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; the columns but the first are numbers, on the right."""
    lines = [list(columns), ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


class Results:
    """
    The results of one benchmark: `rows` to compute with and tables to read. `save` prints them and writes
    `{output_dir}/{name}.json`.

    Args:
        name (`str`): of the benchmark.
        question (`str`): what it answers.
        args ([`BenchmarkArguments`]): what it ran with.
    """

    def __init__(self, name: str, question: str, args: BenchmarkArguments):
        self.name, self.question, self.args = name, question, args
        self.machine = machine()
        self.started = time.perf_counter()
        self.rows: list[dict[str, Any]] = []
        self.tables: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def add_table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Prints a table and keeps it."""
        self.tables.append({"title": title, "columns": list(columns), "rows": [list(map(str, row)) for row in rows]})
        print(f"\n{title}\n\n{markdown_table(columns, rows)}", flush=True)

    def add_note(self, note: str) -> None:
        """Prints a sentence about the results and keeps it."""
        self.notes.append(note)
        print(f"\n{note}", flush=True)

    def save(self) -> Path:
        seconds = time.perf_counter() - self.started
        settings = {name: value for name, value in asdict(self.args).items() if name != "output_dir"}
        record = {
            "name": self.name,
            "question": self.question,
            "machine": self.machine,
            "settings": settings,
            "seconds": round(seconds, 1),
            "rows": self.rows,
            "tables": self.tables,
            "notes": self.notes,
        }
        folder = Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"\n{describe_machine(self.machine)}\n{self.name}: {seconds:.0f} s, written to {path}", flush=True)
        return path


def describe_machine(found: Mapping[str, Any]) -> str:
    """One line about a machine."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['memory_gb']} GB, {found['threads']} threads, load "
        f"{found['load_at_start']} at the start; {versions}"
    )


if __name__ == "__main__":
    _run_child(*sys.argv[1:])
