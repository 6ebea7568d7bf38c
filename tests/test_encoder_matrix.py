"""Every kind of vision encoder with every kind of text encoder: forward, backward, save, load."""

import pytest
import torch

from tiny import TEXT, VISION, randomize_fusion, tiny_config, tiny_inputs
from vtfusion import VTFusionForTokenClassification

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


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize("vision", [*VISION, "precomputed"])
def test_forward_backward_save_load(text, vision, tmp_path):
    torch.manual_seed(0)
    model = VTFusionForTokenClassification(tiny_config(text, vision))
    randomize_fusion(model)
    inputs = tiny_inputs(vision)
    labels = torch.tensor([[0, 1, 2, -100, 0, 1, 2], [1, 1, 0, 2, 0, -100, -100]])

    outputs = model.train()(**inputs, labels=labels)
    assert outputs.logits.shape == (2, 7, 3)
    assert outputs.last_hidden_state.shape == (2, 7, 32)
    assert outputs.visual_hidden_state.shape == (2, POSITIONS[vision], 16)
    boxes = outputs.visual_boxes
    assert boxes.shape == (2, POSITIONS[vision], 4)
    assert bool(((boxes >= 0) & (boxes <= 1)).all()) and bool((boxes[..., 2:] >= boxes[..., :2]).all())
    outputs.loss.backward()
    encoders = ["text_model"] if vision == "precomputed" else ["text_model", "vision_model"]
    for name in encoders:
        gradients = [p.grad for p in getattr(model.vtfusion, name).parameters() if p.grad is not None]
        assert sum(g.abs().sum() for g in gradients) > 0, f"no gradient reached {name}"
        assert all(torch.isfinite(g).all() for g in gradients)

    model.eval()
    model.save_pretrained(tmp_path)
    loaded, info = VTFusionForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        expected, result = model(**inputs), loaded.eval()(**inputs)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    # Memory laid out anew may take another kernel: equal to the last bits, not always bit for bit.
    torch.testing.assert_close(result.logits, expected.logits, rtol=1e-5, atol=1e-6)
    # the picture counts: without it the logits differ
    pixels = [key for key in inputs if key in ("pixel_values", "visual_embeds", "visual_boxes")]
    with torch.no_grad():
        without = model(**{key: value for key, value in inputs.items() if key not in pixels})
    assert not torch.allclose(without.logits, expected.logits, atol=1e-4)
