#!/usr/bin/env python
"""
How cost grows: time and memory of the fusion block with the length of a text (L), the positions of an image (N), the images of a
text (M) and the batch; time and memory of pairing, caching and the data of a training with the number of rows.

python benchmarks/growth.py

The block is everything between the encoders and the head (`project_images` and `fuse` of `VTFusionModel`, 256 wide, both
directions, forward and backward) on random states 384 wide and features 768 wide, with the masks that a collator gives. `L and
N` grows both, up to 4,096 words beside 16,384 positions, where the similarity S alone (`heads * L * N` numbers) would take the
memory that stands beside. All sizes of a series take turns; memory is that of a process for each size, over what it has with
model and inputs. A slope is the exponent of the growth over the upper half of a series: 1 where it is linear.

Rows are synthetic: texts of 15 made-up words paired by name (`pairing_scale.py`), tiny images through a tiny encoder
(`feature_cache.py`), and texts read, tokenized, sorted into batches of about one length and collated as a training does it.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import (
    MB,
    OwnMemory,
    Results,
    RoundsArguments,
    in_child,
    parse,
    peak_mb,
    quartiles,
    quiet,
    resident_mb,
    slope,
    take_turns,
    timed,
)
from models import random_boxes
from transformers import BertConfig

from vtfusion import VTFusionConfig, VTFusionModel

QUICK = {"max_length": 64, "max_positions": 128, "max_images": 4, "max_batch": 4, "rows": [30, 60], "repeats": 2}
TEXT_WIDTH, VISUAL_WIDTH, HEADS = 384, 768, 4


@dataclass
class GrowthArguments(RoundsArguments):
    max_length: int = field(default=4096, metadata={"help": "The longest text, in tokens."})
    max_positions: int = field(default=16384, metadata={"help": "The most positions of an image."})
    max_images: int = field(default=64, metadata={"help": "The most images of a text, of 49 positions each."})
    max_batch: int = field(default=128, metadata={"help": "The most texts in a batch."})
    rows: list[int] = field(default_factory=lambda: [1_000, 10_000, 100_000], metadata={"help": "Numbers of rows."})


def doubled(first: int, last: int) -> list[int]:
    """The first number and its doubles, up to the last."""
    sizes = [first]
    while 2 * sizes[-1] <= last:
        sizes.append(2 * sizes[-1])
    return sizes


def make_series(args: GrowthArguments) -> dict[str, dict[int, dict[str, int]]]:
    """For each thing that grows its sizes, and the shapes that they mean."""
    few = {"rows": 4, "length": 64, "images": 1, "positions": 49}
    lengths = doubled(min(64, args.max_length // 4), args.max_length)
    positions = doubled(min(64, args.max_positions // 4), args.max_positions)
    # from the top down, as many as both have
    together = list(zip(reversed(lengths), reversed(positions), strict=False))[::-1]
    return {
        "L": {size: {**few, "length": size} for size in lengths},
        "N": {size: {**few, "positions": size} for size in positions},
        "M": {size: {**few, "images": size} for size in doubled(1, args.max_images)},
        "batch": {size: {**few, "rows": size} for size in doubled(1, args.max_batch)},
        "L and N": {n: {**few, "rows": 1, "length": length, "positions": n} for length, n in together},
    }


class Block:
    """The fusion part of a model, and random inputs for it."""

    def __init__(self, rows: int, length: int, images: int, positions: int, seed: int = 0):
        torch.manual_seed(seed)
        text = BertConfig(
            vocab_size=8, hidden_size=TEXT_WIDTH, num_hidden_layers=1, num_attention_heads=6, intermediate_size=8
        )
        self.model = VTFusionModel(
            VTFusionConfig(text, visual_hidden_size=VISUAL_WIDTH, num_fusion_heads=HEADS)
        ).train()
        self.text = torch.randn(rows, length, TEXT_WIDTH, requires_grad=True)
        self.features = torch.randn(rows, images, positions, VISUAL_WIDTH)
        self.boxes = random_boxes(rows, images, positions)
        self.text_mask = torch.ones(rows, length, dtype=torch.bool)
        self.visual_mask = torch.ones(rows, images * positions, dtype=torch.bool)

    def step(self) -> None:
        """Forward and backward."""
        image, _ = self.model.project_images(self.features, self.boxes, self.visual_mask)
        fused, alignment = self.model.fuse(self.text, self.text_mask, image, self.visual_mask)
        (fused["last_hidden_state"].mean() + alignment["image_state"].mean()).backward()
        self.text.grad = None
        self.model.zero_grad()


def block_memory(**shape: int) -> dict[str, float]:
    """Memory of a step over that of model and inputs."""
    small = Block(rows=1, length=8, images=1, positions=8)
    small.step()  # what the libraries set up at their first call
    block = Block(**shape)
    before = resident_mb()
    block.step()
    return {"memory_mb": peak_mb() - before}


def upper_slope(sizes: list[int], costs: list[float]) -> float:
    """The slope over the upper half of a series, where what every call costs has lost its weight."""
    start = len(sizes) // 2 if len(sizes) > 3 else 0
    return slope(sizes[start:], costs[start:])


def measure_block(results: Results, args: GrowthArguments) -> None:
    """Each series with its slopes."""
    for name, shapes in make_series(args).items():
        blocks = {size: Block(**shape, seed=args.seed) for size, shape in shapes.items()}
        times = take_turns({size: timed(block.step) for size, block in blocks.items()}, args.repeats)
        blocks.clear()
        lines = []
        memory = []
        seconds = {size: quartiles(values) for size, values in times.items()}
        for size, shape in shapes.items():
            memory.append(in_child(__file__, "block_memory", **shape)["memory_mb"])
            low, median, high = seconds[size]
            similarity = 4 * HEADS * shape["rows"] * shape["length"] * shape["images"] * shape["positions"] / MB
            results.rows.append(
                {
                    "kind": "block",
                    "series": name,
                    "size": size,
                    **shape,
                    "seconds": median,
                    "seconds_low": low,
                    "seconds_high": high,
                    "memory_mb": memory[-1],
                    "similarity_mb": similarity,
                }
            )
            each = ", ".join(f"{key} {value:,}" for key, value in shape.items())
            spread = f"{1000 * low:.1f} … {1000 * high:.1f}"
            lines.append((each, f"{1000 * median:.1f}", spread, f"{memory[-1]:.1f}", f"{similarity:.1f}"))
        sizes = list(shapes)
        of_time = upper_slope(sizes, [seconds[size][1] for size in sizes])
        of_memory = upper_slope(sizes, [max(value, 0.1) for value in memory])
        results.rows.append({"kind": "slope", "series": name, "time": of_time, "memory": of_memory})
        lines.append(("**slope**", f"**{of_time:.2f}**", "", f"**{of_memory:.2f}**", ""))
        results.add_table(
            f"Growth with {name}: forward and backward of the fusion block",
            ("shape", "ms", "quartiles", "memory, MB", "S would be, MB"),
            lines,
        )


# ------------------------------------------------------------------------------------------------------------ rows


def pair_rows(count: int) -> dict[str, float]:
    """Pairs so many texts with a tenth as many images by their names, and saves them."""
    from pairing_scale import ScaleArguments, pair, write_data

    quiet()
    found = {}
    # the first few for what is imported and set up only once
    for number in (10, count):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            args = ScaleArguments(num_texts=number, num_images=max(1, number // 10))
            write_data(args, folder)
            with OwnMemory() as own:
                started = time.perf_counter()
                pair(args, "lexicon", folder)
                seconds = time.perf_counter() - started
            found = {"seconds": seconds, "memory_mb": own.mb}
    return found


def cache_rows(count: int) -> dict[str, float]:
    """Caches the features of so many images."""
    from feature_cache import cache_images

    return cache_images(count)


def read_rows(count: int) -> dict[str, float]:
    """Reads, tokenizes and collates so many texts, as in an epoch."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
    from feature_cache import build_sample, tiny_model
    from pairing_scale import make_texts

    from vtfusion.training.arguments import TokenDataArguments, VTFusionTrainingArguments
    from vtfusion.training.collator import FusionCollator
    from vtfusion.training.images import ImageStore
    from vtfusion.training.token_classification import encode_windows, load_splits
    from vtfusion.training.trainer import VTFusionTrainer

    quiet()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, text, vision = build_sample(folder, 8, 32)
        model, processor = tiny_model(text, vision)
        features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B-X"]))})
        texts = Dataset.from_generator(
            with_tags, features=features, gen_kwargs={"texts": partial(make_texts, count, 10)}, cache_dir=str(folder)
        )
        DatasetDict(train=texts).save_to_disk(str(folder / "texts"))
        with OwnMemory() as own:
            started = time.perf_counter()
            dataset = load_splits(TokenDataArguments(dataset_name=str(folder / "texts")))["train"]
            windows = encode_windows(dataset, processor, [None] * len(dataset))
            training_args = VTFusionTrainingArguments(
                output_dir=str(folder / "out"),
                per_device_train_batch_size=32,
                use_cpu=True,
                eval_strategy="no",
                load_best_model_at_end=False,
            )
            collator = FusionCollator(processor, ImageStore())
            trainer = VTFusionTrainer(model=model, args=training_args, data_collator=collator, train_dataset=windows)
            seen = sum(len(batch["input_ids"]) for batch in trainer.get_train_dataloader())
            seconds = time.perf_counter() - started
        return {"seconds": seconds, "memory_mb": own.mb, "seen": seen}


def with_tags(texts: Callable[[], Iterable[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The rows, tagged as without entities."""
    for row in texts():
        yield {**row, "ner_tags": [0] * len(row["tokens"])}


STAGES = {"pairing by name": "pair_rows", "caching features": "cache_rows", "data of an epoch": "read_rows"}


def measure_rows(results: Results, args: GrowthArguments) -> None:
    """Each stage with the slope of its time."""
    lines = []
    for stage, function in STAGES.items():
        costs, memory = [], []
        for count in args.rows:
            found = in_child(__file__, function, count=count)
            costs.append(found["seconds"])
            memory.append(found["memory_mb"])
            results.rows.append(
                {"kind": "rows", "stage": stage, "count": count, "seconds": costs[-1], "memory_mb": memory[-1]}
            )
            each = 1000 * costs[-1] / count
            lines.append((stage, f"{count:,}", f"{costs[-1]:.1f}", f"{each:.3f}", f"{memory[-1]:.0f}"))
        exponent = slope(args.rows[-2:], costs[-2:])
        results.rows.append({"kind": "slope", "series": stage, "time": exponent})
        lines.append((f"**{stage}, slope of the last step**", "", "", f"**{exponent:.2f}**", ""))
    results.add_table(
        "Growth with the rows, in one process; memory without the pages of files",
        ("stage", "rows", "seconds", "ms per row", "memory, MB more"),
        lines,
    )


def main(args: GrowthArguments) -> None:
    results = Results("growth", "How do time and memory grow?", args)
    measure_block(results, args)
    measure_rows(results, args)
    results.save()


if __name__ == "__main__":
    main(parse(GrowthArguments, QUICK))
