#!/usr/bin/env python
"""
Fine-tunes VTFusion to answer questions about pictures by choosing from the answers of the training set, and tests it
with the true images and with none.

On your own files (JSONL, CSV, parquet, or a folder with metadata.jsonl; columns `question`, `answer` and `image`, or say
which with `--question_column`, `--answer_column`, `--image_column`). An answer is a string, or a list of what several
people said, which is learned and scored as in VQA v2:

python scripts/run_vqa.py \
    --text_model google-bert/bert-base-uncased --vision_model microsoft/resnet-50 \
    --train_file train.jsonl --validation_file valid.jsonl --test_file test.jsonl \
    --freeze_vision False --learning_rate 5e-5 --fusion_learning_rate 5e-4 --num_train_epochs 5 \
    --output_dir outputs/vqa

Did the image help? `--image_ablation --seeds 0 1 2` trains the model and its question-only twin for every seed, tests
with the true, shuffled, blank and no image, and prints one table and a verdict.

Writes to `output_dir`: the model with its processor and code, `results.json`, `test_report.txt` and
`test_predictions.jsonl`; an ablation writes these into `seed-N/fused` and `seed-N/text_only`, and
`image_ablation.{md,json,png}`.
"""

from typing import Any

from vtfusion.training.arguments import (
    AblationArguments,
    AnswerDataArguments,
    ModelArguments,
    RunArguments,
    ScriptArgumentParser,
    VTFusionTrainingArguments,
)


def run(
    model_args: ModelArguments, data_args: AnswerDataArguments, training_args: VTFusionTrainingArguments
) -> dict[str, Any]:
    """One training with its tests."""
    from vtfusion import VTFusionForVisualQuestionAnswering
    from vtfusion.training.fine_tuning import fine_tune, start_run
    from vtfusion.training.images import prepare_images
    from vtfusion.training.loading import load_model
    from vtfusion.training.visual_question_answering import AnswerEvaluator, encode_questions, load_questions
    from vtfusion.training.windows import by_length

    start_run(training_args)
    with training_args.main_process_first(desc="loading the data"):
        dataset, answer_names, problem_type = load_questions(
            data_args, model_args.model_name_or_path, model_args.model_revision
        )
    model, processor = load_model(
        VTFusionForVisualQuestionAnswering, model_args, answer_names, problem_type=problem_type
    )
    images = prepare_images(dataset, model, processor, data_args, training_args)
    windows = by_length(
        {
            split: encode_questions(
                rows, processor, images.keys[split], answer_names, problem_type, data_args.num_proc
            )
            for split, rows in dataset.items()
        }
    )
    evaluators = {
        split: AnswerEvaluator(rows, windows[split], answer_names, problem_type)
        for split, rows in dataset.items()
        if split != "train"
    }
    run_args = RunArguments("visual-question-answering", model_args, data_args, training_args)
    return fine_tune(model, processor, images, windows, evaluators, run_args)


def ablate(
    model_args: ModelArguments,
    data_args: AnswerDataArguments,
    training_args: VTFusionTrainingArguments,
    seeds: list[int],
) -> None:
    """The study of `--image_ablation`."""
    from vtfusion.app.ablation_plot import save_ablation
    from vtfusion.training.ablation import ablate_images
    from vtfusion.training.fine_tuning import labelled_splits
    from vtfusion.training.visual_question_answering import accuracy_scores, load_questions, read_accuracy_counts

    dataset, _, _ = load_questions(data_args, model_args.model_name_or_path, model_args.model_revision)
    report = ablate_images(
        run,
        labelled_splits(dataset, "answers"),
        read_accuracy_counts,
        accuracy_scores,
        "accuracy",
        model_args,
        data_args,
        training_args,
        seeds,
    )
    save_ablation(report, training_args.output_dir)


if __name__ == "__main__":
    parser = ScriptArgumentParser((ModelArguments, AnswerDataArguments, AblationArguments, VTFusionTrainingArguments))
    parser.set_defaults(metric_for_best_model="accuracy")
    model_args, data_args, ablation_args, training_args = parser.parse_args_into_dataclasses()
    if ablation_args.image_ablation:
        ablate(model_args, data_args, training_args, ablation_args.seeds)
    else:
        run(model_args, data_args, training_args)
