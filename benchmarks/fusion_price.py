#!/usr/bin/env python
"""
What fusion costs: a training step and an inference of `VTFusionForTokenClassification` on cached vision features over those
of a plain `AutoModelForTokenClassification` on the same text encoder, beside the ratio of their floating-point operations,
and by which operators the rest goes.

python benchmarks/fusion_price.py

Random weights of two sizes: BERT-base (12 layers, 768 wide) and MiniLM (6 layers, 384 wide). `fused` has the settings of a
new model, with L_t and L_v; `lean` has neither L_v nor the dropout of the fusion layers, as in the studies of
docs/results.md. The batch has `tokens` tokens in all, so texts four times as long come in batches a quarter as large. All
take turns in each round; a step is forward, backward, clipping and AdamW.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from measuring import Results, RoundsArguments, compare, parse, take_turns, timed
from models import MINILM, bert_sizes, count_flops, infer, make_training_step, random_boxes, random_words, wake_fusion
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForTokenClassification, BertConfig

from vtfusion import VTFusionConfig, VTFusionForTokenClassification

SIZES: dict[str, dict[str, int]] = {
    "BERT-base": {},  # the defaults of `BertConfig`
    "MiniLM": MINILM,
    "tiny": bert_sizes(hidden_size=32, num_layers=1),
}
NUM_LABELS = 9
LEAN: dict[str, Any] = {"vision_loss_weight": 0.0, "fusion_dropout": 0.0}
QUICK = {"sizes": ["tiny"], "lengths": [8, 16], "positions": [4], "tokens": 32, "repeats": 2, "profiled_steps": 1}


@dataclass
class PriceArguments(RoundsArguments):
    sizes: list[str] = field(
        default_factory=lambda: ["BERT-base", "MiniLM"],
        metadata={"help": "Of the text encoder.", "choices": list(SIZES)},
    )
    lengths: list[int] = field(default_factory=lambda: [64, 256], metadata={"help": "L, tokens of a text."})
    positions: list[int] = field(default_factory=lambda: [49, 196], metadata={"help": "N, positions of an image."})
    visual_hidden_size: int = field(default=1280, metadata={"help": "Width of the cached features."})
    tokens: int = field(default=1024, metadata={"help": "Tokens in a batch."})
    profiled_steps: int = field(default=3, metadata={"help": "Training steps in a profile."})


def make_models(size: str, args: PriceArguments) -> dict[str, Any]:
    """The plain model and the two fused ones."""
    torch.manual_seed(args.seed)
    text = {**SIZES[size], "max_position_embeddings": max(512, *args.lengths)}
    settings: dict[str, Any]
    models = {"plain": AutoModelForTokenClassification.from_config(BertConfig(**text, num_labels=NUM_LABELS))}
    for name, settings in (("fused", {}), ("lean", LEAN)):
        config = VTFusionConfig(
            BertConfig(**text), visual_hidden_size=args.visual_hidden_size, num_labels=NUM_LABELS, **settings
        )
        models[name] = VTFusionForTokenClassification(config)
        wake_fusion(models[name])
    return models


def make_batch(length: int, positions: int, args: PriceArguments) -> dict[str, Any]:
    """Inputs of a batch as the collator makes them; without positions those of the plain model."""
    generator = torch.Generator().manual_seed(args.seed)
    rows = max(1, args.tokens // length)
    batch = random_words(rows, length, NUM_LABELS, generator)
    if positions:
        batch |= {
            "visual_boxes": random_boxes(rows, 1, positions, generator=generator),
            "visual_embeds": torch.randn(rows, 1, positions, args.visual_hidden_size, generator=generator),
            "image_mask": torch.ones(rows, 1, dtype=torch.long),
        }
    return batch


def operator_times(action: Callable[[], Any], steps: int) -> dict[str, tuple[float, float]]:
    """Milliseconds that each operator itself takes in one call of `action`, and how often it is called."""
    action()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            action()
    return {
        event.key: (event.self_cpu_time_total / 1000 / steps, event.count / steps) for event in profiler.key_averages()
    }


def show_profile(
    results: Results, case: str, plain: dict[str, tuple[float, float]], fused: dict[str, tuple[float, float]]
) -> None:
    """The operators on which the fused model spends most of what it takes longer."""
    nothing = (0.0, 0.0)
    added = {name: fused.get(name, nothing)[0] - plain.get(name, nothing)[0] for name in plain.keys() | fused.keys()}
    total = sum(added.values())
    rows = []
    for name in sorted(added, key=lambda name: -abs(added[name]))[:12]:
        before, after = plain.get(name, nothing), fused.get(name, nothing)
        results.rows.append(
            {"kind": "profile", "case": case, "operator": name, "plain_ms": before[0], "fused_ms": after[0]}
        )
        share = f"{added[name] / total:.0%}"
        calls = f"{before[1]:.0f} → {after[1]:.0f}"
        rows.append((f"`{name}`", f"{before[0]:.1f}", f"{after[0]:.1f}", f"{added[name]:+.1f}", share, calls))
    sums = [sum(value for value, _ in found.values()) for found in (plain, fused)]
    rows.append(("all operators", f"{sums[0]:.1f}", f"{sums[1]:.1f}", f"{total:+.1f}", "100%", ""))
    results.add_table(
        f"Where the rest of a training step goes, {case}: each operator's own milliseconds, by the profiler",
        ("operator", "plain", "fused", "more", "share", "calls"),
        rows,
    )


def compare_models(
    results: Results, size: str, length: int, models: Mapping[str, Any], steps: Mapping[str, Any], args: PriceArguments
) -> list[tuple[str, ...]]:
    """Steps and inferences on texts of one length; for each fused model and number of positions a line of the table."""
    batches = {positions: make_batch(length, positions, args) for positions in (0, *args.positions)}
    contenders = [("plain", 0), *((name, n) for name in ("fused", "lean") for n in args.positions)]
    lines: list[tuple[str, ...]] = []
    for mode in ("training", "inference"):
        actions: dict[tuple[str, int], Callable[[], Any]] = {}
        for name, positions in contenders:
            run = steps[name] if mode == "training" else partial(infer, models[name])
            actions[name, positions] = partial(run, batches[positions])
        flops = {key: count_flops(action) for key, action in actions.items()}
        times = take_turns({key: timed(action) for key, action in actions.items()}, args.repeats)
        for (name, positions), compared in compare(times, ("plain", 0)).items():
            by_flops = flops[name, positions] / flops["plain", 0]
            results.rows.append(
                {
                    "kind": mode,
                    "size": size,
                    "length": length,
                    "positions": positions,
                    "contender": name,
                    **asdict(compared),
                    "flops": flops[name, positions],
                    "flops_ratio": by_flops,
                }
            )
            if name != "plain":
                case = f"{size}, L = {length}, N = {positions}"
                over = f"{compared.ratio / by_flops - 1:+.0%}"
                lines.append((case, mode, name, f"{compared.ratio:.2f}", compared.spread, f"{by_flops:.2f}", over))
    return lines


def main(args: PriceArguments) -> None:
    results = Results("fusion_price", "What does fusion cost beside a plain text model?", args)
    lines = []
    for size in args.sizes:
        models = make_models(size, args)
        steps = {name: make_training_step(model) for name, model in models.items()}
        for length in args.lengths:
            lines += compare_models(results, size, length, models, steps, args)
        length, positions = args.lengths[0], args.positions[0]
        found = {}
        for name, n in (("plain", 0), ("fused", positions)):
            found[name] = operator_times(partial(steps[name], make_batch(length, n, args)), args.profiled_steps)
        show_profile(results, f"{size}, L = {length}, N = {positions}", found["plain"], found["fused"])
    results.add_table(
        "Time over that of the plain model, and the same of floating-point operations",
        ("case", "", "model", "time ratio", "quartiles", "operations' ratio", "time over operations"),
        lines,
    )
    results.save()


if __name__ == "__main__":
    main(parse(PriceArguments, QUICK))
