"""Texts as words, sub-words and windows: what stands where, in characters and in tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import BatchFeature

from .images_vtfusion import Box

Span = tuple[int, int]

# What splits a plain string into words: runs of letters and digits, and runs of punctuation.
_STRING_WORDS = pre_tokenizers.Whitespace()


@dataclass
class TextRow:
    """
    One text of a batch: what its predictions refer to.

    Args:
        text (`str`): The text as it was tokenized; a list of words is joined by single spaces.
        words (`list[str]`): Its words. Each gets one prediction.
        spans (`list[tuple[int, int]]`): Where each word starts and ends (exclusive) in `text`, in characters.
        image_sizes (`list[tuple[int, int] | None]`):
            (width, height) of each of its images after EXIF rotation; `None` for an empty slot.
        image_views (`list[tuple[float, float, float, float] | None]`):
            The rectangle of each image that the vision encoder sees after resizing and cropping, in pixels of the
            original image. It may reach beyond the image where a crop adds a border. The padding of a detector's
            batch is no part of it: detectors give their boxes without it.
    """

    text: str
    words: list[str]
    spans: list[Span]
    image_sizes: list[tuple[int, int] | None] = field(default_factory=list)
    image_views: list[Box | None] = field(default_factory=list)


class VTFusionBatch(BatchFeature):
    """
    What [`VTFusionProcessor`] returns. As a mapping it holds model inputs only, so `model(**batch)` works; what the
    way back to words needs lies in attributes, which survive `.to(device)`, copying and pickling.

    Attributes:
        rows (`list[TextRow]`): One record per text.
        row_of_window (`list[int]` of length `batch_size`): The text that each window is a part of.
        word_positions (`np.ndarray` of shape `(batch_size, sequence_length)`):
            At each token where the prediction of a word is read, the index of the word in its text; −1 elsewhere.
        token_spans (`np.ndarray` of shape `(batch_size, sequence_length, 2)`):
            Where each token of a text starts and ends (exclusive) in it, in characters and without the spaces around;
            (−1, −1) at special tokens, those of `text_pair`, padding, and tokens that show nothing but spaces.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        tensor_type: str | None = None,
        rows: list[TextRow] | None = None,
        row_of_window: list[int] | None = None,
        word_positions: np.ndarray | None = None,
        token_spans: np.ndarray | None = None,
        **kwargs: Any,
    ):
        super().__init__(data, tensor_type=tensor_type, **kwargs)
        self.rows = rows or []
        self.row_of_window = row_of_window or []
        self.word_positions = np.full((0, 0), -1) if word_positions is None else word_positions
        self.token_spans = np.full((0, 0, 2), -1) if token_spans is None else token_spans

    # The parent pickles `data` alone, which would lose the rows between the workers of a data loader.
    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


# ------------------------------------------------ words and sub-words -----------------------------------------------


def read_text(text: Any, row: int, field: str = "text") -> TextRow:
    """
    Find the words of a text.

    Args:
        text (`str` or `list[str]`): A string, or a list of words.
        row (`int`): Its place in the batch, for error messages.
        field (`str`, *optional*, defaults to `"text"`): What the caller calls it, for error messages.

    Returns:
        [`TextRow`]: the text, its words and where they stand in it.

    Raises:
        ValueError: if it is neither, has no words as a list, or is not valid Unicode.

    Example:

    ```python
    >>> from vtfusion.words_vtfusion import read_text

    >>> read_text("Ada isn't here", row=0).words
    ['Ada', 'isn', "'", 't', 'here']
    >>> read_text(["Ada", "isn't", "here"], row=0).spans
    [(0, 3), (4, 9), (10, 14)]
    ```
    """
    where = f"row {row}, field `{field}`: "
    if isinstance(text, str):
        found = _STRING_WORDS.pre_tokenize_str(valid_unicode(text, where)) if text else []
        return TextRow(text, [word for word, _ in found], [span for _, span in found])
    if isinstance(text, np.ndarray):
        text = text.tolist()
    if not isinstance(text, list | tuple):
        raise ValueError(f"{where}expected a string or a list of words, got {type(text)}")
    if len(text) == 0:
        raise ValueError(f"{where}there are no words")
    for word in text:
        if not isinstance(word, str):
            raise ValueError(f"{where}expected words that are strings, got {word!r} ({type(word)})")
    ends = np.cumsum([len(word) + 1 for word in text]) - 1  # one space between words
    spans = [(int(end) - len(word), int(end)) for word, end in zip(text, ends, strict=True)]
    return TextRow(valid_unicode(" ".join(text), where), list(text), spans)


def valid_unicode(text: str, where: str) -> str:
    """The text, if it can be encoded; half characters cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}the text is not valid Unicode: {error}") from error
    return text


def read_labels(labels: Any, words: list[str], row: int) -> list[int]:
    """
    Check the labels of a text.

    Args:
        labels (`Sequence[int]`): A label id for each word, or −100.
        words (`list[str]`): The words of the text.
        row (`int`): Its place in the batch, for error messages.

    Returns:
        `list[int]`: The labels.

    Raises:
        ValueError: if they are not one for each word, or one is no label id.
    """
    where = f"row {row}, field `word_labels`: "
    if isinstance(labels, np.ndarray | torch.Tensor):
        labels = labels.tolist()
    if not isinstance(labels, list | tuple):
        raise ValueError(f"{where}expected a list of label ids, got {labels!r}")
    if len(labels) != len(words):
        raise ValueError(f"{where}there are {len(labels)} labels for {len(words)} words")
    for label in labels:
        is_id = isinstance(label, int | np.integer) and not isinstance(label, bool)
        if not is_id or (label < 0 and label != -100):
            raise ValueError(f"{where}expected label ids (whole numbers from 0 on, or -100), got {label!r}")
    return [int(label) for label in labels]


def first_tokens(token_spans: np.ndarray, word_spans: np.ndarray) -> np.ndarray:
    """
    The token at which the prediction of each word is read: the first one that shares a character with the word and
    that no word before it is read at (a token may cover several words).

    Args:
        token_spans (`np.ndarray` of shape `(num_tokens, 2)`): Character offsets of the tokens in reading order. They
            may include the space before, and several tokens may share one character.
        word_spans (`np.ndarray` of shape `(num_words, 2)`): Character offsets of the words, in order. An empty span
            has no token.

    Returns:
        `np.ndarray` of shape `(num_words,)`: Token indices, −1 for a word without one.
    """
    # Offsets grow from token to token, save for odd normalizers: without that a binary search would go astray.
    starts = np.minimum.accumulate(token_spans[::-1, 0])[::-1]
    ends = np.maximum.accumulate(token_spans[:, 1])
    first = np.searchsorted(ends, word_spans[:, 0], side="right")
    last = np.searchsorted(starts, word_spans[:, 1], side="left") - 1
    found = (first <= last) & (word_spans[:, 0] < word_spans[:, 1])
    chosen = np.where(found, first, -1)
    read_at = chosen[found]
    if (np.diff(read_at) <= 0).any():  # some words share a token
        taken = -1
        for word in np.flatnonzero(found):
            token = max(first[word], taken + 1)
            if token <= last[word]:
                chosen[word] = taken = token
            else:
                chosen[word] = -1
    return chosen


def assign_windows(positions: np.ndarray, windows: Sequence[Span]) -> np.ndarray:
    """
    The window in which each word is read: of those that hold its token the one where it has most text on both sides, the
    first of several.

    Args:
        positions (`np.ndarray` of shape `(num_words,)`): The tokens of the words, in order.
        windows (`Sequence[tuple[int, int]]`): The first token of each window and the one behind its last.

    Returns:
        `np.ndarray` of shape `(num_words,)`: The windows, −1 for a word in none.
    """
    owner, most = np.full(len(positions), -1), np.full(len(positions), -1)
    for window, (start, end) in enumerate(windows):
        low, high = np.searchsorted(positions, [start, end])
        inside = positions[low:high]
        context = np.minimum(inside - start, end - 1 - inside)
        better = context > most[low:high]
        most[low:high][better] = context[better]
        owner[low:high][better] = window
    return owner


def words_in_windows(row: TextRow, token_spans: np.ndarray, windows: Sequence[Span]) -> list[np.ndarray]:
    """
    Which word is read at which token: each at its first sub-word, in the window that shows most around it.

    Args:
        row ([`TextRow`]): The text. A word of spaces alone has no token.
        token_spans (`np.ndarray` of shape `(num_tokens, 2)`): Character offsets of its tokens in reading order.
        windows (`Sequence[tuple[int, int]]`): The first token of each window and the one behind its last.

    Returns:
        `list[np.ndarray]`: for each window the words read at its tokens, of shape `(end - start,)`, −1 elsewhere.
    """
    spans = [
        (start, start if word.isspace() else end) for word, (start, end) in zip(row.words, row.spans, strict=True)
    ]
    read_at = first_tokens(token_spans, np.array(spans, dtype=np.int64).reshape(-1, 2))
    words = np.flatnonzero(read_at >= 0)
    positions = read_at[words]
    owner = assign_windows(positions, windows)
    read_in = []
    for window, (start, end) in enumerate(windows):
        read = np.full(end - start, -1)
        low, high = np.searchsorted(positions, [start, end])
        owned = np.flatnonzero(owner[low:high] == window) + low
        read[positions[owned] - start] = words[owned]
        read_in.append(read)
    return read_in


def visible_spans(spans: np.ndarray, text: str) -> np.ndarray:
    """
    Spans without the spaces at their ends: some tokenizers count the space before a word as a part of its token.

    Args:
        spans (`np.ndarray` of shape `(num_tokens, 2)`): Character offsets in the text.
        text (`str`): The text.

    Returns:
        `np.ndarray` of shape `(num_tokens, 2)`: The spans; (−1, −1) where nothing is left.
    """
    visible = np.flatnonzero(~np.char.isspace(np.array([text]).view("<U1"))) if text else np.empty(0, dtype=np.int64)
    first = np.searchsorted(visible, spans[:, 0])
    last = np.searchsorted(visible, spans[:, 1]) - 1
    found = first <= last
    shown = np.full(spans.shape, -1)
    shown[found] = np.stack([visible[first[found]], visible[last[found]] + 1], axis=1)
    return shown


__all__ = [
    "Span",
    "TextRow",
    "VTFusionBatch",
    "assign_windows",
    "first_tokens",
    "read_labels",
    "read_text",
    "valid_unicode",
    "visible_spans",
    "words_in_windows",
]
