"""What all loaders begin with: a named data set or files, read as one [`Source`] for each split."""

import csv
import glob
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import datasets
from datasets import Dataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from transformers.utils import logging

from .files import UNFINISHED
from .image_paths import ImageFolders
from .messages import at

logger = logging.get_logger(__name__)

# `datasets` names cached results after the functions of an installed package, not after their code: raise this number
# whenever what a loader's functions return changes, or people go on with results of the version before.
CACHE_VERSION = 3

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
# No row is so long. Readers take many times as much memory for a line, and fail or crash at 2 GB without a word of where.
MAX_LINE_BYTES = 256 * 2**20
# What the split that chooses checkpoints is also called.
_VALIDATION = ("dev", "eval", "val", "valid")
_METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")

LoadTextFile = Callable[[str, str, str | None, str | None], Dataset]  # path, split, image folder, cache folder


class StreamOrigin(TypedDict, total=False):
    """
    Where the data of a stream is, beside its name.

    Attributes:
        dataset_config_name (`str`): the configuration of a named data set.
        train_file, validation_file, test_file (`str` or `os.PathLike`): files or folders, instead of a name.
        image_folder (`str` or `os.PathLike`): what relative image paths start from, if not the folder of the file. Images
            in it may be named by absolute paths too.
        allow_outside_paths (`bool`): whether images may lie outside of the folder of the data and of `image_folder`.
            By default a path that leads out of both, itself or by a link, is an error: a file from others could name any
            image on this machine.
    """

    dataset_config_name: str | None
    train_file: str | os.PathLike | None
    validation_file: str | os.PathLike | None
    test_file: str | os.PathLike | None
    image_folder: str | os.PathLike | None
    allow_outside_paths: bool


class Origin(StreamOrigin, total=False):
    """
    Where data is, beside its name: the arguments that all loaders share.

    Attributes:
        revision (`str`): branch, tag or commit of a data set on the Hub.
        cache_dir (`str` or `os.PathLike`): where `datasets` keeps what it has read.
    """

    revision: str | None
    cache_dir: str | os.PathLike | None


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
    image_columns: tuple[str, ...] = ("images", "image")

    def __post_init__(self) -> None:
        if len(self.dataset) == 0:
            raise ValueError(f"{self.where} has no rows.")
        self.dataset = self.dataset.with_format(None)  # a saved data set remembers its format, such as "torch"


def load_sources(
    dataset_name: str | None = None,
    *,
    load_text_file: LoadTextFile | None = None,
    text_endings: Sequence[str] = (),
    **origin: Unpack[Origin],
) -> dict[str, Source]:
    """
    Reads a named data set or files: `.jsonl`/`.json`, `.csv`, `.tsv`, `.parquet`, or a folder with `metadata.jsonl` (or
    `.csv`, `.parquet`) or saved by `Dataset.save_to_disk`. A `.tsv` file has a header like a `.csv` file, and no
    quotation: its cells hold neither tabs nor line ends.

    Args:
        dataset_name (`str`, *optional*): a data set on the Hub, or a folder saved by `DatasetDict.save_to_disk`.
        load_text_file (`Callable`, *optional*): takes path, split, image folder and cache folder, and reads all other
            text files. Without it they are refused.
        text_endings (`Sequence[str]`, *optional*): files that it reads whatever they hold, such as `.tsv`.
        origin (*optional*): see [`Origin`].

    Returns:
        `dict[str, Source]`: the splits, in the order in which they were given.

    Raises:
        `ValueError`: Nothing or too much is given, or a file cannot be read or has no rows.
        `FileNotFoundError`: A file or the image folder does not exist.
    """
    files = given_files(dataset_name, origin)
    if dataset_name is not None:
        return _load_named(dataset_name, origin)
    return {split: _load_file(file, split, origin, load_text_file, text_endings) for split, file in files.items()}


def given_files(dataset_name: str | None, origin: StreamOrigin) -> dict[str, str]:
    """
    The file of each split that has one.

    Raises:
        `ValueError`: Neither a data set nor a file is given, or both are.
    """
    train, validation, test = origin.get("train_file"), origin.get("validation_file"), origin.get("test_file")
    given = {"train": train, "validation": validation, "test": test}
    files = {split: os.fspath(file) for split, file in given.items() if file is not None}
    if (dataset_name is None) == (not files):
        raise ValueError("Give either `dataset_name` or at least one of `train_file`, `validation_file`, `test_file`.")
    return files


def image_base(origin: StreamOrigin) -> str | None:
    """
    The whole path of `image_folder`.

    Raises:
        `FileNotFoundError`: It is not a folder.
    """
    folder = origin.get("image_folder")
    base = None if folder is None else os.path.abspath(os.path.expanduser(folder))
    if base is not None and not os.path.isdir(base):
        raise FileNotFoundError(f"The `image_folder` {base} is not a folder.")
    return base


def _load_named(name: str, origin: Origin) -> dict[str, Source]:
    base, allow_outside_paths = image_base(origin), origin.get("allow_outside_paths", False)
    folder = saved_folder(name)
    if folder is not None:
        loaded = load_from_disk(folder)
        folders = ImageFolders.of_file(folder, base, allow_outside_paths)
    else:
        check_folder_name(name)
        config, revision, cache_dir = origin.get("dataset_config_name"), origin.get("revision"), _cache_dir(origin)
        with uncounted(name):
            loaded = load_dataset(name, config, revision=revision, cache_dir=cache_dir)
        folders = ImageFolders.of_name(name, base, allow_outside_paths, cache_dir)
    parts = {split_name(split, loaded, name): part for split, part in loaded.items()}
    return {split: Source(part, f"{split} split of {name}", folders) for split, part in parts.items()}


def split_name(split: str, splits: Collection[str], dataset_name: str) -> str:
    """The name by which a split of a data set is known here: one that chooses checkpoints is `"validation"`."""
    if split not in _VALIDATION or "validation" in splits or sum(other in _VALIDATION for other in splits) > 1:
        return split
    logger.warning("The split %s of %s is taken for the validation split.", split, dataset_name)
    return "validation"


def _cache_dir(origin: Origin) -> str | None:
    cache_dir = origin.get("cache_dir")
    return None if cache_dir is None else os.fspath(cache_dir)


def saved_folder(name: str) -> str | None:
    """
    The folder that a name means, if `DatasetDict.save_to_disk` wrote it; `None` for all else that may have a name.

    Raises:
        `ValueError`: It was not written to its end, or holds a single split.
    """
    folder = os.path.abspath(os.path.expanduser(name))
    if os.path.isfile(os.path.join(folder, "dataset_dict.json")):
        return folder
    if os.path.isdir(os.path.join(folder, UNFINISHED)):
        raise ValueError(f"{folder} was not written to its end: run what wrote it again.")
    if os.path.isfile(os.path.join(folder, "state.json")):
        raise ValueError(f"{folder} holds a single saved split: give it as `train_file` (or one of its siblings).")
    return None


def _load_file(
    file: str, split: str, origin: Origin, load_text_file: LoadTextFile | None, text_endings: Sequence[str]
) -> Source:
    path, base, cache_dir = data_path(file, split), image_base(origin), _cache_dir(origin)
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    where = f"{split} split ({path})"
    folders = ImageFolders.of_file(folder, base, origin.get("allow_outside_paths", False))
    if os.path.isdir(path):
        return Source(load_from_disk(path), where, folders)
    ending = os.path.splitext(path)[1].lower()
    if os.path.getsize(path) == 0:
        raise ValueError(f"{path} is empty.")
    if ending not in (".parquet", ".json"):  # a JSON file may hold all rows on one line
        check_line_lengths(path)
    if load_text_file is not None and ending in text_endings:
        dataset = load_text_file(path, split, base, cache_dir)
    elif ending in READERS:
        builder, options = READERS[ending]
        dataset = _load_packaged(builder, path, split, cache_dir, **options)
    elif load_text_file is None:
        raise ValueError(
            f"{path} cannot be read: its ending {ending!r} is none of {', '.join(READERS)}. A folder with "
            "metadata.jsonl, or saved by `Dataset.save_to_disk`, is read too."
        )
    elif not _looks_binary(path):
        dataset = load_text_file(path, split, base, cache_dir)
    else:
        raise ValueError(f"{path} is not a text file, and {ending!r} is none of {', '.join(READERS)}.")
    source = Source(dataset, where, folders)
    if os.path.isdir(os.path.expanduser(file)):
        source.image_columns += ("file_name", "file_names")  # the names that `datasets` gives them in such a folder
    return source


def data_path(file: str, split: str) -> str:
    """
    What to read of the file or folder that was given for a split: a file, or a folder that `Dataset.save_to_disk` wrote.

    Raises:
        `FileNotFoundError`: There is nothing to read.
        `ValueError`: The folder holds several splits.
    """
    path = os.path.abspath(os.path.expanduser(file))
    if not os.path.isdir(path):
        if not os.path.isfile(path):
            raise FileNotFoundError(f"The file {path} given for the {split} split does not exist.")
        return path
    if os.path.isfile(os.path.join(path, "dataset_dict.json")):
        raise ValueError(f"{path} holds a saved `DatasetDict` with its splits: give it as `dataset_name`.")
    if os.path.isfile(os.path.join(path, "state.json")):
        return path
    found = [name for name in _METADATA_FILES if os.path.isfile(os.path.join(path, name))]
    if not found:
        raise FileNotFoundError(
            f"The folder {path} given for the {split} split has none of {', '.join(_METADATA_FILES)}, and was not saved "
            "by `Dataset.save_to_disk`."
        )
    return os.path.join(path, found[0])


def _looks_binary(path: str) -> bool:
    with open(path, "rb") as file:
        return b"\0" in file.read(4096)


def _load_packaged(builder: str, path: str, split: str, cache_dir: str | None, **kwargs: Any) -> Dataset:
    try:
        # One file at a time, since `datasets` would want the same columns in all splits.
        files = {split: file_pattern(path)}
        with uncounted():
            dataset = load_dataset(builder, data_files=files, split=split, cache_dir=cache_dir, **kwargs)
        dataset.data.validate(full=True)  # the readers take texts for UTF-8 without a look
        return dataset
    except (DatasetGenerationError, OverflowError, ValueError) as error:
        if builder != "parquet":
            check_encoding(path)
        if path.endswith(".jsonl"):
            _check_json_lines(path)
        raise ValueError(f"{path} cannot be read as {builder}: {error.__cause__ or error}") from error


def file_pattern(path: str) -> str:
    """
    What `datasets` is to be told to read this file: it takes a path with `[`, `*` or `?` in it for a pattern, which other
    files may fit.

    Args:
        path (`str`): the file.
    """
    return glob.escape(path)


def check_folder_name(name: str) -> None:
    """
    What `datasets` looks for in a folder begins with the folder's path, which cannot be kept from being a pattern.

    Args:
        name (`str`): of a data set.

    Raises:
        `ValueError`: It is a folder that `datasets` would not find, or take others for.
    """
    folder = os.path.realpath(os.path.expanduser(name))
    if os.path.isdir(folder) and file_pattern(folder) != folder:
        raise ValueError(
            f"`datasets` would take the name of the folder {folder} for a pattern. Rename what has `[`, `*` or `?` in its "
            "name, or give the files."
        )


@contextmanager
def uncounted(name: str = ".") -> Iterator[None]:
    """
    Keeps `datasets` from telling a server each time that a file of this machine is read, which it does to count.

    Args:
        name (`str`, *optional*): what is read; of a data set that is not on this machine the server is told.
    """
    if not os.path.isdir(os.path.expanduser(name)):
        yield
        return
    counts = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts


def check_line_lengths(path: str) -> None:
    """
    Names the first line of a file that is too long to be a row.

    Raises:
        `ValueError`: There is one.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(
                    f"{path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes. Is this a text file with a row, or a "
                    "word, on each line?"
                )


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
            raise ValueError(f"{at(place, field=field)}: half of a character ({half}).") from None
    return row


def _check_json_lines(path: str) -> None:
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                read_json_object(line, f"{path}, line {number}")
