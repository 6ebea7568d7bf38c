"""The model's promises: what may not change a result, rows without an image, freezing, precision, adapters, errors."""

import copy

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import (
    AutoModel,
    AutoModelForObjectDetection,
    BartConfig,
    CLIPConfig,
    CLIPModel,
    DeiTConfig,
    DetrConfig,
    Dinov2WithRegistersConfig,
    EfficientNetConfig,
    HieraConfig,
    MaskFormerSwinConfig,
    MobileNetV2Config,
    PreTrainedConfig,
    ResNetConfig,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
    YolosConfig,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from heads import HEADS
from tiny import HIDDEN, IMAGE, TEXT, VISION, VOCAB, gradients, randomize_fusion, run, tiny_config, tiny_inputs
from vtfusion import VTFusionConfig, VTFusionForTokenClassification, VTFusionModel, modeling_vtfusion, visual_vtfusion
from vtfusion.visual_vtfusion import (
    build_encoder,
    encoder_auto_class,
    grid_boxes,
    read_features,
    split_prefix_tokens,
    visual_hidden_size,
)

LABELS = torch.tensor([[0, 1, 2, -100, 0, 1, 2], [1, 1, 0, 2, 0, -100, -100]])
LAYERS = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
NO_DROPOUT = {"fusion_dropout": 0.0, "classifier_dropout": 0.0}


def make_model(
    text: str = "bert", vision: str = "precomputed", seed: int = 0, **kwargs: object
) -> VTFusionForTokenClassification:
    torch.manual_seed(seed)
    model = VTFusionForTokenClassification(tiny_config(text, vision, **kwargs)).eval()
    randomize_fusion(model)
    return model


def all_losses(text: str = "bert", vision: str = "precomputed", **kwargs: object) -> VTFusionForTokenClassification:
    return make_model(text, vision, num_fusion_layers=2, contrastive_loss_weight=0.1, **kwargs)


def without_images(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in inputs.items() if name in ("input_ids", "attention_mask", "labels")}


def assert_finite_gradients(model: torch.nn.Module) -> None:
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    assert bad == []


# ------------------------------------------------------------------------------- 1. what may not change the result


@pytest.mark.parametrize("text", ["bert", "roberta", "modernbert", "deberta-v2", "llama"])
def test_ids_of_padding_change_nothing(text):
    model = all_losses(text)
    inputs = tiny_inputs("precomputed") | {"labels": LABELS}
    changed = inputs | {"input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][-1, -2:] = 17
    if text == "roberta":  # it derives positions from the padding id
        positions = torch.arange(2, 9).expand(2, 7)
        inputs, changed = inputs | {"position_ids": positions}, changed | {"position_ids": positions}
    one, other = run(model, **inputs), run(model, **changed)
    keep = inputs["attention_mask"].bool()
    torch.testing.assert_close(other.logits[keep], one.logits[keep], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.loss, one.loss, rtol=1e-5, atol=1e-5)


def test_padding_is_not_read_by_the_image():
    """Two layers: a padded token read by the image in the first would reach every token in the second."""
    model = all_losses()
    inputs = without_images(tiny_inputs()) | {"visual_embeds": torch.randn(2, 5, 12)}
    words = model.get_input_embeddings()(inputs.pop("input_ids"))
    changed = words.clone()
    changed[-1, -2:] = torch.randn(2, HIDDEN)
    one = run(model, inputs_embeds=words, output_fusion_attentions=True, **inputs)
    other = run(model, inputs_embeds=changed, output_fusion_attentions=True, **inputs)
    assert not torch.allclose(one.logits[-1, -2:], other.logits[-1, -2:], atol=1e-3)
    torch.testing.assert_close(other.logits[-1, :-2], one.logits[-1, :-2], rtol=1e-5, atol=1e-5)
    assert not one.image_to_text_attention[-1, :, :, -2:].any()


@pytest.mark.parametrize("text", TEXT)
def test_more_padding_on_the_right_changes_nothing(text):
    model = all_losses(text)
    inputs = tiny_inputs("precomputed") | {"labels": LABELS}
    longer = inputs | {
        "input_ids": torch.nn.functional.pad(inputs["input_ids"], (0, 3)),
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 3)),
        "labels": torch.nn.functional.pad(LABELS, (0, 3), value=-100),
    }
    one, other = run(model, **inputs), run(model, **longer)
    keep = inputs["attention_mask"].bool()
    torch.testing.assert_close(other.logits[:, :7][keep], one.logits[keep], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.loss, one.loss, rtol=1e-5, atol=1e-5)


def test_pixels_of_absent_images_change_nothing():
    model = all_losses(vision="resnet")
    pixels = torch.randn(2, 3, 3, IMAGE, IMAGE)
    inputs = without_images(tiny_inputs()) | {"image_mask": torch.tensor([[1, 0, 1], [0, 0, 1]]), "labels": LABELS}
    changed = pixels.clone()
    changed[0, 1], changed[1, 0], changed[1, 1] = 100.0, float("nan"), float("inf")
    one, other = run(model, pixel_values=pixels, **inputs), run(model, pixel_values=changed, **inputs)
    assert torch.equal(one.logits, other.logits) and torch.equal(one.loss, other.loss)


@pytest.mark.parametrize("filler", [1e4, float("nan"), float("inf")])
def test_absent_regions_change_nothing(filler):
    model = all_losses()
    inputs = tiny_inputs("precomputed") | {"visual_mask": torch.tensor([[1, 1, 1, 0, 0], [1] * 5]), "labels": LABELS}
    changed = inputs | {name: inputs[name].clone() for name in ("visual_embeds", "visual_boxes")}
    changed["visual_embeds"][0, 3:] = filler
    changed["visual_boxes"][0, 3:] = filler
    one, other = run(model, **inputs), run(model, **changed)
    assert torch.equal(one.logits, other.logits) and torch.equal(one.loss, other.loss)
    model(**changed).loss.backward()
    assert_finite_gradients(model)


def test_more_regions_of_padding_change_nothing():
    model = all_losses()
    inputs = tiny_inputs("precomputed") | {"labels": LABELS}
    longer = inputs | {
        "visual_embeds": torch.nn.functional.pad(inputs["visual_embeds"], (0, 0, 0, 3), value=7.0),
        "visual_boxes": torch.nn.functional.pad(inputs["visual_boxes"], (0, 0, 0, 3)),
        "visual_mask": torch.nn.functional.pad(torch.ones(2, 5), (0, 3)),
    }
    one, other = run(model, **inputs), run(model, **longer)
    torch.testing.assert_close(other.logits, one.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.loss, one.loss, rtol=1e-5, atol=1e-5)


def test_an_empty_image_slot_changes_nothing():
    model = all_losses(vision="vit")
    inputs = tiny_inputs("vit") | {"labels": LABELS}
    longer = inputs | {
        "pixel_values": torch.cat([inputs["pixel_values"], torch.zeros(2, 1, 3, IMAGE, IMAGE)], dim=1),
        "image_mask": torch.tensor([[1, 0], [1, 0]]),
    }
    one, other = run(model, **inputs), run(model, **longer)
    torch.testing.assert_close(other.logits, one.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.loss, one.loss, rtol=1e-5, atol=1e-5)


def test_permuting_the_batch_permutes_the_result():
    model = make_model(vision="resnet")
    inputs = tiny_inputs(batch_size=4) | {"image_mask": torch.tensor([[1], [0], [1], [1]])}
    order = torch.tensor([2, 3, 1, 0])
    one = run(model, **inputs)
    other = run(model, **{name: value[order] for name, value in inputs.items()})
    torch.testing.assert_close(other.logits, one.logits[order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.fusion_gate, one.fusion_gate[order], rtol=1e-5, atol=1e-5)


def test_rows_do_not_touch_each_other():
    model = make_model(vision="resnet")
    inputs = tiny_inputs(batch_size=3)
    together = run(model, **inputs)
    for row in range(3):
        alone = run(model, **{name: value[row : row + 1] for name, value in inputs.items()})
        torch.testing.assert_close(alone.logits[0], together.logits[row], rtol=1e-5, atol=1e-5)


def test_order_of_regions_without_place_does_not_matter():
    model = make_model()
    inputs = without_images(tiny_inputs())
    embeds = torch.randn(2, 5, 12)
    one = run(model, visual_embeds=embeds, **inputs)
    other = run(model, visual_embeds=embeds[:, [4, 2, 0, 1, 3]], **inputs)
    torch.testing.assert_close(other.logits, one.logits, rtol=1e-5, atol=1e-5)


def test_order_of_images_matters():
    model = make_model(vision="resnet")
    inputs = without_images(tiny_inputs())
    pixels = torch.randn(2, 2, 3, IMAGE, IMAGE)
    one = run(model, pixel_values=pixels, **inputs)
    other = run(model, pixel_values=pixels.flip(1), **inputs)
    assert not torch.allclose(one.logits, other.logits, atol=1e-4)


def test_boxes_matter():
    model = make_model()
    inputs = tiny_inputs("precomputed")
    one = run(model, **inputs)
    other = run(model, **inputs | {"visual_boxes": inputs["visual_boxes"].flip(1)})
    assert not torch.allclose(one.logits, other.logits, atol=1e-4)


@pytest.mark.parametrize("vision", ["resnet", "vit", "detr"])
def test_four_dimensional_pixels_are_one_image_each(vision):
    model = make_model(vision=vision)
    inputs = tiny_inputs(vision)
    flat = inputs | {"pixel_values": inputs["pixel_values"][:, 0]}
    assert torch.equal(run(model, **inputs).logits, run(model, **flat).logits)


def test_one_dimensional_image_mask():
    model = make_model(vision="resnet")
    inputs = tiny_inputs()
    expected = run(model, image_mask=torch.tensor([[1], [0]]), **inputs)
    assert torch.equal(run(model, image_mask=torch.tensor([1, 0]), **inputs).logits, expected.logits)


def test_pixel_mask_reaches_a_detector():
    model = make_model(vision="detr")
    inputs = tiny_inputs("detr")
    mask = torch.ones(2, 1, IMAGE, IMAGE, dtype=torch.long)
    assert torch.equal(run(model, pixel_mask=mask, **inputs).logits, run(model, **inputs).logits)
    mask[:, :, :, IMAGE // 2 :] = 0
    padded = run(model, pixel_mask=mask, **inputs).logits
    assert not torch.allclose(padded, run(model, **inputs).logits, atol=1e-5)
    flat = run(model, pixel_mask=mask[:, 0], **inputs | {"pixel_values": inputs["pixel_values"][:, 0]})
    assert torch.equal(flat.logits, padded)


@pytest.mark.parametrize("vision", ["resnet", "vit", "swin", "detr"])
def test_cached_features_equal_pixels(vision):
    model = make_model(vision=vision)
    inputs = tiny_inputs(vision)
    mask = torch.tensor([[1, 1], [0, 1]])
    pixels = torch.cat([inputs["pixel_values"], inputs["pixel_values"] + 1], dim=1)
    with torch.no_grad():
        features, boxes = model.vtfusion.get_visual_features(pixels, mask)
    assert features.shape[:2] == boxes.shape[:2] == (2, 2)
    text = without_images(inputs)
    expected = run(model, pixel_values=pixels, image_mask=mask, **text)
    cached = run(model, visual_embeds=features, visual_boxes=boxes, image_mask=mask, **text)
    assert torch.equal(cached.logits, expected.logits)
    assert torch.equal(cached.visual_mask, expected.visual_mask)


def test_regions_without_boxes_may_be_anywhere():
    model = make_model()
    inputs = tiny_inputs("precomputed")
    del inputs["visual_boxes"]
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(2, 5, 4)
    assert torch.equal(run(model, **inputs).logits, run(model, visual_boxes=whole, **inputs).logits)


def test_no_regions_at_all_is_finite():
    outputs = run(make_model(), **without_images(tiny_inputs()), visual_embeds=torch.zeros(2, 0, 12))
    assert torch.isfinite(outputs.logits).all()


# ----------------------------------------------------------------------------------------- 2. rows without an image


@pytest.mark.parametrize("vision", ["resnet", "vit", "detr"])
def test_row_without_image_equals_text_only_result_exactly(vision):
    model = make_model(vision=vision, num_fusion_layers=2)
    inputs = tiny_inputs(vision, batch_size=3)
    text_only = run(model, **without_images(inputs))
    mixed = run(model, image_mask=torch.tensor([[1], [0], [1]]), **inputs)
    assert torch.equal(mixed.logits[1], text_only.logits[1])
    assert torch.equal(mixed.last_hidden_state[1], text_only.last_hidden_state[1])
    assert not mixed.fusion_gate[1].any()
    assert (mixed.fusion_gate[[0, 2]] > 0).all()
    assert not torch.allclose(mixed.logits[0], text_only.logits[0], atol=1e-4)
    none = run(model, image_mask=torch.zeros(3, 1), **inputs)
    assert torch.equal(none.logits, text_only.logits)


def test_row_without_image_alone_equals_text_only_result_exactly():
    model = make_model(vision="resnet")
    row = {name: value[:1] for name, value in tiny_inputs().items()}
    masked = run(model, image_mask=torch.zeros(1, 1), **row)
    assert torch.equal(masked.logits, run(model, **without_images(row)).logits)


def test_row_without_regions_equals_text_only_result_exactly():
    model = make_model(num_fusion_layers=2)
    inputs = tiny_inputs("precomputed")
    text_only = run(model, **without_images(inputs))
    mixed = run(model, visual_mask=torch.tensor([[0] * 5, [1] * 5]), **inputs)
    assert torch.equal(mixed.logits[0], text_only.logits[0])
    none = run(model, visual_mask=torch.zeros(2, 5), **inputs)
    assert torch.equal(none.logits, text_only.logits)


@pytest.mark.parametrize("mask", [[[1, 0], [0, 0]], [[0, 0], [0, 0]]], ids=["one row", "every row"])
@pytest.mark.parametrize("vision", ["resnet", "vit", "precomputed"])
def test_no_nan_without_images(vision, mask):
    model = all_losses(vision=vision).train()
    inputs = without_images(tiny_inputs()) | {"labels": LABELS, "image_mask": torch.tensor(mask)}
    absent = ~inputs["image_mask"].bool()
    if vision == "precomputed":
        inputs["visual_embeds"] = torch.randn(2, 2, 5, 12)
        inputs["visual_embeds"][absent] = float("nan")
    else:
        inputs["pixel_values"] = torch.randn(2, 2, 3, IMAGE, IMAGE)
        inputs["pixel_values"][absent] = float("nan")
    outputs = model(**inputs)
    assert torch.isfinite(outputs.loss) and torch.isfinite(outputs.logits).all()
    outputs.loss.backward()
    assert_finite_gradients(model)


@pytest.mark.parametrize("mask", [False, True])
def test_image_dropout_takes_all_images_of_some_rows_in_training_only(mask):
    rate, rows = 0.3, 400
    model = make_model(image_dropout=rate, **NO_DROPOUT)
    for module in model.modules():  # the text encoder's own dropout would hide which rows are equal
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.manual_seed(0)
    inputs = {
        "input_ids": torch.randint(3, VOCAB, (rows, 3)),
        "visual_embeds": torch.randn(rows, 2, 3, model.config.visual_hidden_size),
    }
    if mask:
        inputs["image_mask"] = torch.ones(rows, 2, dtype=torch.long)
    with_images = run(model, **inputs).logits
    text_only = run(model, input_ids=inputs["input_ids"]).logits
    trained = run(model.train(), **inputs).logits
    lost = (trained == text_only).all(-1).all(-1)
    assert 0.2 < lost.float().mean() < 0.4
    torch.testing.assert_close(trained[~lost], with_images[~lost])
    assert not torch.isclose(with_images, text_only).all(-1).all(-1).any()


@pytest.mark.parametrize("vision", ["resnet", "precomputed"])
def test_leaving_rows_out_of_the_fusion_changes_nothing(vision, monkeypatch):
    model = all_losses(vision=vision).double()
    inputs = {name: value.repeat(2, *[1] * (value.dim() - 1)) for name, value in tiny_inputs(vision).items()}
    inputs |= {"labels": LABELS.repeat(2, 1), "image_mask": torch.tensor([[0], [1], [1], [0]])}
    inputs |= {name: value.double() for name, value in inputs.items() if value.is_floating_point()}
    results = []
    for left_out in (True, False):
        if not left_out:  # as on an accelerator
            monkeypatch.setattr(modeling_vtfusion, "_rows_to_fuse", lambda visual_mask: None)
        model.zero_grad()
        outputs = model(**inputs, output_fusion_attentions=True)
        outputs.loss.backward()
        results.append((dict(outputs), gradients(model)))
        parts = {name: value for name, value in inputs.items() if name != "labels"}
        alignment = model.vtfusion(**parts, output_alignment=True)
        assert (alignment.alignment_query.shape[0] == 2) == left_out
        assert alignment.fused_rows is None or alignment.fused_rows.tolist() == [1, 2]
    torch.testing.assert_close(results[0], results[1])


def test_row_without_image_gives_the_fused_branch_no_gradient():
    model = make_model(vision_loss_weight=0.0)
    inputs = tiny_inputs("precomputed")
    labels = LABELS.clone()
    labels[1] = -100
    model(**inputs, image_mask=torch.tensor([[0], [1]]), labels=labels).loss.backward()
    assert not model.vtfusion.fusion.output.weight.grad.any()
    assert not model.vtfusion.visual_projection.weight.grad.any()
    assert model.classifier.weight.grad.any()


def test_text_only_call_runs_no_vision_encoder():
    model = make_model(vision="resnet")
    calls = []
    model.vtfusion.vision_model.register_forward_hook(lambda *_: calls.append(1))
    inputs = tiny_inputs()
    outputs = run(model, **without_images(inputs))
    run(model, image_mask=torch.zeros(2, 1), **inputs)
    assert calls == []
    assert outputs.visual_hidden_state is None and outputs.visual_context is None and outputs.visual_boxes is None
    assert torch.equal(outputs.last_hidden_state, outputs.text_hidden_state)
    assert outputs.fusion_gate.shape == (2, 7) and not outputs.fusion_gate.any()
    run(model, **inputs)
    assert calls == [1]


def test_text_only_losses():
    model = all_losses()
    outputs = model(**without_images(tiny_inputs()), labels=LABELS)
    assert outputs.vision_loss is None and outputs.contrastive_loss is None
    assert torch.equal(outputs.text_loss, outputs.fusion_loss)
    torch.testing.assert_close(outputs.loss, 1.5 * outputs.fusion_loss)


@pytest.mark.parametrize("text", ["bert", "llama", "mamba"])
@pytest.mark.parametrize("vision", ["resnet", "vit", "precomputed"])
def test_new_model_is_its_text_encoder(text, vision):
    torch.manual_seed(0)
    model = VTFusionForTokenClassification(tiny_config(text, vision, num_fusion_layers=2)).eval()
    inputs = tiny_inputs(vision)
    with torch.no_grad():
        encoded = model.vtfusion.text_model(**without_images(inputs)).last_hidden_state
        expected = model.classifier(encoded)
        assert torch.equal(model(**inputs).logits, expected)
    assert not model.vtfusion.fusion.output.weight.any()


def test_model_from_a_base_of_an_older_fusion_starts_at_zero(tmp_path):
    """Weights that a folder lacks are made new at loading: W_o then starts at zero too."""
    torch.manual_seed(0)
    model = VTFusionModel(tiny_config())
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("fusion")}
    model.save_pretrained(tmp_path, state_dict=kept)
    loaded = VTFusionModel.from_pretrained(tmp_path)
    assert not loaded.fusion.output.weight.any() and not loaded.fusion.output.bias.any()
    assert loaded.fusion.gate.weight.any()
    assert loaded.fusion_layers[0].scale().flatten().tolist() == pytest.approx([10.0, 10.0])


def test_initial_scales():
    model = VTFusionModel(tiny_config(temperature_init=0.25, contrastive_loss_weight=0.1))
    assert model.fusion_layers[0].scale().flatten().tolist() == pytest.approx([4.0, 4.0])
    assert model.contrastive_log_scale.exp().item() == pytest.approx(1 / 0.07)


def test_absent_images_are_not_encoded():
    model = make_model(vision="resnet").train()
    sizes = []
    model.vtfusion.vision_model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    twin = copy.deepcopy(model)
    pixels = torch.randn(2, 3, 3, IMAGE, IMAGE)
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]])
    model(pixel_values=pixels, image_mask=mask, **without_images(tiny_inputs()))
    assert sizes == [3]
    twin.vtfusion.vision_model(pixel_values=pixels[mask.bool()])
    buffers = dict(twin.vtfusion.vision_model.named_buffers())
    assert any("running_mean" in name for name in buffers)
    for name, value in model.vtfusion.vision_model.named_buffers():
        assert torch.equal(value, buffers[name])


# ----------------------------------------------------------------------------------------------------- 3. outputs


def test_outputs_only_on_request():
    outputs = run(make_model(vision="resnet").vtfusion, **tiny_inputs())
    assert set(outputs) == {
        "last_hidden_state",
        "text_hidden_state",
        "visual_hidden_state",
        "visual_context",
        "fusion_gate",
        "visual_boxes",
    }
    outputs = run(make_model(vision="resnet"), **tiny_inputs())
    assert outputs.loss is None and outputs.similarity is None and outputs.text_to_image_attention is None
    assert outputs.image_to_text_attention is None and outputs.attentions is None and outputs.hidden_states is None
    assert "image_state" not in outputs and "alignment_key" not in outputs


def test_fusion_attentions():
    model = make_model(num_fusion_layers=2)
    inputs = tiny_inputs("precomputed") | {"visual_mask": torch.tensor([[1, 1, 1, 0, 0], [1] * 5])}
    outputs = run(model, output_fusion_attentions=True, **inputs)
    assert outputs.similarity.shape == outputs.text_to_image_attention.shape == (2, 2, 7, 5)
    assert outputs.image_to_text_attention.shape == (2, 2, 5, 7)
    assert outputs.similarity.abs().max() <= 1 + 1e-6
    ones = torch.ones(2, 2, 7)
    torch.testing.assert_close(outputs.text_to_image_attention.sum(dim=-1), ones)
    there = inputs["visual_mask"].float()[:, None].expand(2, 2, 5)
    torch.testing.assert_close(outputs.image_to_text_attention.sum(dim=-1), there)
    scores = outputs.similarity * model.vtfusion.fusion_layers[-1].scale()
    torch.testing.assert_close(outputs.text_to_image_attention[1], scores[1].softmax(dim=-1))
    torch.testing.assert_close(outputs.text_to_image_attention[0, ..., :3], scores[0, ..., :3].softmax(dim=-1))
    torch.testing.assert_close(outputs.image_to_text_attention[0, :, :3], scores[0].mT[:, :3].softmax(dim=-1))
    assert torch.equal(outputs.logits, run(model, **inputs).logits)


def test_fusion_attentions_by_config():
    model = make_model(output_fusion_attentions=True)
    assert run(model, **tiny_inputs("precomputed")).similarity is not None
    assert run(model, output_fusion_attentions=False, **tiny_inputs("precomputed")).similarity is None


def test_alignment_on_request():
    outputs = run(make_model().vtfusion, output_alignment=True, **tiny_inputs("precomputed"))
    assert outputs.image_state.shape == (2, 5, 16)
    assert outputs.alignment_query.shape == (2, 2, 7, 8) and outputs.alignment_key.shape == (2, 2, 5, 8)
    torch.testing.assert_close(outputs.alignment_key.norm(dim=-1), torch.ones(2, 2, 5))


@pytest.mark.parametrize("with_image", [True, False])
def test_tuples_follow_the_order_of_the_fields(with_image):
    model = all_losses()
    inputs = tiny_inputs("precomputed") if with_image else without_images(tiny_inputs())
    for part, extra in ((model, {"labels": LABELS}), (model.vtfusion, {"output_alignment": True})):
        flags = {"output_fusion_attentions": True, "output_hidden_states": True}
        outputs = run(part, **inputs, **extra, **flags)
        values = run(part, **inputs, **extra, **flags, return_dict=False)
        assert isinstance(values, tuple) and len(values) == len(outputs)
        order = [name for name in type(outputs).__dataclass_fields__ if name in outputs]
        assert list(outputs) == order
        for name, value in zip(order, values, strict=True):
            assert name == "hidden_states" or torch.equal(outputs[name], value), name


@pytest.mark.parametrize("text", ["bert", "distilbert", "llama", "modernbert"])
def test_hidden_states_of_the_text_encoder(text):
    outputs = run(make_model(text), output_hidden_states=True, **tiny_inputs("precomputed"))
    assert len(outputs.hidden_states) == 3
    assert all(state.shape == (2, 7, HIDDEN) for state in outputs.hidden_states)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="lists in output_hidden_states came with 5.23"
)
def test_hidden_states_of_chosen_layers():
    states = run(make_model(), output_hidden_states=[0, 2], **tiny_inputs("precomputed")).hidden_states
    assert states[0] is not None and states[1] is None and states[2] is not None


def test_attentions_of_the_text_encoder():
    model = make_model(vision="resnet")
    model.set_attn_implementation("eager")
    outputs = run(model, output_attentions=True, **tiny_inputs())
    assert len(outputs.attentions) == 2
    assert all(attention.shape == (2, 4, 7, 7) for attention in outputs.attentions)
    assert not outputs.attentions[0][1, :, :, -2:].any()


def test_output_flags_of_the_config():
    model = make_model(output_hidden_states=True)
    assert len(run(model, **tiny_inputs("precomputed")).hidden_states) == 3
    model = make_model()
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    assert len(run(model, **tiny_inputs("precomputed")).attentions) == 2
    assert run(model, **tiny_inputs("precomputed"), output_attentions=False).attentions is None


def test_flags_of_the_text_encoders_config_stay_on():
    model = make_model()
    model.config.text_config.output_hidden_states = True
    assert len(run(model, **tiny_inputs("precomputed")).hidden_states) == 3


@pytest.mark.parametrize("text", ["bert", "llama"])
def test_inputs_embeds_equal_input_ids(text):
    model = make_model(text)
    inputs = tiny_inputs("precomputed")
    expected = run(model, **inputs).logits
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert torch.equal(run(model, inputs_embeds=embeds, **inputs).logits, expected)


def test_token_types_reach_the_text_encoder_that_has_them():
    inputs = tiny_inputs("precomputed")
    types = torch.ones(2, 7, dtype=torch.long)
    bert, distilbert = make_model("bert"), make_model("distilbert")
    changed = run(bert, token_type_ids=types, **inputs).logits
    assert not torch.allclose(changed, run(bert, **inputs).logits, atol=1e-4)
    same = run(distilbert, token_type_ids=types, **inputs).logits
    assert torch.equal(same, run(distilbert, **inputs).logits)


def test_use_cache_is_no_clash():
    inputs = tiny_inputs("precomputed")
    model = make_model("llama")
    assert torch.equal(run(model, use_cache=True, **inputs).logits, run(model, **inputs).logits)


# ----------------------------------------------------------------------------- 4. training, precision, compilation


@pytest.mark.parametrize("vision", ["vit", "precomputed"])
def test_gradient_checkpointing_changes_no_gradient(vision):
    config = tiny_config("bert", vision, num_fusion_layers=2, contrastive_loss_weight=0.1, **NO_DROPOUT)
    for part in (config.text_config, config.vision_config):
        if part is not None:
            part.hidden_dropout_prob = part.attention_probs_dropout_prob = 0.0
    torch.manual_seed(0)
    model = VTFusionForTokenClassification(config).train()
    randomize_fusion(model)
    inputs = tiny_inputs(vision) | {"labels": LABELS}
    model(**inputs).loss.backward()
    expected = gradients(model)
    model.zero_grad()

    calls = []
    layer = model.vtfusion.fusion_layers[0]
    layer.query.register_forward_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert all(part.gradient_checkpointing for part in model.vtfusion.fusion_layers)
    model(**inputs).loss.backward()
    assert calls == [1, 1], "the fusion layer was not computed anew in the backward pass"
    result = gradients(model)
    assert result.keys() == expected.keys()
    for name, gradient in result.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7, msg=name)

    model.gradient_checkpointing_disable()
    assert not any(part.gradient_checkpointing for part in model.vtfusion.fusion_layers)


def test_frozen_text_encoder():
    model = make_model(vision="resnet")
    model.freeze_text_encoder()
    model.train()
    assert model.training and model.vtfusion.vision_model.training
    assert not any(module.training for module in model.vtfusion.text_model.modules())
    model(**tiny_inputs(), labels=LABELS).loss.backward()
    assert all(p.grad is None for p in model.vtfusion.text_model.parameters())
    assert any(p.grad is not None for p in model.vtfusion.vision_model.parameters())


@pytest.mark.parametrize("base", [True, False])
def test_frozen_vision_encoder(base):
    model = make_model(vision="resnet")
    inputs = tiny_inputs()
    with torch.no_grad():
        cached, _ = model.vtfusion.get_visual_features(inputs["pixel_values"])
    buffers = {name: value.clone() for name, value in model.vtfusion.vision_model.named_buffers()}
    (model.vtfusion if base else model).freeze_vision_encoder()
    model.train()
    assert model.vtfusion.text_model.training
    assert not any(module.training for module in model.vtfusion.vision_model.modules())
    model(**inputs, labels=LABELS).loss.backward()
    assert all(p.grad is None for p in model.vtfusion.vision_model.parameters())
    assert all(torch.equal(value, buffers[name]) for name, value in model.vtfusion.vision_model.named_buffers())
    features, _ = model.vtfusion.get_visual_features(inputs["pixel_values"])
    assert torch.equal(features, cached) and not features.requires_grad


def test_freezing_no_vision_encoder_raises():
    with pytest.raises(ValueError, match="no vision encoder"):
        make_model().freeze_vision_encoder()


def test_fusion_learns_from_the_picture_alone():
    """Words are noise, the region says the label: a few steps are enough."""
    torch.manual_seed(0)
    config = tiny_config("bert", "precomputed", vision_loss_weight=0.0, text_loss_weight=0.0, **NO_DROPOUT)
    model = VTFusionForTokenClassification(config)
    model.freeze_text_encoder()
    model.train()
    generator = torch.Generator().manual_seed(0)
    colours = torch.randn(3, 12, generator=generator)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(80):
        classes = torch.randint(3, (16,), generator=generator)
        inputs = {
            "input_ids": torch.randint(3, VOCAB, (16, 4), generator=generator),
            "visual_embeds": colours[classes][:, None].expand(16, 3, 12),
        }
        outputs = model(**inputs, labels=classes[:, None].expand(16, 4))
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
    assert (outputs.logits.argmax(dim=-1) == classes[:, None]).float().mean() > 0.95


@pytest.mark.parametrize("vision", ["resnet", "vit", "detr", "precomputed"])
def test_bfloat16(vision):
    model = all_losses(vision=vision)
    inputs = tiny_inputs(vision)
    mask = {"image_mask": torch.tensor([[1], [0]]), "labels": LABELS, "output_fusion_attentions": True}
    expected = run(model, **inputs, **mask)
    half = copy.deepcopy(model).to(torch.bfloat16)
    outputs = half(**inputs, **mask)
    assert outputs.logits.dtype == torch.bfloat16
    torch.testing.assert_close(outputs.logits.float(), expected.logits, rtol=0.1, atol=0.15)
    torch.testing.assert_close(outputs.loss.float(), expected.loss, rtol=0.05, atol=0.05)
    assert torch.equal(outputs.logits[1], run(half, **without_images(inputs)).logits[1])
    outputs.loss.backward()
    assert_finite_gradients(half)


@pytest.mark.parametrize("image_mask", [[[1], [1]], [[1], [0]]], ids=["every row", "one row"])
def test_autocast(image_mask):
    model = all_losses()
    inputs = tiny_inputs("precomputed") | {"labels": LABELS, "image_mask": torch.tensor(image_mask)}
    expected = run(model, **inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(**inputs)
    torch.testing.assert_close(outputs.logits.float(), expected.logits, rtol=0.1, atol=0.15)
    outputs.loss.backward()
    assert_finite_gradients(model)


@pytest.mark.slow
def test_cached_path_compiles_without_graph_breaks():
    model = make_model(num_fusion_layers=2)
    inputs = tiny_inputs("precomputed") | {"image_mask": torch.tensor([[1], [0]]), "labels": LABELS}
    expected = run(model, **inputs)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    outputs = run(compiled, **inputs)
    torch.testing.assert_close(outputs.logits, expected.logits)
    torch.testing.assert_close(outputs.loss, expected.loss)


@pytest.mark.slow
def test_an_absent_image_may_hold_anything_when_compiled():
    model = make_model(vision="resnet").train()
    inputs = tiny_inputs("resnet") | {"image_mask": torch.tensor([[1], [0]]), "labels": LABELS}
    inputs["pixel_values"][1] = float("nan")
    torch.compile(model, backend="eager")(**inputs).loss.backward()
    assert_finite_gradients(model)


@pytest.mark.slow
def test_cached_path_without_boxes_compiles_without_graph_breaks():
    model = make_model()
    inputs = tiny_inputs("precomputed")
    del inputs["visual_boxes"]
    outputs = run(torch.compile(model, fullgraph=True, backend="eager"), **inputs)
    torch.testing.assert_close(outputs.logits, run(model, **inputs).logits)


@pytest.mark.skipif(Version(torch.__version__) < Version("2.13"), reason="torch.export is tested on torch 2.13")
@pytest.mark.parametrize("vision", ["resnet", "vit", "precomputed"])
def test_export(vision):
    model = make_model(vision=vision)
    inputs = tiny_inputs(vision) | {"image_mask": torch.tensor([[1], [0]])}
    expected = run(model, **inputs)
    program = torch.export.export(model, (), inputs)
    outputs = program.module()(**inputs)
    torch.testing.assert_close(outputs.logits, expected.logits)
    other = tiny_inputs(vision, seed=5) | {"image_mask": torch.tensor([[0], [0]])}
    torch.testing.assert_close(program.module()(**other).logits, run(model, **other).logits)


# ------------------------------------------------------------------------------------------ 5. the vision adapter


@pytest.mark.parametrize(
    ("num_tokens", "image_size", "config", "explicit", "expected"),
    [
        (17, (32, 32), ViTConfig(patch_size=8), None, (1, 4, 4)),
        (18, (32, 32), DeiTConfig(patch_size=8), None, (2, 4, 4)),
        (21, (32, 32), Dinov2WithRegistersConfig(patch_size=8, num_register_tokens=4), None, (5, 4, 4)),
        (16, (32, 32), SiglipVisionConfig(patch_size=8), None, (0, 4, 4)),
        (13, (16, 48), ViTConfig(patch_size=8), None, (1, 2, 6)),
        (13, (48, 16), ViTConfig(patch_size=8), None, (1, 6, 2)),
        (7, (32, 48), ViTConfig(patch_size=(16, 16)), None, (1, 2, 3)),
        (9, (32, 32), ViTConfig(patch_size=[8, 16]), None, (1, 4, 2)),
        (17, (39, 39), ViTConfig(patch_size=8), None, (1, 4, 4)),
        (6, (33, 49), SiglipVisionConfig(patch_size=16), None, (0, 2, 3)),
        (2, (16, 16), ViTConfig(patch_size=16), None, (1, 1, 1)),
        (2, (20, 20), ViTConfig(patch_size=16), None, (1, 1, 1)),
        (49, (224, 224), SwinConfig(patch_size=4), None, (0, 7, 7)),
        (28, (128, 224), SwinConfig(patch_size=4), None, (0, 4, 7)),
        (81, (33, 33), SwinConfig(patch_size=2), None, (0, 9, 9)),
        (49, (224, 224), HieraConfig(), None, (0, 7, 7)),
        (20, (32, 32), ResNetConfig(), 4, (4, 4, 4)),
        (12, (16, 40), ResNetConfig(), 2, (2, 2, 5)),
        (19, (32, 32), ViTConfig(patch_size=8), 3, (3, 4, 4)),
    ],
)
def test_split_prefix_tokens(num_tokens, image_size, config, explicit, expected):
    found = split_prefix_tokens(num_tokens, image_size, config, explicit)
    assert found == expected and all(type(number) is int for number in found)


@pytest.mark.parametrize(
    ("num_tokens", "config", "explicit"),
    [
        (10, ViTConfig(patch_size=8), None),
        (3, ViTConfig(patch_size=64), None),
        (17, ResNetConfig(), None),
        (3, ResNetConfig(), 3),
        (20, ResNetConfig(), 1),
    ],
    ids=["too few", "image smaller than a patch", "no patch size", "nothing left", "wrong number"],
)
def test_split_prefix_tokens_without_a_fitting_grid(num_tokens, config, explicit):
    message = rf"'{config.model_type}' returned {num_tokens} tokens for an image of 32 x 32 .*vision_num_prefix_tokens"
    with pytest.raises(ValueError, match=message):
        split_prefix_tokens(num_tokens, (32, 32), config, explicit)


def test_what_no_auto_class_knows_is_not_built():
    class Unknown(PreTrainedConfig):
        model_type = "unknown"

    for attention in (None, "eager"):
        config = Unknown()
        config._attn_implementation = attention
        with pytest.raises(ValueError, match="Unrecognized configuration class"):
            build_encoder(config)


@pytest.mark.parametrize(("channels_last", "width"), [(False, 5), (True, 5), (False, 16)])
def test_feature_maps_are_read_row_by_row_wherever_their_channels_stand(channels_last, width):
    """Also where a map is as wide as it has channels."""
    maps = torch.randn(2, 16, 3, width)
    outputs = BaseModelOutput(last_hidden_state=maps.permute(0, 2, 3, 1) if channels_last else maps)
    features, boxes = read_features(outputs, (24, 8 * width), ResNetConfig(), 16)
    expected = [maps[:, :, row, column] for row in range(3) for column in range(width)]
    assert torch.equal(features, torch.stack(expected, dim=1))
    assert torch.equal(boxes, grid_boxes(3, width).expand(2, 3 * width, 4))


def test_places_are_where_the_features_are():
    maps = torch.empty(2, 16, 3, 5, device="meta")
    features, boxes = read_features(BaseModelOutput(last_hidden_state=maps), (24, 40), ResNetConfig(), 16)
    assert (features.device.type, boxes.device.type) == ("meta", "meta")


def test_grid_boxes_by_hand():
    third = 1 / 3
    expected = [
        [0, 0, third, 0.5],
        [third, 0, 2 * third, 0.5],
        [2 * third, 0, 1, 0.5],
        [0, 0.5, third, 1],
        [third, 0.5, 2 * third, 1],
        [2 * third, 0.5, 1, 1],
    ]
    torch.testing.assert_close(grid_boxes(2, 3), torch.tensor(expected))
    assert grid_boxes(1, 1).tolist() == [[0, 0, 1, 1]]


def more_vision() -> dict[str, tuple[PreTrainedConfig, int, int]]:
    """Config, number of image positions of a 32 x 32 image, and width of the features."""
    patches = {"image_size": IMAGE, "patch_size": 8}
    efficientnet = EfficientNetConfig(width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128, image_size=IMAGE)
    return {
        "deit": (DeiTConfig(**patches, **LAYERS), 16, HIDDEN),
        "dinov2_with_registers": (
            Dinov2WithRegistersConfig(**patches, **{**LAYERS, "intermediate_size": None}, mlp_ratio=2),
            16,
            HIDDEN,
        ),
        "dinov3_vit": (transformers.DINOv3ViTConfig(**patches, **LAYERS, num_register_tokens=4), 16, HIDDEN),
        "yolos": (YolosConfig(image_size=[IMAGE, IMAGE], patch_size=8, num_detection_tokens=6, **LAYERS), 6, HIDDEN),
        "efficientnet": (efficientnet, 1, 128),
        "mobilenet_v2": (MobileNetV2Config(depth_multiplier=0.5, image_size=IMAGE), 1, 1280),
        "hiera": (
            HieraConfig(
                image_size=[IMAGE, IMAGE],
                patch_size=[3, 3],
                patch_stride=[2, 2],
                patch_padding=[1, 1],
                embed_dim=8,
                depths=[1, 1],
                num_heads=[1, 2],
                num_query_pool=1,
                masked_unit_size=[2, 2],
            ),
            64,
            16,
        ),
        "maskformer-swin": (
            MaskFormerSwinConfig(
                image_size=IMAGE,
                patch_size=2,
                embed_dim=8,
                depths=[1, 1],
                num_heads=[2, 2],
                window_size=4,
                out_features=["stage2"],
            ),
            64,
            16,
        ),
        "regnet": (
            transformers.RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4),
            16,
            16,
        ),
        "sam": (
            transformers.SamVisionConfig(
                output_channels=16,
                mlp_dim=37,
                window_size=2,
                global_attn_indexes=[1],
                **patches,
                **{name: n for name, n in LAYERS.items() if name != "intermediate_size"},
            ),
            16,
            16,
        ),
        "segformer": (
            transformers.SegformerConfig(
                num_encoder_blocks=2,
                depths=[1, 1],
                sr_ratios=[2, 1],
                hidden_sizes=[8, 16],
                patch_sizes=[7, 3],
                strides=[4, 2],
                num_attention_heads=[1, 2],
                mlp_ratios=[2, 2],
            ),
            16,
            16,
        ),
    }


@pytest.mark.parametrize("name", more_vision())
def test_more_vision_encoders(name, tmp_path):
    config, positions, width = more_vision()[name]
    torch.manual_seed(0)
    model = VTFusionForTokenClassification(tiny_config(vision_config=config)).eval()
    randomize_fusion(model)
    assert model.config.visual_hidden_size == width
    inputs = tiny_inputs()
    outputs = run(model, **inputs)
    assert outputs.visual_hidden_state.shape == (2, positions, 16)
    with torch.no_grad():
        features, boxes = model.vtfusion.get_visual_features(inputs["pixel_values"])
    assert features.shape == (2, 1, positions, width) and boxes.shape == (2, 1, positions, 4)
    assert boxes.min() >= 0 and boxes.max() <= 1
    model.save_pretrained(tmp_path)
    loaded, info = VTFusionForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(run(loaded, **inputs).logits, outputs.logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("vision", VISION)
def test_width_is_found_without_weights(vision):
    """`visual_hidden_size` comes from the config or a dry run; it is the width of what the encoder returns."""
    model = VTFusionModel(tiny_config("bert", vision)).eval()
    with torch.no_grad():
        features, _ = model.get_visual_features(tiny_inputs(vision)["pixel_values"])
    assert features.shape[-1] == model.config.visual_hidden_size
    assert not any(p.is_meta for p in model.parameters())


def test_width_is_found_for_grey_images():
    assert visual_hidden_size(ResNetConfig(num_channels=1, hidden_sizes=[8, 16], depths=[1, 1])) == 16


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({"image_size": (8, 16), "num_channels": 2}, (1, 2, 8, 16)),
        ({"image_size": 8}, (1, 3, 8, 8)),
        ({}, (1, 3, 224, 224)),
    ],
)
def test_width_of_what_only_a_dry_run_tells(monkeypatch, sizes, shape):
    """A backbone, as timm has them: several maps, of which the last is read."""
    seen = []

    class Backbone(torch.nn.Module):
        def forward(self, pixel_values):
            seen.append((tuple(pixel_values.shape), pixel_values.device.type, self.training))
            return ModelOutput(feature_maps=tuple(pixel_values.new_zeros(1, width, 2, 2) for width in (3, 5, 7)))

    monkeypatch.setattr(visual_vtfusion, "build_encoder", lambda config: Backbone())
    assert visual_hidden_size(PreTrainedConfig(**sizes)) == 7
    assert seen == [(shape, "meta", False)]


def test_prefix_tokens_are_left_out():
    model = make_model(vision="vit")
    pixels = tiny_inputs("vit")["pixel_values"]
    with torch.no_grad():
        tokens = model.vtfusion.vision_model(pixel_values=pixels[:, 0]).last_hidden_state
        features, _ = model.vtfusion.get_visual_features(pixels)
    assert tokens.shape[1] == 17
    assert torch.equal(features[:, 0], tokens[:, 1:])


def test_prefix_tokens_by_config():
    """DINOv3-ConvNeXt puts a pooled token before its grid and has no patch size: the config says how many."""
    vision = transformers.DINOv3ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], image_size=64)
    inputs = without_images(tiny_inputs()) | {"pixel_values": torch.randn(2, 3, 64, 64)}
    with pytest.raises(ValueError, match="vision_num_prefix_tokens"):
        VTFusionModel(tiny_config(vision_config=vision)).eval()(**inputs)
    model = VTFusionModel(tiny_config(vision_config=vision, vision_num_prefix_tokens=1)).eval()
    assert run(model, **inputs).visual_hidden_state.shape == (2, 4, 16)


def test_patches_of_a_masked_autoencoder():
    """It hides most of its patches and shuffles the others, anew in every pass."""
    sizes = {**LAYERS, "image_size": IMAGE, "patch_size": 8}
    pixels = tiny_inputs("vit")["pixel_values"]
    with pytest.raises(ValueError, match="'vit_mae' hides patches at random: set `mask_ratio` to 0"):
        VTFusionModel(tiny_config(vision_config=transformers.ViTMAEConfig(**sizes))).get_visual_features(pixels)
    model = VTFusionModel(tiny_config(vision_config=transformers.ViTMAEConfig(**sizes, mask_ratio=0.0))).eval()
    with torch.no_grad():
        outputs = model.vision_model(pixel_values=pixels[:, 0])
        features, boxes = model.get_visual_features(pixels)
    # patch 5 of each image stands where the shuffle has put it
    for row in range(2):
        place = 1 + int(outputs.ids_restore[row, 5])
        torch.testing.assert_close(features[row, 0, 5], outputs.last_hidden_state[row, place], rtol=1e-4, atol=1e-5)
    assert torch.equal(boxes[0, 0], grid_boxes(4, 4))


def test_cnn_features_are_row_by_row():
    model = make_model(vision="resnet")
    pixels = torch.randn(1, 1, 3, 32, 64)
    with torch.no_grad():
        channels_last = pixels[:, 0].contiguous(memory_format=torch.channels_last)
        maps = model.vtfusion.vision_model(pixel_values=channels_last).last_hidden_state
        features, boxes = model.vtfusion.get_visual_features(pixels)
    assert maps.shape == (1, 16, 4, 8)
    assert torch.equal(features[0, 0, 2 * 8 + 5], maps[0, :, 2, 5])
    torch.testing.assert_close(boxes[0, 0, 2 * 8 + 5], torch.tensor([5 / 8, 2 / 4, 6 / 8, 3 / 4]))


@pytest.mark.parametrize("mode", ["frozen", "evaluated"])
def test_the_order_in_which_a_cpu_convolves_changes_rounding_only(mode):
    model = make_model(vision="resnet").vtfusion
    if mode == "frozen":
        model.freeze_vision_encoder()
        model.train()
    plain, exact = copy.deepcopy(model.vision_model), copy.deepcopy(model.vision_model).double()
    pixels = torch.randn(4, 1, 3, 32, 64)
    orders = []
    model.vision_model.register_forward_pre_hook(
        lambda _, args, kwargs: orders.append(kwargs["pixel_values"].is_contiguous(memory_format=torch.channels_last)),
        with_kwargs=True,
    )
    with torch.no_grad():
        features, _ = model.get_visual_features(pixels)
        expected = exact(pixel_values=pixels[:, 0].double()).last_hidden_state.flatten(2).mT
        unordered = plain(pixel_values=pixels[:, 0]).last_hidden_state.flatten(2).mT
    assert orders == [True]
    for found in (features[:, 0], unordered):
        assert (found - expected).norm() < 1e-5 * expected.norm()


def test_a_trained_encoder_is_trained_in_its_own_order():
    """To the bit, running statistics and gradients too."""
    model = make_model(vision="resnet").vtfusion.train()
    plain = copy.deepcopy(model.vision_model)
    pixels = torch.randn(4, 1, 3, 32, 64)
    features, _ = model.get_visual_features(pixels)
    maps = plain(pixel_values=pixels[:, 0]).last_hidden_state
    assert torch.equal(features[:, 0], maps.flatten(2).mT)
    features.square().sum().backward()
    maps.flatten(2).mT[:, None].square().sum().backward()
    expected = dict(plain.named_parameters())
    for name, parameter in model.vision_model.named_parameters():
        assert torch.equal(parameter.grad, expected[name].grad), name
    statistics = dict(plain.named_buffers())
    for name, value in model.vision_model.named_buffers():
        assert torch.equal(value, statistics[name]), name


def test_detector_boxes_become_corners():
    model = make_model(vision="detr")
    pixels = tiny_inputs("detr")["pixel_values"]
    with torch.no_grad():
        detected = model.vtfusion.vision_model(pixel_values=pixels[:, 0])
        features, boxes = model.vtfusion.get_visual_features(pixels)
    assert torch.equal(features[:, 0], detected.last_hidden_state)
    for row in range(2):
        for query in range(5):
            x, y, width, height = detected.pred_boxes[row, query].tolist()
            corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            expected = [min(max(value, 0.0), 1.0) for value in corners]
            assert boxes[row, 0, query].tolist() == pytest.approx(expected, abs=1e-6)


def test_detector_boxes_end_at_the_edges_of_the_image():
    outputs = ModelOutput(
        last_hidden_state=torch.zeros(1, 2, 4), pred_boxes=torch.tensor([[[0.1, 0.2, 0.4, 0.6], [0.9, 0.7, 0.4, 0.8]]])
    )
    _, boxes = read_features(outputs, (8, 8), DetrConfig(), 4)
    torch.testing.assert_close(boxes, torch.tensor([[[0.0, 0.0, 0.3, 0.5], [0.7, 0.3, 1.0, 1.0]]]))


def test_detector_boxes_are_not_trained_through():
    model = make_model(vision="detr")
    _, boxes = model.vtfusion.get_visual_features(tiny_inputs("detr")["pixel_values"])
    assert not boxes.requires_grad


def test_yolos_features_are_its_detection_tokens():
    model = make_model(vision_config=more_vision()["yolos"][0], vision="resnet")
    pixels = tiny_inputs()["pixel_values"]
    with torch.no_grad():
        tokens = model.vtfusion.vision_model(pixel_values=pixels[:, 0]).last_hidden_state
        features, _ = model.vtfusion.get_visual_features(pixels)
    assert tokens.shape[1] == 1 + 16 + 6
    assert torch.equal(features[:, 0], tokens[:, -6:])


def test_auto_class_of_an_encoder():
    assert encoder_auto_class(VISION["detr"]()) is AutoModelForObjectDetection
    assert encoder_auto_class(more_vision()["maskformer-swin"][0]) is transformers.AutoBackbone
    assert encoder_auto_class(transformers.TimmBackboneConfig()) is transformers.AutoBackbone
    assert encoder_auto_class(VISION["resnet"]()) is AutoModel
    assert encoder_auto_class(TEXT["llama"]()) is AutoModel
    assert encoder_auto_class(TEXT["t5"]()) is transformers.AutoModelForTextEncoding


# -------------------------------------------------------------------------------- 6. building, saving and loading


def save_encoders(folder, text="bert", vision="resnet", dtype=torch.float32):
    torch.manual_seed(1)
    paths = {"text": folder / "text", "vision": folder / "vision"}
    models = {"text": build_encoder(TEXT[text]()), "vision": build_encoder(VISION[vision]())}
    for part, model in models.items():
        model.to(dtype).save_pretrained(paths[part])
    return paths, models


@pytest.mark.parametrize(("text", "vision"), [("bert", "resnet"), ("llama", "vit"), ("mamba", "detr")])
def test_from_vision_text_pretrained(text, vision, tmp_path):
    paths, encoders = save_encoders(tmp_path, text, vision)
    model = VTFusionForTokenClassification.from_vision_text_pretrained(
        str(paths["vision"]), str(paths["text"]), num_labels=5, fusion_hidden_size=16, num_fusion_heads=2
    )
    assert not model.training and model.num_labels == 5 and model.config.fusion_hidden_size == 16
    for part, encoder in encoders.items():
        loaded = getattr(model.vtfusion, f"{part}_model").state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in encoder.state_dict().items())
    assert not model.vtfusion.fusion.output.weight.any()
    model.save_pretrained(tmp_path / "both")
    again = VTFusionForTokenClassification.from_pretrained(tmp_path / "both")
    inputs = tiny_inputs(vision)
    torch.testing.assert_close(run(again, **inputs).logits, run(model, **inputs).logits, rtol=1e-5, atol=1e-6)


def test_the_encoder_of_an_encoder_decoder_is_taken(tmp_path):
    torch.manual_seed(1)
    whole = transformers.T5ForConditionalGeneration(TEXT["t5"]()).eval()
    whole.save_pretrained(tmp_path / "text")
    build_encoder(VISION["resnet"]()).save_pretrained(tmp_path / "vision")
    model = VTFusionModel.from_vision_text_pretrained(
        str(tmp_path / "vision"), str(tmp_path / "text"), fusion_hidden_size=16, num_fusion_heads=2
    )
    assert model.config.text_config.model_type == "t5" and not hasattr(model.text_model, "decoder")
    inputs = without_images(tiny_inputs())
    with torch.no_grad():
        expected = whole.encoder(**inputs).last_hidden_state
    torch.testing.assert_close(run(model, **inputs).text_hidden_state, expected)


@pytest.mark.parametrize("head", [VTFusionModel, *(head.model for head in HEADS.values())])
def test_models_in_memory_keep_their_weights(head):
    torch.manual_seed(1)
    text, vision = build_encoder(TEXT["bert"]()), build_encoder(VISION["resnet"]())
    before = [copy.deepcopy(part.state_dict()) for part in (text, vision)]
    model = head.from_vision_text_pretrained(
        vision, text, fusion_hidden_size=16, num_fusion_heads=2, contrastive_loss_weight=1.0
    )
    base = model.base_model
    assert base.text_model is text and base.vision_model is vision
    assert model.config.text_config is text.config and model.config.vision_config is vision.config
    for part, expected in zip((text, vision), before, strict=True):
        assert all(torch.equal(value, expected[name]) for name, value in part.state_dict().items())


@pytest.mark.parametrize("text", ["bert", "llama"])
def test_models_in_memory_keep_their_masks(text):
    """Joining may not reset the attention of an encoder: without one, its causal and padding masks are lost."""
    encoder, inputs = build_encoder(TEXT[text]()).eval(), tiny_inputs()
    expected = run(encoder, **without_images(inputs)).last_hidden_state
    implementation = encoder.config._attn_implementation
    model = VTFusionModel.from_vision_text_pretrained(
        build_encoder(VISION["resnet"]()), encoder, fusion_hidden_size=16, num_fusion_heads=2
    )
    assert encoder.config._attn_implementation == implementation == "sdpa"
    assert torch.equal(run(model, **inputs).text_hidden_state, expected)


def test_kwargs_for_a_model_in_memory_raise():
    text = build_encoder(TEXT["bert"]())
    with pytest.raises(ValueError, match=r"model in memory was given, so \['revision'\] would do nothing"):
        VTFusionModel.from_vision_text_pretrained(
            None, text, text_kwargs={"revision": "main"}, visual_hidden_size=12, fusion_hidden_size=16
        )


def test_from_pretrained_text_alone():
    text = build_encoder(TEXT["bert"]())
    model = VTFusionModel.from_vision_text_pretrained(
        None, text, visual_hidden_size=12, fusion_hidden_size=16, num_fusion_heads=2
    )
    assert model.vision_model is None and model.config.vision_config is None
    assert run(model, **tiny_inputs("precomputed")).visual_hidden_state.shape == (2, 5, 16)


def test_half_precision_encoders_give_one_dtype(tmp_path):
    """Language models are often stored in bfloat16, and are loaded so; vision encoders mostly are not."""
    paths, _ = save_encoders(tmp_path / "half", "llama", "resnet", torch.bfloat16)
    full, _ = save_encoders(tmp_path / "full", "bert", "resnet")
    for text, vision, dtype in [
        (paths["text"], full["vision"], torch.bfloat16),
        (full["text"], paths["vision"], torch.float32),
    ]:
        model = VTFusionForTokenClassification.from_vision_text_pretrained(
            str(vision), str(text), fusion_hidden_size=16, num_fusion_heads=2
        )
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert run(model, **tiny_inputs()).logits.dtype == dtype
    model = VTFusionForTokenClassification.from_vision_text_pretrained(
        str(full["vision"]),
        str(paths["text"]),
        text_kwargs={"dtype": torch.float32},
        fusion_hidden_size=16,
        num_fusion_heads=2,
    )
    assert model.dtype == torch.float32


def test_two_tower_checkpoint(tmp_path):
    torch.manual_seed(0)
    towers = {
        "text_config": {**LAYERS, "vocab_size": VOCAB, "max_position_embeddings": 64, "eos_token_id": 2},
        "vision_config": {**LAYERS, "image_size": IMAGE, "patch_size": 8},
    }
    clip = CLIPModel(CLIPConfig(projection_dim=16, **towers)).eval()
    clip.save_pretrained(tmp_path / "clip")
    path = str(tmp_path / "clip")
    model = VTFusionModel.from_vision_text_pretrained(path, path, fusion_hidden_size=16, num_fusion_heads=2)
    assert model.config.text_config.model_type == "clip_text_model"
    assert model.config.vision_config.model_type == "clip_vision_model"
    inputs = tiny_inputs("clip")
    with torch.no_grad():
        text = clip.text_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        vision = clip.vision_model(pixel_values=inputs["pixel_values"][:, 0])
        features, _ = model.get_visual_features(inputs["pixel_values"])
    torch.testing.assert_close(run(model, **inputs).text_hidden_state, text.last_hidden_state)
    torch.testing.assert_close(features[:, 0], vision.last_hidden_state[:, 1:])
    model.save_pretrained(tmp_path / "fused")
    loaded, info = VTFusionModel.from_pretrained(tmp_path / "fused", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(run(loaded, **inputs).last_hidden_state, run(model, **inputs).last_hidden_state)


def test_model_on_precomputed_features_survives_a_folder(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = VTFusionForTokenClassification.from_pretrained(tmp_path)
    assert loaded.vtfusion.vision_model is None and loaded.config.vision_config is None
    inputs = tiny_inputs("precomputed")
    torch.testing.assert_close(run(loaded, **inputs).logits, run(model, **inputs).logits, rtol=1e-5, atol=1e-6)


def test_base_and_head_load_from_each_other(tmp_path):
    model = make_model(vision="resnet")
    model.save_pretrained(tmp_path / "head")
    base, info = AutoModel.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert isinstance(base, VTFusionModel) and not info["missing_keys"]
    inputs = tiny_inputs()
    expected = run(model, **inputs).last_hidden_state
    torch.testing.assert_close(run(base, **inputs).last_hidden_state, expected, rtol=1e-5, atol=1e-6)
    base.save_pretrained(tmp_path / "base")
    head, info = VTFusionForTokenClassification.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"classifier", "vision_classifier"}
    torch.testing.assert_close(run(head, **inputs).last_hidden_state, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("vision", ["resnet", "mobilenet_v2", "vit"])
def test_explicit_sdpa_with_any_vision_encoder(vision, tmp_path):
    model = make_model(vision=vision)
    model.save_pretrained(tmp_path)
    loaded = VTFusionForTokenClassification.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert loaded.config.text_config._attn_implementation == "sdpa"
    inputs = tiny_inputs(vision)
    torch.testing.assert_close(run(loaded, **inputs).logits, run(model, **inputs).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(implementation):
    model = make_model(vision="vit")
    inputs = tiny_inputs("vit")
    expected = run(model, **inputs).logits
    model.set_attn_implementation(implementation)
    assert model.vtfusion.text_model.config._attn_implementation == implementation
    torch.testing.assert_close(run(model, **inputs).logits, expected, rtol=1e-4, atol=1e-5)


def test_resize_token_embeddings(tmp_path):
    model = make_model()
    before = model.get_input_embeddings().weight[:VOCAB].clone()
    model.resize_token_embeddings(VOCAB + 4)
    assert model.get_input_embeddings().num_embeddings == VOCAB + 4
    assert model.config.text_config.vocab_size == VOCAB + 4
    assert torch.equal(model.get_input_embeddings().weight[:VOCAB], before)
    model.save_pretrained(tmp_path)
    loaded = VTFusionForTokenClassification.from_pretrained(tmp_path)
    inputs = tiny_inputs("precomputed")
    inputs["input_ids"][0, 0] = VOCAB + 3
    torch.testing.assert_close(run(loaded, **inputs).logits, run(model, **inputs).logits, rtol=1e-5, atol=1e-6)


def test_set_input_embeddings():
    model = make_model()
    table = torch.nn.Embedding(50, HIDDEN)
    model.set_input_embeddings(table)
    assert model.vtfusion.text_model.get_input_embeddings() is table


# ----------------------------------------------------------------------------------------------------- 7. errors


def test_encoder_decoder_raises():
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 37, "decoder_ffn_dim": 37}
    with pytest.raises(ValueError, match="'bart' is an encoder-decoder"):
        VTFusionModel(VTFusionConfig(text_config=BartConfig(vocab_size=VOCAB, **sizes), visual_hidden_size=12))
    text = transformers.T5Model(TEXT["t5"]())
    with pytest.raises(ValueError, match="'t5' is an encoder-decoder"):
        VTFusionModel(VTFusionConfig(text_config=text.config, visual_hidden_size=12), text_model=text)


def test_neither_or_both_text_inputs_raise():
    model = make_model()
    with pytest.raises(ValueError, match="either `input_ids` or `inputs_embeds`"):
        model(visual_embeds=torch.zeros(2, 5, 12))
    with pytest.raises(ValueError, match="either `input_ids` or `inputs_embeds`"):
        model(input_ids=torch.zeros(2, 7, dtype=torch.long), inputs_embeds=torch.zeros(2, 7, HIDDEN))


def test_pixels_without_vision_encoder_raise():
    with pytest.raises(ValueError, match="no vision encoder: give `visual_embeds`"):
        make_model()(**tiny_inputs("resnet"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"visual_embeds": torch.zeros(2, 5, 16)}, "`pixel_values` or `visual_embeds`, not both"),
        ({"pixel_values": torch.zeros(3, IMAGE, IMAGE)}, r"`pixel_values` must have shape .* got \(3, 32, 32\)"),
        ({"pixel_values": torch.zeros(3, 1, 3, IMAGE, IMAGE)}, "`pixel_values` has 3 rows, but the text has 2"),
        ({"image_mask": torch.ones(2, 2)}, r"`image_mask` must have shape \(2, 1\).*got \(2, 2\)"),
        ({"visual_mask": torch.ones(2, 16)}, r"`visual_mask` must have shape \(2, 1, 16\); got \(2, 16\)"),
    ],
)
def test_wrong_pixel_inputs_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        make_model(vision="resnet")(**tiny_inputs() | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"visual_embeds": torch.zeros(3, 5, 12)}, "`visual_embeds` has 3 rows, but the text has 2"),
        ({"visual_embeds": torch.zeros(2, 5, 13)}, r"`visual_embeds` .* width 12; got \(2, 1, 5, 13\)"),
        ({"visual_embeds": torch.zeros(2, 12)}, r"`visual_embeds` must have shape .* got \(2, 12\)"),
        ({"visual_boxes": torch.zeros(2, 4, 4)}, r"`visual_boxes` must have shape \(2, 1, 5, 4\); got \(2, 1, 4, 4\)"),
        ({"visual_boxes": torch.zeros(2, 5, 3)}, r"`visual_boxes` must have shape \(2, 1, 5, 4\)"),
        ({"visual_mask": torch.ones(2, 4)}, r"`visual_mask` must have shape \(2, 1, 5\); got \(2, 1, 4\)"),
        ({"image_mask": torch.ones(2, 3)}, r"`image_mask` must have shape \(2, 1\)"),
    ],
)
def test_wrong_region_inputs_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        make_model()(**tiny_inputs("precomputed") | changes)


@pytest.mark.parametrize("label", [3, -1, -99])
def test_label_outside_the_map_is_named(label):
    labels = LABELS.clone()
    labels[1, 4] = label
    with pytest.raises(ValueError, match=rf"Row 1, field `labels`: {label} at position 4 is outside .*0 to 2"):
        make_model()(**tiny_inputs("precomputed"), labels=labels)


def test_labels_of_another_shape_raise():
    with pytest.raises(ValueError, match=r"`labels` must have shape \(2, 7\), got \(2, 6\)"):
        make_model()(**tiny_inputs("precomputed"), labels=LABELS[:, :6])
