"""
Gives the texts of a text-only data set pictures: a function for each strategy.

Every strategy sees the words of a text (or, for a manifest, its row number or id) and nothing else of it, never a label:
a picture chosen by the tags would give the answer away. What comes back is the same data set with these columns:

| column | type | what |
| --- | --- | --- |
| `images` | `List(Image(decode=False))` | the pictures, the best one first; `None` for a text without |
| `image_ids` | `List(string)` | their ids in the bank, or as the manifest writes them |
| `image_scores` | `List(float32)` | cosine of a retrieved picture, `score` of a manifest, else `None` for each picture |
| `image_spans` | `List(List(int32))` | by lexicon only: for each picture the words that name it, [first, after the last) |
| `pairing_strategy` | `string` | how the pictures were looked for, also where none was found |

All but a manifest also take streams (`IterableDatasetDict`), and give streams back: rows get their pictures as they are
read, the same ones that they get in a `DatasetDict`. A stream is read by one process, so that it has no `num_proc`.
"""

import io
import math
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import pyarrow as pa
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    List,
    NamedSplit,
    Value,
    concatenate_datasets,
)
from transformers.utils import logging

from .bank_search import ImageRetriever, search_all
from .files import UNFINISHED, claim_folder, release_folder
from .image_bank import ImageBank
from .image_paths import ImageFolders, image_item
from .manifest import RowFinder, read_manifest
from .messages import at
from .streams import known_features, named_errors

# See `CACHE_VERSION` in `sources.py`: raise it when what the functions below return changes.
_CACHE_VERSION = 3
_WRITTEN_AT_ONCE = 1000  # rows of a stream

STRATEGIES = ("manifest", "lexicon", "retrieval", "random", "blank", "none")
BLANK_ID = "blank"

Texts = TypeVar("Texts", DatasetDict, IterableDatasetDict)

_FEATURES = Features(
    {
        "images": List(Image(decode=False)),
        "image_ids": List(Value("string")),
        "image_scores": List(Value("float32")),
        "pairing_strategy": Value("string"),
    }
)
_SPANS = Features({"image_spans": List(List(Value("int32")))})


def pair_by_lexicon(dataset: Texts, bank: ImageBank, max_images: int = 1, num_proc: int | None = None) -> Texts:
    """
    Gives each text the pictures whose names or aliases are among its words, see [`ImageBank.match`].

    Args:
        dataset (`DatasetDict` or `IterableDatasetDict`):
            With a column `tokens` and none of the new columns (see the top of this file).
        bank ([`ImageBank`]):
            The pictures, with names.
        max_images (`int`, defaults to 1):
            At most so many different pictures for a text, the leftmost ones.
        num_proc (`int`, *optional*):
            Processes to use.

    Returns:
        `DatasetDict` or `IterableDatasetDict`: The same rows with the new columns.

    Raises:
        `ValueError`: `tokens` is missing, one of the new columns is there already, `max_images` is below 1, or the bank
        has no names.

    Example:

    ```python
    >>> from datasets import Dataset, DatasetDict
    >>> from vtfusion.training.image_bank import BankImage, ImageBank
    >>> from vtfusion.training.pairing import pair_by_lexicon

    >>> bank = ImageBank([BankImage("flag_de", "flag_de.jpg", "Germany", ("German",))])
    >>> texts = DatasetDict({"train": Dataset.from_dict({"tokens": [["German", "call"], ["no", "name"]]})})
    >>> pair_by_lexicon(texts, bank)["train"]["image_ids"][:]
    [['flag_de'], []]
    ```
    """
    _check_count("max_images", max_images)
    if not any(image.names for image in bank.images):
        raise ValueError(
            "The image bank has no names to look up, only captions. Pair by retrieval, or add a 'name' to its rows."
        )
    kwargs = {"bank": bank, "max_images": max_images}
    return _add_columns(dataset, lambda split: (_lexicon_columns, kwargs), num_proc, spans=True)


def _lexicon_columns(
    batch: dict[str, list], indices: list[int], bank: ImageBank, max_images: int, version: int
) -> dict[str, list]:
    picked, spans = [], []
    for words in batch["tokens"]:
        first: dict[str, Any] = {}
        for match in bank.match(words):
            first.setdefault(match.image.image_id, match)  # a picture that is named twice counts once
        chosen = list(first.values())[:max_images]
        picked.append([(match.image.path, match.image.image_id, None) for match in chosen])
        spans.append([[match.start, match.end] for match in chosen])
    return {**_columns("lexicon", picked), "image_spans": spans}


def pair_by_retrieval(
    dataset: Texts,
    retriever: ImageRetriever,
    top_k: int = 1,
    score_threshold: float | None = None,
    num_proc: int | None = None,
) -> Texts:
    """
    Gives each text the pictures that an encoder finds closest to it, see [`ImageRetriever`]. The words are joined by
    spaces.

    Args:
        dataset (`DatasetDict` or `IterableDatasetDict`):
            With a column `tokens` and none of the new columns.
        retriever ([`ImageRetriever`]):
            The pictures and the encoder.
        top_k (`int`, defaults to 1):
            At most so many pictures for a text.
        score_threshold (`float`, *optional*):
            Pictures with a lower cosine (−1 to 1) are left out. By default none is.
        num_proc (`int`, *optional*):
            Processes that write the columns. The search itself runs in this process, on several threads.

    Returns:
        `DatasetDict` or `IterableDatasetDict`: The same rows with the new columns.

    Raises:
        `ValueError`: `tokens` is missing, one of the new columns is there already, `top_k` is below 1, or
        `score_threshold` is no cosine.
    """
    _check_count("top_k", top_k)
    if score_threshold is not None and not -1 <= score_threshold <= 1:
        raise ValueError(f"`score_threshold` is a cosine, between -1 and 1; got {score_threshold}.")
    _check_columns(dataset)  # before hours of work
    kwargs = {
        "strategy": "retrieval",
        "paths": [image.path for image in retriever.bank.images],
        "ids": [image.image_id for image in retriever.bank.images],
    }

    def keep(scores: np.ndarray, places: np.ndarray) -> dict[str, Any]:
        kept = places >= 0
        if score_threshold is not None:
            kept &= scores >= score_threshold
        offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
        return {"offsets": offsets, "places": places[kept], "scores": scores[kept]}

    def pick(split: str) -> tuple[Callable[..., dict[str, list]], dict[str, Any]]:
        part = dataset[split]
        if isinstance(part, IterableDataset):
            return _found_columns, {**kwargs, "retriever": retriever, "top_k": top_k, "keep": keep}
        found = search_all(retriever, part, top_k, f"Retrieving images for {split}")
        return _picked_columns, {**kwargs, **keep(*found)}

    return _add_columns(dataset, pick, num_proc)


def _found_columns(
    batch: dict[str, list],
    indices: list[int],
    retriever: ImageRetriever,
    top_k: int,
    keep: Callable[[np.ndarray, np.ndarray], dict[str, Any]],
    **kwargs: Any,
) -> dict[str, list]:
    """[`_picked_columns`] of texts that are searched with as they come."""
    found = retriever.search([" ".join(tokens) for tokens in batch["tokens"]], top_k)
    return _picked_columns(batch, list(range(len(indices))), **keep(*found), **kwargs)


def _picked_columns(
    batch: dict[str, list],
    indices: list[int],
    strategy: str,
    offsets: np.ndarray,
    places: np.ndarray,
    scores: np.ndarray,
    paths: list[str],
    ids: list[str],
    version: int,
) -> dict[str, list]:
    """Pictures that were chosen before: those of row i are `places[offsets[i] : offsets[i + 1]]`."""
    picked = []
    for row in indices:
        part = slice(offsets[row], offsets[row + 1])
        picked.append(
            [
                (paths[place], ids[place], None if math.isnan(score) else score)
                for place, score in zip(places[part].tolist(), scores[part].tolist(), strict=True)
            ]
        )
    return _columns(strategy, picked)


def pair_at_random(
    dataset: Texts, bank: ImageBank, max_images: int = 1, seed: int = 0, num_proc: int | None = None
) -> Texts:
    """
    Gives each text pictures drawn at random: a control for what pictures do that have nothing to do with the text.

    Args:
        dataset (`DatasetDict` or `IterableDatasetDict`):
            With a column `tokens` and none of the new columns.
        bank ([`ImageBank`]):
            The pictures.
        max_images (`int`, defaults to 1):
            So many different pictures for each text.
        seed (`int`, defaults to 0):
            Of the draw. It also depends on the split and the row, and on nothing else.
        num_proc (`int`, *optional*):
            Processes to use; they do not change the draw.

    Returns:
        `DatasetDict` or `IterableDatasetDict`: The same rows with the new columns.

    Raises:
        `ValueError`: `tokens` is missing, one of the new columns is there already, or `max_images` is below 1 or more
        than the bank has.
    """
    _check_count("max_images", max_images)
    if max_images > len(bank):
        raise ValueError(f"`max_images` is {max_images}, but the image bank has only {len(bank)} images.")
    kwargs = {
        "paths": [image.path for image in bank.images],
        "ids": [image.image_id for image in bank.images],
        "max_images": max_images,
    }
    return _add_columns(dataset, lambda split: (_random_columns, {**kwargs, "seed": f"{seed}/{split}"}), num_proc)


def _random_columns(
    batch: dict[str, list],
    indices: list[int],
    paths: list[str],
    ids: list[str],
    max_images: int,
    seed: str,
    version: int,
) -> dict[str, list]:
    picked = []
    for row in indices:
        places = random.Random(f"{seed}/{row}").sample(range(len(ids)), max_images)
        picked.append([(paths[place], ids[place], None) for place in places])
    return _columns("random", picked)


def pair_with_blank(dataset: Texts, num_proc: int | None = None) -> Texts:
    """
    Gives each text the same mid-grey picture of 224 × 224 pixels, with the id `"blank"`: a control for what a picture does
    that shows nothing. It is the one that the image condition `blank` of the task scripts uses.

    Args:
        dataset (`DatasetDict` or `IterableDatasetDict`):
            With a column `tokens` and none of the new columns.
        num_proc (`int`, *optional*):
            Processes to use.

    Returns:
        `DatasetDict` or `IterableDatasetDict`: The same rows with the new columns; the picture's bytes (a PNG) are in every row.

    Raises:
        `ValueError`: `tokens` is missing, or one of the new columns is there already.
    """
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (224, 224), (128, 128, 128)).save(buffer, "PNG", optimize=True)
    return _add_columns(dataset, lambda split: (_blank_columns, {"content": buffer.getvalue()}), num_proc)


def _blank_columns(batch: dict[str, list], indices: list[int], content: bytes, version: int) -> dict[str, list]:
    columns = _columns("blank", [[("", BLANK_ID, None)]] * len(indices))
    return {**columns, "images": [[{"bytes": content, "path": None}]] * len(indices)}


def pair_with_none(dataset: Texts, num_proc: int | None = None) -> Texts:
    """
    Gives no text a picture, in the columns of the other strategies: the text-only control.

    Args:
        dataset (`DatasetDict` or `IterableDatasetDict`):
            With a column `tokens` and none of the new columns.
        num_proc (`int`, *optional*):
            Processes to use.

    Returns:
        `DatasetDict` or `IterableDatasetDict`: The same rows with the new columns.

    Raises:
        `ValueError`: `tokens` is missing, or one of the new columns is there already.
    """
    return _add_columns(dataset, lambda split: (_none_columns, {}), num_proc)


def _none_columns(batch: dict[str, list], indices: list[int], version: int) -> dict[str, list]:
    return _columns("none", [[]] * len(indices))


def pair_by_manifest(
    dataset: DatasetDict,
    manifest_file: str | os.PathLike,
    id_column: str | None = None,
    num_proc: int | None = None,
    allow_outside_paths: bool = False,
) -> DatasetDict:
    """
    Gives each text the pictures that a file names for it.

    The file is JSONL (an object on each line) or CSV (a header first) with a line for each pair of a text and a picture:

    - `row` (its index within the split, from 0) or `id` (its value in `id_column`, compared as a string);
    - `image`: the picture's file, relative to the manifest; null or empty says that the text has none;
    - `split`, optional: needed for `row` if the data set has several splits, and for an `id` that several splits have;
    - `score`, optional: a number, kept in `image_scores`.

    A text may have several lines, its pictures keep their order; a text without a line has no picture.

    Args:
        dataset (`DatasetDict`):
            With a column `tokens` and none of the new columns.
        manifest_file (`str` or `os.PathLike`):
            The file.
        id_column (`str`, *optional*, defaults to `"id"`):
            The column of strings or integers that an `id` is looked up in.
        num_proc (`int`, *optional*):
            Processes that write the columns.
        allow_outside_paths (`bool`, *optional*, defaults to `False`):
            Whether pictures may lie outside of the manifest's folder.

    Returns:
        `DatasetDict`: The same rows with the new columns.

    Raises:
        `FileNotFoundError`: The manifest or one of its pictures does not exist.
        `ValueError`: A line is not as described, names a row, id or split that is not there or a picture outside of the
        folder, or repeats an earlier pair (file, line and field are named); the `id_column` is missing, holds lists or labels, or has a value twice that
        the manifest names.
    """
    if not isinstance(dataset, DatasetDict):
        raise ValueError("A manifest names rows by number or id, which cannot be looked up in a stream.")
    _check_columns(dataset)
    path = os.path.abspath(os.path.expanduser(manifest_file))
    folders = ImageFolders.of_file(os.path.dirname(path), allow_outside_paths=allow_outside_paths)
    pictures: dict[str, tuple[int, str]] = {}  # what a line calls a picture → its place and its file
    seen: dict[tuple[str, int, int], int] = {}
    picked: dict[str, list[tuple[int, int, float]]] = {split: [] for split in dataset}
    find = RowFinder(dataset, id_column)
    for line in read_manifest(path):
        split, row = find(line)
        if line.image is None:
            continue
        if line.image not in pictures:
            where = at(line.where, field="image")
            item = image_item(line.image, folders.base, where)
            file = line.image if item is None else item["path"]
            if folders.outside([file]):
                raise folders.refuse(file, where)
            if not os.path.isfile(file):
                raise FileNotFoundError(f"{where}: the image file {file} is missing.")
            pictures[line.image] = len(pictures), file
        place = pictures[line.image][0]
        earlier = seen.setdefault((split, row, place), line.number)
        if earlier != line.number:
            raise ValueError(
                f"{line.where}: row {row} of the {split} split has the image {line.image!r} since line {earlier} already. "
                "Take one of the lines out."
            )
        picked[split].append((row, place, math.nan if line.score is None else line.score))
    if id_column is not None and not find.used_ids:
        raise ValueError(f"`id_column` is {id_column!r}, but {path} names texts by 'row'. Leave it out.")

    def pick(split: str) -> tuple[Callable[..., dict[str, list]], dict[str, Any]]:
        triples = np.array(picked[split], dtype=np.float64).reshape(-1, 3)
        rows = triples[:, 0].astype(np.int64)
        order = np.argsort(rows, kind="stable")
        counts = np.bincount(rows, minlength=len(dataset[split]))
        return _picked_columns, {
            "strategy": "manifest",
            "offsets": np.concatenate([[0], np.cumsum(counts)]),
            "places": triples[order, 1].astype(np.int32),
            "scores": triples[order, 2].astype(np.float32),
            "paths": [file for _, file in pictures.values()],
            "ids": list(pictures),
        }

    return _add_columns(dataset, pick, num_proc)


# What the strategies share


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}.")


def _check_columns(dataset: DatasetDict | IterableDatasetDict) -> None:
    for split, part in dataset.items():
        names = part.column_names
        if isinstance(part, IterableDataset):
            names = list(known_features(part, f"The {split} split"))
        if "tokens" not in names:
            raise ValueError(f"The {split} split has no column 'tokens'. It has: {', '.join(names)}.")
        for name in (*_FEATURES, *_SPANS):
            if name in names:
                raise ValueError(f"The {split} split has a column {name!r} already: remove it first.")


def _columns(strategy: str, picked: Sequence[Sequence[tuple[str, str, float | None]]]) -> dict[str, list]:
    """(path, id, score) of the pictures of each row → the new columns."""
    # Rows of a stream are not cast to its types.
    scores = [[None if score is None else float(np.float32(score)) for _, _, score in row] for row in picked]
    return {
        "images": [[{"bytes": None, "path": path} for path, _, _ in row] or None for row in picked],
        "image_ids": [[image_id for _, image_id, _ in row] for row in picked],
        "image_scores": scores,
        "pairing_strategy": [strategy] * len(picked),
    }


def _add_columns(
    dataset: Texts,
    choose: Callable[[str], tuple[Callable[..., dict[str, list]], dict[str, Any]]],
    num_proc: int | None,
    spans: bool = False,
) -> Texts:
    """`choose` gives for a split the function that makes the new columns, and its arguments."""
    _check_columns(dataset)
    features = Features({**_FEATURES, **_SPANS}) if spans else _FEATURES
    if isinstance(dataset, IterableDatasetDict) and num_proc is not None:
        raise ValueError(f"`num_proc` is {num_proc}, but a stream is read by one process.")
    paired = type(dataset)()
    for split, part in dataset.items():
        function, kwargs = choose(split)
        kwargs["version"] = _CACHE_VERSION
        # The function is given the words alone, so that it could not read a label if it wanted to.
        if isinstance(part, IterableDataset):
            paired[split] = part.map(
                _of_words,
                batched=True,
                with_indices=True,
                input_columns=["tokens"],
                features=Features({**known_features(part, f"The {split} split"), **features}),
                fn_kwargs={"function": function, **kwargs},
            )
            continue
        columns = (
            part.with_format(None)
            .select_columns(["tokens"])
            .map(
                function,
                batched=True,
                with_indices=True,
                remove_columns=["tokens"],
                features=features,
                fn_kwargs=kwargs,
                num_proc=num_proc,
                desc=f"Pairing {split} with images",
            )
        )
        # Side by side, so that the other columns are not copied.
        paired[split] = concatenate_datasets([part, columns], axis=1, split=part.split)
    return paired


def _of_words(
    tokens: list[list[str]], indices: list[int], function: Callable[..., dict[str, list]], **kwargs: Any
) -> dict[str, list]:
    return function({"tokens": tokens}, indices, **kwargs)


def save_paired_dataset(
    dataset: DatasetDict | IterableDatasetDict,
    output_dir: str | os.PathLike,
    embed_images: bool = True,
    num_proc: int | None = None,
) -> None:
    """
    Saves a paired data set for `--dataset_name` of the task scripts.

    Args:
        dataset (`DatasetDict` or `IterableDatasetDict`):
            Made by one of the functions above. Streams are read here, a bounded number of rows at a time.
        output_dir (`str` or `os.PathLike`):
            The folder.
        embed_images (`bool`, defaults to `True`):
            Whether each row gets a copy of its pictures' files, so that the folder needs nothing else. Otherwise
            `images` becomes a `List(Value("string"))` of their paths, which saves disk where many texts share a picture;
            `dataset.cast_column("images", List(Image()))` makes pictures of them, and `image_folder` tells the loaders
            where these lie.
        num_proc (`int`, *optional*):
            Processes to use.

    Raises:
        `ValueError`: The pictures are to be paths, but one has no file (a blank one).
        `OSError`: Another process is writing into the folder.
    """
    claim_folder(output_dir)
    unfinished = Path(output_dir, UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        _save(dataset, unfinished, embed_images, num_proc)
        # Nothing is a saved data set without this file: it goes first and comes last.
        Path(output_dir, "dataset_dict.json").unlink(missing_ok=True)
    except BaseException:
        shutil.rmtree(unfinished)
        release_folder(output_dir)
        raise
    saved = unfinished / "dataset"
    for split in dataset:
        shutil.rmtree(Path(output_dir, split), ignore_errors=True)
        (saved / split).rename(Path(output_dir, split))
    (saved / "dataset_dict.json").rename(Path(output_dir, "dataset_dict.json"))
    shutil.rmtree(unfinished)
    release_folder(output_dir)


def _save(
    dataset: DatasetDict | IterableDatasetDict, unfinished: Path, embed_images: bool, num_proc: int | None
) -> None:
    if isinstance(dataset, IterableDatasetDict):
        rows = {split: _collect(stream, split, str(unfinished)) for split, stream in dataset.items()}
        dataset = DatasetDict(rows)
    if not embed_images:
        dataset = DatasetDict({split: _images_as_paths(part, num_proc) for split, part in dataset.items()})
    # Each process writes a shard of its own, and there is no shard without rows. A pool of one is only slower.
    processes = min([num_proc or 1, *map(len, dataset.values())])
    dataset.save_to_disk(str(unfinished / "dataset"), num_proc=processes if processes > 1 else None)


def _collect(stream: IterableDataset, split: str, folder: str) -> Dataset:
    """The rows of a stream in a file of the folder."""
    path, features = os.path.join(folder, f"{split}.arrow"), stream.features
    with (
        pa.OSFile(path, "wb") as file,
        pa.ipc.new_stream(file, features.arrow_schema) as writer,
        logging.tqdm(desc=f"Pairing {split} with images", unit=" texts") as progress,
    ):
        batches = stream.iter(batch_size=_WRITTEN_AT_ONCE)
        while True:
            with named_errors(f"{split} split"):
                batch = next(batches, None)
            if batch is None:
                break
            rows = Dataset.from_dict({name: batch[name] for name in features}, features=features)
            writer.write_table(rows.with_format("arrow")[:])
            progress.update(len(rows))
    return Dataset.from_file(path, split=NamedSplit(split))


def _images_as_paths(part: Dataset, num_proc: int | None) -> Dataset:
    paths = part.select_columns(["images"]).map(
        _path_lists,
        batched=True,
        features=Features({"images": List(Value("string"))}),
        fn_kwargs={"version": _CACHE_VERSION},
        num_proc=num_proc,
        desc="Writing image paths",
    )
    return concatenate_datasets([part.remove_columns("images"), paths], axis=1, split=part.split)


def _path_lists(batch: dict[str, list], version: int) -> dict[str, list]:
    if any(image["path"] is None for images in batch["images"] for image in images or []):
        raise ValueError("A picture of the data set has no file, so that there is no path to save: embed the images.")
    return {"images": [images and [image["path"] for image in images] for images in batch["images"]]}
