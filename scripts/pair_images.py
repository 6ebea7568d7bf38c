#!/usr/bin/env python
"""
Gives each text of a data set pictures from an image bank, and saves the result for `--dataset_name` of the task scripts.
Only words are read to choose them, never labels.

By the names among the words:

python scripts/pair_images.py \
    --train_file conll2003/train.txt --validation_file conll2003/valid.txt --test_file conll2003/test.txt \
    --image_bank entity-image-bank --output_dir outputs/conll2003-paired

By the meaning of captions (a text encoder), or of the pictures themselves (a dual encoder such as
`openai/clip-vit-base-patch32`); needs `pip install vtfusion[retrieval]`:

python scripts/pair_images.py --strategy retrieval --text_model sentence-transformers/all-MiniLM-L6-v2 \
    --train_file conll2003/train.txt --validation_file conll2003/valid.txt --test_file conll2003/test.txt \
    --image_bank flickr8k-1000 --top_k 1 --score_threshold 0.3 --output_dir outputs/conll2003-retrieved

More than fits on the disk: `--streaming True` reads texts row by row, from the Hub too, and writes them with their pictures;
tags are not needed then. Memory stays bounded either way.

As a file says: `--strategy manifest --manifest_file pairs.jsonl`, with lines such as
`{"split": "train", "row": 0, "image": "images/1.jpg"}` (or `"id"` in place of `"row"`). Controls: `--strategy random`,
`blank` and `none`.

An image bank is a folder with `metadata.jsonl`, a row for each picture: `image`, `name` or `captions` (a list) or both, and,
as you like, `aliases` (a list), `kind` and `id`.

Writes to `output_dir`: the data set with the columns `images`, `image_ids`, `image_scores` and `pairing_strategy`;
`pairing_report.json` and `pairing_report.md` with the coverage of each split; `contact_sheet.html` and, where matplotlib is
installed, `contact_sheet.png`.
"""

from dataclasses import dataclass, field
from typing import Any

from vtfusion.training.arguments import ScriptArgumentParser, TokenSourceArguments

# What a strategy needs, and what else it takes. All other flags of this list are refused: one that did nothing would
# pass for one that did.
_NEEDS = {
    "manifest": ("manifest_file",),
    "lexicon": ("image_bank",),
    "retrieval": ("image_bank", "text_model"),
    "random": ("image_bank",),
    "blank": (),
    "none": (),
}
_TAKES = {
    "manifest": ("id_column", "embed_images"),
    "lexicon": ("kinds", "match_case", "max_images", "embed_images"),
    "retrieval": ("kinds", "revision", "trust_remote_code", "batch_size", "top_k", "score_threshold", "embed_images"),
    "random": ("kinds", "max_images", "embed_images"),
    "blank": (),
    "none": (),
}


@dataclass
class PairingArguments:
    output_dir: str = field(metadata={"help": "Where the paired data set, the report and the contact sheet go."})
    strategy: str = field(
        default="lexicon",
        metadata={
            "help": "How pictures are chosen: by a file, by names among the words, by an encoder, or controls.",
            "choices": list(_NEEDS),
        },
    )
    image_bank: str | None = field(
        default=None, metadata={"help": "lexicon, retrieval, random: folder with pictures and metadata.jsonl."}
    )
    kinds: list[str] | None = field(
        default=None,
        metadata={
            "help": "lexicon, retrieval, random: kinds of pictures to use, the most wanted first. Default: all."
        },
    )
    max_images: int | None = field(
        default=None, metadata={"help": "lexicon, random: at most so many pictures for a text. Default: 1."}
    )
    match_case: str | None = field(
        default=None,
        metadata={
            "help": "lexicon: names start with a capital letter in the text (default), may be in any case, or are written "
            "exactly as in the bank.",
            "choices": ["capital", "ignore", "exact"],
        },
    )
    manifest_file: str | None = field(
        default=None, metadata={"help": "manifest: .jsonl or .csv with `row` or `id`, `image`, `split`, `score`."}
    )
    id_column: str | None = field(default=None, metadata={"help": "manifest: column of the ids. Default: id."})
    text_model: str | None = field(
        default=None, metadata={"help": "retrieval: text encoder or dual encoder, a folder or a Hub id."}
    )
    revision: str | None = field(default=None, metadata={"help": "retrieval: branch, tag or commit of the encoder."})
    trust_remote_code: bool | None = field(
        default=None, metadata={"help": "retrieval: whether to run code that comes with the encoder."}
    )
    batch_size: int | None = field(
        default=None, metadata={"help": "retrieval: texts or pictures in a call of the encoder. Default: 64."}
    )
    top_k: int | None = field(
        default=None, metadata={"help": "retrieval: at most so many pictures for a text. Default: 1."}
    )
    score_threshold: float | None = field(
        default=None, metadata={"help": "retrieval: leave out pictures with a lower cosine. Default: none is."}
    )
    seed: int = field(default=0, metadata={"help": "Of random pictures, and of the texts on the contact sheet."})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read texts row by row, in one process, without a copy of the data set. Not with a manifest."
        },
    )
    num_proc: int | None = field(
        default=None, metadata={"help": "Processes that pair (lexicon) and write; with --streaming only write."}
    )
    embed_images: bool | None = field(
        default=None,
        metadata={
            "help": "Copy the files of the pictures into the rows (default), so that the folder needs nothing else, or "
            "(False) keep their paths, which saves disk; --image_folder then tells the task scripts where they lie."
        },
    )
    contact_sheet_rows: int = field(default=24, metadata={"help": "Texts on the contact sheet; 0 for no sheet."})


def check_flags(args: PairingArguments) -> None:
    """Refuses flags that the strategy does not use, and asks for those that it needs."""
    needed, taken = _NEEDS[args.strategy], _TAKES[args.strategy]
    for name in dict.fromkeys(name for names in (*_NEEDS.values(), *_TAKES.values()) for name in names):
        given = getattr(args, name) is not None
        if given and name not in (*needed, *taken):
            users = [strategy for strategy in _NEEDS if name in (*_NEEDS[strategy], *_TAKES[strategy])]
            raise ValueError(f"--{name} has no use in --strategy {args.strategy}, only in {', '.join(users)}.")
        if not given and name in needed:
            raise ValueError(f"--strategy {args.strategy} needs --{name}.")
    if args.streaming and args.strategy == "manifest":
        raise ValueError("--strategy manifest looks rows up by number or id: it cannot be used with --streaming.")
    for name, least in (("contact_sheet_rows", 0), ("num_proc", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}.")


def main(source_args: TokenSourceArguments, args: PairingArguments) -> None:
    check_flags(args)

    import dataclasses
    import json
    import os
    import time
    from pathlib import Path

    from datasets import load_from_disk
    from transformers.utils import logging

    from vtfusion.app.contact_sheet import contact_sheet_html, draw_sheet_rows, plot_contact_sheet, sheet_note
    from vtfusion.training import pairing
    from vtfusion.training.bank_search import Embedder, ImageRetriever
    from vtfusion.training.files import write_whole
    from vtfusion.training.image_bank import ImageBank
    from vtfusion.training.pairing_report import coverage_report, label_analysis, pairing_markdown
    from vtfusion.training.token_data import TAGS_COLUMNS, load_token_classification_dataset, open_token_streams
    from vtfusion.training.versions import package_versions

    started = time.perf_counter()
    dataset: Any
    if args.streaming:
        if source_args.image_column is not None:
            raise ValueError("--image_column has no use with --streaming: pictures are given here, not read.")
        dataset = open_token_streams(**source_args.origin(), tokens_column=source_args.tokens_column)
    else:
        dataset = load_token_classification_dataset(**source_args.source())

    # ---- pairs, from the words alone
    def given(*names: str) -> dict[str, Any]:
        return {name: getattr(args, name) for name in names if getattr(args, name) is not None}

    outside: dict[str, Any] = {"allow_outside_paths": source_args.allow_outside_paths}
    bank: Any = None
    if args.image_bank is not None:
        bank = ImageBank.from_folder(args.image_bank, **given("kinds", "match_case"), **outside)
    if args.strategy == "manifest":
        paired = pairing.pair_by_manifest(dataset, **given("manifest_file", "id_column", "num_proc"), **outside)
    elif args.strategy == "lexicon":
        paired = pairing.pair_by_lexicon(dataset, bank, **given("max_images", "num_proc"))
    elif args.strategy == "retrieval":
        embedder = Embedder.from_pretrained(
            str(args.text_model), **given("revision", "trust_remote_code", "batch_size")
        )
        retriever = ImageRetriever(bank, embedder)
        paired = pairing.pair_by_retrieval(dataset, retriever, **given("top_k", "score_threshold", "num_proc"))
    elif args.strategy == "random":
        paired = pairing.pair_at_random(dataset, bank, **given("max_images", "seed", "num_proc"))
    elif args.strategy == "blank":
        paired = pairing.pair_with_blank(dataset, **given("num_proc"))
    else:
        paired = pairing.pair_with_none(dataset, **given("num_proc"))
    pairing.save_paired_dataset(paired, args.output_dir, **given("embed_images", "num_proc"))

    # ---- report: the labels are read here for the first time, when the pairs lie on the disk
    labelled = paired
    if args.streaming:
        labelled = paired = load_from_disk(args.output_dir)
        if source_args.tags_column or set(TAGS_COLUMNS) & set(next(iter(paired.values())).column_names):
            labelled = load_token_classification_dataset(
                args.output_dir,
                tags_column=source_args.tags_column,
                labels=source_args.labels,
                allow_outside_paths=True,
            )
    settings = {**dataclasses.asdict(source_args), **dataclasses.asdict(args)}
    report: dict[str, Any] = {
        "strategy": args.strategy,
        "settings": {name: value for name, value in settings.items() if value is not None},
        "seconds": round(time.perf_counter() - started, 1),
        "versions": package_versions(),
        "coverage": coverage_report(paired),
        "label_analysis": label_analysis(labelled),
    }
    output = Path(args.output_dir)
    text = json.dumps(report, indent=2, ensure_ascii=False)
    write_whole(output / "pairing_report.json", text + "\n")
    write_whole(output / "pairing_report.md", pairing_markdown(report))
    for split, part in report["coverage"].items():
        print(
            f"{split}: {part['texts_with_image']:,} of {part['texts']:,} texts have a picture ({part['coverage']:.1%})"
        )

    # ---- contact sheet
    if args.contact_sheet_rows:
        rows = draw_sheet_rows(paired, args.contact_sheet_rows, args.seed)
        title = f"{os.path.basename(os.path.normpath(args.output_dir))}: {args.strategy}"
        note = sheet_note(paired, len(rows), args.seed)
        write_whole(output / "contact_sheet.html", contact_sheet_html(rows, title, note))
        try:
            plot_contact_sheet(rows, title, note).savefig(output / "contact_sheet.png")
        except ImportError as error:  # the HTML page shows the same
            logging.get_logger("pair_images").warning("contact_sheet.png is left out: %s", error)
    print(f"Saved to {args.output_dir}")
    if args.embed_images is False:
        place = args.image_bank or os.path.dirname(str(args.manifest_file)) or "."
        print(f"The pictures stay where they are: train with --image_folder {place}")


if __name__ == "__main__":
    main(*ScriptArgumentParser((TokenSourceArguments, PairingArguments)).parse_args_into_dataclasses())
