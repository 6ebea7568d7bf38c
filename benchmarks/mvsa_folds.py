#!/usr/bin/env python
"""
Folds of MVSA-Single that share no tweet: texts or pictures that occur twice, byte for byte, stay on one side.

python benchmarks/mvsa_folds.py --data_dir mvsa-single --output_dir outputs/mvsa

Writes `fold-K/{train,valid,test}.jsonl` for K = 0 … 4, with picture paths that start from `data_dir` (train with
`--image_folder mvsa-single`): the test parts are a partition of the labelled tweets, stratified by label (scikit-learn's
`StratifiedGroupKFold`); one tenth of the rest chooses the epoch and the settings. `--clean_texts` writes the texts
without links, without the "RT @name:" that they begin with, and with "@user" for every other name. Printed is also how
often the labels of a repeated tweet agree, which bounds what any model can reach.
"""

import hashlib
import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from json_lines import read_json_lines, write_json_lines
from transformers import HfArgumentParser


@dataclass
class FoldArguments:
    data_dir: str = field(metadata={"help": "Folder with train.jsonl and images/."})
    output_dir: str = field(default="outputs/mvsa", metadata={"help": "Where the folds are written."})
    num_folds: int = field(default=5, metadata={"help": "Number of folds."})
    seed: int = field(default=0, metadata={"help": "Of the shuffle."})
    clean_texts: bool = field(default=False, metadata={"help": "Whether links and names are taken out of the texts."})


def clean_text(text: str) -> str:
    """A tweet's text without links and without the mark of a retweet; other names become "@user"."""
    text = re.sub(r"https?:\S*", "", text)
    text = re.sub(r"^\s*RT\b(\s+@\w+)?:?", "", text)
    return " ".join(re.sub(r"(?<!\w)@\w+", "@user", text).split())


def read_keys(rows: list[dict[str, Any]], folder: Path) -> list[tuple[str, str]]:
    """Text and picture of each row, by which repeats are found: small letters and single blanks, and the file's hash."""
    return [
        (" ".join(row["text"].split()).lower(), hashlib.sha256((folder / row["image"]).read_bytes()).hexdigest())
        for row in rows
    ]


def group_rows(keys: list[tuple[str, str]]) -> list[int]:
    """A number for each row; rows that share a text or a picture, also through others, have the same one."""
    parent = list(range(len(keys)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    first: dict[tuple[str, str], int] = {}
    for row, (text, picture) in enumerate(keys):
        for key in (("text", text), ("image", picture)):
            parent[root(row)] = root(first.setdefault(key, row))
    return [root(row) for row in range(len(keys))]


def label_agreement(keys: Sequence[Hashable], labels: list[str]) -> tuple[int, float]:
    """Number of keys that occur more than once, and how often two rows of one have the same label, a mean over them."""
    of_key: dict[Hashable, list[str]] = {}
    for key, label in zip(keys, labels, strict=True):
        of_key.setdefault(key, []).append(label)
    shares = [fmean(one == other for one, other in combinations(same, 2)) for same in of_key.values() if len(same) > 1]
    return len(shares), fmean(shares) if shares else math.nan


def main(args: FoldArguments) -> None:
    from sklearn.model_selection import StratifiedGroupKFold

    folder = Path(args.data_dir)
    rows = read_json_lines(folder / "train.jsonl")
    keys = read_keys(rows, folder)
    groups = group_rows(keys)
    labels = [row["label"] for row in rows]

    def split(chosen: list[int], parts: int) -> tuple[list[int], list[int]]:
        """The rows but a part of them, and the part."""
        splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=args.seed)
        rest, part = next(splitter.split(chosen, [labels[i] for i in chosen], [groups[i] for i in chosen]))
        return [chosen[i] for i in rest], [chosen[i] for i in part]

    if args.clean_texts:
        rows = [{**row, "text": clean_text(row["text"])} for row in rows]
    folds = StratifiedGroupKFold(args.num_folds, shuffle=True, random_state=args.seed)
    for number, (rest, test) in enumerate(folds.split(rows, labels, groups)):
        train, valid = split(list(rest), 10)
        output = Path(args.output_dir, f"fold-{number}")
        output.mkdir(parents=True, exist_ok=True)
        for name, part in (("train", train), ("valid", valid), ("test", list(test))):
            write_json_lines(output / f"{name}.jsonl", (rows[index] for index in part))
        print(f"{output}: {len(train):,} train, {len(valid):,} valid, {len(test):,} test")
    print(f"{len(rows):,} tweets in {len(set(groups)):,} groups")
    texts, pictures = zip(*keys, strict=True)
    for name, repeated in (("texts", texts), ("pictures", pictures), ("pairs of both", keys)):
        count, share = label_agreement(repeated, labels)
        if count:
            print(f"{count:,} {name} occur more than once; two labels of the same agree in {share:.1%}")


if __name__ == "__main__":
    main(*HfArgumentParser(FoldArguments).parse_args_into_dataclasses())
