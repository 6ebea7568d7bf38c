#!/usr/bin/env python
"""
Fine-tunes VTFusion for entity recognition on texts with or without images, and tests it with the true images and with
none.

From two encoders, on your own files (CoNLL columns, JSONL, CSV, parquet, or a folder with metadata.jsonl):

python scripts/run_ner.py \
    --text_model google-bert/bert-base-cased --vision_model microsoft/resnet-50 \
    --train_file train.jsonl --validation_file valid.jsonl --test_file test.jsonl \
    --learning_rate 5e-5 --fusion_learning_rate 5e-4 --num_train_epochs 5 \
    --output_dir outputs/ner

Did the image help? `--image_ablation --seeds 0 1 2` trains the model and its text-only twin for every seed, tests with
the true, shuffled, blank and no image, and prints one table and a verdict.

On two processes: `accelerate launch --num_processes 2 scripts/run_ner.py …`; on CPUs
`accelerate launch --multi_gpu --num_processes 2 scripts/run_ner.py … --use_cpu True --ddp_backend gloo`. Testing alone:
give `--model_name_or_path` and only `--test_file`. The text-only twin of a run: the same command with `--text_only`.

Writes to `output_dir`: the model with its processor and code, `results.json`, `test_report.txt` and
`test_predictions.jsonl`; an ablation writes these into `seed-N/fused` and `seed-N/text_only`, and
`image_ablation.{md,json,png}`.
"""

from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from vtfusion.training.arguments import (
    AblationArguments,
    DataArguments,
    ModelArguments,
    VTFusionTrainingArguments,
)


def run(
    model_args: ModelArguments, data_args: DataArguments, training_args: VTFusionTrainingArguments
) -> dict[str, Any]:
    """One training with its tests."""
    import json
    import resource
    import time

    from transformers import EarlyStoppingCallback, set_seed
    from transformers.trainer_utils import get_last_checkpoint
    from transformers.utils import logging

    from vtfusion import VTFusionForTokenClassification
    from vtfusion.training.collator import FusionCollator
    from vtfusion.training.images import apply_condition, prepare_images
    from vtfusion.training.loading import load_model
    from vtfusion.training.metrics import entity_report
    from vtfusion.training.token_classification import WordEvaluator, encode_windows, load_splits, with_image_keys
    from vtfusion.training.trainer import VTFusionTrainer
    from vtfusion.training.versions import package_versions

    logger = logging.get_logger("run_ner")
    if training_args.should_log:
        logging.set_verbosity_info() if training_args.log_level == "info" else logging.set_verbosity_warning()
    is_main = training_args.process_index == 0
    set_seed(training_args.seed)

    # ---- data, model, images
    with training_args.main_process_first(desc="loading the data"):
        dataset = load_splits(data_args, model_args.model_name_or_path, model_args.model_revision)
    label_names = next(iter(dataset.values())).features["ner_tags"].feature.names
    model, processor = load_model(VTFusionForTokenClassification, model_args, label_names)
    started = time.perf_counter()
    image_keys, store, cache = prepare_images(dataset, model, processor, data_args, training_args)
    results: dict[str, Any] = {"feature_seconds": round(time.perf_counter() - started, 1)}

    # ---- windows
    windows = {}
    for split, rows in dataset.items():
        windows[split] = encode_windows(rows, processor, image_keys[split], data_args.num_proc)
        if split != "train":
            # windows of one length in a batch; the evaluator knows where each belongs
            windows[split] = windows[split].sort("length", reverse=True)
    evaluators = {
        split: WordEvaluator(dataset[split], windows[split], processor, data_args.decoding)
        for split in dataset
        if split != "train"
    }

    # ---- training
    if "validation" not in dataset:
        training_args.eval_strategy, training_args.load_best_model_at_end = "no", False
    callbacks = []
    if training_args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(training_args.early_stopping_patience))
    trainer = VTFusionTrainer(
        model=model,
        args=training_args,
        data_collator=FusionCollator(processor, store, cache),
        train_dataset=windows.get("train"),
        eval_dataset=windows.get("validation"),
        compute_metrics=evaluators.get("validation"),
        processing_class=processor,
        callbacks=callbacks,
    )
    if "train" in dataset:
        checkpoint = training_args.resume_from_checkpoint
        if checkpoint in ("True", "true", True):
            checkpoint = get_last_checkpoint(training_args.output_dir)
        started = time.perf_counter()
        trainer.train(resume_from_checkpoint=checkpoint)
        results["train_seconds"] = round(time.perf_counter() - started, 1)
        trainer.save_model()
        trainer.save_state()

    # ---- tests
    for split, evaluator in evaluators.items():
        trainer.compute_metrics = evaluator
        conditions = ["none"] if data_args.text_only else data_args.image_conditions
        # The validation split chose the checkpoint; only its true images are of interest.
        conditions = conditions if split == "test" else conditions[:1]
        predictions, tags = {}, {}
        for condition in conditions:
            keys = apply_condition(image_keys[split], condition, training_args.seed)
            output = trainer.predict(with_image_keys(windows[split], keys), metric_key_prefix=condition)
            predictions[condition] = output.predictions
            tags[condition] = evaluator.predict_tags(output.predictions)
            scores = evaluator.score(tags[condition])
            results.setdefault(split, {})[condition] = scores
            if is_main and condition == conditions[0]:
                report = entity_report(scores)
                print(f"\n{split}, image: {condition}\n{report}")
                Path(training_args.output_dir, f"{split}_report.txt").write_text(report + "\n", encoding="utf-8")
        if is_main and split == "test":
            first = conditions[0]
            others = {f"predicted_tags_{name}": tags[name] for name in conditions[1:]}
            path = Path(training_args.output_dir, "test_predictions.jsonl")
            evaluator.write(
                path, predictions[first], apply_condition(image_keys[split], first, training_args.seed), **others
            )
            line = "  ".join(f"{name} {100 * results[split][name]['f1']:.2f}" for name in conditions)
            print(f"\ntest F1 by image:  {line}")
    results["test_texts_with_image"] = sum(keys is not None for keys in image_keys.get("test", []))
    results["peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    results["seed"] = training_args.seed
    results["versions"] = package_versions()
    if is_main:
        Path(training_args.output_dir).mkdir(parents=True, exist_ok=True)
        path = Path(training_args.output_dir, "results.json")
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        logger.info("results written to %s", path)
    if training_args.push_to_hub:
        trainer.push_to_hub(tasks="token-classification")
    return results


def ablate(
    model_args: ModelArguments,
    data_args: DataArguments,
    seeds: list[int],
    training_args: VTFusionTrainingArguments,
) -> Any:
    """The study of `--image_ablation`."""
    from functools import partial

    from vtfusion.app.plotting import save_ablation
    from vtfusion.training.ablation import ablate_images
    from vtfusion.training.metrics import entity_f1_scores
    from vtfusion.training.tags import split_tag
    from vtfusion.training.token_classification import load_splits, read_entity_counts

    dataset = load_splits(data_args, model_args.model_name_or_path, model_args.model_revision)
    if "test" not in dataset or "train" not in dataset:
        raise ValueError("`image_ablation` needs a split to train on and one to test on.")
    tags = dataset["test"].features["ner_tags"].feature.names
    types = sorted({entity for _, entity in map(split_tag, tags) if entity})
    report = ablate_images(
        run,
        partial(read_entity_counts, entity_types=types),
        partial(entity_f1_scores, entity_types=types),
        "F1",
        model_args,
        data_args,
        seeds,
        training_args,
    )
    if report is not None:
        save_ablation(report, training_args.output_dir)
    return report


def main(
    model_args: ModelArguments,
    data_args: DataArguments,
    ablation_args: AblationArguments,
    training_args: VTFusionTrainingArguments,
) -> Any:
    if ablation_args.image_ablation:
        return ablate(model_args, data_args, ablation_args.seeds or [0, 1, 2], training_args)
    return run(model_args, data_args, training_args)


if __name__ == "__main__":
    parser = HfArgumentParser((ModelArguments, DataArguments, AblationArguments, VTFusionTrainingArguments))
    main(*parser.parse_args_into_dataclasses())
