"""What goes into VTFusion's models and what comes out of them."""

from dataclasses import dataclass
from typing import TypedDict

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput


@dataclass
class VTFusionModelOutput(ModelOutput):
    """
    Output of [`VTFusionModel`]. B is the batch size, L the text length, M the number of images of a text, n the number
    of positions (grid cells or regions) of an image, N = M * n, D the width of the fusion layers, R the number of rows that
    went through these.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(B, L, text_hidden_size)`):
            X_f, the fused representation. It stands in for the text encoder's output, and equals it bit for bit in a
            row without an image.
        text_hidden_state (`torch.FloatTensor` of shape `(B, L, text_hidden_size)`):
            X_t, the text encoder's last hidden state.
        visual_hidden_state (`torch.FloatTensor` of shape `(B, N, D)`, *optional*):
            X_v, the projected visual features with their positions. Zero where there is no image; `None` where none was
            given.
        visual_context (`torch.FloatTensor` of shape `(B, L, D)`, *optional*):
            X_c, what each token read from the image in the last fusion layer. Zero in a row without an image.
        fusion_gate (`torch.FloatTensor` of shape `(B, L)`):
            g, from 0 to 1: how much of the fused branch each token lets in. Zero in a row without an image.
        visual_boxes (`torch.FloatTensor` of shape `(B, N, 4)`, *optional*):
            Where each position lies in its own image: (x0, y0, x1, y1) from 0 to 1.
        visual_mask (`torch.BoolTensor` of shape `(B, N)`, *optional*):
            Which positions belong to an image that is there. `None` where all do.
        similarity (`torch.FloatTensor` of shape `(B, heads, L, N)`, *optional*, returned with `output_fusion_attentions=True`):
            S, the cosine of each token and each image position in the last fusion layer. Zero in a row without an image.
        text_to_image_attention (`torch.FloatTensor` of shape `(B, heads, L, N)`, *optional*, returned with `output_fusion_attentions=True`):
            alpha, the softmax of S / tau over the image. Zero in a row without an image.
        image_to_text_attention (`torch.FloatTensor` of shape `(B, heads, N, L)`, *optional*, returned with `output_fusion_attentions=True`):
            The softmax of the same S / tau over the text. Zero at positions that are not there.
        fused_rows (`torch.LongTensor` of shape `(R,)`, *optional*):
            The rows that went through the fusion, where those without an image were left out. `None` where all did.
        image_state (`torch.FloatTensor` of shape `(R, N, D)`, *optional*, returned with `output_alignment=True`):
            The image positions after the last fusion layer, when they have read the text. `None` where the model was
            built with `vision_loss_weight=0`.
        alignment_query (`torch.FloatTensor` of shape `(R, heads, L, D / heads)`, *optional*, returned with `output_alignment=True`):
            Unit vectors of the tokens, divided by the temperature.
        alignment_key (`torch.FloatTensor` of shape `(R, heads, N, D / heads)`, *optional*, returned with `output_alignment=True`):
            Unit vectors of the image positions.
        text_embeds (`torch.FloatTensor` of shape `(B, D)`, *optional*, returned when `config.contrastive_loss_weight > 0`):
            Mean of the projected tokens, as a unit vector.
        image_embeds (`torch.FloatTensor` of shape `(B, D)`, *optional*, returned when `config.contrastive_loss_weight > 0`):
            Mean of X_v over the positions that are there, as a unit vector.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned with `output_hidden_states=True`):
            Hidden states of the text encoder.
        attentions (`tuple(torch.FloatTensor)`, *optional*, returned with `output_attentions=True`):
            Self-attentions of the text encoder.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig
    >>> from vtfusion import VTFusionConfig, VTFusionModel

    >>> text = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    >>> model = VTFusionModel(VTFusionConfig(text, visual_hidden_size=8, fusion_hidden_size=16, num_fusion_heads=2))
    >>> outputs = model(torch.tensor([[5, 6, 7]]), visual_embeds=torch.rand(1, 4, 8), output_fusion_attentions=True)
    >>> outputs.text_to_image_attention.shape, outputs.fusion_gate.shape
    (torch.Size([1, 2, 3, 4]), torch.Size([1, 3]))
    ```
    """

    last_hidden_state: torch.FloatTensor | None = None
    text_hidden_state: torch.FloatTensor | None = None
    visual_hidden_state: torch.FloatTensor | None = None
    visual_context: torch.FloatTensor | None = None
    fusion_gate: torch.FloatTensor | None = None
    visual_boxes: torch.FloatTensor | None = None
    visual_mask: torch.BoolTensor | None = None
    similarity: torch.FloatTensor | None = None
    text_to_image_attention: torch.FloatTensor | None = None
    image_to_text_attention: torch.FloatTensor | None = None
    fused_rows: torch.LongTensor | None = None
    image_state: torch.FloatTensor | None = None
    alignment_query: torch.FloatTensor | None = None
    alignment_key: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class VTFusionClassifierOutput(ModelOutput):
    """
    Output of the heads that classify; the fields they share with [`VTFusionModelOutput`] mean the same.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
            Weighted sum of the losses below.
        logits (`torch.FloatTensor` of shape `(B, L, num_labels)` or `(B, num_labels)`):
            Scores of the fused representation for each token or each text, before the softmax.
        fusion_loss (`torch.FloatTensor` of shape `(1,)`, *optional*): L_ct, the loss of `logits`.
        text_loss (`torch.FloatTensor` of shape `(1,)`, *optional*): L_t, the loss of the same head on X_t.
        vision_loss (`torch.FloatTensor` of shape `(1,)`, *optional*): L_v, see [`vision_loss`] and [`row_vision_loss`].
        contrastive_loss (`torch.FloatTensor` of shape `(1,)`, *optional*): L_itc, see [`contrastive_loss`].
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    fusion_loss: torch.FloatTensor | None = None
    text_loss: torch.FloatTensor | None = None
    vision_loss: torch.FloatTensor | None = None
    contrastive_loss: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    text_hidden_state: torch.FloatTensor | None = None
    visual_hidden_state: torch.FloatTensor | None = None
    visual_context: torch.FloatTensor | None = None
    fusion_gate: torch.FloatTensor | None = None
    visual_boxes: torch.FloatTensor | None = None
    visual_mask: torch.BoolTensor | None = None
    similarity: torch.FloatTensor | None = None
    text_to_image_attention: torch.FloatTensor | None = None
    image_to_text_attention: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class VTFusionQuestionAnsweringOutput(ModelOutput):
    """
    Output of [`VTFusionForQuestionAnswering`]; the other fields mean the same as in [`VTFusionClassifierOutput`].

    Args:
        start_logits (`torch.FloatTensor` of shape `(B, L)`):
            Scores of each token as the answer's first one. The lowest number there is at padding.
        end_logits (`torch.FloatTensor` of shape `(B, L)`):
            Scores of each token as the answer's last one.
    """

    loss: torch.FloatTensor | None = None
    start_logits: torch.FloatTensor | None = None
    end_logits: torch.FloatTensor | None = None
    fusion_loss: torch.FloatTensor | None = None
    text_loss: torch.FloatTensor | None = None
    vision_loss: torch.FloatTensor | None = None
    contrastive_loss: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    text_hidden_state: torch.FloatTensor | None = None
    visual_hidden_state: torch.FloatTensor | None = None
    visual_context: torch.FloatTensor | None = None
    fusion_gate: torch.FloatTensor | None = None
    visual_boxes: torch.FloatTensor | None = None
    visual_mask: torch.BoolTensor | None = None
    similarity: torch.FloatTensor | None = None
    text_to_image_attention: torch.FloatTensor | None = None
    image_to_text_attention: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class VTFusionMatchingOutput(ModelOutput):
    """
    Output of [`VTFusionForImageTextRetrieval`] and [`VTFusionForPreTraining`]; the other fields mean the same as in
    [`VTFusionModelOutput`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*): Weighted sum of the losses below.
        matching_logits (`torch.FloatTensor` of shape `(B,)`):
            How well each text and its image belong together, before the sigmoid. Means nothing in a row without one.
        prediction_logits (`torch.FloatTensor` of shape `(B, L, vocab_size)`, *optional*):
            Scores of the masked language model from the fused representation. Of [`VTFusionForPreTraining`] without
            `labels`.
        logits_per_text (`torch.FloatTensor` of shape `(B, B)`, *optional*):
            Cosine of each text and each image over the temperature.
        logits_per_image (`torch.FloatTensor` of shape `(B, B)`, *optional*): Its transpose.
        matching_loss (`torch.FloatTensor` of shape `(1,)`, *optional*): Of pairs that belong together and hard ones that do not.
        contrastive_loss (`torch.FloatTensor` of shape `(1,)`, *optional*): L_itc, see [`contrastive_loss`].
        fusion_loss (`torch.FloatTensor` of shape `(1,)`, *optional*): L_ct, of masked words that the image is given for.
        text_loss (`torch.FloatTensor` of shape `(1,)`, *optional*): L_t, of masked words from the text alone.
        text_embeds (`torch.FloatTensor` of shape `(B, D)`): Unit vectors of the texts.
        image_embeds (`torch.FloatTensor` of shape `(B, D)`, *optional*): Unit vectors of the images.
    """

    loss: torch.FloatTensor | None = None
    matching_logits: torch.FloatTensor | None = None
    prediction_logits: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    logits_per_image: torch.FloatTensor | None = None
    matching_loss: torch.FloatTensor | None = None
    fusion_loss: torch.FloatTensor | None = None
    text_loss: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    contrastive_loss: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    text_hidden_state: torch.FloatTensor | None = None
    visual_hidden_state: torch.FloatTensor | None = None
    visual_context: torch.FloatTensor | None = None
    fusion_gate: torch.FloatTensor | None = None
    visual_boxes: torch.FloatTensor | None = None
    visual_mask: torch.BoolTensor | None = None
    similarity: torch.FloatTensor | None = None
    text_to_image_attention: torch.FloatTensor | None = None
    image_to_text_attention: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class VTFusionCausalLMOutput(CausalLMOutputWithPast):
    """
    Output of [`VTFusionForConditionalGeneration`]. B is the batch size, L the text length, N the number of image
    positions (of learned queries, with a resampler), D the width of the fusion layers.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
            Weighted sum of the losses below.
        logits (`torch.FloatTensor` of shape `(B, L, vocab_size)`):
            Scores of the next token, before the softmax.
        fusion_loss (`torch.FloatTensor` of shape `(1,)`, *optional*): L_ct, of the next token with the images.
        text_loss (`torch.FloatTensor` of shape `(1,)`, *optional*): L_t, of the next token without them.
        vision_loss (`torch.FloatTensor` of shape `(1,)`, *optional*): L_v, of the next token from image positions alone.
        cache (`Cache`, *optional*, returned with `use_cache=True`):
            Keys and values of the text so far. Called `past_key_values` in older versions of transformers.
        fusion_gate (`torch.FloatTensor` of shape `(B, L)`, *optional*):
            How much of the fused branch each token lets in, from 0 to 1: the mean of the blocks. Zero where a token may
            look at no image; `None` without images.
        visual_hidden_state (`torch.FloatTensor` of shape `(B, N, D)`, *optional*):
            X_v, where the images were encoded in this pass.
        text_to_image_attention (`torch.FloatTensor` of shape `(B, heads, L, N)`, *optional*, returned with `output_fusion_attentions=True`):
            Attention of the last block. Zero where a token may look at no image.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned with `output_hidden_states=True`):
            Hidden states of the language model.
        attentions (`tuple(torch.FloatTensor)`, *optional*, returned with `output_attentions=True`):
            Self-attentions of the language model.
    """

    fusion_loss: torch.FloatTensor | None = None
    text_loss: torch.FloatTensor | None = None
    vision_loss: torch.FloatTensor | None = None
    fusion_gate: torch.FloatTensor | None = None
    visual_hidden_state: torch.FloatTensor | None = None
    text_to_image_attention: torch.FloatTensor | None = None


# The arguments of `VTFusionVisionModel.visual_inputs` by which images come.
IMAGE_INPUTS = ("pixel_values", "image_mask", "pixel_mask", "visual_embeds", "visual_boxes", "visual_mask")


class VTFusionInputs(TypedDict, total=False):
    """What every head passes on to [`VTFusionModel.forward`], which describes them."""

    token_type_ids: torch.LongTensor | None
    position_ids: torch.LongTensor | None
    inputs_embeds: torch.FloatTensor | None
    pixel_values: torch.FloatTensor | None
    image_mask: torch.Tensor | None
    pixel_mask: torch.Tensor | None
    visual_embeds: torch.FloatTensor | None
    visual_boxes: torch.FloatTensor | None
    visual_mask: torch.Tensor | None
    output_attentions: bool | None
    output_hidden_states: bool | None
    output_fusion_attentions: bool | None


__all__ = [
    "IMAGE_INPUTS",
    "VTFusionCausalLMOutput",
    "VTFusionClassifierOutput",
    "VTFusionInputs",
    "VTFusionMatchingOutput",
    "VTFusionModelOutput",
    "VTFusionQuestionAnsweringOutput",
]
