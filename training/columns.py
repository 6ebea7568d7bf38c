"""What all loaders share once their data is read: finding columns, reading values, images, and columns side by side."""

import ast
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Image, List, concatenate_datasets

from .image_paths import image_item
from .messages import at, shorten
from .sources import CACHE_VERSION, Source

logger = logging.getLogger(__name__)

# For each argument that names a column: what it says, and the usual names, best first.
WantedColumns = dict[str, tuple[str | None, tuple[str, ...]]]

_HIDDEN = -1  # what `datasets` allows in the place of a class that is not told


class TrainedLabels(NamedTuple):
    """
    What a model learned to tell apart.

    Attributes:
        names (`list[str]`): its labels, or answers, in its order.
        problem_type (`str`, *optional*): what kind of labels they are, see [`VTFusionConfig`].
    """

    names: list[str]
    problem_type: str | None = None


def settle_labels(labels: list[str], trained: TrainedLabels | None, sources: Mapping[str, Source]) -> list[str]:
    """
    The labels of a data set, or those of a trained model in its order where it knows them all: its head stays right.

    Args:
        labels (`list[str]`): those of the data.
        trained ([`TrainedLabels`], *optional*): those of the model.
        sources (`dict[str, Source]`): the splits. Where there is one to train on, the model may learn others.

    Raises:
        `ValueError`: The model does not know a label, and there is nothing to train it on.
    """
    unknown = [] if trained is None else [name for name in labels if name not in trained.names]
    if trained is None or (unknown and "train" in sources):
        return labels
    if unknown:
        raise ValueError(
            f"{next(iter(sources.values())).where}: the model does not know the labels {', '.join(unknown)}. It was "
            f"trained on {', '.join(trained.names)}."
        )
    return list(trained.names)


def find_columns(source: Source, columns: WantedColumns) -> list[str]:
    """
    The columns that a task cannot do without, all different.

    Args:
        source ([`Source`]): where to look.
        columns (`dict[str, tuple[str | None, tuple[str, ...]]]`): for each argument that names a column, what it says
            and the usual names, best first.

    Returns:
        `list[str]`: the columns, in the order of `columns`.

    Raises:
        `ValueError`: A column is missing, or two arguments mean the same one.
    """
    found = {name: find_column(name, wanted, known, source) for name, (wanted, known) in columns.items()}
    names = list(found.values())
    unclear = [f"`{argument}`" for argument, name in found.items() if name is None or names.count(name) > 1]
    if unclear:
        raise ValueError(
            f"{source.where}: say with {' and '.join(unclear)} which of these columns to read: "
            f"{', '.join(source.dataset.column_names)}."
        )
    return [name for name in names if name is not None]


def find_column(
    argument: str, wanted: str | None, known: tuple[str, ...], source: Source, needed: bool = True
) -> str | None:
    """
    The column that is `wanted`, or else the one with a `known` name, best first; `None` if there is none.

    Args:
        argument (`str`): how people say which column they want, for messages.
        wanted (`str`, *optional*): what they said.
        known (`tuple[str, ...]`): the usual names.
        source ([`Source`]): where to look.
        needed (`bool`, *optional*, defaults to `True`): if several columns have usual names, take that with the first
            of them instead of asking.

    Raises:
        `ValueError`: There is no column `wanted`, or nothing says which of several is meant.
    """
    columns = source.dataset.column_names
    if wanted is not None:
        if wanted not in columns:
            raise ValueError(f"{source.where} has no column {wanted!r} (`{argument}`). It has: {', '.join(columns)}.")
        return wanted
    found = [name for name in known if name in columns]
    # Our own name for a column wins; between `image` and `images` nothing says which one is meant.
    if len(found) > 1 and not (needed and found[0] == known[0]):
        raise ValueError(f"{source.where} has the columns {' and '.join(found)}: say which one with `{argument}`.")
    return found[0] if found else None


def find_targets(
    argument: str, wanted: str | None, known: tuple[str, ...], sources: Mapping[str, Source]
) -> dict[str, str | None]:
    """
    For each split the column with what is to be learned; `None` for a split, other than `train`, that has none.

    Args:
        argument (`str`): how people say which column they want, for messages.
        wanted (`str`, *optional*): what they said.
        known (`tuple[str, ...]`): the usual names.
        sources (`Mapping[str, Source]`): the splits.
    """
    here = [split for split, source in sources.items() if wanted in source.dataset.column_names]
    columns: dict[str, str | None] = {}
    for split, source in sources.items():
        if split == "train":
            (columns[split],) = find_columns(source, {argument: (wanted, known)})
        elif wanted is None or split in here or not here:  # a name that no split has is a mistake
            columns[split] = find_column(argument, wanted, known, source)
        else:
            columns[split] = None
        if columns[split] is None:
            logger.warning("%s has no column for `%s`: its rows are to predict only.", source.where, argument)
    return columns


def map_columns(
    source: Source,
    columns: Sequence[str],
    function: Callable[..., dict[str, list]],
    features: Features,
    desc: str,
    **kwargs: Any,
) -> Dataset:
    """
    Runs a function over some columns of a source, in batches. What it returns is all that is left.

    Args:
        source ([`Source`]): one split.
        columns (`Sequence[str]`): what the function needs.
        function (`Callable`): takes a batch, its row numbers, and as keywords `where`, `version` (for the cache only)
            and `kwargs`; a function of a module, so that its results are found in the cache again.
        features (`Features`): of what it returns.
        desc (`str`): for the progress bar.

    Returns:
        `datasets.Dataset`: on disk, where the source is.
    """
    part = source.dataset.select_columns(list(columns))
    return part.map(
        function,
        batched=True,
        with_indices=True,
        remove_columns=part.column_names,
        features=features,
        fn_kwargs={**kwargs, "where": source.where, "version": CACHE_VERSION},
        desc=desc,
    )


def join_columns(
    sources: Mapping[str, Source],
    texts: Mapping[str, Dataset],
    used: Mapping[str, set[str]],
    image_column: str | None,
    rows: Mapping[str, Sequence[int]] | None = None,
) -> DatasetDict:
    """
    Puts a task's own columns, the images and the columns that nobody asked for side by side.

    Args:
        sources (`Mapping[str, Source]`): the splits as they were read.
        texts (`Mapping[str, Dataset]`): for each split the task's own columns.
        used (`Mapping[str, set[str]]`): for each split the columns of the source that they were made from.
        image_column (`str`, *optional*): the column with the images, if not found by its usual names.
        rows (`Mapping[str, Sequence[int]]`, *optional*): for each split, which row of the source each row of `texts`
            was made from, where they are not the same.

    Returns:
        `DatasetDict`: the splits with the task's columns, `images` (`List(Image(decode=False))`, `None` for a row
        without; only if any split has images) and the others as they were.

    Raises:
        `ValueError`: An image is not as described, or lies where it may not.
        `FileNotFoundError`: An image file does not exist.
    """
    images: dict[str, Dataset | None] = {}
    rest: dict[str, Dataset] = {}
    for split, source in sources.items():
        columns = source.dataset.column_names
        image = find_column("image_column", image_column, source.image_columns, source, needed=False)
        images[split] = None if image is None else _read_images(source, image)
        taken = used[split] | {image}
        clashing = [name for name in (*texts[split].column_names, "images") if name in columns and name not in taken]
        if clashing:
            logger.warning("%s: column %s is replaced by the one you named.", source.where, ", ".join(clashing))
        rest[split] = source.dataset.select_columns([c for c in columns if c not in taken and c not in clashing])

    has_images = any(part is not None for part in images.values())
    result = DatasetDict()
    for split, source in sources.items():
        others = []
        if has_images:
            part = images[split]
            if part is None:
                logger.warning("%s has no image column: its rows are without image.", source.where)
                part = _no_images(len(source.dataset))
            others.append(part)
        if rest[split].column_names:
            others.append(rest[split])
        if rows is not None and len(texts[split]) != len(source.dataset):
            others = [part.select(rows[split]).flatten_indices(writer_batch_size=100) for part in others]
        # Side by side instead of one `map` over all: the columns we do not touch are not copied.
        result[split] = concatenate_datasets([texts[split], *others], axis=1, split=source.dataset.split)
    return result


def parse_cell(value: Any, starts: tuple[str, ...] = ('["', "['")) -> Any:
    """
    CSV has no lists: a cell holds them as JSON or the same as Python prints them. All else is returned as it came.

    Args:
        value (`Any`): of a row.
        starts (`tuple[str, ...]`, *optional*): how a text must begin to be taken for a list (or a dict) at all.
    """
    if isinstance(value, str) and value.startswith(starts) and value.endswith(("]", "}")):
        for parse in (json.loads, ast.literal_eval):
            try:
                parsed = parse(value)
            except (ValueError, SyntaxError):
                continue
            if isinstance(parsed, list | dict):
                return parsed
    return value


def class_label_names(feature: Any) -> list[str] | None:
    """The names of a `ClassLabel`, or of a list of them; `None` for all else."""
    inner = getattr(feature, "feature", feature)
    return list(inner.names) if isinstance(inner, ClassLabel) else None


def is_missing(value: Any, is_class: bool = False) -> bool:
    """Whether a value is null, an empty cell of a CSV file, or a class that is not told."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value)) or (is_class and value == _HIDDEN)


def first_value(source: Source, column: str | None) -> Any:
    """The first value of a column that is not missing, or `None`."""
    if column is None:
        return None
    is_class = class_label_names(source.dataset.features[column]) is not None
    for batch in source.dataset.select_columns([column]).iter(batch_size=1000):
        for value in batch[column]:
            if not is_missing(value, is_class):
                return parse_cell(value, ("[",))
    return None


def read_string(value: Any, place: str) -> str:
    """
    The value.

    Raises:
        `ValueError`: It is no string.
    """
    if not isinstance(value, str):
        raise ValueError(f"{place}: expected a string, got {shorten(value)}.")
    return value


# Images


def _image_features() -> Features:
    return Features({"images": List(Image(decode=False))})


def _no_images(n_rows: int) -> Dataset:
    return Dataset.from_dict({"images": [None] * n_rows}, features=_image_features())


def _read_images(source: Source, column: str) -> Dataset:
    part = source.dataset.select_columns([column])
    feature = part.features[column]
    stored = isinstance(feature, Image) or (isinstance(feature, List) and isinstance(feature.feature, Image))
    if stored:
        # `cast_column` would write a list of images anew only to note that they are not to be decoded.
        raw = Image(decode=False) if isinstance(feature, Image) else List(Image(decode=False))
        part = Dataset(part.data, info=DatasetInfo(features=Features({column: raw})), split=part.split)
    if isinstance(feature, List) and stored and _is_clean(part, column):
        # Images that are in the data already: take the column as it is instead of copying gigabytes.
        part = part.rename_column(column, "images") if column != "images" else part
    else:
        part = part.map(
            _image_lists,
            batched=True,
            batch_size=100,  # rows may hold the bytes of whole images
            writer_batch_size=100,
            with_indices=True,
            remove_columns=[column],
            features=_image_features(),
            fn_kwargs={"column": column, "base": source.folders.base, "where": source.where, "version": CACHE_VERSION},
            desc="Reading image paths",
        )
    _check_image_files(part, source, column)
    return part


def _image_items(dataset: Dataset, column: str) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Yields (bytes, path) of all images, a chunk at a time and without copying them."""
    for chunk in dataset.data.column(column).chunks:
        content, path = chunk.flatten().flatten()
        yield content, path


def _is_clean(dataset: Dataset, column: str) -> bool:
    """Whether lists of images need no rewriting: no empty list, no null in a list, no relative path, no URL."""
    if any(pc.any(pc.equal(pc.list_value_length(c), 0)).as_py() for c in dataset.data.column(column).chunks):
        return False
    for content, path in _image_items(dataset, column):
        bare = path.filter(content.is_null())
        if not all(p is not None and os.path.isabs(p) for p in bare.unique().to_pylist()):
            return False
    return True


def _image_lists(
    batch: dict[str, list], indices: list[int], column: str, base: str | None, where: str, version: int
) -> dict[str, list]:
    rows = []
    for row, value in zip(indices, batch[column], strict=True):
        place = at(where, row, column)
        items = [image_item(item, base, place) for item in (value if isinstance(value, list) else [value])]
        rows.append([item for item in items if item is not None] or None)
    return {"images": rows}


def _check_image_files(dataset: Dataset, source: Source, column: str) -> None:
    """Here and not where rows are read, whose results come from the cache although files have changed."""
    paths: dict[str, None] = {}
    for content, path in _image_items(dataset, "images"):
        paths |= dict.fromkeys(filter(None, path.filter(content.is_null()).unique().to_pylist()))

    def first(wanted: set[str]) -> tuple[str, str]:
        return next(
            (at(source.where, row, column), item["path"])
            for row, images in enumerate(dataset["images"])
            for item in images or []
            if item["bytes"] is None and item["path"] in wanted
        )

    if outside := source.folders.outside(paths):
        place, path = first(outside)
        raise source.folders.refuse(path, place)
    if missing := {path for path in paths if not os.path.isfile(path)}:
        place, path = first(missing)
        others = f" So are {len(missing) - 1} other image files." if len(missing) > 1 else ""
        raise FileNotFoundError(f"{place}: the image file {path} is missing.{others}")
