"""VTFusion configuration: what can be chosen."""

import math
from collections.abc import Callable
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, BertConfig, PreTrainedConfig, ViTConfig
from transformers.activations import ACT2FN


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_weight(value: Any) -> bool:
    return _is_number(value) and value >= 0


_POSITIVE = (
    *("fusion_hidden_size", "num_fusion_layers", "num_fusion_heads", "cross_attention_every"),
    *("visual_hidden_size", "fusion_intermediate_size"),
)
_NOT_NEGATIVE = ("num_resampler_tokens", "vision_num_prefix_tokens")
_OPTIONAL = ("visual_hidden_size", "fusion_intermediate_size", "vision_num_prefix_tokens", "class_weights")
# Settings, what must hold of each, and how that is said.
_RULES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        (*_POSITIVE, *_NOT_NEGATIVE),
        lambda count: isinstance(count, int) and not isinstance(count, bool),
        "must be a whole number",
    ),
    (_POSITIVE, lambda count: count >= 1, "must be at least 1"),
    (_NOT_NEGATIVE, lambda count: count >= 0, "must not be negative"),
    (("temperature_init",), lambda tau: _is_number(tau) and 0.01 <= tau <= 100, "must be from 0.01 to 100"),
    (
        ("fusion_dropout", "classifier_dropout", "image_dropout", "label_smoothing"),
        lambda share: _is_number(share) and 0 <= share < 1,
        "must be at least 0 and below 1",
    ),
    (
        (
            *("fusion_loss_weight", "text_loss_weight", "vision_loss_weight", "contrastive_loss_weight"),
            *("matching_loss_weight", "initializer_range"),
        ),
        _is_weight,
        "must be finite and must not be negative",
    ),
    (("pooling",), lambda how: how in ("mean", "first", "last"), "must be 'mean', 'first' or 'last'"),
    (("fusion_hidden_act",), lambda name: name in ACT2FN, f"must be one of {', '.join(ACT2FN)}"),
    (
        ("class_weights",),
        lambda weights: isinstance(weights, list | tuple) and all(map(_is_weight, weights)),
        "must be finite numbers that are not negative",
    ),
)

# Where each class is. `save_pretrained` records only the class that was saved, and only an instance attribute reaches
# the JSON file: the whole map on every instance makes every head and the processor load from one folder.
_AUTO_MAP = {
    "AutoConfig": "configuration_vtfusion.VTFusionConfig",
    "AutoModel": "modeling_vtfusion.VTFusionModel",
    "AutoModelForTokenClassification": "modeling_vtfusion.VTFusionForTokenClassification",
    "AutoModelForSequenceClassification": "modeling_vtfusion.VTFusionForSequenceClassification",
    "AutoModelForQuestionAnswering": "modeling_vtfusion.VTFusionForQuestionAnswering",
    "AutoModelForVisualQuestionAnswering": "modeling_vtfusion.VTFusionForVisualQuestionAnswering",
    "AutoModelForMaskedLM": "modeling_vtfusion.VTFusionForMaskedLM",
    "AutoModelForZeroShotImageClassification": "modeling_vtfusion.VTFusionForImageTextRetrieval",
    "AutoModelForPreTraining": "modeling_vtfusion.VTFusionForPreTraining",
    "AutoModelForImageTextToText": "generation_vtfusion.VTFusionForConditionalGeneration",
    "AutoModelForCausalLM": "generation_vtfusion.VTFusionForConditionalGeneration",
    "AutoProcessor": "processing_vtfusion.VTFusionProcessor",
}


class VTFusionConfig(PreTrainedConfig):
    r"""
    Configuration of a VTFusion model: a text encoder, a vision encoder, and the visual-text cross-attention that
    joins them.

    Args:
        text_config (`PreTrainedConfig` or `dict`, *optional*, defaults to `BertConfig()`):
            Configuration of the text encoder: any model that `AutoModel` builds and that is not an encoder-decoder, or
            the encoder of T5 and its kin; of the generation model, a decoder language model. A `dict` needs the key
            `model_type`.
        vision_config (`PreTrainedConfig` or `dict`, *optional*, defaults to `ViTConfig()`):
            Configuration of the vision encoder: any CNN, vision transformer, backbone or object detector that
            `AutoModel`, `AutoBackbone` or `AutoModelForObjectDetection` builds. With `visual_hidden_size` given and
            `vision_config` left out, the model has no vision encoder and reads precomputed `visual_embeds`.
        visual_hidden_size (`int`, *optional*):
            Width of the visual features. Read off the vision encoder where there is one.
        vision_num_prefix_tokens (`int`, *optional*):
            How many tokens (`[CLS]`, registers) a vision transformer puts before its grid. Derived from the image and
            patch size when left out; only unusual encoders need it.
        fusion_hidden_size (`int`, *optional*, defaults to 256):
            Width D of the space that text and image share.
        fusion_intermediate_size (`int`, *optional*):
            Width of the feed-forward of a fusion layer; `2 * fusion_hidden_size` when left out.
        num_fusion_layers (`int`, *optional*, defaults to 1):
            Number of fusion layers, each with both directions of attention and a feed-forward.
        num_fusion_heads (`int`, *optional*, defaults to 4):
            Number of attention heads of a fusion layer.
        fusion_hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward.
        fusion_dropout (`float`, *optional*, defaults to 0.1):
            Dropout on what a fusion layer adds.
        classifier_dropout (`float`, *optional*, defaults to 0.1):
            Dropout before a task head.
        image_dropout (`float`, *optional*, defaults to 0.0):
            Probability with which a row loses all its images in a training step, so that the model stays good on rows
            without one. A row that loses them gets the text-only result, as any row without an image.
        temperature_init (`float`, *optional*, defaults to 0.1):
            Initial temperature τ of every head: attention is softmax(cosine / τ). It is learned, between
            bounds of 0.01 and 100.
        fusion_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the loss of the fused representation, L_ct.
        text_loss_weight (`float`, *optional*, defaults to 0.5):
            Weight of the loss of the text alone, L_t. It keeps the model good on rows without an image.
        vision_loss_weight (`float`, *optional*, defaults to 0.1):
            Weight of the loss of what each image position would predict, L_v. At zero, the last fusion layer has no
            image side, since nothing would read it.
        contrastive_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of the symmetric contrastive loss between pooled text and pooled image, L_itc.
        matching_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of image-text matching with hard negatives, in the heads for retrieval and pretraining.
        pooling (`str`, *optional*, defaults to `"mean"`):
            How the heads that judge a whole text make one vector of its tokens: their `"mean"`, the `"first"` token or
            the `"last"`.
        class_weights (`list[float]`, *optional*):
            Weight of each label in the cross-entropy of L_ct and L_t, against classes of unequal size. Of the heads
            that classify tokens, texts or answers.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            The part of a label's probability that is spread over all labels, in L_ct and L_t of the same heads.
        cross_attention_every (`int`, *optional*, defaults to 4):
            Of the generation model: k, where a block of cross-attention stands before each k-th layer of the language
            model.
        num_resampler_tokens (`int`, *optional*, defaults to 0):
            Of the generation model: to how many vectors a learned resampler shortens each image; 0 for no resampler.
        output_fusion_attentions (`bool`, *optional*, defaults to `False`):
            Whether outputs carry the similarity and the attention maps of the last fusion layer.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights of the fusion part and of the heads.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`):
            Whether the word embeddings are the output matrix too, in the heads that predict words.
        kwargs (*optional*):
            What every `PreTrainedConfig` takes, for example `num_labels`, `id2label`, `label2id`.

    Raises:
        ValueError: naming the setting, if it is not what is said above.

    Example:

    ```python
    >>> from transformers import BertConfig, ResNetConfig
    >>> from vtfusion import VTFusionConfig

    >>> config = VTFusionConfig(text_config=BertConfig(), vision_config=ResNetConfig(), num_fusion_layers=2)
    >>> config.vision_config.model_type
    'resnet'
    ```
    """

    model_type = "vtfusion"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}
    # Trainer gathers every other output, logits and gate, over the whole evaluation set
    keys_to_ignore_at_inference = [
        "fusion_loss",
        "text_loss",
        "vision_loss",
        "contrastive_loss",
        "matching_loss",
        "logits_per_text",
        "logits_per_image",
        "text_embeds",
        "image_embeds",
        "last_hidden_state",
        "text_hidden_state",
        "visual_hidden_state",
        "visual_context",
        "visual_boxes",
        "visual_mask",
        "similarity",
        "text_to_image_attention",
        "image_to_text_attention",
        "hidden_states",
        "attentions",
    ]

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        vision_config: PreTrainedConfig | dict[str, Any] | None = None,
        visual_hidden_size: int | None = None,
        vision_num_prefix_tokens: int | None = None,
        fusion_hidden_size: int = 256,
        fusion_intermediate_size: int | None = None,
        num_fusion_layers: int = 1,
        num_fusion_heads: int = 4,
        fusion_hidden_act: str = "gelu",
        fusion_dropout: float = 0.1,
        classifier_dropout: float = 0.1,
        image_dropout: float = 0.0,
        temperature_init: float = 0.1,
        fusion_loss_weight: float = 1.0,
        text_loss_weight: float = 0.5,
        vision_loss_weight: float = 0.1,
        contrastive_loss_weight: float = 0.0,
        matching_loss_weight: float = 1.0,
        pooling: str = "mean",
        class_weights: list[float] | None = None,
        label_smoothing: float = 0.0,
        cross_attention_every: int = 4,
        num_resampler_tokens: int = 0,
        output_fusion_attentions: bool = False,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ):
        if text_config is None:
            text_config = BertConfig()
        if vision_config is None and visual_hidden_size is None:
            vision_config = ViTConfig()
        self.text_config = self._as_config(text_config, "text_config")
        self.vision_config = None if vision_config is None else self._as_config(vision_config, "vision_config")
        self.visual_hidden_size = visual_hidden_size
        self.vision_num_prefix_tokens = vision_num_prefix_tokens
        self.fusion_hidden_size = fusion_hidden_size
        self.fusion_intermediate_size = fusion_intermediate_size
        self.num_fusion_layers = num_fusion_layers
        self.num_fusion_heads = num_fusion_heads
        self.fusion_hidden_act = fusion_hidden_act
        self.fusion_dropout = fusion_dropout
        self.classifier_dropout = classifier_dropout
        self.image_dropout = image_dropout
        self.temperature_init = temperature_init
        self.fusion_loss_weight = fusion_loss_weight
        self.text_loss_weight = text_loss_weight
        self.vision_loss_weight = vision_loss_weight
        self.contrastive_loss_weight = contrastive_loss_weight
        self.matching_loss_weight = matching_loss_weight
        self.pooling = pooling
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing
        self.cross_attention_every = cross_attention_every
        self.num_resampler_tokens = num_resampler_tokens
        self.output_fusion_attentions = output_fusion_attentions
        self.initializer_range = initializer_range
        self.tie_word_embeddings = tie_word_embeddings
        # A saved config carries the map of the repository it came from; ours always names the files beside it.
        kwargs.pop("auto_map", None)
        # `None` would be written into both parts, and an encoder that was built already would then attend without its
        # causal or padding mask. An empty map leaves each part what it has.
        for name in ("attn_implementation", "experts_implementation"):
            if kwargs.get(name) is None:
                kwargs[name] = {}
        super().__init__(**kwargs)
        self._check()
        if fusion_intermediate_size is None:
            self.fusion_intermediate_size = 2 * fusion_hidden_size
        self.auto_map = dict(_AUTO_MAP)

    def _check(self) -> None:
        for names, holds, what in _RULES:
            for name in names:
                value = getattr(self, name)
                if not (value is None and name in _OPTIONAL) and not holds(value):
                    raise ValueError(f"`{name}` {what}, got {value!r}.")
        if self.fusion_hidden_size % self.num_fusion_heads != 0:
            raise ValueError(
                f"`fusion_hidden_size` ({self.fusion_hidden_size}) must be a multiple of `num_fusion_heads` "
                f"({self.num_fusion_heads})."
            )
        if self.class_weights is not None and len(self.class_weights) != self.num_labels:
            raise ValueError(f"`class_weights` has {len(self.class_weights)} numbers for {self.num_labels} labels.")

    @staticmethod
    def _as_config(config: PreTrainedConfig | dict[str, Any], name: str) -> PreTrainedConfig:
        if isinstance(config, PreTrainedConfig):
            return config
        if not isinstance(config, dict):
            raise ValueError(f"`{name}` must be a `PreTrainedConfig` or a dict, got {config!r}.")
        values = dict(config)
        model_type = values.pop("model_type", None)
        if model_type is None:
            raise ValueError(f"`{name}` was given as a dict without `model_type`, for example 'bert' or 'resnet'.")
        if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
            raise ValueError(
                f"`{name}` has the `model_type` {model_type!r}, which transformers {transformers.__version__} does not know."
            )
        return AutoConfig.for_model(model_type, **values)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """Configuration of the text part, which has the vocabulary and the word embeddings."""
        return self.text_config


VTFusionConfig.register_for_auto_class()

__all__ = ["VTFusionConfig"]
