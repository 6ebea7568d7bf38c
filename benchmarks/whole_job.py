#!/usr/bin/env python
"""
The whole job beside AutoGluon MultiModal: from files and two saved encoders to predictions of the test rows.

python benchmarks/whole_job.py --autogluon_python autogluon/bin/python --task classification \
    --text_model outputs/parts/minilm --vision_model outputs/parts/mobilenet_v2 \
    --train_file outputs/mvsa/fold-0/train.jsonl --validation_file outputs/mvsa/fold-0/valid.jsonl \
    --test_file outputs/mvsa/fold-0/test.jsonl --image_folder data/mvsa-single

Both have the same rows, encoders (MobileNetV2), epochs and seed, float32 and the same threads. AutoGluon keeps its
other defaults (see `benchmarks/autogluon_job.py`, which says how to install it), and trains the vision encoder too;
VTFusion runs its script with the flags of `--flags` and a feature cache that starts empty. Wall time and peak memory are those
of the whole process, from its start to its end, imports and tests included.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from json_lines import read_json_lines
from measuring import BenchmarkArguments, Results
from transformers import HfArgumentParser

SCRIPTS = {"classification": "run_classification.py", "ner": "run_ner.py"}
FILES = ("train_file", "validation_file", "test_file")


@dataclass(kw_only=True)
class JobArguments(BenchmarkArguments):
    autogluon_python: str = field(metadata={"help": "The Python of the environment that has AutoGluon."})
    task: str = field(metadata={"help": "What is learned.", "choices": list(SCRIPTS)})
    text_model: str = field(metadata={"help": "Folder of the text encoder."})
    vision_model: str = field(metadata={"help": "Folder of a MobileNetV2."})
    train_file: str = field(metadata={"help": "JSON lines."})
    validation_file: str = field(metadata={"help": "JSON lines."})
    test_file: str = field(metadata={"help": "JSON lines."})
    image_folder: str = field(metadata={"help": "What the image paths start from."})
    num_train_epochs: int = field(default=3, metadata={"help": "Of both."})
    autogluon_batch_size: int | None = field(
        default=None, metadata={"help": "Rows of a step of AutoGluon, by its default 128."}
    )
    flags: str = field(
        default="--learning_rate 5e-5 --fusion_learning_rate 5e-4 --per_device_train_batch_size 16 --warmup_steps 0.1",
        metadata={"help": "Of VTFusion's script."},
    )


def run(command: list[str], log: Path) -> tuple[float, float]:
    """Seconds and peak memory (MB) of a process."""
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[1]} ended with {os.waitstatus_to_exitcode(status)}, see {log}.")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def tag_words(tokens: list[str], spans: list[list[Any]]) -> list[str]:
    """IOB2 tags of words from entities as characters of the words joined by spaces; a word of two belongs to the first."""
    tags, start = [], 0
    before = None
    for word in tokens:
        end = start + len(word)
        place = next((i for i, (_, first, last) in enumerate(spans) if first < end and last > start), None)
        tags.append("O" if place is None else f"{'I' if place == before else 'B'}-{spans[place][0]}")
        before, start = place, end + 1
    return tags


def score(task: str, rows: list[dict[str, Any]], said: list[Any]) -> dict[str, float]:
    """Labels of texts or tags of words, scored by one function whoever said them."""
    from vtfusion.training.metrics import compute_entity_metrics

    if task == "ner":
        return {"f1": compute_entity_metrics(said, [row["ner_tags"] for row in rows])["f1"]}
    from sklearn.metrics import accuracy_score, f1_score

    labels = [row["label"] for row in rows]
    return {"accuracy": accuracy_score(labels, said), "macro_f1": f1_score(labels, said, average="macro")}


def main(args: JobArguments) -> None:
    results = Results(
        f"whole_job_{args.task}", f"How long does the whole job take beside AutoGluon ({args.task})?", args
    )
    output = Path(args.output_dir, f"whole_job_{args.task}").resolve()
    shutil.rmtree(output, ignore_errors=True)  # neither starts from what an earlier run has left
    parts = {name: str(Path(getattr(args, name)).resolve()) for name in ("text_model", "vision_model", *FILES)}
    job = {
        **parts,
        "task": args.task,
        "image_folder": str(Path(args.image_folder).resolve()),
        "num_train_epochs": args.num_train_epochs,
        "batch_size": args.autogluon_batch_size,
        "seed": args.seed,
        "output_dir": str(output / "autogluon"),
    }
    root = Path(__file__).resolve().parents[1]
    ours = [sys.executable, str(root / "scripts" / SCRIPTS[args.task])]
    for name in (*parts, "image_folder", "num_train_epochs", "seed"):
        ours += [f"--{name}", str(job[name])]
    ours += ["--output_dir", str(output / "vtfusion"), "--feature_cache_dir", str(output / "features")]
    theirs = [args.autogluon_python, str(root / "benchmarks" / "autogluon_job.py"), json.dumps(job)]
    rows = read_json_lines(args.test_file)
    lines = []
    for name, command in (("VTFusion", [*ours, *shlex.split(args.flags)]), ("AutoGluon", theirs)):
        seconds, memory = run(command, output / f"{name.lower()}.log")
        if name == "VTFusion":
            found = read_json_lines(output / "vtfusion" / "test_predictions.jsonl")
            said = [line["predicted_tags"] if args.task == "ner" else line["predicted"]["label"] for line in found]
        else:
            said = read_json_lines(output / "autogluon" / "predictions.jsonl")
            if args.task == "ner":
                said = [tag_words(row["tokens"], spans) for row, spans in zip(rows, said, strict=True)]
        scores = score(args.task, rows, said)
        results.rows.append({"contender": name, "seconds": seconds, "peak_memory_mb": memory, **scores})
        lines.append((name, f"{seconds:.0f}", f"{memory:,.0f}", *(f"{100 * value:.2f}" for value in scores.values())))
    results.add_table(
        f"{len(rows)} test rows, {args.num_train_epochs} epochs, seed {args.seed}",
        ("", "s", "peak memory, MB", *scores),
        lines,
    )
    results.save()


if __name__ == "__main__":
    main(*HfArgumentParser(JobArguments).parse_args_into_dataclasses())
