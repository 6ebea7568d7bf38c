"""The way back: from what a model says about tokens to labels of words, entities, classes, answers and heat maps."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from .images_vtfusion import paint, strongest_region, to_pixels
from .words_vtfusion import Span, TextRow, VTFusionBatch

# ------------------------------------------------------- labels ------------------------------------------------------


def check_decoding(decoding: str) -> None:
    """`"argmax"` or `"viterbi"`; a `ValueError` for anything else."""
    if decoding not in ("argmax", "viterbi"):
        raise ValueError(f"`decoding` must be 'argmax' or 'viterbi', got {decoding!r}")


def _split_label(label: str) -> tuple[str, str]:
    """`"B-PER"` → `("B", "PER")`, `"O"` → `("O", "")`, and a label without a prefix → `("", label)`."""
    if label == "O":
        return "O", ""
    prefix, dash, kind = label.partition("-")
    return (prefix, kind) if dash and prefix in ("B", "I") else ("", label)


def entity_spans(labels: Sequence[str]) -> list[tuple[str, int, int]]:
    """
    (kind, first word, last word) by the rules of conlleval: an `I-X` after `O` or another kind starts an entity, and a
    label without a prefix goes on with its own kind.
    """
    entities: list[tuple[str, int, int]] = []
    previous = ""
    for index, label in enumerate(labels):
        prefix, kind = _split_label(label)
        if prefix not in ("B", "O") and kind == previous:
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

    Example:

    ```python
    >>> import numpy as np
    >>> from vtfusion.postprocessing_vtfusion import viterbi

    >>> probs = np.array([[0.5, 0.4, 0.1], [0.3, 0.1, 0.6]])  # the best of each word: O, I-PER
    >>> viterbi(np.log(probs), ["O", "B-PER", "I-PER"]).tolist()
    [1, 2]
    ```
    """
    parts = [_split_label(label) for label in labels]
    inside = np.array([prefix == "I" for prefix, _ in parts])
    allowed = np.array([[now[0] != "I" or before in (("B", now[1]), now) for now in parts] for before in parts])
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


def _find_answers(
    batch: VTFusionBatch, start_scores: np.ndarray, end_scores: np.ndarray, n_best: int, max_answer_length: int
) -> tuple[list[dict[Span, tuple[float, int, int, int]]], np.ndarray]:
    """
    For each text its answers by their characters, each with the score, window, first and last token of its best place;
    and the lowest score of no answer.
    """
    found: list[dict[Span, tuple[float, int, int, int]]] = [{} for _ in batch.rows]
    no_answer = np.full(len(batch.rows), np.inf)
    for window, (row, place) in enumerate(zip(batch.row_of_window, _first_places(batch), strict=True)):
        starts, ends, spans = start_scores[window], end_scores[window], batch.token_spans[window].copy()
        no_answer[row] = min(no_answer[row], starts[place] + ends[place])
        spans[place] = -1
        for score, (first, last) in zip(*best_spans(starts, ends, spans, n_best, max_answer_length), strict=True):
            characters = (int(spans[first, 0]), int(spans[last, 1]))
            if characters not in found[row] or score > found[row][characters][0]:
                found[row][characters] = (score, window, first, last)
    return found, no_answer


# ------------------------------------------------------ images ------------------------------------------------------


def _heatmaps(
    row: TextRow, weights: np.ndarray, boxes: np.ndarray, size: tuple[int, int] | None
) -> Iterator[tuple[int, torch.Tensor]]:
    """For each image of a text that is there its index and a map (height, width) of weights (num_images, n)."""
    for image, (original, view) in enumerate(zip(row.image_sizes, row.image_views, strict=True)):
        if original is None or view is None:
            continue
        height, width = size or (original[1], original[0])
        scale = np.array([width / original[0], height / original[1]] * 2)
        heat = paint(to_pixels(boxes[image], view) * scale, weights[image], height, width)
        yield image, torch.from_numpy(heat).float()


def _image_region(weights: np.ndarray, boxes: np.ndarray, row: TextRow) -> dict[str, Any] | None:
    """Where most of the weights (num_images, n) lie, in the image that has most of them."""
    real = [image for image, size in enumerate(row.image_sizes) if size is not None]
    if not real:  # precomputed features: nobody said how large the image was
        return None
    image = max(real, key=lambda index: weights[index].sum())
    original, view = row.image_sizes[image], row.image_views[image]
    if original is None or view is None or not weights[image].sum() > 0:
        return None
    box, score = strongest_region(boxes[image], weights[image])
    pixels = to_pixels(box, view).clip(0, [*original, *original])
    return {"image": image, "box": tuple(float(edge) for edge in pixels), "score": score}


# ------------------------------------------------------- batch -------------------------------------------------------


def _first_windows(batch: VTFusionBatch) -> np.ndarray:
    """The index of a window of each text, whatever the order of the windows."""
    return np.unique(batch.row_of_window, return_index=True)[1]


def _first_places(batch: VTFusionBatch) -> list[int]:
    """Where each window begins: behind its padding, where that is on the left."""
    if "attention_mask" not in batch:
        return [0] * len(batch.row_of_window)
    mask = torch.as_tensor(batch["attention_mask"]).cpu()
    return mask.reshape(len(batch.row_of_window), -1).int().argmax(dim=1).tolist()


def _rows_with_image(batch: VTFusionBatch) -> np.ndarray:
    """Which texts have an image, `bool` of shape `(num_texts,)`."""
    if "image_mask" not in batch:
        return np.full(len(batch.rows), "visual_embeds" in batch)
    first_window = _first_windows(batch)
    mask = torch.as_tensor(batch["image_mask"]).cpu().bool()
    return mask.any(dim=1).numpy()[first_window]


# ----------------------------------------------------- processor ----------------------------------------------------


class VTFusionPostProcessingMixin:
    """
    The half of [`VTFusionProcessor`] that reads a model's outputs. Of the processor it needs `decoding` alone: what
    stands where is in the batch that the model was called with.
    """

    decoding: str

    def merge_windows(
        self, values: torch.Tensor, batch: VTFusionBatch
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """
        Bring what a model says about tokens back to words: each word is read once, at its first sub-word in the
        window that shows most of its surroundings.

        Args:
            values (`torch.Tensor` of shape `(batch_size, sequence_length)` or `(batch_size, sequence_length, *)`):
                Logits, gates, or anything else per token.
            batch ([`VTFusionBatch`]): What the model was called with.

        Returns:
            `tuple(list[torch.Tensor], list[torch.Tensor])`: for each text the values of its words, `float` of shape
            `(num_words, *)`, and which words have one, `bool` of shape `(num_words,)`. A word has none where the
            tokenizer gave it no token of its own; its values are NaN.
        """
        if tuple(values.shape[:2]) != batch.word_positions.shape:
            raise ValueError(
                f"the outputs have shape {tuple(values.shape)}, the batch has `word_positions` of shape "
                f"{batch.word_positions.shape}: they do not belong together"
            )
        counts = [len(row.words) for row in batch.rows]
        first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        windows, tokens = np.nonzero(batch.word_positions >= 0)
        row_of_window = np.asarray(batch.row_of_window, dtype=np.int64)
        words = torch.from_numpy(first[row_of_window[windows]] + batch.word_positions[windows, tokens])
        values = values.detach().float().cpu()
        merged = values.new_full((int(first[-1]), *values.shape[2:]), float("nan"))
        found = torch.zeros(int(first[-1]), dtype=torch.bool)
        merged[words] = values[torch.from_numpy(windows), torch.from_numpy(tokens)]
        found[words] = True
        return list(merged.split(counts)), list(found.split(counts))

    def predict_word_labels(
        self, outputs: Any, batch: VTFusionBatch, id2label: Mapping[Any, str], decoding: str | None = None
    ) -> list[list[str]]:
        """
        Exactly one label for every word of every text. A word that the model did not see as a token gets `"O"`.

        Args:
            outputs (`TokenClassifierOutput`): With `logits` of shape `(batch_size, sequence_length, num_labels)`.
            batch ([`VTFusionBatch`]): What the model was called with.
            id2label (`dict[int, str]`): The names of the labels, as in the model's config.
            decoding (`str`, *optional*):
                `"argmax"` takes the best label of each word, `"viterbi"` the best sequence in which `I-X` follows
                `B-X` or `I-X` only. Defaults to the processor's own `decoding`, which is saved with it.

        Returns:
            `list[list[str]]`: The labels.

        Raises:
            ValueError: if `id2label` does not name the labels of the logits, these are not of the batch, or `decoding`
                is none of the two.
        """
        return [labels for labels, _ in self._predict(outputs, batch, id2label, decoding)]

    def _predict(
        self, outputs: Any, batch: VTFusionBatch, id2label: Mapping[Any, str], decoding: str | None
    ) -> list[tuple[list[str], np.ndarray]]:
        """For each text the labels of its words and their probabilities, NaN for a word without a token."""
        decoding = self.decoding if decoding is None else decoding
        check_decoding(decoding)
        names = {int(index): label for index, label in id2label.items()}
        num_labels = outputs.logits.shape[-1]
        if set(names) != set(range(num_labels)):
            raise ValueError(f"`id2label` must name the labels 0…{num_labels - 1} of the logits, got {sorted(names)}")
        label_names = [names[index] for index in range(num_labels)]
        predictions = []
        for logits, found in zip(*self.merge_windows(outputs.logits, batch), strict=True):
            log_probs, seen = logits.double().log_softmax(-1).numpy(), found.numpy()
            chosen = np.where(seen, np.nan_to_num(log_probs, nan=-np.inf).argmax(-1), 0)
            if decoding == "viterbi":
                # A word without a token is "O", so nothing continues across it.
                for run in np.split(np.arange(len(seen)), np.flatnonzero(np.diff(seen)) + 1):
                    if len(run) and seen[run[0]]:
                        chosen[run] = viterbi(log_probs[run], label_names)
            labels = [label_names[label] if is_seen else "O" for label, is_seen in zip(chosen, seen, strict=True)]
            predictions.append((labels, np.exp(log_probs[np.arange(len(chosen)), chosen])))
        return predictions

    def post_process_words(
        self, outputs: Any, batch: VTFusionBatch, id2label: Mapping[Any, str], decoding: str | None = None
    ) -> list[list[dict[str, Any]]]:
        """
        Every word of every text with its label; the arguments are those of
        [`~VTFusionProcessor.post_process_token_classification`].

        Returns:
            `list[list[dict]]`: for each text its words, with `entity`, the label; `score`, its probability; `index`,
            the word's place; `word`; `start` and `end`, where it stands in `batch.rows[i].text`; and `gate`, how much
            it used the image (0 without an image, `None` if the model does not say). A word that the model did not see
            as a token is `"O"` with a score and a gate of 0.
        """
        predictions = self._predict(outputs, batch, id2label, decoding)
        results = []
        for row, (labels, probs), gate in zip(batch.rows, predictions, self._gates(outputs, batch), strict=True):
            gates: list[float | None] = [None] * len(labels) if gate is None else gate.nan_to_num().tolist()
            places = zip(row.words, row.spans, strict=True)
            results.append(
                [
                    {"entity": label, "score": float(prob), "index": index, "word": word, "start": start, "end": end}
                    | {"gate": of_word}
                    for index, (label, prob, (word, (start, end)), of_word) in enumerate(
                        zip(labels, np.nan_to_num(probs), places, gates, strict=True)
                    )
                ]
            )
        return results

    def _gates(self, outputs: Any, batch: VTFusionBatch) -> list[torch.Tensor] | list[None]:
        """For each text the gates of its words, 0 without an image; `None` where the model does not say."""
        if getattr(outputs, "fusion_gate", None) is None:
            return [None] * len(batch.rows)
        gates, _ = self.merge_windows(outputs.fusion_gate, batch)
        return [
            gate if has_image else torch.zeros_like(gate)
            for gate, has_image in zip(gates, _rows_with_image(batch), strict=True)
        ]

    def post_process_token_classification(
        self, outputs: Any, batch: VTFusionBatch, id2label: Mapping[Any, str], decoding: str | None = None
    ) -> list[list[dict[str, Any]]]:
        """
        The entities of each text.

        Args:
            outputs (`TokenClassifierOutput`):
                With `logits` of shape `(batch_size, sequence_length, num_labels)` and, optionally, `fusion_gate` of
                shape `(batch_size, sequence_length)`, `text_to_image_attention` of shape
                `(batch_size, num_heads, sequence_length, num_positions)` and `visual_boxes` of shape
                `(batch_size, num_positions, 4)`.
            batch ([`VTFusionBatch`]): What the model was called with.
            id2label (`dict[int, str]`): The names of the labels (`O`, `B-X`, `I-X`), as in the model's config.
            decoding (`str`, *optional*): `"argmax"` or `"viterbi"`, by default the processor's own, see
                [`~VTFusionProcessor.predict_word_labels`].

        Returns:
            `list[list[dict]]`: for each text its entities, with `entity_group`; `score`, the mean probability of its
            words' labels; `words`, its first and last word; `start` and `end`, where it stands in
            `batch.rows[i].text`; `text`; `gate`, how much its words used the image on average (0 without an image,
            `None` if the model does not say); and `image_region`, where they looked: the `image`'s index, a `box`
            (x0, y0, x1, y1) in pixels of the original image, and the attention in it as `score`, or `None`. The
            region is the position with the most attention with what adjoins it at half of that or more.
        """
        predictions = self._predict(outputs, batch, id2label, decoding)
        gates = self._gates(outputs, batch)
        looks = self._attention(outputs, batch)
        with_image = _rows_with_image(batch)
        results: list[list[dict[str, Any]]] = []
        for index, (row, (labels, probs)) in enumerate(zip(batch.rows, predictions, strict=True)):
            has_image = bool(with_image[index])
            results.append([])
            for kind, first, last in entity_spans(labels):
                start, end = row.spans[first][0], row.spans[last][1]
                gate = gates[index]
                region = None
                if looks is not None and has_image:
                    attention, boxes = looks[index]
                    region = _image_region(attention[first : last + 1].mean(0), boxes, row)
                results[-1].append(
                    {
                        "entity_group": kind,
                        "score": float(probs[first : last + 1].mean()),
                        "words": (first, last),
                        "start": start,
                        "end": end,
                        "text": row.text[start:end],
                        "gate": None if gate is None else float(gate[first : last + 1].mean()),
                        "image_region": region,
                    }
                )
        return results

    def post_process_sequence_classification(
        self, outputs: Any, batch: VTFusionBatch, id2label: Mapping[Any, str], function_to_apply: str = "softmax"
    ) -> list[list[dict[str, Any]]]:
        """
        What is said about each text as a whole: the mean over its windows.

        Args:
            outputs (`VTFusionClassifierOutput`):
                With `logits` of shape `(batch_size, num_labels)` and, optionally, `fusion_gate` of shape
                `(batch_size, sequence_length)`.
            batch ([`VTFusionBatch`]): What the model was called with.
            id2label (`dict[int, str]`): The names of the labels, as in the model's config.
            function_to_apply (`str`, *optional*, defaults to `"softmax"`):
                What makes scores of a window's logits: `"softmax"` (one label), `"sigmoid"` (several) or `"none"`
                (numbers).

        Returns:
            `list[list[dict]]`: for each text every `label` with its `score`, the highest first, and `gate`, how much
            the words used the image on average (0 without an image, `None` if the model does not say).
        """
        functions: dict[str, Any] = {"softmax": partial(torch.softmax, dim=-1), "sigmoid": torch.sigmoid, "none": None}
        if function_to_apply not in functions:
            raise ValueError(f"`function_to_apply` must be one of {', '.join(functions)}, got {function_to_apply!r}")
        names = {int(index): label for index, label in id2label.items()}
        shape = (len(batch.row_of_window), len(names))
        if tuple(outputs.logits.shape) != shape:
            raise ValueError(
                f"the outputs have `logits` of shape {tuple(outputs.logits.shape)}, for the windows of the batch and "
                f"the labels of `id2label` they must have {shape}"
            )
        scores = outputs.logits.detach().double().cpu()
        if functions[function_to_apply] is not None:
            scores = functions[function_to_apply](scores)
        row_of_window = torch.tensor(batch.row_of_window)
        mean = scores.new_zeros(len(batch.rows), len(names)).index_add(0, row_of_window, scores)
        mean = mean / torch.bincount(row_of_window, minlength=len(batch.rows))[:, None]
        results = []
        for row, gate in zip(mean, self._gates(outputs, batch), strict=True):
            best_first = row.argsort(descending=True, stable=True).tolist()
            of_words = None if gate is None else float(gate.nanmean()) if gate.isfinite().any() else 0.0
            results.append([{"label": names[i], "score": float(row[i]), "gate": of_words} for i in best_first])
        return results

    def post_process_question_answering(
        self,
        outputs: Any,
        batch: VTFusionBatch,
        n_best: int = 20,
        max_answer_length: int = 30,
        allow_no_answer: bool = False,
        null_threshold: float = 0.0,
    ) -> list[list[dict[str, Any]]]:
        """
        The answers to a question about each text, out of all of its windows.

        The first token of a window stands for "no answer", whatever it is, and is never a part of one. With the
        question first (`pair_first=True`, as models are trained) it is `[CLS]` or the like, or, from tokenizers that
        put nothing around a text, the question's first token.

        Args:
            outputs (`VTFusionQuestionAnsweringOutput`):
                With `start_logits` and `end_logits` and, optionally, `fusion_gate`, all of shape
                `(batch_size, sequence_length)`.
            batch ([`VTFusionBatch`]):
                What the model was called with, made by `processor(text=contexts, text_pair=questions,
                pair_first=True)`.
            n_best (`int`, *optional*, defaults to 20):
                The most answers of a text. Answers that are the same characters are one.
            max_answer_length (`int`, *optional*, defaults to 30):
                The most tokens of an answer.
            allow_no_answer (`bool`, *optional*, defaults to `False`):
                Whether there may be no answer, which then is one more in the list: `""`, from 0 to 0.
            null_threshold (`float`, *optional*, defaults to 0.0):
                No answer comes first if its score is higher than that of the best answer by more than this (in logits).

        Returns:
            `list[list[dict]]`: for each text its answers, best first: the `answer`; its `score`, a probability among
            those listed; `start` and `end`, where it stands in `batch.rows[i].text`; and `gate`, how much its tokens
            used the image on average (0 without an image, `None` if the model does not say, and for no answer). The
            score of no answer is the lowest of all windows, since most windows of a long text do not hold the answer;
            its difference to another answer's is that of the logarithms of their probabilities. Without
            `allow_no_answer` the list is empty for a text that has no tokens.
        """
        for name, number in (("n_best", n_best), ("max_answer_length", max_answer_length)):
            if number < 1:
                raise ValueError(f"`{name}` must be positive, got {number}")
        if null_threshold != 0 and not allow_no_answer:
            raise ValueError("`null_threshold` needs `allow_no_answer=True`")
        shape = batch.token_spans.shape[:2]
        for name in ("start_logits", "end_logits"):
            found_shape = tuple(getattr(outputs, name).shape)
            if found_shape != shape:
                raise ValueError(
                    f"`{name}` has shape {found_shape}, the batch has `token_spans` of shape {(*shape, 2)}: they do not "
                    "belong together"
                )
        start_scores, end_scores = (
            logits.detach().float().cpu().double().numpy() for logits in (outputs.start_logits, outputs.end_logits)
        )
        found, no_answer = _find_answers(batch, start_scores, end_scores, n_best, max_answer_length)
        gates = getattr(outputs, "fusion_gate", None)
        if gates is not None:
            with_image = _rows_with_image(batch)[batch.row_of_window]
            gates = np.where(with_image[:, None], gates.detach().float().cpu().numpy(), 0.0)
        results = []
        for index, row in enumerate(batch.rows):
            ranked = sorted(found[index].items(), key=lambda item: (-item[1][0], item[0]))[:n_best]
            scores = np.array([score for _, (score, *_) in ranked] + [no_answer[index]] * allow_no_answer)
            probs = np.exp(scores - scores.max(initial=-np.inf))
            probs = (probs / probs.sum()).tolist()
            answers: list[dict[str, Any]] = []
            for ((start, end), (_, window, first, last)), prob in zip(ranked, probs, strict=False):
                gate = None if gates is None else float(gates[window, first : last + 1].mean())
                answers.append(
                    {"answer": row.text[start:end], "score": prob, "start": start, "end": end, "gate": gate}
                )
            if allow_no_answer:
                rank = 0
                if ranked and no_answer[index] - scores[0] <= null_threshold:
                    rank = max(1, int((scores[:-1] >= no_answer[index]).sum()))
                answers.insert(rank, {"answer": "", "score": probs[-1], "start": 0, "end": 0, "gate": None})
            results.append(answers)
        return results

    def post_process_grounding(
        self,
        outputs: Any,
        batch: VTFusionBatch,
        spans: Sequence[Sequence[Span]] | None = None,
        size: tuple[int, int] | None = None,
    ) -> list[list[dict[str, Any]]]:
        """
        Where in the images each word or entity looked.

        Args:
            outputs (`ModelOutput`): With `text_to_image_attention` and `visual_boxes`, see
                [`~VTFusionProcessor.post_process_token_classification`].
            batch ([`VTFusionBatch`]): What the model was called with.
            spans (`list[list[tuple[int, int]]]`, *optional*):
                For each text the (first, last) words that belong together. Defaults to every word by itself.
            size (`tuple[int, int]`, *optional*):
                (height, width) of the heat maps. Defaults to the size of each original image.

        Returns:
            `list[list[dict]]`: for each text, span and image the `words`, the index of the `image` and a `heatmap`,
            `torch.FloatTensor` of shape `(height, width)`: attention per pixel, averaged over heads and words. It
            adds up to the attention on the image (all images together have 1); what is cropped off has none.

        Raises:
            ValueError: if the model was called without `output_fusion_attentions=True`, or `spans` are not of the
                texts.
        """
        if spans is not None and len(spans) != len(batch.rows):
            raise ValueError(f"`spans` has {len(spans)} rows for {len(batch.rows)} texts")
        if "image_mask" not in batch:
            return [[] for _ in batch.rows]
        looks = self._attention(outputs, batch)
        if looks is None:
            raise ValueError(
                "the outputs hold no `text_to_image_attention` and `visual_boxes`: call the model with "
                "`output_fusion_attentions=True`"
            )
        results: list[list[dict[str, Any]]] = []
        for index, (row, (attention, boxes)) in enumerate(zip(batch.rows, looks, strict=True)):
            results.append([])
            for first, last in spans[index] if spans is not None else [(word, word) for word in range(len(row.words))]:
                if not 0 <= first <= last < len(row.words):
                    raise ValueError(f"row {index}, field `spans`: ({first}, {last}) is not in 0…{len(row.words) - 1}")
                seen = attention[first : last + 1]
                seen = seen[~np.isnan(seen).any((1, 2))]
                weights = seen.mean(0) if len(seen) else np.zeros(attention.shape[1:])
                results[-1] += [
                    {"words": (first, last), "image": image, "heatmap": heatmap}
                    for image, heatmap in _heatmaps(row, weights, boxes, size)
                ]
        return results

    def _attention(self, outputs: Any, batch: VTFusionBatch) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """For each text the attention (num_words, num_images, n) and the boxes (num_images, n, 4), or `None`."""
        attention = getattr(outputs, "text_to_image_attention", None)
        boxes = getattr(outputs, "visual_boxes", None)
        if attention is None or boxes is None or "image_mask" not in batch:
            return None
        num_images = batch["image_mask"].shape[1]
        merged, _ = self.merge_windows(attention.float().mean(1), batch)
        all_boxes = boxes.detach().double().cpu().numpy()
        each = all_boxes.shape[1] // num_images  # not left to `reshape`, which cannot tell for a text without words
        return [
            (values.double().numpy().reshape(len(values), num_images, each), all_boxes[w].reshape(num_images, each, 4))
            for values, w in zip(merged, _first_windows(batch), strict=True)
        ]


__all__ = [
    "VTFusionPostProcessingMixin",
    "best_spans",
    "check_decoding",
    "entity_spans",
    "viterbi",
]
