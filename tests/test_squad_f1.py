"""The answer metric against examples worked by hand and against a slow second version; and that it needs no network."""

import random
import string
from pathlib import Path

import evaluate
import pytest

from vtfusion.training import squad_f1
from vtfusion.training.question_answering import answer_report, compute_answer_metrics
from vtfusion.training.squad_f1 import normalized_words, score_answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("The  Eiffel\tTower.", ["eiffel", "tower"]),
        ("a", []),
        ("An apple a day", ["apple", "day"]),
        ("theatre anthem", ["theatre", "anthem"]),  # articles are whole words
        ("U.S.A.", ["usa"]),
        ("the-fox", ["thefox"]),  # punctuation goes before articles do
        ("$1,000.50", ["100050"]),
        ("“Zürich”", ["“zürich”"]),  # only ASCII punctuation counts as such
        ("", []),
    ],
)
def test_what_counts_of_an_answer(answer, words):
    assert normalized_words(answer) == words


@pytest.mark.parametrize(
    ("prediction", "references", "exact", "f1"),
    [
        ("Denver Broncos", ["Denver Broncos", "Broncos"], 1, 1),
        ("the Denver Broncos!", ["denver broncos"], 1, 1),
        ("Denver Broncos team", ["Broncos"], 0, 1 / 2),  # P = 1/3, R = 1
        ("in the year 1998", ["1998", "the year 1998"], 0, 4 / 5),  # P = 2/3, R = 1 to the better one
        ("to be or not to be", ["to be to"], 0, 2 * 3 / 9),  # bags: "to" twice
        ("London", ["Paris"], 0, 0),
        ("", ["Paris"], 0, 0),
        ("Paris", [], 0, 0),
        ("", [], 1, 1),
        ("the", [], 1, 1),  # nothing is left of it
        ("", ["the"], 1, 1),  # nor of this one
        ("fox", ["the", "fox"], 1, 1),
        ("", ["the", "fox"], 0, 0),
    ],
)
def test_scores_by_hand(prediction, references, exact, f1):
    assert score_answer(prediction, references) == (exact, pytest.approx(f1))


def slow_score(prediction, references):
    """By precision and recall, and without a counter."""

    def words(text):
        kept = "".join(c for c in text.lower() if c not in string.punctuation)
        return [word for word in kept.split() if word not in ("a", "an", "the")]

    guess, scores = words(prediction), []
    for true in [words(r) for r in references if words(r)] or [[]]:
        left, shared = list(true), 0
        for word in guess:
            if word in left:
                left.remove(word)
                shared += 1
        if not guess or not true:
            f1 = float(guess == true)
        elif shared == 0:
            f1 = 0.0
        else:
            precision, recall = shared / len(guess), shared / len(true)
            f1 = 2 * precision * recall / (precision + recall)
        scores.append((float(guess == true), f1))
    return max(exact for exact, _ in scores), max(f1 for _, f1 in scores)


def test_same_as_a_slow_version():
    rng = random.Random(0)
    vocabulary = ["The", "a", "fox", "Fox!", "dog", "red", "-", "red."]

    def text():
        return " ".join(rng.choices(vocabulary, k=rng.randint(0, 4)))

    for _ in range(500):
        prediction, references = text(), [text() for _ in range(rng.randint(0, 3))]
        assert score_answer(prediction, references) == pytest.approx(slow_score(prediction, references), abs=1e-12)


def test_means_and_both_kinds_of_questions():
    predictions = ["red fox", "Paris", "", "two"]
    references = [["fox"], ["Paris."], [], []]
    assert compute_answer_metrics(predictions, references) == pytest.approx(
        {
            "exact_match": 2 / 4,
            "f1": (2 / 3 + 1 + 1 + 0) / 4,
            "total": 4,
            "HasAns_exact_match": 1 / 2,
            "HasAns_f1": (2 / 3 + 1) / 2,
            "HasAns_total": 2,
            "NoAns_exact_match": 1 / 2,
            "NoAns_f1": 1 / 2,
            "NoAns_total": 2,
        }
    )
    assert set(compute_answer_metrics(["a fox"], [["fox"]])) == {"exact_match", "f1", "total"}
    nothing = compute_answer_metrics(["", "fox"], [[], []])
    assert nothing["NoAns_f1"] == 0.5 and "HasAns_f1" not in nothing


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="2 rows of predictions and 1 of references"):
        compute_answer_metrics(["", ""], [[]])
    with pytest.raises(ValueError, match="not a single answer"):
        compute_answer_metrics([], [])


def test_evaluate_loads_the_file_and_takes_batches(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("network used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    metric = evaluate.load(str(Path(squad_f1.__file__)), keep_in_memory=True)
    metric.add_batch(predictions=["the red fox"], references=[["Fox"]])
    metric.add_batch(predictions=["two"], references=[["Two!", "three"]])
    assert metric.compute() == {"exact_match": 0.5, "f1": pytest.approx(5 / 6), "total": 2}


def test_report_is_an_aligned_table():
    lines = answer_report(compute_answer_metrics(["red fox", "fox"], [["fox"], []])).split("\n")
    assert lines == [
        "questions       exact match      F1   total",
        "-------------------------------------------",
        "all                    0.00   33.33       2",
        "with answer            0.00   66.67       1",
        "without answer         0.00    0.00       1",
    ]
    assert len(answer_report(compute_answer_metrics(["fox"], [["fox"]])).split("\n")) == 3
