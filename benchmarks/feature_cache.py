#!/usr/bin/env python
"""
What the cache of vision features saves: time of an epoch with and without it, cold and warm start, bytes of an image, what is
computed anew when something has changed, and the memory that very many images need.

python benchmarks/feature_cache.py

The epoch is one over the synthetic sample set, its pictures drawn with 224 pixels, by a MiniLM of random weights (6 layers,
384 wide) with a frozen MobileNetV2, read through the collator of the task scripts. Without the cache each step decodes its
pictures and runs the CNN on them. Very many images are tiny ones through a tiny encoder, so that their time says what the
cache itself costs; each count has a process of its own, and its memory is the peak over what the libraries need.
"""

import contextlib
import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from measuring import (
    OwnMemory,
    Results,
    RoundsArguments,
    compare,
    in_child,
    parse,
    peak_mb,
    quartiles,
    quiet,
    resident_mb,
    take_turns,
    timed,
)
from models import MINILM, make_tagger, make_training_step

QUICK = {"num_rows": 8, "batch_size": 4, "image_size": 32, "repeats": 2, "counts": [40, 80]}


@dataclass
class CacheArguments(RoundsArguments):
    num_rows: int = field(default=128, metadata={"help": "Rows of an epoch."})
    batch_size: int = field(default=16, metadata={"help": "Rows in a batch."})
    image_size: int = field(default=224, metadata={"help": "Pixels of a picture's side, in the epoch."})
    repeats: int = field(default=3, metadata={"help": "Rounds."})
    counts: list[int] = field(default_factory=lambda: [10_000, 100_000], metadata={"help": "Numbers of tiny images."})


def build_sample(folder: Path, num_rows: int, image_size: int, seed: int = 0) -> tuple[Any, str, str]:
    """The synthetic sample set as the task scripts read it, and folders of tiny encoders for it."""
    from datasets import DatasetDict

    from vtfusion.training.arguments import TokenDataArguments
    from vtfusion.training.sample_data import build_sample_dataset, build_tiny_encoders
    from vtfusion.training.token_classification import load_splits

    drawn = build_sample_dataset(seed, num_train=num_rows, num_validation=0, num_test=0, image_size=image_size)
    text, vision = build_tiny_encoders(folder / "encoders", drawn, seed, image_size)
    DatasetDict(train=drawn["train"]).save_to_disk(str(folder / "sample"))
    return load_splits(TokenDataArguments(dataset_name=str(folder / "sample"))), str(text), str(vision)


def tiny_model(text: str, vision: str) -> tuple[Any, Any]:
    """A model of tiny encoders with its processor; the vision encoder is frozen."""
    from vtfusion import VTFusionForTokenClassification
    from vtfusion.training.arguments import ModelArguments
    from vtfusion.training.loading import load_model

    return load_model(VTFusionForTokenClassification, ModelArguments(text_model=text, vision_model=vision), ["O", "B"])


def prepare(dataset: Any, model: Any, processor: Any, cache_dir: Path, dtype: str = "float32") -> Any:
    """The images of a data set, made ready as a training does it."""
    from transformers import TrainingArguments

    from vtfusion.training.arguments import DataArguments
    from vtfusion.training.images import prepare_images

    data_args = DataArguments(feature_cache_dir=str(cache_dir), feature_dtype=dtype)
    cpu = TrainingArguments(output_dir=str(cache_dir / "unused"), use_cpu=True, report_to="none")
    with contextlib.redirect_stdout(io.StringIO()):
        return prepare_images(dataset, model, processor, data_args, cpu)


# ----------------------------------------------------------------------------------------------------------- epoch


def measure_epoch(results: Results, args: CacheArguments, folder: Path) -> None:
    """Epochs on cached features, on pixels and on text alone; cold and warm start; bytes."""
    import torch
    from transformers import AutoTokenizer

    from vtfusion.training.collator import FusionCollator
    from vtfusion.training.token_classification import encode_windows

    torch.manual_seed(args.seed)
    dataset, text, _ = build_sample(folder, args.num_rows, args.image_size, args.seed)
    names = dataset["train"].features["ner_tags"].feature.names
    model, processor = make_tagger(AutoTokenizer.from_pretrained(text), names, args.image_size, MINILM)
    model.freeze_vision_encoder()

    starts = measure_starts(dataset, model, processor, args.repeats, folder)
    keys, store, cache = starts.prepared
    windows = list(encode_windows(dataset["train"], processor, keys["train"]))
    batches = [windows[i : i + args.batch_size] for i in range(0, len(windows), args.batch_size)]
    without = [[{**window, "image_keys": None} for window in batch] for batch in batches]
    step = make_training_step(model)

    def epoch(collator: Any, batches: Sequence[list[dict[str, Any]]]) -> None:
        for batch in batches:
            step(collator(batch))

    cached, uncached = FusionCollator(processor, store, cache), FusionCollator(processor, store)
    measures = {
        "cached features": timed(partial(epoch, cached, batches)),
        "without the cache": timed(partial(epoch, uncached, batches)),
        "text alone": timed(partial(epoch, cached, without)),
    }
    lines = []
    for name, compared in compare(take_turns(measures, args.repeats), "cached features").items():
        results.rows.append({"kind": "epoch", "contender": name, **asdict(compared)})
        lines.append((name, f"{compared.seconds:.2f}", f"{compared.ratio:.2f}", compared.spread))
    results.add_table(
        f"An epoch of {len(windows)} windows with {len(store)} different pictures",
        ("epoch", "seconds", "ratio to cached", "quartiles"),
        lines,
    )
    show_starts(results, starts)


@dataclass
class Starts:
    """Seconds of cold and of warm starts, bytes of an image by format, and what the first of them prepared."""

    prepared: Any
    seconds: dict[str, list[float]]
    bytes_per_image: dict[str, float]


def measure_starts(dataset: Any, model: Any, processor: Any, repeats: int, folder: Path) -> Starts:
    """Cold and warm starts with a cache in float32 and in float16."""
    starts = Starts(None, {"cold": [], "warm": []}, {})
    for dtype in ("float32", "float16"):
        for number in range(repeats):
            for times in starts.seconds.values():
                began = time.perf_counter()
                prepared = prepare(dataset, model, processor, folder / f"{dtype}-{number}", dtype)
                times.append(time.perf_counter() - began)
            starts.prepared = starts.prepared or prepared
            if number == 0:
                _, store, cache = prepared
                size = sum(file.stat().st_size for file in cache.folder.rglob("*") if file.is_file())
                starts.bytes_per_image[dtype] = size / (len(store) + 1)  # with the blank image
    return starts


def show_starts(results: Results, starts: Starts) -> None:
    """Their tables."""
    _, store, _ = starts.prepared
    lines = []
    for name, values in starts.seconds.items():
        low, seconds, high = quartiles(values)
        results.rows.append({"kind": "start", "contender": name, "seconds": seconds})
        lines.append((name, f"{seconds:.2f}", f"{low:.2f} … {high:.2f}", f"{1000 * seconds / len(store):.1f}"))
    results.add_table(
        "Getting the pictures ready before the first step", ("start", "seconds", "quartiles", "ms per picture"), lines
    )
    sizes = starts.bytes_per_image
    results.rows += [{"kind": "bytes", "contender": dtype, "bytes_per_image": size} for dtype, size in sizes.items()]
    results.add_table(
        "Disk, files of the cache over pictures",
        ("format", "bytes per picture"),
        [(dtype, f"{size:,.0f}") for dtype, size in sizes.items()],
    )


# ------------------------------------------------------------------------------------------------ what is computed


def image_features() -> Any:
    """The columns of a data set of images alone."""
    from datasets import Features, Image, List

    return Features({"images": List(Image(decode=False))})


def rows_of_images(pictures: Sequence[bytes]) -> Any:
    """A data set with an image in each row."""
    from datasets import Dataset, DatasetDict

    rows = [[{"bytes": picture, "path": None}] for picture in pictures]
    return DatasetDict(train=Dataset.from_dict({"images": rows}, features=image_features()))


def bitmap(seed: int, side: int = 16) -> bytes:
    """A picture of random pixels, of which each is three bytes of the file."""
    import numpy as np
    import PIL.Image

    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(buffer, format="BMP")
    return buffer.getvalue()


def measure_changes(results: Results, folder: Path, num_images: int = 8) -> None:
    """How many images the encoder sees, start after start, when something has changed in between."""
    _, text, vision = build_sample(folder, 8, 32)
    model, processor = tiny_model(text, vision)
    encoder = model.base_model.vision_model
    seen = 0

    def count(module: Any, inputs: Any, kwargs: dict[str, Any]) -> None:
        nonlocal seen
        seen += len(kwargs["pixel_values"])

    encoder.register_forward_pre_hook(count, with_kwargs=True)
    pictures = [bitmap(number) for number in range(num_images)]
    lines = []

    def start(change: str, expected: int) -> None:
        nonlocal seen
        seen = 0
        prepare(rows_of_images(pictures), model, processor, folder / "cache")
        results.rows.append({"kind": "change", "change": change, "encoded": seen, "expected": expected})
        lines.append((change, seen, expected))

    every = num_images + 1  # and the blank one
    start("nothing is there yet", every)
    start("nothing", 0)
    pictures[3] = pictures[3][:-1] + bytes([pictures[3][-1] ^ 1])
    start("a byte of one image", 1)
    pictures.append(bitmap(num_images))
    start("an image more", 1)
    weight = next(encoder.parameters()).data.view(-1)
    before = weight[0].item()
    weight[0] += 1
    start("a weight of the encoder", every + 1)
    weight[0] = before
    start("the weight, back again", 0)
    means = processor.image_processor.image_mean
    processor.image_processor.image_mean = [0.4, 0.5, 0.6]
    start("the preprocessing", every + 1)
    processor.image_processor.image_mean = means
    start("the preprocessing, back again", 0)
    results.add_table(
        f"Images that the encoder sees at a start with {num_images} images and the blank one, one start after the other",
        ("changed before", "encoded", "must be"),
        lines,
    )


# ------------------------------------------------------------------------------------------------ very many images


def bitmaps(count: int) -> Iterator[dict[str, Any]]:
    """Rows with a picture each."""
    for number in range(count):
        yield {"images": [{"bytes": bitmap(number), "path": None}]}


def cache_images(count: int) -> dict[str, float]:
    """
    Caches so many tiny images, then starts again; seconds of both, and the memory that this takes, apart from the pages of the
    files that hold images and features.
    """
    from datasets import Dataset, DatasetDict

    quiet()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = Dataset.from_generator(
            bitmaps, features=image_features(), gen_kwargs={"count": count}, cache_dir=str(folder / "rows")
        )
        dataset = DatasetDict(train=rows)
        _, text, vision = build_sample(folder, 8, 32)
        model, processor = tiny_model(text, vision)
        before = resident_mb()
        with OwnMemory() as own:
            began = time.perf_counter()
            prepare(dataset, model, processor, folder / "cache")
            cold = time.perf_counter() - began
            began = time.perf_counter()
            prepare(dataset, model, processor, folder / "cache")
            warm = time.perf_counter() - began
        return {
            "count": count,
            "seconds": cold,
            "warm_seconds": warm,
            "memory_mb": own.mb,
            "mapped_mb": peak_mb() - before - own.mb,
        }


def measure_many(results: Results, counts: Sequence[int]) -> None:
    """Time and memory of [`cache_images`], a process for each count."""
    lines = []
    for count in counts:
        found = in_child(__file__, "cache_images", count=count)
        results.rows.append({"kind": "many", **found})
        cost = 1000 * found["seconds"] / count
        warm = 1000 * found["warm_seconds"] / count
        lines.append(
            (f"{count:,}", f"{cost:.2f}", f"{warm:.3f}", f"{found['memory_mb']:.0f}", f"{found['mapped_mb']:.0f}")
        )
    results.add_table(
        "Tiny images through a tiny encoder",
        ("images", "cold, ms per image", "warm, ms per image", "memory, MB more", "mapped from files, MB more"),
        lines,
    )


def main(args: CacheArguments) -> None:
    quiet()
    results = Results("feature_cache", "What does the cache of vision features save, and what does it need?", args)
    with tempfile.TemporaryDirectory() as name:
        measure_epoch(results, args, Path(name, "epoch"))
        measure_changes(results, Path(name, "changes"))
    measure_many(results, args.counts)
    results.save()


if __name__ == "__main__":
    main(parse(CacheArguments, QUICK))
