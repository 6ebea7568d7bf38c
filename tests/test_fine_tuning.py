"""One fine-tuning run: the best checkpoint and the one that a training goes on from are loaded whole."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, default_data_collator

from heads import make_head
from running import run_script
from tiny import tiny_inputs
from vtfusion import VTFusionForTokenClassification
from vtfusion.training.arguments import RunArguments, VTFusionTrainingArguments, random_order
from vtfusion.training.collator import FusionCollator
from vtfusion.training.fine_tuning import build_trainer, fine_tune, train_model
from vtfusion.training.images import ImageStore
from vtfusion.training.lora import add_lora
from vtfusion.training.trainer import VTFusionTrainer


def train(folder, vision, lora=False, **settings):
    """Two epochs, of which the first is the best; the model in memory and as it was saved."""
    inputs = {**tiny_inputs(vision, batch_size=4), "labels": torch.ones(4, 7, dtype=torch.long)}
    rows = [{name: value[row] for name, value in inputs.items()} for row in range(4)]
    falling = iter((0.9, 0.1))
    args = {"num_train_epochs": 2, "learning_rate": 1e-2, "use_cpu": True, "save_total_limit": 2, **random_order()}
    model = make_head("token", "bert", vision)
    if lora:
        add_lora(model.base_model.text_model)
    trainer = VTFusionTrainer(
        model=model,
        args=VTFusionTrainingArguments(output_dir=str(folder), **{**args, **settings}),
        data_collator=default_data_collator,
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=lambda _: {"f1": next(falling)},
    )
    train_model(trainer)
    return trainer.model.state_dict(), load(folder)


def test_the_validation_split_decides_and_without_one_nothing_is_evaluated(tmp_path):
    for splits, patience in (({"train": [1]}, None), ({"train": [1], "validation": [2]}, 3)):
        args = VTFusionTrainingArguments(output_dir=str(tmp_path), early_stopping_patience=patience, use_cpu=True)
        model = make_head("token", "bert", "resnet")
        collator = FusionCollator(None, ImageStore())
        trainer = build_trainer(VTFusionTrainer, model, None, collator, splits, args, metrics=["f1"])
        has_validation = "validation" in splits
        assert (args.eval_strategy != "no") == args.load_best_model_at_end == has_validation
        assert (trainer.train_dataset, trainer.eval_dataset) == ([1], [2] if has_validation else None)
        callbacks = trainer.callback_handler.callbacks
        stopping = [each.early_stopping_patience for each in callbacks if isinstance(each, EarlyStoppingCallback)]
        assert stopping == ([] if patience is None else [patience])
    args = VTFusionTrainingArguments(output_dir=str(tmp_path), early_stopping_patience=3, use_cpu=True)
    with pytest.raises(ValueError, match="`early_stopping_patience` needs a validation split"):
        build_trainer(VTFusionTrainer, model, None, collator, {"train": [1]}, args)


@pytest.mark.parametrize(
    "given, metric, greater",
    [
        ("f1", "f1", True),
        ("eval_f1", "f1", True),
        ("loss", "loss", False),
        ("eval_loss", "loss", False),
        ("calibration_error", "calibration_error", False),
    ],
)
def test_any_score_or_the_loss_chooses_the_checkpoint(given, metric, greater, tmp_path):
    args = VTFusionTrainingArguments(output_dir=str(tmp_path), metric_for_best_model=given, use_cpu=True)
    model, splits = make_head("token", "bert", "resnet"), {"train": [1], "validation": [2]}
    names = ["loss", "f1", "calibration_error"]
    trainer = build_trainer(
        VTFusionTrainer, model, None, FusionCollator(None, ImageStore()), splits, args, metrics=names
    )
    assert (trainer.args.metric_for_best_model, trainer.args.greater_is_better) == (metric, greater)


def test_an_unknown_score_is_refused_before_the_training(tmp_path):
    args = VTFusionTrainingArguments(output_dir=str(tmp_path), metric_for_best_model="F1", use_cpu=True)
    splits = {"train": [1], "validation": [2]}
    with pytest.raises(ValueError, match="`metric_for_best_model` is 'F1'; there are: loss, f1"):
        build_trainer(VTFusionTrainer, None, None, None, splits, args, metrics=["loss", "f1"])  # type: ignore[arg-type]


def load(folder):
    return VTFusionForTokenClassification.from_pretrained(folder).state_dict()


# transformers saves the weights of ViT, DINOv2, Swin and DETR under older names than the model has them by
@pytest.mark.parametrize("vision", ["resnet", "vit", "swin"])
def test_the_best_checkpoint_is_loaded_whole_and_so_is_one_to_go_on_from(vision, tmp_path):
    best, last = (tmp_path / "run" / f"checkpoint-{step}" for step in (1, 2))
    trained, saved = train(tmp_path / "run", vision)
    assert any(not torch.equal(value, load(last)[name]) for name, value in load(best).items() if "vision" in name)
    for found in (trained, saved):
        torch.testing.assert_close(found, load(best), rtol=0, atol=0)
    # with no step left, what a training goes on from is what it ends with
    options = {"num_train_epochs": 1, "load_best_model_at_end": False, "resume_from_checkpoint": str(best)}
    trained, saved = train(tmp_path / "resumed", vision, **options)
    for found in (trained, saved):
        torch.testing.assert_close(found, load(best), rtol=0, atol=0)


@pytest.mark.parametrize(
    "script, flag, column, field",
    [
        ("run_classification.py", "label_column", "several", "predicted"),
        ("run_qa.py", "answers_column", "answers", "predicted_answer"),
        ("run_vqa.py", "answer_column", "answer", "predicted_answer"),
    ],
)
def test_a_test_split_without_labels_is_predicted_and_not_scored(script, flag, column, field, colours, tmp_path):
    rows = [json.loads(line) for line in (colours / "test.jsonl").read_text().splitlines()]
    unlabelled = tmp_path / "unlabelled.jsonl"
    asked = ("text", "question", "context", "image")
    unlabelled.write_text("".join(json.dumps({name: row[name] for name in asked}) + "\n" for row in rows))
    where = ["--image_folder", str(colours), "--test_file", str(unlabelled)]
    results = run_script(script, colours, tmp_path, f"--{flag}", column, *where)
    assert "test" not in results and set(results["validation"]) == {"true"} and results["texts"]["test"] == 18
    assert "test: 18 predictions written" in results["stdout"]
    card = (tmp_path / "README.md").read_text()
    assert "validation" in card and "split: test" not in card and "in test" not in card
    records = [json.loads(line) for line in (tmp_path / "test_predictions.jsonl").read_text().splitlines()]
    true = "answers" if "qa" in script else "label"
    assert len(records) == 18 and all(record[true] is None for record in records)
    assert all({field, f"{field}_none"} <= record.keys() for record in records)


def test_a_validation_split_without_labels_cannot_choose_a_checkpoint(tmp_path):
    judge = SimpleNamespace(labelled=False)
    args = VTFusionTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match=r"validation split has no labels.*--eval_strategy no"):
        fine_tune(None, None, None, {"train": []}, {"validation": judge}, RunArguments("", None, None, args))  # type: ignore[arg-type]


def test_adapters_are_loaded_beside_a_trained_vision_encoder(tmp_path):
    pytest.importorskip("peft")
    trained, saved = train(tmp_path, "vit", lora=True)
    best = load(tmp_path / "checkpoint-1")
    assert any("lora_B" in name for name in load_file(tmp_path / "checkpoint-1" / "model.safetensors"))
    for found in (trained, saved):
        seen = {name: value for name, value in found.items() if "vision_model" in name}
        torch.testing.assert_close(seen, {name: best[name] for name in seen}, rtol=0, atol=0)
        assert not any("lora" in name for name in found)
