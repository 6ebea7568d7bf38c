"""The `vtfusion` command: what it says, what it writes, and how it ends."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor
from typer.testing import CliRunner

from pipelines import make, picture
from tiny import randomize_fusion, tiny_config
from tokenizers_for_tests import TOKENIZERS
from vtfusion import VTFusionForMaskedLM, VTFusionForTokenClassification, VTFusionProcessor
from vtfusion.app import cli
from vtfusion.training.arguments import DataArguments
from vtfusion.training.prediction import load_pipeline
from writing import write_jsonl

runner = CliRunner()
COMMANDS = ("train", "evaluate", "pair", "gates", "predict", "export", "push", "demo", "space")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = VTFusionForTokenClassification(tiny_config("bert", "resnet", id2label={0: "O", 1: "B-PER", 2: "I-PER"}))
    randomize_fusion(model)
    model.classifier.bias.data[0] = -5.0
    model.save_pretrained(folder)
    VTFusionProcessor(ViTImageProcessor(size={"height": 32, "width": 32}), TOKENIZERS["bert"]()).save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def posts(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    rows = [{"text": "john smith", "image": "a.png", "label": 3}, {"text": "the fox", "image": None, "label": 4}]
    file = tmp_path / "posts.jsonl"
    write_jsonl(file, rows)
    return file


def test_help_names_every_command():
    result = runner.invoke(cli.app, ["--help"])
    assert result.exit_code == 0 and all(name in result.output for name in COMMANDS)
    for name in ("train", "evaluate"):
        result = runner.invoke(cli.app, [name, "--help"])
        assert result.exit_code == 0 and "classification" in result.output and f"vtfusion {name} ner" in result.output


def test_arguments_reach_the_script(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "run_script", lambda *call: seen.append(call))
    assert runner.invoke(cli.app, ["train", "ner", "--seed", "3", "--help"]).exit_code == 0
    assert runner.invoke(cli.app, ["evaluate", "vqa", "--test_file", "x"]).exit_code == 0
    assert runner.invoke(cli.app, ["pair", "--strategy", "random"]).exit_code == 0
    assert seen == [
        ("vtfusion train ner", "run_ner", ["--seed", "3", "--help"]),
        ("vtfusion evaluate vqa", "run_vqa", ["--test_file", "x"]),
        ("vtfusion pair", "pair_images", ["--strategy", "random"]),
    ]


def test_every_task_has_its_script():
    from importlib.util import find_spec

    for script in (*(f"run_{task}" for task in cli.Task), "pair_images", "gate_report"):
        assert find_spec(f"vtfusion.scripts.{script}") is not None, script


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "captioning"], "There is no task 'captioning'. There are: ner, "),
        (["train"], "TASK"),
        (["train", "ner", "--learnin_rat", "1"], "vtfusion train ner: error: unrecognized arguments: --learnin_rat 1"),
        (["pair", "--bank", "x", "--output_dir", "y"], "vtfusion pair: error: unrecognized arguments: --bank x"),
        (["evaluate", "ner", "--train_file", "x"], "--train_file would train"),
        (["evaluate", "ner", "--dataset_name=x"], "--dataset_name would train"),
        (["evaluate", "ner", "--test_file", "y", "--train-file", "x"], "--train_file would train"),
        (["evaluate", "ner", "--dataset-name=x"], "--dataset_name would train"),
        (["evaluate", "ner", "--train_fi", "x"], "--train_file would train"),
        (["evaluate", "ner", "--dataset-n=x"], "--dataset_name would train"),
        (["predict"], "MODEL"),
        (["export", "a"], "--output"),
        (["export", "a", "--output", "b", "--tolerance", "-1"], "--tolerance"),
        (["predict", "a", "b", "--batch-size", "0"], "--batch-size"),
        (["predict", "a", "b", "--max-images", "0"], "--max-images"),
        (["fly"], "fly"),
    ],
)
def test_wrong_commands_end_with_2(arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)  # a script's parser reads it
    result = runner.invoke(cli.app, arguments)
    assert result.exit_code == 2 and message in result.output


def test_predictions_are_those_of_the_pipeline(model_folder, posts, tmp_path):
    output = tmp_path / "out" / "entities.jsonl"
    result = runner.invoke(cli.app, ["predict", str(model_folder), str(posts), "--output", str(output)])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [(line["row"], line["text"]) for line in lines] == [(0, "john smith"), (1, "the fox")]
    pipe = load_pipeline(str(model_folder), device="cpu")
    with Image.open(posts.parent / "a.png") as image:
        expected = [pipe("john smith", images=image), pipe("the fox")]
    assert expected[0][0]["image_region"] is not None
    for line, entities in zip(lines, expected, strict=True):
        assert [entity["text"] for entity in line["prediction"]] == [entity["text"] for entity in entities]
        for found, entity in zip(line["prediction"], entities, strict=True):
            assert found["score"] == pytest.approx(entity["score"], rel=1e-4)
            assert found["gate"] == pytest.approx(entity["gate"], rel=1e-4)


def test_columns_of_other_names_and_lines_of_text(model_folder, tmp_path):
    (tmp_path / "a.csv").write_text("headline,other\njohn smith,1\n", encoding="utf-8")
    output = tmp_path / "out.jsonl"
    command = ["predict", str(model_folder), str(tmp_path / "a.csv"), "--output", str(output)]
    assert isinstance(runner.invoke(cli.app, command).exception, ValueError)
    assert not output.exists()
    assert runner.invoke(cli.app, [*command, "--text-column", "headline"]).exit_code == 0
    assert json.loads(output.read_text(encoding="utf-8"))["text"] == "john smith"
    (tmp_path / "a.txt").write_text("john smith\nthe fox\n", encoding="utf-8")
    command[2] = str(tmp_path / "a.txt")
    assert runner.invoke(cli.app, command).exit_code == 0
    assert len(output.read_text(encoding="utf-8").splitlines()) == 2


def test_a_question_may_be_answered_by_nothing(tmp_path):
    pipe = make("multimodal-question-answering", seed=1)  # to one of three questions it gives none
    pipe.save_pretrained(tmp_path / "qa")
    rows = [{"question": question, "context": "john smith sees the fox"} for question in ("who", "what is the", "fox")]
    file, output = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    for flags, options in (([], {}), (["--handle-impossible-answer"], {"handle_impossible_answer": True})):
        command = ["predict", str(tmp_path / "qa"), str(file), "--output", str(output), "--device", "cpu", *flags]
        result = runner.invoke(cli.app, command)
        assert result.exit_code == 0, result.output
        answers = [json.loads(line)["prediction"]["answer"] for line in output.read_text("utf-8").splitlines()]
        assert answers == [pipe(row, **options)["answer"] for row in rows]
        assert answers.count("") == len(flags)


def test_a_table_with_tabs_has_a_header(model_folder, tmp_path):
    """For the words of entities the loaders of the training take `.tsv` for CoNLL columns; a text is no such row."""
    (tmp_path / "posts.tsv").write_text("text\timage\njohn smith\ta.png\nthe fox\t\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    output = tmp_path / "out.jsonl"
    result = runner.invoke(
        cli.app, ["predict", str(model_folder), str(tmp_path / "posts.tsv"), "--output", str(output)]
    )
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in lines] == ["john smith", "the fox"]


def test_an_unreadable_image_is_named_or_left_out(model_folder, posts, tmp_path):
    (posts.parent / "a.png").write_bytes(b"not a picture")
    output = tmp_path / "out.jsonl"
    command = ["predict", str(model_folder), str(posts), "--output", str(output)]
    failed = runner.invoke(cli.app, command)
    assert "row 0, field `images`" in str(failed.exception) and not list(tmp_path.glob("out*"))
    assert runner.invoke(cli.app, [*command, "--on-bad-image", "skip_image"]).exit_code == 0
    assert len(output.read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text-pair-column", "label"], "reads no text_pair"),
        (["--question-column", "label"], "reads no question"),
        (["--handle-impossible-answer"], "takes no `handle_impossible_answer`"),
    ],
)
def test_a_flag_of_another_task_is_refused(model_folder, posts, flags, message):
    result = runner.invoke(cli.app, ["predict", str(model_folder), str(posts), *flags])
    assert result.exit_code == 1 and message in str(result.exception)


@pytest.mark.parametrize(("flags", "used"), [([], 4), (["--max-images", "5"], 5), (["--max-images", "9"], 6)])
def test_images_beyond_a_number_are_left_out_as_in_the_training(tmp_path, caplog, flags, used):
    assert DataArguments().max_images == 4
    pipe = make("multimodal-text-classification")
    pipe.save_pretrained(tmp_path / "model")
    names = [f"{index}.png" for index in range(6)]
    for index, name in enumerate(names):
        picture(index).save(tmp_path / name)
    (tmp_path / names[-1]).write_bytes((tmp_path / names[-1]).read_bytes() if used == 6 else b"not a picture")
    rows = [{"text": "the fox", "images": names}, {"text": "the fox", "images": names[:1]}]
    file, output = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    command = ["predict", str(tmp_path / "model"), str(file), "--output", str(output), "--device", "cpu", *flags]
    assert runner.invoke(cli.app, command).exit_code == 0
    found = [json.loads(line)["prediction"]["score"] for line in output.read_text("utf-8").splitlines()]
    expected = [pipe("the fox", images=[picture(index) for index in range(count)])["score"] for count in (used, 1)]
    assert found == pytest.approx(expected, rel=1e-5)
    assert (f"1 of 2 rows have more images than the {used} that are used" in caplog.text) == (used < 6)


def test_a_model_without_a_pipeline_is_refused(tmp_path, posts):
    VTFusionForMaskedLM(tiny_config("bert", "precomputed")).save_pretrained(tmp_path / "mlm")
    with pytest.raises(ValueError, match="VTFusionForMaskedLM, which has no pipeline"):
        load_pipeline(str(tmp_path / "mlm"))


def test_a_model_without_a_card_is_not_published(model_folder):
    result = runner.invoke(cli.app, ["push", str(model_folder), "someone/model"])
    assert isinstance(result.exception, FileNotFoundError) and "with its card" in str(result.exception)


def test_what_goes_wrong_is_told_in_a_line(tmp_path):
    command = [sys.executable, "-m", "vtfusion.app.cli", "predict", str(tmp_path / "none"), "x.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
