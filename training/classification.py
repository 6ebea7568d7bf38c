"""Classification of texts: to windows and labels, scores with calibration, and counts for the image ablation."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from ..processing_vtfusion import VTFusionProcessor
from .arguments import ClassificationDataArguments
from .classification_data import MULTI, REGRESSION, SINGLE, labels_that_apply, load_classification_dataset
from .fine_tuning import has_labels, limit_rows, read_records
from .images import RowKeys
from .loading import trained_labels
from .metrics import class_names
from .windows import map_to_windows

_OVERALL = ("accuracy", "macro_f1", "micro_f1", "calibration_error")
_OF_CLASS = ("precision", "recall", "f1")


def load_labelled_texts(
    data_args: ClassificationDataArguments, model_name_or_path: str | None = None, model_revision: str = "main"
) -> tuple[DatasetDict, str, list[str]]:
    """
    All splits that the arguments name, cut to `max_train_samples` and `max_eval_samples`; the problem type; the labels.

    Args:
        data_args ([`ClassificationDataArguments`]): where the data is.
        model_name_or_path (`str`, *optional*): a trained model, whose labels stay where the data has no others.
        model_revision (`str`, *optional*, defaults to `"main"`): its branch, tag or commit.
    """
    dataset, problem_type, names = load_classification_dataset(
        **data_args.source(),
        trained=trained_labels(model_name_or_path, model_revision),
        problem_type=data_args.problem_type,
    )
    return limit_rows(dataset, data_args), problem_type, names


def encode_labelled_texts(
    dataset: Dataset,
    processor: VTFusionProcessor,
    image_keys: Sequence[RowKeys],
    num_proc: int | None = None,
    image_only: bool = False,
) -> Dataset:
    """
    Tokenizes texts into windows that fit the text encoder; each window has the label of its text.

    Args:
        dataset (`datasets.Dataset`): with `text` and `label`, and perhaps `text_pair`.
        processor ([`VTFusionProcessor`]): its `window_length` and `window_stride` decide the windows.
        image_keys (`Sequence[list[str] | None]`): for each row the keys of its images in an [`ImageStore`].
        num_proc (`int`, *optional*): processes to use.
        image_only (`bool`, *optional*, defaults to `False`): whether to put an empty text in the place of each.

    Returns:
        `datasets.Dataset`: a row per window with the tokens, `label` (where the split has labels), `row` (the text it is a
        part of), `length` and `image_keys`.
    """

    labelled = has_labels(dataset, "label")

    def encode(batch: dict[str, list]) -> dict[str, list]:
        texts = [""] * len(batch["label"]) if image_only else batch["text"]
        windows = processor.encode_text(texts, text_pair=None if image_only else batch.get("text_pair"))
        windows.pop("word_positions")
        if labelled:
            windows["label"] = [batch["label"][row] for row in windows["row"]]
        return windows

    return map_to_windows(dataset, encode, image_keys, num_proc)


def mean_by_row(values: np.ndarray, rows: Sequence[int], num_rows: int) -> np.ndarray:
    """Mean `(num_rows, …)` of what was predicted for the windows `(windows, …)` of each row."""
    total = np.zeros((num_rows, *values.shape[1:]))
    np.add.at(total, np.asarray(rows), values)
    return total / np.bincount(rows, minlength=num_rows).reshape(-1, *[1] * (values.ndim - 1))


def to_probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Probabilities of classes from logits of the same shape `(…, classes)`; numbers stay as they are."""
    if problem_type == SINGLE:
        logits = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return logits / logits.sum(axis=-1, keepdims=True)
    return 1 / (1 + np.exp(-np.clip(logits, -500, 500))) if problem_type == MULTI else logits


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> float:
    """
    How far the confidence in the predicted class lies from how often it is right, averaged over bins of equal width
    (Guo et al., 1706.04599).

    Args:
        probabilities (`np.ndarray` of shape `(n, classes)`): predicted.
        labels (`np.ndarray` of shape `(n,)`): true classes.
        num_bins (`int`, *optional*, defaults to 15): number of bins from 0 to 1.

    Returns:
        `float`: from 0 (calibrated) to 1.

    Example:

    ```python
    >>> import numpy as np
    >>> from vtfusion.training.classification import expected_calibration_error

    >>> round(expected_calibration_error(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1])), 2)
    0.4
    ```
    """
    confidence, right = probabilities.max(axis=-1), probabilities.argmax(axis=-1) == labels
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(labels))


def summary_metric(problem_type: str, metric_for_best_model: str | None = None) -> str:
    """
    The score that sums a run up and decides a study: `"r2"` for regression, else `"accuracy"` where that chooses the
    checkpoint, and `"macro_f1"` whatever else does.
    """
    if problem_type == REGRESSION:
        return "r2"
    return "accuracy" if metric_for_best_model == "accuracy" else "macro_f1"


class TextEvaluator:
    """
    Scores windows by the texts they were made from: their predictions are averaged. An [`Evaluator`].

    Args:
        dataset (`datasets.Dataset`): the texts, with `label`.
        windows (`datasets.Dataset`): made from it by [`encode_labelled_texts`], in the order in which they are predicted.
        problem_type (`str`): as in [`VTFusionConfig`].
        label_names (`Sequence[str]`): the classes; none for regression.
        metric (`str`, *optional*): what chooses the checkpoint, see [`summary_metric`].
    """

    field = "predicted"

    def __init__(
        self,
        dataset: Dataset,
        windows: Dataset,
        problem_type: str,
        label_names: Sequence[str],
        metric: str | None = None,
    ):
        self.problem_type, self.label_names = problem_type, list(label_names)
        self.metric = summary_metric(problem_type, metric)
        self.texts: list[str] = list(dataset["text"])
        self.labelled = has_labels(dataset, "label")
        self.labels = np.asarray(list(dataset["label"]))
        self.row_of_window: list[int] = list(windows["row"])

    @property
    def metrics(self) -> list[str]:
        """Names of the scores."""
        return list(self.score([{"scores": [0.0] * max(len(self.label_names), 1)}] * len(self.texts)))

    def probabilities(self, predictions: tuple[np.ndarray, ...]) -> np.ndarray:
        """`(texts, classes)`, or the predicted numbers for regression."""
        logits = np.asarray(predictions[0], dtype=np.float64)
        return mean_by_row(to_probabilities(logits, self.problem_type), self.row_of_window, len(self.texts))

    def answers(self, predictions: tuple[np.ndarray, ...]) -> list[dict[str, Any]]:
        """For each text `"label"` (a name, a list of names or a number) and `"scores"`, an array with one for each class."""
        return [{"label": self._label(values), "scores": values} for values in self.probabilities(predictions)]

    def _label(self, values: np.ndarray) -> Any:
        if self.problem_type == SINGLE:
            return self.label_names[int(values.argmax())]
        if self.problem_type == MULTI:
            return labels_that_apply(self.label_names, values)
        return float(values[0])

    def score(self, answers: Sequence[Mapping[str, Any]]) -> dict[str, float | int]:
        """See [`classification_scores`] and [`regression_scores`]."""
        values = np.array([answer["scores"] for answer in answers])
        if self.problem_type == REGRESSION:
            return regression_scores(values[:, 0], self.labels)
        return classification_scores(values, self.labels, self.label_names)

    def report(self, scores: Mapping[str, float | int]) -> str:
        """The scores by class, then over all."""
        width = max([len("macro avg"), *map(len, self.label_names)])
        lines = []
        if self.label_names:
            lines.append(f"{'class':<{width}}  precision  recall      F1  support")
            for label, name in zip(self.label_names, _score_names(self.label_names), strict=True):
                values = [100 * scores[f"{name}_{key}"] for key in _OF_CLASS]
                cells = f"{values[0]:9.2f}  {values[1]:6.2f}  {values[2]:6.2f}"
                lines.append(f"{label:<{width}}  {cells}  {scores[f'{name}_support']:7d}")
        overall = [name for name in scores if not self.label_names or name in _OVERALL]
        lines.extend(f"{name:<{width}}  {scores[name]:.4f}" for name in overall)
        return "\n".join(lines)

    def records(self, predictions: tuple[np.ndarray, ...], image_keys: Sequence[RowKeys]) -> list[dict[str, Any]]:
        """For each text its words, its true label (`None` where it is not known) and its predicted one."""
        answers = self.answers(predictions)
        return [
            {
                "row": index,
                "text": text,
                "num_images": len(image_keys[index] or []),
                "label": self._true_label(index),
                self.field: answers[index],
            }
            for index, text in enumerate(self.texts)
        ]

    def _true_label(self, index: int) -> Any:
        if not self.labelled:
            return None
        label = self.labels[index]
        if self.problem_type == SINGLE:
            return self.label_names[int(label)]
        if self.problem_type == MULTI:
            return labels_that_apply(self.label_names, label)
        return float(label)


def _score_names(label_names: Sequence[str]) -> list[str]:
    return class_names(label_names, _OVERALL, [f"_{key}" for key in (*_OF_CLASS, "support")])


def classification_scores(
    probabilities: np.ndarray, labels: np.ndarray, label_names: Sequence[str]
) -> dict[str, float | int]:
    """
    Accuracy, macro F1 and calibration, and precision, recall, F1 and support of each class (scikit-learn's), under the
    names `positive_f1` and so on; see [`class_names`] for classes such as "macro".

    Args:
        probabilities (`np.ndarray` of shape `(n, classes)`): predicted.
        labels (`np.ndarray` of shape `(n,)` or `(n, classes)`):
            Classes, or 0 and 1 for each class: then accuracy asks for all classes of a text to be right, there is
            `micro_f1`, and no calibration error.
        label_names (`Sequence[str]`): the classes.
    """
    from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

    several = labels.ndim == 2
    true = labels.astype(int)
    predicted = (probabilities >= 0.5).astype(int) if several else probabilities.argmax(axis=-1)
    classes = list(range(len(label_names)))
    scores: dict[str, float | int] = {
        "accuracy": float(accuracy_score(true, predicted)),
        "macro_f1": float(f1_score(true, predicted, labels=classes, average="macro", zero_division=0)),
    }
    if several:
        scores["micro_f1"] = float(f1_score(true, predicted, labels=classes, average="micro", zero_division=0))
    else:
        scores["calibration_error"] = expected_calibration_error(probabilities, true)
    by_class = precision_recall_fscore_support(true, predicted, labels=classes, zero_division=0)
    for index, name in enumerate(_score_names(label_names)):
        for key, values in zip(_OF_CLASS, by_class[:3], strict=True):
            scores[f"{name}_{key}"] = float(values[index])
        scores[f"{name}_support"] = int(by_class[3][index])
    return scores


def regression_scores(predicted: np.ndarray, true: np.ndarray) -> dict[str, float | int]:
    """The share of the variance that is explained (R squared), mean squared and mean absolute error (scikit-learn's)."""
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    return {
        "r2": float(r2_score(true, predicted)),
        "mse": float(mean_squared_error(true, predicted)),
        "mae": float(mean_absolute_error(true, predicted)),
    }


def read_class_counts(
    folder: str | os.PathLike, problem_type: str, label_names: Sequence[str]
) -> dict[str, np.ndarray]:
    """
    Reads the `test_predictions.jsonl` of a run as counts that can be resampled, for each image condition.

    Args:
        folder (`str` or `os.PathLike`): the run's `output_dir`.
        problem_type (`str`): as in [`VTFusionConfig`].
        label_names (`Sequence[str]`): the classes.

    Returns:
        `dict[str, np.ndarray]`: arrays of shape `(texts, classes + 1, 3)`: right, predicted and true texts of each class,
        and last whether all classes are right, one, and nothing. For regression of shape `(texts, 1, 4)`: one, the
        squared error, the true number and its square.
    """
    records, fields = read_records(folder, TextEvaluator.field)
    true = [record["label"] for record in records]
    counts = {}
    for condition, field in fields.items():
        guesses = [record[field]["label"] for record in records]
        if problem_type == REGRESSION:
            rows = [[1, (guess - number) ** 2, number, number**2] for guess, number in zip(guesses, true, strict=True)]
            counts[condition] = np.array(rows, dtype=float)[:, None]
            continue
        guessed, wanted = (
            np.array([[name in (row if problem_type == MULTI else [row]) for name in label_names] for row in answers])
            for answers in (guesses, true)
        )
        array = np.zeros((len(records), len(label_names) + 1, 3))
        array[:, :-1] = np.stack([guessed & wanted, guessed, wanted], axis=-1)
        array[:, -1, 0] = (guessed == wanted).all(axis=1)
        array[:, -1, 1] = 1
        counts[condition] = array
    return counts


def class_scores(totals: np.ndarray, problem_type: str, label_names: Sequence[str]) -> dict[str, np.ndarray]:
    """
    Scores from sums of [`read_class_counts`], each of shape `(n,)`: accuracy, macro F1 and the F1 of each class, under its
    name (see [`class_names`] for a class "accuracy"); for regression R squared.
    """
    if problem_type == REGRESSION:
        texts, error, total, squares = np.moveaxis(totals[:, 0], -1, 0)
        spread = squares - total**2 / texts
        # a resample may hold one number alone
        return {"r2": 1 - np.divide(error, spread, out=np.ones(error.shape), where=spread > 0)}
    hits, size = totals[:, :-1, 0], totals[:, :-1, 1] + totals[:, :-1, 2]
    f1 = np.divide(2 * hits, size, out=np.zeros(size.shape), where=size > 0)
    by_class = {name: f1[:, index] for index, name in enumerate(class_names(label_names, _OVERALL))}
    return {"accuracy": totals[:, -1, 0] / totals[:, -1, 1], "macro_f1": f1.mean(axis=1), **by_class}
