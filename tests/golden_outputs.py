"""
The outputs that later versions are compared with: tiny models of every kind, with weights and inputs that a formula
gives. Run as a script (`make golden`) it stores what they compute now; CONTRIBUTING.md tells when that is right.
"""

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from heads import HEADS
from tiny import IMAGE, LANGUAGE_MODELS, LENGTH, VISION, VOCAB, tiny_config
from vtfusion import VTFusionConfig, VTFusionForConditionalGeneration, VTFusionModel

FILE = Path(__file__).parent / "golden" / "outputs.json"
MODELS = ("base", *HEADS, "generation")
CONDITIONS = ("images", "mixed", "text")
ROWS, IMAGES = 3, 2

# name of an output: some of its numbers
Outputs = dict[str, list[float]]

_FIELDS = {
    "base": (
        "text_hidden_state",
        "last_hidden_state",
        "visual_hidden_state",
        "visual_context",
        "fusion_gate",
        "similarity",
        "text_to_image_attention",
        "image_to_text_attention",
        "text_embeds",
        "image_embeds",
    ),
    "generation": ("logits", "fusion_gate", "text_to_image_attention"),
    **{name: head.predictions for name, head in HEADS.items()},
}


# ------------------------------------------------------------------------------------------- weights and inputs

_PRIME = 10_007


def whole_numbers(name: str, shape: Sequence[int]) -> torch.Tensor:
    """
    Numbers from 0 to 10,006 that look drawn, a set of its own for each name. No random generator, whose stream may
    change with torch or the machine, and nothing that rounds.
    """
    start = zlib.crc32(name.encode()) % _PRIME
    index = torch.arange(math.prod(shape)) % _PRIME
    return ((index**3 + start * index + start**2) % _PRIME).view(tuple(shape))


def numbers(name: str, shape: Sequence[int]) -> torch.Tensor:
    """From -1 to 1."""
    return whole_numbers(name, shape).double() / _PRIME * 2 - 1


def set_weights(model: torch.nn.Module) -> torch.nn.Module:
    """Weights of a size as after training, so that every part shows in the outputs; float64, so that little rounds."""
    model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = numbers(name, parameter.shape)
            if parameter.dim() > 1:
                values *= math.sqrt(3 * parameter.shape[0] / parameter.numel())
            elif name.endswith("log_scale"):
                values = 1.5 + 0.5 * values
            elif name.endswith("weight"):  # of norms
                values = 1 + 0.2 * values
            else:
                values *= 0.2
            parameter.copy_(values)
    return model


def make_model(name: str) -> Any:
    if name == "generation":
        parts = {"text_config": LANGUAGE_MODELS["gpt2"](), "vision_config": VISION["resnet"]()}
        fusion = {"fusion_hidden_size": 16, "num_fusion_heads": 2, "cross_attention_every": 2}
        return set_weights(VTFusionForConditionalGeneration(VTFusionConfig(**parts, **fusion, num_resampler_tokens=3)))
    head = HEADS.get(name)
    settings = {"num_fusion_layers": 2, "contrastive_loss_weight": 0.2, **(head.config if head else {})}
    return set_weights((head.model if head else VTFusionModel)(tiny_config("bert", "resnet", **settings)))


def make_inputs(name: str, condition: str) -> dict[str, torch.Tensor]:
    """Three texts, the last of them padded where it may be; two pictures each, or in the mixed batch two, none and one."""
    shape = (ROWS, *(HEADS[name].texts if name in HEADS else ()), LENGTH)
    inputs = {
        "input_ids": 3 + whole_numbers("input_ids", shape) % (VOCAB - 3),
        "attention_mask": torch.ones(shape, dtype=torch.long),
    }
    if name != "generation":  # language models want padding on the left, and differ in how they count there
        inputs["attention_mask"][-1, ..., -2:] = 0
        inputs["input_ids"][-1, ..., -2:] = 0
    if condition != "text":
        inputs["pixel_values"] = numbers("pixel_values", (ROWS, IMAGES, 3, IMAGE, IMAGE))
    if condition == "mixed":
        inputs["image_mask"] = torch.tensor([[1, 1], [0, 0], [1, 0]])
    return inputs


# --------------------------------------------------------------------------------------------------------- outputs


def digest(values: torch.Tensor) -> list[float]:
    """Four numbers of a tensor, their mean and their root mean square, each to eight digits; a small one is kept whole."""
    flat = values.detach().double().flatten()
    flat = flat[flat > torch.finfo(torch.float64).min]  # the places of padding, where no answer may lie
    if flat.numel() > 6:
        chosen = flat[torch.arange(4) * (flat.numel() - 1) // 3]
        flat = torch.cat([chosen, flat.mean()[None], flat.square().mean().sqrt()[None]])
    return [float(f"{value:.8g}") for value in flat.tolist()]


def compute(name: str, model: Any, conditions: Sequence[str] = CONDITIONS) -> Outputs:
    """
    What a model predicts and each of its losses.

    Args:
        name (`str`): one of `MODELS`.
        model (`VTFusionPreTrainedModel`): what `make_model` gives for it.
        conditions (`Sequence[str]`, *optional*): of `CONDITIONS`, with pictures, in a mixed batch, without.

    Returns:
        `dict[str, list[float]]`: by model, condition and field.
    """
    found = {}
    for condition in conditions:
        inputs = make_inputs(name, condition)
        labels = {"labels": inputs["input_ids"]} if name == "generation" else {}
        labels = HEADS[name].labels(ROWS) if name in HEADS else labels
        asked = {} if name in HEADS else {"output_fusion_attentions": condition != "text"}
        with torch.no_grad():
            outputs, with_loss = model(**inputs, **asked), model(**inputs, **labels)
            if name == "generation":
                outputs["generated"] = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        fields = {field: outputs.get(field) for field in (*_FIELDS[name], "generated")}
        fields |= {field: value for field, value in with_loss.items() if field.endswith("loss")}
        found |= {f"{name} {condition} {field}": digest(x) for field, x in fields.items() if x is not None}
    return found


def stored_outputs() -> Outputs:
    return json.loads(FILE.read_text(encoding="utf-8"))


def differences(stored: Outputs, found: Outputs) -> list[str]:
    """What differs by more than the rounding of other versions and machines."""
    result = [
        f"{name}: only {'stored' if name in stored else 'found'}" for name in sorted(stored.keys() ^ found.keys())
    ]
    for name in stored.keys() & found.keys():
        old, new = stored[name], found[name]
        near = (math.isclose(*pair, rel_tol=1e-6, abs_tol=1e-8) for pair in zip(old, new, strict=False))
        if len(old) != len(new) or not all(near):
            result.append(f"{name}: stored {old}, found {new}")
    return sorted(result)


def store() -> None:
    found: Outputs = {}
    for name in MODELS:
        found |= compute(name, make_model(name))
    lines = (f"  {json.dumps(name)}: {json.dumps(values, allow_nan=False)}" for name, values in found.items())
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    store()
