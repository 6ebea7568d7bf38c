"""From command-line arguments to a model with its processor, for every task script."""

import copy
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
from transformers.utils import logging

from ..modeling_vtfusion import VTFusionPreTrainedModel
from ..processing_vtfusion import VTFusionProcessor
from .arguments import ModelArguments
from .columns import TrainedLabels
from .lora import add_lora

logger = logging.get_logger(__name__)

# What decides the shapes of the weights cannot change in a model that has them.
_SHAPES = (
    "fusion_hidden_size",
    "num_fusion_layers",
    "num_fusion_heads",
    "cross_attention_every",
    "num_resampler_tokens",
)
_LOSS_WEIGHTS = (
    "fusion_loss_weight",
    "text_loss_weight",
    "vision_loss_weight",
    "contrastive_loss_weight",
    "matching_loss_weight",
)
_SETTINGS = ("fusion_dropout", "image_dropout", *_LOSS_WEIGHTS, "pooling", "class_weights", "label_smoothing")
# Heads that learn without labels. Their loss weights are of words, matching and search, and none of them has L_v.
_WITHOUT_LABELS = ("VTFusionForMaskedLM", "VTFusionForPreTraining", "VTFusionForImageTextRetrieval")
_WHOLE_TEXT = ("VTFusionForSequenceClassification", "VTFusionForVisualQuestionAnswering")
_WITH_CLASSES = ("VTFusionForTokenClassification", *_WHOLE_TEXT)
_GENERATION = "VTFusionForConditionalGeneration"
_WITH_VISION_LOSS = ("VTFusionForQuestionAnswering", _GENERATION, *_WITH_CLASSES)
_WITH_TEXT_LOSS = ("VTFusionForMaskedLM", "VTFusionForPreTraining", *_WITH_VISION_LOSS)
# Settings that only some heads read, with these heads.
_READ_BY = {
    "pooling": _WHOLE_TEXT,
    "class_weights": _WITH_CLASSES,
    "label_smoothing": (_GENERATION, *_WITH_CLASSES),
    "cross_attention_every": (_GENERATION,),
    "num_resampler_tokens": (_GENERATION,),
    "fusion_loss_weight": _WITH_TEXT_LOSS,
    "text_loss_weight": _WITH_TEXT_LOSS,
    "vision_loss_weight": _WITH_VISION_LOSS,
    "matching_loss_weight": ("VTFusionForPreTraining", "VTFusionForImageTextRetrieval"),
}

Model = TypeVar("Model", bound=VTFusionPreTrainedModel)


def load_model(
    model_class: type[Model],
    args: ModelArguments,
    label_names: Sequence[str] = (),
    processor_settings: dict[str, Any] | None = None,
    **config: Any,
) -> tuple[Model, VTFusionProcessor]:
    """
    The model and its processor: a VTFusion checkpoint to go on with, or two encoders joined.

    Args:
        model_class (`type`): a head, such as [`VTFusionForTokenClassification`].
        args ([`ModelArguments`]): what to load. Flags that were left out keep what a checkpoint has; the loss weights
            of one that another head learned without labels (pretraining) are those of a new model again, L_v included.
        label_names (`Sequence[str]`, *optional*): the labels. A head for others gets new weights.
        processor_settings (`dict`, *optional*): further settings of a new [`VTFusionProcessor`], such as `image_token`.
        config (*optional*): further settings of [`VTFusionConfig`] that the task has, such as `problem_type`.

    Returns:
        `tuple` of the model and its [`VTFusionProcessor`].

    Raises:
        `ValueError`: neither or both of checkpoint and encoders are given, or a flag does not fit the head or a
            checkpoint.
    """
    unread = [
        name
        for name, heads in _READ_BY.items()
        if getattr(args, name) is not None and model_class.__name__ not in heads
    ]
    if unread:
        raise ValueError(f"`{'`, `'.join(unread)}` would do nothing: {model_class.__name__} does not read it.")
    labels = dict(config)
    if label_names:
        labels["id2label"] = dict(enumerate(label_names))
        labels["label2id"] = {name: i for i, name in enumerate(label_names)}
    chosen = {name: getattr(args, name) for name in (*_SHAPES, *_SETTINGS) if getattr(args, name) is not None}
    if args.model_name_or_path is not None:
        model, processor = _load_checkpoint(model_class, args, chosen, labels)
    else:
        model, processor = _join_encoders(model_class, args, chosen, labels, processor_settings or {})
    if args.use_lora:
        settings: dict[str, Any] = {"rank": args.lora_rank, "alpha": args.lora_alpha, "dropout": args.lora_dropout}
        add_lora(model.base_model.text_model, **{name: x for name, x in settings.items() if x is not None})
    if args.freeze_text:
        model.freeze_text_encoder()
    if args.freeze_vision:
        model.freeze_vision_encoder()
    return model, processor


def _load_checkpoint(
    model_class: type[Model], args: ModelArguments, chosen: dict[str, Any], labels: dict[str, Any]
) -> tuple[Model, VTFusionProcessor]:
    if args.text_model or args.vision_model:
        raise ValueError("Give `model_name_or_path`, or `text_model` and `vision_model`, not both.")
    fixed = [name for name in _SHAPES if name in chosen]
    if fixed:
        raise ValueError(
            f"`{'`, `'.join(fixed)}` cannot change: the weights of {args.model_name_or_path} have their shapes. Leave "
            "it out, or start from `text_model` and `vision_model`."
        )
    processor = VTFusionProcessor.from_pretrained(args.model_name_or_path, revision=args.model_revision)
    if args.max_length is not None:
        processor.window_length = args.max_length
    if args.window_stride is not None:
        processor.window_stride = args.window_stride
    settings = {**_fresh_loss_weights(model_class, args), **chosen, **labels}
    trained = trained_labels(args.model_name_or_path, args.model_revision)
    names = list(labels.get("id2label", {}).values())
    known = [] if trained is None else trained.names
    if names != known:
        # those that were learned with belong to other labels
        settings.setdefault("class_weights", None)
    model = model_class.from_pretrained(
        args.model_name_or_path, revision=args.model_revision, ignore_mismatched_sizes=True, **settings
    )
    # of more or fewer labels `from_pretrained` has drawn new weights already
    if len(names) == len(known) and names != known and checkpoint_head(args) in _WITH_CLASSES:
        logger.warning(
            "%s was trained on %s: its head begins anew for %s.",
            args.model_name_or_path,
            ", ".join(known),
            ", ".join(names),
        )
        _renew_weights_of_labels(model)
    return model, processor


def _renew_weights_of_labels(model: VTFusionPreTrainedModel) -> None:
    """New weights where each label has its own, drawn as in a new model: what belonged to one would mean another."""
    with torch.device("meta"):
        configs = [copy.deepcopy(model.config) for _ in range(2)]
        for num_labels, config in enumerate(configs, start=2):
            config.class_weights, config.num_labels = None, num_labels
        few, more = (type(model)(config) for config in configs)
    for path, module in model.named_modules():
        names = [name for name, _ in module.named_parameters(recurse=False)]
        shapes = [{name: part.get_submodule(path).get_parameter(name).shape for name in names} for part in (few, more)]
        if shapes[0] != shapes[1]:
            for name in names:
                # weights that were loaded are marked, and not drawn again
                setattr(module, name, torch.nn.Parameter(torch.empty_like(module.get_parameter(name))))
            model._init_weights(module)


def checkpoint_head(args: ModelArguments) -> str | None:
    """The class that `model_name_or_path` was saved from; `None` where two encoders are joined."""
    if args.model_name_or_path is None:
        return None
    config = AutoConfig.from_pretrained(args.model_name_or_path, revision=args.model_revision)
    return (config.architectures or [None])[0]


def trained_labels(model_name_or_path: str | None, model_revision: str) -> TrainedLabels | None:
    """
    What a checkpoint learned to tell apart; `None` where there is no checkpoint.

    Args:
        model_name_or_path (`str`, *optional*): the model.
        model_revision (`str`): its branch, tag or commit.
    """
    if model_name_or_path is None:
        return None
    config = AutoConfig.from_pretrained(model_name_or_path, revision=model_revision)
    return TrainedLabels([config.id2label[index] for index in range(config.num_labels)], config.problem_type)


def _fresh_loss_weights(model_class: type[VTFusionPreTrainedModel], args: ModelArguments) -> dict[str, float]:
    """The loss weights of a new model, where those of the checkpoint are about something else than what comes now."""
    head = checkpoint_head(args)
    if head not in _WITHOUT_LABELS or head == model_class.__name__:
        return {}
    config = model_class.config_class()
    weights = {name: getattr(config, name) for name in _LOSS_WEIGHTS}
    logger.warning(
        "%s was trained as %s: its loss weights are not taken over. Those that you do not give are %s.",
        args.model_name_or_path,
        head,
        ", ".join(f"{name} {weight:g}" for name, weight in weights.items()),
    )
    return weights


def _join_encoders(
    model_class: type[Model],
    args: ModelArguments,
    chosen: dict[str, Any],
    labels: dict[str, Any],
    processor_settings: dict[str, Any],
) -> tuple[Model, VTFusionProcessor]:
    if args.text_model is None or args.vision_model is None:
        raise ValueError("Give `text_model` and `vision_model`, or a VTFusion model as `model_name_or_path`.")
    trust = {"trust_remote_code": args.trust_remote_code}
    model = model_class.from_vision_text_pretrained(
        args.vision_model, args.text_model, vision_kwargs=trust, text_kwargs=trust, **chosen, **labels
    )
    parts: list[Any] = [model.config.text_config, model.config.vision_config]
    for config in parts:
        # A Hub id tells where an encoder comes from; a folder of this machine tells others nothing.
        if os.path.isdir(config.name_or_path):
            config.name_or_path = os.path.basename(os.path.normpath(config.name_or_path))
    tokenizer = AutoTokenizer.from_pretrained(args.text_model, **trust)
    if tokenizer.pad_token is None:
        # a language model that was never batched; the mask hides the padding
        tokenizer.pad_token = tokenizer.eos_token
    limits = [tokenizer.model_max_length, getattr(model.config.text_config, "max_position_embeddings", None)]
    stride: dict[str, Any] = {} if args.window_stride is None else {"window_stride": args.window_stride}
    processor = VTFusionProcessor(
        image_processor=AutoImageProcessor.from_pretrained(args.vision_model, **trust),
        tokenizer=tokenizer,
        window_length=args.max_length or min(limit for limit in limits if limit),
        **stride,
        **processor_settings,
    )
    return model, processor
