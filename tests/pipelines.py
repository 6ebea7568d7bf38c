"""Tiny random pipelines of every task, which say something else of every text and picture."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ViTImageProcessor, pipeline

from tiny import randomize_fusion, tiny_config
from tokenizers_for_tests import TOKENIZERS
from vtfusion import (
    VTFusionForQuestionAnswering,
    VTFusionForSequenceClassification,
    VTFusionForTokenClassification,
    VTFusionForVisualQuestionAnswering,
    VTFusionProcessor,
)
from vtfusion.pipeline_vtfusion import VTFusionPipeline

HEADS = {
    "multimodal-token-classification": VTFusionForTokenClassification,
    "multimodal-text-classification": VTFusionForSequenceClassification,
    "multimodal-visual-question-answering": VTFusionForVisualQuestionAnswering,
    "multimodal-question-answering": VTFusionForQuestionAnswering,
}
LABELS = {
    "multimodal-token-classification": {0: "O", 1: "B-PER", 2: "I-PER"},
    "multimodal-text-classification": {0: "bad", 1: "so", 2: "good"},
    "multimodal-visual-question-answering": {0: "red", 1: "green", 2: "blue"},
    "multimodal-question-answering": {0: "LABEL_0", 1: "LABEL_1"},
}


def picture(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make(task: str, seed: int = 0, **config: Any) -> VTFusionPipeline:
    torch.manual_seed(seed)
    model = HEADS[task](tiny_config("bert", "resnet", id2label=LABELS[task], **config)).eval()
    randomize_fusion(model)
    for parameter in (
        model.get_submodule("qa_outputs" if hasattr(model, "qa_outputs") else "classifier")
    ).parameters():
        # else a new head says the same of everything
        torch.nn.init.normal_(parameter)
    if task == "multimodal-token-classification":
        model.classifier.bias.data[0] = -30.0  # names everywhere
    processor = VTFusionProcessor(
        ViTImageProcessor(size={"height": 32, "width": 32}), TOKENIZERS["bert"](), window_length=32, window_stride=8
    )
    return pipeline(task, model=model, processor=processor, device="cpu")
