"""VTFusion's generation wing: visual-text cross-attention between the layers of a decoder language model."""

from collections.abc import Mapping
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel, initialization
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput, can_return_tuple

from .base_vtfusion import VTFusionVisionModel, accepts
from .configuration_vtfusion import VTFusionConfig
from .fusion_vtfusion import (
    VTFusionGatedFusion,
    VTFusionLayer,
    VTFusionLinear,
    at_least_float32,
    attention_map,
    count_labels,
    token_cross_entropy,
    vision_loss,
)
from .outputs_vtfusion import IMAGE_INPUTS, VTFusionCausalLMOutput

# As remote code, older versions of transformers bring only the files that this one itself imports.
from .pipeline_vtfusion import VTFusionPipeline  # noqa: F401
from .visual_vtfusion import visual_hidden_size  # noqa: F401

# What `compute_image_key_values` gives, and `forward` and `generate` take instead of images.
IMAGE_STATES = ("image_key_values", "image_key_mask")


# ------------------------------------------------------------------------------------------- between the layers


class VTFusionCrossAttention(GradientCheckpointingLayer):
    """
    One block between two layers of a language model: every token reads the images, and what it read is added through a
    gate and an output projection that starts at zero.

    Args:
        config ([`VTFusionConfig`]): the model's configuration.
        hidden_size (`int`): width of the language model.
    """

    def __init__(self, config: VTFusionConfig, hidden_size: int):
        super().__init__()
        self.text_norm = nn.LayerNorm(hidden_size)
        self.text_projection = VTFusionLinear(hidden_size, config.fusion_hidden_size)
        # Images do not read the text: the text grows, and their keys and values are computed once.
        self.layer = VTFusionLayer(config, has_image_side=False)
        self.fusion = VTFusionGatedFusion(config, hidden_size)

    def forward(
        self,
        hidden_state: torch.Tensor | None = None,
        key: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        image: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """
        Either the tokens with what they read, or the images on their way to be read. Both are calls of the module, so
        that hooks on it (of FSDP, of a device map) see both.

        Args:
            hidden_state (`torch.FloatTensor` of shape `(B, L, text_hidden_size)`, *optional*): the tokens.
            key (`torch.FloatTensor` of shape `(B, heads, N, D / heads)`, *optional*): of the image positions.
            value (`torch.FloatTensor` of shape `(B, heads, N, D / heads)`, *optional*): of the image positions.
            mask (`torch.BoolTensor` of shape `(B, N)` or `(B, L, N)`, *optional*):
                The image positions that are there, or those that each token may read.
            image (`torch.FloatTensor` of shape `(B, N, D)`, *optional*): the image positions, without any of the above.

        Returns:
            `tuple` of the tokens `(B, L, text_hidden_size)`, the gate `(B, L)` and the scaled query
            `(B, heads, L, D / heads)`; of an image its key and value.
        """
        if image is not None:
            return self.layer.project_image(image)
        normed = self.text_norm(hidden_state)
        query = self.layer.project_query(self.layer.text_norm(self.text_projection(normed)))
        context = self.layer.read_image(query, key, value, mask)
        has_image = None if mask is None else mask.any(dim=-1)
        fused, gate = self.fusion(hidden_state, normed, context, has_image)
        return fused, gate, query


@dataclass
class _Reading:
    """The images of one forward pass, on their way to the blocks; and what the blocks have to tell."""

    blocks: nn.ModuleList
    key_values: torch.Tensor  # (B, blocks, 2, heads, N, D / heads)
    mask: torch.Tensor | None
    gates: list[torch.Tensor] = field(default_factory=list)
    query: torch.Tensor | None = None

    def read(self, index: int, hidden_state: torch.Tensor) -> torch.Tensor:
        key, value = self.key_values[:, index].unbind(dim=1)
        hidden_state, gate, self.query = self.blocks[index](hidden_state, key, value, self.mask)
        self.gates.append(gate)
        return hidden_state


# The language model's own code stands between the forward pass and the blocks and takes no argument of ours along. A
# context variable keeps the passes of several threads apart.
_READING: ContextVar[_Reading | None] = ContextVar("vtfusion_reading", default=None)


class VTFusionDecoderLayer(nn.Module):
    """
    A layer of a language model before which the tokens read the images. It changes the layer's input only, which is
    the hidden states in every language model, and does not ask what the layer returns.

    Args:
        layer (`nn.Module`): the language model's own layer.
        index (`int`): the number of the block before it.
    """

    def __init__(self, layer: nn.Module, index: int):
        super().__init__()
        self.layer = layer
        self.index = index

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the language model's own layer takes and returns, after the tokens have read the images, if there are any."""
        reading = _READING.get()
        if reading is not None:
            if args:
                args = (reading.read(self.index, args[0]), *args[1:])
            else:
                kwargs["hidden_states"] = reading.read(self.index, kwargs["hidden_states"])
        return self.layer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # a model may ask its layer, for example for the kind of attention
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


def find_decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """
    The list of a language model's layers, whatever its name.

    Args:
        model (`PreTrainedModel`): a decoder language model.

    Returns:
        `nn.ModuleList` of `num_hidden_layers` modules of one class.

    Raises:
        `ValueError` if there is none.
    """
    config = model.config.get_text_config(decoder=True)
    number = getattr(config, "num_hidden_layers", None)
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 0 and type(module[0]) is type(module[-1])
    }
    for module in lists.values():
        if len(module) == number:
            return module
    found = ", ".join(f"`{name}` with {len(module)}" for name, module in lists.items()) or "none"
    raise ValueError(
        f"'{config.model_type}' cannot take cross-attention between its layers: it has no list of "
        f"`num_hidden_layers` = {number} layers (lists of modules: {found})."
    )


class VTFusionResampler(nn.Module):
    """
    Shortens an image to a few learned queries that read it (the resampler of Flamingo, arXiv:2204.14198, with the
    similarity attention of this package).
    """

    def __init__(self, config: VTFusionConfig):
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(config.num_resampler_tokens, config.fusion_hidden_size))
        self.layer = VTFusionLayer(config, has_image_side=False)

    def forward(self, image: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """
        Args:
            image (`torch.FloatTensor` of shape `(R, n, D)`): images.
            mask (`torch.BoolTensor` of shape `(R, n)`, *optional*): which of their positions are there.

        Returns:
            `torch.FloatTensor` of shape `(R, num_resampler_tokens, D)`.
        """
        state = self.queries.to(image.dtype).expand(image.shape[0], -1, -1)
        return state + self.layer(state, image, None, mask)[0]


class _Assistant:
    """An assistant of assisted decoding, which gets images of its own instead of the main model's."""

    def __init__(self, model: PreTrainedModel, images: dict[str, torch.Tensor]):
        self._model, self._images = model, images

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, **kwargs: Any) -> Any:
        names = (*IMAGE_STATES, *(() if self._images else ("cross_attention_mask",)))
        kwargs = {name: value for name, value in kwargs.items() if name not in names}
        return self._model.generate(**kwargs, **self._images)


# ------------------------------------------------------------------------------------------------------------ model


class VTFusionForConditionalGeneration(VTFusionVisionModel, GenerationMixin):
    r"""
    A decoder language model whose tokens read images: before every `cross_attention_every`-th layer stands a block of
    the same normalised-similarity attention as in [`VTFusionModel`]. Its output projections start at zero, so before
    training, and wherever there is no image, the model is its language model, logit for logit.

    A block sees the layer's input only; the language model runs its own code. Images know nothing of the text, so their
    keys and values are computed once per prompt (`compute_image_key_values`), and `generate` works with any cache.

    Args:
        config ([`VTFusionConfig`]): the configuration; both parts get random weights.
        vision_model (`PreTrainedModel`, *optional*): a vision encoder to take instead of a random one.
        text_model (`PreTrainedModel`, *optional*):
            A decoder language model with its head to take instead of a random one. Its layers are wrapped in place;
            called by itself it stays what it was.

    Raises:
        `ValueError` if the language model cannot be wrapped, or the config asks for what does not exist here.

    Example:

    ```python
    >>> import torch
    >>> from transformers import GPT2Config, ResNetConfig
    >>> from vtfusion import VTFusionConfig, VTFusionForConditionalGeneration

    >>> text = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=100, bos_token_id=0, eos_token_id=0)
    >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    >>> config = VTFusionConfig(text, vision, fusion_hidden_size=16, num_fusion_heads=2, cross_attention_every=1)
    >>> model = VTFusionForConditionalGeneration(config)
    >>> prompt, image = torch.tensor([[5, 6, 7]]), torch.rand(1, 3, 32, 32)
    >>> model.generate(prompt, pixel_values=image, max_new_tokens=4, min_new_tokens=4, pad_token_id=0).shape
    torch.Size([1, 7])
    ```
    """

    _no_split_modules = ["VTFusionDecoderLayer", "VTFusionCrossAttention", "VTFusionResampler"]
    text_model: Any

    def __init__(
        self,
        config: VTFusionConfig,
        vision_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        _check_generation_config(config)
        self.text_model = (
            text_model if text_model is not None else AutoModelForCausalLM.from_config(config.text_config)
        )
        if self.text_model.get_output_embeddings() is None:
            raise ValueError(
                f"{type(self.text_model).__name__} has no language-model head: give what "
                "`AutoModelForCausalLM.from_pretrained` returns."
            )
        self.join_encoders(vision_model)
        layers = find_decoder_layers(self.text_model)
        every = config.cross_attention_every
        if every > len(layers):
            raise ValueError(
                f"`cross_attention_every` ({every}) is more than the {len(layers)} layers of "
                f"'{config.text_config.model_type}'."
            )
        self.add_image_projection()
        self.resampler: Any = VTFusionResampler(config) if config.num_resampler_tokens else None
        hidden_size = config.text_config.get_text_config().hidden_size
        places = range(every - 1, len(layers), every)
        self.cross_attention_layers = nn.ModuleList(VTFusionCrossAttention(config, hidden_size) for _ in places)
        for index, place in enumerate(places):
            own = layers[place]
            # a language model that was wrapped before
            layers[place] = VTFusionDecoderLayer(own.layer if isinstance(own, VTFusionDecoderLayer) else own, index)
        self.vision_head: Any = (
            VTFusionLinear(config.fusion_hidden_size, hidden_size) if config.vision_loss_weight > 0 else None
        )
        self.post_init()
        if text_model is not None:
            # its end-of-text tokens and sampling settings
            self.generation_config = deepcopy(text_model.generation_config)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VTFusionResampler):
            initialization.normal_(module.queries, std=self.config.initializer_range)

    @classmethod
    def text_auto_class(cls, config: PreTrainedConfig) -> Any:
        """The Auto class of language models with their head."""
        return AutoModelForCausalLM

    def get_output_embeddings(self) -> nn.Module:
        """The output matrix, which is the language model's."""
        return self.text_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Gives the language model another output matrix."""
        self.text_model.set_output_embeddings(new_embeddings)

    # ------------------------------------------------------------------------------------------------------ images

    def compute_image_key_values(self, **images: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """
        Keys and values of the images for every block. `generate` and the forward pass take them instead of the images,
        so that several turns, or several prompts, need not encode these again.

        Args:
            images: `pixel_values`, `image_mask`, `pixel_mask`, `visual_embeds`, `visual_boxes` and `visual_mask`, as in
                the forward pass.

        Returns:
            `dict` of `image_key_values` `(B, blocks, 2, heads, N, D / heads)` and, where a position may be absent,
            `image_key_mask` `(B, N)`. An image's number is part of them: encode a further one behind the earlier ones,
            with an `image_mask` of 0 for these, and concatenate its part of N.
        """
        unknown = sorted(images.keys() - set(IMAGE_INPUTS))
        if unknown:
            raise ValueError(f"{unknown} are no images; there are {list(IMAGE_INPUTS)}.")
        return self._states(*self._encode(images))

    def _encode(self, images: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """X_v `(B, N, D)`, resampled where the model does so, and which of its positions are there `(B, N)`."""
        given = images.get("pixel_values") if images.get("visual_embeds") is None else images["visual_embeds"]
        if given is None:
            raise ValueError("Give `pixel_values` or `visual_embeds`.")
        num_images = given.shape[1] if given.dim() == (5 if images.get("visual_embeds") is None else 4) else 1
        _, image, mask, _ = self.encode_images(**images)
        if self.resampler is not None:
            each = image.unflatten(1, (num_images, -1)).flatten(0, 1)
            mask_of_each = None if mask is None else mask.unflatten(1, (num_images, -1)).flatten(0, 1)
            image = self.resampler(each, mask_of_each).unflatten(0, (-1, num_images)).flatten(1, 2)
            if mask_of_each is not None:
                present = mask_of_each.any(dim=-1).view(-1, num_images, 1)
                mask = present.expand(-1, -1, self.config.num_resampler_tokens).flatten(1)
                image = torch.where(mask[..., None], image, 0.0)
        return image, mask

    def _states(self, image: torch.Tensor, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
        pairs = [torch.stack(block(image=image), dim=1) for block in self.cross_attention_layers]
        states = {"image_key_values": torch.stack(pairs, dim=1)}
        if mask is not None:
            states["image_key_mask"] = mask
        return states

    # ----------------------------------------------------------------------------------------------------- forward

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_mask: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        visual_embeds: torch.FloatTensor | None = None,
        visual_boxes: torch.FloatTensor | None = None,
        visual_mask: torch.Tensor | None = None,
        image_key_values: torch.FloatTensor | None = None,
        image_key_mask: torch.Tensor | None = None,
        cross_attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_fusion_attentions: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> VTFusionCausalLMOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`, *optional*):
                Token ids. Either these or `inputs_embeds`.
            attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*):
                1 at tokens, 0 at padding; with a cache, of all tokens so far.
            position_ids (`torch.LongTensor` of shape `(B, L)`, *optional*):
                Positions, where the language model has them.
            cache (`Cache`, *optional*):
                Keys and values of the text so far. Called `past_key_values` in older versions of transformers.
            past_key_values (`Cache`, *optional*):
                The same.
            inputs_embeds (`torch.FloatTensor` of shape `(B, L, text_hidden_size)`, *optional*):
                Word embeddings instead of `input_ids`.
            labels (`torch.LongTensor` of shape `(B, L)`, *optional*):
                The tokens to predict, -100 where none is; each is compared with the prediction of the token before it.
                L_ct is the cross-entropy of the next token with the images. L_t is the same without them: it keeps a
                language model that is trained good at text alone, and is left out where no weight of it is trained. L_v
                is what each image position alone says of the next token, -sum_j alpha_ij log p_v^j(y_i+1), through the
                language model's own output embeddings and with the alpha of the last block: it makes positions name
                what they show. It costs a prediction over the vocabulary for each image position.
            pixel_values (`torch.FloatTensor` of shape `(B, M, channels, height, width)` or `(B, channels, height, width)`, *optional*):
                The images of each text. Without them the model is its language model.
            image_mask (`torch.Tensor` of shape `(B, M)`, *optional*):
                1 where there is an image.
            pixel_mask (`torch.Tensor` of shape `(B, M, height, width)`, *optional*):
                1 at real pixels, 0 at padding, for detectors.
            visual_embeds (`torch.FloatTensor` of shape `(B, M, n, visual_hidden_size)` or `(B, n, visual_hidden_size)`, *optional*):
                Precomputed features instead of `pixel_values`.
            visual_boxes (`torch.FloatTensor` of shape `(B, M, n, 4)` or `(B, n, 4)`, *optional*):
                Boxes of the precomputed features, from 0 to 1.
            visual_mask (`torch.Tensor` of shape `(B, M, n)` or `(B, n)`, *optional*):
                1 at real features, 0 at padding.
            image_key_values (`torch.FloatTensor` of shape `(B, blocks, 2, heads, N, D / heads)`, *optional*):
                Images that are encoded already, see `compute_image_key_values`.
            image_key_mask (`torch.Tensor` of shape `(B, N)`, *optional*):
                Which of their positions are there.
            cross_attention_mask (`torch.Tensor` of shape `(B, L, M)`, *optional*):
                1 where a token may look at an image. Without it every token sees all images of its row. A token that
                may look at none is the language model's own.
            use_cache (`bool`, *optional*):
                Whether to return the text's keys and values.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                Of how many tokens, from the end, the logits are wanted; 0 stands for all.
            output_fusion_attentions (`bool`, *optional*):
                Whether to return the attention map of the last block.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                The number of labels to average over, in all micro-batches and processes.
            kwargs (*optional*):
                `shift_labels` `(B, L)` are, for each token, the one that follows it, where a text is cut among
                processes; `labels` then do not count. All else is passed to the language model.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either `input_ids` or `inputs_embeds`.")
        # not in the signature: Trainer takes every argument named so for a label that each batch must have
        shift_labels = kwargs.pop("shift_labels", None)
        if shift_labels is None and labels is not None:
            shift_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        if shift_labels is not None and isinstance(logits_to_keep, int) and logits_to_keep:
            raise ValueError("`labels` need the logits of all tokens: leave `logits_to_keep` out.")
        if output_fusion_attentions is None:
            output_fusion_attentions = self.config.output_fusion_attentions
        image = None
        if pixel_values is not None or visual_embeds is not None:
            if image_key_values is not None:
                raise ValueError("Give images or `image_key_values`, not both.")
            image, image_key_mask = self._encode(
                {
                    "pixel_values": pixel_values,
                    "image_mask": image_mask,
                    "pixel_mask": pixel_mask,
                    "visual_embeds": visual_embeds,
                    "visual_boxes": visual_boxes,
                    "visual_mask": visual_mask,
                }
            )
            image_key_mask = self.drop_images(image_key_mask, (image.shape[0], image.shape[1]), image.device)
            image_key_values = self._states(image, None)["image_key_values"]
        reading = None
        if image_key_values is not None:
            tokens: Any = input_ids if input_ids is not None else inputs_embeds
            mask = _join_masks(image_key_values, image_key_mask, cross_attention_mask, tuple(tokens.shape[:2]))
            reading = _Reading(self.cross_attention_layers, image_key_values, mask)
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
            **kwargs,
        }
        cache = cache if cache is not None else past_key_values
        inputs["cache" if accepts(self.text_model, "cache") else "past_key_values"] = cache

        # L_t is of the same tokens behind the same cache, which the first pass lengthens
        of_text = {**inputs, "use_cache": False}
        if shift_labels is not None and cache is not None and reading is not None:
            of_text |= {name: _copy_cache(cache) for name in ("cache", "past_key_values") if name in inputs}
        outputs = self._run_text_model(inputs, reading)
        # Its keys, not what it answers to: newer versions alias the old name of the cache.
        passed_on = outputs.keys() & VTFusionCausalLMOutput.__dataclass_fields__
        result: dict[str, Any] = {name: outputs[name] for name in passed_on}
        if reading is not None:
            result["fusion_gate"] = torch.stack(reading.gates).mean(dim=0)
            result["visual_hidden_state"] = image
            if output_fusion_attentions:
                result["text_to_image_attention"] = self._attention(reading)
        if shift_labels is not None:
            losses = self._losses(outputs.logits, shift_labels, of_text, reading, image, num_items_in_batch)
            result = {"loss": self._combine(losses), **losses, **result}
        return VTFusionCausalLMOutput(**result)

    def _combine(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """loss = w_ct L_ct + w_t L_t + w_v L_v, with the weights of the config."""
        loss: Any = sum(getattr(self.config, f"{name}_weight") * value for name, value in losses.items())
        if self.training and not loss.requires_grad:
            # a batch without an image, of a frozen language model: nothing to learn, but no error either
            loss = loss + sum(parameter.sum() * 0.0 for parameter in self.cross_attention_layers.parameters())
        return loss

    def _run_text_model(self, inputs: dict[str, Any], reading: _Reading | None) -> ModelOutput:
        # A language model without positions or `logits_to_keep` gets neither.
        inputs = {k: v for k, v in inputs.items() if v is not None and (k in _KWARGS or accepts(self.text_model, k))}
        token = _READING.set(reading)
        try:
            return self.text_model(**inputs, return_dict=True)
        finally:
            _READING.reset(token)

    def _attention(self, reading: _Reading) -> torch.Tensor:
        """Alpha of the last block `(B, heads, L, N)`, zero where a token may look at no image."""
        key = reading.key_values[:, -1, 0]
        attention = attention_map(reading.query, key, reading.mask)
        if reading.mask is None:
            return attention
        seen = reading.mask.any(dim=-1).view(attention.shape[0], 1, -1, 1)
        return torch.where(seen, attention, 0.0)

    def _losses(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,  # of the token after each
        inputs: dict[str, Any],
        reading: _Reading | None,
        image: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> dict[str, torch.Tensor]:
        if labels.shape != logits.shape[:2]:
            raise ValueError(f"`labels` must have shape {tuple(logits.shape[:2])}, got {tuple(labels.shape)}.")
        count = count_labels(labels, num_items_in_batch)

        def next_token_loss(logits: torch.Tensor) -> torch.Tensor:
            smoothing = self.config.label_smoothing
            return token_cross_entropy(logits, labels, count, label_smoothing=smoothing)

        losses = {"fusion_loss": next_token_loss(logits)}
        trained = any(parameter.requires_grad for parameter in self.text_model.parameters())
        if self.config.text_loss_weight > 0 and trained:
            losses["text_loss"] = (
                losses["fusion_loss"]
                if reading is None
                else next_token_loss(self._run_text_model(inputs, None)["logits"])
            )
        if self.vision_head is not None and reading is not None and image is not None:
            words = at_least_float32(self.get_output_embeddings()(self.vision_head(image)))
            # for each image position the log-probability of each token of the text, instead of the whole vocabulary
            log_probs = words.log_softmax(dim=-1).gather(
                -1, labels.clamp(min=0)[:, None].expand(-1, image.shape[1], -1)
            )
            places = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
            losses["vision_loss"] = vision_loss(
                log_probs,
                reading.query,
                reading.key_values[:, -1, 0],
                reading.mask,
                places.masked_fill(labels == -100, -100),
                count,
            )
        return losses

    # ---------------------------------------------------------------------------------------------------- generate

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """
        Generates text, see [`~transformers.GenerationMixin.generate`]. Images come as in the forward pass, and are encoded once.
        An `assistant_model` drafts with the images if it is a model of this class, and without them otherwise.
        """
        images = {name: kwargs.pop(name) for name in IMAGE_INPUTS if name in kwargs}
        if images.get("pixel_values") is not None or images.get("visual_embeds") is not None:
            if kwargs.get("image_key_values") is not None:
                raise ValueError("Give images or `image_key_values`, not both.")
            kwargs.update(self.compute_image_key_values(**images))
        assistant = kwargs.get("assistant_model")
        if assistant is not None and kwargs.get("image_key_values") is not None:
            sees = hasattr(assistant, "compute_image_key_values") and any(x is not None for x in images.values())
            kwargs["assistant_model"] = _Assistant(
                assistant, assistant.compute_image_key_values(**images) if sees else {}
            )
        return super().generate(inputs, *args, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: torch.LongTensor, inputs_embeds: torch.FloatTensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """What the language model prepares for a step, with the images' keys and values and who may look at them."""
        # named in the signature, where transformers looks whether a model generates from embeddings
        kwargs["inputs_embeds"] = inputs_embeds
        states = {name: kwargs.pop(name, None) for name in (*IMAGE_STATES, "cross_attention_mask")}
        attention_mask = kwargs.get("attention_mask")
        inputs = self.text_model.prepare_inputs_for_generation(input_ids, **kwargs)
        mask = states["cross_attention_mask"]
        if mask is not None:
            current = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
            length = input_ids.shape[1] if attention_mask is None else attention_mask.shape[-1]
            # new tokens see what the last token of the prompt sees
            places = torch.arange(length - current.shape[1], length, device=mask.device).clamp(max=mask.shape[1] - 1)
            states["cross_attention_mask"] = mask[:, places]
        return inputs | {name: value for name, value in states.items() if value is not None}


# What any language model takes through its keyword arguments.
_KWARGS = ("output_attentions", "output_hidden_states", "cache_position", "token_type_ids")


def _check_generation_config(config: VTFusionConfig) -> None:
    """What the other models have and this one has not is refused, so that no setting is without effect."""
    if config.text_config.is_encoder_decoder:
        raise ValueError(
            f"'{config.text_config.model_type}' is an encoder-decoder; cross-attention goes between the layers of a "
            "decoder-only language model."
        )
    if config.num_fusion_layers != 1:
        raise ValueError(
            f"`num_fusion_layers` is {config.num_fusion_layers}, but each block has one layer here: their number is set "
            "by `cross_attention_every`."
        )
    if config.contrastive_loss_weight > 0:
        raise ValueError("`contrastive_loss_weight` must be 0: a language model has no text vector to compare.")
    if config.class_weights is not None:
        raise ValueError("`class_weights` must be left out: the next token has no classes.")


def _copy_cache(cache: Any) -> Any:
    """A cache with keys and values of its own, through which gradients pass: `deepcopy` alone refuses what has any."""
    layers = getattr(cache, "layers", ())
    states = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    tensors = [state for state in states if isinstance(state, torch.Tensor)]
    return deepcopy(cache, {id(tensor): tensor.clone() for tensor in tensors})


def _join_masks(
    key_values: torch.Tensor,
    key_mask: torch.Tensor | None,
    cross_attention_mask: torch.Tensor | None,
    shape: tuple[int, ...],
) -> torch.Tensor | None:
    """Which image positions are there `(B, N)`, or which of them each token may read `(B, L, N)`."""
    if key_values.shape[0] != shape[0]:
        raise ValueError(f"The images have {key_values.shape[0]} rows, but the text has {shape[0]}.")
    mask = None if key_mask is None else key_mask.bool()
    if cross_attention_mask is None:
        return mask
    num_positions, num_images = key_values.shape[-2], cross_attention_mask.shape[-1]
    if tuple(cross_attention_mask.shape[:2]) != shape or num_positions % max(num_images, 1):
        raise ValueError(
            f"`cross_attention_mask` must have shape {shape} and the number of images; got "
            f"{tuple(cross_attention_mask.shape)} for images of {num_positions} positions together."
        )
    allowed = cross_attention_mask.bool().repeat_interleave(num_positions // num_images, dim=-1)
    return allowed if mask is None else allowed & mask[:, None]


VTFusionForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["VTFusionForConditionalGeneration"]
