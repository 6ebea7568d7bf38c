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

import statistics
import time
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from measuring import markdown_table, ratios, rotations
from transformers import HfArgumentParser, TrainingArguments

from vtfusion.training.arguments import ModelArguments, TokenDataArguments


@dataclass
class StepArguments:
    batch_size: int = field(default=32, metadata={"help": "Texts in a batch."})
    num_batches: int = field(default=12, metadata={"help": "Batches, each of texts of about one length."})
    repeats: int = field(default=5, metadata={"help": "How often each batch is stepped on by each model."})
    bf16: bool = field(default=False, metadata={"help": "Whether each model also takes its steps in bfloat16."})
    seed: int = field(default=0, metadata={"help": "Of the batches and of new weights."})


def main(model_args: ModelArguments, data_args: TokenDataArguments, args: StepArguments) -> None:
    import random

    import torch
    from transformers import AutoModelForTokenClassification, set_seed

    from vtfusion import VTFusionForTokenClassification
    from vtfusion.training.collator import FusionCollator
    from vtfusion.training.images import ImageStore, prepare_images
    from vtfusion.training.loading import load_model
    from vtfusion.training.token_classification import encode_windows, load_splits

    set_seed(args.seed)
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
    runs: dict[str, tuple[Any, Any, Any]] = {}
    for name, model, collator in (
        ("plain", plain, text_only),
        ("text-only twin", twin, text_only),
        ("fused", fused, FusionCollator(processor, store, cache)),
    ):
        trained = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
        # fused, as `Trainer` does it
        runs[name] = (model, collator, torch.optim.AdamW(trained, lr=1e-6, fused=True))

    def step(run: tuple[str, bool], batch: list[dict[str, Any]]) -> float:
        name, bf16 = run
        model, collator, optimizer = runs[name]
        if name != "fused":
            batch = [{**window, "image_keys": None} for window in batch]
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**collator(batch)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    turns = [(name, bf16) for bf16 in ((False, True) if args.bf16 else (False,)) for name in runs]
    for run in turns:
        step(run, batches[0])  # warm up
    orders = rotations(turns)
    times: dict[tuple[str, bool], list[list[float]]] = {run: [[] for _ in batches] for run in turns}
    for _ in range(args.repeats):
        for place, batch in enumerate(batches):
            for run in next(orders):
                times[run][place].append(step(run, batch))

    lengths = [max(window["length"] for window in batch) for batch in batches]
    images = sum(bool(window["image_keys"]) for batch in batches for window in batch)
    print(f"{args.num_batches} batches of {args.batch_size}, lengths {sorted(lengths)}, {images} texts with an image,")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {args.repeats} repeats\n")
    base = times["plain", False]
    base_total = sum(statistics.median(values) for values in base)
    rows = []
    for name, bf16 in turns:
        total = sum(statistics.median(values) for values in times[name, bf16])
        low, _, high = ratios([*chain(*times[name, bf16])], [*chain(*base)])
        label = f"{name}{', bf16' if bf16 else ''}"
        rows.append((label, f"{1000 * total:.0f}", f"{total / base_total:.2f}", f"{low:.2f} … {high:.2f}"))
    print(markdown_table(("model", "sum of median steps, ms", "ratio to plain", "quartiles of single ratios"), rows))


if __name__ == "__main__":
    main(*HfArgumentParser((ModelArguments, TokenDataArguments, StepArguments)).parse_args_into_dataclasses())
