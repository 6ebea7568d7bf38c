"""The fusion block and the losses against the same maths written out in float64, one row at a time, without masks."""

import math

import pytest
import torch
from torch import nn

from tiny import HIDDEN, VOCAB, tiny_config, tiny_inputs
from vtfusion import VTFusionForTokenClassification
from vtfusion.fusion_vtfusion import (
    VTFusionFeedForward,
    VTFusionGatedFusion,
    VTFusionLayer,
    VTFusionPositions,
    attend,
    attention_map,
    contrastive_loss,
    count_labels,
    token_cross_entropy,
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


def layer_norm(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def feed_forward(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    inner = linear(weights, f"{name}.up", layer_norm(weights, f"{name}.norm", x))
    inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
    return x + linear(weights, f"{name}.down", inner)


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


def spread(model: nn.Module, seed: int = 1) -> None:
    """Moves every weight of the fusion part and the head away from its tidy start: biases, norms, W_o, temperatures."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "text_model" not in name and "vision_model" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def make_model(**kwargs: object) -> VTFusionForTokenClassification:
    torch.manual_seed(0)
    model = VTFusionForTokenClassification(tiny_config("bert", "precomputed", **kwargs)).eval()
    spread(model)
    return model


def make_double_model(**kwargs: object) -> VTFusionForTokenClassification:
    """For comparisons with the reference: what is left is no rounding but a mistake."""
    return make_model(**kwargs).double()


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
    model: VTFusionForTokenClassification, inputs: dict[str, torch.Tensor]
) -> list[dict[str, torch.Tensor] | None]:
    """`None` for a row without an image."""
    base = model.vtfusion
    with torch.no_grad():
        text = base.text_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    masks = inputs["visual_mask"].bool() & inputs["image_mask"].bool()[..., None]
    fused = {name: value for name, value in weights_of(base).items() if "_model." not in name}
    return [
        reference_row(
            fused,
            model.config.num_fusion_layers,
            model.config.num_fusion_heads,
            text.last_hidden_state[row],
            inputs["attention_mask"][row].bool(),
            inputs["visual_embeds"][row],
            inputs["visual_boxes"][row],
            masks[row],
        )
        if masks[row].any()
        else None
        for row in range(len(masks))
    ]


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

    present = [row for row in rows if row is not None]
    scale = math.exp(head["vtfusion.contrastive_log_scale"].item())
    cosines = torch.tensor(
        [[(one["text_embeds"] @ other["image_embeds"]).item() * scale for other in present] for one in present],
        dtype=torch.float64,
    )
    terms = [softmax(row)[i].log() for matrix in (cosines, cosines.T) for i, row in enumerate(matrix)]
    contrastive = -sum(terms) / len(terms)

    for name, expected, tolerance in [
        ("fusion_loss", fusion, 1e-9),
        ("text_loss", text, 1e-9),
        ("vision_loss", vision, SINGLE),
        ("contrastive_loss", contrastive, SINGLE),
        ("loss", 0.7 * fusion + 0.4 * text + 0.3 * vision + 0.2 * contrastive, SINGLE),
    ]:
        assert outputs[name].item() == pytest.approx(float(expected), rel=tolerance), name


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
