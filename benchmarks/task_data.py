#!/usr/bin/env python
"""
Real data sets as the task scripts read them, with a part of the training set aside to choose settings on.

python benchmarks/task_data.py --data_dir data --output_dir outputs

Writes, each with `train.jsonl`, `valid.jsonl`, `test.jsonl` and picture paths that start from `data_dir` (train with
`--image_folder data`):

- `easy-vqa/`: `question`, `answer`; a tenth of the training pictures, with all of their questions, is valid.
- `flickr/`: `text` (five captions), 850 pictures to train on, 50 to choose on, 100 to test on.
- `receipt-questions/`: `question`, `context`, `answers` with their places, four questions on each receipt; the last 50 of
  the 500 training receipts are valid. A field without a tag has no answer.
- `receipt-questions-long/`: the same receipts, each behind 500 words of news (CoNLL-2003), so that most answers lie beyond
  token 512. Only valid and test: nothing is trained on them.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from json_lines import read_json_lines, write_json_lines
from transformers import HfArgumentParser

QUESTIONS = {
    "COMPANY": "What is the name of the shop?",
    "DATE": "What is the date?",
    "ADDRESS": "What is the address?",
    "TOTAL": "What is the total?",
}


@dataclass
class TaskDataArguments:
    data_dir: str = field(metadata={"help": "Folder with easy-vqa/, flickr8k-1000/, sroie-receipts/, conll2003/."})
    output_dir: str = field(default="outputs", metadata={"help": "Where the folders are written."})
    seed: int = field(default=0, metadata={"help": "Of the choice of pictures set aside."})


def read(data: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, with picture paths that start from the folder `data`."""
    return [{**row, "image": str(Path(name).parent / row["image"])} for row in read_json_lines(data / name)]


def write(folder: Path, **splits: Sequence[dict[str, Any]]) -> None:
    """A file for each split."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        write_json_lines(folder / f"{name}.jsonl", rows)
        print(f"{folder / name}.jsonl: {len(rows):,} rows")


def set_aside(rows: list[dict[str, Any]], count: int, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows but those of `count` pictures drawn at random, and those."""
    pictures = sorted({row["image"] for row in rows})
    chosen = set(random.Random(seed).sample(pictures, count))
    return [row for row in rows if row["image"] not in chosen], [row for row in rows if row["image"] in chosen]


def receipt_questions(receipts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Four questions on each receipt; an answer is the first run of words with the tag of its field."""
    rows = []
    for receipt in receipts:
        tokens, tags = receipt["tokens"], receipt["ner_tags"]
        starts = [0]
        for token in tokens:
            starts.append(starts[-1] + len(token) + 1)
        context = " ".join(tokens)
        for kind, question in QUESTIONS.items():
            answers: dict[str, list] = {"text": [], "answer_start": []}
            if f"B-{kind}" in tags:
                first = last = tags.index(f"B-{kind}")
                while last + 1 < len(tags) and tags[last + 1] == f"I-{kind}":
                    last += 1
                answers["answer_start"].append(starts[first])
                answers["text"].append(context[starts[first] : starts[last] + len(tokens[last])])
            rows.append({"question": question, "context": context, "answers": answers, "image": receipt["image"]})
    return rows


def behind_news(rows: list[dict[str, Any]], news: list[str], count: int = 500) -> list[dict[str, Any]]:
    """The rows with `count` words of news before their context, other words for each context."""
    numbers: dict[str, int] = {}
    moved = []
    for row in rows:
        number = numbers.setdefault(row["context"], len(numbers))
        before = " ".join(news[(number * count + place) % len(news)] for place in range(count)) + " "
        starts = [start + len(before) for start in row["answers"]["answer_start"]]
        answers = {**row["answers"], "answer_start": starts}
        moved.append({**row, "context": before + row["context"], "answers": answers})
    return moved


def main(args: TaskDataArguments) -> None:
    data, output = Path(args.data_dir), Path(args.output_dir)

    train, valid = set_aside(read(data, "easy-vqa/train.jsonl"), 400, args.seed)
    write(output / "easy-vqa", train=train, valid=valid, test=read(data, "easy-vqa/test.jsonl"))

    pictures = [{"text": row["captions"], "image": row["image"]} for row in read(data, "flickr8k-1000/metadata.jsonl")]
    rest, test = set_aside(pictures, 100, args.seed)
    train, valid = set_aside(rest, 50, args.seed)
    write(output / "flickr", train=train, valid=valid, test=test)

    receipts = read(data, "sroie-receipts/train.jsonl")
    valid = receipt_questions(receipts[450:])
    test = receipt_questions(read(data, "sroie-receipts/valid.jsonl"))
    write(output / "receipt-questions", train=receipt_questions(receipts[:450]), valid=valid, test=test)
    lines = (data / "conll2003" / "test.txt").read_text(encoding="utf-8").splitlines()
    news = [line.split()[0] for line in lines if line.strip() and not line.startswith("-DOCSTART-")]
    write(output / "receipt-questions-long", valid=behind_news(valid, news), test=behind_news(test, news))


if __name__ == "__main__":
    main(*HfArgumentParser(TaskDataArguments).parse_args_into_dataclasses())
