"""Task scripts as a user runs them: a process of their own, small encoders, results read back."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from vtfusion import VTFusionForTokenClassification, VTFusionProcessor
from vtfusion.training.sample_data import build_sample_dataset, build_tiny_encoders

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
# Two processes on CPUs, each with the whole model, or with FSDP2; and half of a batch for each.
LAUNCH = (
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
)  # fmt: skip
FSDP = (
    *LAUNCH[:3], "--config_file", str(SCRIPTS / "accelerate_configs" / "fsdp2.yaml"), "--num_processes", "2",
    "--mixed_precision", "no", "--main_process_port", "0", str(Path(__file__).with_name("fsdp_on_cpu.py")),
)  # fmt: skip
HALF = ("--per_device_train_batch_size", "4", "--ddp_backend", "gloo")
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 220)}


def write_colours(folder: Path, **rows: int) -> None:
    """
    Tiny encoders, pictures of one colour, and `{split}.jsonl` files of texts that say nothing: only the picture, which
    one row in six lacks, tells the colour.
    """
    dataset = build_sample_dataset(num_train=16, num_validation=8, num_test=8, image_size=32)
    build_tiny_encoders(folder, dataset, image_size=32)
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        PIL.Image.new("RGB", (32, 32), colour).save(folder / f"{name}.png")
    for split, count in rows.items():
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for row in range(count):
                name = list(COLOURS)[rng.integers(3)]
                context = f"Mirano spoke about {row} things ; the colour was {name} ."
                record = {
                    "text": f"Mirano spoke {row} .",
                    "label": name,
                    "several": [name, "seen"],
                    "number": float(list(COLOURS).index(name)),
                    "image": None if row % 6 == 5 else f"{name}.png",
                    "question": "what did Mirano see ?",
                    "answer": name,
                    "context": context,
                    "answers": [] if row % 4 == 3 else [name],
                    "people": [name, name, name, "none"],
                }
                file.write(json.dumps(record) + "\n")


def run_script(
    name: str,
    sample: Path,
    output: Path,
    *extra: str,
    launcher: tuple[str, ...] = (sys.executable,),
    splits: tuple[str, ...] = ("train", "validation", "test"),
) -> dict[str, Any]:
    """`scripts/{name}` on the files of [`write_colours`]; its `results.json` (or `image_ablation.json`) and `stdout`."""
    command = [*launcher, str(SCRIPTS / name), "--output_dir", str(output), "--use_cpu", "True"]
    for split in splits:
        command += [f"--{split}_file", str(sample / f"{'valid' if split == 'validation' else split}.jsonl")]
    if "--model_name_or_path" not in extra:
        command += ["--text_model", str(sample / "text"), "--vision_model", str(sample / "vision")]
        command += ["--fusion_hidden_size", "16"]
    command += ["--num_train_epochs", "1", "--learning_rate", "1e-3", "--feature_cache_dir", str(sample / "features")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *extra], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    file = "image_ablation.json" if "--image_ablation" in extra else "results.json"
    return {**json.loads((output / file).read_text(encoding="utf-8")), "stdout": done.stdout}


def write_sample(folder: Path) -> Path:
    """The synthetic sample set as `data`, and tiny encoders."""
    dataset = build_sample_dataset(num_train=48, num_validation=16, num_test=24, image_size=32)
    dataset.save_to_disk(str(folder / "data"))
    build_tiny_encoders(folder, dataset, image_size=32)
    return folder


def run_on_sample(
    sample: Path,
    output: Path,
    *extra: str,
    launcher: tuple[str, ...] = (sys.executable,),
    script: str = "run_ner.py",
    leave_out: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A script for entities on the folder of [`write_sample`]; its results and `stdout`."""
    command = [*launcher, str(SCRIPTS / script), "--dataset_name", str(sample / "data")]
    if "--model_name_or_path" not in extra:
        command += ["--text_model", str(sample / "text"), "--vision_model", str(sample / "vision")]
        command += ["--fusion_hidden_size", "16"]
    defaults = {
        "--output_dir": str(output),
        "--num_train_epochs": "1",
        "--per_device_train_batch_size": "8",
        "--learning_rate": "1e-3",
        "--logging_steps": "1",
        "--feature_cache_dir": str(output / "features"),
        "--use_cpu": "True",
    }
    for name, value in defaults.items():
        if name not in (*extra, *leave_out):
            command += [name, value]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *extra], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ablation = "--image_ablation" in extra
    results = json.loads((output / ("image_ablation.json" if ablation else "results.json")).read_text())
    results["stdout"] = done.stdout
    return results


def losses(output: Path) -> list[float]:
    """Of each step that was logged."""
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def no_dropout(sample: Path, folder: Path) -> Path:
    """A model of the encoders of [`write_sample`] whose losses hang on nothing but the order of the texts."""
    text = AutoModel.from_pretrained(sample / "text", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    names = ["O", *(f"{p}-{t}" for t in ("PER", "LOC", "ORG", "PROD") for p in "BI")]
    torch.manual_seed(0)
    model = VTFusionForTokenClassification.from_vision_text_pretrained(
        str(sample / "vision"),
        text,
        fusion_hidden_size=16,
        fusion_dropout=0.0,
        classifier_dropout=0.0,
        text_loss_weight=0.0,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    model.save_pretrained(folder)
    VTFusionProcessor(
        AutoImageProcessor.from_pretrained(sample / "vision"), AutoTokenizer.from_pretrained(sample / "text")
    ).save_pretrained(folder)
    return folder
