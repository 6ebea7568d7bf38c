#!/usr/bin/env python
"""
The main job in a few minutes on a CPU, without a download: builds the synthetic sample set, in which only the picture
tells what a name stands for, fine-tunes two tiny encoders with fusion on it by `run_ner.py`, tests with true, shuffled,
blank and no images beside the ceiling of the text alone, and draws where the model looked.

python scripts/quickstart.py --output_dir outputs/quickstart

Writes `results.json`, the model with its processor in `model/`, and pictures in `heatmaps/`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import HfArgumentParser

if TYPE_CHECKING:
    from datasets import Dataset

    from vtfusion import VTFusionForTokenClassification, VTFusionProcessor


@dataclass
class QuickstartArguments:
    output_dir: str = field(default="outputs/quickstart", metadata={"help": "Where everything is written."})
    seed: int = field(default=0, metadata={"help": "Seed of the data, of the weights and of the training."})
    num_train: int = field(default=4000, metadata={"help": "Rows to train on."})
    num_validation: int = field(default=400, metadata={"help": "Rows that choose the best epoch."})
    num_test: int = field(default=1000, metadata={"help": "Rows to test on."})
    num_train_epochs: float = field(default=7, metadata={"help": "Passes over the training rows."})
    num_heatmaps: int = field(default=8, metadata={"help": "Pictures to draw."})


def main(args: QuickstartArguments) -> dict[str, Any]:
    import json
    import shutil
    import time

    import run_ner

    from vtfusion import VTFusionForTokenClassification, VTFusionProcessor
    from vtfusion.training.arguments import ModelArguments, TokenDataArguments, VTFusionTrainingArguments
    from vtfusion.training.sample_data import build_sample_dataset, build_tiny_encoders, text_only_ceiling

    started = time.perf_counter()
    output = Path(args.output_dir)
    print("Building the synthetic sample set …", flush=True)
    dataset = build_sample_dataset(args.seed, args.num_train, args.num_validation, args.num_test)
    dataset.save_to_disk(str(output / "data"))
    text_folder, vision_folder = build_tiny_encoders(output / "encoders", dataset, args.seed)
    ceiling = text_only_ceiling(dataset["test"])
    print(f"Synthetic test set: without its pictures no model can pass a strict entity F1 of {100 * ceiling:.1f}")

    results = run_ner.run(
        ModelArguments(
            text_model=str(text_folder),
            vision_model=str(vision_folder),
            freeze_vision=False,
            fusion_hidden_size=128,
            vision_loss_weight=1.0,  # encoders without any pretraining: the images need a loss of their own
        ),
        TokenDataArguments(dataset_name=str(output / "data"), image_conditions=["true", "shuffled", "blank", "none"]),
        VTFusionTrainingArguments(
            output_dir=str(output / "training"),
            learning_rate=1e-3,
            fusion_learning_rate=2e-3,
            warmup_steps=0.1,
            num_train_epochs=args.num_train_epochs,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=100,
            logging_steps=25,
            seed=args.seed,
        ),
    )
    # what a user loads: without checkpoints, optimizer states and reports
    model = VTFusionForTokenClassification.from_pretrained(output / "training")
    processor = VTFusionProcessor.from_pretrained(output / "training")
    model.save_pretrained(output / "model")
    processor.save_pretrained(output / "model")
    shutil.copy(output / "training" / "README.md", output / "model")

    pointing = draw_heatmaps(model, processor, dataset["test"], output / "heatmaps", args.num_heatmaps)
    f1 = {condition: scores["f1"] for condition, scores in results["test"].items()}
    summary = {
        "data": "synthetic sample set, only the picture decides",
        "test_f1": {
            "true_image": f1["true"],
            "shuffled_image": f1["shuffled"],
            "blank_image": f1["blank"],
            "no_image": f1["none"],
            "text_only_ceiling": ceiling,
        },
        "pointing": pointing,
        "seconds": results["train_seconds"],
        "total_seconds": round(time.perf_counter() - started, 1),
        "seed": args.seed,
        "versions": results["versions"],
    }
    (output / "results.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")

    print("\nStrict entity F1 on the synthetic test set")
    for name, value in summary["test_f1"].items():
        print(f"  {name.replace('_', ' '):18} {100 * value:6.2f}")
    print(
        f"The attention of a name has its peak on the drawn thing in {pointing['peak_in_box']:.0%} of "
        f"{pointing['names']} names (a random peak: {pointing['chance']:.0%})."
    )
    print(f"Trained in {summary['seconds']:.0f} s. Model: {output / 'model'}  Pictures: {output / 'heatmaps'}")
    return summary


def draw_heatmaps(
    model: "VTFusionForTokenClassification",
    processor: "VTFusionProcessor",
    dataset: "Dataset",
    folder: Path,
    count: int,
    sample: int = 200,
) -> dict[str, float]:
    """
    Draws the first rows that only a picture decides, and counts on a sample how often the peak of a name's attention
    lies on the drawn thing.
    """
    from vtfusion.app.plotting import plot_entities
    from vtfusion.training.gate_report import look_into

    folder.mkdir(parents=True, exist_ok=True)
    rows = [i for i, kind in enumerate(dataset["kind"]) if kind in ("ambiguous", "several_images")][:sample]
    several = [i for i in rows if dataset[i]["kind"] == "several_images"]
    drawn = {*[i for i in rows if i not in several][: count - min(len(several), count // 4)], *several[: count // 4]}
    hits, names, chance = 0, 0, 0.0
    for index in rows:
        row = dataset[index]
        entities, heatmaps, gates = look_into(model, processor, row["tokens"], row["images"])
        for entity in entities:
            maps = [heat for heat in heatmaps if heat["words"] == entity["words"]]
            best = max(maps, key=lambda heat: float(heat["heatmap"].max()))
            height, width = best["heatmap"].shape
            peak = divmod(int(best["heatmap"].argmax()), width)
            x0, y0, x1, y1 = row["boxes"][best["image"]]
            # a cell is painted evenly, so its first pixel stands for its middle
            cell = height / 16
            y, x = (peak[0] + cell) / height, (peak[1] + cell) / width
            hits += x0 <= x <= x1 and y0 <= y <= y1
            chance += sum((b[2] - b[0]) * (b[3] - b[1]) for b in row["boxes"]) / len(row["boxes"])
            names += 1
        if index in drawn:
            figure = plot_entities(row["tokens"], entities, row["images"], heatmaps, gates, title="synthetic test row")
            figure.savefig(folder / f"row-{index:04d}.png", dpi=110, bbox_inches="tight")
    return {"names": names, "peak_in_box": hits / max(names, 1), "chance": chance / max(names, 1)}


if __name__ == "__main__":
    main(HfArgumentParser(QuickstartArguments).parse_args_into_dataclasses()[0])
