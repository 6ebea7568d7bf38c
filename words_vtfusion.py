"""Texts as words, sub-words and labels: what stands where, in characters, and what predictions of tokens say about it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tokenizers import pre_tokenizers

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


# ------------------------------------------------------ answers -----------------------------------------------------


def best_spans(
    start_scores: np.ndarray, end_scores: np.ndarray, token_spans: np.ndarray, n_best: int, max_answer_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """
    The best answers in one window: the sum of the scores of their first and last token is highest.

    Args:
        start_scores (`np.ndarray` of shape `(num_tokens,)`): Scores of each token as the first one.
        end_scores (`np.ndarray` of shape `(num_tokens,)`): Scores of each token as the last one.
        token_spans (`np.ndarray` of shape `(num_tokens, 2)`): Their characters; no answer begins or ends at (−1, −1).
        n_best (`int`): The most answers. Two that are the same characters are one.
        max_answer_length (`int`): The most tokens of an answer.

    Returns:
        `tuple(np.ndarray, np.ndarray)`: their scores, best first, of shape `(num_answers,)`, and their first and last
        tokens, of shape `(num_answers, 2)`.
    """
    places = np.flatnonzero(token_spans[:, 0] >= 0)
    low, high = (places[0], places[-1] + 1) if len(places) else (0, 1)
    unusable = token_spans[low:high, 0] < 0
    starts = np.where(unusable, -np.inf, start_scores[low:high])
    longest = min(max_answer_length, high - low)
    ends = np.concatenate([np.where(unusable, -np.inf, end_scores[low:high]), np.full(longest - 1, -np.inf)])
    # A band of the square of all pairs: row i holds the answers of 1, 2, … tokens that begin at token i.
    scores = (starts[:, None] + np.lib.stride_tricks.sliding_window_view(ends, longest)).ravel()
    possible = int((scores > -np.inf).sum())
    if possible == 0:
        return np.empty(0), np.empty((0, 2), dtype=np.int64)
    # Pieces of one character have the same span, so that some of the best pairs may be the same answer.
    taken = n_best
    while True:
        taken = min(taken, possible)
        chosen = np.argpartition(-scores, taken - 1)[:taken]
        chosen = chosen[np.lexsort((chosen, -scores[chosen]))]
        first, length = np.divmod(chosen, longest)
        tokens = np.stack([first, first + length], axis=1) + low
        characters = np.stack([token_spans[tokens[:, 0], 0], token_spans[tokens[:, 1], 1]], axis=1)
        distinct = np.sort(np.unique(characters, axis=0, return_index=True)[1])[:n_best]
        if len(distinct) == n_best or taken == possible:
            return scores[chosen[distinct]], tokens[distinct]
        taken *= 4


# ------------------------------------------------------- labels ------------------------------------------------------


def _split_label(label: str) -> tuple[str, str]:
    """`"B-PER"` → `("B", "PER")`; a label without a prefix continues its own kind, as in conlleval."""
    if label == "O":
        return "O", ""
    prefix, dash, kind = label.partition("-")
    return (prefix, kind) if dash and prefix in ("B", "I") else ("I", label)


def entity_spans(labels: Sequence[str]) -> list[tuple[str, int, int]]:
    """(kind, first word, last word) by the rules of conlleval: an `I-X` after `O` or another kind starts an entity."""
    entities: list[tuple[str, int, int]] = []
    previous = ""
    for index, label in enumerate(labels):
        prefix, kind = _split_label(label)
        if prefix == "I" and kind == previous:
            entities[-1] = (kind, entities[-1][1], index)
        elif prefix != "O":
            entities.append((kind, index, index))
        previous = kind
    return entities


def viterbi(log_probs: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """
    The most probable label sequence in which `I-X` follows `B-X` or `I-X` only.

    Args:
        log_probs (`np.ndarray` of shape `(num_words, num_labels)`): Log-probabilities of each word's labels.
        labels (`Sequence[str]`): The names of the labels.

    Returns:
        `np.ndarray` of shape `(num_words,)`: Label ids.
    """
    inside = np.array([label.startswith("I-") for label in labels])
    allowed = np.array(
        [
            [not is_in or before in (f"B-{now[2:]}", now) for now, is_in in zip(labels, inside, strict=True)]
            for before in labels
        ]
    )
    penalty = np.where(allowed, 0.0, -np.inf)
    score = np.where(inside, -np.inf, log_probs[0])
    back = np.zeros(log_probs.shape, dtype=np.int64)
    for word in range(1, len(log_probs)):
        paths = score[:, None] + penalty
        back[word] = paths.argmax(0)
        score = paths.max(0) + log_probs[word]
    best = np.empty(len(log_probs), dtype=np.int64)
    best[-1] = score.argmax()
    for word in range(len(log_probs) - 1, 0, -1):
        best[word - 1] = back[word, best[word]]
    return best
