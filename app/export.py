"""A trained model as a folder that onnxruntime runs, checked against PyTorch before it appears."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from .. import modeling_vtfusion
from ..base_vtfusion import accepts
from ..processing_vtfusion import VTFusionProcessor

# What the file returns of each head that can be exported.
_OUTPUTS = {
    "VTFusionForTokenClassification": ("logits", "fusion_gate"),
    "VTFusionForSequenceClassification": ("logits", "fusion_gate"),
    "VTFusionForVisualQuestionAnswering": ("logits", "fusion_gate"),
    "VTFusionForQuestionAnswering": ("start_logits", "end_logits", "fusion_gate"),
}
# Rows, tokens and images per row: those of the export, none of them 0 or 1, which torch would take for constants,
# and those of the check.
_EXPORTED = (3, 8, 2)
_CHECKED = ((1, 5, 1), (4, 11, 3))


class _TensorsOnly(nn.Module):
    """The model between the inputs and the outputs of the file, both in their order."""

    def __init__(self, model: PreTrainedModel, inputs: tuple[str, ...], outputs: tuple[str, ...]):
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model(**dict(zip(self.inputs, tensors, strict=True)), return_dict=True)
        return tuple(outputs[name] for name in self.outputs)


def export_model(
    model: str | os.PathLike, output: str | os.PathLike, revision: str = "main", tolerance: float = 1e-4
) -> float:
    """
    Writes a folder of `model.onnx`, the processor and `config.json`, which appears when the file has been found to
    give what PyTorch gives. The file takes `input_ids`, `attention_mask`, `token_type_ids` where the text encoder has
    them, `pixel_values` and `image_mask`, with any number of rows, tokens and images per row; a row whose `image_mask`
    is zero gives the text-only result. It is in float32, whatever the model was saved in.

    Args:
        model (`str` or `os.PathLike`): a trained model, a folder or a Hub id.
        output (`str` or `os.PathLike`): the folder, new or empty.
        revision (`str`, *optional*, defaults to `"main"`): branch, tag or commit of the model.
        tolerance (`float`, *optional*, defaults to 1e-4): how far a logit or a gate may be from PyTorch's.

    Returns:
        `float`: how far the farthest was.

    Raises:
        `ValueError`: The head or an encoder cannot be exported, or the results differ by more than `tolerance`.
        `FileExistsError`: There is something in `output`.
        `ImportError`: The extra `onnx` is not installed.
    """
    output = Path(output)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise FileExistsError(f"{output} is there already: name a folder that is new or empty.")
    config = AutoConfig.from_pretrained(model, revision=revision)
    head = (config.architectures or ["?"])[0]
    if head not in _OUTPUTS:
        raise ValueError(f"{model} is a {head}, which cannot be exported. These can: {', '.join(_OUTPUTS)}.")
    if config.vision_config is None:
        raise ValueError(f"{model} reads precomputed features: there is no vision encoder to export.")
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  what torch exports with
    except ImportError as error:
        raise ImportError("The export needs ONNX. Install it with `pip install vtfusion[onnx]`.") from error

    processor = VTFusionProcessor.from_pretrained(model, revision=revision)
    size = _image_size(processor)
    # Eager attention becomes the same nodes as the others, but exports where they fail (Swin).
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    loaded = getattr(modeling_vtfusion, head).from_pretrained(model, revision=revision, **options).eval()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as temporary:
        folder = Path(temporary, "export")  # with the usual rights, unlike the one that it lies in
        processor.save_pretrained(folder)
        loaded.config.save_pretrained(folder)
        _write(loaded, folder / "model.onnx", size, _OUTPUTS[head])
        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        difference = _difference(loaded, session, size)
        # put so that NaN fails too
        if not difference <= tolerance:
            raise ValueError(
                f"onnxruntime and PyTorch differ by {difference:.1e}, more than the tolerance of {tolerance:.1e}; "
                "nothing was written."
            )
        folder.rename(output)
    return difference


def _image_size(processor: VTFusionProcessor) -> tuple[int, int]:
    """Height and width of what the processor makes of any image."""
    if processor.image_processor is None:
        raise ValueError("The processor has no image processor, which would tell the size of the images.")
    drawn = [Image.new("RGB", shape, "grey") for shape in ((640, 480), (300, 500))]
    batches = [processor(text="a", images=image, return_tensors="pt") for image in drawn]
    sizes = {tuple(batch["pixel_values"].shape[-2:]) for batch in batches}
    if len(sizes) > 1 or "pixel_mask" in batches[0]:
        raise ValueError(
            "The file takes images of one size, without padding, but the image processor makes "
            f"{' and '.join(f'{height} x {width}' for height, width in sorted(sizes))} of different images. Give it a "
            "`size` with `height` and `width`, or a centre crop, and train with it."
        )
    return sizes.pop()


def _inputs(model: PreTrainedModel, shape: tuple[int, int, int], size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """
    Random inputs of `shape` (rows, tokens, images per row). The last of several rows has padding, the first of them no
    image, and the second one image fewer.
    """
    rows, length, images = shape
    generator = torch.Generator().manual_seed(0)
    words = model.config.text_config.get_text_config().vocab_size
    inputs = {
        "input_ids": torch.randint(words, (rows, length), generator=generator),
        "attention_mask": torch.ones(rows, length, dtype=torch.long),
    }
    if accepts(model.base_model.text_model, "token_type_ids"):
        inputs["token_type_ids"] = torch.zeros(rows, length, dtype=torch.long)
    inputs["pixel_values"] = torch.randn(rows, images, 3, *size, generator=generator)
    inputs["image_mask"] = torch.ones(rows, images, dtype=torch.long)
    if rows > 1:
        inputs["attention_mask"][-1, -2:] = 0
        inputs["image_mask"][0] = 0
        inputs["image_mask"][1, -1] = 0
    return inputs


def _write(model: PreTrainedModel, file: Path, size: tuple[int, int], outputs: tuple[str, ...]) -> None:
    inputs = _inputs(model, _EXPORTED, size)
    axes = {name: {0: "batch", 1: "images" if name in ("pixel_values", "image_mask") else "length"} for name in inputs}
    try:
        program: Any = torch.onnx.export(
            _TensorsOnly(model, tuple(inputs), outputs).eval(),
            tuple(inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=(tuple(axes.values()),),
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        text, vision = model.config.text_config.model_type, model.config.vision_config.model_type
        # its own message is how to report this to PyTorch
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise ValueError(f"torch cannot export '{text}' with '{vision}': {reason}") from error
    program.save(file)


def _difference(model: PreTrainedModel, session: Any, size: tuple[int, int]) -> float:
    """The farthest that onnxruntime is from PyTorch, in shapes other than the exported, with images and without."""
    names = [output.name for output in session.get_outputs()]
    differences = []
    for shape in _CHECKED:
        inputs = _inputs(model, shape, size)
        text_only = {name: value for name, value in inputs.items() if name not in ("pixel_values", "image_mask")}
        no_image = {**inputs, "image_mask": torch.zeros_like(inputs["image_mask"])}
        for given, reference in ((inputs, inputs), (no_image, text_only)):
            results = session.run(names, {name: value.numpy() for name, value in given.items()})
            with torch.no_grad():
                expected = model(**reference)
            differences += [
                (torch.from_numpy(result) - expected[name]).abs().max()
                for name, result in zip(names, results, strict=True)
            ]
    return torch.stack(differences).max().item()


__all__ = ["export_model"]
