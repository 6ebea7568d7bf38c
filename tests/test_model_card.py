"""The card of a model: metadata that `huggingface_hub` reads back, sentences that hold, and nothing of this machine."""

import json
import os
from importlib.metadata import version
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import HfArgumentParser

from tiny import tiny_config
from vtfusion.training.arguments import DataArguments, ModelArguments, RunArguments, VTFusionTrainingArguments
from vtfusion.training.model_card import (
    Score,
    add_ablation,
    command_line,
    name_repository,
    read_licence,
    write_model_card,
)

SCORES = [Score("validation", "true image", "f1", 0.5), Score("test", "true image", "f1", 0.41234), Score("test", "no image", "f1", 0.4)]  # fmt: skip
RESULTS = {
    "texts": {"train": 1200, "test": 300},
    "test_texts_with_image": 250,
    "train_seconds": 12.3,
}


@pytest.fixture
def encoders(tmp_path):
    folder = tmp_path / "my-encoder"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# An encoder\n", encoding="utf-8")
    return folder


def write(tmp_path, encoders, scores=SCORES, **training):
    config = tiny_config("bert", "resnet", id2label={0: "O", 1: "B-PER", 2: "I-PER"})
    config.text_config.name_or_path, config.vision_config.name_or_path = "my-encoder", "some/vision-model"
    args = VTFusionTrainingArguments(output_dir=str(tmp_path / "run"), seed=7, **training)
    os.makedirs(args.output_dir, exist_ok=True)
    model_args = ModelArguments(text_model=str(encoders), vision_model="some/vision-model")
    data_args = DataArguments(train_file=str(tmp_path / "posts.jsonl"))
    write_model_card(config, RESULTS, scores, RunArguments("token-classification", model_args, data_args, args))
    return Path(args.output_dir, "README.md")


def test_metadata_is_read_back(tmp_path, encoders):
    data = ModelCard.load(write(tmp_path, encoders, license="apache-2.0", language=["en"])).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "token-classification")
    assert data.license == "apache-2.0" and data.language == ["en"] and "vtfusion" in data.tags
    assert data.base_model == ["some/vision-model"]  # a folder of this machine is no base model for others
    found = [
        (e.dataset_name, e.dataset_split, e.dataset_config, e.metric_type, e.metric_value) for e in data.eval_results
    ]
    assert found == [
        ("posts.jsonl", "validation", "true image", "f1", 0.5),
        ("posts.jsonl", "test", "true image", "f1", 0.4123),
        ("posts.jsonl", "test", "no image", "f1", 0.4),
    ]


def test_what_people_read(tmp_path, encoders):
    text = ModelCard.load(write(tmp_path, encoders)).text
    assert "| test | true image | f1 | 41.23 |" in text and "| test | no image | f1 | 40.00 |" in text
    assert "300 texts in test, 250 of them with an image" in text
    assert "| text | my-encoder | bert | mit | trained |" in text
    assert "| vision | some/vision-model | resnet | not stated | frozen |" in text
    assert 'pipeline(model="run", trust_remote_code=True)' in text
    assert "Seed 7; 12 s." in text and "1,200 in train" in text and f"torch {version('torch')}" in text
    assert "these labels and no others: O, B-PER, I-PER" in text
    assert "Not studied" in text and str(tmp_path) not in text


def test_without_scores_nothing_is_claimed(tmp_path, encoders):
    card = ModelCard.load(write(tmp_path, encoders, scores=[]))
    assert card.data.eval_results is None and "Not tested." in card.text


def test_the_name_is_that_of_the_repository(tmp_path, encoders):
    text = ModelCard.load(write(tmp_path, encoders, hub_model_id="someone/ner-with-pictures")).text
    assert "# ner-with-pictures\n" in text and 'pipeline(model="someone/ner-with-pictures"' in text


def test_a_study_takes_the_place_of_the_caveat(tmp_path, encoders):
    path = write(tmp_path, encoders)
    add_ablation(path, "**The picture helped.**\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n")
    once = path.read_text(encoding="utf-8")
    assert "Not studied" not in once and "**The picture helped.**\n\n| a | b |" in once and "## Encoders" in once
    assert ModelCard.load(path).data.eval_results
    add_ablation(path, "**No evidence.**\n")
    twice = path.read_text(encoding="utf-8")
    assert "helped.**" not in twice and "**No evidence.**" in twice and twice.count("## Did the picture help?") == 1
    assert [line for line in twice.splitlines() if line.startswith("## ")] == [
        line for line in once.splitlines() if line.startswith("## ")
    ]
    other = tmp_path / "README.md"
    other.write_text("---\nlicense: mit\n---\n# Other\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no section"):
        add_ablation(other, "x")


def test_a_card_takes_the_name_of_its_repository(tmp_path, encoders):
    path = write(tmp_path, encoders)
    name_repository(path, "someone/ner-with-pictures")
    card = ModelCard.load(path)
    assert card.data.model_name == "ner-with-pictures" and len(card.data.eval_results) == 3
    assert "# ner-with-pictures\n" in card.text and "# run\n" not in card.text
    assert 'pipeline(model="someone/ner-with-pictures", trust_remote_code=True)' in card.text


def test_licences(tmp_path, encoders):
    assert read_licence(str(encoders)) == "mit"
    assert read_licence(str(tmp_path)) is None  # no card
    assert read_licence("some/model") is None  # no network in tests
    assert read_licence("random weights") is None


def test_a_command_shows_no_folder_of_this_machine(tmp_path):
    (tmp_path / "posts.jsonl").write_text(json.dumps({}), encoding="utf-8")
    words = ["/opt/a/run_ner.py", "--train_file", str(tmp_path / "posts.jsonl"), "--text_model", "org/model"]
    words += ["--output_dir", "../elsewhere/run 1", "--seed", "3"]
    assert command_line(words) == (
        "python run_ner.py --train_file posts.jsonl --text_model org/model --output_dir 'run 1' --seed 3"
    )


def test_the_command_keeps_folders_behind_an_equals_sign_to_itself(tmp_path):
    words = [
        "run_ner.py",
        f"--train_file={tmp_path}/posts.jsonl",
        "--output_dir=~/runs/1",
        "--metric_for_best_model=f1",
    ]
    assert command_line(words) == (
        "python run_ner.py --train_file=posts.jsonl --output_dir=1 --metric_for_best_model=f1"
    )


@pytest.mark.parametrize("spelling", ["--hub_token", "--hub-token", "--hub_tok", "--hub-t"])
@pytest.mark.parametrize("joined", [False, True])
def test_the_command_has_no_token(spelling, joined):
    given = [f"{spelling}=hf_secret"] if joined else [spelling, "hf_secret"]
    (args,) = HfArgumentParser(VTFusionTrainingArguments).parse_args_into_dataclasses(["--output_dir", "x", *given])
    assert args.hub_token == "hf_secret"
    words = ["vtfusion train ner", "--push_to_hub", *given, "--hub_private_repo", "True"]
    assert command_line(words) == "vtfusion train ner --push_to_hub --hub_private_repo True"
