"""VTFusion model: encoders, alignment, interaction, fusion, heads."""

import math
from typing import Any, Unpack

import torch
from torch import nn
from transformers import AutoModelForTextEncoding, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple

from .base_vtfusion import VTFusionHead, VTFusionPreTrainedModel, VTFusionVisionModel, accepts
from .configuration_vtfusion import VTFusionConfig
from .fusion_vtfusion import (
    VTFusionGatedFusion,
    VTFusionLayer,
    VTFusionLinear,
    answer_mask,
    attention_map,
    binary_loss,
    bounded_scale,
    check_label_range,
    check_not_padding,
    check_score_range,
    check_token_labels,
    count_labels,
    hard_negatives,
    masked_mean,
    may_look_at,
    pool,
    pool_tokens,
    row_losses,
    row_vision_loss,
    span_cross_entropy,
    token_cross_entropy,
)
from .generation_vtfusion import VTFusionForConditionalGeneration
from .outputs_vtfusion import (
    IMAGE_INPUTS,
    VTFusionClassifierOutput,
    VTFusionInputs,
    VTFusionMatchingOutput,
    VTFusionModelOutput,
    VTFusionQuestionAnsweringOutput,
)
from .pipeline_vtfusion import (
    VTFusionQuestionAnsweringPipeline,
    VTFusionTextClassificationPipeline,
    VTFusionTokenClassificationPipeline,
    VTFusionVisualQuestionAnsweringPipeline,
)
from .visual_vtfusion import build_encoder, encoder_auto_class

# ---------------------------------------------------------------------------------------------------------- models


class VTFusionModel(VTFusionVisionModel):
    r"""
    Any text encoder and any vision encoder, joined by visual-text cross-attention; no head.

    Args:
        config ([`VTFusionConfig`]): the configuration; the encoders get random weights.
        vision_model (`PreTrainedModel`, *optional*): a vision encoder to take instead of a random one.
        text_model (`PreTrainedModel`, *optional*): a text encoder to take instead of a random one.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, ResNetConfig
    >>> from vtfusion import VTFusionConfig, VTFusionModel

    >>> text = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    >>> model = VTFusionModel(VTFusionConfig(text, vision, fusion_hidden_size=16, num_fusion_heads=2))
    >>> outputs = model(input_ids=torch.tensor([[5, 6, 7]]), pixel_values=torch.rand(1, 3, 32, 32))
    >>> outputs.last_hidden_state.shape
    torch.Size([1, 3, 32])
    ```
    """

    def __init__(
        self,
        config: VTFusionConfig,
        vision_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        has_encoder = text_model is None and encoder_auto_class(config.text_config) is AutoModelForTextEncoding
        if config.text_config.is_encoder_decoder and not has_encoder:
            raise ValueError(
                f"'{config.text_config.model_type}' is an encoder-decoder; VTFusion reads one sequence of hidden "
                "states. Give an encoder or a decoder-only language model."
            )
        self.text_model = text_model if text_model is not None else build_encoder(config.text_config)
        self.join_encoders(vision_model)

        text_hidden_size = config.text_config.get_text_config().hidden_size
        width = config.fusion_hidden_size
        self.text_norm = nn.LayerNorm(text_hidden_size)
        self.text_projection = VTFusionLinear(text_hidden_size, width)
        self.add_image_projection()
        last = config.num_fusion_layers - 1
        self.fusion_layers = nn.ModuleList(
            VTFusionLayer(config, has_image_side=index < last or config.vision_loss_weight > 0)
            for index in range(config.num_fusion_layers)
        )
        self.fusion = VTFusionGatedFusion(config, text_hidden_size)
        self.contrastive_log_scale: Any = (
            # of one dimension, since FSDP shares no scalars
            nn.Parameter(torch.tensor([math.log(1 / 0.07)])) if config.contrastive_loss_weight > 0 else None
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_mask: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        visual_embeds: torch.FloatTensor | None = None,
        visual_boxes: torch.FloatTensor | None = None,
        visual_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_fusion_attentions: bool | None = None,
        output_alignment: bool = False,
        **kwargs: Any,
    ) -> VTFusionModelOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`, *optional*):
                Token ids. Either these or `inputs_embeds`.
            attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*):
                1 at tokens, 0 at padding. Recurrent encoders do not read it: pad them on the right.
            token_type_ids (`torch.LongTensor` of shape `(B, L)`, *optional*):
                Segment ids, where the text encoder has them.
            position_ids (`torch.LongTensor` of shape `(B, L)`, *optional*):
                Positions, where the text encoder has them.
            inputs_embeds (`torch.FloatTensor` of shape `(B, L, text_hidden_size)`, *optional*):
                Word embeddings instead of `input_ids`.
            pixel_values (`torch.FloatTensor` of shape `(B, M, channels, height, width)` or `(B, channels, height, width)`, *optional*):
                The images of each text. Without them, and without `visual_embeds`, no vision encoder runs.
            image_mask (`torch.Tensor` of shape `(B, M)`, *optional*):
                1 where there is an image. A row of zeros gives the text-only result.
            pixel_mask (`torch.Tensor` of shape `(B, M, height, width)`, *optional*):
                1 at real pixels, 0 at padding, for detectors.
            visual_embeds (`torch.FloatTensor` of shape `(B, M, n, visual_hidden_size)` or `(B, n, visual_hidden_size)`, *optional*):
                Precomputed features instead of `pixel_values`.
            visual_boxes (`torch.FloatTensor` of shape `(B, M, n, 4)` or `(B, n, 4)`, *optional*):
                Boxes (x0, y0, x1, y1) of the precomputed features, from 0 to 1. Without them a feature has no place.
            visual_mask (`torch.Tensor` of shape `(B, M, n)` or `(B, n)`, *optional*):
                1 at real features, 0 at padding.
            output_attentions (`bool`, *optional*):
                Whether to return the text encoder's self-attentions (eager attention only).
            output_hidden_states (`bool`, *optional*):
                Whether to return the text encoder's hidden states.
            output_fusion_attentions (`bool`, *optional*):
                Whether to return the similarity and both attention maps of the last fusion layer.
            output_alignment (`bool`, *optional*, defaults to `False`):
                Whether to return what L_v needs: `image_state`, `alignment_query` and `alignment_key`.
            kwargs (*optional*):
                Passed to the text encoder.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either `input_ids` or `inputs_embeds`.")
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_fusion_attentions is None:
            output_fusion_attentions = self.config.output_fusion_attentions

        text_outputs = self._encode_text(
            {
                "input_ids": input_ids,
                "inputs_embeds": inputs_embeds,
                "attention_mask": attention_mask,
                "token_type_ids": token_type_ids,
                "position_ids": position_ids,
            },
            output_attentions,
            output_hidden_states,
            kwargs,
        )
        text = text_outputs.last_hidden_state
        # Made into an output at the very end: fields that are set later would lie behind the others in its tuple.
        result: dict[str, Any] = {
            "last_hidden_state": text,
            "text_hidden_state": text,
            "fusion_gate": text.new_zeros(text.shape[:2]),
            "hidden_states": getattr(text_outputs, "hidden_states", None),
            "attentions": getattr(text_outputs, "attentions", None),
        }
        text_mask = None if attention_mask is None else attention_mask.bool()
        if self.contrastive_log_scale is not None:
            result["text_embeds"] = self.pool_text(text, text_mask)
        visual, _ = self.visual_inputs(
            text.shape[0],
            pixel_values=pixel_values,
            image_mask=image_mask,
            pixel_mask=pixel_mask,
            visual_embeds=visual_embeds,
            visual_boxes=visual_boxes,
            visual_mask=visual_mask,
        )
        if visual is not None:
            result |= self._fuse_batch(text, text_mask, *visual, output_fusion_attentions, output_alignment)
        return VTFusionModelOutput(**result)

    def _fuse_batch(
        self,
        text: torch.Tensor,
        text_mask: torch.Tensor | None,
        features: torch.Tensor,
        boxes: torch.Tensor,
        visual_mask: torch.Tensor | None,
        output_fusion_attentions: bool,
        output_alignment: bool,
    ) -> dict[str, Any]:
        """Fields of [`VTFusionModelOutput`], of texts `(B, L, text_hidden_size)` and features `(B, M, n, C)`."""
        shape = (features.shape[0], features.shape[1] * features.shape[2])
        visual_mask = self.drop_images(visual_mask, shape, features.device)
        rows = _rows_to_fuse(visual_mask)
        parts: tuple[Any, ...] = (text, text_mask, features, boxes, visual_mask)
        if rows is not None:
            parts = tuple(None if part is None else part[rows] for part in parts)
        text_part, text_mask, features, boxes, mask_part = parts
        image, boxes = self.project_images(features, boxes, mask_part)
        fused, alignment = self.fuse(
            text_part, text_mask, image, mask_part, output_fusion_attentions, output_alignment
        )
        fused |= {"visual_hidden_state": image, "visual_boxes": boxes}
        if self.contrastive_log_scale is not None:
            fused["image_embeds"] = pool(image, mask_part)
        if rows is not None:
            last_hidden_state = text.index_copy(0, rows, fused.pop("last_hidden_state").to(text.dtype))
            fused = {name: _spread(value, rows, text.shape[0]) for name, value in fused.items()}
            fused["last_hidden_state"] = last_hidden_state
        return {**fused, **(alignment if output_alignment else {}), "visual_mask": visual_mask, "fused_rows": rows}

    def contrastive_scale(self) -> torch.Tensor:
        """1 / temperature of the contrastive loss, a scalar."""
        return bounded_scale(self.contrastive_log_scale).squeeze(0)

    def pool_text(self, text_hidden_state: torch.Tensor, text_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Mean of the projected tokens `(B, D)`, as a unit vector, of X_t `(B, L, text_hidden_size)`."""
        return pool(self.text_projection(self.text_norm(text_hidden_state)), text_mask)

    def fuse(
        self,
        text_hidden_state: torch.Tensor,
        text_mask: torch.Tensor | None,
        visual_hidden_state: torch.Tensor,
        visual_mask: torch.Tensor | None,
        output_fusion_attentions: bool = False,
        output_alignment: bool = True,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor | None]]:
        """
        Alignment, interaction and fusion of what is encoded already, so that a text can be put beside many images.

        Args:
            text_hidden_state (`torch.FloatTensor` of shape `(B, L, text_hidden_size)`): X_t.
            text_mask (`torch.BoolTensor` of shape `(B, L)`, *optional*): False at padding.
            visual_hidden_state (`torch.FloatTensor` of shape `(B, N, D)`): X_v.
            visual_mask (`torch.BoolTensor` of shape `(B, N)`, *optional*): False at positions that are not there.
            output_fusion_attentions (`bool`, *optional*, defaults to `False`): whether attention maps are wanted.
            output_alignment (`bool`, *optional*, defaults to `True`):
                Whether what L_v needs is wanted. Without it, and outside training, the image side of the last layer is
                not computed, since nothing else reads it.

        Returns:
            `tuple` of two `dict`: fields of [`VTFusionModelOutput`], and those of them that L_v needs.
        """
        normed_text = self.text_norm(text_hidden_state)
        text_state, image = self.text_projection(normed_text), visual_hidden_state
        for index, layer in enumerate(self.fusion_layers):
            # In training always: skipped dropout would change all random numbers after it.
            image_reads = output_alignment or self.training or index < len(self.fusion_layers) - 1
            context, image, query, key = layer(text_state, image, text_mask, visual_mask, image_reads)
            text_state = text_state + context
        fused = {"visual_context": context}
        if output_fusion_attentions:
            fused["similarity"] = (query / layer.scale().to(query.dtype)) @ key.transpose(-1, -2)
            fused["text_to_image_attention"] = attention_map(query, key, visual_mask)
            fused["image_to_text_attention"] = attention_map(key, query, text_mask)
            if visual_mask is not None:
                fused["image_to_text_attention"] = fused["image_to_text_attention"] * visual_mask[:, None, :, None]
        has_image = None if visual_mask is None else visual_mask.any(dim=-1)
        if has_image is not None:
            fused = {
                name: torch.where(has_image.view(-1, *[1] * (value.dim() - 1)), value, 0.0)
                for name, value in fused.items()
            }
        fused["last_hidden_state"], fused["fusion_gate"] = self.fusion(
            text_hidden_state, normed_text, context, has_image
        )
        alignment = {
            "image_state": image if layer.has_image_side and image_reads else None,
            "alignment_query": query,
            "alignment_key": key,
        }
        return fused, alignment

    def _encode_text(
        self,
        inputs: dict[str, torch.Tensor | None],
        output_attentions: bool,
        output_hidden_states: bool,
        kwargs: dict[str, Any],
    ) -> ModelOutput:
        # A recurrent encoder has no attention mask, a RoBERTa no token types: each gets what it knows.
        inputs = {k: v for k, v in inputs.items() if v is not None and accepts(self.text_model, k)}
        # `None` would switch off the encoder's own default, so a flag is passed only to switch something on. It may be
        # a list: the layers that are wanted.
        if output_attentions:
            inputs["output_attentions"] = output_attentions
        if output_hidden_states:
            inputs["output_hidden_states"] = output_hidden_states
        if accepts(self.text_model, "use_cache"):
            inputs["use_cache"] = False
        return self.text_model(**{**kwargs, **inputs}, return_dict=True)


def _rows_to_fuse(visual_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Indices of the rows with an image, where the others can be left out of the fusion; `None` where all take part."""
    if visual_mask is None or not may_look_at(visual_mask):
        return None
    rows = visual_mask.any(dim=-1).nonzero().squeeze(-1)
    return rows if 0 < rows.numel() < visual_mask.shape[0] else None


def _spread(value: torch.Tensor, rows: torch.Tensor, batch_size: int) -> torch.Tensor:
    """`value` at `rows` of a batch, zeros at the others."""
    return value.new_zeros(batch_size, *value.shape[1:]).index_copy(0, rows, value)


class _VTFusionWithClassifier(VTFusionHead):
    """What the heads with classes share."""

    def __init__(
        self,
        config: VTFusionConfig,
        vision_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vtfusion = VTFusionModel(config, vision_model, text_model)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.text_config.get_text_config().hidden_size, config.num_labels)
        self.vision_classifier: Any = (
            nn.Linear(config.fusion_hidden_size, config.num_labels) if config.vision_loss_weight > 0 else None
        )
        self.post_init()


class VTFusionForTokenClassification(_VTFusionWithClassifier):
    r"""
    VTFusion with a token classification head: entities from words and pictures.

    Args:
        config ([`VTFusionConfig`]): the configuration, with `num_labels`.
        vision_model (`PreTrainedModel`, *optional*): a vision encoder to take instead of a random one.
        text_model (`PreTrainedModel`, *optional*): a text encoder to take instead of a random one.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, ResNetConfig
    >>> from vtfusion import VTFusionConfig, VTFusionForTokenClassification

    >>> text = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    >>> config = VTFusionConfig(text, vision, fusion_hidden_size=16, num_fusion_heads=2, num_labels=3)
    >>> model = VTFusionForTokenClassification(config)
    >>> outputs = model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[0, 2, -100]]))
    >>> outputs.logits.shape
    torch.Size([1, 3, 3])
    ```
    """

    pipeline_class = VTFusionTokenClassificationPipeline

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **inputs: Unpack[VTFusionInputs],
    ) -> VTFusionClassifierOutput:
        r"""
        Args:
            labels (`torch.LongTensor` of shape `(B, L)`, *optional*):
                A label from 0 to `num_labels - 1` for each token, -100 where the token counts for nothing.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Number of labels over which the losses are averaged; by default those of this batch. `Trainer` gives it
                when it accumulates gradients.

        The other arguments are those of [`VTFusionModel.forward`].
        """
        outputs = self.vtfusion(
            input_ids,
            attention_mask,
            output_alignment=labels is not None and self.vision_classifier is not None,
            return_dict=True,
            **inputs,
        )
        logits, text_logits = self.predict_both(
            lambda hidden_state, mask: self.classifier(self.dropout(hidden_state)),
            outputs,
            attention_mask,
            with_text=labels is not None and self.config.text_loss_weight > 0,
        )
        loss, losses = None, {}
        if labels is not None:
            check_token_labels(labels, tuple(logits.shape[:2]), self.num_labels)
            options = (num_items_in_batch, self.config.class_weights, self.config.label_smoothing)
            losses["fusion_loss"] = token_cross_entropy(logits, labels, *options)
            if text_logits is not None:
                losses["text_loss"] = token_cross_entropy(text_logits, labels, *options)
            if outputs.image_state is not None:
                image_logits = self.vision_classifier(self.dropout(outputs.image_state))
                losses["vision_loss"] = self.token_vision_loss(image_logits, outputs, labels, num_items_in_batch)
            share = count_labels(labels) / count_labels(labels, num_items_in_batch)
            loss = self.combine_losses(outputs, losses, share)
        shared = self.shared_fields(VTFusionClassifierOutput, outputs)
        return VTFusionClassifierOutput(loss=loss, logits=logits, **losses, **shared)


class VTFusionForSequenceClassification(_VTFusionWithClassifier):
    r"""
    VTFusion with a head on the pooled text: sentiment, intent, any class, several classes, or a number.

    Args:
        config ([`VTFusionConfig`]):
            The configuration. `problem_type` is `"single_label_classification"`, `"multi_label_classification"` or
            `"regression"`; without it the labels of the first batch tell.
        vision_model (`PreTrainedModel`, *optional*): a vision encoder to take instead of a random one.
        text_model (`PreTrainedModel`, *optional*): a text encoder to take instead of a random one.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, ResNetConfig
    >>> from vtfusion import VTFusionConfig, VTFusionForSequenceClassification

    >>> text = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    >>> config = VTFusionConfig(text, vision, fusion_hidden_size=16, num_fusion_heads=2, num_labels=3)
    >>> model = VTFusionForSequenceClassification(config)
    >>> outputs = model(torch.tensor([[5, 6, 7]]), pixel_values=torch.rand(1, 3, 32, 32), labels=torch.tensor([2]))
    >>> outputs.logits.shape
    torch.Size([1, 3])
    ```
    """

    pipeline_class = VTFusionTextClassificationPipeline

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **inputs: Unpack[VTFusionInputs],
    ) -> VTFusionClassifierOutput:
        r"""
        Args:
            labels (`torch.Tensor` of shape `(B,)` or `(B, num_labels)`, *optional*):
                A class for each text (-100: counts for nothing), 0 to 1 for each class of each text, or numbers.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Number of labels over which the losses are averaged; by default those of this batch. `Trainer` gives it
                when it accumulates gradients.

        The other arguments are those of [`VTFusionModel.forward`].
        """
        outputs = self.vtfusion(
            input_ids,
            attention_mask,
            output_alignment=labels is not None and self.vision_classifier is not None,
            return_dict=True,
            **inputs,
        )
        logits, text_logits = self._predict(
            outputs, attention_mask, with_text=labels is not None and self.config.text_loss_weight > 0
        )
        loss, losses = None, {}
        if labels is not None:
            losses = self._losses(logits, text_logits, outputs, attention_mask, labels, num_items_in_batch)
            share = count_labels(labels) / count_labels(labels, num_items_in_batch)
            loss = self.combine_losses(outputs, losses, share)
        shared = self.shared_fields(VTFusionClassifierOutput, outputs)
        return VTFusionClassifierOutput(loss=loss, logits=logits, **losses, **shared)

    def _predict(
        self, outputs: VTFusionModelOutput, attention_mask: torch.Tensor | None, with_text: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits `(B, num_labels)` from X_f, and those from X_t if they are wanted."""
        return self.predict_both(
            lambda hidden_state, mask: self.classifier(
                self.dropout(pool_tokens(hidden_state, mask, self.config.pooling))
            ),
            outputs,
            attention_mask,
            with_text,
        )

    def _losses(
        self,
        logits: torch.Tensor,
        text_logits: torch.Tensor | None,
        outputs: VTFusionModelOutput,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> dict[str, torch.Tensor]:
        problem = self.config.problem_type or self._problem_type(labels)
        expected = (logits.shape[0],) if problem == "single_label_classification" else tuple(logits.shape)
        if problem == "regression" and self.num_labels == 1 and labels.dim() == 1:
            labels = labels[:, None]
        if tuple(labels.shape) != expected:
            raise ValueError(f"`labels` must have shape {expected} for {problem}, got {tuple(labels.shape)}.")
        if problem == "single_label_classification":
            check_label_range(labels, self.num_labels)
        elif problem == "multi_label_classification":
            check_score_range(labels)
        if not torch.compiler.is_compiling():
            # kept, as elsewhere in transformers: a model is used as what it was trained for
            self.config.problem_type = problem
        options = (problem, self.config.class_weights, self.config.label_smoothing)
        count = count_labels(labels, num_items_in_batch)
        losses = {"fusion_loss": row_losses(logits, labels, *options).sum() / count}
        if text_logits is not None:
            losses["text_loss"] = row_losses(text_logits, labels, *options).sum() / count
        if outputs.image_state is not None:
            rows = slice(None) if outputs.fused_rows is None else outputs.fused_rows
            image_logits = self.vision_classifier(self.dropout(outputs.image_state))
            by_position = labels[rows][:, None].expand(-1, image_logits.shape[1], *labels.shape[1:])
            losses["vision_loss"] = row_vision_loss(
                # the weights of the classes and the smoothing are for L_ct and L_t
                row_losses(image_logits, by_position, problem),
                outputs.alignment_query,
                outputs.alignment_key,
                None if attention_mask is None else attention_mask[rows].bool(),
                None if outputs.visual_mask is None else outputs.visual_mask[rows],
                count,
            )
        return losses

    def _problem_type(self, labels: torch.Tensor) -> str:
        if self.num_labels == 1:
            return "regression"
        return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


class VTFusionAnswerMerge(nn.Module):
    """
    Multiplies a question with what it has seen: W_o (tanh(f(x_t)) * tanh(W_v norm x_v)), the point-wise merge of
    [Antol et al. 2015](https://arxiv.org/abs/1505.00468) with a hidden layer f on the question. A sum can name what is
    seen but not compare it with what was asked for. Where nothing was seen, as in a new model, x_v is zero and with it
    the product; W_o itself must not start at zero, or the product is not learned.
    """

    def __init__(self, hidden_size: int, num_labels: int):
        super().__init__()
        self.transform = VTFusionLinear(hidden_size, hidden_size)
        self.activation = nn.GELU()
        self.question = VTFusionLinear(hidden_size, hidden_size)
        # no bias on this side: nothing seen, nothing said
        self.seen_norm = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.seen = VTFusionLinear(hidden_size, hidden_size, bias=False)
        self.output = VTFusionLinear(hidden_size, num_labels, bias=False)

    def forward(self, question: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """What the product adds to the logits `(B, num_labels)`, from vectors `(B, D)` of question and image."""
        asked = self.question(self.activation(self.transform(question)))
        return self.output(asked.tanh() * self.seen(self.seen_norm(seen)).tanh())


class VTFusionForVisualQuestionAnswering(VTFusionForSequenceClassification):
    r"""
    VTFusion that answers a question about a picture with one of `num_labels` answers: the head of
    [`VTFusionForSequenceClassification`], and the product of the question with what the fusion has added to it
    ([`VTFusionAnswerMerge`]). `labels` are answers `(B,)`, or
    soft scores `(B, num_labels)` from 0 to 1, as when people gave several answers (VQA v2); these are learned with
    binary cross-entropy, as in ViLT.

    Args:
        config ([`VTFusionConfig`]): the configuration; its labels are the answers.
        vision_model (`PreTrainedModel`, *optional*): a vision encoder to take instead of a random one.
        text_model (`PreTrainedModel`, *optional*): a text encoder to take instead of a random one.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, ResNetConfig
    >>> from vtfusion import VTFusionConfig, VTFusionForVisualQuestionAnswering

    >>> text = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    >>> config = VTFusionConfig(text, vision, fusion_hidden_size=16, num_fusion_heads=2, id2label={0: "no", 1: "yes"})
    >>> model = VTFusionForVisualQuestionAnswering(config)
    >>> model(torch.tensor([[5, 6, 7]]), pixel_values=torch.rand(1, 3, 32, 32)).logits.shape
    torch.Size([1, 2])
    ```
    """

    pipeline_class = VTFusionVisualQuestionAnsweringPipeline

    def __init__(
        self,
        config: VTFusionConfig,
        vision_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
    ):
        super().__init__(config, vision_model, text_model)
        self.merge = VTFusionAnswerMerge(config.text_config.get_text_config().hidden_size, config.num_labels)
        self.post_init()

    def _predict(
        self, outputs: VTFusionModelOutput, attention_mask: torch.Tensor | None, with_text: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits, text_logits = super()._predict(outputs, attention_mask, with_text)
        if outputs.visual_hidden_state is None:
            return logits, text_logits
        rows = slice(None) if outputs.fused_rows is None else outputs.fused_rows
        mask = None if attention_mask is None else attention_mask[rows].bool()
        text: Any = outputs.text_hidden_state
        fused: Any = outputs.last_hidden_state
        question = pool_tokens(text[rows], mask, self.config.pooling)
        # In a row without an image X_f is X_t, to the bit.
        seen = pool_tokens(fused[rows], mask, self.config.pooling) - question
        product = self.merge(self.dropout(question), seen)
        logits = logits + product if outputs.fused_rows is None else logits.index_add(0, rows, product)
        return logits, text_logits


class VTFusionForQuestionAnswering(VTFusionHead):
    r"""
    VTFusion that finds the answer to a question in a text beside its picture.

    Args:
        config ([`VTFusionConfig`]): the configuration.
        vision_model (`PreTrainedModel`, *optional*): a vision encoder to take instead of a random one.
        text_model (`PreTrainedModel`, *optional*): a text encoder to take instead of a random one.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, ResNetConfig
    >>> from vtfusion import VTFusionConfig, VTFusionForQuestionAnswering

    >>> text = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    >>> config = VTFusionConfig(text, vision, fusion_hidden_size=16, num_fusion_heads=2)
    >>> model = VTFusionForQuestionAnswering(config)
    >>> model(torch.tensor([[5, 6, 7]]), pixel_values=torch.rand(1, 3, 32, 32)).start_logits.shape
    torch.Size([1, 3])
    ```
    """

    pipeline_class = VTFusionQuestionAnsweringPipeline

    def __init__(
        self,
        config: VTFusionConfig,
        vision_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        self.vtfusion = VTFusionModel(config, vision_model, text_model)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.qa_outputs = nn.Linear(config.text_config.get_text_config().hidden_size, 2)
        self.vision_classifier: Any = (
            nn.Linear(config.fusion_hidden_size, 2) if config.vision_loss_weight > 0 else None
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **inputs: Unpack[VTFusionInputs],
    ) -> VTFusionQuestionAnsweringOutput:
        r"""
        Args:
            start_positions (`torch.LongTensor` of shape `(B,)`, *optional*):
                The answer's first token; 0, which stands for the first token behind any padding, where there is no
                answer. A row with -100 counts for nothing.
            end_positions (`torch.LongTensor` of shape `(B,)`, *optional*):
                The answer's last token.

        The other arguments are those of [`VTFusionModel.forward`]. L_v asks of each image position whether the tokens
        that look at it are a part of the answer.
        """
        if (start_positions is None) != (end_positions is None):
            raise ValueError("Give both `start_positions` and `end_positions`, or neither.")
        outputs = self.vtfusion(
            input_ids,
            attention_mask,
            output_alignment=start_positions is not None and self.vision_classifier is not None,
            return_dict=True,
            **inputs,
        )
        logits, text_logits = self.predict_both(
            self._predict,
            outputs,
            attention_mask,
            with_text=start_positions is not None and self.config.text_loss_weight > 0,
        )
        loss, losses = None, {}
        if start_positions is not None and end_positions is not None:
            losses = self._losses(logits, text_logits, outputs, attention_mask, start_positions, end_positions)
            loss = self.combine_losses(outputs, losses)
        start_logits, end_logits = logits.unbind(dim=-1)
        shared = self.shared_fields(VTFusionQuestionAnsweringOutput, outputs)
        return VTFusionQuestionAnsweringOutput(
            loss=loss, start_logits=start_logits, end_logits=end_logits, **losses, **shared
        )

    def _predict(self, hidden_state: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Logits `(B, L, 2)` of each token as the first and as the last one, the lowest there are at padding."""
        logits = self.qa_outputs(self.dropout(hidden_state))
        return logits if mask is None else logits.masked_fill(~mask[..., None], torch.finfo(logits.dtype).min)

    def _losses(
        self,
        logits: torch.Tensor,
        text_logits: torch.Tensor | None,
        outputs: VTFusionModelOutput,
        attention_mask: torch.Tensor | None,
        start_positions: torch.Tensor,
        end_positions: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        start = _checked_positions(start_positions, "start_positions", logits, attention_mask)
        end = _checked_positions(end_positions, "end_positions", logits, attention_mask)
        losses = {"fusion_loss": span_cross_entropy(logits, start, end)}
        if text_logits is not None:
            losses["text_loss"] = span_cross_entropy(text_logits, start, end)
        if outputs.image_state is not None:
            ignored = (start < 0)[:, None]
            if attention_mask is not None:
                ignored = ignored | ~attention_mask.bool()
            labels = answer_mask(start, end, logits.shape[1]).long().masked_fill(ignored, -100)
            image_logits = self.vision_classifier(self.dropout(outputs.image_state))
            losses["vision_loss"] = self.token_vision_loss(image_logits, outputs, labels)
        return losses


def _checked_positions(
    positions: torch.Tensor, name: str, logits: torch.Tensor, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """Places `(B,)` of tokens, of logits `(B, L, 2)`: 0 is the first one behind any padding, -100 stays."""
    if positions.shape != logits.shape[:1]:
        raise ValueError(f"`{name}` must have shape {tuple(logits.shape[:1])}, got {tuple(positions.shape)}.")
    check_label_range(positions, logits.shape[1], name)
    if attention_mask is None:
        return positions
    first = attention_mask.long().argmax(dim=-1)
    positions = torch.where(positions < 0, positions, torch.maximum(positions, first))
    check_not_padding(positions, attention_mask, name)
    return positions


class VTFusionLMHead(nn.Module):
    """Words from hidden states: a projection to the width of the word embeddings, and these as the output matrix."""

    def __init__(self, hidden_size: int, embeddings: nn.Module, eps: float = 1e-12):
        super().__init__()
        vocab_size, width = embeddings.weight.shape
        self.transform = nn.Linear(hidden_size, width)
        self.activation = nn.GELU()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.decoder = nn.Linear(width, vocab_size)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """Scores `(…, vocab_size)` of all words, from hidden states `(…, hidden_size)`."""
        return self.decoder(self.norm(self.activation(self.transform(hidden_state))))


class _VTFusionWithLMHead(VTFusionHead):
    """What the heads that predict words share."""

    def __init__(
        self,
        config: VTFusionConfig,
        vision_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
    ):
        # No image position predicts words: the whole vocabulary for each of them would cost more than all the rest.
        config.vision_loss_weight = 0.0
        super().__init__(config)
        self.vtfusion = VTFusionModel(config, vision_model, text_model)
        embeddings = self.vtfusion.get_input_embeddings()
        self.lm_head = VTFusionLMHead(config.text_config.get_text_config().hidden_size, embeddings)
        # The word embeddings have another name in every text encoder.
        path = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.decoder.weight": f"{path}.weight"}

    def get_output_embeddings(self) -> nn.Module:
        """The output matrix `(vocab_size, word_embedding_size)` as a linear layer."""
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Puts another linear layer in the place of the output matrix."""
        self.lm_head.decoder = new_embeddings


class VTFusionForMaskedLM(_VTFusionWithLMHead):
    r"""
    VTFusion that fills in masked words, with the picture's help.

    Args:
        config ([`VTFusionConfig`]): the configuration. With `tie_word_embeddings=True` the word embeddings are the
            output matrix too. `vision_loss_weight` becomes 0: this head has no L_v.
        vision_model (`PreTrainedModel`, *optional*): a vision encoder to take instead of a random one.
        text_model (`PreTrainedModel`, *optional*): a text encoder to take instead of a random one.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, ResNetConfig
    >>> from vtfusion import VTFusionConfig, VTFusionForMaskedLM

    >>> text = BertConfig(
    ...     vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    ... )
    >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    >>> model = VTFusionForMaskedLM(VTFusionConfig(text, vision, fusion_hidden_size=16, num_fusion_heads=2))
    >>> model(torch.tensor([[5, 6, 7]]), pixel_values=torch.rand(1, 3, 32, 32)).logits.shape
    torch.Size([1, 3, 50])
    ```
    """

    def __init__(
        self,
        config: VTFusionConfig,
        vision_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
    ):
        super().__init__(config, vision_model, text_model)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **inputs: Unpack[VTFusionInputs],
    ) -> VTFusionClassifierOutput:
        r"""
        Args:
            labels (`torch.LongTensor` of shape `(B, L)`, *optional*):
                The word that was masked, -100 elsewhere.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Number of labels over which the losses are averaged; by default those of this batch.

        The other arguments are those of [`VTFusionModel.forward`].
        """
        outputs = self.vtfusion(input_ids, attention_mask, return_dict=True, **inputs)
        logits, text_logits = self.predict_both(
            lambda hidden_state, mask: self.lm_head(hidden_state),
            outputs,
            attention_mask,
            with_text=labels is not None and self.config.text_loss_weight > 0,
        )
        loss, losses = None, {}
        if labels is not None:
            check_token_labels(labels, tuple(logits.shape[:2]), logits.shape[-1])
            losses["fusion_loss"] = token_cross_entropy(logits, labels, num_items_in_batch)
            if text_logits is not None:
                losses["text_loss"] = token_cross_entropy(text_logits, labels, num_items_in_batch)
            share = count_labels(labels) / count_labels(labels, num_items_in_batch)
            loss = self.combine_losses(outputs, losses, share)
        shared = self.shared_fields(VTFusionClassifierOutput, outputs)
        return VTFusionClassifierOutput(loss=loss, logits=logits, **losses, **shared)


class VTFusionMatchingHead(nn.Module):
    """
    Whether a text and an image belong together: each word is compared with what it has read of the image, and the text
    says the mean of its words. Without the layer between them, word and image could only add up, never be compared.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.transform = VTFusionLinear(hidden_size, hidden_size)
        self.activation = nn.GELU()
        self.score = nn.Linear(hidden_size, 1)

    def forward(self, hidden_state: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Logits `(B,)` from fused tokens `(B, L, D)` and the mask `(B, L)` of those that are there."""
        return self.score(masked_mean(self.activation(self.transform(hidden_state)), mask)).squeeze(-1)


class _VTFusionWithMatching(VTFusionHead):
    """What the heads share that tell whether a text and an image belong together."""

    vtfusion: VTFusionModel
    matching_head: nn.Module

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **inputs: Unpack[VTFusionInputs],
    ) -> BaseModelOutputWithPooling:
        """
        Vectors of texts: `pooler_output` `(B, D)`, of length 1, to be compared with those of [`get_image_features`].

        Args:
            input_ids, attention_mask, inputs: as for [`VTFusionModel.forward`].
        """
        outputs = self.vtfusion(input_ids, attention_mask, return_dict=True, **inputs)
        mask = None if attention_mask is None else attention_mask.bool()
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.text_hidden_state,
            pooler_output=self.vtfusion.pool_text(outputs.text_hidden_state, mask),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @can_return_tuple
    def get_image_features(self, **inputs: Unpack[VTFusionInputs]) -> BaseModelOutputWithPooling:
        """
        Vectors of images: `pooler_output` `(B, D)`, of length 1, or zero where there is no image; `last_hidden_state`
        is the vision encoder's features, `hidden_states` and `attentions` its own, of the images that are there.

        Args:
            inputs: `pixel_values` or `visual_embeds`, with their masks and boxes, as for [`VTFusionModel.forward`];
                `output_hidden_states` and `output_attentions`: a CNN gives no attentions, a detector neither.
        """
        for name in ("output_hidden_states", "output_attentions"):
            if inputs.get(name) is None:
                inputs[name] = getattr(self.config, name)
        features, image, mask, states = self.vtfusion.encode_images(**inputs)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=pool(image, mask), **states)

    def match(self, outputs: VTFusionModelOutput, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Logits `(B,)` of a text and its image belonging together."""
        mask = None if attention_mask is None else attention_mask.bool()
        return self.matching_head(outputs.last_hidden_state, mask)

    def matching_loss(self, outputs: Any, logits: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """
        Binary cross-entropy of the pairs of the batch, and of each text with a hard negative image and each image with
        a hard negative text: in training drawn from the batch, the likelier the more alike they are (ALBEF,
        2107.07651), else the most alike.
        """
        has_image = (
            torch.ones_like(logits, dtype=torch.bool)
            if outputs.visual_mask is None
            else outputs.visual_mask.any(dim=-1)
        )
        mask = None if attention_mask is None else attention_mask.bool()
        scale = self.vtfusion.contrastive_scale()
        similarity = outputs.text_embeds @ outputs.image_embeds.T * scale
        total = binary_loss(logits, has_image, positive=True)
        for texts, images in hard_negatives(similarity, has_image, draw=self.training):
            fused, _ = self.vtfusion.fuse(
                outputs.text_hidden_state[texts],
                None if mask is None else mask[texts],
                outputs.visual_hidden_state[images],
                None if outputs.visual_mask is None else outputs.visual_mask[images],
                output_alignment=False,
            )
            negative_logits = self.matching_head(fused["last_hidden_state"], None if mask is None else mask[texts])
            # A row that is the only one with an image was given itself: that pair does belong together.
            negative = has_image & (texts != images)
            total = total + binary_loss(negative_logits, negative, positive=False)
        return total / (3 * has_image.sum().clamp(min=1))

    def match_batch(
        self,
        outputs: VTFusionModelOutput,
        attention_mask: torch.Tensor | None,
        return_loss: bool,
        losses: dict[str, torch.Tensor],
        share: torch.Tensor | float = 1.0,
        **scores: torch.Tensor,
    ) -> VTFusionMatchingOutput:
        """
        The output of a head from that of the base model, with the losses of the batch, scaled by its `share` (see
        [`combine_losses`]), added to `losses`.
        """
        if self.matching_head is not None:
            scores["matching_logits"] = self.match(outputs, attention_mask)
        if outputs.image_embeds is not None:
            similarity = outputs.text_embeds @ outputs.image_embeds.T * self.vtfusion.contrastive_scale()
            scores |= {"logits_per_text": similarity, "logits_per_image": similarity.T}
            if return_loss and self.matching_head is not None:
                matching = self.matching_loss(outputs, scores["matching_logits"], attention_mask)
                losses["matching_loss"] = matching * share
        loss = self.combine_losses(outputs, losses, share) if return_loss else None
        shared = self.shared_fields(VTFusionMatchingOutput, outputs)
        return VTFusionMatchingOutput(loss=loss, **scores, **losses, **shared)


class VTFusionForImageTextRetrieval(_VTFusionWithMatching):
    r"""
    VTFusion that finds images for texts and texts for images: unit vectors to search with, and a matching score of the
    fused pair to rank the best again.

    Args:
        config ([`VTFusionConfig`]): the configuration. A `contrastive_loss_weight` of 0 becomes 1, since the vectors
            are learned by it; `vision_loss_weight` becomes 0, since there is no label to predict.
        vision_model (`PreTrainedModel`, *optional*): a vision encoder to take instead of a random one.
        text_model (`PreTrainedModel`, *optional*): a text encoder to take instead of a random one.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, ResNetConfig
    >>> from vtfusion import VTFusionConfig, VTFusionForImageTextRetrieval

    >>> text = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    >>> model = VTFusionForImageTextRetrieval(VTFusionConfig(text, vision, fusion_hidden_size=16, num_fusion_heads=2))
    >>> texts = model.get_text_features(torch.tensor([[5, 6, 7], [5, 8, 9]])).pooler_output
    >>> images = model.get_image_features(pixel_values=torch.rand(4, 3, 32, 32)).pooler_output
    >>> (texts @ images.T).shape
    torch.Size([2, 4])
    ```
    """

    def __init__(
        self,
        config: VTFusionConfig,
        vision_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
    ):
        config.contrastive_loss_weight = config.contrastive_loss_weight or 1.0
        config.vision_loss_weight = 0.0
        super().__init__(config)
        self.vtfusion = VTFusionModel(config, vision_model, text_model)
        self.matching_head = VTFusionMatchingHead(config.text_config.get_text_config().hidden_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        return_loss: bool = False,
        **inputs: Unpack[VTFusionInputs],
    ) -> VTFusionMatchingOutput:
        r"""
        Args:
            return_loss (`bool`, *optional*, defaults to `False`):
                Whether to compute the losses of a batch in which each text belongs to the image in its row.

        The other arguments are those of [`VTFusionModel.forward`]. As with CLIP, the number of images may differ from
        that of texts: they are then compared by their vectors, and there are no `matching_logits`.
        """
        images = inputs.get("pixel_values") if inputs.get("visual_embeds") is None else inputs["visual_embeds"]
        texts = input_ids if input_ids is not None else inputs.get("inputs_embeds")
        if images is not None and texts is not None and images.shape[0] != texts.shape[0] and not return_loss:
            of_images: Any = {name: value for name, value in inputs.items() if name in IMAGE_INPUTS}
            of_texts: Any = {name: value for name, value in inputs.items() if name not in IMAGE_INPUTS}
            text_embeds = self.get_text_features(input_ids, attention_mask, return_dict=True, **of_texts).pooler_output
            image_embeds = self.get_image_features(return_dict=True, **of_images).pooler_output
            similarity = text_embeds @ image_embeds.T * self.vtfusion.contrastive_scale()
            return VTFusionMatchingOutput(
                logits_per_text=similarity,
                logits_per_image=similarity.T,
                text_embeds=text_embeds,
                image_embeds=image_embeds,
            )
        outputs = self.vtfusion(input_ids, attention_mask, return_dict=True, **inputs)
        return self.match_batch(outputs, attention_mask, return_loss, {})


class VTFusionForPreTraining(_VTFusionWithMatching, _VTFusionWithLMHead):
    r"""
    VTFusion that learns from texts and their pictures without labels: masked words that see the picture
    (`fusion_loss_weight`, `text_loss_weight`), image-text matching with hard negatives (`matching_loss_weight`) and
    the contrastive loss (`contrastive_loss_weight`); a weight of 0 turns one off. Every other head starts from its
    checkpoint.

    Args:
        config ([`VTFusionConfig`]): the configuration. `vision_loss_weight` becomes 0: there is no label for L_v.
        vision_model (`PreTrainedModel`, *optional*): a vision encoder to take instead of a random one.
        text_model (`PreTrainedModel`, *optional*): a text encoder to take instead of a random one.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, ResNetConfig
    >>> from vtfusion import VTFusionConfig, VTFusionForPreTraining

    >>> text = BertConfig(
    ...     vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    ... )
    >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    >>> config = VTFusionConfig(text, vision, fusion_hidden_size=16, num_fusion_heads=2, contrastive_loss_weight=1.0)
    >>> model = VTFusionForPreTraining(config)
    >>> words = torch.tensor([[5, 3, 7], [5, 6, 3]])
    >>> labels = torch.tensor([[-100, 6, -100], [-100, -100, 8]])
    >>> outputs = model(words, pixel_values=torch.rand(2, 3, 32, 32), labels=labels)
    >>> outputs.matching_loss is not None and outputs.contrastive_loss is not None
    True
    ```
    """

    def __init__(
        self,
        config: VTFusionConfig,
        vision_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
    ):
        super().__init__(config, vision_model, text_model)
        if config.matching_loss_weight > 0 and config.contrastive_loss_weight == 0:
            raise ValueError(
                "`matching_loss_weight` needs `contrastive_loss_weight` above 0: hard negatives are found by the vectors "
                "that the contrastive loss learns."
            )
        self.matching_head: Any = (
            VTFusionMatchingHead(config.text_config.get_text_config().hidden_size)
            if config.matching_loss_weight > 0
            else None
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **inputs: Unpack[VTFusionInputs],
    ) -> VTFusionMatchingOutput:
        r"""
        Args:
            labels (`torch.LongTensor` of shape `(B, L)`, *optional*):
                The word that was masked, -100 elsewhere. With them all losses are computed, without them the scores of
                all words.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Number of labels over which the losses of words are averaged, by default those of this batch. The other
                two count by this batch's share of them.

        The other arguments are those of [`VTFusionModel.forward`].
        """
        outputs = self.vtfusion(input_ids, attention_mask, return_dict=True, **inputs)
        if labels is None:
            scores = {"prediction_logits": self.lm_head(outputs.last_hidden_state)}
            return self.match_batch(outputs, attention_mask, return_loss=False, losses={}, **scores)
        words = self.lm_head.decoder.weight.shape[0]
        check_token_labels(labels, tuple(outputs.last_hidden_state.shape[:2]), words)
        count, losses = count_labels(labels, num_items_in_batch), {}
        if self.config.fusion_loss_weight > 0:
            losses["fusion_loss"] = self._masked_lm_loss(outputs.last_hidden_state, labels, count)
        if self.config.text_loss_weight > 0:
            losses["text_loss"] = self._masked_lm_loss(outputs.text_hidden_state, labels, count)
        share = count_labels(labels) / count
        return self.match_batch(outputs, attention_mask, return_loss=True, losses=losses, share=share)

    def _masked_lm_loss(self, hidden_state: torch.Tensor, labels: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        if may_look_at(labels):
            # The scores of all words cost more than the rest of a small model.
            chosen = labels != -100
            hidden_state, labels = hidden_state[chosen], labels[chosen]
        return token_cross_entropy(self.lm_head(hidden_state), labels, count)


VTFusionModel.register_for_auto_class("AutoModel")
VTFusionForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
VTFusionForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
VTFusionForVisualQuestionAnswering.register_for_auto_class("AutoModelForVisualQuestionAnswering")
VTFusionForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
# The Auto class of the models that compare images with texts by `logits_per_image`.
VTFusionForImageTextRetrieval.register_for_auto_class("AutoModelForZeroShotImageClassification")
VTFusionForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
VTFusionForPreTraining.register_for_auto_class("AutoModelForPreTraining")

# The generation wing is imported so that it travels: any folder then serves every class that its `auto_map` names.
__all__ = [
    "VTFusionForConditionalGeneration",
    "VTFusionForImageTextRetrieval",
    "VTFusionForMaskedLM",
    "VTFusionForPreTraining",
    "VTFusionForQuestionAnswering",
    "VTFusionForSequenceClassification",
    "VTFusionForTokenClassification",
    "VTFusionForVisualQuestionAnswering",
    "VTFusionModel",
    "VTFusionPreTrainedModel",
]
