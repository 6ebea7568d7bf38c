"""
The generation wing: before training and without an image it is its language model; with images, what it computes is
compared with plain float64 maths, and cached generation with uncached.
"""

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, BartConfig, GPT2Config, GPT2LMHeadModel, GPT2Model
from transformers.utils import find_labels

from tiny import HIDDEN, IMAGE, LANGUAGE_MODELS, VISION, VOCAB
from vtfusion import VTFusionConfig, VTFusionForConditionalGeneration

FUSION: dict[str, Any] = {
    "fusion_hidden_size": 16,
    "num_fusion_heads": 2,
    "fusion_dropout": 0.0,
    "cross_attention_every": 2,
    "vision_loss_weight": 0.0,
}
NEW = {"max_new_tokens": 5, "min_new_tokens": 5}


def build(kind: str = "llama", trained: bool = True, **fusion: Any) -> tuple[nn.Module, Any]:
    """A language model, and the same with images; `trained`: with output projections that are no longer zero."""
    torch.manual_seed(0)
    language_model = AutoModelForCausalLM.from_config(LANGUAGE_MODELS[kind]()).eval()
    plain = copy.deepcopy(language_model)
    vision = AutoModel.from_config(VISION["resnet"]())
    model = VTFusionForConditionalGeneration.from_vision_text_pretrained(vision, language_model, **FUSION | fusion)
    if trained:
        for block in model.cross_attention_layers:
            nn.init.normal_(block.fusion.output.weight, std=0.3)
    return plain, model


def prompts(batch_size: int = 2, length: int = 6) -> torch.Tensor:
    return torch.randint(3, VOCAB, (batch_size, length), generator=torch.Generator().manual_seed(1))


def pictures(batch_size: int = 2, num_images: int = 1) -> torch.Tensor:
    return torch.rand(batch_size, num_images, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(2))


# ------------------------------------------------------------------------------------------- it is its language model


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
@pytest.mark.parametrize("trained", [False, True])
def test_before_training_or_without_an_image_it_is_its_language_model(kind: str, trained: bool) -> None:
    plain, model = build(kind, trained)
    ids, images = prompts(), {} if trained else {"pixel_values": pictures()}
    assert torch.equal(model(input_ids=ids, **images).logits, plain(ids).logits)
    for mode in ({"do_sample": False}, {"do_sample": True}, {"num_beams": 3}):
        texts = []
        for generator, given in ((plain, {}), (model, images)):
            torch.manual_seed(3)
            texts.append(generator.generate(ids, **given, **mode, **NEW))
        assert torch.equal(*texts)


def test_a_row_without_an_image_is_the_language_models_in_a_mixed_batch() -> None:
    plain, model = build()
    ids = prompts()
    output = model(input_ids=ids, pixel_values=pictures(), image_mask=torch.tensor([[1], [0]]))
    expected = plain(ids).logits
    assert torch.equal(output.logits[1], expected[1])
    assert not torch.allclose(output.logits[0], expected[0], atol=1e-3)
    assert output.fusion_gate[0].all() and not output.fusion_gate[1].any()
    text = model.generate(ids, pixel_values=pictures(), image_mask=torch.tensor([[1], [0]]), **NEW)
    assert torch.equal(text[1:], plain.generate(ids[1:], **NEW))


@pytest.mark.parametrize("fusion", [{}, {"num_resampler_tokens": 3}])
@pytest.mark.parametrize("masked", [False, True])
def test_slots_that_all_lack_their_image_are_the_language_models(fusion: dict[str, Any], masked: bool) -> None:
    plain, model = build(**fusion)
    looks = {"cross_attention_mask": torch.ones(2, 6, 2)} if masked else {}
    output = model(input_ids=prompts(), pixel_values=pictures(2, 2), image_mask=torch.zeros(2, 2), **looks)
    assert torch.equal(output.logits, plain(prompts()).logits)


def test_it_generates_from_embeddings_as_its_language_model_does() -> None:
    plain, model = build()
    embeddings = plain.get_input_embeddings()(prompts())
    assert torch.equal(
        model.generate(inputs_embeds=embeddings, **NEW), plain.generate(inputs_embeds=embeddings, **NEW)
    )
    seen = model.generate(inputs_embeds=embeddings, pixel_values=pictures(), **NEW)
    assert torch.equal(seen, model.generate(prompts(), pixel_values=pictures(), **NEW)[:, prompts().shape[1] :])


def test_a_wrapped_language_model_stays_what_it_was() -> None:
    plain, model = build()
    assert torch.equal(model.text_model(prompts()).logits, plain(prompts()).logits)


# ------------------------------------------------------------------------------------------------------ with an image


def reference_block(block: nn.Module, hidden: torch.Tensor, image: torch.Tensor, heads: int) -> torch.Tensor:
    """Plain maths of one block for a single row: (L, H) tokens, (N, D) image positions."""

    def norm(x: torch.Tensor, layer: nn.LayerNorm) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + layer.eps).sqrt()
        return x * layer.weight + layer.bias

    def linear(x: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
        return x @ layer.weight.T + layer.bias

    layer, fusion = block.layer, block.fusion
    normed = norm(hidden, block.text_norm)
    text, picture = norm(linear(normed, block.text_projection), layer.text_norm), norm(image, layer.image_norm)
    query, key, value = linear(text, layer.query), linear(picture, layer.key), linear(picture, layer.image_value)
    width = query.shape[-1] // heads
    read = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        q = query[:, part] / query[:, part].norm(dim=-1, keepdim=True)
        k = key[:, part] / key[:, part].norm(dim=-1, keepdim=True)
        read.append(((q @ k.T) * layer.log_scale[head].exp()).softmax(-1) @ value[:, part])
    context = linear(torch.cat(read, -1), layer.context_output)
    forward = layer.context_feed_forward
    context = context + linear(nn.functional.gelu(linear(norm(context, forward.norm), forward.up)), forward.down)
    joined = torch.cat([normed, norm(context, fusion.context_norm)], -1)
    return hidden + linear(joined, fusion.gate).sigmoid() * linear(joined, fusion.output)


def test_the_loss_of_the_text_leaves_the_cache_as_long_as_the_text() -> None:
    plain, model = build()
    ids, images = prompts(), model.compute_image_key_values(pixel_values=pictures())
    cached = model(ids[:, :2], use_cache=True, **images)
    output = model(ids[:, 2:], past_key_values=cached.past_key_values, labels=ids[:, 2:], use_cache=True, **images)
    assert output.past_key_values.get_seq_length() == ids.shape[1]
    # behind the same two tokens, which had seen the images
    before = model(ids[:, :2], use_cache=True, **images).past_key_values
    logits = plain(ids[:, 2:], past_key_values=before).logits
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 3:].flatten())
    torch.testing.assert_close(output.text_loss, expected)
    assert not torch.allclose(output.fusion_loss, expected)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_block_is_the_maths_of_the_paper_before_its_layer(kind: str) -> None:
    plain, model = build(kind)
    plain, model = plain.double(), model.double()
    ids, images = prompts(1), pictures(1).double()
    output = model(input_ids=ids, pixel_values=images)
    layers = plain.base_model.h if kind == "gpt2" else plain.base_model.layers
    image = output.visual_hidden_state[0]
    block = model.cross_attention_layers[0]

    def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return (reference_block(block, args[0][0], image, 2)[None], *args[1:]), kwargs

    # every second layer of three: the second alone
    layers[1].register_forward_pre_hook(read, with_kwargs=True)
    torch.testing.assert_close(output.logits, plain(ids).logits, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_cached_generation_is_uncached_generation(kind: str) -> None:
    _, model = build(kind)
    for mode in ({"do_sample": False}, {"num_beams": 2, "num_return_sequences": 2}):
        cached = model.generate(prompts(), pixel_values=pictures(), **mode, **NEW)
        uncached = model.generate(prompts(), pixel_values=pictures(), use_cache=False, **mode, **NEW)
        assert torch.equal(cached, uncached)


def test_a_static_cache_gives_the_same_text() -> None:
    _, model = build()
    dynamic = model.generate(prompts(), pixel_values=pictures(), **NEW)
    static = model.generate(prompts(), pixel_values=pictures(), cache_implementation="static", **NEW)
    assert torch.equal(dynamic, static)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_left_padding_changes_nothing(kind: str) -> None:
    _, model = build(kind)
    ids, images = prompts(1), pictures(1)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(9) >= 3).long()[None]
    allowed = torch.tensor([0, 0, 1, 1, 1, 1])[None, :, None]
    wide = torch.cat([torch.zeros(1, 3, 1, dtype=torch.long), allowed], dim=1)
    alone = model.generate(ids, pixel_values=images, cross_attention_mask=allowed, **NEW)
    together = model.generate(
        padded, attention_mask=mask, pixel_values=images, cross_attention_mask=wide, pad_token_id=0, **NEW
    )
    assert torch.equal(alone, together[:, 3:])


def test_a_token_sees_what_its_mask_allows() -> None:
    plain, model = build()
    ids, images = prompts(1), pictures(1, num_images=2)
    mask = torch.tensor([[0, 0], [0, 0], [1, 0], [1, 0], [0, 1], [0, 1]])[None]
    output = model(input_ids=ids, pixel_values=images, cross_attention_mask=mask, output_fusion_attentions=True)
    assert torch.equal(output.logits[:, :2], plain(ids).logits[:, :2])
    by_image = output.text_to_image_attention.unflatten(-1, (2, -1)).sum(-1)[0].mean(0)
    torch.testing.assert_close(by_image, mask[0].float())
    # the second image means nothing to the tokens before it
    other = images.clone()
    other[:, 1] = 1 - other[:, 1]
    changed = model(input_ids=ids, pixel_values=other, cross_attention_mask=mask)
    assert torch.equal(output.logits[:, :4], changed.logits[:, :4])
    assert not torch.allclose(output.logits[:, 4:], changed.logits[:, 4:], atol=1e-4)
    # a generated token sees what the last one saw
    text = model.generate(ids, pixel_values=images, cross_attention_mask=mask, **NEW)
    longer = torch.cat([mask, mask[:, -1:].expand(-1, text.shape[1] - 6, -1)], dim=1)
    logits = model(input_ids=text, pixel_values=images, cross_attention_mask=longer).logits
    assert torch.equal(logits[:, 5:-1].argmax(-1), text[:, 6:])


def test_the_image_is_encoded_once_and_serves_several_turns() -> None:
    _, model = build()
    calls = []
    model.vision_model.register_forward_hook(lambda *_: calls.append(1))
    first = model.generate(prompts(), pixel_values=pictures(), num_beams=3, **NEW)
    assert len(calls) == 1
    states = model.compute_image_key_values(pixel_values=pictures())
    turn = model.generate(prompts(), **states, return_dict_in_generate=True, **NEW)
    assert len(calls) == 2
    cache = turn["cache"] if "cache" in turn else turn["past_key_values"]
    name = "cache" if "cache" in turn else "past_key_values"
    question = torch.cat([turn.sequences, prompts(2, 3)], dim=1)
    continued = model.generate(question, **states, **{name: cache}, **NEW)
    assert torch.equal(continued, model.generate(question, pixel_values=pictures(), **NEW))
    assert len(calls) == 3 and first.shape[0] == 2


@pytest.mark.parametrize("sees", [False, True])
def test_assisted_decoding_gives_the_same_text(sees: bool) -> None:
    _, model = build()
    plain, assistant = build(trained=True)
    ids, images = prompts(1), pictures(1)
    # a least length goes with an assistant in newer versions of transformers only
    greedy: dict[str, Any] = {"pixel_values": images, "do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
    expected = model.generate(ids, **greedy)
    drafted = model.generate(ids, assistant_model=assistant if sees else plain, **greedy)
    looked_up = model.generate(ids, prompt_lookup_num_tokens=2, **greedy)
    assert torch.equal(expected, drafted) and torch.equal(expected, looked_up)


def test_two_threads_do_not_mix_their_pictures() -> None:
    _, model = build()
    expected = [model(input_ids=prompts(), pixel_values=pictures() * share).logits for share in (0.2, 1.0)]
    wrong = []

    def run(index: int) -> None:
        with torch.no_grad():
            for _ in range(20):
                logits = model(input_ids=prompts(), pixel_values=pictures() * (0.2, 1.0)[index]).logits
                if not torch.allclose(logits, expected[index], atol=1e-5):
                    wrong.append(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_resampler_shortens_images_and_leaves_absent_ones_out() -> None:
    plain, model = build(num_resampler_tokens=3)
    images, mask = pictures(2, num_images=2), torch.tensor([[1, 0], [0, 0]])
    states = model.compute_image_key_values(pixel_values=images, image_mask=mask)
    assert states["image_key_values"].shape == (2, 1, 2, 2, 6, 8)
    assert states["image_key_mask"].tolist() == [[True] * 3 + [False] * 3, [False] * 6]
    logits = model(input_ids=prompts(), pixel_values=images, image_mask=mask).logits
    assert torch.equal(logits[1], plain(prompts()).logits[1])
    alone = model(input_ids=prompts()[:1], pixel_values=images[:1, :1]).logits
    torch.testing.assert_close(logits[:1], alone, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ training


def test_losses_are_those_of_a_loop() -> None:
    plain, model = build(vision_loss_weight=0.3, text_loss_weight=0.7, fusion_loss_weight=2.0)
    plain, model = plain.double(), model.double()
    ids, images = prompts(), pictures().double()
    labels = ids.clone()
    labels[0, :3] = -100
    output = model(input_ids=ids, pixel_values=images, labels=labels, output_fusion_attentions=True)

    def cross_entropy(logits: torch.Tensor) -> torch.Tensor:
        losses = [
            -logits[row, place].log_softmax(-1)[labels[row, place + 1]]
            for row in range(2)
            for place in range(5)
            if labels[row, place + 1] != -100
        ]
        return torch.stack(losses).mean()

    torch.testing.assert_close(output.fusion_loss, cross_entropy(output.logits))
    torch.testing.assert_close(output.text_loss, cross_entropy(plain(ids).logits))
    words = model.vision_head(output.visual_hidden_state) @ model.get_output_embeddings().weight.T
    log_probs, losses = words.log_softmax(-1), []
    for row in range(2):
        for place in range(5):
            if labels[row, place + 1] != -100:
                alpha = output.text_to_image_attention[row, :, place].mean(0)
                losses.append(-(alpha * log_probs[row, :, labels[row, place + 1]]).sum())
    torch.testing.assert_close(output.vision_loss, torch.stack(losses).mean())
    total = 2.0 * output.fusion_loss + 0.7 * output.text_loss + 0.3 * output.vision_loss
    torch.testing.assert_close(output.loss, total)


def test_labels_may_come_shifted_as_where_a_text_is_cut_among_processes() -> None:
    _, model = build(vision_loss_weight=0.3)
    inputs = {"input_ids": prompts(), "pixel_values": pictures()}
    labels = prompts().roll(2, dims=0)
    following = labels.roll(-1, dims=1)
    following[:, -1] = -100
    whole = model(**inputs, labels=labels)
    torch.testing.assert_close(model(**inputs, shift_labels=following).loss, whole.loss)
    # the last token of a cut text has a next one too
    following[:, -1] = 3
    logits = model(**inputs).logits
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten())
    torch.testing.assert_close(model(**inputs, labels=labels, shift_labels=following).fusion_loss, expected)
    # Trainer computes no loss in an evaluation where an argument of this list is missing
    assert find_labels(VTFusionForConditionalGeneration) == ["labels"]


@pytest.mark.parametrize("mask", [False, True])
def test_image_dropout_takes_all_images_of_some_rows_in_training_only(mask: bool) -> None:
    rate, rows = 0.3, 200
    plain, model = build(image_dropout=rate)
    ids = prompts(rows, 3)
    inputs: dict[str, Any] = {"input_ids": ids, "visual_embeds": torch.randn(rows, 2, 3, 16)}
    if mask:
        inputs["image_mask"] = torch.ones(rows, 2, dtype=torch.long)
        inputs["image_mask"][0] = 0
    with torch.no_grad():
        with_images, trained, text_only = model(**inputs).logits, model.train()(**inputs).logits, plain(ids).logits
    lost = (trained == text_only).flatten(1).all(1)
    assert 0.2 < lost.float().mean() < 0.4
    assert lost[0] or not mask
    torch.testing.assert_close(trained[~lost], with_images[~lost])
    assert not torch.isclose(with_images, text_only).flatten(1).all(1)[1:].any()


def test_a_larger_vocabulary_reaches_the_language_models_two_ends() -> None:
    _, model = build()
    before = model(input_ids=prompts(), pixel_values=pictures()).logits
    model.resize_token_embeddings(VOCAB + 3)
    head = torch.nn.Linear(HIDDEN, VOCAB + 3, bias=False)
    assert model.get_output_embeddings() is model.text_model.lm_head
    assert model(input_ids=torch.full((2, 6), VOCAB + 2)).logits.shape == (2, 6, VOCAB + 3)
    torch.testing.assert_close(model(input_ids=prompts(), pixel_values=pictures()).logits[..., :VOCAB], before)
    model.set_output_embeddings(head)
    assert model.text_model.lm_head is head


def test_a_layer_that_is_called_by_name_reads_the_images_too() -> None:
    _, model = build()
    inputs = {"input_ids": prompts(), "pixel_values": pictures()}
    expected = model(**inputs).logits

    class ByName(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
            return self.layer(hidden_states=hidden_states, **kwargs)

    layers = model.text_model.model.layers
    layers[1] = ByName(layers[1])
    assert torch.equal(model(**inputs).logits, expected)


def test_gradients_reach_every_part() -> None:
    _, model = build(num_resampler_tokens=2)
    model(input_ids=prompts(), pixel_values=pictures(), labels=prompts()).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    # stage 2 of the encoder gives the features, and nothing reads its classifier
    assert not without, without


def test_a_frozen_language_model_trains_the_blocks_alone_and_computes_no_text_loss() -> None:
    _, model = build(trained=False)
    model.freeze_text_encoder()
    model.freeze_vision_encoder()
    output = model.train()(input_ids=prompts(), pixel_values=pictures(), labels=prompts())
    output.loss.backward()
    assert output.text_loss is None and not model.text_model.training
    assert all(p.grad is None for part in (model.text_model, model.vision_model) for p in part.parameters())
    assert model.cross_attention_layers[0].fusion.output.weight.grad.abs().sum() > 0
    # a batch without an image has nothing to learn, and is no error
    model(input_ids=prompts(), labels=prompts()).loss.backward()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_gradient_checkpointing_changes_no_gradient(kind: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        _, model = build(kind)
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.vision_model.eval()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        images = pictures()
        model(input_ids=prompts(), pixel_values=images, labels=prompts(), use_cache=False).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------- saving, and refusals


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_saved_and_loaded_it_is_the_same(kind: str, tmp_path: Path) -> None:
    _, model = build(kind, num_resampler_tokens=2)
    model.save_pretrained(tmp_path)
    loaded, report = VTFusionForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    inputs = {"input_ids": prompts(), "pixel_values": pictures()}
    assert torch.equal(model(**inputs).logits, loaded.eval()(**inputs).logits)
    embeddings, head = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    assert (embeddings.weight is head.weight) == bool(LANGUAGE_MODELS[kind]().tie_word_embeddings)


def test_what_cannot_be_wrapped_says_what_is_missing() -> None:
    vision = AutoModel.from_config(VISION["resnet"]())
    text = GPT2Config(vocab_size=VOCAB, n_embd=HIDDEN, n_layer=2, n_head=4)
    join = VTFusionForConditionalGeneration.from_vision_text_pretrained
    with pytest.raises(ValueError, match="has no language-model head"):
        join(vision, GPT2Model(text), **FUSION)
    with pytest.raises(ValueError, match=r"more than the 2 layers of 'gpt2'"):
        join(vision, GPT2LMHeadModel(text), **FUSION | {"cross_attention_every": 3})
    broken = GPT2LMHeadModel(text)
    broken.transformer.h = nn.ModuleList([broken.transformer.h[0]])
    with pytest.raises(ValueError, match=r"no list of `num_hidden_layers` = 2 layers.*`transformer.h` with 1"):
        join(vision, broken, **FUSION)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_fusion_layers": 2}, "`cross_attention_every`"),
        ({"contrastive_loss_weight": 1.0}, "`contrastive_loss_weight` must be 0"),
        ({"class_weights": [1.0, 2.0]}, "`class_weights` must be left out"),
        ({"text_config": BartConfig()}, "encoder-decoder"),
    ],
)
def test_a_setting_without_effect_is_refused(setting: dict[str, Any], message: str) -> None:
    parts = {"text_config": LANGUAGE_MODELS["gpt2"](), "vision_config": VISION["resnet"]()}
    with pytest.raises(ValueError, match=message):
        VTFusionForConditionalGeneration(VTFusionConfig(**parts | FUSION | setting))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"pixel_values": pictures(3)}, "3 rows, but the text has 2"),
        ({"pixel_values": pictures(), "cross_attention_mask": torch.ones(2, 4, 1)}, "`cross_attention_mask` must"),
        ({"labels": torch.zeros(2, 4, dtype=torch.long)}, "`labels` must have shape"),
        ({"labels": prompts(), "logits_to_keep": 1}, "`logits_to_keep`"),
        ({"inputs_embeds": torch.zeros(2, 6, HIDDEN)}, "either"),
        ({"pixel_values": pictures(), "image_key_values": torch.zeros(2, 1, 2, 2, 4, 8)}, "not both"),
    ],
)
def test_what_does_not_fit_is_refused(inputs: dict[str, Any], message: str) -> None:
    _, model = build()
    with pytest.raises(ValueError, match=message):
        model(input_ids=prompts(), **inputs)


def test_images_that_come_twice_misnamed_or_not_at_all_are_refused() -> None:
    _, model = build()
    states = model.compute_image_key_values(pixel_values=pictures())
    with pytest.raises(ValueError, match="Give images or `image_key_values`, not both"):
        model.generate(prompts(), pixel_values=pictures(), **states, **NEW)
    with pytest.raises(ValueError, match=r"\['images'\] are no images; there are \['pixel_values', 'image_mask'"):
        model.compute_image_key_values(images=pictures())
    with pytest.raises(ValueError, match="Give `pixel_values` or `visual_embeds`"):
        model.compute_image_key_values(image_mask=torch.ones(2, 1))
