"""Manifests: files that name pictures for the texts of a data set, and the rows that their lines mean."""

import csv
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, DatasetDict, Value

from .messages import at
from .sources import named_encoding, read_json_object

_LARGEST = float(np.finfo(np.float32).max)  # scores are stored as such

# What the fields of a line may hold: types (a bool is no number here), limits, and how messages call it.
_FIELDS: dict[str, tuple[set[type], tuple[float, float] | None, str]] = {
    "row": ({int}, (0, math.inf), "the index of a row, from 0"),
    "id": ({str, int}, None, "a string or an integer"),
    "split": ({str}, None, "the name of a split"),
    "image": ({str}, None, "the path of a file or null"),
    "score": ({int, float}, (-_LARGEST, _LARGEST), "a number"),
}


@dataclass(frozen=True)
class ManifestLine:
    """A pair of a text, by `row` or `id`, and an image, `None` for none; `where` is its file and line, for messages."""

    where: str
    number: int
    row: int | None
    id: str | None
    split: str | None
    image: str | None
    score: float | None


def read_manifest(path: str) -> Iterator[ManifestLine]:
    """
    The lines of a manifest, checked one by one.

    Args:
        path (`str`): a .jsonl or .csv file, see [`~training.pairing.pair_by_manifest`].

    Raises:
        `FileNotFoundError`: It does not exist.
        `ValueError`: A line is not as described; file, line and field are named.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"The manifest {path} does not exist.")
    read = {".jsonl": _json_objects, ".csv": _csv_objects}.get(os.path.splitext(path)[1].lower())
    if read is None:
        raise ValueError(f"The manifest {path} must end in .jsonl or .csv.")
    number = 0
    for number, fields in read(path):
        yield _manifest_line(fields, f"{path}, line {number}", number)
    if number == 0:
        raise ValueError(f"The manifest {path} has no lines.")


def _json_objects(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig") as file, named_encoding(path):
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            fields = read_json_object(line, f"{path}, line {number}")
            if "image" not in fields:
                raise ValueError(
                    f"{at(f'{path}, line {number}', field='image')}: it is missing. For a text without a picture write null."
                )
            yield number, fields


def _csv_objects(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as file, named_encoding(path):
        reader = csv.DictReader(file)
        try:
            names = reader.fieldnames or []
            if "image" not in names or not {"row", "id"} & set(names):
                raise ValueError(
                    f"{path}, line 1: expected a header with 'image' and 'row' or 'id', got "
                    f"{', '.join(names) or 'nothing'}."
                )
            for fields in reader:
                # CSV knows no types: an empty cell is a field that is not there.
                values: dict[str, Any] = {name: value for name, value in fields.items() if value not in ("", None)}
                for name, convert in (("row", int), ("score", float)):
                    try:
                        values[name] = convert(values[name])
                    except KeyError:
                        continue
                    except ValueError:
                        pass  # the check of all fields says what is wrong
                yield reader.line_num, values
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num + 1}: not valid CSV: {error}") from None


def _manifest_line(fields: dict[str, Any], where: str, number: int) -> ManifestLine:
    row, text_id, split, image, score = (fields.get(name) for name in _FIELDS)
    if (row is None) == (text_id is None):
        raise ValueError(f"{where}: give either 'row' or 'id'.")
    for name, (types, limits, expected) in _FIELDS.items():
        value = fields.get(name)
        if value is None:
            continue
        if type(value) not in types or (limits is not None and not limits[0] <= value <= limits[1]):
            raise ValueError(f"{at(where, field=name)}: expected {expected}, got {value!r}.")
    if image and "://" in image:
        raise ValueError(
            f"{at(where, field='image')}: {image!r} is a URL. Nothing is downloaded here: download the images first."
        )
    return ManifestLine(where, number, row, None if text_id is None else str(text_id), split, image or None, score)


class RowFinder:
    """
    Finds the split and row that a line of a manifest means.

    Args:
        dataset (`DatasetDict`): the texts.
        id_column (`str`, *optional*, defaults to `"id"`): the column that an `id` is looked up in.
    """

    def __init__(self, dataset: DatasetDict, id_column: str | None):
        self.dataset, self.id_column = dataset, id_column or "id"
        self._places: dict[str, dict[str, int]] | None = None
        self._repeated: dict[str, dict[str, int]] = {}

    @property
    def used_ids(self) -> bool:
        """Whether any line named its text by id."""
        return self._places is not None

    def __call__(self, line: ManifestLine) -> tuple[str, int]:
        if line.split is not None and line.split not in self.dataset:
            raise ValueError(
                f"{at(line.where, field='split')}: the data set has no split {line.split!r}. It has: "
                f"{', '.join(self.dataset)}."
            )
        if line.id is not None:
            return self._find_id(line, line.id)
        split = line.split
        if split is None:
            if len(self.dataset) > 1:
                raise ValueError(
                    f"{line.where}: say with 'split' which of {', '.join(self.dataset)} the row {line.row} belongs to."
                )
            split = next(iter(self.dataset))
        row = line.row or 0
        if row >= len(self.dataset[split]):
            raise ValueError(
                f"{at(line.where, field='row')}: there is no row {row} in the {split} split, which has "
                f"{len(self.dataset[split]):,} rows (the first is row 0)."
            )
        return split, row

    def _find_id(self, line: ManifestLine, text_id: str) -> tuple[str, int]:
        if self._places is None:
            self._places = {split: self._read_ids(split) for split in self.dataset}
        splits = list(self.dataset) if line.split is None else [line.split]
        found = [split for split in splits if text_id in self._places[split]]
        if not found:
            where = "the data set" if line.split is None else f"the {line.split} split"
            raise ValueError(
                f"{at(line.where, field='id')}: no row of {where} has {text_id!r} in the column {self.id_column!r}."
            )
        if len(found) > 1:
            raise ValueError(
                f"{line.where}: the splits {' and '.join(found)} both have the id {text_id!r}. Say which with 'split'."
            )
        split, row = found[0], self._places[found[0]][text_id]
        if text_id in self._repeated[split]:
            raise ValueError(
                f"{at(line.where, field='id')}: rows {row} and {self._repeated[split][text_id]} of the {split} split both have "
                f"{text_id!r} in the column {self.id_column!r}. Name the text by 'row'."
            )
        return split, row

    def _read_ids(self, split: str) -> dict[str, int]:
        part = self.dataset[split]
        if self.id_column not in part.column_names:
            raise ValueError(
                f"The manifest names texts by 'id', but the {split} split has no column {self.id_column!r} (`id_column`). "
                f"It has: {', '.join(part.column_names)}."
            )
        feature = part.features[self.id_column]
        # Nor may the ids be labels: pictures must not depend on them.
        if not isinstance(feature, Value) or isinstance(feature, ClassLabel):
            raise ValueError(f"The column {self.id_column!r} (`id_column`) holds {feature}, not strings or integers.")
        places: dict[str, int] = {}
        self._repeated[split] = {}
        row = 0
        for batch in part.select_columns([self.id_column]).iter(batch_size=10_000):
            for value in batch[self.id_column]:
                if value is not None and places.setdefault(str(value), row) != row:
                    self._repeated[split].setdefault(str(value), row)
                row += 1
        return places
