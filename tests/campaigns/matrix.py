#!/usr/bin/env python
"""
Do the versions hold that pyproject.toml allows? Builds an environment for each, runs the fast tests in it, and lets every
environment load what every other one has saved: models by their code in the folder, processors, and their results.

make matrix
make matrix ARGS="--environments 3.13 oldest"

Needs the commands python3.11, python3.12 and python3.13. An environment takes minutes and, where torch comes with its CUDA
libraries, several GB (`.venv-NAME`; `make clean` removes them). Logs and `matrix.json` go to `output_dir`; the exit status is
1 if anything failed.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Environment:
    """
    Args:
        python (`str`): the version of Python.
        constraints (`str`): the file of pinned versions.
        pins (`dict[str, str]`): what is pinned otherwise.
    """

    python: str
    constraints: str = "constraints.txt"
    pins: dict[str, str] = field(default_factory=dict)


ENVIRONMENTS = {
    "3.11": Environment("3.11"),
    "3.12": Environment("3.12"),
    "3.13": Environment("3.13"),
    "oldest": Environment("3.11", "constraints-oldest.txt"),
    "torch-2.6": Environment("3.11", "constraints-oldest.txt", {"torch": "2.6.0", "sympy": "1.13.1"}),
    "torch-newest": Environment("3.13", pins={"torch": "2.14.1"}),
}


@dataclass
class MatrixArguments:
    environments: list[str] = field(
        default_factory=lambda: list(ENVIRONMENTS),
        metadata={"help": "Only these.", "choices": list(ENVIRONMENTS)},
    )
    output_dir: str = field(default="outputs/matrix", metadata={"help": "Logs, saved models and matrix.json."})
    workers: int = field(default=2, metadata={"help": "Processes that run tests."})


# ------------------------------------------------------------------------------------- in the Python of an environment


def save(folder: Path) -> None:
    """Every model with its code, and a processor with what it makes of a text and a picture."""
    from golden_outputs import MODELS, make_model

    for name in MODELS:
        make_model(name).save_pretrained(folder / name)
    processor = make_processor()
    processor.save_pretrained(folder / "processor")
    (folder / "processed.json").write_text(json.dumps(process(processor)), encoding="utf-8")


def load(folder: Path) -> list[str]:
    """What differs from the stored results when the models and the processor of another environment are loaded."""
    import torch
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    from golden_outputs import MODELS, compute, differences, stored_outputs

    found: dict[str, list[float]] = {}
    for name in MODELS:
        # The code in the folder: by an Auto class newer versions would take the package, which the tests have imported.
        config = json.loads((folder / name / "config.json").read_text(encoding="utf-8"))
        reference = next(of for of in config["auto_map"].values() if of.endswith(f".{config['architectures'][0]}"))
        model = get_class_from_dynamic_module(reference, folder / name).from_pretrained(
            folder / name, dtype=torch.float64
        )
        found |= compute(name, model.eval())
    wrong = differences(stored_outputs(), found)
    of_folder = get_class_from_dynamic_module("processing_vtfusion.VTFusionProcessor", folder / "processor")
    processor = of_folder.from_pretrained(folder / "processor")
    before, now = json.loads((folder / "processed.json").read_text(encoding="utf-8")), process(processor)
    return wrong + [f"processor: {name}" for name in before if before[name] != now.get(name)]


def make_processor() -> Any:
    from transformers import ViTImageProcessor

    from tokenizers_for_tests import TOKENIZERS
    from vtfusion import VTFusionProcessor

    image_processor = ViTImageProcessor(size={"height": 32, "width": 32})
    return VTFusionProcessor(image_processor, TOKENIZERS["bert"](), window_length=16, window_stride=4)


def process(processor: Any) -> dict[str, Any]:
    """Numbers that any version must give."""
    import numpy as np
    from PIL import Image

    picture = Image.fromarray(np.arange(24 * 40 * 3, dtype=np.uint32).reshape(24, 40, 3).astype(np.uint8))
    text = "john smith met the lower fox in paris " * 4
    batch = processor(text=[text, "fox"], images=[picture, None], return_tensors="pt", padding=True)
    pixels = batch["pixel_values"].double()
    return {
        "input_ids": batch["input_ids"].tolist(),
        "attention_mask": batch["attention_mask"].tolist(),
        "image_mask": batch["image_mask"].tolist(),
        "pixels": [round(value, 3) for value in (pixels.mean().item(), pixels.std().item())],
    }


# ------------------------------------------------------------------------------------------------------- all of them


def run(command: list[str], log: Path, **environment: str) -> tuple[int, str]:
    """A command in the root of the repository, its output in a log; its status and what it printed."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n{done.stdout}\n")
    return done.returncode, done.stdout


def constraints_of(environment: Environment, folder: Path) -> str:
    """The file of pinned versions, with those of the environment itself."""
    pinned = (ROOT / environment.constraints).read_text(encoding="utf-8")
    for package, version in environment.pins.items():
        pinned = re.sub(rf"^{package}==.*$", f"{package}=={version}", pinned, flags=re.MULTILINE)
    file = folder / "constraints.txt"
    if not file.is_file() or file.read_text(encoding="utf-8") != pinned:  # make goes by its time
        file.write_text(pinned, encoding="utf-8")
    return str(file)


def build_and_test(name: str, folder: Path, workers: int) -> dict[str, Any]:
    """What came of the tests in an environment, and its versions."""
    environment = ENVIRONMENTS[name]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    log.unlink(missing_ok=True)
    venv = f".venv-{name}"
    make = ["make", "--no-print-directory", f"VENV={venv}", f"PYTHON=python{environment.python}", f"WORKERS={workers}"]
    # those that `make matrix` was given are not for pytest, to which they would come by MAKEFLAGS
    make += [f"CONSTRAINTS={constraints_of(environment, folder)}", "ARGS="]
    if run([*make, "install"], log)[0]:
        return {"installed": False}
    python = str(ROOT / venv / "bin" / "python")
    versions = "import json, vtfusion.training.versions as v; print(json.dumps(v.package_versions()))"
    result = {"installed": True, "versions": json.loads(run([python, "-c", versions], log)[1].splitlines()[-1])}
    status, printed = run([*make, "test"], log)
    summary = re.findall(r"^=*\s*((?:\d+ \w+,? ?)+in [\d.]+s.*?)=*$", printed, re.MULTILINE)
    result |= {"passed": status == 0, "tests": summary[-1].strip() if summary else "no summary, see the log"}
    result["saved"] = (
        run([python, __file__, "save", str(folder / "saved")], log, PYTHONPATH=str(ROOT / "tests"))[0] == 0
    )
    return result


def main(args: MatrixArguments) -> int:
    output = Path(args.output_dir).resolve()
    results: dict[str, Any] = {}
    for name in args.environments:
        print(f"=== {name}", flush=True)
        results[name] = build_and_test(name, output / name, args.workers)
        print(f"{results[name].get('tests', 'not installed')}", flush=True)
    usable = [name for name in args.environments if results[name].get("saved")]
    for name in usable:
        python, results[name]["loads"] = str(ROOT / f".venv-{name}" / "bin" / "python"), {}
        for other in usable:
            command = [python, __file__, "load", str(output / other / "saved")]
            modules = str(output / name / "modules" / other)
            status, printed = run(
                command, output / name / "log.txt", PYTHONPATH=str(ROOT / "tests"), HF_MODULES_CACHE=modules
            )
            results[name]["loads"][other] = [] if status == 0 else printed.splitlines()[-20:]
    (output / "matrix.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    print("\n| environment | Python | transformers | torch | fast tests | loads what was saved by |")
    print("| --- | --- | --- | --- | --- | --- |")
    whole = True
    for name, result in results.items():
        of = result.get("versions", {})
        loads = [other for other, wrong in result.get("loads", {}).items() if not wrong]
        whole &= bool(result.get("passed")) and len(loads) == len(args.environments)
        cells = [name, *(of.get(part, "–") for part in ("python", "transformers", "torch"))]
        print(f"| {' | '.join(cells)} | {result.get('tests', 'not installed')} | {', '.join(loads) or '–'} |")
    return 0 if whole else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["save"]:
        save(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["load"]:
        wrong = load(Path(sys.argv[2]))
        print("\n".join(wrong))
        sys.exit(bool(wrong))
    else:
        from transformers import HfArgumentParser

        sys.exit(main(HfArgumentParser(MatrixArguments).parse_args_into_dataclasses()[0]))
