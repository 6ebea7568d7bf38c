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
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from measuring import in_child, peak_mb
from transformers import HfArgumentParser

_SYLLABLES = [
    "ba", "co", "di", "fu", "ga", "ha", "jo", "ke", "li",
    "mo", "nu", "pa", "ri", "so", "ta", "ve", "wi", "ze",
]  # fmt: skip


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


def common_words() -> list[str]:
    """What texts and captions are made of."""
    return [make_word(number) for number in range(5000)]


def make_texts(num_texts: int, num_images: int) -> Iterator[dict[str, list[str]]]:
    """Rows with `tokens`; every third has the name of an image in it."""
    rng, common = random.Random(0), common_words()
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


def write_data(args: ScaleArguments, folder: Path) -> None:
    """The texts, and the file of all images."""
    import PIL.Image
    from datasets import Dataset

    PIL.Image.new("RGB", (8, 8)).save(folder / "image.png")
    sizes = {"num_texts": args.num_texts, "num_images": args.num_images}
    texts = Dataset.from_generator(make_texts, gen_kwargs=sizes, cache_dir=str(folder / "cache"))
    texts.save_to_disk(str(folder / "texts"))


def make_bank(args: ScaleArguments, image: Path, num_captions: int) -> Any:
    """Images with names and captions, which share one file."""
    from vtfusion.training.image_bank import BankImage, ImageBank

    rng, common = random.Random(1), common_words()
    images = []
    for place in range(args.num_images):
        captions = tuple(" ".join(rng.choices(common, k=10)) for _ in range(num_captions))
        images.append(BankImage(str(place), str(image), make_name(place), captions=captions))
    return ImageBank(images)


def pair(args: ScaleArguments, strategy: str, folder: Path) -> dict[str, Any]:
    """Pairs what [`write_data`] wrote and saves it, in this process."""
    from datasets import DatasetDict, IterableDatasetDict, load_from_disk

    from vtfusion.app.contact_sheet import contact_sheet_html, draw_sheet_rows
    from vtfusion.training.bank_search import ImageRetriever
    from vtfusion.training.pairing import pair_by_lexicon, pair_by_retrieval, save_paired_dataset
    from vtfusion.training.pairing_report import coverage_report
    from vtfusion.training.versions import package_versions

    texts: Any = DatasetDict({"train": load_from_disk(str(folder / "texts"))})
    if args.streaming:
        texts = IterableDatasetDict({"train": texts["train"].to_iterable_dataset()})

    started = time.perf_counter()
    bank = make_bank(args, folder / "image.png", args.num_captions if strategy == "retrieval" else 0)
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

    parent = peak_mb()
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


def pair_alone(strategy: str, folder: str, **kwargs: Any) -> dict[str, Any]:
    """[`pair`] with what passes through JSON, for a process of its own."""
    return pair(ScaleArguments(**kwargs), strategy, Path(folder))


def main(args: ScaleArguments) -> None:
    if args.work_dir is not None:
        Path(args.work_dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.work_dir) as folder:
        write_data(args, Path(folder))
        for strategy in args.strategies:
            found = in_child(__file__, "pair_alone", strategy=strategy, folder=folder, **asdict(args))
            del found["peak_mb"]  # it stands there as that of the parent
            print(json.dumps(found, indent=2), flush=True)


if __name__ == "__main__":
    main(*HfArgumentParser(ScaleArguments).parse_args_into_dataclasses())
