"""Scores of classified texts, against scikit-learn and by hand, and the script from files to results."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import BertConfig, HfArgumentParser, TrainingArguments

from running import COLOURS, run_script
from vtfusion import VTFusionConfig, VTFusionForSequenceClassification, VTFusionProcessor
from vtfusion.scripts import run_classification
from vtfusion.training.arguments import ClassificationDataArguments, ModelArguments
from vtfusion.training.classification import (
    TextEvaluator,
    class_scores,
    classification_scores,
    expected_calibration_error,
    load_labelled_texts,
    mean_by_row,
    read_class_counts,
    regression_scores,
)
from vtfusion.training.classification_data import MULTI, REGRESSION, SINGLE
from writing import write_jsonl


def test_windows_of_a_text_are_averaged():
    values = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    assert mean_by_row(values, [1, 0, 1, 1], 2).tolist() == [
        [0.0, 1.0],
        [pytest.approx(2.5 / 3), pytest.approx(0.5 / 3)],
    ]


def test_an_ablation_counts_the_labels_of_the_model_that_it_goes_on_from(tmp_path, monkeypatch):
    """Which may predict one that the data has not."""
    names = ["neutral", "positive", "negative"]
    VTFusionConfig(BertConfig(), visual_hidden_size=8, id2label=dict(enumerate(names))).save_pretrained(tmp_path)
    file = write_jsonl(
        tmp_path / "train.jsonl", [{"text": "a", "label": "negative"}, {"text": "b", "label": "positive"}]
    )
    taken = {}

    def ablate_images(run, dataset, read_counts, scores, *_):
        taken.update(counts=read_counts.keywords["label_names"], scores=scores.keywords["label_names"])

    monkeypatch.setattr("vtfusion.training.ablation.ablate_images", ablate_images)
    monkeypatch.setattr("vtfusion.app.ablation_plot.save_ablation", lambda report, folder: None)
    data_args = ClassificationDataArguments(train_file=str(file))
    run_classification.ablate(ModelArguments(model_name_or_path=str(tmp_path)), data_args, TrainingArguments(), [0])
    assert taken == {"counts": names, "scores": names}


def test_calibration_error_by_hand():
    # two of four right at 0.8: a gap of 0.3; both right at 0.6: a gap of 0.4
    probabilities = np.array([[0.8, 0.2]] * 4 + [[0.4, 0.6]] * 2)
    labels = np.array([0, 0, 1, 1, 1, 1])
    assert expected_calibration_error(probabilities, labels) == pytest.approx((4 * 0.3 + 2 * 0.4) / 6)
    assert expected_calibration_error(np.eye(3), np.arange(3)) == 0


def test_class_scores_by_hand():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1]])
    scores = classification_scores(probabilities, np.array([0, 1, 1]), ["a", "b", "c"])
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["a_precision"] == 0.5 and scores["a_recall"] == 1 and scores["b_precision"] == 1
    # the class that does not occur counts too
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert [scores[f"{name}_support"] for name in "abc"] == [1, 2, 0]


@pytest.mark.parametrize(
    "names, called, resampled_as",
    [
        (["macro", "micro"], ["class_macro", "class_micro"], ["macro", "micro"]),
        (["accuracy", "macro_f1"], ["accuracy", "macro_f1"], ["class_accuracy", "class_macro_f1"]),
        (["macro", "class_macro"], ["class_class_macro", "class_macro"], ["macro", "class_macro"]),
    ],
)
def test_a_class_never_takes_the_place_of_a_score_over_all(names, called, resampled_as, tmp_path):
    probabilities, labels = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]]), np.array([0, 0, 1, 1])
    plain, scores = (classification_scores(probabilities, labels, each) for each in (["a", "b"], names))
    assert all(scores[name] == plain[name] for name in ("accuracy", "macro_f1", "calibration_error"))
    assert scores["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    # nor is the class lost
    assert [scores[f"{name}_f1"] for name in called] == pytest.approx([4 / 5, 2 / 3])
    assert [scores[f"{name}_support"] for name in called] == [2, 2] and len(scores) == len(plain)
    evaluator = TextEvaluator({"text": [""] * 4, "label": labels}, {"row": range(4)}, SINGLE, names)  # type: ignore[arg-type]
    lines = evaluator.report(scores).splitlines()
    assert [line.split()[0] for line in lines] == ["class", *names, "accuracy", "macro_f1", "calibration_error"]

    true, guessed = ([names[i] for i in column] for column in (labels, probabilities.argmax(axis=1)))
    pairs = zip(true, guessed, strict=True)
    records = [{"label": t, "predicted": {"label": g}, "predicted_none": {"label": t}} for t, g in pairs]
    counts = read_class_counts(write_run(tmp_path, records), SINGLE, names)["true"]
    resampled = {name: value[0] for name, value in class_scores(counts.sum(axis=0)[None], SINGLE, names).items()}
    expected = {"accuracy": 3 / 4, "macro_f1": scores["macro_f1"], resampled_as[0]: 4 / 5, resampled_as[1]: 2 / 3}
    assert resampled == pytest.approx(expected)


def test_scores_of_several_labels_by_hand():
    scores = classification_scores(np.array([[0.9, 0.6], [0.4, 0.5]]), np.array([[1, 0], [0, 1]]), ["a", "b"])
    assert scores["accuracy"] == 0.5
    assert scores["a_f1"] == 1 and scores["b_f1"] == pytest.approx(2 / 3)
    assert scores["micro_f1"] == pytest.approx(2 * 2 / (3 + 2))
    assert "calibration_error" not in scores


def test_regression_scores_by_hand():
    scores = regression_scores(np.array([1.0, 2.0, 5.0]), np.array([1.0, 2.0, 3.0]))
    assert scores["mse"] == pytest.approx(4 / 3) and scores["mae"] == pytest.approx(2 / 3)
    assert scores["r2"] == pytest.approx(1 - 4 / 2)


@pytest.mark.parametrize(
    "problem, chosen_by, metric",
    [
        (SINGLE, None, "macro_f1"),
        (SINGLE, "loss", "macro_f1"),
        (MULTI, "a_f1", "macro_f1"),
        (MULTI, "accuracy", "accuracy"),
        (REGRESSION, "loss", "r2"),
        (REGRESSION, "mae", "r2"),
    ],
)
def test_what_is_reported_may_be_other_than_what_chooses_the_checkpoint(problem, chosen_by, metric):
    names = [] if problem == REGRESSION else ["a", "b"]
    labels = {SINGLE: [0, 1], MULTI: [[0.0, 1.0], [1.0, 1.0]], REGRESSION: [0.5, 1.5]}[problem]
    dataset = {"text": ["x", "y"], "label": labels}
    evaluator = TextEvaluator(dataset, {"row": [0, 1]}, problem, names, chosen_by)  # type: ignore[arg-type]
    assert evaluator.metric == metric and metric in evaluator.metrics
    assert chosen_by in (None, "loss", *evaluator.metrics)


@pytest.mark.parametrize(
    "problem, names, labels, values, score",
    [
        (REGRESSION, [], [1.2e-6, 2.4e-6, 0.7e-6], [[1.2e-6], [2.4e-6], [0.7e-6]], "r2"),
        # 0.4999999 and 0.5000001: six digits would not tell which is greater
        (SINGLE, ["a", "b"], [1, 0], [[0.0, 4e-7], [4e-7, 0.0]], "accuracy"),
    ],
)
def test_what_is_scored_is_not_rounded(problem, names, labels, values, score):
    rows = list(range(len(labels)))
    evaluator = TextEvaluator({"text": [""] * len(rows), "label": labels}, {"row": rows}, problem, names)  # type: ignore[arg-type]
    assert evaluator.score(evaluator.answers((np.array(values),)))[score] == 1


def test_integers_as_labels_are_named_by_a_flag(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps({"text": "a", "label": label}) + "\n" for label in (1, 0, 1)))
    (args,) = HfArgumentParser(ClassificationDataArguments).parse_args_into_dataclasses(
        ["--train_file", str(file), "--labels", "dull", "bright"]
    )
    dataset, problem_type, labels = load_labelled_texts(args)
    assert (problem_type, labels) == (SINGLE, ["dull", "bright"])
    assert dataset["train"]["label"][:] == [1, 0, 1]


def write_run(folder: Path, records: list[dict]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"test": {"true": {}, "none": {}}}))
    (folder / "test_predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.mark.parametrize("problem", [SINGLE, MULTI])
def test_counts_for_the_ablation_give_the_scores_of_scikit_learn(problem, tmp_path):
    names = ["a", "b", "c"]
    rng = np.random.default_rng(0)
    if problem == SINGLE:
        true, guess = (rng.integers(0, 3, 40) for _ in range(2))
        as_names = [[names[i] for i in column] for column in (true, guess)]
        accuracy = (true == guess).mean()
    else:
        true, guess = (rng.integers(0, 2, (40, 3)) for _ in range(2))
        as_names = [[[n for n, v in zip(names, row, strict=True) if v] for row in column] for column in (true, guess)]
        accuracy = (true == guess).all(axis=1).mean()
    records = [
        {"label": t, "predicted": {"label": g, "scores": []}, "predicted_none": {"label": t, "scores": []}}
        for t, g in zip(*as_names, strict=True)
    ]
    counts = read_class_counts(write_run(tmp_path, records), problem, names)
    assert set(counts) == {"true", "none"}
    scores = class_scores(counts["true"].sum(axis=0)[None], problem, names)
    assert scores["macro_f1"][0] == pytest.approx(f1_score(true, guess, average="macro"))
    assert scores["accuracy"][0] == pytest.approx(accuracy)
    assert class_scores(counts["none"].sum(axis=0)[None], problem, names)["macro_f1"][0] == 1


def test_counts_of_numbers_give_r_squared(tmp_path):
    true, guess = [1.0, 2.0, 4.0, 8.0], [1.5, 2.0, 3.0, 9.0]
    records = [
        {"label": t, "predicted": {"label": g}, "predicted_none": {"label": 3.75}}
        for t, g in zip(true, guess, strict=True)
    ]
    counts = read_class_counts(write_run(tmp_path, records), REGRESSION, [])
    expected = regression_scores(np.array(guess), np.array(true))["r2"]
    assert class_scores(counts["true"].sum(axis=0)[None], REGRESSION, [])["r2"][0] == pytest.approx(expected)
    assert class_scores(counts["none"].sum(axis=0)[None], REGRESSION, [])["r2"][0] == pytest.approx(0)


def test_evaluator_reads_names_and_windows():
    dataset = {"text": ["x", "y"], "label": [1, 0]}
    windows = {"row": [1, 0, 1]}
    evaluator = TextEvaluator(dataset, windows, SINGLE, ["no", "yes"])  # type: ignore[arg-type]
    logits = np.log(np.array([[0.2, 0.8], [0.3, 0.7], [0.9, 0.1]]))
    answers = evaluator.answers((logits, np.zeros((3, 2))))
    assert [answer["label"] for answer in answers] == ["yes", "no"]
    assert answers[1]["scores"] == pytest.approx([0.55, 0.45])
    assert evaluator.score(answers)["accuracy"] == 1
    records = evaluator.records((logits, np.zeros((3, 2))), [["key"], None])
    assert [(r["label"], r["predicted"]["label"], r["num_images"]) for r in records] == [
        ("yes", "yes", 1),
        ("no", "no", 0),
    ]
    assert "accuracy" in evaluator.report(evaluator.score(answers))


# -------------------------------------------------------------------------------------------------------- the script


def run(colours: Path, output: Path, *extra: str) -> dict:
    return run_script("run_classification.py", colours, output, *extra)


def test_from_files_to_results(colours, tmp_path):
    options = ["--label_smoothing", "0.1", "--class_weights", "1", "2", "1", "--use_lora", "True"]
    results = run(colours, tmp_path, *options, "--metric_for_best_model", "eval_loss")
    assert set(results["test"]) == {"true", "none"}
    assert "test macro_f1 by image:  true" in results["stdout"]
    records = [json.loads(line) for line in (tmp_path / "test_predictions.jsonl").read_text().splitlines()]
    assert len(records) == 18 and {record["label"] for record in records} <= set(COLOURS)
    right = np.mean([record["predicted"]["label"] == record["label"] for record in records])
    assert results["test"]["true"]["accuracy"] == pytest.approx(right)
    # adapters are merged: a plain folder
    model, info = VTFusionForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    assert model.config.problem_type == SINGLE and model.config.label_smoothing == 0.1
    processor = VTFusionProcessor.from_pretrained(tmp_path)
    record = records[0]
    image = None if record["num_images"] == 0 else PIL.Image.open(colours / f"{record['label']}.png")
    with torch.no_grad():
        logits = model(**processor(text=record["text"], images=image, return_tensors="pt")).logits
    assert logits.softmax(dim=-1)[0].tolist() == pytest.approx(record["predicted"]["scores"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("column, metric", [("several", "macro_f1"), ("number", "r2")])
def test_other_kinds_of_labels(colours, tmp_path, column, metric):
    results = run(colours, tmp_path, "--label_column", column)
    assert metric in results["test"]["true"]
    model = VTFusionForSequenceClassification.from_pretrained(tmp_path)
    assert model.config.problem_type == (MULTI if column == "several" else REGRESSION)


@pytest.mark.slow
def test_image_ablation_finds_that_only_the_image_tells(colours, tmp_path):
    options = ["--num_train_epochs", "12", "--fusion_learning_rate", "3e-3", "--seeds", "0", "1"]
    report = run(colours, tmp_path, "--image_ablation", *options)
    assert np.mean(report["scores"]["true"]["macro_f1"]) > np.mean(report["scores"]["text_only"]["macro_f1"])
    assert report["verdict"] in report["stdout"]


def test_image_only_ignores_the_texts(colours, tmp_path):
    results = run(colours, tmp_path, "--image_only", "True", "--max_train_samples", "8")
    assert set(results["test"]) == {"true", "none"}
    records = [json.loads(line) for line in (tmp_path / "test_predictions.jsonl").read_text().splitlines()]
    # without text and image nothing is left to tell rows apart
    assert len({json.dumps(record["predicted_none"]) for record in records}) == 1
