#!/usr/bin/env python
"""
One job of AutoGluon MultiModal, in a Python environment of its own; `benchmarks/whole_job.py` starts it and measures it.

python3 -m venv autogluon
autogluon/bin/pip install "torch==2.12.*" "torchvision==0.27.*" "autogluon.multimodal==1.6.3"
autogluon/bin/python benchmarks/autogluon_job.py '{"task": "classification", …}'

Trains with AutoGluon's defaults but for the encoders, the epochs, perhaps the batch, float32, no worker processes and a seed, and writes
a line of JSON for each test row: its label, or its entities as characters of the words joined by spaces. AutoGluon knows
vision encoders of timm alone: of a saved MobileNetV2 it makes timm's `mobilenetv2_100`, which has the same parts in the same
order. Entities with images end in a TypeError in 1.6.3 as it is, whose `fusion_ner` calls two arguments by older names; here both
names are taken.
"""

import json
import sys
from pathlib import Path
from typing import Any

from json_lines import read_json_lines, write_json_lines

Row = dict[str, Any]


def read_rows(file: str, folder: str) -> list[Row]:
    """The rows of a file of JSON lines, with whole paths of images."""
    return [{**row, "image": str(Path(folder, row["image"]).resolve())} for row in read_json_lines(file)]


def entities_of(row: Row) -> list[Row]:
    """The entities of words with IOB2 tags, as characters."""
    found: list[Row] = []
    start = 0
    for word, tag in zip(row["tokens"], row["ner_tags"], strict=True):
        end = start + len(word)
        if tag.startswith("B-"):
            found.append({"entity_group": tag[2:], "start": start, "end": end})
        elif tag.startswith("I-"):
            found[-1]["end"] = end
        start = end + 1
    return found


def as_timm(vision_model: str, folder: Path) -> str:
    """A saved MobileNetV2 as a folder that AutoGluon loads."""
    import timm
    import torch
    from transformers import AutoModel

    ours = AutoModel.from_pretrained(vision_model).state_dict()
    model = timm.create_model("mobilenetv2_100", num_classes=0)
    theirs = model.state_dict()
    pairs = list(zip(theirs.items(), ours.values(), strict=True))
    if any(mine.shape != value.shape for (_, mine), value in pairs):
        raise SystemExit(f"{vision_model} is no MobileNetV2 of width 1.0.")
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({name: value for (name, _), value in pairs}, folder / "pytorch_model.bin")
    settings = {
        "architecture": "mobilenetv2_100",
        "num_features": model.num_features,
        "pretrained_cfg": {**model.pretrained_cfg, "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return str(folder)


def mend_fusion_ner() -> None:
    """Lets two parts of AutoGluon take arguments by the names that its `fusion_ner` still calls them by."""
    from autogluon.multimodal.models.fusion.base import AbstractMultimodalFusionModel
    from autogluon.multimodal.models.mlp import MLP

    def rename(part: Any, old: str, new: str) -> None:
        start = part.__init__

        def start_by_both_names(self: Any, *args: Any, **kwargs: Any) -> None:
            if old in kwargs:
                kwargs[new] = kwargs.pop(old)
            start(self, *args, **kwargs)

        part.__init__ = start_by_both_names

    rename(AbstractMultimodalFusionModel, "loss_weight", "aux_loss_weight")
    rename(MLP, "dropout_prob", "dropout")


def main(job: dict[str, Any]) -> None:
    import pandas as pd
    from autogluon.multimodal import MultiModalPredictor

    output = Path(job["output_dir"])
    ner = job["task"] == "ner"
    if ner:
        mend_fusion_ner()
    frames = {}
    for split in ("train", "validation", "test"):
        rows = read_rows(job[f"{split}_file"], job["image_folder"])
        frames[split] = pd.DataFrame(
            {
                "text": [" ".join(row["tokens"]) if ner else row["text"] for row in rows],
                "image": [row["image"] for row in rows],
                "label": [json.dumps(entities_of(row)) if ner else row["label"] for row in rows],
            }
        )
    text = "ner_text" if ner else "hf_text"
    settings = {
        "model.names": [text, "timm_image", "fusion_ner" if ner else "fusion_mlp"],
        f"model.{text}.checkpoint_name": job["text_model"],
        "model.timm_image.checkpoint_name": as_timm(job["vision_model"], output / "vision"),
        "optim.max_epochs": job["num_train_epochs"],
        "env.precision": 32,
        "env.num_gpus": 0,
        "env.num_workers": 0,
        "env.num_workers_inference": 0,
    }
    if ner:
        # its average of checkpoints scores them with a metric that it fetches from the Hub
        settings["optim.top_k_average_method"] = "best"
    if job["batch_size"] is not None:
        settings["env.batch_size"] = job["batch_size"]
    kinds = {"text": "text_ner", "image": "image_path", "label": "ner_annotation"} if ner else None
    predictor = MultiModalPredictor(
        label="label", problem_type="ner" if ner else "multiclass", path=str(output / "model"), verbosity=1
    )
    predictor.fit(
        frames["train"],
        tuning_data=frames["validation"],
        hyperparameters=settings,
        column_types=kinds,
        seed=job["seed"],
    )
    said = predictor.predict(frames["test"].drop(columns="label"))
    said = said["label"].tolist() if isinstance(said, pd.DataFrame) else list(said)
    if ner:
        said = [[[str(e["entity_group"]), int(e["start"]), int(e["end"])] for e in entities] for entities in said]
    write_json_lines(output / "predictions.jsonl", said)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
