"""Every head with what it takes: what all of them promise is tested on each of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tiny import LENGTH, randomize_fusion, tiny_config, tiny_inputs
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


@dataclass(frozen=True)
class Head:
    """
    Args:
        model (`type`): The class.
        auto_class (`str`): What loads it.
        labels (`Callable`): From a batch size to the arguments that make it compute a loss, for its `inputs`.
        predictions (`tuple[str, ...]`): The fields of its output that depend on one row alone.
        own (`set[str]`): The names of its modules beside the base model.
        config (`dict[str, Any]`): What its configuration needs.
        texts (`tuple[int, ...]`): How many texts a row has, as the shape between rows and tokens: `(3,)` where one of
            three texts is chosen.
        pools (`bool`): Whether it reads `pooling`.
    """

    model: type[VTFusionPreTrainedModel]
    auto_class: str
    labels: Callable[[int], dict[str, Any]]
    predictions: tuple[str, ...]
    own: set[str]
    config: dict[str, Any] = field(default_factory=dict)
    texts: tuple[int, ...] = ()
    pools: bool = False

    def inputs(self, vision: str = "resnet", batch_size: int = 2) -> dict[str, torch.Tensor]:
        """Texts with an image for each row, as of `tiny_inputs`."""
        return tiny_inputs(vision, batch_size, texts=self.texts)


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
        pools=True,
    ),
    "vqa": Head(
        VTFusionForVisualQuestionAnswering,
        "AutoModelForVisualQuestionAnswering",
        lambda rows: {"labels": (torch.arange(rows * 3).view(rows, 3) % 4) / 3},
        ("logits",),
        {*CLASSIFIERS, "merge"},
        pools=True,
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

# Those that learn from labels, and not from which text and image belong together.
LABELLED = [name for name, head in HEADS.items() if any(isinstance(x, torch.Tensor) for x in head.labels(1).values())]

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
