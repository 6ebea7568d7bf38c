"""Every head's saved folder loads by its Auto class, runs and saves where `vtfusion` cannot be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from heads import HEADS, make_head
from vtfusion import VTFusionPreTrainedModel

SCRIPT = Path(__file__).parent / "run_heads.py"
AUTO_CLASSES = {name: head.auto_class for name, head in HEADS.items()}
# (name of the folder, head, options)
FOLDERS = [(name, name, {}) for name in HEADS]
FOLDERS += [(f"{name}-tied", name, {"tie_word_embeddings": True}) for name in ("mlm", "pretraining")]
MODEL_FILES = {
    "configuration_vtfusion.py",
    "fusion_vtfusion.py",
    "modeling_vtfusion.py",
    "base_vtfusion.py",
    "generation_vtfusion.py",
    "outputs_vtfusion.py",
    "pipeline_vtfusion.py",
    "visual_vtfusion.py",
}


def run_elsewhere(folders: list[tuple[Path, str]], home: Path, save_to: Path | None = None) -> list[dict[str, Any]]:
    """Folders, each by a head's Auto class, in a process of its own with an empty cache, no network, and no `vtfusion`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules"), "OMP_NUM_THREADS": "1"}
    texts = {AUTO_CLASSES[name]: head.texts for name, head in HEADS.items()}
    arguments = json.dumps([(str(folder), auto, texts.get(auto, ())) for folder, auto in folders])
    command = [sys.executable, str(SCRIPT), arguments, *([str(save_to)] if save_to else [])]
    home.mkdir(exist_ok=True)
    process = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(process.stdout.splitlines()[-1])


def expected_predictions(model: VTFusionPreTrainedModel, head: str) -> dict[str, Any]:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from run_heads import predictions
    finally:
        sys.path.pop(0)
    return predictions(model, HEADS[head].texts)


def assert_same(result: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    assert result.keys() == expected.keys(), where
    for name, value in expected.items():
        torch.testing.assert_close(
            torch.tensor(result[name]),
            torch.tensor(value),
            rtol=1e-5,
            atol=1e-6,
            msg=lambda m, n=name: f"{where}, {n}: {m}",
        )


def python_files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.py")}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("heads")
    models = {}
    for name, head, options in FOLDERS:
        models[name] = make_head(head, vision="resnet", **options)
        models[name].save_pretrained(root / name)
    return models, root


def test_every_folder_has_what_all_heads_need(saved):
    for name, _, _ in FOLDERS:
        assert python_files(saved[1] / name) == MODEL_FILES, name


@pytest.mark.slow
def test_every_head_loads_and_saves_where_vtfusion_is_not_importable(saved, tmp_path):
    models, root = saved
    again = tmp_path / "again"
    expected = {name: expected_predictions(models[name], head) for name, head, _ in FOLDERS}
    folders = [(root / name, AUTO_CLASSES[head]) for name, head, _ in FOLDERS]
    first = run_elsewhere(folders, tmp_path / "home", again)
    copies = [(again / folder.name, auto_class) for folder, auto_class in folders]
    second = run_elsewhere(copies, tmp_path / "other_home")
    for results in (first, second):
        for (name, head, options), result in zip(FOLDERS, results, strict=True):
            assert result["class"] == type(models[name]).__name__ == HEADS[head].model.__name__
            assert all(module.startswith("transformers_modules.") for module in result["modules"])
            assert result["missing"] == [] and result["unexpected"] == [], name
            assert result["tied"] == bool(options), name
            assert_same(result["predictions"], expected[name], name)
    for name, head, _ in FOLDERS:
        assert python_files(again / name) == python_files(root / name)
        config = json.loads((again / name / "config.json").read_text(encoding="utf-8"))
        assert config["auto_map"] == models[name].config.auto_map
        assert config["architectures"] == [HEADS[head].model.__name__]
        # and back into the package
        loaded = HEADS[head].model.from_pretrained(again / name)
        assert type(loaded.config).__module__ == "vtfusion.configuration_vtfusion"
        assert_same(expected_predictions(loaded, head), expected[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretraining", "pretraining-tied"])
def test_every_head_starts_from_a_pretraining_folder(saved, name, tmp_path):
    """Only what a head has of its own is new."""
    models, root = saved
    heads = [*AUTO_CLASSES, "base"]
    auto_classes = {**AUTO_CLASSES, "base": "AutoModel"}
    results = run_elsewhere([(root / name, auto_classes[head]) for head in heads], tmp_path / "home")
    hidden = expected_predictions(models[name], "pretraining")["hidden"]
    for head, result in zip(heads, results, strict=True):
        own = set() if head == "base" else HEADS[head].own - {"vision_classifier"}
        assert set(result["missing"]) == own - {"lm_head", "matching_head"}, head
        assert set(result["unexpected"]) == {"lm_head", "matching_head"} - own, head
        assert_same({"hidden": result["predictions"]["hidden"]}, {"hidden": hidden}, head)


@pytest.mark.slow
def test_heads_without_labels_start_from_a_labelled_folder(saved, tmp_path):
    folder = saved[1] / "sequence"
    masked, retrieval = run_elsewhere(
        [(folder, AUTO_CLASSES["mlm"]), (folder, AUTO_CLASSES["retrieval"])], tmp_path / "home"
    )
    assert set(masked["missing"]) == {"lm_head"}
    assert "matching_head" in retrieval["missing"]
