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

from typing import Any

from vtfusion.training.arguments import (
    AblationArguments,
    ModelArguments,
    RunArguments,
    ScriptArgumentParser,
    TokenDataArguments,
    VTFusionTrainingArguments,
)


def run(
    model_args: ModelArguments, data_args: TokenDataArguments, training_args: VTFusionTrainingArguments
) -> dict[str, Any]:
    """One training with its tests."""
    from vtfusion import VTFusionForTokenClassification
    from vtfusion.training.fine_tuning import fine_tune, start_run
    from vtfusion.training.images import prepare_images
    from vtfusion.training.loading import load_model
    from vtfusion.training.token_classification import WordEvaluator, encode_windows, load_splits
    from vtfusion.training.windows import by_length

    start_run(training_args)
    with training_args.main_process_first(desc="loading the data"):
        dataset = load_splits(data_args, model_args.model_name_or_path, model_args.model_revision)
    label_names = next(iter(dataset.values())).features["ner_tags"].feature.names
    model, processor = load_model(VTFusionForTokenClassification, model_args, label_names)
    processor.decoding = data_args.decoding or processor.decoding
    images = prepare_images(dataset, model, processor, data_args, training_args)
    windows = by_length(
        {
            split: encode_windows(rows, processor, images.keys[split], data_args.num_proc)
            for split, rows in dataset.items()
        }
    )
    evaluators = {
        split: WordEvaluator(rows, windows[split], processor) for split, rows in dataset.items() if split != "train"
    }
    run_args = RunArguments("token-classification", model_args, data_args, training_args)
    return fine_tune(model, processor, images, windows, evaluators, run_args)


def ablate(
    model_args: ModelArguments,
    data_args: TokenDataArguments,
    training_args: VTFusionTrainingArguments,
    seeds: list[int],
) -> None:
    """The study of `--image_ablation`."""
    from functools import partial

    from vtfusion.app.ablation_plot import save_ablation
    from vtfusion.training.ablation import ablate_images
    from vtfusion.training.metrics import entity_f1_scores
    from vtfusion.training.tags import split_tag
    from vtfusion.training.token_classification import load_splits, read_entity_counts

    dataset = load_splits(data_args, model_args.model_name_or_path, model_args.model_revision)
    tags = next(iter(dataset.values())).features["ner_tags"].feature.names
    types = sorted({entity for _, entity in map(split_tag, tags) if entity})
    report = ablate_images(
        run,
        dataset,
        partial(read_entity_counts, entity_types=types),
        partial(entity_f1_scores, entity_types=types),
        "F1",
        model_args,
        data_args,
        training_args,
        seeds,
    )
    save_ablation(report, training_args.output_dir)


if __name__ == "__main__":
    parser = ScriptArgumentParser((ModelArguments, TokenDataArguments, AblationArguments, VTFusionTrainingArguments))
    model_args, data_args, ablation_args, training_args = parser.parse_args_into_dataclasses()
    if ablation_args.image_ablation:
        ablate(model_args, data_args, training_args, ablation_args.seeds)
    else:
        run(model_args, data_args, training_args)
