"""Every head with labels that it takes: what all of them promise is tested on each of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tiny import randomize_fusion, tiny_config
from vtfusion import (
    VTFusionForImageTextRetrieval,
    VTFusionForMaskedLM,
    VTFusionForPreTraining,
    VTFusionForQuestionAnswering,
    VTFusionForSequenceClassification,
    VTFusionForTokenClassification,
    VTFusionForVisualQuestionAnswering,
    VTFusionPreTrainedModel,
)

LENGTH = 7


@dataclass(frozen=True)
class Head:
    """
    Args:
        model (`type`): The class.
        auto_class (`str`): What loads it.
        labels (`Callable`): From a batch size to the arguments that make it compute a loss, for `tiny_inputs`.
        predictions (`tuple[str, ...]`): The fields of its output that depend on one row alone.
        own (`set[str]`): The names of its modules beside the base model.
        config (`dict[str, Any]`): What its configuration needs.
    """

    model: type[VTFusionPreTrainedModel]
    auto_class: str
    labels: Callable[[int], dict[str, Any]]
    predictions: tuple[str, ...]
    own: set[str]
    config: dict[str, Any] = field(default_factory=dict)


def token_labels(batch_size: int) -> dict[str, Any]:
    labels = torch.arange(batch_size * LENGTH).view(batch_size, LENGTH) % 3
    labels[:, 3] = -100
    labels[-1, -2:] = -100
    return {"labels": labels}


def word_labels(batch_size: int) -> dict[str, Any]:
    labels = torch.full((batch_size, LENGTH), -100)
    labels[:, 1] = torch.arange(batch_size) + 20
    labels[0, 4] = 50
    return {"labels": labels}


def span_labels(batch_size: int) -> dict[str, Any]:
    start = torch.arange(batch_size) % 3 + 1
    return {"start_positions": start, "end_positions": start + 1}


CLASSIFIERS = {"classifier", "vision_classifier"}
HEADS = {
    "token": Head(
        VTFusionForTokenClassification, "AutoModelForTokenClassification", token_labels, ("logits",), CLASSIFIERS
    ),
    "sequence": Head(
        VTFusionForSequenceClassification,
        "AutoModelForSequenceClassification",
        lambda rows: {"labels": torch.arange(rows) % 3},
        ("logits",),
        CLASSIFIERS,
    ),
    "vqa": Head(
        VTFusionForVisualQuestionAnswering,
        "AutoModelForVisualQuestionAnswering",
        lambda rows: {"labels": (torch.arange(rows * 3).view(rows, 3) % 4) / 3},
        ("logits",),
        {*CLASSIFIERS, "merge"},
    ),
    "qa": Head(
        VTFusionForQuestionAnswering,
        "AutoModelForQuestionAnswering",
        span_labels,
        ("start_logits", "end_logits"),
        {"qa_outputs", "vision_classifier"},
    ),
    "mlm": Head(VTFusionForMaskedLM, "AutoModelForMaskedLM", word_labels, ("logits",), {"lm_head"}),
    "retrieval": Head(
        VTFusionForImageTextRetrieval,
        "AutoModelForZeroShotImageClassification",
        lambda rows: {"return_loss": True},
        ("matching_logits",),
        {"matching_head"},
    ),
    "pretraining": Head(
        VTFusionForPreTraining,
        "AutoModelForPreTraining",
        word_labels,
        ("prediction_logits", "matching_logits"),
        {"lm_head", "matching_head"},
        {"contrastive_loss_weight": 0.5},
    ),
}

# What every saved configuration names, whichever class was saved.
AUTO_MAP = {
    "AutoConfig": "configuration_vtfusion.VTFusionConfig",
    "AutoModel": "modeling_vtfusion.VTFusionModel",
    **{head.auto_class: f"modeling_vtfusion.{head.model.__name__}" for head in HEADS.values()},
    "AutoModelForImageTextToText": "generation_vtfusion.VTFusionForConditionalGeneration",
    "AutoModelForCausalLM": "generation_vtfusion.VTFusionForConditionalGeneration",
    "AutoProcessor": "processing_vtfusion.VTFusionProcessor",
}


def make_head(
    name: str, text: str = "bert", vision: str = "precomputed", seed: int = 0, **kwargs: Any
) -> VTFusionPreTrainedModel:
    torch.manual_seed(seed)
    model = HEADS[name].model(tiny_config(text, vision, **{**HEADS[name].config, **kwargs})).eval()
    randomize_fusion(model)
    if getattr(model, "matching_head", None) is not None:
        torch.nn.init.normal_(model.matching_head.score.weight)  # new weights are so small that they hide differences
    return model
