#!/usr/bin/env python
"""
What images cost a language model that generates: time per new token and peak memory of the bare language model, of the
same with cross-attention but without an image, and with one; and the image's own share, spent once per prompt. They take
turns on the same prompts, in an order that rotates, so each ratio is of one run.

python benchmarks/generation_step.py --text_model outputs/parts/smollm2 --vision_model outputs/parts/mobilenet_v2
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from measuring import take_turns, timed
from transformers import HfArgumentParser


@dataclass
class GenerationStepArguments:
    text_model: str = field(metadata={"help": "A decoder language model: a folder or a Hub id."})
    vision_model: str = field(metadata={"help": "A vision encoder: a folder or a Hub id."})
    batch_size: int = field(default=1, metadata={"help": "Prompts at a time."})
    prompt_length: int = field(default=32, metadata={"help": "Tokens of a prompt."})
    new_tokens: int = field(default=64, metadata={"help": "Tokens to generate."})
    image_size: int = field(default=224, metadata={"help": "Pixels of an image's side."})
    cross_attention_every: int = field(default=4, metadata={"help": "Layers per block of cross-attention."})
    repeats: int = field(default=5, metadata={"help": "Turns of each."})


def main(args: GenerationStepArguments) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from vtfusion import VTFusionForConditionalGeneration
    from vtfusion.training.versions import package_versions

    torch.manual_seed(0)
    bare = AutoModelForCausalLM.from_pretrained(args.text_model).eval()
    fused = VTFusionForConditionalGeneration.from_vision_text_pretrained(
        args.vision_model,
        args.text_model,
        cross_attention_every=args.cross_attention_every,
        vision_loss_weight=0,
    )
    for block in fused.cross_attention_layers:
        # as after a training: zeros might be cheaper
        torch.nn.init.normal_(block.fusion.output.weight, std=0.02)
    vocabulary = bare.config.get_text_config().vocab_size
    ids = torch.randint(10, vocabulary, (args.batch_size, args.prompt_length))
    pixels = torch.rand(args.batch_size, 1, 3, args.image_size, args.image_size)

    def generate(model: Any, length: int, **inputs: Any) -> float:
        started = time.perf_counter()
        model.generate(ids, max_new_tokens=length, min_new_tokens=length, do_sample=False, pad_token_id=0, **inputs)
        return time.perf_counter() - started

    def encode() -> None:
        with torch.no_grad():
            fused.compute_image_key_values(pixel_values=pixels)

    def per_token(model: Any, **inputs: Any) -> Callable[[], float]:
        # what a prompt costs, the image included, is the same for one token as for many
        return lambda: (
            (generate(model, args.new_tokens + 1, **inputs) - generate(model, 1, **inputs)) / args.new_tokens
        )

    kinds: dict[str, Callable[[], float]] = {
        "bare language model, per token": per_token(bare),
        "fused, no image, per token": per_token(fused),
        "fused, with image, per token": per_token(fused, pixel_values=pixels),
        "fused, with image, first token": lambda: generate(fused, 1, pixel_values=pixels),
        "bare language model, first token": lambda: generate(bare, 1),
        "the image alone": timed(encode),
    }
    times = take_turns(kinds, args.repeats)
    reference = statistics.median(times["bare language model, per token"])
    print(f"{torch.get_num_threads()} threads, {package_versions()}")
    print(f"batch {args.batch_size}, prompt {args.prompt_length}, {args.new_tokens} new tokens, {args.repeats} turns")
    for name, values in times.items():
        median = statistics.median(values)
        spread = f"{1000 * min(values):.1f} – {1000 * max(values):.1f}"
        print(f"{name:34} {1000 * median:8.1f} ms ({spread}), {median / reference:5.2f} × a bare token")
    parameters = {
        name: sum(p.numel() for p in model.parameters()) for name, model in (("bare", bare), ("fused", fused))
    }
    vision = sum(p.numel() for p in fused.vision_model.parameters())
    added = parameters["fused"] - parameters["bare"] - vision
    with torch.no_grad():
        states = fused.compute_image_key_values(pixel_values=pixels)["image_key_values"]
    print(
        f"parameters: language model {parameters['bare']:,}, vision encoder {vision:,}, cross-attention {added:,} "
        f"({added / parameters['bare']:.1%}); keys and values of an image: "
        f"{states[0].numel() * states.element_size():,} bytes"
    )


if __name__ == "__main__":
    main(*HfArgumentParser(GenerationStepArguments).parse_args_into_dataclasses())
