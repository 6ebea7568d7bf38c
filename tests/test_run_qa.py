"""The question answering script from files to results."""

import json

import pytest

from running import COLOURS, run_script
from vtfusion import VTFusionForQuestionAnswering, VTFusionProcessor


def test_from_files_to_results(colours, tmp_path):
    results = run_script("run_qa.py", colours, tmp_path, "--max_length", "24", "--window_stride", "4")
    assert set(results["test"]) == {"true", "none"}
    assert "test f1 by image:  true" in results["stdout"]
    records = [json.loads(line) for line in (tmp_path / "test_predictions.jsonl").read_text().splitlines()]
    assert len(records) == 18
    assert [record["answers"] == [] for record in records] == [row % 4 == 3 for row in range(18)]
    exact = [record["predicted_answer"] in (record["answers"] or [""]) for record in records]
    assert results["test"]["true"]["exact_match"] == pytest.approx(sum(exact) / 18)
    _, info = VTFusionForQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert VTFusionProcessor.from_pretrained(tmp_path).window_length == 24


@pytest.mark.slow
def test_finds_the_word_that_is_asked_for(colours, tmp_path):
    results = run_script("run_qa.py", colours, tmp_path, "--num_train_epochs", "20", "--learning_rate", "3e-3")
    assert results["test"]["true"]["HasAns_exact_match"] > 0.5
    records = [json.loads(line) for line in (tmp_path / "test_predictions.jsonl").read_text().splitlines()]
    assert {record["predicted_answer"] for record in records} & set(COLOURS)


@pytest.mark.slow
def test_image_ablation_prints_its_verdict(colours, tmp_path):
    report = run_script("run_qa.py", colours, tmp_path, "--image_ablation", "--seeds", "0", "1")
    assert report["verdict"] in report["stdout"] and report["num_examples"] == 18
