"""The fusion block and the losses against the same maths written out in float64, one row at a time, without masks."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from tiny import HIDDEN, VOCAB, tiny_config, tiny_inputs
from vtfusion import (
    VTFusionForImageTextRetrieval,
    VTFusionForMaskedLM,
    VTFusionForPreTraining,
    VTFusionForQuestionAnswering,
    VTFusionForSequenceClassification,
    VTFusionForTokenClassification,
    VTFusionForVisualQuestionAnswering,
    VTFusionPreTrainedModel,
)
from vtfusion.fusion_vtfusion import (
    VTFusionFeedForward,
    VTFusionGatedFusion,
    VTFusionLayer,
    VTFusionPositions,
    answer_mask,
    attend,
    attention_map,
    binary_loss,
    contrastive_loss,
    count_labels,
    hard_negatives,
    masked_mean,
    pool_tokens,
    row_losses,
    row_vision_loss,
    span_cross_entropy,
    token_cross_entropy,
    unit_vectors,
    vision_loss,
)

IMAGES, REGIONS = 3, 4
LABELS = torch.tensor([[0, 1, 2, -100, 0, 1, 2], [1, 1, 0, 2, 0, -100, -100], [2, 0, -100, 1, 1, 0, 0]])


# -------------------------------------------------------------------------------------------------------- reference


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().double() for name, value in module.state_dict().items()}


def softmax(scores: torch.Tensor) -> torch.Tensor:
    exponentials = (scores - scores.max(dim=-1, keepdim=True).values).exp()
    return exponentials / exponentials.sum(dim=-1, keepdim=True)


def linear(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return torch.einsum("...i,oi->...o", x, weights[f"{name}.weight"]) + weights[f"{name}.bias"]


def layer_norm(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def feed_forward(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    inner = linear(weights, f"{name}.up", layer_norm(weights, f"{name}.norm", x))
    return x + linear(weights, f"{name}.down", gelu(inner))


def gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def waves(box: torch.Tensor, image_index: int) -> torch.Tensor:
    x0, y0, x1, y1 = box.tolist()
    coordinates = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, image_index / 128]
    angles = [coordinate * math.pi * 2**octave for coordinate in coordinates for octave in range(8)]
    return torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=torch.float64)


def reference_row(
    weights: dict[str, torch.Tensor],
    num_layers: int,
    num_heads: int,
    text: torch.Tensor,
    text_mask: torch.Tensor,
    features: torch.Tensor,
    boxes: torch.Tensor,
    visual_mask: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """One text `(L, C_t)` with its images `(M, n, C_v)`; only what is there enters, so no mask is needed."""
    text = text.double()
    there = visual_mask.flatten()
    projected = linear(weights, "visual_projection", layer_norm(weights, "visual_norm", features.double()))
    positions = torch.stack([torch.stack([waves(box, m) for box in boxes[m]]) for m in range(len(boxes))])
    image = (projected + linear(weights, "visual_positions.projection", positions)).flatten(0, 1)[there]
    normed = layer_norm(weights, "text_norm", text)
    text_state = linear(weights, "text_projection", normed)
    result = {"visual_hidden_state": image}

    def unit(x: torch.Tensor) -> torch.Tensor:
        return x / (x**2).sum(dim=-1, keepdim=True).sqrt()

    result["text_embeds"] = unit(text_state[text_mask].mean(dim=0))
    result["image_embeds"] = unit(image.mean(dim=0))

    for index in range(num_layers):
        prefix = f"fusion_layers.{index}"
        t, v = (
            layer_norm(weights, f"{prefix}.text_norm", text_state),
            layer_norm(weights, f"{prefix}.image_norm", image),
        )
        query, key = linear(weights, f"{prefix}.query", t), linear(weights, f"{prefix}.key", v)
        image_value = linear(weights, f"{prefix}.image_value", v)
        has_image_side = f"{prefix}.text_value.weight" in weights
        text_value = linear(weights, f"{prefix}.text_value", t) if has_image_side else None
        cosines, to_image, to_text, contexts, reads = [], [], [], [], []
        width = query.shape[-1] // num_heads
        for head in range(num_heads):
            part = slice(head * width, (head + 1) * width)
            cosine = torch.einsum("ld,nd->ln", unit(query[:, part]), unit(key[:, part]))
            scale = min(math.exp(weights[f"{prefix}.log_scale"][head]), 100.0)
            alpha = softmax(cosine * scale)
            beta = softmax((cosine[text_mask] * scale).T)
            cosines.append(cosine)
            to_image.append(alpha)
            to_text.append(torch.zeros_like(cosine.T).masked_scatter(text_mask.expand_as(cosine.T), beta))
            contexts.append(alpha @ image_value[:, part])
            if has_image_side:
                reads.append(beta @ text_value[text_mask][:, part])
        result["similarity"] = torch.stack(cosines)
        result["text_to_image_attention"] = torch.stack(to_image)
        result["image_to_text_attention"] = torch.stack(to_text)
        context = linear(weights, f"{prefix}.context_output", torch.cat(contexts, dim=-1))
        context = feed_forward(weights, f"{prefix}.context_feed_forward", context)
        text_state = text_state + context
        if has_image_side:
            image = image + linear(weights, f"{prefix}.image_output", torch.cat(reads, dim=-1))
            image = feed_forward(weights, f"{prefix}.image_feed_forward", image)
    result["image_state"], result["visual_context"] = image, context
    joined = torch.cat([normed, layer_norm(weights, "fusion.context_norm", context)], dim=-1)
    gate = 1 / (1 + (-linear(weights, "fusion.gate", joined)).exp())
    result["fusion_gate"] = gate.squeeze(-1)
    result["last_hidden_state"] = text + gate * linear(weights, "fusion.output", joined)
    return result


def cross_entropies(logits: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    pairs = zip(logits.double().flatten(0, 1), labels.flatten().tolist(), strict=True)
    return [-softmax(scores)[label].log() for scores, label in pairs if label != -100]


def naive_vision_loss(
    alpha: torch.Tensor, probabilities: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """-sum over heads, tokens and positions of alpha * log p(y), and the number of labels. One row."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for i, label in enumerate(labels.tolist()):
        if label == -100:
            continue
        count += 1
        for head in range(alpha.shape[0]):
            for position in range(alpha.shape[2]):
                total = total - alpha[head, i, position] * probabilities[position, label].log() / alpha.shape[0]
    return total, count


def naive_row_loss(
    logits: torch.Tensor,
    label: Any,
    problem: str,
    class_weights: Sequence[float] | None = None,
    smoothing: float = 0.0,
) -> float:
    """The loss of one prediction `(C,)`, one class after the other."""
    scores = logits.double().tolist()
    weights = class_weights or [1.0] * len(scores)
    if problem == "single_label_classification":
        if label == -100:
            return 0.0
        total = math.log(sum(map(math.exp, scores)))
        loss = (1 - smoothing) * weights[label] * (total - scores[label])
        return loss + sum(smoothing / len(scores) * w * (total - s) for w, s in zip(weights, scores, strict=True))
    loss = 0.0
    for score, target, weight in zip(scores, label, weights, strict=True):
        if target == -100:
            continue
        if problem == "regression":
            loss += (score - target) ** 2
        else:
            target = (1 - smoothing) * target + smoothing * 0.5
            probability = 1 / (1 + math.exp(-score))
            loss -= weight * target * math.log(probability) + (1 - target) * math.log(1 - probability)
    return loss


def naive_row_vision_loss(alpha: torch.Tensor, losses: Sequence[float]) -> float:
    """sum over heads, tokens and positions of alpha * loss, averaged over heads and tokens. One row, without padding."""
    total = 0.0
    for head in range(alpha.shape[0]):
        for token in range(alpha.shape[1]):
            for position in range(alpha.shape[2]):
                total += alpha[head, token, position].item() * losses[position]
    return total / alpha.shape[0] / alpha.shape[1]


def naive_contrastive_loss(rows: list[dict[str, torch.Tensor] | None], log_scale: torch.Tensor) -> float:
    present = [row for row in rows if row is not None]
    scale = math.exp(log_scale.item())
    cosines = torch.tensor(
        [[(one["text_embeds"] @ other["image_embeds"]).item() * scale for other in present] for one in present],
        dtype=torch.float64,
    )
    terms = [softmax(row)[i].log().item() for matrix in (cosines, cosines.T) for i, row in enumerate(matrix)]
    return -sum(terms) / len(terms)


def spread(model: nn.Module, seed: int = 1) -> None:
    """Moves every weight of the fusion part and the head away from its tidy start: biases, norms, W_o, temperatures."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "text_model" not in name and "vision_model" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def make_model(
    head: type[VTFusionPreTrainedModel] = VTFusionForTokenClassification, **kwargs: object
) -> VTFusionPreTrainedModel:
    torch.manual_seed(0)
    model = head(tiny_config("bert", "precomputed", **kwargs)).eval()
    spread(model)
    return model


def make_double_model(
    head: type[VTFusionPreTrainedModel] = VTFusionForTokenClassification, **kwargs: object
) -> VTFusionPreTrainedModel:
    """For comparisons with the reference: what is left is no rounding but a mistake."""
    return make_model(head, **kwargs).double()


def make_inputs() -> dict[str, torch.Tensor]:
    """Three texts with up to three images of up to four regions. The second text is padded, the third has no image."""
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(3, IMAGES, REGIONS, 2, 2, generator=generator).sort(dim=3).values
    visual_mask = torch.ones(3, IMAGES, REGIONS, dtype=torch.long)
    visual_mask[0, 1, 2:] = 0
    return {
        "input_ids": torch.randint(3, VOCAB, (3, 7), generator=generator),
        "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 7]),
        "visual_embeds": torch.randn(3, IMAGES, REGIONS, 12, generator=generator),
        "visual_boxes": corners.flatten(3),
        "visual_mask": visual_mask,
        "image_mask": torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0]]),
    }


def reference_rows(
    model: VTFusionPreTrainedModel, inputs: dict[str, torch.Tensor]
) -> list[dict[str, torch.Tensor] | None]:
    """`None` for a row without an image."""
    pairs = [(row, row) for row in range(len(inputs["input_ids"]))]
    return reference_pairs(model, inputs, pairs)


def reference_pairs(
    model: VTFusionPreTrainedModel, inputs: dict[str, torch.Tensor], pairs: list[tuple[int, int]]
) -> list[dict[str, torch.Tensor] | None]:
    """Each text of the first row with the images of the second; `None` where there is none."""
    fused = {name: value for name, value in weights_of(model.vtfusion).items() if "_model." not in name}
    text = text_states(model, inputs)
    masks = inputs["visual_mask"].bool() & inputs["image_mask"].bool()[..., None]
    return [
        reference_row(
            fused,
            model.config.num_fusion_layers,
            model.config.num_fusion_heads,
            text[row],
            inputs["attention_mask"][row].bool(),
            inputs["visual_embeds"][image],
            inputs["visual_boxes"][image],
            masks[image],
        )
        if masks[image].any()
        else None
        for row, image in pairs
    ]


def text_states(model: VTFusionPreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    encoder = model.vtfusion.text_model
    with torch.no_grad():
        return encoder(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).last_hidden_state.double()


def both_states(
    model: VTFusionPreTrainedModel, inputs: dict[str, torch.Tensor], rows: list[dict[str, torch.Tensor] | None]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """X_f and X_t of each row, without padding."""
    lengths = inputs["attention_mask"].sum(dim=-1).tolist()
    text = [state[:length] for state, length in zip(text_states(model, inputs), lengths, strict=True)]
    fused = [
        state if row is None else row["last_hidden_state"][: len(state)] for state, row in zip(text, rows, strict=True)
    ]
    return fused, text


# The model pools and takes the log-probabilities of the image positions in float32 whatever its dtype.
SINGLE = 1e-9


def assert_near(actual: torch.Tensor, expected: torch.Tensor, name: str = "", tolerance: float | None = None) -> None:
    """Up to `tolerance`, or else the rounding of `actual`'s dtype."""
    rtol, atol = (1e-9, 1e-9) if actual.dtype == torch.float64 else (1e-4, 2e-5)
    if tolerance is not None:
        rtol = atol = tolerance
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=rtol, atol=atol, msg=lambda message: f"{name}: {message}"
    )


# ------------------------------------------------------------------------------------------------- the whole forward


@pytest.mark.parametrize("num_fusion_heads", [1, 2, 4])
@pytest.mark.parametrize("num_fusion_layers", [1, 2])
@pytest.mark.parametrize("vision_loss_weight", [0.0, 0.1])
def test_forward_equals_reference(num_fusion_layers, num_fusion_heads, vision_loss_weight):
    model = make_double_model(
        num_fusion_layers=num_fusion_layers,
        num_fusion_heads=num_fusion_heads,
        vision_loss_weight=vision_loss_weight,
        contrastive_loss_weight=0.3,
    )
    inputs = make_inputs()
    with torch.no_grad():
        outputs = model.vtfusion(**inputs, output_fusion_attentions=True, output_alignment=True)
    for row, expected in enumerate(reference_rows(model, inputs)):
        if expected is None:
            assert torch.equal(outputs.last_hidden_state[row], outputs.text_hidden_state[row])
            assert not outputs.fusion_gate[row].any()
            assert not outputs.text_to_image_attention[row].any()
            assert not outputs.image_to_text_attention[row].any()
            continue
        there = outputs.visual_mask[row]
        for name in ("visual_context", "fusion_gate", "last_hidden_state"):
            assert_near(outputs[name][row], expected[name], name)
        for name in ("text_embeds", "image_embeds"):
            assert_near(outputs[name][row], expected[name], name, SINGLE)
        assert_near(outputs.visual_hidden_state[row][there], expected["visual_hidden_state"], "visual_hidden_state")
        assert_near(outputs.similarity[row][:, :, there], expected["similarity"], "similarity")
        to_image, to_text = outputs.text_to_image_attention[row], outputs.image_to_text_attention[row]
        assert_near(to_image[:, :, there], expected["text_to_image_attention"], "text_to_image_attention")
        assert_near(to_text[:, there], expected["image_to_text_attention"], "image_to_text_attention")
        assert not to_image[:, :, ~there].any() and not to_text[:, ~there].any()
        if vision_loss_weight > 0:
            assert_near(outputs.image_state[row][there], expected["image_state"], "image_state")
        else:
            assert outputs.image_state is None


def test_forward_equals_reference_on_pixels():
    """Two images per text through a CNN: the grid is read row by row."""
    torch.manual_seed(0)
    model = VTFusionForTokenClassification(tiny_config("bert", "resnet")).eval()
    spread(model)
    model.double()
    inputs = tiny_inputs("resnet")
    inputs["pixel_values"] = torch.randn(2, 2, 3, 32, 48, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        outputs = model(**inputs)
        maps = model.vtfusion.vision_model(pixel_values=inputs["pixel_values"].flatten(0, 1)).last_hidden_state
    assert maps.shape == (4, 16, 4, 6)
    boxes = [[column / 6, row / 4, (column + 1) / 6, (row + 1) / 4] for row in range(4) for column in range(6)]
    found = outputs.visual_boxes.unflatten(1, (2, 24))
    torch.testing.assert_close(found, torch.tensor(boxes).expand(2, 2, 24, 4))
    inputs |= {
        "visual_embeds": torch.stack([maps[:, :, row, column] for row in range(4) for column in range(6)], dim=1),
        "visual_boxes": found,  # the sines of high frequencies would enlarge their rounding
        "visual_mask": torch.ones(2, 2, 24),
        "image_mask": torch.ones(2, 2),
    }
    inputs["visual_embeds"] = inputs["visual_embeds"].unflatten(0, (2, 2))
    for row, expected in enumerate(reference_rows(model, inputs)):
        for name in ("visual_hidden_state", "visual_context", "fusion_gate", "last_hidden_state"):
            assert_near(outputs[name][row], expected[name], name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("log_scale", "expected"), [(50.0, 100.0), (1000.0, 100.0), (-50.0, 0.01), (1.5, math.exp(1.5))]
)
def test_bounds_of_the_temperature_let_no_gradient_overflow(log_scale, expected, dtype):
    model = make_model(contrastive_loss_weight=0.1).to(dtype).vtfusion
    layer = model.fusion_layers[0]
    with torch.no_grad():
        layer.log_scale.fill_(log_scale)
        model.contrastive_log_scale.fill_(log_scale)
    scale = layer.scale()
    torch.testing.assert_close(scale.float(), torch.full((2, 1, 1), expected), rtol=1e-5, atol=0)
    assert model.contrastive_scale().item() == pytest.approx(expected, rel=1e-5)
    (scale.sum() + model.contrastive_scale()).backward()
    inside = expected if log_scale == 1.5 else 0.0
    for parameter in (layer.log_scale, model.contrastive_log_scale):
        torch.testing.assert_close(
            parameter.grad.float(), torch.full_like(parameter, inside).float(), rtol=0.01, atol=0
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_unit_vectors(dtype):
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -1e-4]], dtype=dtype, requires_grad=True)
    unit = unit_vectors(x)
    assert unit.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(unit, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]], dtype=unit.dtype))
    (unit * torch.tensor([1.0, 2.0])).sum().backward()
    # of (x + 2 y) / |(x, y)|; a zero vector has no direction to turn from
    expected = torch.tensor([[-0.064, 0.048], [0.0, 0.0], [1e4, 0.0]], dtype=dtype)
    torch.testing.assert_close(x.grad, expected, rtol=1e-2, atol=5e-3)


def test_temperature_is_bounded():
    model = make_double_model()
    with torch.no_grad():
        model.vtfusion.fusion_layers[0].log_scale.copy_(torch.tensor([10.0, 0.5]))
    assert model.vtfusion.fusion_layers[0].scale().flatten().tolist() == pytest.approx([100.0, math.exp(0.5)])
    inputs = make_inputs()
    with torch.no_grad():
        outputs = model(**inputs)
    for row, expected in enumerate(reference_rows(model, inputs)[:2]):
        assert_near(outputs.visual_context[row], expected["visual_context"])


# ------------------------------------------------------------------------------------------------------------ losses


@pytest.mark.parametrize(("num_labels", "num_fusion_heads"), [(3, 2), (8, 2), (9, 4)], ids=["narrow", "equal", "wide"])
@pytest.mark.parametrize("num_fusion_layers", [1, 2])
def test_losses_equal_reference(num_labels, num_fusion_heads, num_fusion_layers):
    model = make_double_model(
        num_labels=num_labels,
        num_fusion_heads=num_fusion_heads,
        num_fusion_layers=num_fusion_layers,
        fusion_loss_weight=0.7,
        text_loss_weight=0.4,
        vision_loss_weight=0.3,
        contrastive_loss_weight=0.2,
    )
    inputs = make_inputs()
    rows = reference_rows(model, inputs)
    with torch.no_grad():
        outputs = model(**inputs, labels=LABELS)
    head = weights_of(model)

    fused = outputs.text_hidden_state.clone()
    for row, expected in enumerate(rows):
        if expected is not None:
            fused[row] = expected["last_hidden_state"]
    logits = linear(head, "classifier", fused)
    assert_near(outputs.logits, logits, "logits")
    count = (LABELS != -100).sum().item()
    fusion = sum(cross_entropies(logits, LABELS)) / count
    text = sum(cross_entropies(linear(head, "classifier", outputs.text_hidden_state.double()), LABELS)) / count

    vision = 0.0
    for row, expected in enumerate(rows):
        if expected is None:
            continue
        predictions = softmax(linear(head, "vision_classifier", expected["image_state"]))
        total, _ = naive_vision_loss(expected["text_to_image_attention"], predictions, LABELS[row])
        vision += total
    # a row without an image adds nothing; its labels count, as in the other losses
    vision = vision / count

    contrastive = naive_contrastive_loss(rows, head["vtfusion.contrastive_log_scale"])

    for name, expected, tolerance in [
        ("fusion_loss", fusion, 1e-9),
        ("text_loss", text, 1e-9),
        ("vision_loss", vision, SINGLE),
        ("contrastive_loss", contrastive, SINGLE),
        ("loss", 0.7 * fusion + 0.4 * text + 0.3 * vision + 0.2 * contrastive, SINGLE),
    ]:
        assert outputs[name].item() == pytest.approx(float(expected), rel=tolerance), name


SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
CLASS_WEIGHTS = [0.5, 2.0, 1.5]
SEQUENCE_CASES = {
    "single": ({}, SINGLE_LABEL, [2, 0, 1]),
    "single, one unlabelled": ({}, SINGLE_LABEL, [-100, 1, 1]),
    "single, first token": ({"pooling": "first"}, SINGLE_LABEL, [2, 0, 1]),
    "single, last token": ({"pooling": "last"}, SINGLE_LABEL, [2, 0, 1]),
    "single, weighted": ({"class_weights": CLASS_WEIGHTS}, SINGLE_LABEL, [2, 0, 1]),
    "single, smoothed": ({"class_weights": CLASS_WEIGHTS, "label_smoothing": 0.2}, SINGLE_LABEL, [2, -100, 1]),
    "multi": ({}, MULTI_LABEL, [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]),
    "multi, some unlabelled": ({}, MULTI_LABEL, [[1.0, -100.0, 1.0], [0.0, 1.0, 0.0], [-100.0, -100.0, -100.0]]),
    "multi, smoothed": (
        {"class_weights": CLASS_WEIGHTS, "label_smoothing": 0.2},
        MULTI_LABEL,
        [[1.0, 0.0, 0.3], [0.0, -100.0, 0.6], [0.0, 1.0, 1.0]],
    ),
    "regression": ({"problem_type": REGRESSION}, REGRESSION, [[1.5, -2.0, 0.0], [3.0, -100.0, 1.0], [0.1, 0.2, 0.3]]),
    "one number": ({"num_labels": 1}, REGRESSION, [[1.5], [-2.0], [0.25]]),
}


@pytest.mark.parametrize("head", [VTFusionForSequenceClassification, VTFusionForVisualQuestionAnswering])
@pytest.mark.parametrize("case", SEQUENCE_CASES)
def test_sequence_losses_equal_reference(head, case):
    kwargs, problem, labels = SEQUENCE_CASES[case]
    model = make_double_model(
        head,
        num_fusion_layers=2,
        fusion_loss_weight=0.7,
        text_loss_weight=0.4,
        vision_loss_weight=0.3,
        contrastive_loss_weight=0.2,
        **kwargs,
    )
    inputs = make_inputs()
    rows = reference_rows(model, inputs)
    given = torch.tensor(labels, dtype=torch.long if problem == SINGLE_LABEL else torch.float64)
    with torch.no_grad():
        outputs = model(**inputs, labels=given.squeeze(-1) if case == "one number" else given)
    weights = weights_of(model)
    options = (problem, kwargs.get("class_weights"), kwargs.get("label_smoothing", 0.0))

    def pooled(state: torch.Tensor) -> torch.Tensor:
        return {"mean": sum(state) / len(state), "first": state[0], "last": state[-1]}[model.config.pooling]

    fused_states, texts = ([pooled(state) for state in states] for states in both_states(model, inputs, rows))
    fusion, text = ([linear(weights, "classifier", state) for state in states] for states in (fused_states, texts))
    if head is VTFusionForVisualQuestionAnswering:
        for row, (fused, question) in enumerate(zip(fused_states, texts, strict=True)):
            asked = linear(weights, "merge.question", gelu(linear(weights, "merge.transform", question))).tanh()
            difference = fused - question
            centred = difference - difference.mean()
            normed = centred / ((centred**2).mean() + 1e-5).sqrt()
            seen = (weights["merge.seen.weight"] @ normed).tanh()
            fusion[row] = fusion[row] + weights["merge.output.weight"] @ (asked * seen)
    assert_near(outputs.logits, torch.stack(fusion), "logits")
    count = max(int((given != -100).sum()), 1)
    expected = {
        name: sum(naive_row_loss(row, label, *options) for row, label in zip(logits, labels, strict=True)) / count
        for name, logits in {"fusion_loss": fusion, "text_loss": text}.items()
    }
    expected["vision_loss"] = 0.0
    for row, label, length in zip(rows, labels, inputs["attention_mask"].sum(dim=-1).tolist(), strict=True):
        if row is not None:
            # the weights of the classes and the smoothing are for L_ct and L_t
            by_position = [
                naive_row_loss(scores, label, problem)
                for scores in linear(weights, "vision_classifier", row["image_state"])
            ]
            alpha = row["text_to_image_attention"][:, :length]
            expected["vision_loss"] += naive_row_vision_loss(alpha, by_position) / count
    expected["contrastive_loss"] = naive_contrastive_loss(rows, weights["vtfusion.contrastive_log_scale"])
    assert_losses(outputs, expected, {"fusion": 0.7, "text": 0.4, "vision": 0.3, "contrastive": 0.2})


def assert_losses(outputs: Any, expected: dict[str, float], weights: dict[str, float]) -> None:
    for name, value in expected.items():
        assert outputs[name].item() == pytest.approx(float(value), rel=SINGLE, abs=SINGLE), name
    total = sum(weight * float(expected[f"{name}_loss"]) for name, weight in weights.items())
    assert outputs.loss.item() == pytest.approx(total, rel=SINGLE), "loss"


@pytest.mark.parametrize("start", [[1, 4, 0], [-100, 2, 0]], ids=["every row", "one row unlabelled"])
def test_span_losses_equal_reference(start):
    """The second text has five tokens and three places of padding, the third no image."""
    end = [start[0] if start[0] == -100 else 3, 4, 2]
    model = make_double_model(
        VTFusionForQuestionAnswering,
        fusion_loss_weight=0.7,
        text_loss_weight=0.4,
        vision_loss_weight=0.3,
        contrastive_loss_weight=0.2,
    )
    inputs = make_inputs()
    rows = reference_rows(model, inputs)
    with torch.no_grad():
        outputs = model(**inputs, start_positions=torch.tensor(start), end_positions=torch.tensor(end))
    weights = weights_of(model)
    expected = {"vision_loss": 0.0}
    for name, states in zip(("fusion_loss", "text_loss"), both_states(model, inputs, rows), strict=True):
        terms = []
        for row, state in enumerate(states):
            logits = linear(weights, "qa_outputs", state)
            if name == "fusion_loss":
                for column, scores in enumerate((outputs.start_logits, outputs.end_logits)):
                    assert_near(scores[row, : len(state)], logits[:, column])
                    assert (scores[row, len(state) :] == torch.finfo(torch.float64).min).all()
            if start[row] != -100:
                terms += [-softmax(logits[:, 0])[start[row]].log() / 2, -softmax(logits[:, 1])[end[row]].log() / 2]
        expected[name] = sum(terms) / (len(terms) / 2)
    count = 0
    for row, length in enumerate(inputs["attention_mask"].sum(dim=-1).tolist()):
        if start[row] == -100:
            continue
        inside = torch.tensor([int(start[row] <= token <= end[row]) for token in range(length)])
        count += length
        if rows[row] is not None:
            predictions = softmax(linear(weights, "vision_classifier", rows[row]["image_state"]))
            alpha = rows[row]["text_to_image_attention"][:, :length]
            expected["vision_loss"] += naive_vision_loss(alpha, predictions, inside)[0]
    expected["vision_loss"] /= count
    expected["contrastive_loss"] = naive_contrastive_loss(rows, weights["vtfusion.contrastive_log_scale"])
    assert_losses(outputs, expected, {"fusion": 0.7, "text": 0.4, "vision": 0.3, "contrastive": 0.2})


def masked_words() -> torch.Tensor:
    labels = torch.full((3, 7), -100)
    labels[0, [1, 5]], labels[1, 2], labels[2, 6] = torch.tensor([5, 98]), 40, 7
    return labels


def naive_masked_lm_losses(
    model: VTFusionPreTrainedModel,
    inputs: dict[str, torch.Tensor],
    rows: list[dict[str, torch.Tensor] | None],
    labels: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Over every place of every text, and only then the masked ones."""
    weights, losses = weights_of(model), {}
    for name, states in zip(("fusion_loss", "text_loss"), both_states(model, inputs, rows), strict=True):
        terms = []
        for row, state in enumerate(states):
            hidden = layer_norm(weights, "lm_head.norm", gelu(linear(weights, "lm_head.transform", state)), 1e-12)
            logits = linear(weights, "lm_head.decoder", hidden)
            terms += cross_entropies(logits[None], labels[row : row + 1, : len(state)])
        losses[name] = sum(terms) / len(terms)
    return losses


def test_masked_lm_losses_equal_reference():
    model = make_double_model(
        VTFusionForMaskedLM, fusion_loss_weight=0.7, text_loss_weight=0.4, contrastive_loss_weight=0.2
    )
    inputs, labels = make_inputs(), masked_words()
    rows = reference_rows(model, inputs)
    with torch.no_grad():
        outputs = model(**inputs, labels=labels)
    expected = naive_masked_lm_losses(model, inputs, rows, labels)
    expected["contrastive_loss"] = naive_contrastive_loss(rows, model.vtfusion.contrastive_log_scale)
    assert_losses(outputs, expected, {"fusion": 0.7, "text": 0.4, "contrastive": 0.2})


@pytest.mark.parametrize("head", [VTFusionForImageTextRetrieval, VTFusionForPreTraining])
def test_matching_losses_equal_reference(head):
    """Two rows have an image, so that the other one of them is the only negative that can be drawn."""
    is_pretraining = head is VTFusionForPreTraining
    model = make_double_model(
        head, fusion_loss_weight=0.7, text_loss_weight=0.4, matching_loss_weight=0.6, contrastive_loss_weight=0.2
    )
    inputs, labels = make_inputs(), masked_words()
    rows = reference_rows(model, inputs)
    with torch.no_grad():
        outputs = model(**inputs, **({"labels": labels} if is_pretraining else {"return_loss": True}))
    weights = weights_of(model)
    pairs = [(0, 0), (1, 1), (0, 1), (1, 0), (1, 0), (0, 1)]
    total = 0.0
    for (text, image), row in zip(pairs, reference_pairs(model, inputs, pairs), strict=True):
        state = row["last_hidden_state"][: inputs["attention_mask"][text].sum()]
        said = gelu(linear(weights, "matching_head.transform", state))
        logit = linear(weights, "matching_head.score", sum(said) / len(said)).item()
        if text == image:
            assert outputs.matching_logits[text].item() == pytest.approx(logit, rel=SINGLE)
        total += math.log(1 + math.exp(-logit if text == image else logit)) / len(pairs)
    expected = {"matching_loss": total}
    log_scale = model.vtfusion.contrastive_log_scale
    expected["contrastive_loss"] = naive_contrastive_loss(rows, log_scale)
    shares = {"matching": 0.6, "contrastive": 0.2}
    if is_pretraining:
        expected |= naive_masked_lm_losses(model, inputs, rows, labels)
        shares |= {"fusion": 0.7, "text": 0.4}
    assert_losses(outputs, expected, shares)
    for row in (0, 1):
        for other in (0, 1):
            cosine = rows[row]["text_embeds"] @ rows[other]["image_embeds"]
            logit = cosine.item() * math.exp(log_scale.item())
            assert outputs.logits_per_text[row, other].item() == pytest.approx(logit, rel=SINGLE)
            assert outputs.logits_per_image[other, row].item() == pytest.approx(logit, rel=SINGLE)


def test_zero_weight_turns_a_loss_off():
    model = make_model(text_loss_weight=0.0, vision_loss_weight=0.0, contrastive_loss_weight=0.0, num_fusion_layers=2)
    outputs = model(**make_inputs(), labels=LABELS)
    assert outputs.text_loss is None and outputs.vision_loss is None and outputs.contrastive_loss is None
    assert torch.equal(outputs.loss, outputs.fusion_loss)


def test_zero_fusion_weight_leaves_the_others():
    model = make_model(fusion_loss_weight=0.0, text_loss_weight=0.5, vision_loss_weight=0.0)
    outputs = model(**make_inputs(), labels=LABELS)
    torch.testing.assert_close(outputs.loss, 0.5 * outputs.text_loss)


def test_zero_vision_weight_drops_what_nobody_reads():
    model = make_model(vision_loss_weight=0.0, num_fusion_layers=2)
    assert model.vision_classifier is None
    first, last = model.vtfusion.fusion_layers
    assert first.has_image_side and not last.has_image_side
    assert not hasattr(last, "text_value") and not hasattr(last, "image_output")
    assert hasattr(make_model(num_fusion_layers=2).vtfusion.fusion_layers[1], "text_value")


def test_image_side_of_the_last_layer_runs_only_for_who_reads_it():
    model = make_model(num_fusion_layers=2)
    inputs = tiny_inputs("precomputed")
    runs = []
    for number, layer in enumerate(model.vtfusion.fusion_layers):
        layer.image_feed_forward.register_forward_hook(lambda *_, number=number: runs.append(number))
    logits = model(**inputs).logits
    assert runs == [0]
    labelled = model(**inputs, labels=inputs["input_ids"] % 3)
    assert runs == [0, 0, 1] and labelled.vision_loss > 0
    assert torch.equal(labelled.logits, logits)
    # the same random numbers as ever in training
    model.train()(**inputs)
    assert runs == [0, 0, 1, 0, 1]


def test_contrastive_scale_only_where_it_is_read():
    assert make_model().vtfusion.contrastive_log_scale is None
    assert make_model(contrastive_loss_weight=0.1).vtfusion.contrastive_log_scale is not None
    outputs = make_model()(**make_inputs())
    assert outputs.get("text_embeds") is None


def test_no_unused_parameters():
    """Every weight of the fusion part and the head is trained, for any number of layers and losses."""
    for kwargs in ({}, {"vision_loss_weight": 0.0}, {"contrastive_loss_weight": 0.1}):
        model = make_model(num_fusion_layers=2, **kwargs)
        model(**make_inputs(), labels=LABELS).loss.backward()
        unused = [n for n, p in model.named_parameters() if p.grad is None and "pooler" not in n]
        assert unused == []


@pytest.mark.parametrize("as_tensor", [True, False])
def test_micro_batches_add_up_to_the_batch(as_tensor):
    """With the number of labels of the whole batch, as `Trainer` gives it; one row has no image."""
    model = make_model(contrastive_loss_weight=0.2, vision_loss_weight=0.5)
    inputs = make_inputs()
    total = (LABELS != -100).sum() if as_tensor else (LABELS != -100).sum().item()
    parts = [slice(0, 2), slice(2, 3)]
    with torch.no_grad():
        whole = model(**inputs, labels=LABELS)
        same = model(**inputs, labels=LABELS, num_items_in_batch=total)
        micro = [
            model(**{k: v[p] for k, v in inputs.items()}, labels=LABELS[p], num_items_in_batch=total) for p in parts
        ]
        alone = [model(**{k: v[p] for k, v in inputs.items()}, labels=LABELS[p]) for p in parts]
    for name in ("fusion_loss", "text_loss", "vision_loss"):
        torch.testing.assert_close(same[name], whole[name])
        torch.testing.assert_close(sum(part[name] for part in micro if part[name] is not None), whole[name])
    torch.testing.assert_close(same.loss, whole.loss)
    # L_itc has only the rows of its micro-batch to compare with: it counts by its share of the labels
    shares = [(LABELS[p] != -100).sum() / total for p in parts]
    for part, single, share in zip(micro, alone, shares, strict=True):
        if part.contrastive_loss is not None:
            torch.testing.assert_close(part.contrastive_loss, single.contrastive_loss * share)


def test_no_label_at_all_is_zero_loss():
    model = make_model(contrastive_loss_weight=0.0)
    outputs = model(**make_inputs(), labels=torch.full((3, 7), -100))
    outputs.loss.backward()
    assert outputs.loss.item() == 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_gradient_of_vision_loss_equals_naive_gradient():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([[0, 4, -100, 2], [1, -100, 3, 3], [1, 1, 1, 1]])
    visual_mask = torch.tensor([[1, 1, 1, 0, 1], [1, 0, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
    sizes = {"scores": (3, 5, 5), "query": (3, 2, 4, 3), "key": (3, 2, 5, 3)}
    ours = {name: torch.randn(size, generator=generator, requires_grad=True) for name, size in sizes.items()}
    theirs = {name: value.detach().double().requires_grad_() for name, value in ours.items()}

    log_probs = ours["scores"].log_softmax(dim=-1)
    loss = vision_loss(log_probs, ours["query"], ours["key"], visual_mask, labels)
    loss.backward()

    naive = 0.0
    for row in range(2):
        there = visual_mask[row]
        alpha = softmax(torch.einsum("hld,hnd->hln", theirs["query"][row], theirs["key"][row][:, there]))
        total, _ = naive_vision_loss(alpha, softmax(theirs["scores"][row][there]), labels[row])
        naive = naive + total
    naive = naive / (labels != -100).sum()
    naive.backward()

    assert loss.item() == pytest.approx(naive.item(), rel=1e-5)
    for name in sizes:
        assert theirs[name].grad.abs().sum() > 0
        assert_near(ours[name].grad, theirs[name].grad, name)


def test_vision_loss_without_image_is_zero_with_finite_gradient():
    query = torch.randn(1, 2, 4, 3, requires_grad=True)
    log_probs = torch.randn(1, 5, 2).log_softmax(dim=-1).requires_grad_()
    loss = vision_loss(
        log_probs, query, torch.randn(1, 2, 5, 3), torch.zeros(1, 5, dtype=torch.bool), LABELS[:1, :4] % 2
    )
    loss.backward()
    assert loss.item() == 0
    assert not query.grad.any() and not log_probs.grad.any()


@pytest.mark.parametrize("class_weights", [None, CLASS_WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        (SINGLE_LABEL, [[0, 2], [-100, 1]]),
        (MULTI_LABEL, [[[1, 0, 0.4], [0, -100, 1]], [[-100, -100, -100], [1, 1, 1]]]),
        (REGRESSION, [[[1.5, -2, 0], [0, -100, 7]], [[-100, -100, -100], [0.5, 0, 0]]]),
    ],
    ids=["single", "multi", "regression"],
)
def test_row_losses_equal_naive_ones(problem, labels, smoothing, class_weights):
    logits = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    given = torch.tensor(labels, dtype=torch.long if problem == SINGLE_LABEL else torch.float64)
    result = row_losses(logits, given, problem, class_weights, smoothing)
    assert result.shape == (2, 2)
    for i in range(2):
        for j in range(2):
            expected = naive_row_loss(logits[i, j], labels[i][j], problem, class_weights, smoothing)
            assert result[i, j].item() == pytest.approx(expected, rel=1e-9), (i, j)
    assert row_losses(logits.half(), given, problem, class_weights, smoothing).dtype == torch.float32


@pytest.mark.parametrize("problem", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
def test_row_losses_without_a_label_give_no_gradient(problem):
    logits = torch.randn(2, 3, requires_grad=True)
    labels = torch.full((2,), -100) if problem == SINGLE_LABEL else torch.full((2, 3), -100.0)
    loss = row_losses(logits, labels, problem, CLASS_WEIGHTS, 0.1).sum()
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize("masked", [True, False])
def test_row_vision_loss_equals_naive_one_and_its_gradient(masked):
    generator = torch.Generator().manual_seed(0)
    sizes = {"losses": (3, 5), "query": (3, 2, 4, 3), "key": (3, 2, 5, 3)}
    ours = {name: torch.randn(size, generator=generator).double().requires_grad_() for name, size in sizes.items()}
    theirs = {name: value.detach().clone().requires_grad_() for name, value in ours.items()}
    text_mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    visual_mask = torch.tensor([[1, 1, 1, 0, 1], [1, 0, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
    masks = (text_mask, visual_mask) if masked else (None, None)
    loss = row_vision_loss(**ours, text_mask=masks[0], visual_mask=masks[1], count=torch.tensor(7))
    loss.backward()

    total = torch.zeros((), dtype=torch.float64)
    for row in range(3):
        tokens = [token for token in range(4) if not masked or text_mask[row, token]]
        there = [position for position in range(5) if not masked or visual_mask[row, position]]
        for head in range(2):
            for token in tokens:
                scores = [theirs["query"][row, head, token] @ theirs["key"][row, head, j] for j in there]
                alpha = softmax(torch.stack(scores)) if there else []
                for weight, position in zip(alpha, there, strict=True):
                    total = total + weight * theirs["losses"][row, position] / 2 / len(tokens)
    total = total / 7
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-9)
    for name in sizes:
        assert theirs[name].grad.abs().sum() > 0
        assert_near(ours[name].grad, theirs[name].grad, name)


@pytest.mark.parametrize("autocast", [False, True])
def test_row_vision_loss_of_errors_beyond_float16(autocast):
    """The squared error of a label of 2,000 is more than float16 holds."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 2, 4, 3, generator=generator), torch.randn(2, 2, 5, 3, generator=generator)
    losses = torch.rand(2, 5, generator=generator) * 1e3 + 4e6
    expected = row_vision_loss(losses, query, key, None, None, torch.tensor(2))
    query, key = query.half().requires_grad_(), key.half().requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16, enabled=autocast):
        loss = row_vision_loss(losses, query, key, None, None, torch.tensor(2))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward()
    for part in (query, key):
        assert part.grad.any() and torch.isfinite(part.grad).all()


def test_span_cross_entropy_by_hand():
    logits = torch.tensor([[[0.0, 1.0], [0.0, 3.0]], [[2.0, 0.0], [4.0, 0.0]]])
    first = [math.log(2), math.log(1 + math.e**2)]
    last = [math.log(1 + math.e**2), math.log(2)]
    start, end = torch.tensor([0, 0]), torch.tensor([0, 1])
    assert span_cross_entropy(logits, start, end).item() == pytest.approx((sum(first) + sum(last)) / 4)
    start, end = torch.tensor([0, -100]), torch.tensor([0, -100])
    assert span_cross_entropy(logits, start, end).item() == pytest.approx((first[0] + last[0]) / 2)
    nothing = torch.tensor([-100, -100])
    assert span_cross_entropy(logits, nothing, nothing).item() == 0


def test_answer_mask():
    result = answer_mask(torch.tensor([1, 0, 2, 3]), torch.tensor([2, 0, 3, 1]), 4)
    expected = [[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
    assert result.long().tolist() == expected


def test_binary_loss_by_hand():
    logits, counted = torch.tensor([0.0, 2.0, float("nan")]), torch.tensor([True, True, False])
    assert binary_loss(logits, counted, positive=True).item() == pytest.approx(math.log(2) + math.log(1 + math.e**-2))
    assert binary_loss(logits, counted, positive=False).item() == pytest.approx(math.log(2) + math.log(1 + math.e**2))
    assert binary_loss(torch.tensor([-200.0]), torch.tensor([True]), positive=True).item() == pytest.approx(200)


def test_hard_negatives_follow_the_similarity():
    similarity = torch.tensor([[9.0, 1.0, 0.0, 5.0], [0.0, 9.0, 2.0, 5.0], [1.0, 0.0, 9.0, 5.0], [7.0, 7.0, 7.0, 7.0]])
    has_image = torch.tensor([True, True, True, False])
    torch.manual_seed(0)
    draws = [hard_negatives(similarity, has_image) for _ in range(1500)]
    (texts, _), (_, images) = draws[0]
    assert texts.tolist() == images.tolist() == [0, 1, 2, 3]
    for row in range(3):
        for drawn, scores in (
            (torch.stack([images[row] for (_, images), _ in draws]), similarity[row]),
            (torch.stack([texts[row] for _, (texts, _) in draws]), similarity[:, row]),
        ):
            others = [other for other in range(3) if other != row]
            assert set(drawn.tolist()) <= set(others)
            first, second = (math.exp(scores[other]) for other in others)
            share = (drawn == others[0]).float().mean().item()
            assert share == pytest.approx(first / (first + second), abs=0.05)


@pytest.mark.parametrize("has_image", [[True, False, False], [False, False, False]])
def test_hard_negatives_of_too_few_rows(has_image):
    """Rows that have no other are given themselves: still indices of the batch."""
    (texts, images), (other_texts, other_images) = hard_negatives(torch.randn(3, 3), torch.tensor(has_image))
    row = 0
    if has_image[row]:
        assert images[row] == other_texts[row] == row
    for indices in (texts, images, other_texts, other_images):
        assert ((indices >= 0) & (indices < 3)).all()


def test_contrastive_loss_by_hand():
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    image = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    rows = [[1.2, 0.0], [1.6, 2.0]]  # cosines times 2
    expected = 0.0
    for matrix in (rows, list(zip(*rows, strict=True))):
        for i, row in enumerate(matrix):
            expected -= math.log(math.exp(row[i]) / sum(map(math.exp, row))) / 4
    assert contrastive_loss(text, image, torch.tensor(2.0), None).item() == pytest.approx(expected)


def test_contrastive_loss_leaves_out_rows_without_image():
    generator = torch.Generator().manual_seed(0)
    text = nn.functional.normalize(torch.randn(4, 6, generator=generator), dim=-1).requires_grad_()
    image = nn.functional.normalize(torch.randn(4, 6, generator=generator), dim=-1)
    has_image = torch.tensor([True, False, True, True])
    scale = torch.tensor(5.0)
    loss = contrastive_loss(text, image, scale, has_image)
    torch.testing.assert_close(loss, contrastive_loss(text[has_image], image[has_image], scale, None))
    loss.backward()
    assert not text.grad[1].any() and torch.isfinite(text.grad).all()
    assert contrastive_loss(text, image, scale, torch.zeros(4, dtype=torch.bool)).item() == 0


def test_token_cross_entropy_by_hand():
    logits = torch.tensor([[[0.0, 0.0], [1.0, 3.0], [5.0, 5.0]]])
    labels = torch.tensor([[0, 0, -100]])
    expected = math.log(2) - math.log(math.e / (math.e + math.e**3))
    assert token_cross_entropy(logits, labels).item() == pytest.approx(expected / 2)
    assert token_cross_entropy(logits, labels, 8).item() == pytest.approx(expected / 8)
    assert token_cross_entropy(logits, torch.full((1, 3), -100)).item() == 0


def test_count_labels():
    assert count_labels(LABELS).item() == 17
    assert count_labels(torch.full((1, 3), -100)).item() == 1
    assert count_labels(LABELS, 40).item() == 40
    assert count_labels(LABELS, torch.tensor(40)).item() == 40


# ------------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("how", ["mean", "first", "last"])
def test_pool_tokens(how):
    state = torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1]]).bool()
    result, whole = pool_tokens(state, mask, how), pool_tokens(state, None, how)
    for row in range(3):
        for tokens, found in ((state[row][mask[row]], result[row]), (state[row], whole[row])):
            expected = {"mean": tokens.mean(dim=0), "first": tokens[0], "last": tokens[-1]}[how]
            torch.testing.assert_close(found, expected)
    nothing = pool_tokens(state, torch.zeros(3, 5, dtype=torch.bool), how)
    assert torch.isfinite(nothing).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mean_of_states_whose_sum_half_precision_cannot_hold(dtype):
    state = torch.full((2, 300, 4), 30_000.0, dtype=dtype, requires_grad=True)
    mask = torch.arange(300).expand(2, -1) < torch.tensor([[300], [257]])
    for mean in (masked_mean(state, mask), masked_mean(state, None)):
        assert mean.dtype == dtype
        torch.testing.assert_close(mean.float(), torch.full((2, 4), 30_000.0), rtol=0.002, atol=0)
    masked_mean(state, mask).sum().backward()
    torch.testing.assert_close(state.grad[1, :257].float(), torch.full((257, 4), 1 / 257), rtol=0.01, atol=0)


def test_masked_mean_of_nothing_is_zero():
    assert not masked_mean(torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)).any()


def test_attend_equals_softmax_of_scores():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 2, 3, 4, generator=generator), torch.randn(2, 2, 5, 4, generator=generator)
    value = torch.randn(2, 2, 5, 4, generator=generator)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 1, 0, 0]]).bool()
    result, weights = attend(query, key, value, mask), attention_map(query, key, mask)
    for row in range(2):
        scores = torch.einsum("hqd,hkd->hqk", query[row].double(), key[row][:, mask[row]].double())
        alpha = softmax(scores)
        assert_near(weights[row][..., mask[row]], alpha)
        assert_near(result[row], alpha @ value[row][:, mask[row]].double())
    assert not weights[0][..., ~mask[0]].any()
    assert_near(attend(query, key, value), attention_map(query, key).double() @ value.double())


def test_attend_over_nothing_is_finite():
    query = torch.randn(1, 1, 3, 4, requires_grad=True)
    nothing = torch.zeros(1, 5, dtype=torch.bool)
    result = attend(query, torch.randn(1, 1, 5, 4), torch.randn(1, 1, 5, 4), nothing)
    result.sum().backward()
    assert torch.isfinite(result).all() and torch.isfinite(query.grad).all()
    assert torch.isfinite(attention_map(query, torch.randn(1, 1, 5, 4), nothing)).all()


def test_positions_tell_place_size_and_image_apart():
    torch.manual_seed(0)
    positions = VTFusionPositions(tiny_config())
    here, there, wide = [0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 0.5], [0.0, 0.0, 1.0, 1.0]
    boxes = torch.tensor([[here, there, wide]]).repeat(3, 1, 1)[None]
    result = positions(boxes)
    assert result.shape == (1, 3, 3, 16)
    distances = torch.cdist(result.flatten(0, 2), result.flatten(0, 2)) + torch.eye(9)
    assert distances.min() > 1e-2
    expected = torch.stack([waves(box, 2) for box in boxes[0, 2]])
    assert_near(result[0, 2], linear(weights_of(positions), "projection", expected))


def test_positions_tell_many_images_apart():
    torch.manual_seed(0)
    boxes = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 64, 1, 4)
    vectors = VTFusionPositions(tiny_config())(boxes)[0, :, 0]
    assert (torch.cdist(vectors, vectors) + torch.eye(64)).min() > 1e-3


def test_new_gated_fusion_adds_nothing():
    model = VTFusionForTokenClassification(tiny_config())
    assert not model.vtfusion.fusion.output.weight.any() and not model.vtfusion.fusion.output.bias.any()
    assert model.vtfusion.fusion.gate.weight.any()


def test_new_gated_fusion_can_learn():
    """W_o starts at zero, but its gradient does not."""
    torch.manual_seed(0)
    model = VTFusionForTokenClassification(tiny_config("bert", "precomputed"))
    model(**make_inputs(), labels=LABELS).loss.backward()
    assert model.vtfusion.fusion.output.weight.grad.any()


def test_gated_fusion_rows_without_image():
    torch.manual_seed(0)
    fusion = VTFusionGatedFusion(tiny_config(), HIDDEN)
    text = torch.randn(2, 3, HIDDEN)
    context = torch.randn(2, 3, 16)
    context[1] = float("nan")
    fused, gate = fusion(text, text, context, torch.tensor([True, False]))
    assert torch.equal(fused[1], text[1]) and not gate[1].any()
    assert ((gate[0] > 0) & (gate[0] < 1)).all()


def test_feed_forward_width_and_activation():
    config = tiny_config(fusion_intermediate_size=24, fusion_hidden_act="relu")
    block = VTFusionFeedForward(config)
    assert block.up.out_features == 24
    assert isinstance(block.activation, nn.ReLU)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layer_in_half_precision(dtype):
    torch.manual_seed(0)
    layer = VTFusionLayer(tiny_config(fusion_dropout=0.0), has_image_side=True)
    text, image = torch.randn(2, 4, 16), torch.randn(2, 5, 16)
    mask = torch.ones(2, 5, dtype=torch.bool)
    expected = layer(text, image, None, mask)
    result = layer.to(dtype)(text.to(dtype), image.to(dtype), None, mask)
    for half, full in zip(result, expected, strict=True):
        assert half.dtype == dtype
        torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.1)
