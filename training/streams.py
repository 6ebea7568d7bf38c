"""Reading a named data set or files row by row, for what is too large to be kept on the disk as a whole."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Unpack

from datasets import Audio, Dataset, Features, Image, IterableDataset, List, Video, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

from .image_paths import ImageFolders
from .messages import shorten
from .sources import (
    READERS,
    Source,
    StreamOrigin,
    check_folder_name,
    data_path,
    file_pattern,
    given_files,
    image_base,
    saved_folder,
    split_name,
    uncounted,
)

_LOOKED_AT = 1000

OpenTextFile = Callable[[str], IterableDataset]


@dataclass
class StreamSource:
    """
    One split as it is read, before its columns get their names.

    Args:
        stream (`datasets.IterableDataset`): its rows.
        where (`str`): split and file, for messages.
        folders ([`ImageFolders`]): where its images lie.
    """

    stream: IterableDataset
    where: str
    folders: ImageFolders

    def with_columns(self, names: Iterable[str]) -> Source:
        """A [`Source`] with columns of these names, which is all that the finders of columns look at."""
        return Source(Dataset.from_dict({name: [0] for name in names}), self.where, self.folders)


def open_streams(
    dataset_name: str | None = None,
    *,
    open_text_file: OpenTextFile | None = None,
    text_endings: Sequence[str] = (),
    **origin: Unpack[StreamOrigin],
) -> dict[str, StreamSource]:
    """
    What [`~training.sources.load_sources`] reads, as streams: nothing is downloaded or copied as a whole.

    Args:
        dataset_name (`str`, *optional*): a data set on the Hub, or a folder with one.
        open_text_file (`Callable`, *optional*): takes a path and reads all other text files. Without it they are
            refused.
        text_endings (`Sequence[str]`, *optional*): files that it reads, although `datasets` could.
        origin (*optional*): see [`StreamOrigin`].

    Returns:
        `dict[str, StreamSource]`: the splits, in the order in which they were given.

    Raises:
        `ValueError`: Nothing or too much is given, or a file has another ending.
        `FileNotFoundError`: A file or the image folder does not exist.
    """
    files = given_files(dataset_name, origin)
    if dataset_name is None:
        return {split: _open_file(file, split, origin, open_text_file, text_endings) for split, file in files.items()}
    base, allow_outside_paths = image_base(origin), origin.get("allow_outside_paths", False)
    folder = saved_folder(dataset_name)
    if folder is not None:
        loaded = {split: rows.to_iterable_dataset() for split, rows in load_from_disk(folder).items()}
        folders = ImageFolders.of_file(folder, base, allow_outside_paths)
    else:
        check_folder_name(dataset_name)
        with uncounted(dataset_name):
            loaded = load_dataset(dataset_name, origin.get("dataset_config_name"), streaming=True)
        folders = ImageFolders.of_name(dataset_name, base, allow_outside_paths)
    return {
        split_name(str(split), loaded, dataset_name): StreamSource(stream, f"{split} split of {dataset_name}", folders)
        for split, stream in loaded.items()
    }


def _open_file(
    file: str, split: str, origin: StreamOrigin, open_text_file: OpenTextFile | None, text_endings: Sequence[str]
) -> StreamSource:
    path = data_path(file, split)
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    where = f"{split} split ({path})"
    folders = ImageFolders.of_file(folder, image_base(origin), origin.get("allow_outside_paths", False))
    if os.path.isdir(path):
        return StreamSource(load_from_disk(path).to_iterable_dataset(), where, folders)
    ending = os.path.splitext(path)[1].lower()
    if open_text_file is not None and ending in text_endings:
        stream = open_text_file(path)
    elif ending in READERS:
        builder, options = READERS[ending]
        try:
            with uncounted(), named_errors(where):
                stream = load_dataset(
                    builder, data_files={split: file_pattern(path)}, split=split, streaming=True, **options
                )
        except StopIteration:  # what `datasets` says of a JSON file without anything in it
            raise ValueError(f"{where} has no rows.") from None
    elif open_text_file is not None:
        stream = open_text_file(path)
    else:
        raise ValueError(f"{path} cannot be streamed: its ending is none of {', '.join(READERS)}.")
    return StreamSource(stream, where, folders)


@contextmanager
def named_errors(where: str) -> Iterator[None]:
    """
    Errors of the readers of `datasets`, which may name neither the file nor the split, say what cannot be read.

    Args:
        where (`str`): split and file.

    Raises:
        `ValueError`: One was raised within, by us or them.
    """
    try:
        yield
    # Those of Arrow, pandas and codecs are ValueErrors.
    except (DatasetGenerationError, OverflowError, ValueError) as error:
        if where in str(error):
            raise
        raise ValueError(f"{where} cannot be read: {error.__cause__ or error}") from error


def undecoded(stream: IterableDataset) -> IterableDataset:
    """
    The stream with images, sound and films as they are stored. `IterableDataset.decode(False)` would leave columns of
    mixed JSON types as text, too, where `"a"` is a word with quotation marks.

    Args:
        stream (`datasets.IterableDataset`): any.
    """
    for name, feature in (stream.features or {}).items():
        inner = feature.feature if isinstance(feature, List) else feature
        if isinstance(inner, Image | Audio | Video):
            raw = replace(inner, decode=False)
            stream = stream.cast_column(name, List(raw) if isinstance(feature, List) else raw)
    return stream


def known_features(stream: IterableDataset, where: str) -> Features:
    """
    The columns of a stream and their types; where it does not know them (JSON, CSV), those of its first 1,000 rows.

    Args:
        stream (`datasets.IterableDataset`): any.
        where (`str`): what to call it in a message.

    Raises:
        `ValueError`: The stream has no rows, or a column with a NUL character in its name, which Arrow takes for the end
            of it.
    """
    features = stream.features
    rows = list(stream.take(_LOOKED_AT)) if features is None else []
    if features is None and not rows:
        raise ValueError(f"{where} has no rows.")
    for name in rows[0] if features is None else features:
        if "\0" in name:
            raise ValueError(
                f"{where}: the column {shorten(name)} has a NUL character in its name. Is this a text file?"
            )
    return Dataset.from_list(rows).features if features is None else features
