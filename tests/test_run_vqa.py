"""Visual question answering: VQA accuracy by hand, and the script from files to results."""

import json

import numpy as np
import pytest
from datasets import Dataset

from running import COLOURS, run_script
from vtfusion import VTFusionForVisualQuestionAnswering, VTFusionProcessor
from vtfusion.training.visual_question_answering import (
    AnswerEvaluator,
    accuracy_scores,
    encode_questions,
    read_accuracy_counts,
)


def test_accuracy_is_the_score_that_people_gave():
    dataset = {
        "question": ["a", "b", "c"],
        "answers": [
            {"text": ["yes"], "score": [1.0]},
            {"text": ["no", "yes"], "score": [1.0, 1 / 3]},
            {"text": ["maybe"], "score": [1.0]},
        ],
    }
    evaluator = AnswerEvaluator(dataset, {"row": [2, 0, 1]}, ["yes", "no"], "single_label_classification")  # type: ignore[arg-type]
    logits = np.array([[0.0, 1.0], [2.0, 1.0], [1.0, 0.0]])
    answers = evaluator.answers((logits,))
    assert answers == ["yes", "yes", "no"]
    scores = evaluator.score(answers)
    assert scores["accuracy"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert scores["answerable"] == pytest.approx(2 / 3) and scores["support"] == 3


def test_nobody_may_have_answered_a_question(bert):
    answers = [{"text": ["no"], "score": [1.0]}, {"text": [], "score": []}]
    rows = Dataset.from_dict({"question": ["the quick", "the lazy"], "answers": answers})
    processor = VTFusionProcessor(tokenizer=bert)
    windows = encode_questions(rows, processor, [None] * 2, ["yes", "no"], "single_label_classification")
    assert windows["label"][:] == [1, -100]
    scores = AnswerEvaluator(rows, windows, ["yes", "no"], "single_label_classification").score(["no", "yes"])
    assert scores == {"accuracy": 0.5, "answerable": 0.5, "support": 2}


@pytest.mark.parametrize("column, problem", [("answer", "single_label"), ("people", "multi_label")])
def test_from_files_to_results(colours, tmp_path, column, problem):
    results = run_script("run_vqa.py", colours, tmp_path, "--answer_column", column)
    assert "test accuracy by image:  true" in results["stdout"]
    model = VTFusionForVisualQuestionAnswering.from_pretrained(tmp_path)
    assert set(model.config.id2label.values()) >= set(COLOURS)
    assert model.config.problem_type == f"{problem}_classification"
    records = [json.loads(line) for line in (tmp_path / "test_predictions.jsonl").read_text().splitlines()]
    assert len(records) == 18
    expected = np.mean([record["answers"].get(record["predicted_answer"], 0.0) for record in records])
    assert results["test"]["true"]["accuracy"] == pytest.approx(expected)
    counts = read_accuracy_counts(tmp_path)
    assert accuracy_scores(counts["true"].sum(axis=0)[None])["accuracy"][0] == pytest.approx(expected)


@pytest.mark.slow
def test_the_picture_answers_what_the_text_cannot(colours, tmp_path):
    options = ["--num_train_epochs", "40", "--learning_rate", "3e-3", "--freeze_vision", "False"]
    results = run_script("run_vqa.py", colours, tmp_path, *options)
    assert results["test"]["true"]["accuracy"] > results["test"]["none"]["accuracy"] + 0.3


@pytest.mark.slow
def test_image_ablation_prints_its_verdict(colours, tmp_path):
    report = run_script("run_vqa.py", colours, tmp_path, "--image_ablation", "--seeds", "0", "1")
    assert report["verdict"] in report["stdout"] and report["num_examples"] == 18
