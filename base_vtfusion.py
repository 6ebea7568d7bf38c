"""What VTFusion models share: pretrained encoders, freezing, images as features with places, the losses of heads."""

import inspect
import math
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, initialization
from transformers.utils import ModelOutput

from .configuration_vtfusion import VTFusionConfig
from .fusion_vtfusion import (
    VTFusionLayer,
    VTFusionLinear,
    VTFusionPositions,
    VTFusionZeroLinear,
    at_least_float32,
    contrastive_loss,
    count_labels,
    vision_loss,
)
from .outputs_vtfusion import IMAGE_INPUTS, VTFusionInputs, VTFusionModelOutput
from .pipeline_vtfusion import VTFusionPipeline
from .visual_vtfusion import build_encoder, encoder_auto_class, read_features, visual_hidden_size


class VTFusionPreTrainedModel(PreTrainedModel):
    """Weight initialisation, building from two pretrained encoders, freezing."""

    config_class = VTFusionConfig
    config: VTFusionConfig
    base_model_prefix = "vtfusion"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["VTFusionLayer"]
    # The fusion layers always run scaled-dot-product attention; the encoders answer for themselves.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # What `pipeline(model=…)` runs the head with. Its code goes wherever the model is saved, since this file imports it.
    pipeline_class: type[VTFusionPipeline] | None = None

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Saves the model with its code, and names its pipeline in the configuration; see [`PreTrainedModel`]."""
        self.config.custom_pipelines = {}
        if self.pipeline_class is not None:
            implementation = f"pipeline_vtfusion.{self.pipeline_class.__name__}"
            entry = {"impl": implementation, "pt": [self.pipeline_class.auto_class]}
            self.config.custom_pipelines = {self.pipeline_class.pipeline_task: entry}
        super().save_pretrained(save_directory, *args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VTFusionLayer):
            initialization.constant_(module.log_scale, -math.log(self.config.temperature_init))
        elif isinstance(module, VTFusionLinear):
            initialization.xavier_uniform_(module.weight)
        elif isinstance(module, VTFusionZeroLinear):
            initialization.zeros_(module.weight)
            initialization.zeros_(module.bias)
        elif getattr(module, "contrastive_log_scale", None) is not None:
            initialization.constant_(module.contrastive_log_scale, math.log(1 / 0.07))

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: "str | PreTrainedModel | None",
        text: "str | PreTrainedModel",
        *,
        vision_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
        **fusion_kwargs: Any,
    ) -> "VTFusionPreTrainedModel":
        r"""
        Joins two pretrained encoders. The fusion part and the head are new: train them before use. The whole model
        takes the dtype of the text encoder.

        Args:
            vision (`str`, `PreTrainedModel` or `None`):
                Name or folder of a vision encoder, a model in memory, or `None` for a model on precomputed features
                (`visual_hidden_size` is then required). Of a two-tower checkpoint (CLIP, SigLIP) the vision tower is
                taken.
            text (`str` or `PreTrainedModel`):
                Name or folder of a text encoder or language model, or a model in memory. Of a two-tower checkpoint the
                text tower is taken.
            vision_kwargs (`dict`, *optional*):
                What the vision encoder's `from_pretrained` takes besides, for example `{"revision": "main"}`.
            text_kwargs (`dict`, *optional*):
                The same for the text encoder.
            fusion_kwargs (*optional*):
                Arguments of [`VTFusionConfig`], for example `num_fusion_layers=2` or `id2label={0: "O", 1: "B-PER"}`.

        Raises:
            ValueError: if a model in memory is given with arguments of `from_pretrained`, or the two do not fit.

        Example, where names such as `"microsoft/resnet-50"` and `"google-bert/bert-base-cased"` do as well:

        ```python
        >>> from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel
        >>> from vtfusion import VTFusionForTokenClassification

        >>> vision = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))
        >>> text = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64))
        >>> model = VTFusionForTokenClassification.from_vision_text_pretrained(vision, text, num_labels=9)
        >>> model.config.vision_config.model_type, model.classifier
        ('resnet', Linear(in_features=32, out_features=9, bias=True))
        ```
        """
        vision_model = None if vision is None else cls._pretrained_encoder(vision, "vision_config", vision_kwargs)
        text_model = cls._pretrained_encoder(text, "text_config", text_kwargs)
        config = cls.config_class(
            text_config=text_model.config,
            vision_config=None if vision_model is None else vision_model.config,
            **fusion_kwargs,
        )
        model = cls(config, vision_model=vision_model, text_model=text_model)
        # Checkpoints come in float32 or in half precision, and a saved folder records one dtype for all of it.
        return model.to(text_model.dtype).eval()

    @classmethod
    def text_auto_class(cls, config: PreTrainedConfig) -> Any:
        """The Auto class of the text part."""
        return encoder_auto_class(config)

    @classmethod
    def _pretrained_encoder(
        cls, source: "str | PreTrainedModel", part: str, kwargs: dict[str, Any] | None
    ) -> PreTrainedModel:
        if isinstance(source, PreTrainedModel):
            if kwargs:
                raise ValueError(f"A model in memory was given, so {sorted(kwargs)} would do nothing.")
            return source
        kwargs = dict(kwargs or {})
        config = AutoConfig.from_pretrained(source, **kwargs)
        # one tower of CLIP, SigLIP and their kin
        config = getattr(config, part, None) or config
        kwargs["config"] = config
        auto_class = cls.text_auto_class(config) if part == "text_config" else encoder_auto_class(config)
        return auto_class.from_pretrained(source, **kwargs)

    def freeze_text_encoder(self) -> None:
        """Stops training of the text encoder, dropout included."""
        self._freeze(self.get_submodule(self._encoder_path("text_model")))

    def freeze_vision_encoder(self) -> None:
        """Stops training of the vision encoder, batch statistics and dropout included."""
        if self.base_model.vision_model is None:
            raise ValueError("This model has no vision encoder to freeze: it reads precomputed `visual_embeds`.")
        self._freeze(self.get_submodule(self._encoder_path("vision_model")))

    def _encoder_path(self, name: str) -> str:
        return name if self.base_model is self else f"{self.base_model_prefix}.{name}"

    @staticmethod
    def _freeze(encoder: nn.Module) -> None:
        encoder.requires_grad_(False)
        encoder.eval()


class VTFusionVisionModel(VTFusionPreTrainedModel):
    """
    A model with a vision encoder of its own, or with precomputed features in its place. Its constructor builds
    `text_model` first, then calls `join_encoders` and `add_image_projection`.
    """

    text_model: PreTrainedModel

    def join_encoders(self, vision_model: PreTrainedModel | None) -> None:
        """Takes the vision encoder, or builds the config's with random weights; `text_model` is there already."""
        config = self.config
        if vision_model is None and config.vision_config is not None:
            vision_model = build_encoder(config.vision_config)
        self.vision_model: Any = vision_model
        # One object each, so that a change of the config (a resized vocabulary, another attention) reaches both.
        config.text_config = self.text_model.config
        if vision_model is not None:
            config.vision_config = vision_model.config
            if config.visual_hidden_size is None:
                config.visual_hidden_size = visual_hidden_size(config.vision_config)

    def add_image_projection(self) -> None:
        """What makes X_v of visual features."""
        # CNN features are unbounded sums, transformer features are normed: one scale for both
        self.visual_norm = nn.LayerNorm(self.config.visual_hidden_size)
        self.visual_projection = VTFusionLinear(self.config.visual_hidden_size, self.config.fusion_hidden_size)
        self.visual_positions = VTFusionPositions(self.config)

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings, which are those of the text part."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Puts other word embeddings into the text part."""
        self.text_model.set_input_embeddings(value)

    def train(self, mode: bool = True) -> "VTFusionVisionModel":
        """
        Training mode, or with `False` evaluation mode. A frozen encoder stays in the latter: its batch statistics must
        not drift, and its features must be the ones that a cache holds.
        """
        super().train(mode)
        for encoder in (self.text_model, self.vision_model):
            if encoder is not None and not any(parameter.requires_grad for parameter in encoder.parameters()):
                encoder.eval()
        return self

    def get_visual_features(
        self,
        pixel_values: torch.FloatTensor,
        image_mask: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
    ) -> tuple[torch.FloatTensor | None, torch.FloatTensor | None]:
        """
        Features of images before projection, which a later call takes as `visual_embeds` and `visual_boxes`.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, M, channels, height, width)`): the images.
            image_mask (`torch.Tensor` of shape `(B, M)`, *optional*): 1 where there is an image. The encoder does not
                run on the others, except under `torch.compile` and `torch.export`, which need fixed shapes.
            pixel_mask (`torch.Tensor` of shape `(B, M, height, width)`, *optional*): 1 at real pixels, for detectors.

        Returns:
            `tuple` of features `(B, M, n, visual_hidden_size)` and boxes `(B, M, n, 4)`; two `None` where there is no
            image at all.
        """
        return self._encode_present(pixel_values, image_mask, pixel_mask, {})[:2]

    def _encode_present(
        self,
        pixel_values: torch.Tensor,
        image_mask: torch.Tensor | None,
        pixel_mask: torch.Tensor | None,
        options: dict[str, Any],
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, dict[str, Any]]:
        """Features and boxes of the images that are there, and the states that `options` ask the encoder for."""
        if self.vision_model is None:
            raise ValueError("This model has no vision encoder: give `visual_embeds` instead of `pixel_values`.")
        batch_size, num_images = pixel_values.shape[:2]
        pixels = pixel_values.flatten(0, 1)
        pixel_mask = None if pixel_mask is None else pixel_mask.flatten(0, 1)
        present = None
        if image_mask is not None and not torch.compiler.is_compiling():
            present = image_mask.flatten().nonzero().squeeze(-1)
            if present.numel() == 0:
                return None, None, {}
            if present.numel() == pixels.shape[0]:
                present = None
            else:
                pixels = pixels[present]
                pixel_mask = None if pixel_mask is None else pixel_mask[present]
        elif image_mask is not None:
            # A compiled encoder runs on every slot: what lies in an absent one must not reach its gradients.
            pixels = torch.where(image_mask.flatten().bool()[:, None, None, None], pixels, 0.0)

        features, boxes, states = self._encode_images(pixels, pixel_mask, options)
        if present is not None:
            total = batch_size * num_images
            features = features.new_zeros(total, *features.shape[1:]).index_copy(0, present, features)
            boxes = boxes.new_zeros(total, *boxes.shape[1:]).index_copy(0, present, boxes)
        shape = (batch_size, num_images)
        return features.unflatten(0, shape), boxes.unflatten(0, shape), states

    def _encode_images(
        self, pixels: torch.Tensor, pixel_mask: torch.Tensor | None, options: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        pixels = pixels.to(self.vision_model.dtype)
        if pixels.device.type == "cpu" and not self.vision_model.training and not torch.compiler.is_compiling():
            # The order in which a CPU convolves fastest: a MobileNetV2 takes half the time. An encoder that is trained
            # keeps its own, since batch norm sums less exactly in this one; `to(memory_format=…)` changes it.
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        inputs = {"pixel_values": pixels, **options}
        if pixel_mask is not None and accepts(self.vision_model, "pixel_mask"):
            inputs["pixel_mask"] = pixel_mask
        outputs = self.vision_model(**inputs)
        features, boxes = read_features(
            outputs,
            (pixels.shape[-2], pixels.shape[-1]),
            self.vision_model.config,
            self.config.visual_hidden_size,
            self.config.vision_num_prefix_tokens,
        )
        states = [name.removeprefix("output_") for name in options]
        return features, boxes, {name: getattr(outputs, name, None) for name in states}

    def visual_inputs(
        self,
        batch_size: int,
        *,
        pixel_values: torch.FloatTensor | None = None,
        image_mask: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        visual_embeds: torch.FloatTensor | None = None,
        visual_boxes: torch.FloatTensor | None = None,
        visual_mask: torch.Tensor | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None, dict[str, Any]]:
        """
        Images as features with a place each, whether they came as pixels or as features.

        Args:
            batch_size (`int`): B, the number of texts.
            pixel_values, image_mask, pixel_mask, visual_embeds, visual_boxes, visual_mask:
                As in the forward pass, which describes them; their shapes are checked here.
            options (`dict[str, Any]`, *optional*):
                `output_hidden_states` and `output_attentions` for the vision encoder.

        Returns:
            `tuple` of, first, features `(B, M, n, visual_hidden_size)`, boxes `(B, M, n, 4)` and which of the positions
            are there `(B, M * n)`, `None` where all are, or of `None` where there is no image at all; and of the
            `hidden_states` and `attentions` that `options` ask for, of the images that are there, where the encoder ran
            and gives them.

        Raises:
            ValueError: naming the argument, if one has another shape, or images came in both forms.
        """
        states: dict[str, Any] = {}
        if pixel_values is not None and visual_embeds is not None:
            raise ValueError("Give `pixel_values` or `visual_embeds`, not both.")
        if pixel_values is not None:
            if pixel_values.dim() == 4:
                pixel_values = pixel_values[:, None]
                pixel_mask = pixel_mask[:, None] if pixel_mask is not None and pixel_mask.dim() == 3 else pixel_mask
            if pixel_values.dim() != 5:
                raise ValueError(
                    "`pixel_values` must have shape (batch, channels, height, width) or (batch, images, channels, "
                    f"height, width), got {tuple(pixel_values.shape)}."
                )
            image_mask = _checked_image_mask(image_mask, "pixel_values", pixel_values, batch_size)
            visual_embeds, visual_boxes, states = self._encode_present(
                pixel_values, image_mask, pixel_mask, options or {}
            )
        elif visual_embeds is not None:
            if visual_embeds.dim() == 3:
                visual_embeds, visual_boxes, visual_mask = (
                    None if given is None else given[:, None] for given in (visual_embeds, visual_boxes, visual_mask)
                )
            image_mask = _checked_image_mask(image_mask, "visual_embeds", visual_embeds, batch_size)
        if visual_embeds is None:
            return None, states
        return self._checked_features(visual_embeds, visual_boxes, visual_mask, image_mask), states

    def _checked_features(
        self,
        embeds: torch.Tensor,
        boxes: torch.Tensor | None,
        visual_mask: torch.Tensor | None,
        image_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Features and boxes of one shape, and both masks as one `(B, N)`."""
        if embeds.dim() != 4 or embeds.shape[-1] != self.config.visual_hidden_size:
            raise ValueError(
                "`visual_embeds` must have shape (batch, positions, width) or (batch, images, positions, width) with "
                f"width {self.config.visual_hidden_size}; got {tuple(embeds.shape)}."
            )
        shape = embeds.shape[:3]
        if boxes is None:
            # Regions of unknown place: each may lie anywhere in its image.
            boxes = embeds.new_tensor([0.0, 0.0, 1.0, 1.0]).expand(*shape, 4)
        elif boxes.shape != (*shape, 4):
            raise ValueError(f"`visual_boxes` must have shape {(*shape, 4)}; got {tuple(boxes.shape)}.")
        mask = None if image_mask is None else image_mask.bool()[..., None].expand(shape)
        if visual_mask is not None:
            if visual_mask.shape != shape:
                raise ValueError(f"`visual_mask` must have shape {tuple(shape)}; got {tuple(visual_mask.shape)}.")
            mask = visual_mask.bool() if mask is None else mask & visual_mask.bool()
        return embeds, boxes, None if mask is None else mask.flatten(1)

    def drop_images(
        self, visual_mask: torch.Tensor | None, shape: tuple[int, int], device: torch.device
    ) -> torch.Tensor | None:
        """Image dropout: in training, some rows lose all their images. Takes and gives the mask `(B, N)` of `shape`."""
        if not self.training or self.config.image_dropout == 0:
            return visual_mask
        keeps = torch.rand(shape[0], 1, device=device) >= self.config.image_dropout
        return keeps.expand(shape) if visual_mask is None else visual_mask & keeps

    def project_images(
        self, features: torch.Tensor, boxes: torch.Tensor, visual_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """X_v `(B, N, D)` and boxes `(B, N, 4)`; both zero where there is no image, so that padding may hold anything."""
        if visual_mask is not None:
            # A weight of zero does not silence NaN, nor does a gradient of zero.
            absent = ~visual_mask.view(features.shape[:3])[..., None]
            features, boxes = features.masked_fill(absent, 0.0), boxes.masked_fill(absent, 0.0)
        features = self.visual_norm(features.to(self.visual_norm.weight.dtype))
        image = (self.visual_projection(features) + self.visual_positions(boxes)).flatten(1, 2)
        if visual_mask is not None:
            image = torch.where(visual_mask[..., None], image, 0.0)
        return image, boxes.flatten(1, 2)

    def encode_images(
        self, **inputs: Unpack[VTFusionInputs]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, dict[str, Any]]:
        """
        Images alone: the features `(B, N, visual_hidden_size)`, X_v `(B, N, D)`, which of their positions are there
        `(B, N)`, `None` where all are, and the vision encoder's `hidden_states` and `attentions` where asked for.

        Args:
            inputs: `pixel_values`, `image_mask`, `pixel_mask`, `visual_embeds`, `visual_boxes` and `visual_mask`, as in
                the forward pass; `output_hidden_states` and `output_attentions`, which are off by default.
        """
        given = inputs.get("pixel_values") if inputs.get("visual_embeds") is None else inputs["visual_embeds"]
        if given is None:
            raise ValueError("Give `pixel_values` or `visual_embeds`.")
        options = {name: inputs.get(name) for name in ("output_hidden_states", "output_attentions")}
        # Only what is asked for is passed on: not every encoder takes both.
        visual, states = self.visual_inputs(
            given.shape[0],
            **{name: inputs.get(name) for name in IMAGE_INPUTS},
            options={name: value for name, value in options.items() if value},
        )
        if visual is None:
            # not one image: a single position in each slot, which is not there
            has_slots = given.dim() == (5 if inputs.get("visual_embeds") is None else 4)
            shape = (given.shape[0], given.shape[1] if has_slots else 1, 1)
            features = self.visual_norm.weight.new_zeros(*shape, self.config.visual_hidden_size)
            visual = features, features.new_zeros(*shape, 4), features.new_zeros(shape[:2], dtype=torch.bool)
        features, boxes, mask = visual
        return features.flatten(1, 2), self.project_images(features, boxes, mask)[0], mask, states


class VTFusionHead(VTFusionPreTrainedModel):
    """What the heads on the base model share."""

    @staticmethod
    def predict_both(
        head: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
        outputs: VTFusionModelOutput,
        attention_mask: torch.Tensor | None,
        with_text: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        What a head predicts from X_f, and from X_t alone for L_t.

        Args:
            head (`Callable`):
                From hidden states `(rows, L, text_hidden_size)` and their mask `(rows, L)` to predictions, row by row.
            outputs ([`VTFusionModelOutput`]): of the base model.
            attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*): 0 at padding.
            with_text (`bool`): whether the prediction from X_t is wanted; else it is `None`.
        """
        mask = None if attention_mask is None else attention_mask.bool()
        fused: Any = outputs.last_hidden_state
        if not with_text:
            return head(fused, mask), None
        from_text = head(outputs.text_hidden_state, mask)
        if outputs.visual_hidden_state is None:
            return from_text, from_text
        rows = outputs.fused_rows
        if rows is None:
            return head(fused, mask), from_text
        # In the other rows X_f is X_t.
        from_both = head(fused[rows], None if mask is None else mask[rows])
        return from_text.index_copy(0, rows, from_both), from_text

    @staticmethod
    def shared_fields(output_class: type[ModelOutput], outputs: VTFusionModelOutput) -> dict[str, Any]:
        """The fields of the base model's output that a head's output has too."""
        return {name: outputs[name] for name in output_class.__dataclass_fields__.keys() & outputs.keys()}

    @staticmethod
    def token_vision_loss(
        image_logits: torch.Tensor,
        outputs: VTFusionModelOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """L_v of labels for each token, from logits `(R, N, num_labels)` of the image positions; see [`vision_loss`]."""
        rows = slice(None) if outputs.fused_rows is None else outputs.fused_rows
        return vision_loss(
            at_least_float32(image_logits).log_softmax(dim=-1),
            outputs.alignment_query,
            outputs.alignment_key,
            None if outputs.visual_mask is None else outputs.visual_mask[rows],
            labels[rows],
            count_labels(labels, num_items_in_batch),
        )

    def combine_losses(
        self, outputs: VTFusionModelOutput, losses: dict[str, torch.Tensor], share: torch.Tensor | float = 1.0
    ) -> torch.Tensor:
        """
        loss = w_ct L_ct + w_t L_t + w_v L_v + w_itc L_itc, with the weights of the config.

        Args:
            outputs ([`VTFusionModelOutput`]): of the base model, for L_itc.
            losses (`dict[str, torch.Tensor]`): by the names of the output fields; L_itc is added to it.
            share (`torch.Tensor` or `float`, *optional*, defaults to 1.0):
                This batch's part of what the losses are averaged over, by which L_itc, a mean over the batch, is
                scaled.
        """
        base = self.base_model
        if outputs.image_embeds is not None:
            has_image = None if outputs.visual_mask is None else outputs.visual_mask.any(dim=-1)
            itc = contrastive_loss(outputs.text_embeds, outputs.image_embeds, base.contrastive_scale(), has_image)
            losses["contrastive_loss"] = itc * share
        if not losses:
            # a batch without an image, of a head that only compares: still a loss that can be trained on
            return outputs["last_hidden_state"].sum() * 0.0
        return sum(getattr(self.config, f"{name}_weight") * value for name, value in losses.items())


def _checked_image_mask(
    image_mask: torch.Tensor | None, name: str, images: torch.Tensor, batch_size: int
) -> torch.Tensor | None:
    """The mask `(B, M)` of images `(B, M, …)` that came under this name, one row for each text."""
    if images.shape[0] != batch_size:
        raise ValueError(f"`{name}` has {images.shape[0]} rows, but the text has {batch_size}.")
    if image_mask is None:
        return None
    if image_mask.dim() == 1:
        image_mask = image_mask[:, None]
    if image_mask.shape != images.shape[:2]:
        raise ValueError(
            f"`image_mask` must have shape {tuple(images.shape[:2])}, (batch, images) of `{name}`; got "
            f"{tuple(image_mask.shape)}."
        )
    return image_mask


def accepts(model: PreTrainedModel, name: str) -> bool:
    """Whether a model's forward pass has an argument of this name."""
    return name in inspect.signature(model.forward).parameters


__all__ = [
    "VTFusionHead",
    "VTFusionPreTrainedModel",
    "VTFusionVisionModel",
    "accepts",
]
