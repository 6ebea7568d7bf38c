#!/usr/bin/env python
"""
Folds of MVSA-Single that share no tweet: texts or pictures that occur twice, byte for byte, stay on one side.

python benchmarks/mvsa_folds.py --data_dir mvsa-single --output_dir outputs/mvsa

Writes `fold-K/{train,valid,test}.jsonl` for K = 0 … 4, with picture paths that start from `data_dir` (train with
`--image_folder mvsa-single`): the test parts are a partition of the labelled tweets, stratified by label (scikit-learn's
`StratifiedGroupKFold`); one tenth of the rest chooses the epoch and the settings.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from json_lines import read_json_lines, write_json_lines
from transformers import HfArgumentParser


@dataclass
class FoldArguments:
    data_dir: str = field(metadata={"help": "Folder with train.jsonl and images/."})
    output_dir: str = field(default="outputs/mvsa", metadata={"help": "Where the folds are written."})
    num_folds: int = field(default=5, metadata={"help": "Number of folds."})
    seed: int = field(default=0, metadata={"help": "Of the shuffle."})


def group_rows(rows: list[dict[str, Any]], folder: Path) -> list[int]:
    """A number for each row; rows that share a text or a picture, also through others, have the same one."""
    parent = list(range(len(rows)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    first: dict[tuple[str, str], int] = {}
    for row, record in enumerate(rows):
        picture = hashlib.sha256((folder / record["image"]).read_bytes()).hexdigest()
        for key in (("text", " ".join(record["text"].split()).lower()), ("image", picture)):
            parent[root(row)] = root(first.setdefault(key, row))
    return [root(row) for row in range(len(rows))]


def main(args: FoldArguments) -> None:
    from sklearn.model_selection import StratifiedGroupKFold

    folder = Path(args.data_dir)
    rows = read_json_lines(folder / "train.jsonl")
    groups = group_rows(rows, folder)
    labels = [row["label"] for row in rows]

    def split(chosen: list[int], parts: int) -> tuple[list[int], list[int]]:
        """The rows but a part of them, and the part."""
        splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=args.seed)
        rest, part = next(splitter.split(chosen, [labels[i] for i in chosen], [groups[i] for i in chosen]))
        return [chosen[i] for i in rest], [chosen[i] for i in part]

    folds = StratifiedGroupKFold(args.num_folds, shuffle=True, random_state=args.seed)
    for number, (rest, test) in enumerate(folds.split(rows, labels, groups)):
        train, valid = split(list(rest), 10)
        output = Path(args.output_dir, f"fold-{number}")
        output.mkdir(parents=True, exist_ok=True)
        for name, part in (("train", train), ("valid", valid), ("test", list(test))):
            write_json_lines(output / f"{name}.jsonl", (rows[index] for index in part))
        print(f"{output}: {len(train):,} train, {len(valid):,} valid, {len(test):,} test")
    print(f"{len(rows):,} tweets in {len(set(groups)):,} groups")


if __name__ == "__main__":
    main(*HfArgumentParser(FoldArguments).parse_args_into_dataclasses())
