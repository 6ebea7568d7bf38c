"""Masked words, matching and retrieval, pretraining: what these heads do beside what every head promises."""

import math

import pytest
import torch
from PIL import Image
from transformers import BertConfig, ViTImageProcessor, pipeline

from heads import HEADS, make_head
from tiny import HIDDEN, IMAGE, TEXT, VISION, VOCAB, randomize_fusion, run, text_of, tiny_config, tiny_inputs
from tokenizers_for_tests import bert
from vtfusion import (
    VTFusionConfig,
    VTFusionForImageTextRetrieval,
    VTFusionForMaskedLM,
    VTFusionForPreTraining,
    VTFusionModel,
    VTFusionPreTrainedModel,
    VTFusionProcessor,
    modeling_vtfusion,
)
from vtfusion.visual_vtfusion import build_encoder

LABELS = HEADS["mlm"].labels(2)["labels"]


def images_of(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}


# ---------------------------------------------------------------------------------------------------- masked words


def test_words_of_masked_places_alone_give_the_loss_and_gradient_of_all():
    """`VTFusionForPreTraining` leaves out the other places on the CPU, `VTFusionForMaskedLM` does not."""
    sparse = make_head("pretraining", contrastive_loss_weight=0.0, matching_loss_weight=0.0)
    dense = make_head("mlm", contrastive_loss_weight=0.0)
    dense.load_state_dict(sparse.state_dict())
    words, results = [], []
    for model in (sparse, dense):
        model.lm_head.decoder.register_forward_hook(lambda module, given, result: words.append(result.numel() / VOCAB))
        outputs = model(**tiny_inputs("precomputed"), labels=LABELS)
        outputs.loss.backward()
        losses = {name: outputs[name] for name in ("loss", "fusion_loss", "text_loss")}
        results.append((losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    assert words == [3, 3, 14, 14]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


def test_scores_of_all_words_give_the_loss_of_those_that_are_wanted(monkeypatch):
    """As under a compiler, which cannot know where they are wanted."""
    model = make_head("pretraining")
    few = run(model, **tiny_inputs("precomputed"), labels=LABELS)
    words = []
    model.lm_head.decoder.register_forward_hook(lambda module, given, result: words.append(result.numel() / VOCAB))
    monkeypatch.setattr(modeling_vtfusion.torch.compiler, "is_compiling", lambda: True)
    every = run(model, **tiny_inputs("precomputed"), labels=LABELS)
    assert words == [14, 14]
    for name in ("loss", "fusion_loss", "text_loss"):
        torch.testing.assert_close(every[name], few[name])


@pytest.mark.parametrize("head", ["mlm", "pretraining"])
def test_no_masked_word_is_zero_loss(head):
    model = make_head(head, contrastive_loss_weight=0.0, matching_loss_weight=0.0)
    outputs = model(**tiny_inputs("precomputed"), labels=torch.full((2, 7), -100))
    outputs.loss.backward()
    assert outputs.loss.item() == 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("head", [VTFusionForMaskedLM, VTFusionForPreTraining])
def test_tied_model_from_two_encoders_keeps_their_weights(head):
    torch.manual_seed(1)
    text, vision = build_encoder(TEXT["bert"]()), build_encoder(VISION["resnet"]())
    words = text.get_input_embeddings().weight.detach().clone()
    model = head.from_vision_text_pretrained(
        vision,
        text,
        fusion_hidden_size=16,
        num_fusion_heads=2,
        tie_word_embeddings=True,
        contrastive_loss_weight=1.0,
    )
    assert torch.equal(model.get_input_embeddings().weight, words)
    assert model.lm_head.decoder.weight is text.get_input_embeddings().weight


@pytest.mark.parametrize("head", ["mlm", "retrieval", "pretraining"])
def test_no_image_side_that_nobody_reads(head):
    model = make_head(head, num_fusion_layers=2, vision_loss_weight=0.3)
    assert model.config.vision_loss_weight == 0
    assert [layer.has_image_side for layer in model.vtfusion.fusion_layers] == [True, False]


# -------------------------------------------------------------------------------------------------------- matching


@pytest.mark.parametrize("head", ["retrieval", "pretraining"])
def test_the_matching_head_compares(head):
    """Two words and two pictures, added up as the fusion adds them: no weighted sum of a state tells who belongs to whom."""
    matching = make_head(head).matching_head
    torch.manual_seed(0)
    words, pictures = torch.randn(2, 2, HIDDEN)
    state = (words[:, None] + pictures[None, :]).view(4, 1, HIDDEN)
    belongs = torch.eye(2).flatten()
    optimizer = torch.optim.Adam(matching.parameters(), lr=0.01)
    for _ in range(200):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(matching(state, None), belongs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize("head", ["retrieval", "pretraining"])
@pytest.mark.parametrize("batch_size", [1, 3], ids=["one row", "one row with an image"])
def test_a_true_pair_is_no_negative(head, batch_size):
    """Where no other image can be drawn, nothing may teach that text and image do not belong together."""
    model = make_head(head)
    inputs = tiny_inputs("precomputed", batch_size=batch_size)
    inputs["image_mask"] = torch.tensor([[0], [0], [1]])[-batch_size:]
    outputs = model(**inputs, **HEADS[head].labels(batch_size))
    outputs.matching_loss.backward()
    logit = outputs.matching_logits[-1].item()
    # one pair of the three that a row has
    assert outputs.matching_loss.item() == pytest.approx(math.log(1 + math.exp(-logit)) / 3, rel=1e-5)
    assert model.matching_head.score.bias.grad.item() < 0


@pytest.mark.parametrize("head", ["retrieval", "pretraining"])
def test_matching_loss_of_drawn_pairs(head, monkeypatch):
    """Each text beside the image drawn for it, each image beside its text, as if they had come so."""
    model = make_head(head)
    inputs = tiny_inputs("precomputed", batch_size=4)
    images, texts = torch.tensor([1, 3, 0, 2]), torch.tensor([2, 0, 3, 1])
    rows, seen = torch.arange(4), []

    def drawn(similarity, has_image, draw):
        seen.append(similarity)
        return (rows, images), (texts, rows)

    monkeypatch.setattr(modeling_vtfusion, "hard_negatives", drawn)
    outputs = run(model, **inputs, **HEADS[head].labels(4))
    torch.testing.assert_close(seen[0], outputs.logits_per_text)
    expected = 0.0
    for text, image in [(rows, rows), (rows, images), (texts, rows)]:
        pairs = {name: value[text] for name, value in text_of(inputs).items()}
        pairs |= {name: value[image] for name, value in images_of(inputs).items()}
        for logit in run(model, **pairs).matching_logits.tolist():
            expected += math.log(1 + math.exp(-logit if text is image else logit)) / 12
    assert outputs.matching_loss.item() == pytest.approx(expected, rel=1e-5)


def test_matching_learns():
    """Each word has its region. Who answers the same for every pair cannot get below ln 3 - 2/3 ln 2 = 0.64."""
    torch.manual_seed(0)
    config = tiny_config("bert", "precomputed", fusion_dropout=0.0)
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    model = VTFusionForImageTextRetrieval(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    words = torch.arange(4)
    inputs = {
        "input_ids": (words + 10)[:, None].expand(-1, 3),
        "visual_embeds": torch.randn(4, 12)[:, None].expand(-1, 2, -1),
    }
    losses = []
    for _ in range(100):
        outputs = model(**inputs, return_loss=True)
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
        losses.append(outputs.matching_loss.item())
    assert sum(losses[-10:]) / 10 < 0.5
    assert run(model.eval(), **inputs).logits_per_text.argmax(dim=-1).tolist() == words.tolist()


# ------------------------------------------------------------------------------------------------------- retrieval


@pytest.mark.parametrize("vision", ["resnet", "precomputed"])
def test_features_are_unit_vectors_of_each_side_alone(vision):
    model = make_head("retrieval", vision=vision)
    inputs = tiny_inputs(vision, batch_size=3) | {"image_mask": torch.tensor([[1], [0], [1]])}
    outputs = run(model, **inputs)
    with torch.no_grad():
        texts = model.get_text_features(**text_of(inputs)).pooler_output
        images = model.get_image_features(**images_of(inputs)).pooler_output
        no_images = model.get_image_features(**images_of(inputs) | {"image_mask": torch.zeros(3, 1)}).pooler_output
    torch.testing.assert_close(texts, outputs.text_embeds)
    torch.testing.assert_close(images, outputs.image_embeds)
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(images.norm(dim=-1), torch.tensor([1.0, 0.0, 1.0]))
    assert not no_images.any() and no_images.shape == (3, 16)
    for row in range(3):
        with torch.no_grad():
            alone = model.get_text_features(
                **{name: value[row : row + 1] for name, value in text_of(inputs).items()}
            ).pooler_output
        torch.testing.assert_close(alone[0], texts[row], rtol=1e-5, atol=1e-6)
    scale = model.vtfusion.contrastive_log_scale.exp()
    model.set_attn_implementation("eager")  # which gives its attentions
    text, words = model.vtfusion.text_model, model.get_text_features(**text_of(inputs), output_attentions=True)
    expected = text(**text_of(inputs), output_attentions=True)
    torch.testing.assert_close(words.last_hidden_state, expected.last_hidden_state)
    assert len(words.attentions) == len(expected.attentions) > 0
    for found, attention in zip(words.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(found, attention)
    torch.testing.assert_close(outputs.logits_per_text, texts @ images.T * scale)
    assert torch.equal(outputs.logits_per_image, outputs.logits_per_text.T)


@pytest.mark.parametrize("vision", ["resnet", "precomputed"])
@pytest.mark.parametrize("num_images", [1, 5])
def test_other_number_of_images_than_texts(vision, num_images):
    model = make_head("retrieval", vision=vision)
    texts, images = tiny_inputs(vision, batch_size=3), tiny_inputs(vision, batch_size=num_images, seed=1)
    outputs = run(model, **text_of(texts), **images_of(images))
    assert outputs.matching_logits is None and outputs.loss is None
    assert outputs.logits_per_text.shape == (3, num_images) and outputs.logits_per_image.shape == (num_images, 3)
    with torch.no_grad():
        scale = model.vtfusion.contrastive_scale()
        for row in range(3):
            for column in range(num_images):
                pair = {n: v[row : row + 1] for n, v in text_of(texts).items()}
                pair |= {n: v[column : column + 1] for n, v in images_of(images).items()}
                expected = model(**pair).logits_per_text[0, 0]
                torch.testing.assert_close(outputs.logits_per_text[row, column], expected, rtol=1e-4, atol=1e-5)
    assert outputs.text_embeds.shape == (3, 16) and outputs.image_embeds.shape == (num_images, 16)
    assert scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    with pytest.raises(ValueError, match=f"has {num_images} rows, but the text has 3"):
        model(**text_of(texts), **images_of(images), return_loss=True)


def test_other_number_of_images_than_embedded_texts():
    model = make_head("retrieval")
    texts, images = text_of(tiny_inputs()), images_of(tiny_inputs("precomputed", batch_size=5))
    expected = run(model, **texts, **images).logits_per_text
    embeds = model.get_input_embeddings()(texts["input_ids"])
    result = run(model, inputs_embeds=embeds, attention_mask=texts["attention_mask"], **images)
    torch.testing.assert_close(result.logits_per_text, expected)


@pytest.mark.parametrize("vision", ["resnet", "precomputed"])
def test_image_features_bring_those_of_the_encoder(vision):
    model, inputs = make_head("retrieval", vision=vision), images_of(tiny_inputs(vision, batch_size=3))
    with torch.no_grad():
        features = model.get_image_features(**inputs).last_hidden_state
        given = "visual_embeds" in inputs
        expected = inputs["visual_embeds"] if given else model.vtfusion.get_visual_features(**inputs)[0][:, 0]
        nothing = model.get_image_features(**inputs, image_mask=torch.zeros(3, 1)).last_hidden_state
    torch.testing.assert_close(features, expected)
    assert nothing.shape[0] == 3 and nothing.shape[2] == features.shape[2]


@pytest.mark.parametrize("vision", ["vit", "resnet", "precomputed"])
def test_image_features_bring_the_states_of_the_vision_encoder(vision):
    model, inputs = make_head("retrieval", vision=vision), images_of(tiny_inputs(vision, batch_size=3))
    model.set_attn_implementation("eager")  # which gives its attentions
    inputs["image_mask"], options = torch.tensor([[1], [0], [1]]), {"output_hidden_states": True}
    if vision != "resnet":
        options["output_attentions"] = True
    with torch.no_grad():
        plain, found = model.get_image_features(**inputs), model.get_image_features(**inputs, **options)
        for name in options:
            setattr(model.config, name, True)
        by_config = model.get_image_features(**inputs)
        refused = model.get_image_features(**inputs, **dict.fromkeys(options, False))
        nothing = model.get_image_features(**inputs | {"image_mask": torch.zeros(3, 1)})
        encoder = model.vtfusion.vision_model
        expected = None if encoder is None else encoder(inputs["pixel_values"].flatten(0, -4)[[0, 2]], **options)
    assert plain.hidden_states is plain.attentions is None and refused.hidden_states is refused.attentions is None
    assert nothing.hidden_states is nothing.attentions is None
    torch.testing.assert_close(found.pooler_output, plain.pooler_output)
    for name in ("hidden_states", "attentions"):
        if encoder is None or (vision, name) == ("resnet", "attentions"):
            assert getattr(found, name) is None and getattr(by_config, name) is None
        else:
            assert len(expected[name]) > 0
            torch.testing.assert_close(getattr(found, name), expected[name])
            torch.testing.assert_close(getattr(by_config, name), expected[name])


def test_absent_images_may_hold_anything():
    model, inputs = make_head("retrieval"), images_of(tiny_inputs("precomputed", batch_size=3))
    inputs["image_mask"] = torch.tensor([[1], [0], [1]])
    with torch.no_grad():
        expected = model.get_image_features(**inputs).pooler_output
        inputs["visual_embeds"][1] = torch.nan
        found = model.get_image_features(**inputs).pooler_output
    assert torch.equal(found, expected)


def test_image_features_of_nothing_raise():
    with pytest.raises(ValueError, match="Give `pixel_values` or `visual_embeds`"):
        make_head("retrieval").get_image_features()


@pytest.mark.parametrize(("given", "expected"), [(0.0, 1.0), (0.3, 0.3)])
def test_retrieval_learns_its_vectors(given, expected):
    assert make_head("retrieval", contrastive_loss_weight=given).config.contrastive_loss_weight == expected


# ----------------------------------------------------------------------------------------------------- pretraining


def test_matching_without_contrastive_raises():
    with pytest.raises(ValueError, match="`matching_loss_weight` needs `contrastive_loss_weight` above 0"):
        VTFusionForPreTraining(tiny_config("bert", "precomputed"))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, {"fusion_loss", "text_loss", "matching_loss", "contrastive_loss"}),
        ({"matching_loss_weight": 0.0}, {"fusion_loss", "text_loss", "contrastive_loss"}),
        ({"matching_loss_weight": 0.0, "contrastive_loss_weight": 0.0}, {"fusion_loss", "text_loss"}),
        ({"fusion_loss_weight": 0.0}, {"text_loss", "matching_loss", "contrastive_loss"}),
        ({"text_loss_weight": 0.0}, {"fusion_loss", "matching_loss", "contrastive_loss"}),
    ],
)
def test_zero_weight_turns_a_loss_off(weights, expected):
    model = make_head("pretraining", **weights)
    assert (model.matching_head is not None) == ("matching_loss" in expected)
    outputs = run(model, **tiny_inputs("precomputed"), labels=LABELS)
    assert {name for name in outputs if name.endswith("_loss")} == expected
    total = sum(getattr(model.config, f"{name}_weight") * outputs[name] for name in expected)
    torch.testing.assert_close(outputs.loss, total)


def test_all_words_are_scored_where_no_loss_is_asked_for():
    model = make_head("pretraining")
    outputs = run(model, **tiny_inputs("precomputed"))
    assert outputs.prediction_logits.shape == (2, 7, VOCAB) and outputs.loss is None
    with_loss = run(model, **tiny_inputs("precomputed"), labels=LABELS)
    assert with_loss.prediction_logits is None
    torch.testing.assert_close(with_loss.matching_logits, outputs.matching_logits)


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("head", [*HEADS, "base"])
def test_every_head_starts_from_a_pretraining_checkpoint(head, tie, tmp_path):
    torch.manual_seed(0)
    model = make_head("pretraining", vision="resnet", tie_word_embeddings=tie, num_fusion_layers=2)
    model.save_pretrained(tmp_path)
    cls = VTFusionModel if head == "base" else HEADS[head].model
    loaded, info = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["mismatched_keys"]
    # L_v was not learned in pretraining, so its classifier comes only where the configuration asks for it
    own = set() if head == "base" else HEADS[head].own - {"vision_classifier"}
    assert {name.split(".")[0] for name in info["missing_keys"]} == own - {"lm_head", "matching_head"}
    assert {name.split(".")[0] for name in info["unexpected_keys"]} == {"lm_head", "matching_head"} - own
    expected = model.vtfusion.state_dict()
    base = loaded.base_model.state_dict()
    assert base.keys() == expected.keys()
    assert all(torch.equal(base[name], value) for name, value in expected.items())
    if "lm_head" in own:
        assert (loaded.lm_head.decoder.weight is loaded.get_input_embeddings().weight) == tie


# ------------------------------------------------------------------------------------------------------- pipelines


def save_for_pipelines(model_class: type[VTFusionPreTrainedModel], folder: str, tie: bool) -> VTFusionPreTrainedModel:
    tokenizer = bert()
    text = BertConfig(vocab_size=len(tokenizer), hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=4)
    torch.manual_seed(0)
    model = model_class(
        VTFusionConfig(text, VISION["resnet"](), fusion_hidden_size=16, num_fusion_heads=2, tie_word_embeddings=tie)
    )
    randomize_fusion(model)
    model.eval().save_pretrained(folder)
    VTFusionProcessor(ViTImageProcessor(size={"height": IMAGE, "width": IMAGE}), tokenizer).save_pretrained(folder)
    return model


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_fill_mask_pipeline(tie, tmp_path):
    model, tokenizer = save_for_pipelines(VTFusionForMaskedLM, str(tmp_path), tie), bert()
    fill = pipeline("fill-mask", model=str(tmp_path))
    found = fill("the [MASK] fox", top_k=3)
    batch = tokenizer("the [MASK] fox", return_tensors="pt")
    place = batch["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    scores, words = run(model, **batch).logits[0, place].softmax(dim=-1).topk(3)
    assert [each["token"] for each in found] == words.tolist()
    assert [each["score"] for each in found] == pytest.approx(scores.tolist(), rel=1e-4)


def test_zero_shot_image_classification_pipeline(tmp_path):
    """One picture beside many texts, by the tokenizer and the image processor of a saved processor."""
    model, tokenizer = save_for_pipelines(VTFusionForImageTextRetrieval, str(tmp_path), False), bert()
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path))
    picture, labels = Image.new("RGB", (40, 30), "red"), ["the fox", "john smith lives", "paris"]
    pixels = ViTImageProcessor(size={"height": IMAGE, "width": IMAGE})(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        texts = model.get_text_features(**tokenizer(labels, padding=True, return_tensors="pt")).pooler_output
        cosines = texts @ model.get_image_features(pixel_values=pixels).pooler_output[0]
    expected = (cosines * model.vtfusion.contrastive_scale()).softmax(dim=0).tolist()
    found = classify(picture, candidate_labels=labels, hypothesis_template="{}")
    scores = {each["label"]: each["score"] for each in found}
    assert scores == pytest.approx(dict(zip(labels, expected, strict=True)), rel=1e-3)
    assert classify(picture, candidate_labels=["paris"])[0]["score"] == pytest.approx(1.0)


def test_hard_negatives_of_an_evaluation_are_the_most_alike():
    model = make_head("retrieval")
    inputs = {name: torch.cat([value, value.flip(0)]) for name, value in tiny_inputs("precomputed").items()}
    torch.manual_seed(0)
    first = run(model, **inputs, return_loss=True).matching_loss
    torch.manual_seed(1)
    assert torch.equal(run(model, **inputs, return_loss=True).matching_loss, first)
