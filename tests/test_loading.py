"""From arguments to a model with its processor: what a flag changes in a new model and in a checkpoint."""

import pytest
import torch
from transformers.utils import logging

from heads import HEADS, make_head
from vtfusion import (
    VTFusionForImageTextRetrieval,
    VTFusionForPreTraining,
    VTFusionForQuestionAnswering,
    VTFusionForSequenceClassification,
    VTFusionForTokenClassification,
    VTFusionForVisualQuestionAnswering,
)
from vtfusion.training import loading
from vtfusion.training.arguments import ModelArguments
from vtfusion.training.loading import load_model
from vtfusion.training.sample_data import build_sample_dataset, build_tiny_encoders

NAMES = ["O", "B-LOC", "I-LOC"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    build_tiny_encoders(folder, build_sample_dataset(num_train=8, num_validation=4, num_test=4, image_size=32), 0, 32)
    return folder


@pytest.fixture(scope="module")
def checkpoint(encoders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    args = ModelArguments(
        text_model=str(encoders / "text"), vision_model=str(encoders / "vision"), fusion_hidden_size=16,
        image_dropout=0.25, text_loss_weight=0.75, max_length=32, window_stride=8,
    )  # fmt: skip
    model, processor = load_model(VTFusionForTokenClassification, args, NAMES)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_flags_reach_a_new_model(checkpoint):
    model, processor = load_model(
        VTFusionForTokenClassification, ModelArguments(model_name_or_path=str(checkpoint)), NAMES
    )
    config = model.config
    assert (config.fusion_hidden_size, config.image_dropout, config.text_loss_weight) == (16, 0.25, 0.75)
    assert (config.num_fusion_layers, config.vision_loss_weight) == (1, 0.1)  # left out: the model's own defaults
    assert (processor.window_length, processor.window_stride) == (32, 8)
    assert config.id2label == dict(enumerate(NAMES))


def test_flags_change_a_checkpoint_and_what_is_left_out_stays(checkpoint):
    args = ModelArguments(model_name_or_path=str(checkpoint), image_dropout=0.5, max_length=16)
    model, processor = load_model(VTFusionForTokenClassification, args, NAMES)
    assert (model.config.image_dropout, model.config.text_loss_weight) == (0.5, 0.75)
    assert (processor.window_length, processor.window_stride) == (16, 8)


@pytest.mark.parametrize("flag", ["fusion_hidden_size", "num_fusion_layers", "num_fusion_heads"])
def test_shapes_of_a_checkpoint_cannot_change(checkpoint, flag):
    args = ModelArguments(model_name_or_path=str(checkpoint), **{flag: 4})
    with pytest.raises(ValueError, match=f"`{flag}` cannot change"):
        load_model(VTFusionForTokenClassification, args, NAMES)


def test_other_labels_get_a_new_head(checkpoint):
    args = ModelArguments(model_name_or_path=str(checkpoint))
    model, _ = load_model(VTFusionForTokenClassification, args, [*NAMES, "B-PER", "I-PER"])
    assert model.classifier.weight.shape[0] == 5


@pytest.mark.parametrize("head", [VTFusionForTokenClassification, VTFusionForVisualQuestionAnswering])
def test_as_many_other_labels_get_a_new_head(encoders, tmp_path, monkeypatch, caplog, head):
    args = ModelArguments(text_model=str(encoders / "text"), vision_model=str(encoders / "vision"))
    trained, processor = load_model(head, args, NAMES)
    for parameter in trained.parameters():
        torch.nn.init.normal_(parameter, std=7.0)
    trained.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    args = ModelArguments(model_name_or_path=str(tmp_path))
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    monkeypatch.setattr(loading.logger, "propagate", True)
    for names in (NAMES, ["O", "B-PER", "I-PER"]):
        caplog.clear()
        model, _ = load_model(head, args, names)
        assert model.config.id2label == dict(enumerate(names))
        others = dict(trained.named_parameters())
        changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, others[name])}
        expected = {f"{layer}.{part}" for layer in ("classifier", "vision_classifier") for part in ("weight", "bias")}
        expected |= {"merge.output.weight"} if head is VTFusionForVisualQuestionAnswering else set()
        assert changed == (set() if names == NAMES else expected)
        assert ("its head begins anew for O, B-PER, I-PER" in caplog.text) == bool(changed)
    # drawn as in a new model, and trained
    new, _ = load_model(head, ModelArguments(text_model=encoders / "text", vision_model=encoders / "vision"), NAMES)
    for name, weight in new.named_parameters():
        if name in expected:
            drawn = model.get_parameter(name)
            assert drawn.requires_grad and drawn.shape == weight.shape
            assert not (drawn.any() or weight.any()) or 0.6 < drawn.std() / weight.std() < 1.6, name


def test_freezing(encoders):
    args = ModelArguments(text_model=str(encoders / "text"), vision_model=str(encoders / "vision"), freeze_text=True)
    model, _ = load_model(VTFusionForTokenClassification, args, NAMES)
    trained = {name.split(".")[1] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "text_model" not in trained and "vision_model" not in trained


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "Give `text_model` and `vision_model`, or a VTFusion model"),
        ({"text_model": "a"}, "Give `text_model` and `vision_model`"),
        ({"model_name_or_path": "a", "text_model": "b"}, "not both"),
    ],
)
def test_unclear_choices_raise(args, message):
    with pytest.raises(ValueError, match=message):
        load_model(VTFusionForTokenClassification, ModelArguments(**args), NAMES)


@pytest.mark.parametrize(
    ("head", "unread"),
    [
        (VTFusionForTokenClassification, {"pooling": "first", "matching_loss_weight": 0.5}),
        (VTFusionForSequenceClassification, {"matching_loss_weight": 0.5}),
        (VTFusionForQuestionAnswering, {"pooling": "first", "class_weights": [1.0, 2.0], "label_smoothing": 0.1}),
        (VTFusionForPreTraining, {"pooling": "first", "vision_loss_weight": 0.1, "label_smoothing": 0.1}),
        (VTFusionForImageTextRetrieval, {"fusion_loss_weight": 1.0, "text_loss_weight": 0.0}),
    ],
)
def test_flags_that_a_head_does_not_read_are_refused(head, unread):
    with pytest.raises(ValueError, match="would do nothing") as error:
        load_model(head, ModelArguments(**unread, contrastive_loss_weight=0.5))
    assert all(f"`{name}`" in str(error.value) for name in unread)
    assert "contrastive_loss_weight" not in str(error.value) and head.__name__ in str(error.value)


def test_class_weights_of_other_labels_are_not_taken_over(encoders, tmp_path):
    args = ModelArguments(
        text_model=str(encoders / "text"), vision_model=str(encoders / "vision"), fusion_hidden_size=16,
        class_weights=[1.0, 4.0],
    )  # fmt: skip
    model, processor = load_model(VTFusionForSequenceClassification, args, ["no", "yes"])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    def weights(names, **flags):
        args = ModelArguments(model_name_or_path=str(tmp_path), **flags)
        return load_model(VTFusionForSequenceClassification, args, names)[0].config.class_weights

    assert weights(["no", "yes"]) == [1.0, 4.0]
    assert weights(["good", "bad"]) is None
    assert weights(["a", "b", "c"]) is None
    assert weights(["a", "b", "c"], class_weights=[1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]


CHANGES = {
    "pooling": "first",
    "class_weights": [1.0, 2.0, 3.0],
    "label_smoothing": 0.3,
    "fusion_loss_weight": 0.6,
    "text_loss_weight": 0.2,
    "vision_loss_weight": 0.3,
    "matching_loss_weight": 0.4,
    "cross_attention_every": 1,
    "num_resampler_tokens": 3,
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", CHANGES)
def test_a_flag_is_refused_where_it_changes_no_loss(head, name):
    inputs = {**HEADS[head].inputs("precomputed"), **HEADS[head].labels(2)}
    with torch.no_grad():
        before, after = (make_head(head, **settings)(**inputs).loss for settings in ({}, {name: CHANGES[name]}))
    with pytest.raises(ValueError, match=r"would do nothing|Give `text_model`") as error:
        load_model(HEADS[head].model, ModelArguments(**{name: CHANGES[name]}))
    assert ("would do nothing" in str(error.value)) == torch.equal(before, after)


def test_flags_of_adapters_are_refused_without_adapters():
    with pytest.raises(ValueError, match="`lora_rank`, `lora_dropout` would do nothing without `use_lora`"):
        ModelArguments(lora_rank=4, lora_dropout=0.1)
