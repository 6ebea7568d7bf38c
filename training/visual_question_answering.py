"""Visual question answering: questions to windows and scored answers, VQA accuracy, and counts for the ablation."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from ..processing_vtfusion import VTFusionProcessor
from .arguments import AnswerDataArguments
from .classification import mean_by_row, to_probabilities
from .classification_data import MULTI, SINGLE
from .fine_tuning import has_labels, labelled_splits, limit_rows, read_records
from .images import RowKeys
from .loading import trained_labels
from .question_data import load_visual_question_answering_dataset
from .windows import map_to_windows


def load_questions(
    data_args: AnswerDataArguments, model_name_or_path: str | None = None, model_revision: str = "main"
) -> tuple[DatasetDict, list[str], str]:
    """
    All splits that the arguments name, cut to `max_train_samples` and `max_eval_samples`; the answers to choose from;
    and how they are learned: with cross-entropy where every question has one answer, else with soft scores.

    Args:
        data_args ([`AnswerDataArguments`]): where the data is.
        model_name_or_path (`str`, *optional*): a trained model, whose answers stay those to choose from where the training
            split has no others.
        model_revision (`str`, *optional*, defaults to `"main"`): its branch, tag or commit.
    """
    trained = trained_labels(model_name_or_path, model_revision)
    dataset, names = load_visual_question_answering_dataset(
        **data_args.source(), trained=trained, max_answers=data_args.max_answers
    )
    problem_type = trained.problem_type if trained is not None and "train" not in dataset else None
    if problem_type is None:
        some = labelled_splits(dataset, "answers")[:1]
        single = all(answer["score"] == [1.0] for split in some for answer in dataset[split]["answers"])
        problem_type = SINGLE if single else MULTI
    return limit_rows(dataset, data_args), names, problem_type


def encode_questions(
    dataset: Dataset,
    processor: VTFusionProcessor,
    image_keys: Sequence[RowKeys],
    answer_names: Sequence[str],
    problem_type: str,
    num_proc: int | None = None,
) -> Dataset:
    """
    Tokenizes questions into windows that fit the text encoder.

    Args:
        dataset (`datasets.Dataset`): with `question` and `answers`.
        processor ([`VTFusionProcessor`]): its `window_length` and `window_stride` decide the windows.
        image_keys (`Sequence[list[str] | None]`): for each row the keys of its images in an [`ImageStore`].
        answer_names (`Sequence[str]`): the answers to choose from.
        problem_type (`str`): whether a question has one answer or several with scores.
        num_proc (`int`, *optional*): processes to use.

    Returns:
        `datasets.Dataset`: a row per window with the tokens, `label` (the place of the answer, -100 for one that cannot
        be chosen) or `label_scores` (the same with scores), neither where the split has no answers, `row`, `length` and
        `image_keys`.
    """
    labelled = has_labels(dataset, "answers")
    place = {name: index for index, name in enumerate(answer_names)}

    def encode(batch: dict[str, list]) -> dict[str, list]:
        windows = processor.encode_text(batch["question"])
        windows.pop("word_positions")
        if not labelled:
            return windows
        answers = [batch["answers"][row] for row in windows["row"]]
        if problem_type == SINGLE:
            # people may have given no answer at all
            windows["label"] = [place.get(answer["text"][0], -100) if answer["text"] else -100 for answer in answers]
        else:
            windows["label_scores"] = [
                [
                    {"label": place[text], "score": score}
                    for text, score in zip(answer["text"], answer["score"], strict=True)
                    if text in place
                ]
                for answer in answers
            ]
        return windows

    return map_to_windows(dataset, encode, image_keys, num_proc)


class AnswerEvaluator:
    """
    VQA accuracy: the score that the predicted answer has among those that people gave; an [`Evaluator`].

    Args:
        dataset (`datasets.Dataset`): with `question` and `answers`.
        windows (`datasets.Dataset`): made from it by [`encode_questions`], in the order in which they are predicted.
        answer_names (`Sequence[str]`): the answers to choose from.
        problem_type (`str`): whether a question has one answer or several with scores.
    """

    metric = "accuracy"
    field = "predicted_answer"

    def __init__(self, dataset: Dataset, windows: Dataset, answer_names: Sequence[str], problem_type: str):
        self.answer_names, self.problem_type = list(answer_names), problem_type
        self.questions: list[str] = list(dataset["question"])
        self.labelled = has_labels(dataset, "answers")
        self.true: list[Any] = [
            dict(zip(row["text"], row["score"], strict=True)) if self.labelled else None for row in dataset["answers"]
        ]
        self.row_of_window: list[int] = list(windows["row"])

    @property
    def metrics(self) -> list[str]:
        """Names of the scores."""
        return list(self.score([""] * len(self.questions)))

    def answers(self, predictions: tuple[np.ndarray, ...]) -> list[str]:
        """The answer to each question."""
        probabilities = to_probabilities(np.asarray(predictions[0], dtype=np.float64), self.problem_type)
        mean = mean_by_row(probabilities, self.row_of_window, len(self.questions))
        return [self.answer_names[index] for index in mean.argmax(axis=-1)]

    def score(self, answers: Sequence[str]) -> dict[str, float | int]:
        """`accuracy`, the number of questions, and the share of them whose answer can be chosen at all."""
        known = set(self.answer_names)
        return {
            "accuracy": float(
                np.mean([true.get(answer, 0.0) for answer, true in zip(answers, self.true, strict=True)])
            ),
            "answerable": float(np.mean([bool(known & true.keys()) for true in self.true])),
            "support": len(self.true),
        }

    def report(self, scores: Mapping[str, float | int]) -> str:
        """The scores in words."""
        return (
            f"accuracy {100 * scores['accuracy']:.2f} on {scores['support']:,} questions; "
            f"{100 * scores['answerable']:.2f} % of them have an answer among the {len(self.answer_names):,} to choose from"
        )

    def records(self, predictions: tuple[np.ndarray, ...], image_keys: Sequence[RowKeys]) -> list[dict[str, Any]]:
        """For each question its true answers (`None` where they are not known) and its predicted one."""
        return [
            {
                "row": index,
                "question": self.questions[index],
                "num_images": len(image_keys[index] or []),
                "answers": self.true[index],
                self.field: answer,
            }
            for index, answer in enumerate(self.answers(predictions))
        ]


def read_accuracy_counts(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """
    Reads the `test_predictions.jsonl` of a run as counts that can be resampled: for each image condition an array of
    shape `(questions, 2)` with the score of each answer, and one.

    Args:
        folder (`str` or `os.PathLike`): the run's `output_dir`.
    """
    records, fields = read_records(folder, AnswerEvaluator.field)
    return {
        condition: np.array([[record["answers"].get(record[field], 0.0), 1.0] for record in records])
        for condition, field in fields.items()
    }


def accuracy_scores(totals: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy `(n,)` from sums `(n, 2)` of [`read_accuracy_counts`]."""
    return {"accuracy": totals[:, 0] / totals[:, 1]}
