"""
Scores for entity recognition: the strict entity F1 metric, in the shapes that `Trainer` and a paper's table want; and
what the scores of a single class are called.
"""

import uuid
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .messages import at
from .tags import split_tag

if TYPE_CHECKING:
    from evaluate import EvaluationModule


_SCORES = ("precision", "recall", "f1")


def class_names(names: Sequence[str], overall: Collection[str], endings: Sequence[str] = ("",)) -> list[str]:
    """
    What the scores of each class are called: by its name, unless that would be the name of a score over all classes; then
    with `class_` before it. A class "macro" does not become the macro average.

    Args:
        names (`Sequence[str]`): The classes, or types of entities.
        overall (`Collection[str]`): The scores over all.
        endings (`Sequence[str]`, *optional*): What follows the name in the scores of a class, such as `"_f1"`.

    Returns:
        `list[str]`: As many names, all different.

    Example:

    ```python
    >>> from vtfusion.training.metrics import class_names

    >>> class_names(["macro", "PER"], {"f1", "macro_f1"}, ["_f1"])
    ['class_macro', 'PER']
    ```
    """
    called = []
    for name in names:
        unique = name
        while any(f"{unique}{ending}" in overall for ending in endings) or (unique != name and unique in names):
            unique = f"class_{unique}"
        called.append(unique)
    return called


def load_entity_f1(**kwargs: Any) -> "EvaluationModule":
    """
    The metric in `entity_f1.py`. Needs no network.

    Args:
        kwargs (`Any`, *optional*):
            Arguments of an `evaluate.EvaluationModule`. By default the inputs are kept in memory under an id of their own, so that any
            number of processes can score at the same time without waiting for each other's lock files.

    Returns:
        `evaluate.EvaluationModule`: With `compute(predictions=…, references=…, zero_division=0)`; see
        [`~training.entity_f1.EntityF1`] for what it returns.
    """
    from .entity_f1 import EntityF1  # `evaluate.load` would tell a server that it is loaded

    if kwargs.get("num_process", 1) == 1:  # several processes exchange their inputs through files under a shared id
        kwargs = {"keep_in_memory": True, "experiment_id": uuid.uuid4().hex, **kwargs}
    return EntityF1(**kwargs)


def _check_tags(name: str, sequences: Sequence[Sequence[str]]) -> None:
    for row, tags in enumerate(sequences):
        for position, tag in enumerate(tags):
            try:
                prefix, _ = split_tag(tag)
            except (TypeError, ValueError):
                prefix = None
            if prefix not in ("O", "B", "I"):
                raise ValueError(f"{at(row=row, field=name)}, position {position}: {tag!r} is not an IOB2 tag.")


def compute_entity_metrics(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], zero_division: int = 0
) -> dict[str, float | int]:
    """
    Strict entity scores with flat keys, as `Trainer` logs them.

    Args:
        predictions (`Sequence[Sequence[str]]`):
            Predicted IOB2 tags of each text. A stray `I-` is no entity here.
        references (`Sequence[Sequence[str]]`):
            True IOB2 tags of each text, as many for each.
        zero_division (`int`, defaults to 0):
            Value of a ratio whose denominator is zero: 0 or 1.

    Returns:
        `dict[str, float | int]`: `f1`, `precision`, `recall` (micro average), `accuracy` (over words), `support`,
        `macro_f1`, `weighted_f1` and so on, and for each entity type `PER_f1`, `PER_precision`, `PER_recall`,
        `PER_support`; see [`class_names`] for types such as "macro".

    Raises:
        `ValueError`: The two differ in length (the row is named), a tag is not IOB2 (row, position and tag are named),
        or there is nothing to score.

    Example:

    ```python
    >>> from vtfusion.training.metrics import compute_entity_metrics

    >>> metrics = compute_entity_metrics([["B-PER", "O", "B-LOC"]], [["B-PER", "O", "B-ORG"]])
    >>> metrics["f1"], metrics["PER_f1"]
    (0.5, 1.0)
    ```
    """
    if len(predictions) != len(references):
        raise ValueError(f"There are {len(predictions)} rows of predictions and {len(references)} of references.")
    _check_tags("predictions", predictions)
    _check_tags("references", references)
    results = load_entity_f1().compute(
        predictions=[list(tags) for tags in predictions],
        references=[list(tags) for tags in references],
        zero_division=zero_division,
    )
    per_type = results.pop("per_type")
    names = class_names(list(per_type), set(results), [f"_{key}" for key in (*_SCORES, "support")])
    for name, scores in zip(names, per_type.values(), strict=True):
        results |= {f"{name}_{key}": value for key, value in scores.items()}
    return results


def entity_report(results: dict[str, Any], digits: int = 2) -> str:
    """
    The table of scores per entity type, in percent.

    Args:
        results (`dict[str, Any]`):
            What `load_entity_f1().compute(…)` or [`compute_entity_metrics`] returned.
        digits (`int`, defaults to 2):
            Digits after the decimal point.

    Returns:
        `str`: Aligned text: a row for each entity type, then the micro, macro and weighted averages.

    Example:

    ```python
    >>> from vtfusion.training.metrics import compute_entity_metrics, entity_report

    >>> print(entity_report(compute_entity_metrics([["B-PER", "O"]], [["B-PER", "B-LOC"]])))
    entity type   precision  recall      F1  support
    ------------------------------------------------
    LOC                0.00    0.00    0.00        1
    PER              100.00  100.00  100.00        1
    ------------------------------------------------
    micro avg        100.00   50.00   66.67        2
    macro avg         50.00   50.00   50.00        2
    weighted avg      50.00   50.00   50.00        2
    ```
    """
    per_type = results.get("per_type")
    if per_type is None:
        # `X_support` exists for entity types only, never for an average.
        types = sorted(key.removesuffix("_support") for key in results if key.endswith("_support"))
        per_type = {name: {key: results[f"{name}_{key}"] for key in (*_SCORES, "support")} for name in types}

    rows = [(name, *(scores[key] for key in _SCORES), scores["support"]) for name, scores in per_type.items()]
    averages = [
        (f"{name} avg", *(results[start + key] for key in _SCORES), results["support"])
        for name, start in (("micro", ""), ("macro", "macro_"), ("weighted", "weighted_"))
    ]
    header = ("entity type", "precision", "recall", "F1", "support")
    body = [(name, *(f"{100 * score:.{digits}f}" for score in scores), str(n)) for name, *scores, n in rows + averages]
    widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]
    lines = []
    for name, *numbers in [header, *body]:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]))
    rule = "-" * len(lines[0])
    cuts = [lines[:1], lines[1 : 1 + len(rows)], lines[1 + len(rows) :]]
    return f"\n{rule}\n".join("\n".join(cut) for cut in cuts if cut)


def entity_counts(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], entity_types: Sequence[str]
) -> np.ndarray:
    """
    What strict entity scores are made of, text by text, so that they can be resampled.

    Args:
        predictions (`Sequence[Sequence[str]]`): Predicted IOB2 tags of each text.
        references (`Sequence[Sequence[str]]`): True IOB2 tags of each text, as many for each.
        entity_types (`Sequence[str]`): The types, such as `["LOC", "PER"]`.

    Returns:
        `np.ndarray` of shape `(texts, types, 3)`: right, predicted and true entities.
    """
    from seqeval.scheme import IOB2, Entities

    index = {name: position for position, name in enumerate(entity_types)}
    counts = np.zeros((len(references), len(entity_types), 3), dtype=np.int64)
    for row, (guess, true) in enumerate(zip(predictions, references, strict=True)):
        found, wanted = (
            {(entity.tag, entity.start, entity.end) for entity in Entities([list(tags)], IOB2).entities[0]}
            for tags in (guess, true)
        )
        for place, entities in enumerate((found & wanted, found, wanted)):
            for tag, _, _ in entities:
                counts[row, index[tag], place] += 1
    return counts


def entity_f1_scores(totals: np.ndarray, entity_types: Sequence[str]) -> dict[str, np.ndarray]:
    """
    F1 over all entities and by type from sums of [`entity_counts`]; 0 where there is nothing to find and nothing found.

    Args:
        totals (`np.ndarray` of shape `(n, types, 3)`): The sums.
        entity_types (`Sequence[str]`): The types.

    Returns:
        `dict[str, np.ndarray]`: `"F1"` and one entry for each type, of shape `(n,)`; see [`class_names`] for a type "F1".
    """

    def f1(counts: np.ndarray) -> np.ndarray:
        right, size = counts[..., 0], counts[..., 1] + counts[..., 2]
        return np.divide(2 * right, size, out=np.zeros(size.shape), where=size > 0)

    by_type = {name: f1(totals[:, index]) for index, name in enumerate(class_names(entity_types, {"F1"}))}
    return {"F1": f1(totals.sum(axis=1)), **by_type}
