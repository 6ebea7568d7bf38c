"""
All that the documents' code and commands name, tiny and in one folder: encoders under the names that the Hub has them by,
data under the names of the files, and what `make install` and `make quickstart` leave.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ViTImageProcessor,
)

from tiny import TEXT, VISION, randomize_fusion, tiny_config
from tokenizers_for_tests import TOKENIZERS
from vtfusion import VTFusionForTokenClassification, VTFusionProcessor
from vtfusion.training.sample_data import build_sample_dataset, build_tiny_encoders

ROOT = Path(__file__).resolve().parents[1]
SIZE = {"height": 32, "width": 32}
LABELS = {0: "O", 1: "B-PER", 2: "B-LOC"}

TEXT_MODELS = {
    "google-bert/bert-base-cased": ("bert", "bert"),
    "google-bert/bert-base-uncased": ("bert", "bert"),
    "emilyalsentzer/Bio_ClinicalBERT": ("bert", "bert"),
    "cardiffnlp/twitter-roberta-base": ("roberta", "roberta"),
    "distilbert/distilbert-base-uncased": ("distilbert", "distilbert"),
    "microsoft/mpnet-base": ("mpnet", "roberta"),
    "outputs/parts/minilm": ("bert", "bert"),
}
VISION_MODELS = {
    "google/vit-base-patch16-224": "vit",
    "google/vit-base-patch16-224-in21k": "vit",
    "outputs/parts/mobilenet_v2": "mobilenet_v2",
}
DECODERS = ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct", "outputs/parts/smollm2")

# The rows of the files -----------------------------------------------------------------------------------------------


def picture(row: int) -> str | None:
    """A row in four has none."""
    return None if row % 4 == 3 else f"images/{row}.png"


def entities(row: int) -> dict[str, Any]:
    kind = ("LOC", "PER")[row % 2]
    return {"tokens": ["Hello", "Paris", "!"], "ner_tags": ["O", f"B-{kind}", "O"], "image": picture(row)}


def post(row: int) -> dict[str, Any]:
    return {"text": f"Hello Paris {row}", "image": picture(row)}


def sentiment(row: int) -> dict[str, Any]:
    return {"text": f"what a night {row} !!", "label": ("positive", "negative")[row % 2], "image": picture(row)}


def tweet(row: int) -> dict[str, Any]:
    return {**sentiment(row), "image": f"images/{row}.png"}


def receipt(row: int) -> dict[str, Any]:
    return {"tokens": ["TOTAL", f"{row}.50"], "ner_tags": ["O", "B-TOTAL"], "image": f"images/{row}.png"}


def question(row: int) -> dict[str, Any]:
    answers = [] if row % 4 == 1 else [f"{row}.50"]
    context = f"thank you , total {row}.50 , paid"
    return {"question": "what is the total?", "context": context, "answers": answers, "image": picture(row)}


def answer(row: int) -> dict[str, Any]:
    return {
        "question": "what colour is the car?",
        "answer": ("red", "blue")[row % 2],
        "image": f"images/{row}.png",
    }


def ticket(row: int) -> dict[str, Any]:
    labels = [["billing", "bug"], ["bug"], []][row % 3]
    images = [f"images/{row}.png", "images/0.png"]
    return {"text": f"it says error {row} again", "label": labels, "image": images if row % 4 != 3 else None}


def study(row: int) -> dict[str, Any]:
    images = [f"images/{row}.png", "images/0.png"]
    return {"text": f"FINDINGS: {row}", "label": ("effusion", "none")[row % 2], "image": images}


def scene(row: int) -> dict[str, Any]:
    images = [f"images/{row}.png", "images/0.png", "images/1.png"]
    return {"text": f"speed {row}, wet road", "label": ("brake", "go")[row % 2], "image": images}


def named(row: int) -> dict[str, Any]:
    return {"image": f"images/{row}.png", "name": ("Paris", "John")[row] if row < 2 else f"Place {row}"}


def captioned(row: int) -> dict[str, Any]:
    return {"image": f"images/{row}.png", "captions": [f"a fox jumps over {row} dogs", "the lazy dog"]}


# For each document its files, with {} for train, valid and test, the rows, and how many of them there are.
Files = dict[str, tuple[Callable[[int], dict[str, Any]], int]]
_ENTITIES: Files = {"{}.jsonl": (entities, 8), "posts.jsonl": (post, 4)}
FILES: dict[str, Files] = {
    "README.md": _ENTITIES,
    "hub.md": _ENTITIES,
    "generation.md": {"{}.jsonl": (answer, 8)},
    "recipes.md": {
        "posts-{}.jsonl": (sentiment, 8),
        "receipts-{}.jsonl": (receipt, 8),
        "questions-{}.jsonl": (question, 8),
        "vqa-{}.jsonl": (answer, 8),
        "tickets-{}.jsonl": (ticket, 8),
        "studies-{}.jsonl": (study, 8),
        "scenes-{}.jsonl": (scene, 8),
    },
    "results.md": {
        "entity-image-bank/metadata.jsonl": (named, 4),
        "flickr8k-1000/metadata.jsonl": (captioned, 4),
        "imagenet-sample-1000/metadata.jsonl": (named, 4),
        "sroie-receipts/{}.jsonl": (receipt, 8),
        # as many as `benchmarks/task_data.py` sets aside, and some more
        "data/easy-vqa/{}.jsonl": (answer, 408),
        "data/flickr8k-1000/metadata.jsonl": (captioned, 158),
        "data/mvsa-single/train.jsonl": (tweet, 60),
        "data/sroie-receipts/{}.jsonl": (receipt, 458),
    },
}


def write_rows(file: Path, make_row: Callable[[int], dict[str, Any]], count: int) -> None:
    """JSON lines, and a picture of a colour of its own for each."""
    images = file.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    for row in range(count):
        PIL.Image.new("RGB", (32, 32), (row % 256, 40 * (row // 256), 200)).save(images / f"{row}.png")
    file.write_text("".join(json.dumps(make_row(row)) + "\n" for row in range(count)), encoding="utf-8")


def write_conll(file: Path, count: int = 8) -> None:
    """CoNLL-2003 columns."""
    sentence = "Hello UH B-INTJ O\nParis NNP B-NP B-LOC\n\nJohn NNP B-NP B-PER\nsings VBZ B-VP O\n\n"
    file.write_text("-DOCSTART- -X- -X- O\n\n" + sentence * count, encoding="utf-8")


# The models ----------------------------------------------------------------------------------------------------------


def save_models(folder: Path) -> None:
    """The encoders and language models of all documents, and what the quickstart leaves."""

    def save(name: str, config: PreTrainedConfig, part: Any, auto_class: Any = AutoModel) -> None:
        if isinstance(part, PreTrainedTokenizerBase):
            config.vocab_size, part.model_max_length = len(part), 64
        for each in (auto_class.from_config(config), part):
            each.save_pretrained(folder / name)

    torch.manual_seed(0)
    pixels = ViTImageProcessor(size=SIZE)
    mpnet = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
    for name, (family, tokenizer) in TEXT_MODELS.items():
        config = TEXT[family]() if family in TEXT else AutoConfig.for_model(family, **mpnet)
        save(name, config, TOKENIZERS[tokenizer]())
    for name, family in VISION_MODELS.items():
        save(name, VISION[family](), pixels)
    save("microsoft/resnet-50", VISION["resnet"](), pixels, AutoModelForImageClassification)
    for name in DECODERS:
        sizes = {**mpnet, "num_hidden_layers": 4, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        save(name, LlamaConfig(**sizes), TOKENIZERS["gpt-neox"](), AutoModelForCausalLM)

    quickstart = folder / "outputs" / "quickstart"
    data = build_sample_dataset(num_train=16, num_validation=8, num_test=8, image_size=32)
    data.save_to_disk(str(quickstart / "data"))
    build_tiny_encoders(quickstart / "encoders", data, image_size=32)
    model = VTFusionForTokenClassification(tiny_config("bert", "resnet", id2label=LABELS))
    randomize_fusion(model)
    for part in (model, VTFusionProcessor(pixels, TOKENIZERS["bert"]())):
        part.save_pretrained(quickstart / "model")


def build_world(folder: Path, models: Path, document: str) -> None:
    """
    Fills a folder with what a document names.

    Args:
        folder (`Path`): an empty folder, in which the document's code and commands run.
        models (`Path`): a folder of [`save_models`].
        document (`str`): the name of the document.
    """
    shutil.copytree(models, folder, dirs_exist_ok=True)
    for file, (make_row, count) in FILES.get(document, {}).items():
        for split in ("train", "valid", "test"):
            write_rows(folder / file.format(split), make_row, count)
    if document == "results.md":
        for split in ("train", "valid", "test"):
            write_conll(folder / f"{split}.txt")
        (folder / "data" / "conll2003").symlink_to(folder)
    for name in ("benchmarks", "constraints.txt", "docs", "Makefile", "pyproject.toml", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name, module in (("python", ""), ("vtfusion", "-m vtfusion.app.cli")):
        (binaries / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n', encoding="utf-8")
        os.chmod(binaries / name, 0o755)
    (binaries.parent / ".installed").touch()  # nothing is left to do for `make install`
