"""`vtfusion export`: the file gives what PyTorch gives, in any shape, and nothing is left where it does not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, CLIPImageProcessor, ViTImageProcessor
from typer.testing import CliRunner

from heads import HEADS, make_head
from tiny import VOCAB, tiny_config
from tokenizers_for_tests import TOKENIZERS
from vtfusion import VTFusionForConditionalGeneration, VTFusionForQuestionAnswering, VTFusionProcessor
from vtfusion.app import cli
from vtfusion.app.export import export_model

onnxruntime = pytest.importorskip("onnxruntime")
SQUARE = {"height": 32, "width": 32}


def save(folder, head, text="bert", vision="resnet", tokenizer="bert", **size):
    """A model with its processor, as after a training."""
    model = make_head(head, text, vision)
    model.save_pretrained(folder)
    pixels = CLIPImageProcessor(size=size, do_center_crop=False) if size else ViTImageProcessor(size=SQUARE)
    processor = VTFusionProcessor(pixels, TOKENIZERS[tokenizer]())
    processor.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def entities(tmp_path_factory):
    """A model of entities, the folder that it was exported to (20 seconds of torch), and what the command said."""
    folder = tmp_path_factory.mktemp("entities")
    model = save(folder / "model", "token")
    result = CliRunner().invoke(cli.app, ["export", str(folder / "model"), "--output", str(folder / "onnx")])
    assert result.exit_code == 0, result.output
    return model, folder / "onnx", result.output


def run(folder, inputs):
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {name: value.numpy() for name, value in inputs.items()}), strict=True))


def make_inputs(rows, length, images, token_types=True):
    generator = torch.Generator().manual_seed(rows)
    inputs = {
        "input_ids": torch.randint(3, VOCAB, (rows, length), generator=generator),
        "attention_mask": torch.ones(rows, length, dtype=torch.long),
        "pixel_values": torch.randn(rows, images, 3, 32, 32, generator=generator),
        "image_mask": torch.ones(rows, images, dtype=torch.long),
    }
    if token_types:
        inputs["token_type_ids"] = torch.arange(length).expand(rows, length) % 2
    return inputs


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 2, 1), (2, 17, 4), (5, 6, 1)])
def test_the_file_gives_what_the_model_gives(entities, shape):
    model, folder, _ = entities
    inputs = make_inputs(*shape)
    inputs["attention_mask"][-1, -1] = 0
    inputs["image_mask"][-1, 1:] = 0
    results = run(folder, inputs)
    with torch.no_grad():
        expected = model(**inputs)
    assert list(results) == ["logits", "fusion_gate"]
    assert results["logits"].shape == (*shape[:2], 3) and results["fusion_gate"].shape == shape[:2]
    for name, value in results.items():
        np.testing.assert_allclose(value, expected[name].numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_row_without_an_image_gives_the_text_only_result(entities):
    model, folder, _ = entities
    inputs = make_inputs(3, 7, 2)
    inputs["image_mask"][1] = 0
    inputs["pixel_values"][1] = 1e4  # whatever stands there
    results = run(folder, inputs)
    with torch.no_grad():
        expected = model(**{name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
    np.testing.assert_allclose(results["logits"][1], expected.logits[1].numpy(), atol=1e-5)
    assert np.abs(results["logits"][0] - expected.logits[0].numpy()).max() > 1e-2
    assert (results["fusion_gate"][1] == 0).all() and (results["fusion_gate"][0] > 0).all()


@pytest.mark.slow
def test_a_server_finds_the_rest_beside_the_file(entities):
    model, folder, said = entities
    assert "model.onnx" in said and "from PyTorch" in said
    assert AutoConfig.from_pretrained(folder).id2label == model.config.id2label
    processor = VTFusionProcessor.from_pretrained(folder)
    image = np.full((20, 30, 3), 200, dtype=np.uint8)
    batch = processor(text=["john smith", "the fox"], images=[image, None], return_tensors="pt", padding=True)
    results = run(folder, batch)
    with torch.no_grad():
        np.testing.assert_allclose(results["logits"], model(**batch).logits.numpy(), atol=1e-5)


@pytest.mark.slow
def test_an_encoder_without_token_types_gives_starts_and_ends(tmp_path):
    model = save(tmp_path / "model", "qa", "distilbert", "vit")
    assert isinstance(model, VTFusionForQuestionAnswering)
    assert export_model(tmp_path / "model", tmp_path / "onnx") < 1e-5
    inputs = make_inputs(2, 9, 3, token_types=False)
    inputs["attention_mask"][0, :2] = 0
    results = run(tmp_path / "onnx", inputs)
    with torch.no_grad():
        expected = model(**inputs)
    assert list(results) == ["start_logits", "end_logits", "fusion_gate"]
    for name, value in results.items():
        np.testing.assert_allclose(value, expected[name].numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "vision"),
    [
        ("bert", "swin"),
        ("bert", "dinov2"),
        ("roberta", "vit"),
        ("roberta", "convnext"),
        ("distilbert", "mobilenet_v2"),
        ("deberta-v2", "resnet"),
    ],
)
def test_encoders_of_many_kinds_give_what_pytorch_gives(text, vision, tmp_path):
    save(tmp_path / "model", "sequence", text, vision)
    assert export_model(tmp_path / "model", tmp_path / "onnx") < 1e-4


@pytest.fixture
def never_loads(monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("the weights were read")

    for head in (*(head.model for head in HEADS.values()), VTFusionForConditionalGeneration):
        monkeypatch.setattr(head, "from_pretrained", load)


@pytest.mark.parametrize(
    "head", ["VTFusionForMaskedLM", "VTFusionForPreTraining", "VTFusionForConditionalGeneration", "BertModel"]
)
def test_other_heads_are_refused_before_they_are_loaded(head, tmp_path, never_loads):
    config = tiny_config()
    config.architectures = [head]
    config.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=f"a {head}, which cannot be exported. These can: VTFusionForTokenClass"):
        export_model(tmp_path / "model", tmp_path / "onnx")


def test_precomputed_features_are_refused(tmp_path, never_loads):
    config = tiny_config(vision="precomputed")
    config.architectures = ["VTFusionForTokenClassification"]
    config.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="precomputed features"):
        export_model(tmp_path / "model", tmp_path / "onnx")


def test_images_of_many_sizes_are_refused(tmp_path):
    save(tmp_path / "model", "token", shortest_edge=32)
    with pytest.raises(ValueError, match="images of one size"):
        export_model(tmp_path / "model", tmp_path / "onnx")


def test_encoders_that_torch_cannot_export_are_named(tmp_path, monkeypatch):
    def export(*args, **kwargs):
        try:
            raise NotImplementedError("a loop over the words\nand a long report")
        except NotImplementedError as error:
            raise torch.onnx.errors.OnnxExporterError("how to write to PyTorch") from error

    save(tmp_path / "model", "token")
    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(ValueError, match=r"^torch cannot export 'bert' with 'resnet': a loop over the words$"):
        export_model(tmp_path / "model", tmp_path / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_missing_extra_is_named(tmp_path, hide_package, never_loads):
    config = tiny_config()
    config.architectures = ["VTFusionForTokenClassification"]
    config.save_pretrained(tmp_path / "model")
    hide_package("onnxruntime")
    with pytest.raises(ImportError, match=r"pip install vtfusion\[onnx\]"):
        export_model(tmp_path / "model", tmp_path / "onnx")


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_a_difference_leaves_nothing(wrong, tmp_path, monkeypatch):
    model = save(tmp_path / "model", "token")

    class Session:
        def __init__(self, *args, **kwargs):
            pass

        def get_outputs(self):
            return [SimpleNamespace(name="fusion_gate"), SimpleNamespace(name="logits")]

        def run(self, names, inputs):
            with torch.no_grad():
                outputs = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
            # only where there are several images
            error = wrong if inputs["image_mask"].shape[1] > 1 and inputs["image_mask"].any() else 0.0
            return [outputs.fusion_gate.numpy(), outputs.logits.numpy() + error]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr("vtfusion.app.export._write", lambda *args: None)
    with pytest.raises(ValueError, match=r"differ by (1\.0e\+00|nan), more than the tolerance of 1\.0e-04"):
        export_model(tmp_path / "model", tmp_path / "new" / "onnx")
    assert not list((tmp_path / "new").iterdir())
    if wrong == 1.0:
        farthest = export_model(tmp_path / "model", tmp_path / "new" / "onnx", tolerance=1.1)
        assert farthest == pytest.approx(1.0, abs=1e-5)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("keep", encoding="utf-8")
    for output in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(FileExistsError, match="new or empty"):
            export_model("model", output)
