#!/usr/bin/env python
"""
On a GPU: training in bfloat16 with scaled-dot-product attention, VTFusion of BERT-base and ViT-B beside the models of
`peers.py` at the same size; texts and tokens a second, peak memory, and the share of the rate at which this card multiplies
matrices.

python benchmarks/gpu_step.py

The contenders are those of `peers.py`, 768 wide and 12 layers deep, and VTFusion with a ViT-B that is trained, that is frozen,
or whose features are cached. A step is forward under autocast, backward, clipping and fused AdamW; they take turns, each time
is that of `steps` steps between two synchronisations. The card's rate is the best of a product of two square matrices in
bfloat16, measured here; a model's rate counts the products, attention and convolutions of forward and backward. There is no
result without a GPU: the program stops and says so.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import peers
import torch
from measuring import MB, Results, compare, parse, take_turns, timed
from models import count_flops, make_training_step
from torch import nn
from transformers import BertConfig, ViTConfig

from vtfusion import VTFusionConfig, VTFusionForTokenClassification

QUICK = {"hidden_size": 64, "depth": 3, "batch_size": 2, "length": 8, "image_size": 64, "repeats": 2, "steps": 1}


@dataclass
class GpuArguments(peers.SizeArguments):
    hidden_size: int = field(default=768, metadata={"help": "Width of every transformer."})
    batch_size: int = field(default=64, metadata={"help": "Texts with a picture in a batch."})
    length: int = field(default=128, metadata={"help": "Tokens of a text."})
    steps: int = field(default=10, metadata={"help": "Steps in a time."})
    matrix_size: int = field(default=8192, metadata={"help": "Side of the matrices that tell the card's rate."})


def make_with_vit(args: peers.SizeArguments, frozen: bool) -> nn.Module:
    """VTFusion of a BERT and a ViT on patches of 16 pixels, of one size."""
    sizes = peers.transformer(args)
    vision = ViTConfig(**sizes, image_size=args.image_size, patch_size=16)
    model = VTFusionForTokenClassification(VTFusionConfig(BertConfig(**sizes), vision, num_labels=peers.NUM_LABELS))
    if frozen:
        model.freeze_vision_encoder()
    return model


CONTENDERS: dict[str, peers.Contender] = {
    "VTFusion, ViT trained": (partial(make_with_vit, frozen=False), ("pixel_values",)),
    "VTFusion, ViT frozen": (partial(make_with_vit, frozen=True), ("pixel_values",)),
    **{name: made for name, made in peers.CONTENDERS.items() if "MobileNetV2" not in name},
}


def matrix_rate(size: int, device: str, repeats: int = 20) -> float:
    """Floating-point operations a second of a product of two matrices in bfloat16, the best of some."""
    first, second = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))

    def multiply() -> None:
        first @ second
        torch.cuda.synchronize()

    multiply()
    return 2 * size**3 / min(timed(multiply)() for _ in range(repeats))


def main(args: GpuArguments) -> None:
    if not torch.cuda.is_available():
        raise SystemExit("gpu_step.py needs a CUDA GPU, and torch finds none here: nothing was measured.")
    results = Results("gpu_step", "How fast does it train on a GPU?", args)
    results.machine["gpu"] = torch.cuda.get_device_name()
    rate = matrix_rate(args.matrix_size, "cuda")
    results.rows.append({"kind": "matrix rate", "flops_per_second": rate})
    results.add_note(f"{torch.cuda.get_device_name()}: {rate / 1e12:.0f} TFLOP/s in a product of bfloat16 matrices.")
    measures, flops, memory = {}, {}, {}
    for name, contender in CONTENDERS.items():
        others = torch.cuda.memory_allocated()
        model, batch = peers.make_contender(contender, args, "cuda")
        step = partial(make_training_step(model), batch, bf16=True)
        torch.cuda.reset_peak_memory_stats()
        step()
        # the models before this one stay, with what their optimizers keep
        memory[name] = (torch.cuda.max_memory_allocated() - others) / MB
        flops[name] = count_flops(step)

        def measure(step: Callable[[], None] = step) -> None:
            for _ in range(args.steps):
                step()
            torch.cuda.synchronize()

        measures[name] = timed(measure)
    times = take_turns(measures, args.repeats)
    lines = []
    for name, compared in compare(times, next(iter(CONTENDERS))).items():
        seconds = compared.seconds / args.steps
        row: dict[str, Any] = {
            "kind": "training",
            "contender": name,
            **asdict(compared),
            "seconds": seconds,
            "examples_per_second": args.batch_size / seconds,
            "tokens_per_second": args.batch_size * args.length / seconds,
            "share_of_matrix_rate": flops[name] / seconds / rate,
            "step_memory_mb": memory[name],
        }
        results.rows.append(row)
        line = (name, f"{row['examples_per_second']:.0f}", f"{row['tokens_per_second']:,.0f}", f"{compared.ratio:.2f}")
        share = f"{row['share_of_matrix_rate']:.0%}"
        lines.append((*line, compared.spread, share, f"{memory[name]:.0f}"))
    results.add_table(
        f"Training in bfloat16, batches of {args.batch_size}, {args.length} tokens, a picture of {args.image_size} pixels",
        ("model", "texts/s", "tokens/s", "ratio of times", "quartiles", "share of the card's rate", "memory, MB"),
        lines,
    )
    results.save()


if __name__ == "__main__":
    main(parse(GpuArguments, QUICK))
