#!/usr/bin/env python
"""
Fine-tunes VTFusion to find the answer to a question in a text, with or without images, and tests it with the true
images and with none.

On your own files (JSONL, CSV, parquet, or a folder with metadata.jsonl; columns `question`, `context`, `answers` and
`image`, or say which with `--question_column`, `--context_column`, `--answers_column`, `--image_column`). `answers` is as
in SQuAD (`{"text": […], "answer_start": […]}`), or a string or list of strings that is looked up in the context; empty,
where there is no answer. Texts of any length become windows:

python scripts/run_qa.py \
    --text_model google-bert/bert-base-cased --vision_model microsoft/resnet-50 \
    --train_file train.jsonl --validation_file valid.jsonl --test_file test.jsonl \
    --learning_rate 5e-5 --fusion_learning_rate 5e-4 --num_train_epochs 3 \
    --output_dir outputs/qa

Did the image help? `--image_ablation --seeds 0 1 2` trains the model and its text-only twin for every seed, tests with
the true, shuffled, blank and no image, and prints one table and a verdict.

`--metric_for_best_model` is `f1`, `exact_match` or `loss`. Writes to `output_dir`: the model with its processor and code,
`results.json`, `test_report.txt` and `test_predictions.jsonl`; an ablation writes these into `seed-N/fused` and
`seed-N/text_only`, and `image_ablation.{md,json,png}`.
"""

from typing import Any

from vtfusion.training.arguments import (
    AblationArguments,
    ModelArguments,
    QuestionDataArguments,
    RunArguments,
    ScriptArgumentParser,
    VTFusionTrainingArguments,
)


def run(
    model_args: ModelArguments, data_args: QuestionDataArguments, training_args: VTFusionTrainingArguments
) -> dict[str, Any]:
    """One training with its tests."""
    from vtfusion import VTFusionForQuestionAnswering
    from vtfusion.training.fine_tuning import fine_tune, labelled_splits, start_run
    from vtfusion.training.images import prepare_images
    from vtfusion.training.loading import load_model
    from vtfusion.training.question_answering import QuestionEvaluator, encode_contexts, load_contexts
    from vtfusion.training.windows import by_length

    start_run(training_args)
    with training_args.main_process_first(desc="loading the data"):
        dataset = load_contexts(data_args)
    model, processor = load_model(VTFusionForQuestionAnswering, model_args)
    images = prepare_images(dataset, model, processor, data_args, training_args)
    windows = by_length(
        {
            split: encode_contexts(rows, processor, images.keys[split], data_args.num_proc)
            for split, rows in dataset.items()
        }
    )
    labelled = labelled_splits(dataset, "answers")
    some_without = any(not answers["text"] for split in labelled for answers in dataset[split]["answers"])
    if data_args.null_threshold and labelled and not some_without:
        raise ValueError("`null_threshold` is for data with questions that have no answer; here all have one.")
    evaluators = {
        split: QuestionEvaluator(
            rows,
            windows[split],
            processor,
            max_answer_length=data_args.max_answer_length,
            # with nothing but rows to predict, only the flag can tell
            allow_no_answer=some_without or bool(data_args.null_threshold),
            null_threshold=data_args.null_threshold,
        )
        for split, rows in dataset.items()
        if split != "train"
    }
    run_args = RunArguments("question-answering", model_args, data_args, training_args)
    return fine_tune(model, processor, images, windows, evaluators, run_args)


def ablate(
    model_args: ModelArguments,
    data_args: QuestionDataArguments,
    training_args: VTFusionTrainingArguments,
    seeds: list[int],
) -> None:
    """The study of `--image_ablation`."""
    from vtfusion.app.ablation_plot import save_ablation
    from vtfusion.training.ablation import ablate_images
    from vtfusion.training.fine_tuning import labelled_splits
    from vtfusion.training.question_answering import answer_scores, load_contexts, read_answer_counts

    dataset = load_contexts(data_args)
    report = ablate_images(
        run,
        labelled_splits(dataset, "answers"),
        read_answer_counts,
        answer_scores,
        "F1",
        model_args,
        data_args,
        training_args,
        seeds,
    )
    save_ablation(report, training_args.output_dir)


if __name__ == "__main__":
    parser = ScriptArgumentParser(
        (ModelArguments, QuestionDataArguments, AblationArguments, VTFusionTrainingArguments)
    )
    parser.set_defaults(metric_for_best_model="f1")
    model_args, data_args, ablation_args, training_args = parser.parse_args_into_dataclasses()
    if ablation_args.image_ablation:
        ablate(model_args, data_args, training_args, ablation_args.seeds)
    else:
        run(model_args, data_args, training_args)
