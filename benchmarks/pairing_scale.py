#!/usr/bin/env python
"""
Time and peak memory of pairing N texts with M images, by lexicon and by retrieval, each in a process of its own.

python benchmarks/pairing_scale.py --num_texts 1000000 --num_images 100000 --num_proc 2

Everything is synthetic: texts of made-up words, every third with a name from the bank, and a random BERT of one layer, whose
vectors are as wide as MiniLM's. So the numbers say what the pairing itself costs (looking up, embedding, searching, saving
and the report), not what a real encoder would. All images of the bank share one small file; files are never opened, and the data
set is saved with their paths. Its texts are written to the disk first, which is not in the time.

Prints a JSON object for each strategy. `peak_memory_mb` adds the peaks of the process and of all its workers (the largest of
them times their number), so that it is an upper bound; it counts memory-mapped files too.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

_SYLLABLES = [
    "ba",
    "co",
    "di",
    "fu",
    "ga",
    "ha",
    "jo",
    "ke",
    "li",
    "mo",
    "nu",
    "pa",
    "ri",
    "so",
    "ta",
    "ve",
    "wi",
    "ze",
]


@dataclass
class ScaleArguments:
    strategies: list[str] = field(
        default_factory=lambda: ["lexicon", "retrieval"],
        metadata={"help": "Which to run.", "choices": ["lexicon", "retrieval"]},
    )
    num_texts: int = field(default=1000, metadata={"help": "Texts, of 15 words each."})
    num_images: int = field(default=100, metadata={"help": "Images in the bank, each with a name of two words."})
    num_captions: int = field(default=1, metadata={"help": "retrieval: captions of an image, of 10 words each."})
    top_k: int = field(default=1, metadata={"help": "retrieval: images for a text."})
    hidden_size: int = field(default=384, metadata={"help": "retrieval: width of the vectors."})
    batch_size: int = field(default=64, metadata={"help": "retrieval: texts in a call of the encoder."})
    streaming: bool = field(default=False, metadata={"help": "Read the texts as a stream, in one process."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes; with --streaming those that write."})
    work_dir: str | None = field(default=None, metadata={"help": "Where files go; by default a temporary folder."})


def make_word(number: int) -> str:
    """A different word for each number, of three syllables or more."""
    parts = [_SYLLABLES[number % 18], _SYLLABLES[number // 18 % 18], _SYLLABLES[number // 324 % 18]]
    return "".join(parts) + (make_word(number // 5832) if number >= 5832 else "")


def make_name(image: int) -> str:
    """The name of an image: two words with capitals."""
    return f"{make_word(image).capitalize()} {make_word(image * 7 + 3).capitalize()}"


def make_texts(num_texts: int, num_images: int) -> Iterator[dict[str, list[str]]]:
    """Rows with `tokens`; every third has the name of an image in it."""
    import random

    rng = random.Random(0)
    common = [make_word(number) for number in range(5000)]
    for row in range(num_texts):
        words = rng.choices(common, k=15)
        if row % 3 == 0:
            words[5:7] = make_name(rng.randrange(num_images)).split()
        yield {"tokens": words}


def make_embedder(args: ScaleArguments) -> Any:
    """A random BERT of one layer that reads syllables."""
    from transformers import BertConfig, BertModel, BertTokenizerFast, set_seed

    from vtfusion.training.bank_search import Embedder

    set_seed(0)
    pieces = [*_SYLLABLES, *(f"##{syllable}" for syllable in _SYLLABLES)]
    tokenizer = BertTokenizerFast(
        vocab={token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces])}
    )
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden_size,
        num_hidden_layers=1,
        num_attention_heads=max(1, args.hidden_size // 32),
        intermediate_size=args.hidden_size,
        max_position_embeddings=128,
    )
    return Embedder(BertModel(config), tokenizer, batch_size=args.batch_size)


def run(strategy: str, args: ScaleArguments, folder: Path) -> dict[str, Any]:
    """Pairs and saves in this process."""
    import random

    from datasets import DatasetDict, IterableDatasetDict, load_from_disk

    from vtfusion.app.contact_sheet import contact_sheet_html, draw_sheet_rows
    from vtfusion.training.bank_search import ImageRetriever
    from vtfusion.training.image_bank import BankImage, ImageBank
    from vtfusion.training.pairing import pair_by_lexicon, pair_by_retrieval, save_paired_dataset
    from vtfusion.training.pairing_report import coverage_report
    from vtfusion.training.versions import package_versions

    texts: Any = DatasetDict({"train": load_from_disk(str(folder / "texts"))})
    if args.streaming:
        texts = IterableDatasetDict({"train": texts["train"].to_iterable_dataset()})
    path = str(folder / "image.png")
    rng = random.Random(1)
    common = [make_word(number) for number in range(5000)]
    captions = args.num_captions if strategy == "retrieval" else 0

    started = time.perf_counter()
    images = []
    for place in range(args.num_images):
        sentences = tuple(" ".join(rng.choices(common, k=10)) for _ in range(captions))
        images.append(BankImage(str(place), path, make_name(place), captions=sentences))
    bank = ImageBank(images)
    num_proc = None if args.streaming else args.num_proc
    if strategy == "lexicon":
        paired = pair_by_lexicon(texts, bank, num_proc=num_proc)
    else:
        retriever = ImageRetriever(bank, make_embedder(args))
        paired = pair_by_retrieval(texts, retriever, args.top_k, num_proc=num_proc)
    save_paired_dataset(paired, folder / strategy, embed_images=False, num_proc=args.num_proc)
    if args.streaming:
        paired = load_from_disk(str(folder / strategy))
    coverage = coverage_report(paired)["train"]
    contact_sheet_html(draw_sheet_rows(paired))
    seconds = time.perf_counter() - started

    parent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {
        "strategy": strategy,
        **{name: value for name, value in asdict(args).items() if name not in ("strategies", "work_dir")},
        "texts_with_image": coverage["texts_with_image"],
        "seconds": round(seconds, 1),
        "texts_per_second": round(args.num_texts / seconds),
        "peak_memory_mb": round(parent + (args.num_proc or 0) * child),
        "peak_memory_of_parent_mb": round(parent),
        "peak_memory_of_largest_worker_mb": round(child) if args.num_proc else None,
        "versions": package_versions(),
    }


def main(args: ScaleArguments) -> None:
    if len(args.strategies) == 1 and args.work_dir is not None and Path(args.work_dir, "texts").is_dir():
        print(json.dumps(run(args.strategies[0], args, Path(args.work_dir)), indent=2))
        return

    import PIL.Image
    from datasets import Dataset

    if args.work_dir is not None:
        Path(args.work_dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.work_dir) as name:
        folder = Path(name)
        PIL.Image.new("RGB", (8, 8)).save(folder / "image.png")
        kwargs = {"num_texts": args.num_texts, "num_images": args.num_images}
        texts = Dataset.from_generator(make_texts, gen_kwargs=kwargs, cache_dir=str(folder / "cache"))
        texts.save_to_disk(str(folder / "texts"))
        for strategy in args.strategies:
            # Peak memory is that of a process since its start, so each strategy needs one of its own.
            flags = ["--strategies", strategy, "--work_dir", name]
            for flag, value in asdict(args).items():
                if flag not in ("strategies", "work_dir") and value is not None:
                    flags += [f"--{flag}", str(value)]
            done = subprocess.run([sys.executable, __file__, *flags], stdout=subprocess.PIPE, text=True, check=True)
            print(done.stdout, flush=True)


if __name__ == "__main__":
    main(HfArgumentParser(ScaleArguments).parse_args_into_dataclasses()[0])
