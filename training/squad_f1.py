"""Exact match and token F1 of answers as an `evaluate` module: `evaluate.load(path_of_this_file)` needs no network.

`evaluate` copies this file alone and reads its imports line by line, so it imports nothing of ours, and `datasets` and
`evaluate` stand on lines of their own.
"""

import re
import string
from collections import Counter

import datasets
import evaluate

_DESCRIPTION = """
Exact match and F1 as SQuAD 2.0 defines them. Case, punctuation, the articles "a", "an" and "the", and the number of
spaces do not count. F1 compares the words of the predicted and the true answer as bags. Of several true answers the one
that gives the best score counts. Where there is no answer, both are 1 for an empty prediction and 0 for any other.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[str]`): The predicted answer of each question, `""` for none.
    references (`list[list[str]]`): The true answers of each question, an empty list where there is none.

Returns:
    `dict`: `exact_match` and `f1`, means from 0 to 1, and `total`, the number of questions. Where some questions have no
    answer also `HasAns_exact_match`, `HasAns_f1`, `HasAns_total` over those that have one (if any), and
    `NoAns_exact_match`, `NoAns_f1`, `NoAns_total` over the others.

Example:

>>> metric = evaluate.load("squad_f1.py")
>>> metric.compute(predictions=["the red fox", "two"], references=[["Fox"], ["Two!"]])
{'exact_match': 0.5, 'f1': 0.8333333333333333, 'total': 2}
"""

_CITATION = """
@inproceedings{rajpurkar-etal-2018-know,
  title = {Know What You Don't Know: Unanswerable Questions for {SQ}u{AD}},
  author = {Rajpurkar, Pranav and Jia, Robin and Liang, Percy},
  booktitle = {Proceedings of ACL},
  year = {2018}
}
"""

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalized_words(answer: str) -> list[str]:
    """The words of an answer that count."""
    # Articles go last: punctuation inside a word joins its parts ("the-fox" is one word, "thefox").
    return _ARTICLES.sub(" ", answer.lower().translate(_NO_PUNCTUATION)).split()


def score_answer(prediction: str, references: list[str]) -> tuple[float, float]:
    """
    Exact match and F1 of one answer.

    Args:
        prediction (`str`): The predicted answer, `""` for none.
        references (`list[str]`): The true answers, an empty list where there is none.

    Returns:
        `tuple[float, float]`: Exact match (0 or 1) and F1.
    """
    guess = normalized_words(prediction)
    # An answer without a word that counts, such as "the", is no better than none.
    truths = [words for words in map(normalized_words, references) if words] or [[]]
    best = 0.0
    for truth in truths:
        shared = (Counter(guess) & Counter(truth)).total()
        size = len(guess) + len(truth)
        best = max(best, 2 * shared / size if size else 1.0)
    return float(guess in truths), best


class SquadF1(evaluate.Metric):
    """Exact match and token F1 by the definitions of SQuAD 2.0."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": text, "references": datasets.List(text)}),
            reference_urls=["https://rajpurkar.github.io/SQuAD-explorer/"],
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float | int]:
        if not predictions:
            raise ValueError("There is not a single answer to score.")
        scored = [
            (bool(true), score_answer(predicted, true))
            for predicted, true in zip(predictions, references, strict=True)
        ]
        groups = {"": [scores for _, scores in scored]}
        if not all(has_answer for has_answer, _ in scored):
            groups["HasAns_"] = [scores for has_answer, scores in scored if has_answer]
            groups["NoAns_"] = [scores for has_answer, scores in scored if not has_answer]
        results: dict[str, float | int] = {}
        for name, group in groups.items():
            if group:
                results[f"{name}exact_match"] = sum(exact for exact, _ in group) / len(group)
                results[f"{name}f1"] = sum(f1 for _, f1 in group) / len(group)
                results[f"{name}total"] = len(group)
        return results
