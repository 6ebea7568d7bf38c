#!/usr/bin/env python
"""
The price of fusion: a training step of `AutoModelForTokenClassification`, of the text-only twin and of the fused model on
cached vision features, side by side on the same batches of a paired data set, with `--bf16` each of them in float32 and in
bfloat16 (autocast, as `Trainer` does it).

python benchmarks/training_step.py --dataset_name outputs/conll-paired --text_model outputs/parts/minilm \
    --vision_model outputs/parts/mobilenet_v2

A step is collating, forward, backward, clipping and AdamW. They take turns on each batch, in an order that rotates, so
that whatever else the machine does falls on all of them. Prints the median of each batch's times, summed over batches, and
ratios to the plain model in float32, with the quartiles of the ratios of single steps.
"""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from measuring import markdown_table, ratios, rotations
from models import make_training_step
from transformers import AutoModelForTokenClassification, HfArgumentParser, TrainingArguments, set_seed

from vtfusion import VTFusionForTokenClassification
from vtfusion.training.arguments import ModelArguments, TokenDataArguments
from vtfusion.training.collator import FusionCollator
from vtfusion.training.images import ImageStore, prepare_images
from vtfusion.training.loading import load_model
from vtfusion.training.token_classification import encode_windows, load_splits

Windows = list[dict[str, Any]]
# The name of a model, and whether it takes its steps in bfloat16.
Contender = tuple[str, bool]


@dataclass
class TrainingStepArguments:
    batch_size: int = field(default=32, metadata={"help": "Texts in a batch."})
    num_batches: int = field(default=12, metadata={"help": "Batches, each of texts of about one length."})
    repeats: int = field(default=5, metadata={"help": "How often each batch is stepped on by each model."})
    bf16: bool = field(default=False, metadata={"help": "Whether each model also takes its steps in bfloat16."})
    seed: int = field(default=0, metadata={"help": "Of the batches and of new weights."})


def make_steps(
    model_args: ModelArguments, data_args: TokenDataArguments, args: TrainingStepArguments
) -> tuple[dict[str, Callable[[int, bool], None]], list[Windows]]:
    """For each model a step on a batch by its place, collating included; and the batches."""
    dataset = load_splits(data_args)
    only = type(dataset)(train=dataset["train"])
    names = only["train"].features["ner_tags"].feature.names
    fused, processor = load_model(VTFusionForTokenClassification, model_args, names)
    twin, _ = load_model(VTFusionForTokenClassification, model_args, names)
    plain = AutoModelForTokenClassification.from_pretrained(model_args.text_model, num_labels=len(names))
    cpu = TrainingArguments(output_dir="outputs/training_step", use_cpu=True, report_to="none")
    keys, store, cache = prepare_images(only, fused, processor, data_args, cpu)
    windows = encode_windows(only["train"], processor, keys["train"]).sort("length")
    starts = random.Random(args.seed).sample(
        range(0, len(windows) - args.batch_size, args.batch_size), args.num_batches
    )
    batches = [[windows[i] for i in range(start, start + args.batch_size)] for start in starts]
    text_only = FusionCollator(processor, ImageStore())
    without = [[{**window, "image_keys": None} for window in batch] for batch in batches]

    def step_of(model: Any, collator: FusionCollator, batches: list[Windows]) -> Callable[[int, bool], None]:
        step = make_training_step(model)
        return lambda place, bf16: step(collator(batches[place]), bf16)

    steps = {
        "plain": step_of(plain, text_only, without),
        "text-only twin": step_of(twin, text_only, without),
        "fused": step_of(fused, FusionCollator(processor, store, cache), batches),
    }
    return steps, batches


def measure_steps(
    steps: dict[str, Callable[[int, bool], None]], args: TrainingStepArguments
) -> dict[Contender, list[list[float]]]:
    """For each contender and batch its times."""
    contenders = [(name, bf16) for bf16 in ((False, True) if args.bf16 else (False,)) for name in steps]
    for name, bf16 in contenders:
        steps[name](0, bf16)  # warm up
    orders = rotations(contenders)
    times: dict[Contender, list[list[float]]] = {
        contender: [[] for _ in range(args.num_batches)] for contender in contenders
    }
    for _ in range(args.repeats):
        for place in range(args.num_batches):
            for name, bf16 in next(orders):
                started = time.perf_counter()
                steps[name](place, bf16)
                times[name, bf16][place].append(time.perf_counter() - started)
    return times


def main(model_args: ModelArguments, data_args: TokenDataArguments, args: TrainingStepArguments) -> None:
    set_seed(args.seed)
    steps, batches = make_steps(model_args, data_args, args)
    times = measure_steps(steps, args)
    lengths = sorted(max(window["length"] for window in batch) for batch in batches)
    images = sum(bool(window["image_keys"]) for batch in batches for window in batch)
    print(f"{args.num_batches} batches of {args.batch_size}, lengths {lengths}, {images} texts with an image,")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {args.repeats} repeats\n")
    base = times["plain", False]
    base_total = sum(map(statistics.median, base))
    rows = []
    for (name, bf16), values in times.items():
        total = sum(map(statistics.median, values))
        low, _, high = ratios([*chain(*values)], [*chain(*base)])
        label = f"{name}{', bf16' if bf16 else ''}"
        rows.append((label, f"{1000 * total:.0f}", f"{total / base_total:.2f}", f"{low:.2f} … {high:.2f}"))
    print(markdown_table(("model", "sum of median steps, ms", "ratio to plain", "quartiles of single ratios"), rows))


if __name__ == "__main__":
    main(*HfArgumentParser((ModelArguments, TokenDataArguments, TrainingStepArguments)).parse_args_into_dataclasses())
