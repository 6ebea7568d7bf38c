"""
Every kind of vision encoder with every kind of text encoder: forward, backward, save, load. All pairs for token
classification; for the other heads every encoder once.
"""

import pytest
import torch
from safetensors import safe_open

from heads import HEADS, make_head
from tiny import HIDDEN, TEXT, VISION, VOCAB, tiny_inputs

# number of image positions of a 32 x 32 image, counted by hand from strides, patches and queries
POSITIONS = {
    "vit": 16,
    "clip": 16,
    "siglip": 16,
    "dinov2": 16,
    "swin": 64,
    "resnet": 16,
    "convnext": 16,
    "mobilenet_v2": 16,
    "detr": 5,
    "precomputed": 5,
}
PAIRS = [(text, vision) for vision in [*VISION, "precomputed"] for text in TEXT]
CASES = [
    (head, text, vision)
    for head in HEADS
    for text, vision in PAIRS
    if head == "token" or text == "bert" or vision == "resnet"
]


@pytest.mark.parametrize(("head", "text", "vision"), CASES)
def test_forward_backward_save_load(head, text, vision, tmp_path):
    model = make_head(head, text, vision)
    inputs, labels = HEADS[head].inputs(vision), HEADS[head].labels(2)

    outputs = model.train()(**inputs, **labels)
    assert outputs.last_hidden_state.shape == (*inputs["input_ids"].shape, HIDDEN)
    assert outputs.visual_hidden_state.shape[-2:] == (POSITIONS[vision], 16)
    boxes = outputs.visual_boxes
    assert boxes.shape == (*outputs.visual_hidden_state.shape[:-1], 4)
    assert bool(((boxes >= 0) & (boxes <= 1)).all()) and bool((boxes[..., 2:] >= boxes[..., :2]).all())
    outputs.loss.backward()
    encoders = ["text_model"] if vision == "precomputed" else ["text_model", "vision_model"]
    for name in encoders:
        gradients = [p.grad for p in getattr(model.vtfusion, name).parameters() if p.grad is not None]
        assert sum(g.abs().sum() for g in gradients) > 0, f"no gradient reached {name}"
        assert all(torch.isfinite(g).all() for g in gradients)

    model.eval()
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    pixels = [key for key in inputs if key in ("pixel_values", "visual_embeds", "visual_boxes")]
    with torch.no_grad():
        expected, result = model(**inputs), loaded.eval()(**inputs)
        without = model(**{key: value for key, value in inputs.items() if key not in pixels})
    for name in HEADS[head].predictions:
        # Memory laid out anew may take another kernel: equal to the last bits, not always bit for bit.
        torch.testing.assert_close(result[name], expected[name], rtol=1e-5, atol=1e-6)
        # the picture counts: without it the predictions differ
        assert not torch.allclose(without[name], expected[name], atol=1e-4), name


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("head", ["mlm", "pretraining"])
@pytest.mark.parametrize("text", TEXT)
def test_word_embeddings_as_output_matrix(text, head, tie, tmp_path):
    model = make_head(head, text, tie_word_embeddings=tie)
    assert model.get_output_embeddings() is model.lm_head.decoder
    assert (model.lm_head.decoder.weight is model.get_input_embeddings().weight) == tie
    model(**tiny_inputs("precomputed"), **HEADS[head].labels(2)).loss.backward()
    assert model.lm_head.decoder.weight.grad.any() and model.get_input_embeddings().weight.grad.any()

    before = model.lm_head.decoder.weight.detach().clone(), model.lm_head.decoder.bias.detach().clone()
    model.resize_token_embeddings(VOCAB + 4)
    assert model.config.text_config.vocab_size == VOCAB + 4
    assert model.get_input_embeddings().weight.shape == model.lm_head.decoder.weight.shape == (VOCAB + 4, HIDDEN)
    assert torch.equal(model.lm_head.decoder.weight[:VOCAB], before[0])
    assert torch.equal(model.lm_head.decoder.bias[:VOCAB], before[1])
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        names = [name for name in weights.keys() if weights.get_slice(name).get_shape() == [VOCAB + 4, HIDDEN]]  # noqa: SIM118
    assert len(names) == (1 if tie else 2), names

    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for each in (model, loaded):
        assert (each.lm_head.decoder.weight is each.get_input_embeddings().weight) == tie
    inputs = tiny_inputs("precomputed")
    inputs["input_ids"][0, 0] = VOCAB + 3
    name = HEADS[head].predictions[0]
    with torch.no_grad():
        expected, result = model.eval()(**inputs)[name], loaded(**inputs)[name]
    assert result.shape == (2, 7, VOCAB + 4)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
