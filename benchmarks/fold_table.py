#!/usr/bin/env python
"""
The table of a cross-validation: accuracy and macro F1 of several kinds of runs on the test parts of all folds, each as
mean ± standard deviation over the folds, and differences of the first kind to the others, paired by text, from all test
parts together.

python benchmarks/fold_table.py --runs_dir outputs/mvsa-runs --kinds fused text image

`runs_dir/KIND-K` is the output folder of a run of `scripts/run_classification.py` on fold K = 0 … 4.
"""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from transformers import HfArgumentParser


@dataclass
class TableArguments:
    runs_dir: str = field(metadata={"help": "Folder of the runs."})
    kinds: list[str] = field(metadata={"help": "Names of the kinds of runs; the first is compared with the others."})
    num_folds: int = field(default=5, metadata={"help": "Number of folds."})


def main(args: TableArguments) -> None:
    import numpy as np

    from vtfusion.training.ablation import paired_bootstrap
    from vtfusion.training.classification import SINGLE, class_scores, read_class_counts

    folders = {kind: [Path(args.runs_dir, f"{kind}-{fold}") for fold in range(args.num_folds)] for kind in args.kinds}
    first = folders[args.kinds[0]][0]
    names = list(json.loads((first / "config.json").read_text(encoding="utf-8"))["label2id"])
    scores = partial(class_scores, problem_type=SINGLE, label_names=names)
    counts: dict[str, list[np.ndarray]] = {}
    for kind, runs in folders.items():
        for run in runs:
            for condition, array in read_class_counts(run, SINGLE, names).items():
                counts.setdefault(f"{kind}, {condition}", []).append(array)

    print("| runs, image | accuracy | macro F1 | " + " | ".join(f"F1 {name}" for name in names) + " |")
    print("|" + " --- |" * (3 + len(names)))
    for kind, arrays in counts.items():
        of_fold = scores(np.stack([array.sum(axis=0) for array in arrays]))
        shown = (f"{100 * values.mean():.2f} ± {100 * values.std(ddof=1):.2f}" for values in of_fold.values())
        print(f"| {kind} | {' | '.join(shown)} |")

    # one "seed": every text was tested once, by the model of its fold
    pooled = {kind: np.concatenate(arrays)[None] for kind, arrays in counts.items()}
    own, *others = pooled
    print("\n| difference | accuracy, 95 % interval | macro F1, 95 % interval |\n| --- | --- | --- |")
    found = paired_bootstrap(pooled, scores, [(own, other) for other in others])
    for other in others:
        cells: list[str] = []
        for metric in ("accuracy", "macro_f1"):
            (one,) = (each for each in found if (each.first, each.second, each.metric) == (own, other, metric))
            cells.append(f"{100 * one.mean:+.2f} ({100 * one.low:+.2f} … {100 * one.high:+.2f})")
        print(f"| {own} − {other} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(HfArgumentParser(TableArguments).parse_args_into_dataclasses()[0])
