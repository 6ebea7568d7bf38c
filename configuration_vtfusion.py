"""VTFusion configuration: what can be chosen."""

import math
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, BertConfig, PreTrainedConfig, ViTConfig
from transformers.activations import ACT2FN


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
        kwargs (*optional*):
            What every `PreTrainedConfig` takes, for example `num_labels`, `id2label`, `label2id`.

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

        counts = {
            "fusion_hidden_size": (fusion_hidden_size, 1),
            "num_fusion_layers": (num_fusion_layers, 1),
            "num_fusion_heads": (num_fusion_heads, 1),
            "cross_attention_every": (cross_attention_every, 1),
            "num_resampler_tokens": (num_resampler_tokens, 0),
        }
        optional_counts = {
            "visual_hidden_size": (visual_hidden_size, 1),
            "vision_num_prefix_tokens": (vision_num_prefix_tokens, 0),
            "fusion_intermediate_size": (fusion_intermediate_size, 1),
        }
        counts |= {name: (count, least) for name, (count, least) in optional_counts.items() if count is not None}
        for name, (count, least) in counts.items():
            if not isinstance(count, int) or isinstance(count, bool):
                raise ValueError(f"`{name}` must be a whole number, got {count!r}.")
            if count < least:
                raise ValueError(f"`{name}` must {'be at least 1' if least else 'not be negative'}, got {count}.")
        if fusion_hidden_size % num_fusion_heads != 0:
            raise ValueError(
                f"`fusion_hidden_size` ({fusion_hidden_size}) must be a multiple of `num_fusion_heads` "
                f"({num_fusion_heads})."
            )
        if not _is_number(temperature_init) or temperature_init <= 0:
            raise ValueError(f"`temperature_init` must be positive and finite, got {temperature_init!r}.")
        shares = {
            "fusion_dropout": fusion_dropout,
            "classifier_dropout": classifier_dropout,
            "image_dropout": image_dropout,
            "label_smoothing": label_smoothing,
        }
        for name, share in shares.items():
            if not _is_number(share) or not 0 <= share < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1, got {share!r}.")
        weights = {
            "fusion_loss_weight": fusion_loss_weight,
            "text_loss_weight": text_loss_weight,
            "vision_loss_weight": vision_loss_weight,
            "contrastive_loss_weight": contrastive_loss_weight,
            "matching_loss_weight": matching_loss_weight,
            "initializer_range": initializer_range,
        }
        for name, weight in weights.items():
            if not _is_number(weight) or weight < 0:
                raise ValueError(f"`{name}` must be finite and must not be negative, got {weight!r}.")
        if pooling not in ("mean", "first", "last"):
            raise ValueError(f"`pooling` must be 'mean', 'first' or 'last', got {pooling!r}.")
        if fusion_hidden_act not in ACT2FN:
            raise ValueError(f"`fusion_hidden_act` must be one of {', '.join(ACT2FN)}, got {fusion_hidden_act!r}.")
        self.fusion_hidden_size = fusion_hidden_size
        self.fusion_intermediate_size = fusion_intermediate_size or 2 * fusion_hidden_size
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
        if class_weights is not None and not (
            isinstance(class_weights, list | tuple)
            and all(_is_number(weight) and weight >= 0 for weight in class_weights)
        ):
            raise ValueError(f"`class_weights` must be finite numbers that are not negative, got {class_weights!r}.")
        if class_weights is not None and len(class_weights) != self.num_labels:
            raise ValueError(f"`class_weights` has {len(class_weights)} numbers for {self.num_labels} labels.")
        # `save_pretrained` records only the class that was saved, and only an instance attribute reaches the JSON
        # file. The whole map makes every head and the processor load from one folder.
        self.auto_map = {
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


VTFusionConfig.register_for_auto_class()

__all__ = ["VTFusionConfig"]
