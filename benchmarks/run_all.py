#!/usr/bin/env python
"""
All benchmarks with their defaults, one after the other, each in a process of its own: about half an hour on two cores.

python benchmarks/run_all.py --output_dir outputs/benchmarks

Leaves `{name}.json` of each, figures in `figures/`, and `performance.md` with all tables, which is what docs/performance.md has
under each question. With `--model_name_or_path` (what `make quickstart` trains) serving also tells the F1 of each backend.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from figures import FIGURES
from measuring import QuickArguments, describe_machine, markdown_table, parse

PROGRAMS = ("fusion_price", "peers", "growth", "feature_cache", "serving")


@dataclass
class AllArguments(QuickArguments):
    programs: list[str] = field(
        default_factory=lambda: list(PROGRAMS), metadata={"help": "Only these.", "choices": list(PROGRAMS)}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "For serving: a trained model of the synthetic sample set."}
    )


def section(record: dict[str, Any], figure: str | None) -> str:
    """The part of the page about one benchmark."""
    parts = [f"## {record['question']}", f"`benchmarks/{record['name']}.py`, {record['seconds']:.0f} s."]
    if figure is not None:
        parts.append(f"![{record['question']}]({figure})")
    for table in record["tables"]:
        parts += [f"{table['title']}:", markdown_table(table["columns"], table["rows"])]
    return "\n\n".join([*parts, *record["notes"]])


def write_page(output: Path, names: list[str]) -> Path:
    """Figures, and a page of the results that are in the folder."""
    sections = []
    machines = []
    (output / "figures").mkdir(parents=True, exist_ok=True)
    for name in names:
        record = json.loads((output / f"{name}.json").read_text(encoding="utf-8"))
        figure = f"figures/performance-{name}.png"
        FIGURES[name](record).savefig(output / figure, dpi=130)
        sections.append(section(record, figure))
        machines.append(f"- {name}: {describe_machine(record['machine'])}")
    page = output / "performance.md"
    page.write_text("\n\n".join(["# Performance", "\n".join(machines), *sections]) + "\n", encoding="utf-8")
    return page


def main(args: AllArguments) -> None:
    for name in args.programs:
        print(f"\n=== {name}", flush=True)
        command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), "--output_dir", args.output_dir]
        command += ["--seed", str(args.seed), *(["--quick"] if args.quick else [])]
        if name == "serving" and args.model_name_or_path is not None:
            command += ["--model_name_or_path", args.model_name_or_path]
        subprocess.run(command, check=True)
    print(f"\nAll tables are in {write_page(Path(args.output_dir), args.programs)}")


if __name__ == "__main__":
    main(parse(AllArguments, {}))
