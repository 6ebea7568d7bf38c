"""What every head promises: rows without an image, padding, order, precision, micro-batches; and what each refuses."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import BertConfig, ViTImageProcessor, pipeline
from transformers.utils import find_labels

import vtfusion
from heads import HEADS, LABELLED, make_head
from tiny import HIDDEN, IMAGE, LENGTH, gradients, randomize_fusion, run, text_of, tiny_config, tiny_inputs
from tokenizers_for_tests import bert
from vtfusion import VTFusionForSequenceClassification, VTFusionPreTrainedModel, VTFusionProcessor, modeling_vtfusion
from vtfusion.fusion_vtfusion import check_label_range, check_not_padding, check_score_range

WAYS = [
    (name, how) for name, head in HEADS.items() for how in (("mean", "first", "last") if head.pools else ("mean",))
]


def without_dropout(model: VTFusionPreTrainedModel) -> VTFusionPreTrainedModel:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def assert_finite(model: torch.nn.Module, outputs: Any) -> None:
    """The loss, every output and, after the backward pass, every gradient."""
    outputs.loss.backward()
    values = {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    values |= gradients(model)
    assert [name for name, value in values.items() if not torch.isfinite(value).all()] == []


# ------------------------------------------------------------------------------------- where a head must be known


def test_every_head_is_known_everywhere():
    heads = {head.model.__name__ for head in HEADS.values()} | {"VTFusionForConditionalGeneration"}
    for module in (vars(modeling_vtfusion), modeling_vtfusion.__all__, vtfusion.__all__):
        assert {name for name in module if name.startswith("VTFusionFor")} == heads
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert [name for name in heads if name not in readme] == []


@pytest.mark.parametrize("head", HEADS)
def test_the_auto_class_knows_the_head(head):
    config = tiny_config("bert", "precomputed", **HEADS[head].config)
    assert type(getattr(transformers, HEADS[head].auto_class).from_config(config)) is HEADS[head].model


# -------------------------------------------------------------------------------------------- rows without an image


@pytest.mark.parametrize("vision", ["resnet", "precomputed"])
@pytest.mark.parametrize(("head", "pooling"), WAYS)
def test_row_without_image_equals_text_only_result_exactly(head, pooling, vision):
    model = make_head(head, vision=vision, num_fusion_layers=2, pooling=pooling)
    inputs, names = HEADS[head].inputs(vision, batch_size=3), HEADS[head].predictions
    mask = torch.tensor([[1], [0], [1]])
    text_only, mixed = run(model, **text_of(inputs)), run(model, image_mask=mask, **inputs)
    none = run(model, image_mask=torch.zeros(3, 1), **inputs)
    single = {name: value[1:2] for name, value in inputs.items()}
    alone, alone_text = run(model, image_mask=torch.zeros(1, 1), **single), run(model, **text_of(single))
    for name in names:
        assert torch.equal(mixed[name][1], text_only[name][1])
        assert torch.equal(none[name], text_only[name])
        assert torch.equal(alone[name], alone_text[name])
        assert not torch.allclose(mixed[name][0], text_only[name][0], atol=1e-4)
    # where a loss is asked for, the head runs on X_f and X_t of fewer rows
    with_loss = run(model, image_mask=mask, **inputs, **HEADS[head].labels(3))
    for name in names:
        if with_loss.get(name) is not None:
            torch.testing.assert_close(with_loss[name], mixed[name], rtol=1e-5, atol=1e-6)
            assert torch.equal(with_loss[name][1], text_only[name][1])


@pytest.mark.parametrize("mask", [[[1, 0], [0, 0]], [[0, 0], [0, 0]]], ids=["one row", "every row"])
@pytest.mark.parametrize("vision", ["resnet", "precomputed"])
@pytest.mark.parametrize("head", HEADS)
def test_no_nan_without_images(head, vision, mask):
    model = make_head(head, vision=vision, num_fusion_layers=2, contrastive_loss_weight=0.1).train()
    inputs = text_of(HEADS[head].inputs()) | {"image_mask": torch.tensor(mask)}
    name, shape = ("visual_embeds", (5, 12)) if vision == "precomputed" else ("pixel_values", (3, IMAGE, IMAGE))
    inputs[name] = torch.randn(2, 2, *shape)
    inputs[name][~inputs["image_mask"].bool()] = float("nan")
    assert_finite(model, model(**inputs, **HEADS[head].labels(2)))


@pytest.mark.parametrize("head", HEADS)
def test_no_nan_in_a_batch_of_text(head):
    model = make_head(head, contrastive_loss_weight=0.1).train()
    assert_finite(model, model(**text_of(HEADS[head].inputs()), **HEADS[head].labels(2)))


@pytest.mark.parametrize("head", HEADS)
def test_no_nan_where_image_dropout_takes_every_image(head):
    model = make_head(head, image_dropout=1 - 1e-9, contrastive_loss_weight=0.1).train()
    outputs = model(**HEADS[head].inputs("precomputed"), **HEADS[head].labels(2))
    assert not outputs.fusion_gate.any()
    assert_finite(model, outputs)


@pytest.mark.parametrize("head", LABELLED)
def test_loss_of_a_batch_of_text(head):
    model = make_head(head, contrastive_loss_weight=0.1)
    outputs = run(model, **text_of(HEADS[head].inputs()), **HEADS[head].labels(2))
    assert outputs.get("vision_loss") is None and outputs.contrastive_loss is None
    torch.testing.assert_close(outputs.text_loss, outputs.fusion_loss)
    torch.testing.assert_close(outputs.loss, 1.5 * outputs.fusion_loss)


# ----------------------------------------------------------------------------- a new model is its encoder and a head


def by_hand(
    head: str, model: VTFusionPreTrainedModel, encoded: torch.Tensor, text: torch.Tensor, mask: torch.Tensor
) -> dict[str, Any]:
    """What a head predicts from hidden states, fused ones and those of the text alone, in plain PyTorch."""
    modules = dict(model.named_children())
    result = {}

    def pooled(states: torch.Tensor) -> torch.Tensor:
        rows = [state[there] for state, there in zip(states, mask.bool(), strict=True)]
        how = model.config.pooling
        return torch.stack([{"mean": row.mean(0), "first": row[0], "last": row[-1]}[how] for row in rows])

    if head in ("token", "sequence", "vqa"):
        states = encoded if head == "token" else pooled(encoded)
        result["logits"] = F.linear(states, modules["classifier"].weight, modules["classifier"].bias)
    if head == "vqa":
        merge, question = modules["merge"], pooled(text)
        hidden = F.gelu(F.linear(question, merge.transform.weight, merge.transform.bias))
        asked = torch.tanh(F.linear(hidden, merge.question.weight, merge.question.bias))
        seen = torch.tanh(F.linear(F.layer_norm(pooled(encoded) - question, (HIDDEN,)), merge.seen.weight))
        result["logits"] = result["logits"] + F.linear(asked * seen, merge.output.weight)
    if head == "qa":
        logits = F.linear(encoded, modules["qa_outputs"].weight, modules["qa_outputs"].bias)
        logits[~mask.bool()] = torch.finfo(torch.float32).min
        result["start_logits"], result["end_logits"] = logits[..., 0], logits[..., 1]
    if head in ("mlm", "pretraining"):
        lm = modules["lm_head"]
        hidden = F.gelu(F.linear(encoded, lm.transform.weight, lm.transform.bias))
        hidden = F.layer_norm(hidden, (HIDDEN,), lm.norm.weight, lm.norm.bias, eps=1e-12)
        words = F.linear(hidden, lm.decoder.weight, lm.decoder.bias)
        result["logits" if head == "mlm" else "prediction_logits"] = words
    if head in ("retrieval", "pretraining"):
        matching = modules["matching_head"]
        said = F.gelu(F.linear(encoded, matching.transform.weight, matching.transform.bias))
        means = torch.stack([state[there].mean(0) for state, there in zip(said, mask.bool(), strict=True)])
        result["matching_logits"] = F.linear(means, matching.score.weight, matching.score.bias)[:, 0]
    return result


@pytest.mark.parametrize("trained", [False, True], ids=["new", "trained"])
@pytest.mark.parametrize(("head", "pooling"), WAYS)
def test_predictions_are_the_head_on_the_fused_text(head, pooling, trained):
    torch.manual_seed(0)
    model = HEADS[head].model(tiny_config("bert", "resnet", pooling=pooling, **HEADS[head].config)).eval()
    if trained:
        randomize_fusion(model)
    inputs = HEADS[head].inputs()
    with torch.no_grad():
        outputs = model(**inputs)
        texts = {name: value.flatten(0, -2) for name, value in text_of(inputs).items()}
        encoded = model.vtfusion.text_model(**texts).last_hidden_state
        encoded = encoded.unflatten(0, inputs["input_ids"].shape[:-1])
        assert torch.equal(outputs.last_hidden_state, encoded) == (not trained)
        fused = outputs.last_hidden_state if trained else encoded
        expected = by_hand(head, model, fused, encoded, inputs["attention_mask"])
    assert set(expected) == set(HEADS[head].predictions)
    for name, value in expected.items():
        torch.testing.assert_close(outputs[name], value, rtol=1e-5, atol=1e-6)


def test_an_answer_may_depend_on_question_and_image_together():
    """Is it what was asked for? A sum of what is asked and what is seen cannot say; a head on it stays at three quarters."""
    torch.manual_seed(0)
    config = tiny_config("bert", "precomputed", num_labels=2, vision_loss_weight=0.0)
    model = HEADS["vqa"].model(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    asked, shown = (grid.flatten() for grid in torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"))
    inputs = {
        "input_ids": torch.stack([torch.full((16,), 5), asked + 10, torch.full((16,), 6)], dim=1),
        "visual_embeds": F.one_hot(shown, 12).float()[:, None, None].expand(-1, 1, 2, -1),
    }
    labels = F.one_hot((asked == shown).long(), 2).float()
    for _ in range(300):
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(run(model.eval(), **inputs).logits.argmax(-1), labels.argmax(-1))


# ---------------------------------------------------------------------------------- what may not change the result


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("head", "pooling"), WAYS)
def test_more_padding_changes_nothing(head, pooling, side):
    model = make_head(head, "llama", num_fusion_layers=2, contrastive_loss_weight=0.1, pooling=pooling)
    inputs, labels = HEADS[head].inputs("precomputed"), HEADS[head].labels(2)
    width = (3, 0) if side == "left" else (0, 3)
    longer = inputs | {name: F.pad(inputs[name], width) for name in text_of(inputs)}
    longer_labels = dict(labels)
    for name, value in labels.items():
        if name.endswith("_positions"):
            longer_labels[name] = value + width[0]
        elif isinstance(value, torch.Tensor) and value.shape == inputs["input_ids"].shape:
            longer_labels[name] = F.pad(value, width, value=-100)
    one, other = run(model, **inputs), run(model, **longer)
    keep = inputs["attention_mask"].bool()
    for name in HEADS[head].predictions:
        expected, result = one[name], other[name]
        if expected.shape[: keep.dim()] == keep.shape:  # of each token
            expected, result = expected[keep], result.narrow(keep.dim() - 1, width[0], LENGTH)[keep]
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    one, other = run(model, **inputs, **labels), run(model, **longer, **longer_labels)
    for name in [name for name in one if name.endswith("loss")]:
        torch.testing.assert_close(other[name], one[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("head", HEADS)
def test_permuting_the_batch_permutes_the_result(head):
    model = make_head(head, vision="resnet")
    inputs = HEADS[head].inputs(batch_size=4) | {"image_mask": torch.tensor([[1], [0], [1], [1]])}
    order = torch.tensor([2, 3, 1, 0])
    one, other = run(model, **inputs), run(model, **{name: value[order] for name, value in inputs.items()})
    for name in HEADS[head].predictions:
        torch.testing.assert_close(other[name], one[name][order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_permuting_two_rows_leaves_every_loss(head):
    model = make_head(head, contrastive_loss_weight=0.1)
    inputs, labels = HEADS[head].inputs("precomputed"), HEADS[head].labels(2)
    flipped = {n: v.flip(0) if isinstance(v, torch.Tensor) else v for n, v in (inputs | labels).items()}
    one, other = run(model, **inputs, **labels), run(model, **flipped)
    names = [name for name in one if name.endswith("loss")]
    assert "loss" in names and "contrastive_loss" in names
    for name in names:
        torch.testing.assert_close(other[name], one[name], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------- training and precision


@pytest.mark.parametrize("head", HEADS)
def test_gradient_checkpointing_changes_no_gradient(head):
    model = make_head(head, vision="vit", num_fusion_layers=2, contrastive_loss_weight=0.1)
    without_dropout(model).train()
    inputs = HEADS[head].inputs("vit") | HEADS[head].labels(2)
    model(**inputs).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    calls = []
    model.vtfusion.fusion_layers[0].query.register_forward_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(**inputs).loss.backward()
    assert len(calls) % 2 == 0 and calls, "the fusion layer was not computed anew in the backward pass"
    result = gradients(model)
    assert result.keys() == expected.keys()
    for name, gradient in result.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("head", HEADS)
def test_every_weight_is_trained(head):
    model = make_head(head, vision="resnet", num_fusion_layers=2, contrastive_loss_weight=0.1)
    model(**HEADS[head].inputs(), **HEADS[head].labels(2)).loss.backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None and "pooler" not in n]
    assert unused == []


@pytest.mark.parametrize("image_mask", [[[1], [1]], [[1], [0]]], ids=["every row", "one row"])
@pytest.mark.parametrize("head", HEADS)
def test_bfloat16(head, image_mask):
    model = make_head(head, vision="resnet", contrastive_loss_weight=0.1)
    inputs = HEADS[head].inputs() | {"image_mask": torch.tensor(image_mask)}
    half = copy.deepcopy(model).to(torch.bfloat16)
    expected, outputs = run(model, **inputs), run(half, **inputs)
    for name in HEADS[head].predictions:
        assert outputs[name].dtype == torch.bfloat16
        there = expected[name] > torch.finfo(torch.bfloat16).min
        torch.testing.assert_close(outputs[name][there].float(), expected[name][there], rtol=0.1, atol=0.15)
    expected, outputs = run(model, **inputs, **HEADS[head].labels(2)), half(**inputs, **HEADS[head].labels(2))
    torch.testing.assert_close(outputs.loss.float(), expected.loss, rtol=0.1, atol=0.05)
    assert_finite(half, outputs)


@pytest.mark.parametrize("image_mask", [[[1], [1]], [[1], [0]]], ids=["every row", "one row"])
@pytest.mark.parametrize("head", HEADS)
def test_autocast(head, image_mask):
    model = make_head(head, contrastive_loss_weight=0.1)
    inputs = HEADS[head].inputs("precomputed") | HEADS[head].labels(2) | {"image_mask": torch.tensor(image_mask)}
    expected = run(model, **inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(**inputs)
    torch.testing.assert_close(outputs.loss.float(), expected.loss, rtol=0.1, atol=0.05)
    assert_finite(model, outputs)


@pytest.mark.parametrize("head", HEADS)
def test_tuples_follow_the_order_of_the_fields(head):
    model = make_head(head, contrastive_loss_weight=0.1)
    for extra in ({}, HEADS[head].labels(2)):
        inputs = HEADS[head].inputs("precomputed") | {"output_fusion_attentions": True} | extra
        outputs, values = run(model, **inputs), run(model, **inputs, return_dict=False)
        order = [name for name in type(outputs).__dataclass_fields__ if name in outputs]
        assert list(outputs) == order and isinstance(values, tuple) and len(values) == len(order)
        assert (order[0] == "loss") == bool(extra)
        for name, value in zip(order, values, strict=True):
            assert torch.equal(outputs[name], value), name


# ------------------------------------------------------------------------------------------ with `transformers.Trainer`


MICRO_BATCH_CASES = {
    **{name: (name, {}, None) for name, head in HEADS.items() if "labels" in head.labels(1)},
    "single": ("sequence", {}, torch.tensor([0, -100, 2, 1])),
    "single, weighted": ("sequence", {"class_weights": [1.0, 2.0, 3.0], "label_smoothing": 0.1}, None),
    "multi": ("sequence", {}, torch.tensor([[1.0, 0.0, 1.0], [0.0, -100.0, 1.0], [0.0, 0.5, 0.0], [1.0, 1.0, 1.0]])),
    "regression": ("sequence", {"num_labels": 1}, torch.tensor([0.5, -1.0, 2.0, 3.0])),
}


@pytest.mark.parametrize("text", ["bert", "mamba"])
@pytest.mark.parametrize("case", MICRO_BATCH_CASES)
def test_micro_batches_add_up_to_the_batch(case, text):
    """With the number of labels of the whole batch, as `Trainer` gives it."""
    head, config, labels = MICRO_BATCH_CASES[case]
    model = make_head(head, text, **{"contrastive_loss_weight": 0.2, **config})
    labels = HEADS[head].labels(4)["labels"] if labels is None else labels
    inputs = HEADS[head].inputs("precomputed", batch_size=4) | {"image_mask": torch.tensor([[1], [1], [1], [0]])}
    total = (labels != -100).sum()
    # of unequal length: a mean of means would not do
    parts = [slice(0, 1), slice(1, 4)]
    micro, alone = (
        [run(model, **{k: v[p] for k, v in inputs.items()}, labels=labels[p], **extra) for p in parts]
        for extra in ({"num_items_in_batch": total}, {})
    )
    whole, same = run(model, **inputs, labels=labels), run(model, **inputs, labels=labels, num_items_in_batch=total)
    for name in ("fusion_loss", "text_loss", "vision_loss"):
        if whole.get(name) is not None:
            torch.testing.assert_close(same[name], whole[name])
            torch.testing.assert_close(sum(part[name] for part in micro), whole[name])
    # What compares the rows of a micro-batch counts by its share of the labels.
    for part, single, p in zip(micro, alone, parts, strict=True):
        share = (labels[p] != -100).sum() / total
        torch.testing.assert_close(part.contrastive_loss, single.contrastive_loss * share)
        if part.get("matching_loss") is not None:
            torch.testing.assert_close(part.matching_loss, single.matching_loss * share)
        weights = {name: getattr(model.config, f"{name}_weight") for name in part if name.endswith("_loss")}
        torch.testing.assert_close(part.loss, sum(weight * part[name] for name, weight in weights.items()))


def test_no_label_at_all_is_zero_loss():
    labels = {"sequence": torch.full((2,), -100), "vqa": torch.full((2, 3), -100.0), "mlm": torch.full((2, 7), -100)}
    for head, nothing in labels.items():
        model = make_head(head)
        outputs = model(**tiny_inputs("precomputed"), labels=nothing)
        assert_finite(model, outputs)
        assert outputs.loss.item() == 0, head
    model = make_head("qa")
    nothing = torch.full((2,), -100)
    outputs = model(**tiny_inputs("precomputed"), start_positions=nothing, end_positions=nothing)
    assert_finite(model, outputs)
    assert outputs.loss.item() == 0


@pytest.mark.parametrize("head", HEADS)
def test_trainer_finds_the_labels(head):
    expected = list(HEADS[head].labels(1)) if head in LABELLED else []
    assert find_labels(HEADS[head].model) == expected


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("config", "labels", "message"),
    [
        ({}, torch.tensor([0, 1, 2]), r"`labels` must have shape \(2,\) for single_label_classification, got \(3,\)"),
        ({}, torch.tensor([[0], [1]]), r"`labels` must have shape \(2,\) for single_label_.*, got \(2, 1\)"),
        ({}, torch.tensor([[1, 0, 1], [0, 0, 1]]), r"`labels` must have shape \(2,\) for single_label_.*\(2, 3\)"),
        ({}, torch.rand(2, 4), r"`labels` must have shape \(2, 3\) for multi_label_classification, got \(2, 4\)"),
        ({}, torch.rand(2), r"`labels` must have shape \(2, 3\) for multi_label_classification, got \(2,\)"),
        ({"problem_type": "regression"}, torch.rand(2, 2), r"\(2, 3\) for regression, got \(2, 2\)"),
        ({"num_labels": 1}, torch.rand(3), r"`labels` must have shape \(2, 1\) for regression, got \(3, 1\)"),
        ({}, torch.tensor([0, 3]), r"Row 1, field `labels`: 3 is outside its range \(0 to 2, or -100 for none\)"),
        ({}, torch.tensor([-1, 0]), r"Row 0, field `labels`: -1 is outside its range"),
        ({}, torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), r"Row 1, field `labels`: 2.0 at position 2 is outside"),
        ({}, torch.tensor([[0.0, -0.5, 0.0], [0.0, 1.0, 1.0]]), r"Row 0, field `labels`: -0.5 at position 1"),
        ({}, torch.tensor([[0.0, 0.5, float("nan")], [0.0, 1.0, 1.0]]), r"Row 0, field `labels`: nan at position 2"),
    ],
)
@pytest.mark.parametrize("head", ["sequence", "vqa"])
def test_wrong_labels_of_a_text_raise(head, config, labels, message):
    with pytest.raises(ValueError, match=message):
        make_head(head, **config)(**tiny_inputs("precomputed"), labels=labels)


@pytest.mark.parametrize("head", ["sequence", "vqa"])
@pytest.mark.parametrize("soft", [False, True])
def test_what_a_model_was_trained_for_is_kept(head, soft, tmp_path):
    model = make_head(head)
    labels = torch.rand(2, model.num_labels) if soft else torch.tensor([0, 1])
    assert model.config.problem_type is None
    run(model, **tiny_inputs("precomputed"), labels=labels)
    model.save_pretrained(tmp_path)
    expected = "multi_label_classification" if soft else "single_label_classification"
    assert type(model).from_pretrained(tmp_path).config.problem_type == expected


def test_whole_numbers_for_several_labels():
    """Labels of 0 and 1 that came as integers are no classes where the configuration says so."""
    model = make_head("sequence", problem_type="multi_label_classification")
    labels = torch.tensor([[1, 0, 1], [0, 0, 1]])
    one, other = (run(model, **tiny_inputs("precomputed"), labels=x) for x in (labels, labels.float()))
    assert torch.equal(one.loss, other.loss)


@pytest.mark.parametrize("given", ["start_positions", "end_positions"])
def test_one_end_of_an_answer_raises(given):
    with pytest.raises(ValueError, match="both `start_positions` and `end_positions`"):
        make_head("qa")(**tiny_inputs("precomputed"), **{given: torch.tensor([1, 2])})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_positions": torch.tensor([1, 2, 3])}, r"`start_positions` must have shape \(2,\), got \(3,\)"),
        ({"end_positions": torch.tensor([[1], [2]])}, r"`end_positions` must have shape \(2,\), got \(2, 1\)"),
        ({"start_positions": torch.tensor([1, 7])}, r"Row 1, field `start_positions`: 7 is outside .*0 to 6"),
        ({"end_positions": torch.tensor([-1, 2])}, r"Row 0, field `end_positions`: -1 is outside"),
    ],
)
def test_wrong_positions_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        make_head("qa")(**tiny_inputs("precomputed"), **HEADS["qa"].labels(2) | changes)


@pytest.mark.parametrize(
    ("start", "end", "message"), [([1, 5], [2, 6], "`start_positions`: 5"), ([1, 2], [2, 6], "`end_positions`: 6")]
)
def test_an_answer_in_the_padding_raises(start, end, message):
    """Its loss would be the lowest number there is: two of them overflow."""
    with pytest.raises(ValueError, match=rf"Row 1, field {message} is padding"):
        make_head("qa")(
            **tiny_inputs("precomputed"), start_positions=torch.tensor(start), end_positions=torch.tensor(end)
        )


def test_a_loss_of_answers_without_a_mask_is_that_of_a_mask_of_ones():
    model, inputs = make_head("qa", vision_loss_weight=0.3), tiny_inputs("precomputed", batch_size=3)
    places = {"start_positions": torch.tensor([-100, 2, 0]), "end_positions": torch.tensor([-100, 4, 0])}
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    masked = run(model, **inputs, **places)
    del inputs["attention_mask"]
    bare = run(model, **inputs, **places)
    for name in ("loss", "fusion_loss", "text_loss", "vision_loss", "start_logits"):
        torch.testing.assert_close(bare[name], masked[name])
        assert bare[name].abs().sum() > 0


@pytest.mark.parametrize("head", LABELLED)
def test_a_loss_of_weight_zero_is_not_computed(head):
    everything = {"text_loss_weight": 0.3, "vision_loss_weight": 0.3}
    with_all = run(make_head(head, **everything), **HEADS[head].inputs("precomputed"), **HEADS[head].labels(2))
    has_vision_loss = "vision_classifier" in HEADS[head].own
    assert with_all.text_loss > 0 and (not has_vision_loss or with_all.vision_loss > 0)
    for name in everything:
        model = make_head(head, **everything | {name: 0.0})
        outputs = run(model, **HEADS[head].inputs("precomputed"), **HEADS[head].labels(2))
        left_out = name.removesuffix("_weight")
        assert left_out not in outputs and outputs.loss > 0
        if name == "text_loss_weight":
            assert has_vision_loss == ("vision_loss" in outputs)
            torch.testing.assert_close(outputs.fusion_loss, with_all.fusion_loss)


def test_labels_on_an_accelerator_are_not_waited_for():
    """A tensor without values stands for one whose values would have to be waited for."""
    far = torch.full((2, 3), 99, device="meta")
    check_label_range(far, 3)
    check_score_range(far.float())
    check_not_padding(far[:, 0], far, "start_positions")
    for check in (lambda x: check_label_range(x, 3), check_score_range):
        with pytest.raises(ValueError, match="Row 0, field `labels`: 99 at position 0 is outside its range"):
            check(torch.full((2, 3), 99))


@pytest.mark.parametrize("label", [0.0, 0.5, 1.0, -100.0])
def test_scores_from_zero_to_one_are_labels(label):
    check_score_range(torch.full((2, 3), label))
    for wrong in (label + 2, -0.1, 1.1, -99.0, float("nan")):
        labels = torch.full((2, 3), label)
        labels[1, 2] = wrong
        with pytest.raises(ValueError, match=r"Row 1, field `labels`: .* at position 2 .*\(0 to 1, or -100"):
            check_score_range(labels)


@pytest.mark.parametrize("head", ["token", "mlm", "pretraining"])
def test_wrong_labels_of_tokens_raise(head):
    model, inputs, labels = make_head(head), tiny_inputs("precomputed"), HEADS[head].labels(2)["labels"]
    for wrong in (labels[:, :6], labels[:1], labels.flatten()):
        with pytest.raises(ValueError, match=r"`labels` must have shape \(2, 7\), got"):
            model(**inputs, labels=wrong)
    labels[1, 2] = 99
    with pytest.raises(ValueError, match="Row 1, field `labels`: 99 at position 2 is outside its range"):
        model(**inputs, labels=labels)


# ------------------------------------------------------------------------------------------------------- pipelines


def test_text_classification_pipeline(tmp_path):
    tokenizer = bert()
    text = BertConfig(vocab_size=len(tokenizer), hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=4)
    torch.manual_seed(0)
    config = tiny_config(vision="resnet", id2label={0: "bad", 1: "so-so", 2: "good"})
    config.text_config = text
    model = VTFusionForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    VTFusionProcessor(ViTImageProcessor(size={"height": IMAGE, "width": IMAGE}), tokenizer).save_pretrained(tmp_path)
    classify = pipeline("text-classification", model=str(tmp_path))
    texts = ["the fox", "john smith lives in new york"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    expected = run(model, **batch).logits.softmax(dim=-1)
    for row, found in enumerate(classify(texts, top_k=None)):
        scores = {each["label"]: each["score"] for each in found}
        assert scores == pytest.approx(
            dict(zip(("bad", "so-so", "good"), expected[row].tolist(), strict=True)), rel=1e-4
        )


def test_no_answer_is_the_first_token_behind_padding_on_the_left():
    model = make_head("qa")
    inputs = tiny_inputs("precomputed")
    places = {"start_positions": torch.tensor([0, 0]), "end_positions": torch.tensor([0, 0])}
    right = model(**inputs, **places)
    shifted = {**inputs, "input_ids": inputs["input_ids"].clone(), "attention_mask": inputs["attention_mask"].clone()}
    for name in ("input_ids", "attention_mask"):
        shifted[name][1] = inputs[name][1].roll(2)
    shifted["position_ids"] = torch.stack([torch.arange(7), torch.arange(7).sub(2).clamp(min=0)])
    left = model(**shifted, **places)
    torch.testing.assert_close(left.loss, right.loss)
