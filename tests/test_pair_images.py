"""The script from files to a data set, a report and a contact sheet."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from datasets import load_from_disk
from transformers import HfArgumentParser

from tiny import text_model
from vtfusion.training.arguments import TokenSourceArguments
from vtfusion.training.pairing import STRATEGIES
from vtfusion.training.token_data import load_token_classification_dataset
from writing import write_jsonl

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "pair_images.py"
CONLL = "Georgia B-LOC\nmet O\nMadrid B-ORG\n\nno O\nname O\n\n"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("pair_images_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.txt").write_text(CONLL)
    (tmp_path / "test.txt").write_text("in O\nMadrid B-LOC\n")
    (tmp_path / "bank").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for name, kind in (("Georgia", "flag"), ("Madrid", "club")):
        PIL.Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / "bank" / f"{name}.png")
        rows.append({"image": f"{name}.png", "name": name, "kind": kind, "captions": [f"a picture of {name}"]})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "bank" / "metadata.jsonl").write_text(lines)
    return tmp_path


def command(folder, *extra):
    files = ["--train_file", str(folder / "train.txt"), "--test_file", str(folder / "test.txt")]
    return [*files, "--output_dir", str(folder / "out"), *extra]


def run(script, folder, *extra):
    parser = HfArgumentParser((TokenSourceArguments, script.PairingArguments))
    script.main(*parser.parse_args_into_dataclasses(command(folder, *extra)))
    return load_from_disk(str(folder / "out")), json.loads((folder / "out" / "pairing_report.json").read_text())


def test_lexicon_as_a_program_leaves_data_report_and_sheet(folder):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *command(folder, "--image_bank", str(folder / "bank"), "--max_images", "2")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "train: 1 of 2 texts have a picture (50.0%)" in done.stdout
    out = folder / "out"
    loaded = load_token_classification_dataset(str(out))
    assert loaded["train"]["image_ids"][:] == [["Georgia", "Madrid"], []]
    assert loaded["train"]["images"][0][0]["bytes"] == (folder / "bank" / "Georgia.png").read_bytes()
    report = json.loads((out / "pairing_report.json").read_text())
    assert report["strategy"] == "lexicon" and report["settings"]["max_images"] == 2
    assert report["coverage"]["test"]["coverage"] == 1.0
    assert report["label_analysis"]["splits"]["train"]["ORG"] == {"entities": 1, "with_image": 1, "named": 1}
    assert "labels" in report["label_analysis"]["note"]
    assert "| train | 2 | 1 | 50.0% | 2 | 2 |" in (out / "pairing_report.md").read_text()
    page = (out / "contact_sheet.html").read_text()
    assert page.count("<img ") == 3 and "out: lexicon" in page
    with PIL.Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 1000


def save_text_model(folder):
    for part in text_model("bert"):
        part.save_pretrained(folder / "text")
    return folder / "text"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_runs_under_its_name(script, folder, strategy):
    """With no more than what it asks for."""
    assert list(script._NEEDS) == list(script._TAKES) == list(STRATEGIES)
    manifest = folder / "pairs.jsonl"
    manifest.write_text('{"split": "train", "row": 1, "image": "bank/Madrid.png"}\n')
    files = {"image_bank": folder / "bank", "text_model": save_text_model(folder), "manifest_file": manifest}
    flags = [word for name in script._NEEDS[strategy] for word in (f"--{name}", str(files[name]))]
    paired, report = run(script, folder, "--strategy", strategy, *flags)
    assert {row["pairing_strategy"] for part in paired.values() for row in part} == {report["strategy"]} == {strategy}


@pytest.mark.parametrize("strategy", ["lexicon", "retrieval", "random"])
def test_streaming_gives_what_reading_all_gives(script, folder, strategy):
    flags = ["--strategy", strategy, "--image_bank", str(folder / "bank")]
    if strategy == "retrieval":
        flags += ["--text_model", str(save_text_model(folder))]
    _, whole = run(script, folder, *flags)
    expected = load_token_classification_dataset(str(folder / "out"))
    shutil.rmtree(folder / "out")
    _, report = run(script, folder, *flags, "--streaming", "True")
    found = load_token_classification_dataset(str(folder / "out"))
    assert {split: part.to_list() for split, part in found.items()} == {
        split: part.to_list() for split, part in expected.items()
    }
    assert report["coverage"] == whole["coverage"] and report["label_analysis"] == whole["label_analysis"]
    assert (folder / "out" / "contact_sheet.html").exists()


def test_a_stream_may_lack_tags(script, folder):
    rows = [{"words": ["Madrid", "won"], "lang": "en"}, {"words": ["no", "name"], "lang": "en"}]
    write_jsonl(folder / "train.jsonl", rows)
    flags = ["--train_file", str(folder / "train.jsonl"), "--output_dir", str(folder / "out")]
    flags += ["--image_bank", str(folder / "bank"), "--streaming", "True"]
    parser = HfArgumentParser((TokenSourceArguments, script.PairingArguments))
    script.main(*parser.parse_args_into_dataclasses(flags))
    paired = load_from_disk(str(folder / "out"))["train"]
    assert paired["tokens"][:] == [["Madrid", "won"], ["no", "name"]] and paired["lang"][:] == ["en", "en"]
    assert paired["image_ids"][:] == [["Madrid"], []] and "words" not in paired.column_names
    assert json.loads((folder / "out" / "pairing_report.json").read_text())["label_analysis"] is None


@pytest.mark.parametrize("streaming", ["True", "False"])
def test_what_integers_as_tags_mean_is_told(script, folder, streaming):
    (folder / "train.jsonl").write_text(json.dumps({"tokens": ["Madrid", "won"], "ner_tags": [2, 0]}) + "\n")
    flags = [
        "--train_file",
        str(folder / "train.jsonl"),
        "--output_dir",
        str(folder / "out"),
        "--streaming",
        streaming,
    ]
    flags += ["--image_bank", str(folder / "bank"), "--labels", "O", "B-PER", "B-ORG"]
    parser = HfArgumentParser((TokenSourceArguments, script.PairingArguments))
    script.main(*parser.parse_args_into_dataclasses(flags))
    report = json.loads((folder / "out" / "pairing_report.json").read_text())
    assert report["label_analysis"]["splits"] == {"train": {"ORG": {"entities": 1, "with_image": 1, "named": 1}}}


def test_retrieval_gives_the_nearest_with_their_scores(script, folder):
    bank = ["--strategy", "retrieval", "--image_bank", str(folder / "bank")]
    bank += ["--text_model", str(save_text_model(folder))]
    paired, report = run(
        script,
        folder,
        *bank,
        "--top_k",
        "2",
        "--score_threshold",
        "-1",
        "--batch_size",
        "2",
        "--embed_images",
        "False",
    )
    assert all(sorted(ids) == ["Georgia", "Madrid"] for ids in paired["train"]["image_ids"])
    scores = np.array(paired["train"]["image_scores"][:])
    assert scores.shape == (2, 2) and (np.diff(scores, axis=1) <= 0).all()
    assert report["coverage"]["train"]["scores"]["max"] == pytest.approx(scores.max(), abs=1e-6)
    assert "named" not in report["label_analysis"]["splits"]["train"]["ORG"]
    assert paired["train"]["images"][0][0].startswith(str(folder / "bank"))
    assert "score 0." in (folder / "out" / "contact_sheet.html").read_text()


def test_manifest_and_controls_give_what_they_say(script, folder):
    manifest = folder / "bank" / "pairs.jsonl"
    manifest.write_text('{"split": "train", "row": 1, "image": "Madrid.png", "score": 2.5}\n')
    paired, report = run(script, folder, "--strategy", "manifest", "--manifest_file", str(manifest))
    assert paired["train"]["image_ids"][:] == [[], ["Madrid.png"]]
    assert report["coverage"]["test"]["coverage"] == 0

    bank = ("--image_bank", str(folder / "bank"))
    paired, _ = run(script, folder, "--strategy", "random", *bank, "--kinds", "club", "--contact_sheet_rows", "0")
    assert paired["train"]["image_ids"][:] == [["Madrid"], ["Madrid"]]
    paired, _ = run(script, folder, "--strategy", "blank", "--contact_sheet_rows", "1")
    assert paired["test"]["image_ids"][:] == [["blank"]]
    assert (folder / "out" / "contact_sheet.html").read_text().count("<img ") == 1
    paired, report = run(script, folder, "--strategy", "none")
    assert paired["train"]["images"][:] == [None, None] and report["coverage"]["train"]["images"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--strategy lexicon needs --image_bank"),
        (["--strategy", "retrieval", "--image_bank", "b"], "--strategy retrieval needs --text_model"),
        (["--strategy", "manifest"], "--strategy manifest needs --manifest_file"),
        (["--image_bank", "b", "--top_k", "2"], "--top_k has no use in --strategy lexicon, only in retrieval"),
        (["--image_bank", "b", "--score_threshold", "0"], "--score_threshold has no use in --strategy lexicon"),
        (["--strategy", "none", "--embed_images", "False"], "--embed_images has no use in --strategy none, only in manifest"),
        (["--strategy", "blank", "--image_bank", "b"], "--image_bank has no use in --strategy blank"),
        (["--strategy", "random", "--image_bank", "b", "--match_case", "exact"], "--match_case has no use in --strategy random"),
        (["--image_bank", "b", "--num_proc", "0"], "--num_proc must be at least 1, got 0"),
        (["--image_bank", "b", "--contact_sheet_rows", "-1"], "--contact_sheet_rows must be at least 0, got -1"),
        (["--strategy", "manifest", "--manifest_file", "m", "--streaming", "True"], "cannot be used with --streaming"),
        (["--image_bank", "b", "--streaming", "True", "--image_column", "i"], "--image_column has no use with --streaming"),
    ],
)  # fmt: skip
def test_flags_that_do_nothing_are_refused(script, folder, flags, message):
    with pytest.raises(ValueError, match=message):
        run(script, folder, *flags)
    assert not (folder / "out").exists()


def test_values_that_make_no_sense_are_refused(script, folder):
    bank = ("--image_bank", str(folder / "bank"))
    with pytest.raises(ValueError, match="`max_images` must be at least 1, got 0"):
        run(script, folder, *bank, "--max_images", "0")
    with pytest.raises(ValueError, match="no image of the kind 'map'"):
        run(script, folder, *bank, "--kinds", "flag", "map")
