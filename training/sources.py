"""What all loaders share: reading a named data set or files, finding columns, images, and putting columns together."""

import ast
import csv
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets import (
    Dataset,
    DatasetDict,
    DatasetInfo,
    Features,
    Image,
    List,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError

from .files import UNFINISHED
from .image_paths import ImageFolders, image_item

logger = logging.getLogger(__name__)

# `datasets` names cached results after the functions of an installed package, not after their code: raise this number
# whenever what a loader's functions return changes, or people go on with results of the version before.
CACHE_VERSION = 2

_IMAGE_COLUMNS = ("images", "image")
# What `datasets` reads, by the ending: its builder and what that is told.
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    # Without this, the word "NA" and its like would become null.
    ".csv": ("csv", {"keep_default_na": False}),
    ".parquet": ("parquet", {}),
    # A quotation mark is a character like any other there; read as CSV does, it would swallow lines.
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t", "quoting": csv.QUOTE_NONE}),
}
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")

# For each argument that names a column: what it says, and the usual names, best first.
WantedColumns = dict[str, tuple[str | None, tuple[str, ...]]]
LoadTextFile = Callable[[str, str, str | None, str | None], Dataset]  # path, split, image folder, cache folder


@dataclass
class Source:
    """
    One split as it was read, before its columns get their names.

    Args:
        dataset (`datasets.Dataset`): its rows.
        where (`str`): split and file, for messages.
        folders ([`ImageFolders`]): where its images lie.
        image_columns (`tuple[str, ...]`, *optional*): what a column with images is usually called.
    """

    dataset: Dataset
    where: str
    folders: ImageFolders
    image_columns: tuple[str, ...] = _IMAGE_COLUMNS

    def __post_init__(self) -> None:
        if len(self.dataset) == 0:
            raise ValueError(f"{self.where} has no rows.")
        self.dataset = self.dataset.with_format(None)  # a saved data set remembers its format, such as "torch"


def load_sources(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_file: str | os.PathLike | None = None,
    validation_file: str | os.PathLike | None = None,
    test_file: str | os.PathLike | None = None,
    image_folder: str | os.PathLike | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    load_text_file: LoadTextFile | None = None,
    text_endings: Sequence[str] = (),
    allow_outside_paths: bool = False,
) -> dict[str, Source]:
    """
    Reads a named data set or files: `.jsonl`/`.json`, `.csv`, `.tsv`, `.parquet`, or a folder with `metadata.jsonl` (or
    `.csv`, `.parquet`) or saved by `Dataset.save_to_disk`. A `.tsv` file has a header like a `.csv` file, and no
    quotation: its cells hold neither tabs nor line ends.

    Args:
        dataset_name (`str`, *optional*): a data set on the Hub, or a folder saved by `DatasetDict.save_to_disk`.
        dataset_config_name (`str`, *optional*): its configuration.
        train_file, validation_file, test_file (`str` or `os.PathLike`, *optional*): files or folders, instead of
            `dataset_name`.
        image_folder (`str` or `os.PathLike`, *optional*): what relative image paths start from, if not the folder of
            the file. Images in it may be named by absolute paths too.
        revision (`str`, *optional*): branch, tag or commit of the data set on the Hub.
        cache_dir (`str` or `os.PathLike`, *optional*): where `datasets` keeps what it has read.
        load_text_file (`Callable`, *optional*): takes path, split, image folder and cache folder, and reads all other
            text files. Without it they are refused.
        text_endings (`Sequence[str]`, *optional*): files that it reads whatever they hold, such as `.tsv`.
        allow_outside_paths (`bool`, *optional*, defaults to `False`): whether images may lie outside of the folder of
            the data and of `image_folder`.

    Returns:
        `dict[str, Source]`: the splits, in the order in which they were given.

    Raises:
        `ValueError`: Nothing or too much is given, or a file cannot be read or has no rows.
        `FileNotFoundError`: A file or the image folder does not exist.
    """
    files = check_one_origin(dataset_name, train_file, validation_file, test_file)
    cache = None if cache_dir is None else os.fspath(cache_dir)
    image_base = None if image_folder is None else os.path.abspath(os.path.expanduser(image_folder))
    if image_base is not None and not os.path.isdir(image_base):
        raise FileNotFoundError(f"The `image_folder` {image_base} is not a folder.")

    if dataset_name is not None:
        return _load_named(dataset_name, dataset_config_name, revision, image_base, cache, allow_outside_paths)
    return {
        split: _load_file(file, split, image_base, cache, load_text_file, text_endings, allow_outside_paths)
        for split, file in files.items()
    }


def check_one_origin(
    dataset_name: str | None,
    train_file: str | os.PathLike | None,
    validation_file: str | os.PathLike | None,
    test_file: str | os.PathLike | None,
) -> dict[str, str]:
    """
    The file of each split that has one.

    Raises:
        `ValueError`: Neither a data set nor a file is given, or both are.
    """
    given = {"train": train_file, "validation": validation_file, "test": test_file}
    files = {split: os.fspath(file) for split, file in given.items() if file is not None}
    if (dataset_name is None) == (not files):
        raise ValueError("Give either `dataset_name` or at least one of `train_file`, `validation_file`, `test_file`.")
    return files


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


# Reading: what is given -> one `Source` for each split


def _load_named(
    name: str,
    config: str | None,
    revision: str | None,
    image_base: str | None,
    cache_dir: str | None,
    allow_outside_paths: bool,
) -> dict[str, Source]:
    folder = os.path.abspath(os.path.expanduser(name)) if os.path.isdir(os.path.expanduser(name)) else None
    if folder is not None and os.path.isfile(os.path.join(folder, "dataset_dict.json")):
        loaded = load_from_disk(folder)
        folders = ImageFolders.of_file(folder, image_base, allow_outside_paths)
    elif folder is not None and os.path.isdir(os.path.join(folder, UNFINISHED)):
        raise ValueError(f"{folder} was not written to its end: run what wrote it again.")
    elif folder is not None and os.path.isfile(os.path.join(folder, "state.json")):
        raise ValueError(f"{folder} holds a single saved split: give it as `train_file` (or one of its siblings).")
    else:
        with nullcontext() if folder is None else uncounted():
            loaded = load_dataset(name, config, revision=revision, cache_dir=cache_dir)
        folders = ImageFolders.of_name(name, image_base, allow_outside_paths, cache_dir)
    return {split: Source(part, f"{split} split of {name}", folders) for split, part in loaded.items()}


def _load_file(
    file: str,
    split: str,
    image_base: str | None,
    cache_dir: str | None,
    load_text_file: LoadTextFile | None,
    text_endings: Sequence[str],
    allow_outside_paths: bool,
) -> Source:
    path = os.path.abspath(os.path.expanduser(file))
    image_columns: tuple[str, ...] = _IMAGE_COLUMNS
    if os.path.isdir(path):
        if os.path.isfile(os.path.join(path, "dataset_dict.json")):
            raise ValueError(f"{path} holds a saved `DatasetDict` with its splits: give it as `dataset_name`.")
        if os.path.isfile(os.path.join(path, "state.json")):
            folders = ImageFolders.of_file(path, image_base, allow_outside_paths)
            return Source(load_from_disk(path), f"{split} split ({path})", folders)
        found = [name for name in METADATA_FILES if os.path.isfile(os.path.join(path, name))]
        if not found:
            raise FileNotFoundError(
                f"The folder {path} given for the {split} split has none of {', '.join(METADATA_FILES)}, and was not "
                "saved by `Dataset.save_to_disk`."
            )
        path = os.path.join(path, found[0])
        image_columns += ("file_name", "file_names")  # the names that `datasets` gives them in such a folder
    elif not os.path.isfile(path):
        raise FileNotFoundError(f"The file {path} given for the {split} split does not exist.")

    ending = os.path.splitext(path)[1].lower()
    if os.path.getsize(path) == 0:
        raise ValueError(f"{path} is empty.")
    if load_text_file is not None and ending in text_endings:
        dataset = load_text_file(path, split, image_base, cache_dir)
    elif ending in READERS:
        builder, options = READERS[ending]
        dataset = _load_packaged(builder, path, split, cache_dir, **options)
    elif load_text_file is None:
        raise ValueError(
            f"{path} cannot be read: its ending {ending!r} is none of {', '.join(READERS)}. A folder with "
            "metadata.jsonl, or saved by `Dataset.save_to_disk`, is read too."
        )
    elif not _looks_binary(path):
        dataset = load_text_file(path, split, image_base, cache_dir)
    else:
        raise ValueError(f"{path} is not a text file, and {ending!r} is none of {', '.join(READERS)}.")
    folders = ImageFolders.of_file(os.path.dirname(path), image_base, allow_outside_paths)
    return Source(dataset, f"{split} split ({path})", folders, image_columns)


def _looks_binary(path: str) -> bool:
    with open(path, "rb") as file:
        return b"\0" in file.read(4096)


def _load_packaged(builder: str, path: str, split: str, cache_dir: str | None, **kwargs: Any) -> Dataset:
    try:
        # One file at a time, since `datasets` would want the same columns in all splits. The brackets keep a path with
        # `[` or `*` in it from being read as a pattern.
        pattern = re.sub(r"([\[*?])", r"[\1]", path)
        with uncounted():
            dataset = load_dataset(builder, data_files={split: [pattern]}, split=split, cache_dir=cache_dir, **kwargs)
        dataset.data.validate(full=True)  # the readers take texts for UTF-8 without a look
        return dataset
    except (DatasetGenerationError, ValueError) as error:
        if builder != "parquet":
            check_encoding(path)
        if path.endswith(".jsonl"):
            _check_json_lines(path)
        raise ValueError(f"{path} cannot be read as {builder}: {error.__cause__ or error}") from error


@contextmanager
def uncounted() -> Iterator[None]:
    """Keeps `datasets` from telling a server each time that a file of this machine is read, which it does to count."""
    counts = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts


def check_encoding(path: str) -> None:
    """
    Names the first line of a file that is not UTF-8 text.

    Raises:
        `ValueError`: There is one.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8 text ({error}).") from None


@contextmanager
def named_encoding(path: str) -> Iterator[None]:
    """
    What is read of a file within is UTF-8, or the first line that is not is named.

    Args:
        path (`str`): the file.

    Raises:
        `ValueError`: There is one.
    """
    try:
        yield
    except UnicodeDecodeError:
        check_encoding(path)
        raise


def read_json_object(line: str, place: str) -> dict[str, Any]:
    """
    The object on a line of JSON.

    Args:
        line (`str`): the line.
        place (`str`): file and line, for messages.

    Raises:
        `ValueError`: It is none, or holds half of a character, which no file can be written with.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected a JSON object, got {type(row).__name__}.")
    for field, value in row.items():
        try:
            json.dumps([field, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise ValueError(f"{place}, field {field!r}: half of a character ({half}).") from None
    return row


def _check_json_lines(path: str) -> None:
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                read_json_object(line, f"{path}, line {number}")


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
        place = f"{where}, row {row}, column {column!r}"
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
            (f"{source.where}, row {row}, column {column!r}", item["path"])
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
