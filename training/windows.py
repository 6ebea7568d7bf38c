"""Windows: rows tokenized into inputs that fit the text encoder, and all windows of a split as one batch again."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, List, Value

from ..words_vtfusion import TextRow, VTFusionBatch
from .images import RowKeys


def map_to_windows(
    dataset: Dataset,
    encode: Callable[[dict[str, list]], dict[str, list]],
    image_keys: Sequence[RowKeys],
    num_proc: int | None = None,
) -> Dataset:
    """
    Turns the rows of a split into windows that fit the text encoder.

    Args:
        dataset (`datasets.Dataset`): the rows.
        encode (`Callable`): from a batch of rows, by column, with their numbers as `row`, to columns of windows, of which
            `row` is the row in the batch.
        image_keys (`Sequence[list[str] | None]`): for each row the keys of its images in an [`ImageStore`].
        num_proc (`int`, *optional*): processes to use.

    Returns:
        `datasets.Dataset`: the columns that `encode` gives, with `row` in the split, `length` in tokens and `image_keys`.
    """

    def windows(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        encoded = encode(batch | {"row": indices})  # columns that are not read stay undecoded
        encoded["row"] = [indices[row] for row in encoded["row"]]
        return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]]}

    mapped = dataset.map(
        windows,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        num_proc=num_proc,
        # A cached result would outlive a change of the processor's code.
        load_from_cache_file=False,
        desc="Tokenizing",
    )
    return with_image_keys(mapped, image_keys)


def with_image_keys(windows: Dataset, image_keys: Sequence[RowKeys]) -> Dataset:
    """The same windows with these images for their rows."""
    if "image_keys" in windows.column_names:
        windows = windows.remove_columns("image_keys")
    # The type is said and not guessed: many rows without an image would make it a column of nulls.
    return windows.add_column("image_keys", [image_keys[row] for row in windows["row"]], feature=List(Value("string")))


def by_length(windows: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Windows to test on in the order of their length, for less padding; the evaluators know where each belongs."""
    return {split: rows if split == "train" else rows.sort("length", reverse=True) for split, rows in windows.items()}


def gather_windows(
    rows: list[TextRow],
    row_of_window: list[int],
    length: int,
    image_keys: Sequence[RowKeys] | None = None,
    **places: Sequence[Any],
) -> VTFusionBatch:
    """
    The windows of a whole split as one batch, for the `post_process_…` methods of the processor.

    Args:
        rows (`list[TextRow]`): the texts.
        row_of_window (`list[int]`): which of them each window is a part of.
        length (`int`): the tokens that windows are padded to, on the right.
        image_keys (`Sequence[list[str] | None]`, *optional*): for each text the keys of its images.
        places (`Sequence`): for each window its `word_positions` or its `token_spans`, see [`VTFusionBatch`].
    """
    data = {}
    if image_keys is not None:
        data["image_mask"] = torch.tensor([[int(bool(image_keys[row]))] for row in row_of_window])
    padded: dict[str, Any] = {}
    for name, windows in places.items():
        padded[name] = np.full((len(windows), length, *np.shape(windows[0])[1:]), -1)
        for place, values in zip(padded[name], windows, strict=True):
            place[: len(values)] = values
    return VTFusionBatch(data, rows=rows, row_of_window=row_of_window, **padded)
