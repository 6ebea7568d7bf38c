"""VTFusion without labels: masked words, image-text matching and retrieval, and the pretraining that joins them."""

from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_vtfusion import VTFusionConfig
from .fusion_vtfusion import binary_loss, count_labels, hard_negatives, masked_mean, token_cross_entropy
from .modeling_vtfusion import (
    IMAGE_INPUTS,
    VTFusionClassifierOutput,
    VTFusionInputs,
    VTFusionModel,
    VTFusionModelOutput,
    VTFusionPreTrainedModel,
    check_token_labels,
)


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
        return self.decoder(self.norm(self.activation(self.transform(hidden_state))))


class _VTFusionWithLMHead(VTFusionPreTrainedModel):
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
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
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


class _VTFusionWithMatching(VTFusionPreTrainedModel):
    """What the heads share that tell whether a text and an image belong together."""

    vtfusion: VTFusionModel
    matching_head: nn.Module

    def get_text_features(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **inputs: Unpack[VTFusionInputs],
    ) -> torch.FloatTensor:
        """Unit vectors `(B, D)` of texts, to be compared with [`get_image_features`]; arguments of the base model."""
        outputs = self.vtfusion(input_ids, attention_mask, return_dict=True, **inputs)
        return self.vtfusion.pool_text(
            outputs.text_hidden_state, None if attention_mask is None else attention_mask.bool()
        )

    def get_image_features(self, **inputs: Unpack[VTFusionInputs]) -> torch.FloatTensor:
        """
        Unit vectors `(B, D)` of images, to be compared with [`get_text_features`]; zero where there is no image.

        Args:
            inputs: `pixel_values` or `visual_embeds` of [`VTFusionModel.forward`], with their masks and boxes.
        """
        return self.vtfusion.encode_images(**inputs)

    def match(self, outputs: VTFusionModelOutput, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Logits `(B,)` of a text and its image belonging together."""
        mask = None if attention_mask is None else attention_mask.bool()
        return self.matching_head(masked_mean(outputs.last_hidden_state, mask)).squeeze(-1)

    def matching_loss(self, outputs: Any, logits: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """
        Binary cross-entropy of the pairs of the batch, and of each text with a hard negative image and each image with
        a hard negative text: drawn from the batch, the likelier the more alike they are (ALBEF, 2107.07651).
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
        for texts, images in hard_negatives(similarity, has_image):
            fused, _ = self.vtfusion.fuse(
                outputs.text_hidden_state[texts],
                None if mask is None else mask[texts],
                outputs.visual_hidden_state[images],
                None if outputs.visual_mask is None else outputs.visual_mask[images],
            )
            pooled = masked_mean(fused["last_hidden_state"], None if mask is None else mask[texts])
            # A row that is the only one with an image was given itself: that pair does belong together.
            negative = has_image & (texts != images)
            total = total + binary_loss(self.matching_head(pooled).squeeze(-1), negative, positive=False)
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
    >>> texts = model.get_text_features(torch.tensor([[5, 6, 7], [5, 8, 9]]))
    >>> images = model.get_image_features(pixel_values=torch.rand(4, 3, 32, 32))
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
        self.matching_head = nn.Linear(config.text_config.get_text_config().hidden_size, 1)
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
            text_embeds = self.get_text_features(input_ids, attention_mask, **of_texts)
            image_embeds = self.get_image_features(**of_images)
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
            nn.Linear(config.text_config.get_text_config().hidden_size, 1) if config.matching_loss_weight > 0 else None
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
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            # The scores of all words cost more than the rest of a small model; an accelerator would have to be
            # waited for to know where they are wanted.
            chosen = labels != -100
            hidden_state, labels = hidden_state[chosen], labels[chosen]
        return token_cross_entropy(self.lm_head(hidden_state), labels, count)


# The Auto class of the models that compare images with texts by `logits_per_image`.
VTFusionForImageTextRetrieval.register_for_auto_class("AutoModelForZeroShotImageClassification")
VTFusionForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
VTFusionForPreTraining.register_for_auto_class("AutoModelForPreTraining")

__all__ = ["VTFusionForImageTextRetrieval", "VTFusionForMaskedLM", "VTFusionForPreTraining"]
