"""Answers in a text: questions to windows, predictions back to answers, scores, and the file of predictions."""

import os
import uuid
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict

from ..processing_vtfusion import VTFusionBatch, VTFusionProcessor
from ..words_vtfusion import Span, TextRow
from .arguments import QuestionDataArguments
from .fine_tuning import has_labels, limit_rows, read_records
from .images import RowKeys
from .messages import at
from .question_data import load_question_answering_dataset
from .squad_f1 import SquadF1, score_answer
from .windows import gather_windows, map_to_windows


def load_contexts(data_args: QuestionDataArguments) -> DatasetDict:
    """All splits that the arguments name, cut to `max_train_samples` and `max_eval_samples`."""
    return limit_rows(load_question_answering_dataset(**data_args.source()), data_args)


def encode_contexts(
    dataset: Dataset, processor: VTFusionProcessor, image_keys: Sequence[RowKeys], num_proc: int | None = None
) -> Dataset:
    """
    Tokenizes questions with their contexts into windows that fit the text encoder. The question stands first and whole
    in every window, a part of the context behind it: a causal text encoder has to know what is asked before it reads.

    Args:
        dataset (`datasets.Dataset`): with `question`, `context`, and `answers`, `{"text": […], "answer_start": […]}`
            with empty lists where there is no answer, or `None` in all rows of a split that is to predict.
        processor ([`VTFusionProcessor`]): its `window_length` and `window_stride` decide the windows.
        image_keys (`Sequence[list[str] | None]`): for each row the keys of its images in an [`ImageStore`].
        num_proc (`int`, *optional*): processes to use.

    Returns:
        `datasets.Dataset`: a row per window with `input_ids`, `attention_mask`, `token_type_ids` (where the tokenizer
        gives them), `start_positions` and `end_positions` (see [`answer_positions`]; not in a split that is to predict),
        `token_spans` (the characters of the context that each token stands for, see [`VTFusionBatch`]), `row` (the row it
        is a part of), `length` and `image_keys`.

    Raises:
        ValueError: naming the row and the field, for a question that is empty or fills a window, or an answer that does
            not stand in the context where it should.
    """
    tokenizer = processor.tokenizer
    limit = processor.window_length or tokenizer.model_max_length
    room = limit - tokenizer.num_special_tokens_to_add(pair=True)
    labelled = has_labels(dataset, "answers")

    def encode(batch: dict[str, list]) -> dict[str, list]:
        answers = []
        fields = (batch[name] for name in ("row", "question", "context", "answers"))
        for row, question, context, given in zip(*fields, strict=True):
            for name, text in (("question", question), ("context", context)):
                if not isinstance(text, str):
                    raise ValueError(f"{at(row=row, field=name)}: expected a string, got {text!r}")
            answers.append(read_answers(given, context, row) if labelled else [])
        questions = tokenizer(batch["question"], add_special_tokens=False, verbose=False)["input_ids"]
        for row, tokens in zip(batch["row"], questions, strict=True):
            # Token 0 stands for "no answer" and must be no part of one. Many language models put nothing like [CLS]
            # before a text; it is then the question's first token, and so the question must have one.
            if not tokens:
                raise ValueError(f"{at(row=row, field='question')}: it is empty, or nothing that the tokenizer knows")
            if len(tokens) >= room:
                raise ValueError(
                    f"{at(row=row, field='question')}: its {len(tokens)} tokens leave no room for the context in a window of "
                    f"{limit}; raise `max_length`"
                )
        windows = processor.encode_text(
            batch["context"], text_pair=batch["question"], pair_first=True, return_token_spans=True
        )
        windows.pop("word_positions")
        windows["token_spans"] = [spans.astype(np.int32) for spans in windows["token_spans"]]  # half the disk
        if not labelled:
            return windows
        of_row: list[list[np.ndarray]] = [[] for _ in answers]
        for row, spans in zip(windows["row"], windows["token_spans"], strict=True):
            of_row[row].append(spans)
        positions = [place for parts in map(answer_positions, of_row, answers) for place in parts]
        windows["start_positions"] = [start for start, _ in positions]
        windows["end_positions"] = [end for _, end in positions]
        return windows

    return map_to_windows(dataset, encode, image_keys, num_proc)


def read_answers(answers: Mapping[str, Sequence[Any]] | None, context: str, row: int) -> list[Span]:
    """
    Where the answers to a question stand in its context.

    Args:
        answers (`Mapping`): `{"text": […], "answer_start": […]}`, in characters.
        context (`str`): The context.
        row (`int`): Its place in the data set, for error messages.

    Returns:
        `list[tuple[int, int]]`: start and end (exclusive) of each answer, without spaces around it.

    Raises:
        ValueError: if an answer is blank or not there.
    """
    place = at(row=row, field="answers")
    if answers is None or len(answers["text"]) != len(answers["answer_start"]):
        raise ValueError(
            f'{place}: expected {{"text": […], "answer_start": […]}}, lists of one length, got {answers!r}'
        )
    spans = []
    for text, start in zip(answers["text"], answers["answer_start"], strict=True):
        if not text.strip():
            raise ValueError(f"{place}: {text!r} is blank; where there is no answer both lists are empty")
        found = context[max(start, 0) : max(start, 0) + len(text)]
        if start < 0 or found != text:
            raise ValueError(f"{place}: {text!r} should stand at character {start} of the context, where {found!r} is")
        start += len(text) - len(text.lstrip())
        spans.append((start, start + len(text.strip())))
    return spans


def answer_positions(windows: Sequence[np.ndarray], answers: Sequence[Span]) -> list[Span]:
    """
    The tokens of the answer in each window of a context.

    Args:
        windows (`Sequence[np.ndarray]`): the `token_spans` of its windows, of shape `(num_tokens, 2)`.
        answers (`Sequence[tuple[int, int]]`): start and end (exclusive) of each answer in the context, in characters.

    Returns:
        `list[tuple[int, int]]`: for each window the first and the last token of the first answer of which it holds all;
        (0, 0) where it holds none.
    """
    shown = np.concatenate(windows)
    positions = [(0, 0)] * len(windows)
    for start, end in reversed(answers):  # the first one has the last word
        touching = shown[(shown[:, 1] > start) & (shown[:, 0] < end)]
        for window, spans in enumerate(windows):
            inside = np.flatnonzero((spans[:, 1] > start) & (spans[:, 0] < end))
            # Compared with its tokens, not with its characters: a tokenizer may drop some of these.
            if len(inside) and (
                spans[inside, 0].min() == touching[:, 0].min() and spans[inside, 1].max() == touching[:, 1].max()
            ):
                positions[window] = (int(inside[0]), int(inside[-1]))
    return positions


class QuestionEvaluator:
    """
    Scores windows by the questions they were made from; an [`Evaluator`].

    Args:
        dataset (`datasets.Dataset`): with `id`, `question`, `context` and `answers`.
        windows (`datasets.Dataset`): made from it by [`encode_contexts`], in the order in which they are
            predicted.
        processor ([`VTFusionProcessor`]): puts windows back together.
        n_best (`int`, *optional*, defaults to 20): the most answers in a record.
        max_answer_length (`int`, *optional*, defaults to 30): the most tokens of an answer.
        allow_no_answer (`bool`, *optional*, defaults to `False`): whether there may be no answer.
        null_threshold (`float`, *optional*, defaults to 0.0): by how much "no answer" must be better than the best
            answer, see [`~VTFusionProcessor.post_process_question_answering`].
    """

    metric = "f1"
    field = "predicted_answer"

    def __init__(
        self,
        dataset: Dataset,
        windows: Dataset,
        processor: VTFusionProcessor,
        n_best: int = 20,
        max_answer_length: int = 30,
        allow_no_answer: bool = False,
        null_threshold: float = 0.0,
    ):
        self.processor, self.n_best = processor, n_best
        self.max_answer_length, self.allow_no_answer = max_answer_length, allow_no_answer
        self.null_threshold = null_threshold
        self.ids: list[Any] = list(dataset["id"])
        self.questions: list[str] = list(dataset["question"])
        self.labelled = has_labels(dataset, "answers")
        self.references: list[Any] = [answers["text"] if self.labelled else None for answers in dataset["answers"]]
        # nothing is said about words here
        self.rows = [TextRow(context, [], []) for context in dataset["context"]]
        self.row_of_window: list[int] = list(windows["row"])
        self.token_spans = [np.asarray(spans) for spans in windows["token_spans"]]
        self.later = self._beyond_the_first_window(dataset["answers"]) if self.labelled else []

    @property
    def metrics(self) -> list[str]:
        """Names of the scores."""
        return list(self.score([""] * len(self.questions)))

    def _beyond_the_first_window(self, answers: Sequence[Mapping[str, Sequence[Any]]]) -> list[int]:
        """The questions of which no answer is whole in the first window of their context."""
        first: dict[int, tuple[int, int]] = {}
        for row, spans in zip(self.row_of_window, self.token_spans, strict=True):
            context = spans[spans[:, 0] >= 0]
            if len(context):
                first[row] = min(first.get(row, (len(self.rows[row].text), 0)), (context[0, 0], context[-1, 1]))
        return [
            row
            for row, given in enumerate(answers)
            if given["text"]
            and all(
                start + len(text) > first[row][1]
                for start, text in zip(given["answer_start"], given["text"], strict=True)
            )
        ]

    def gather(
        self, predictions: tuple[np.ndarray, np.ndarray, np.ndarray], image_keys: Sequence[RowKeys] | None = None
    ) -> tuple[SimpleNamespace, VTFusionBatch]:
        """Outputs and batch of the whole split, for the processor's `post_process_…` methods."""
        start_logits, end_logits, gates = (torch.from_numpy(np.asarray(array)) for array in predictions)
        length = start_logits.shape[1]
        batch = gather_windows(self.rows, self.row_of_window, length, image_keys, token_spans=self.token_spans)
        return SimpleNamespace(start_logits=start_logits, end_logits=end_logits, fusion_gate=gates), batch

    def rank(
        self,
        predictions: tuple[np.ndarray, np.ndarray, np.ndarray],
        image_keys: Sequence[RowKeys] | None = None,
        n_best: int | None = None,
    ) -> list[list[dict[str, Any]]]:
        """The best answers to each question, see [`~VTFusionProcessor.post_process_question_answering`]."""
        return self.processor.post_process_question_answering(
            *self.gather(predictions, image_keys),
            n_best=n_best or self.n_best,
            max_answer_length=self.max_answer_length,
            allow_no_answer=self.allow_no_answer,
            null_threshold=self.null_threshold,
        )

    def answers(self, predictions: tuple[np.ndarray, np.ndarray, np.ndarray]) -> list[str]:
        """The best answer to each question, `""` for none."""
        return [ranked[0]["answer"] if ranked else "" for ranked in self.rank(predictions, n_best=1)]

    def score(self, answers: Sequence[str]) -> dict[str, float | int]:
        """
        Exact match and F1 of these answers, see [`compute_answer_metrics`]; where a model without windows would not have
        read far enough for some of them, also `Later_exact_match`, `Later_f1` and `Later_total` over those.
        """
        scores = compute_answer_metrics(answers, self.references)
        if self.later:
            later = compute_answer_metrics(
                [answers[row] for row in self.later], [self.references[row] for row in self.later]
            )
            scores |= {f"Later_{name}": later[name] for name in ("exact_match", "f1", "total")}
        return scores

    def report(self, scores: Mapping[str, float | int]) -> str:
        """The scores as a table: all questions and, where they are of several kinds, each kind."""
        return answer_report(scores)

    def records(
        self, predictions: tuple[np.ndarray, np.ndarray, np.ndarray], image_keys: Sequence[RowKeys]
    ) -> list[dict[str, Any]]:
        """
        For each question its true answers (`None` where they are not known), the predicted one, and the best ones with
        score, characters and gate.

        Args:
            predictions (`tuple[np.ndarray, np.ndarray, np.ndarray]`): start logits, end logits and gates of the windows.
            image_keys (`Sequence[list[str] | None]`): the images of each row, of which the number is told.
        """
        return [
            {
                "row": index,
                "id": self.ids[index],
                "question": self.questions[index],
                "num_images": len(image_keys[index] or []),
                "answers": self.references[index],
                self.field: ranked[0]["answer"] if ranked else "",
                "n_best": ranked,
            }
            for index, ranked in enumerate(self.rank(predictions, image_keys))
        ]


def compute_answer_metrics(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float | int]:
    """
    Exact match and F1 by the definitions of SQuAD 2.0. Needs no network.

    Args:
        predictions (`Sequence[str]`): The predicted answer of each question, `""` for none.
        references (`Sequence[Sequence[str]]`): The true answers of each question, none where there is no answer.

    Returns:
        `dict[str, float | int]`: `exact_match`, `f1`, `total`, and the same with `HasAns_` and `NoAns_` before it where
        some questions have no answer; see [`~training.squad_f1.SquadF1`].

    Raises:
        `ValueError`: The two differ in length, or there is nothing to score.

    Example:

    ```python
    >>> from vtfusion.training.question_answering import compute_answer_metrics

    >>> compute_answer_metrics(["The red fox", ""], [["a red fox", "fox"], []])["exact_match"]
    1.0
    ```
    """
    if len(predictions) != len(references):
        raise ValueError(f"There are {len(predictions)} rows of predictions and {len(references)} of references.")
    # In memory under an id of its own: any number of processes can score at once without waiting for each other.
    metric = SquadF1(keep_in_memory=True, experiment_id=uuid.uuid4().hex)
    return metric.compute(predictions=list(predictions), references=[list(answers) for answers in references])


def answer_report(scores: Mapping[str, float | int], digits: int = 2) -> str:
    """
    The table of scores, in percent.

    Args:
        scores (`Mapping[str, float | int]`): What [`compute_answer_metrics`] or [`QuestionEvaluator.score`] returned.
        digits (`int`, defaults to 2): Digits after the decimal point.

    Returns:
        `str`: Aligned text: a row for all questions; where some have no answer, for those with and without one; where
        some have it beyond the first window of their context, for those.

    Example:

    ```python
    >>> from vtfusion.training.question_answering import answer_report, compute_answer_metrics

    >>> print(answer_report(compute_answer_metrics(["red fox", "fox"], [["fox"], []])))
    questions       exact match      F1   total
    -------------------------------------------
    all                    0.00   33.33       2
    with answer            0.00   66.67       1
    without answer         0.00    0.00       1
    ```
    """
    header = f"{'questions':<14}  {'exact match':>11}  {'F1':>6}  {'total':>6}"
    lines = [header, "-" * len(header)]
    for name, start in (
        ("all", ""),
        ("with answer", "HasAns_"),
        ("without answer", "NoAns_"),
        ("later windows", "Later_"),
    ):
        if f"{start}total" in scores:
            exact, f1 = (f"{100 * scores[start + key]:.{digits}f}" for key in ("exact_match", "f1"))
            lines.append(f"{name:<14}  {exact:>11}  {f1:>6}  {scores[f'{start}total']:>6}")
    return "\n".join(lines)


def read_answer_counts(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """
    Reads the `results.json` and `test_predictions.jsonl` of a run as sums that can be resampled.

    Args:
        folder (`str` or `os.PathLike`): the run's `output_dir`.

    Returns:
        `dict[str, np.ndarray]`: for each image condition of the test an array of shape `(questions, 3)`: 1, exact match
        and F1 of each question.
    """
    records, fields = read_records(folder, QuestionEvaluator.field)
    return {
        condition: np.array([(1.0, *score_answer(record[field], record["answers"])) for record in records])
        for condition, field in fields.items()
    }


def answer_scores(totals: np.ndarray) -> dict[str, np.ndarray]:
    """
    Exact match and F1 from sums of [`read_answer_counts`].

    Args:
        totals (`np.ndarray` of shape `(n, 3)`): The sums.

    Returns:
        `dict[str, np.ndarray]`: `"F1"` and `"exact match"`, of shape `(n,)`.
    """
    return {"F1": totals[:, 2] / totals[:, 0], "exact match": totals[:, 1] / totals[:, 0]}
