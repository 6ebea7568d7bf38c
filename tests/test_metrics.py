import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2

from vtfusion.training.metrics import (
    compute_entity_metrics,
    entity_counts,
    entity_f1_scores,
    entity_report,
    load_entity_f1,
)

TYPES = ("LOC", "MISC", "ORG", "PER")


def entities(tags):
    """Strict IOB2, written on its own: (type, first word, last word) of what begins with B- and goes on with I-."""
    found = set()
    for start, tag in enumerate(tags):
        if tag.startswith("B-"):
            end = start
            while end + 1 < len(tags) and tags[end + 1] == "I-" + tag[2:]:
                end += 1
            found.add((tag[2:], start, end))
    return found


def scores(predictions, references, entity_type=None):
    def keep(tags):
        return {e for e in entities(tags) if entity_type in (None, e[0])}

    pairs = [(keep(p), keep(r)) for p, r in zip(predictions, references, strict=True)]
    hits, predicted, true = (sum(map(len, part)) for part in ([p & r for p, r in pairs], *zip(*pairs, strict=True)))
    precision, recall = hits / predicted if predicted else 0.0, hits / true if true else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "support": true}


def noisy_data(seed, rows=60):
    """Random tags, stray I- among them, and predictions that are right three times in four."""
    rng = random.Random(seed)
    labels = ["O"] * 6 + [f"{prefix}-{t}" for prefix in "BI" for t in TYPES]
    references = [[rng.choice(labels) for _ in range(rng.randint(1, 30))] for _ in range(rows)]
    predictions = [[tag if rng.random() < 0.75 else rng.choice(labels) for tag in tags] for tags in references]
    return predictions, references


@pytest.mark.parametrize("seed", range(3))
def test_same_as_plain_python_and_as_seqeval(seed):
    predictions, references = noisy_data(seed)
    metrics = compute_entity_metrics(predictions, references)

    for key, value in scores(predictions, references).items():
        assert metrics[key] == pytest.approx(value, abs=1e-12)
    for entity_type in TYPES:
        for key, value in scores(predictions, references, entity_type).items():
            assert metrics[f"{entity_type}_{key}"] == pytest.approx(value, abs=1e-12)
    assert metrics["macro_f1"] == pytest.approx(sum(metrics[f"{t}_f1"] for t in TYPES) / len(TYPES))
    pairs = [(p, r) for ps, rs in zip(predictions, references, strict=True) for p, r in zip(ps, rs, strict=True)]
    assert metrics["accuracy"] == pytest.approx(sum(p == r for p, r in pairs) / len(pairs))

    report = classification_report(
        references, predictions, mode="strict", scheme=IOB2, output_dict=True, zero_division=0
    )
    for name, start in (("micro avg", ""), ("macro avg", "macro_"), ("weighted avg", "weighted_")):
        assert metrics[start + "precision"] == pytest.approx(report[name]["precision"])
        assert metrics[start + "recall"] == pytest.approx(report[name]["recall"])
        assert metrics[start + "f1"] == pytest.approx(report[name]["f1-score"])


@pytest.mark.parametrize("seed", range(3))
def test_counts_by_text_add_up_to_the_scores(seed):
    predictions, references = noisy_data(seed)
    counts = entity_counts(predictions, references, TYPES)
    assert counts.shape == (60, 4, 3)
    for row, (guess, true) in enumerate(zip(predictions, references, strict=True)):
        found, wanted = entities(guess), entities(true)
        assert counts[row].sum(axis=0).tolist() == [len(found & wanted), len(found), len(wanted)]
    halves = np.stack([counts.sum(axis=0), counts[:30].sum(axis=0)])
    f1 = entity_f1_scores(halves, TYPES)
    for place, rows in enumerate((60, 30)):
        metrics = compute_entity_metrics(predictions[:rows], references[:rows])
        assert f1["F1"][place] == pytest.approx(metrics["f1"], abs=1e-12)
        assert all(f1[name][place] == pytest.approx(metrics[f"{name}_f1"], abs=1e-12) for name in TYPES)


def test_f1_of_nothing_is_zero():
    assert entity_f1_scores(np.zeros((1, 2, 3)), ["LOC", "PER"]) == {"F1": [0.0], "LOC": [0.0], "PER": [0.0]}


def test_worked_by_hand():
    references = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "O"]]
    # PER is right; the first LOC is called ORG; the second LOC is found, and a PER is made up.
    predictions = [["B-PER", "I-PER", "O", "B-ORG"], ["B-LOC", "B-PER"]]
    metrics = compute_entity_metrics(predictions, references)
    assert (metrics["precision"], metrics["recall"]) == (2 / 4, pytest.approx(2 / 3))
    assert metrics["f1"] == pytest.approx(4 / 7)
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    assert (metrics["PER_precision"], metrics["PER_recall"], metrics["PER_support"]) == (0.5, 1.0, 1)
    assert (metrics["LOC_precision"], metrics["LOC_recall"], metrics["LOC_support"]) == (1.0, 0.5, 2)
    assert (metrics["ORG_f1"], metrics["ORG_support"]) == (0.0, 0)


@pytest.mark.parametrize("name", ["macro", "weighted", "F1", "accuracy"])
def test_a_type_never_takes_the_place_of_a_score_over_all(name):
    predictions, references = [["B-X", "B-PER", "O"]], [["B-X", "B-PER", "B-PER"]]
    plain = compute_entity_metrics(predictions, references)
    named = [[tag.replace("X", name) for tag in tags] for tags in (predictions[0], references[0])]
    metrics = compute_entity_metrics(named[:1], named[1:])
    of_type = f"class_{name}" if name in ("macro", "weighted") else name
    assert metrics == {key.replace("X_", f"{of_type}_"): value for key, value in plain.items()}
    assert (metrics["macro_f1"], metrics[f"{of_type}_f1"]) == (pytest.approx((1 + 2 / 3) / 2), 1)
    assert f"\n{of_type} " in entity_report(metrics)

    counts = entity_counts(named[:1], named[1:], ["PER", name])
    resampled = {key: value[0] for key, value in entity_f1_scores(counts, ["PER", name]).items()}
    assert resampled == pytest.approx({"F1": 4 / 5, "PER": 2 / 3, "class_F1" if name == "F1" else name: 1})


@pytest.mark.parametrize(
    "predicted",
    [["B-PER", "O", "O"], ["B-PER", "B-PER", "O"], ["B-LOC", "I-LOC", "O"], ["B-PER", "I-PER", "I-PER"]],
    ids=["too short", "cut in two", "wrong type", "too long"],
)
def test_only_an_exact_entity_counts(predicted):
    assert compute_entity_metrics([predicted], [["B-PER", "I-PER", "O"]])["f1"] == 0.0


def test_a_stray_inside_tag_is_no_entity():
    assert compute_entity_metrics([["I-PER", "O"]], [["B-PER", "O"]])["f1"] == 0.0


@pytest.mark.filterwarnings("error")
def test_zero_division_is_silent_and_can_be_chosen():
    nothing = [["O", "O"]]
    assert compute_entity_metrics(nothing, nothing)["f1"] == 0.0
    assert compute_entity_metrics(nothing, nothing)["accuracy"] == 1.0
    assert compute_entity_metrics(nothing, nothing, zero_division=1)["f1"] == 1.0
    assert compute_entity_metrics(nothing, [["B-PER", "O"]])["precision"] == 0.0
    assert compute_entity_metrics(nothing, [["B-PER", "O"]], zero_division=1)["precision"] == 1.0
    with pytest.raises(ValueError, match="must be 0 or 1"):
        compute_entity_metrics(nothing, nothing, zero_division=2)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="2 rows of predictions and 1 of references"):
        compute_entity_metrics([["O"], ["O"]], [["O"]])
    with pytest.raises(ValueError, match="Row 1 has 1 predicted tags and 2 true tags"):
        compute_entity_metrics([["O"], ["O"]], [["O"], ["O", "O"]])
    with pytest.raises(ValueError, match="row 0, field `predictions`, position 1: 'S-PER'"):
        compute_entity_metrics([["O", "S-PER"]], [["O", "O"]])
    with pytest.raises(ValueError, match="row 0, field `references`, position 0: 3"):
        compute_entity_metrics([["O"]], [[3]])
    with pytest.raises(ValueError, match="not a single tag"):
        compute_entity_metrics([], [])


def test_evaluate_module_takes_batches_and_keeps_types_apart():
    metric = load_entity_f1()
    metric.add_batch(predictions=[["B-PER"]], references=[["B-PER"]])
    metric.add_batch(predictions=[["O"]], references=[["B-LOC"]])
    results = metric.compute()
    assert results["f1"] == pytest.approx(2 / 3)
    assert results["per_type"]["LOC"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}
    assert load_entity_f1().experiment_id != load_entity_f1().experiment_id


def test_report_is_an_aligned_table():
    predictions, references = [["B-PER", "O"]], [["B-PER", "B-LOC"]]
    expected = textwrap.dedent(
        """\
        entity type   precision  recall      F1  support
        ------------------------------------------------
        LOC                0.00    0.00    0.00        1
        PER              100.00  100.00  100.00        1
        ------------------------------------------------
        micro avg        100.00   50.00   66.67        2
        macro avg         50.00   50.00   50.00        2
        weighted avg      50.00   50.00   50.00        2"""
    )
    assert entity_report(compute_entity_metrics(predictions, references)) == expected
    assert entity_report(load_entity_f1().compute(predictions=predictions, references=references)) == expected
    assert "micro avg" in entity_report(compute_entity_metrics([["O"]], [["O"]]))


@pytest.mark.slow
def test_several_processes_score_at_once_without_a_network(tmp_path):
    # A socket that raises shows more than an offline switch: nothing is even asked for.
    code = textwrap.dedent(
        """
        import socket

        def refuse(*args, **kwargs):
            raise RuntimeError("network used")

        socket.socket.connect = refuse
        socket.getaddrinfo = refuse
        from vtfusion.training.metrics import compute_entity_metrics

        for _ in range(5):
            print(compute_entity_metrics([["B-PER", "O"]] * 50, [["B-PER", "B-LOC"]] * 50)["f1"])
        """
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    for name in ("HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE", "HF_DATASETS_OFFLINE", "HF_MODULES_CACHE"):
        environment.pop(name, None)
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=tmp_path,
        )
        for _ in range(2)
    ]
    for run in runs:
        output, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
        assert [float(line) for line in output.split()] == pytest.approx([2 / 3] * 5)
