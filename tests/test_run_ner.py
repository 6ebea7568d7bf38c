"""The NER script from files to results, on a small synthetic sample set."""

import itertools
import json
import os
import re
import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, load_from_disk
from huggingface_hub import ModelCard
from transformers import AutoTokenizer, HfArgumentParser, TrainingArguments

from running import SCRIPTS, losses, no_dropout
from running import run_on_sample as run
from vtfusion import VTFusionForTokenClassification, VTFusionProcessor
from vtfusion.training.arguments import ModelArguments, TokenDataArguments
from vtfusion.training.files import release_folder
from vtfusion.training.token_classification import encode_windows, load_splits

# The order of the training rows must be known to compare with another loop, or between one process and two.
needs_sequential = pytest.mark.skipif(
    not hasattr(TrainingArguments, "train_sampling_strategy"),
    reason="this transformers has no --train_sampling_strategy",
)


def test_from_data_to_results(sample, tmp_path):
    results = run(
        sample, tmp_path, "--image_conditions", "true", "shuffled", "blank", "none", "--fusion_learning_rate", "2e-3"
    )
    assert set(results["test"]) == {"true", "shuffled", "blank", "none"}
    assert all(scores["support"] == 24 for scores in results["test"].values())
    assert "test f1 by image:  true" in results["stdout"] and "none" in results["stdout"]
    assert "micro avg" in (tmp_path / "test_report.txt").read_text()
    records = [json.loads(line) for line in (tmp_path / "test_predictions.jsonl").read_text().splitlines()]
    assert len(records) == 24
    assert all(len(r["tokens"]) == len(r["predicted_tags"]) == len(r["predicted_tags_none"]) for r in records)
    # the folder is a model to load, with its processor and code
    model, info = VTFusionForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert model.config.id2label[0] == "O" and len(model.config.id2label) == 9
    processor = VTFusionProcessor.from_pretrained(tmp_path)
    batch = processor(text="Mirano spoke .", return_tensors="pt")
    assert model(**batch).logits.shape[-1] == 9
    for file in (*tmp_path.glob("*.json"), tmp_path / "README.md"):
        if file.name not in ("trainer_state.json", "results.json"):
            assert str(sample) not in file.read_text(), file.name
    card = ModelCard.load(tmp_path / "README.md")
    assert {result.dataset_config: result.metric_value for result in card.data.eval_results[-4:]} == pytest.approx(
        {f"{name} image" if name != "none" else "no image": results["test"][name]["f1"] for name in results["test"]},
        abs=1e-4,
    )


def test_windows_of_many_rows_without_image_before_the_first_with_one(sample):
    processor = VTFusionProcessor(tokenizer=AutoTokenizer.from_pretrained(sample / "text"))
    rows = Dataset.from_dict({"tokens": [["Mirano"]] * 1100, "ner_tags": [[1]] * 1100})
    windows = encode_windows(rows, processor, [None] * 1050 + [["key"]] * 50)
    assert windows["image_keys"][1049:1051] == [None, ["key"]]


def test_integers_as_tags_are_named_by_a_flag(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps({"tokens": ["in", "Rome"], "ner_tags": [0, 3]}) + "\n")
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    (args,) = HfArgumentParser(TokenDataArguments).parse_args_into_dataclasses(
        ["--train_file", str(file), "--labels", *names]
    )
    rows = load_splits(args)["train"]
    assert rows.features["ner_tags"].feature.names == names and rows["ner_tags"][:] == [[0, 3]]


def test_plain_loop_writes_what_the_trainer_writes(sample, tmp_path):
    options = ["--num_train_epochs", "2", "--gradient_accumulation_steps", "2", "--decoding", "viterbi"]
    results = run(
        sample,
        tmp_path,
        *options,
        script="run_ner_no_trainer.py",
        leave_out=("--logging_steps", "--use_cpu"),
    )
    assert set(results["test"]) == {"true", "none"} and results["test"]["true"]["support"] == 24
    assert results["stdout"].count("validation F1") == 2
    assert len((tmp_path / "test_predictions.jsonl").read_text().splitlines()) == 24
    again = run(sample, tmp_path / "b", "--model_name_or_path", str(tmp_path), "--num_train_epochs", "0")
    assert again["test"] == results["test"]
    assert VTFusionProcessor.from_pretrained(tmp_path).decoding == "viterbi"


def test_plain_loop_asks_for_what_it_trains_on(tmp_path):
    file = tmp_path / "test.conll"
    file.write_text("in O\nRome B-LOC\n")
    main = runpy.run_path(str(SCRIPTS / "run_ner_no_trainer.py"))["main"]
    loop_args = SimpleNamespace(output_dir=str(tmp_path / "out"), seed=0)
    with pytest.raises(ValueError, match=r"no train split: give one, as with --train_file.*run_ner\.py.* tests alone"):
        main(ModelArguments(text_model="none"), TokenDataArguments(test_file=str(file)), loop_args)
    release_folder(tmp_path / "out")


def test_trained_encoders_and_test_alone(sample, tmp_path):
    options = ["--freeze_vision", "False", "--num_fusion_layers", "2", "--decoding", "viterbi"]
    trained = run(sample, tmp_path / "a", *options)
    again = run(sample, tmp_path / "b", "--model_name_or_path", str(tmp_path / "a"), "--num_train_epochs", "0")
    assert again["test"] == trained["test"]
    # what a flag does not change stays what the model was saved with
    assert VTFusionProcessor.from_pretrained(tmp_path / "b").decoding == "viterbi"
    for record in map(json.loads, (tmp_path / "b" / "test_predictions.jsonl").read_text().splitlines()):
        for before, tag in itertools.pairwise(["O", *record["predicted_tags"]]):
            assert not tag.startswith("I-") or before[2:] == tag[2:]

    test = load_from_disk(str(sample / "data"))["test"]
    names = test.features["ner_tags"].feature.names
    other_order = names[::-1]
    reordered = test.map(
        lambda row: {"ner_tags": [other_order.index(names[tag]) for tag in row["ner_tags"]]},
        features=Features({**test.features, "ner_tags": List(ClassLabel(names=other_order))}),
    )
    DatasetDict(test=reordered).save_to_disk(tmp_path / "reordered" / "data")
    again = run(tmp_path / "reordered", tmp_path / "c", "--model_name_or_path", str(tmp_path / "a"))
    assert again["test"] == trained["test"]

    command = [sys.executable, str(SCRIPTS / "gate_report.py"), "--model_name_or_path", str(tmp_path / "a")]
    command += ["--num_examples", "2", "--use_cpu", "True", "--min_count", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    tables = []
    for place, data in enumerate((sample / "data", tmp_path / "reordered" / "data")):
        where = ["--dataset_name", str(data), "--output_dir", str(tmp_path / f"gates-{place}")]
        done = subprocess.run([*command, *where], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        tables.append((tmp_path / f"gates-{place}" / "gate_report.md").read_text())
        assert (tmp_path / f"gates-{place}" / "gate_report.html").exists()
    words = sum(len(row["tokens"]) for row in test if row["images"])
    assert re.search(rf"\| all words \| {words:,} \|", done.stdout)
    assert tables[0] == tables[1]


def test_image_ablation_is_the_runs_side_by_side_and_goes_on(sample, tmp_path):
    options = ["--image_ablation", "--seeds", "3", "4", "--image_dropout", "0.2", "--max_train_samples", "16"]
    report = run(sample, tmp_path, *options)
    assert report["seeds"] == [3, 4] and report["num_examples"] == 24
    assert report["verdict"] in report["stdout"]
    assert (tmp_path / "image_ablation.md").read_text().strip() in report["stdout"]
    assert (tmp_path / "image_ablation.png").stat().st_size > 10_000
    # the same scores as the runs themselves printed, and as one run alone with that seed
    for place, seed in enumerate((3, 4)):
        fused = json.loads((tmp_path / f"seed-{seed}" / "fused" / "results.json").read_text())["test"]
        twin = json.loads((tmp_path / f"seed-{seed}" / "text_only" / "results.json").read_text())["test"]
        expected = {**{name: scores["f1"] for name, scores in fused.items()}, "text_only": twin["none"]["f1"]}
        assert {name: scores["F1"][place] for name, scores in report["scores"].items()} == pytest.approx(expected)
        assert report["scores"]["true"]["LOC"][place] == pytest.approx(fused["true"]["LOC_f1"])
        assert not list((tmp_path / f"seed-{seed}").glob("*/checkpoint-*"))
    model = VTFusionForTokenClassification.from_pretrained(tmp_path / "seed-3" / "fused")
    assert model.config.image_dropout == 0.2
    assert report["verdict"] in (tmp_path / "seed-3" / "fused" / "README.md").read_text()
    assert "Not studied" in (tmp_path / "seed-3" / "text_only" / "README.md").read_text()

    (tmp_path / "seed-4" / "text_only" / "results.json").unlink()  # as if it had been stopped there
    again = run(sample, tmp_path, *options)
    assert again["stdout"].count("done before") == 3
    assert again["scores"] == report["scores"] and again["differences"] == report["differences"]


@needs_sequential
def test_text_only_twin_is_a_plain_token_classifier(sample, tmp_path):
    """The same seed, data order and optimizer in a plain loop around the text encoder and a head: the same losses."""
    from torch.nn import functional as F
    from transformers import AutoModel, get_linear_schedule_with_warmup, set_seed

    from vtfusion.training.collator import FusionCollator
    from vtfusion.training.images import ImageStore
    from vtfusion.training.token_classification import encode_windows
    from vtfusion.training.token_data import load_token_classification_dataset

    options = ["--text_only", "--weight_decay", "0", "--max_grad_norm", "1e9", "--eval_strategy", "no"]
    options += [
        "--load_best_model_at_end",
        "False",
        "--text_loss_weight",
        "0",
        "--train_sampling_strategy",
        "sequential",
    ]
    run(sample, tmp_path, *options, "--model_name_or_path", str(no_dropout(sample, tmp_path / "start")))

    start = VTFusionForTokenClassification.from_pretrained(tmp_path / "start")
    encoder = AutoModel.from_pretrained(sample / "text", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    head = torch.nn.Linear(128, 9)
    head.load_state_dict(start.classifier.state_dict())
    processor = VTFusionProcessor.from_pretrained(tmp_path / "start")
    rows = load_token_classification_dataset(str(sample / "data"))["train"]
    windows = encode_windows(rows, processor, [None] * len(rows))
    collate = FusionCollator(processor, ImageStore())
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 6)
    set_seed(0)
    expected = []
    for first in range(0, 48, 8):
        batch = collate([windows[i] for i in range(first, first + 8)])
        labels = batch.pop("labels")
        loss = F.cross_entropy(head(encoder(**batch).last_hidden_state).flatten(0, 1), labels.flatten())
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert losses(tmp_path) == pytest.approx(expected, abs=2e-4)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_losses(sample, tmp_path):
    options = ["--save_strategy", "steps", "--save_steps", "3", "--eval_strategy", "steps", "--eval_steps", "3"]
    options += ["--save_total_limit", "5"]
    run(sample, tmp_path, *options)
    expected = losses(tmp_path)
    assert len(expected) == 6
    run(sample, tmp_path, *options, "--resume_from_checkpoint", str(tmp_path / "checkpoint-3"))
    assert losses(tmp_path) == pytest.approx(expected, abs=1e-4)
