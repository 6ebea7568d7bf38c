"""Task scripts as a user runs them: a process of their own, small encoders, results read back."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from vtfusion.training.sample_data import build_sample_dataset, build_tiny_encoders

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
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


def run_script(name: str, sample: Path, output: Path, *extra: str) -> dict[str, Any]:
    """`scripts/{name}` on the files of [`write_colours`]; its `results.json` (or `image_ablation.json`) and `stdout`."""
    command = [sys.executable, str(SCRIPTS / name), "--output_dir", str(output), "--use_cpu", "True"]
    for split, file in (("train", "train"), ("validation", "valid"), ("test", "test")):
        command += [f"--{split}_file", str(sample / f"{file}.jsonl")]
    if "--model_name_or_path" not in extra:
        command += ["--text_model", str(sample / "text"), "--vision_model", str(sample / "vision")]
        command += ["--fusion_hidden_size", "16"]
    command += ["--num_train_epochs", "1", "--learning_rate", "1e-3", "--feature_cache_dir", str(sample / "features")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *extra], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    file = "image_ablation.json" if "--image_ablation" in extra else "results.json"
    return {**json.loads((output / file).read_text(encoding="utf-8")), "stdout": done.stdout}
