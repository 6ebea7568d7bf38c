#!/usr/bin/env python
"""
How often does the image ablation find a difference where there is none? Two systems that are equally good are simulated
with several trainings each, and compared as `--image_ablation` does, and by a bootstrap over texts alone.

python benchmarks/ablation_null.py --repeats 400

`training_noise` is the standard deviation of a training's shift on the logit of finding an entity. Prints the shares of
studies with p < 0.05 as a Markdown table.
"""

from dataclasses import dataclass, field

from transformers import HfArgumentParser


@dataclass
class NullArguments:
    repeats: int = field(default=400, metadata={"help": "Simulated studies for each line."})
    num_texts: int = field(default=300, metadata={"help": "Test texts of a study."})
    num_resamples: int = field(default=500, metadata={"help": "Resamples of a bootstrap."})
    seed: int = field(default=0, metadata={"help": "Of the simulation."})


def main(args: NullArguments) -> None:
    import numpy as np
    from transformers.utils import logging

    from vtfusion.training.ablation import paired_bootstrap

    def f1(totals: np.ndarray) -> dict[str, np.ndarray]:
        return {"F1": 2 * totals[..., 0] / (totals[..., 1] + totals[..., 2])}

    def p_value(systems: list[np.ndarray]) -> float:
        counts = dict(zip("ab", systems, strict=True))
        return paired_bootstrap(counts, f1, [("a", "b")], args.num_resamples)[0].p_value

    print("| seeds | training noise | bootstrap over texts alone | image ablation |\n| --- | --- | --- | --- |")
    for num_seeds in (1, 2, 3, 5):
        for noise in (0.0, 0.1, 0.3):
            rng = np.random.default_rng(args.seed)
            alone = ours = 0
            for _ in logging.tqdm(range(args.repeats), leave=False):
                true = rng.integers(1, 4, args.num_texts)
                hard = rng.normal(size=args.num_texts)  # what is hard for one is hard for the other
                systems = []
                for _ in range(2):
                    chances = 1 / (1 + np.exp(-(1 + hard + noise * rng.normal(size=(num_seeds, 1)))))
                    right = rng.binomial(true, chances)
                    systems.append(np.stack([right, *np.broadcast_arrays(true, true, right)[:2]], axis=-1))
                ours += p_value(systems) < 0.05
                # As many are predicted as are true, so the F1 of all trainings together is their mean F1.
                alone += p_value([system.sum(axis=0, keepdims=True) for system in systems]) < 0.05
            print(f"| {num_seeds} | {noise} | {alone / args.repeats:.1%} | {ours / args.repeats:.1%} |", flush=True)


if __name__ == "__main__":
    main(*HfArgumentParser(NullArguments).parse_args_into_dataclasses())
