"""Strict entity-level F1 as an `evaluate` module: `evaluate.load(path_of_this_file)` works without a network.

`evaluate` copies this file alone and reads its imports line by line, so it imports nothing of ours, and `datasets` and
`evaluate` stand on lines of their own.
"""

import datasets
import evaluate
from seqeval.metrics import accuracy_score
from seqeval.metrics.v1 import classification_report
from seqeval.scheme import IOB2

_DESCRIPTION = """
Precision, recall and F1 over entities. An entity counts as found only if its first word, last word and type are all
right. Tags are read strictly as IOB2: an `I-X` that continues no entity of type X is no entity. `accuracy` is the share
of words with the right tag, `O` included.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[list[str]]`): Predicted IOB2 tags of each text.
    references (`list[list[str]]`): True IOB2 tags of each text, as many.
    zero_division (`int`, defaults to 0): Value (0 or 1) of a ratio whose denominator is zero.

Returns:
    `dict`: `precision`, `recall`, `f1` (micro average over all entities), `macro_precision`, `macro_recall`, `macro_f1`
    (mean over entity types), `weighted_precision`, `weighted_recall`, `weighted_f1` (mean weighted by support),
    `support` (number of true entities), `accuracy`, and `per_type`, which maps each entity type to its `precision`,
    `recall`, `f1` and `support`.

Example:

>>> metric = evaluate.load("entity_f1.py")
>>> results = metric.compute(predictions=[["B-PER", "O"]], references=[["B-PER", "I-PER"]])
>>> results["f1"], results["accuracy"]
(0.0, 0.5)
"""

_CITATION = """
@misc{seqeval,
  title = {{seqeval}: A Python framework for sequence labeling evaluation},
  author = {Hiroki Nakayama},
  year = {2018},
  url = {https://github.com/chakki-works/seqeval}
}
"""


class EntityF1(evaluate.Metric):
    """Strict IOB2 entity scores by `seqeval`."""

    def _info(self) -> evaluate.MetricInfo:
        tags = datasets.List(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": tags, "references": tags}),
            reference_urls=["https://github.com/chakki-works/seqeval"],
        )

    def _compute(self, predictions: list[list[str]], references: list[list[str]], zero_division: int = 0) -> dict:
        if zero_division not in (0, 1):
            raise ValueError(f"`zero_division` must be 0 or 1, got {zero_division!r}.")
        for row, (predicted, true) in enumerate(zip(predictions, references, strict=True)):
            if len(predicted) != len(true):
                raise ValueError(f"Row {row} has {len(predicted)} predicted tags and {len(true)} true tags.")
        if not any(references):
            raise ValueError("There is not a single tag to score.")

        if any(tag != "O" for rows in (predictions, references) for row in rows for tag in row):
            report = classification_report(
                references, predictions, scheme=IOB2, output_dict=True, zero_division=zero_division
            )
        else:  # seqeval divides by the number of entity types
            report = {}
        nothing = {
            "precision": zero_division,
            "recall": zero_division,
            "f1-score": zero_division,
            "support": 0,
        }
        averages = {name: report.pop(f"{name} avg", nothing) for name in ("micro", "macro", "weighted")}

        results: dict = {}
        for name, scores in averages.items():
            start = "" if name == "micro" else f"{name}_"
            for key, seqeval_key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
                results[start + key] = float(scores[seqeval_key])
        results["support"] = int(averages["micro"]["support"])
        results["accuracy"] = float(accuracy_score(references, predictions))
        results["per_type"] = {
            entity_type: {
                "precision": float(scores["precision"]),
                "recall": float(scores["recall"]),
                "f1": float(scores["f1-score"]),
                "support": int(scores["support"]),
            }
            for entity_type, scores in report.items()
        }
        return results
