"""A saved folder stands on its own: it loads, runs and saves where `vtfusion` cannot be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import ViTImageProcessor

from heads import AUTO_MAP
from tiny import randomize_fusion, tiny_config
from tokenizers_for_tests import bert
from vtfusion import VTFusionForTokenClassification, VTFusionProcessor

SCRIPT = Path(__file__).parent / "run_folder.py"
HUB_FILES = {
    "configuration_vtfusion.py",
    "modeling_vtfusion.py",
    "fusion_vtfusion.py",
    "base_vtfusion.py",
    "generation_vtfusion.py",
    "outputs_vtfusion.py",
    "pipeline_vtfusion.py",
    "visual_vtfusion.py",
    "processing_vtfusion.py",
    "postprocessing_vtfusion.py",
    "images_vtfusion.py",
    "prompts_vtfusion.py",
    "words_vtfusion.py",
}
OTHER_FILES = {
    "config.json",
    "model.safetensors",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "chat_template.jinja",
}
LABELS = ["O", "B-PER", "I-PER"]


def make_processor() -> VTFusionProcessor:
    return VTFusionProcessor(ViTImageProcessor(size={"height": 32, "width": 32}), bert())


def make_model(vision: str = "resnet") -> VTFusionForTokenClassification:
    torch.manual_seed(0)
    config = tiny_config("bert", vision, num_fusion_layers=2, id2label=dict(enumerate(LABELS)))
    model = VTFusionForTokenClassification(config).eval()
    randomize_fusion(model)
    return model


def run_elsewhere(folder: Path, home: Path, save_to: Path | None = None) -> dict:
    """In a process of its own with an empty cache, no network, and no `vtfusion`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "HF_HOME": str(home),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(SCRIPT), str(folder), *([str(save_to)] if save_to else [])]
    home.mkdir(exist_ok=True)
    process = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(process.stdout.splitlines()[-1])


def expected_results(model: VTFusionForTokenClassification) -> dict[str, torch.Tensor]:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from run_folder import inputs_for
    finally:
        sys.path.pop(0)
    with torch.no_grad():
        outputs = model(**inputs_for(model))
    return {"logits": outputs.logits, "hidden": outputs.last_hidden_state}


def assert_same(result: dict, expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(
            torch.tensor(result[name]), value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_loaded_from_the_folder(result: dict) -> None:
    assert result["classes"] == [
        "VTFusionConfig",
        "VTFusionForTokenClassification",
        "VTFusionModel",
        "VTFusionProcessor",
    ]
    assert all(name.startswith("transformers_modules.") for name in result["modules"])
    assert not result["vtfusion_loaded"]
    assert result["unexpected"] == [] and result["base_missing"] == []


def assert_complete(folder: Path) -> None:
    files = {path.name for path in folder.iterdir()}
    assert files >= HUB_FILES | {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"}
    assert files <= HUB_FILES | OTHER_FILES
    assert {name for name in files if name.endswith(".py")} == HUB_FILES
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        assert str(folder.parent) not in text and str(Path.home()) + "/" not in text and "--" not in text, name
    for name in HUB_FILES:
        assert (folder / name).read_bytes() == (Path(__file__).parents[2] / name).read_bytes(), name


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = make_model()
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return model, folder


def test_folder_has_every_file_and_no_other(saved):
    assert_complete(saved[1])


def test_config_maps_every_class(saved):
    config = json.loads((saved[1] / "config.json").read_text(encoding="utf-8"))
    assert config["auto_map"] == AUTO_MAP
    assert config["architectures"] == ["VTFusionForTokenClassification"]
    processor = json.loads((saved[1] / "processor_config.json").read_text(encoding="utf-8"))
    assert processor["auto_map"]["AutoProcessor"] == "processing_vtfusion.VTFusionProcessor"


def test_model_alone_has_what_it_needs(tmp_path):
    make_model("precomputed").save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == HUB_FILES - {
        "processing_vtfusion.py",
        "postprocessing_vtfusion.py",
        "images_vtfusion.py",
        "prompts_vtfusion.py",
        "words_vtfusion.py",
    }


@pytest.mark.slow
def test_loads_and_saves_where_vtfusion_is_not_importable(saved, tmp_path):
    model, folder = saved
    again = tmp_path / "again"
    first = run_elsewhere(folder, tmp_path / "home", again)
    assert_loaded_from_the_folder(first)
    assert first["missing"] == [] and first["labels"] == LABELS
    expected = expected_results(model)
    assert_same(first, expected)

    assert_complete(again)
    second = run_elsewhere(again, tmp_path / "other_home")
    assert_loaded_from_the_folder(second)
    assert second["missing"] == []
    assert_same(second, {**expected, "answer": torch.tensor(first["answer"])})
    assert json.loads((again / "config.json").read_text())["auto_map"] == model.config.auto_map

    # and back into the package
    loaded = VTFusionForTokenClassification.from_pretrained(again)
    assert type(loaded.config).__module__ == "vtfusion.configuration_vtfusion"
    assert_same({name: value.tolist() for name, value in expected_results(loaded).items()}, expected)
    assert type(VTFusionProcessor.from_pretrained(again)) is VTFusionProcessor


@pytest.mark.slow
def test_folder_of_the_base_model(tmp_path):
    """The head is new, and everything else is there."""
    model = make_model("precomputed")
    folder = tmp_path / "base"
    model.vtfusion.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    assert_complete(folder)
    result = run_elsewhere(folder, tmp_path / "home")
    assert_loaded_from_the_folder(result)
    assert {name.split(".")[0] for name in result["missing"]} == {"classifier", "vision_classifier"}
    assert_same(result, {"hidden": expected_results(model)["hidden"]})
