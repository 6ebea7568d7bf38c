#!/usr/bin/env python
"""
Fine-tunes VTFusion to classify texts with or without images (sentiment, intent, any label; several labels; a number),
and tests it with the true images and with none.

On your own files (JSONL, CSV, parquet, or a folder with metadata.jsonl; columns `text`, `label` and `image`, or say
which with `--text_column`, `--label_column`, `--image_column`):

python scripts/run_classification.py \
    --text_model google-bert/bert-base-cased --vision_model microsoft/resnet-50 \
    --train_file train.jsonl --validation_file valid.jsonl --test_file test.jsonl \
    --learning_rate 5e-5 --fusion_learning_rate 5e-4 --num_train_epochs 5 \
    --output_dir outputs/classification

Did the image help? `--image_ablation --seeds 0 1 2` trains the model and its text-only twin for every seed, tests with
the true, shuffled, blank and no image, and prints one table and a verdict. What text or image tells alone: the same
command with `--text_only` or `--image_only`. Classes of unequal size: `--class_weights`, in the order of the labels.

`--metric_for_best_model` is `macro_f1`, or `accuracy`, which is then also what is reported; for numbers `r2`. `loss` or
another score of `results.json` chooses the checkpoint only. Writes to `output_dir`: the model with its
processor and code, `results.json`, `test_report.txt` and `test_predictions.jsonl`; an ablation writes these into
`seed-N/fused` and `seed-N/text_only`, and `image_ablation.{md,json,png}`.
"""

from typing import Any

from vtfusion.training.arguments import (
    AblationArguments,
    ClassificationDataArguments,
    ModelArguments,
    RunArguments,
    ScriptArgumentParser,
    VTFusionTrainingArguments,
)


def run(
    model_args: ModelArguments, data_args: ClassificationDataArguments, training_args: VTFusionTrainingArguments
) -> dict[str, Any]:
    """One training with its tests."""
    from vtfusion import VTFusionForSequenceClassification
    from vtfusion.training.classification import TextEvaluator, encode_labelled_texts, load_labelled_texts
    from vtfusion.training.fine_tuning import fine_tune, start_run
    from vtfusion.training.images import prepare_images
    from vtfusion.training.loading import load_model
    from vtfusion.training.windows import by_length

    start_run(training_args)
    with training_args.main_process_first(desc="loading the data"):
        dataset, problem_type, label_names = load_labelled_texts(
            data_args, model_args.model_name_or_path, model_args.model_revision
        )
    if problem_type == "regression" and training_args.metric_for_best_model == "macro_f1":
        training_args.metric_for_best_model = "r2"  # the default is for classes
    settings: dict[str, Any] = {} if label_names else {"num_labels": 1}
    model, processor = load_model(
        VTFusionForSequenceClassification, model_args, label_names, problem_type=problem_type, **settings
    )
    images = prepare_images(dataset, model, processor, data_args, training_args)
    windows = by_length(
        {
            split: encode_labelled_texts(
                rows, processor, images.keys[split], data_args.num_proc, image_only=data_args.image_only
            )
            for split, rows in dataset.items()
        }
    )
    evaluators = {
        split: TextEvaluator(rows, windows[split], problem_type, label_names, training_args.metric_for_best_model)
        for split, rows in dataset.items()
        if split != "train"
    }
    run_args = RunArguments("text-classification", model_args, data_args, training_args)
    return fine_tune(model, processor, images, windows, evaluators, run_args)


def ablate(
    model_args: ModelArguments,
    data_args: ClassificationDataArguments,
    training_args: VTFusionTrainingArguments,
    seeds: list[int],
) -> None:
    """The study of `--image_ablation`."""
    from functools import partial

    from vtfusion.app.ablation_plot import save_ablation
    from vtfusion.training.ablation import ablate_images
    from vtfusion.training.classification import (
        class_scores,
        load_labelled_texts,
        read_class_counts,
        summary_metric,
    )
    from vtfusion.training.fine_tuning import labelled_splits

    dataset, problem_type, label_names = load_labelled_texts(
        data_args, model_args.model_name_or_path, model_args.model_revision
    )
    report = ablate_images(
        run,
        labelled_splits(dataset, "label"),
        partial(read_class_counts, problem_type=problem_type, label_names=label_names),
        partial(class_scores, problem_type=problem_type, label_names=label_names),
        summary_metric(problem_type, training_args.metric_for_best_model),
        model_args,
        data_args,
        training_args,
        seeds,
    )
    save_ablation(report, training_args.output_dir)


if __name__ == "__main__":
    parser = ScriptArgumentParser(
        (ModelArguments, ClassificationDataArguments, AblationArguments, VTFusionTrainingArguments)
    )
    parser.set_defaults(metric_for_best_model="macro_f1")
    model_args, data_args, ablation_args, training_args = parser.parse_args_into_dataclasses()
    if ablation_args.image_ablation:
        ablate(model_args, data_args, training_args, ablation_args.seeds)
    else:
        run(model_args, data_args, training_args)
