#!/usr/bin/env python
"""
Fine-tunes a language model to generate text about pictures (captions, answers, instructions), and tests it with the true
images and with none. By default the language model stays as it is, and only the cross-attention between its layers
learns; `--use_lora` trains adapters of it too, `--freeze_text False` all of it.

On your own files (JSONL, CSV, parquet, or a folder with metadata.jsonl; columns `image` and `captions`, or `question` and
`answer`, or `prompt` and `response`, or `messages`; or say which with `--prompt_column`, `--response_column`,
`--messages_column`, `--image_column`):

python scripts/run_generation.py \
    --text_model HuggingFaceTB/SmolLM2-135M --vision_model google/vit-base-patch16-224 \
    --train_file train.jsonl --validation_file valid.jsonl --test_file test.jsonl \
    --prompt_template "Question: {prompt} Answer:" --metric exact_match \
    --fusion_learning_rate 5e-4 --num_train_epochs 5 --output_dir outputs/generation

An image stands before the prompt, unless the prompt or the template says with <image> where. Only the response is learned.

Did the image help? `--image_ablation --seeds 0 1 2` trains the model and its text-only twin for every seed, tests with the
true, shuffled, blank and no image, and prints one table and a verdict. The twin of a frozen language model is that model.

Writes to `output_dir`: the model with its processor and code, `results.json`, `test_report.txt` and
`test_predictions.jsonl`; an ablation writes these into `seed-N/fused` and `seed-N/text_only`, and
`image_ablation.{md,json,png}`.
"""

from typing import Any

from vtfusion.training.arguments import (
    AblationArguments,
    GenerationArguments,
    GenerationDataArguments,
    GenerationModelArguments,
    RunArguments,
    ScriptArgumentParser,
    VTFusionTrainingArguments,
)


def run(
    model_args: GenerationModelArguments,
    data_args: GenerationDataArguments,
    training_args: VTFusionTrainingArguments,
    generation_args: GenerationArguments,
) -> dict[str, Any]:
    """One training with its tests."""
    from vtfusion.app.generation_page import write_generation_page
    from vtfusion.training.fine_tuning import (
        Evaluator,
        build_trainer,
        start_run,
        test_conditions,
        train_model,
        write_card,
        write_results,
    )
    from vtfusion.training.generation import (
        Generator,
        PromptCollator,
        ResponseEvaluator,
        encode_prompts,
        load_generation_dataset,
        load_generation_model,
    )
    from vtfusion.training.images import prepare_images
    from vtfusion.training.trainer import VTFusionTrainer

    start_run(training_args)
    with training_args.main_process_first(desc="loading the data"):
        dataset = load_generation_dataset(data_args)
    model, processor = load_generation_model(model_args, generation_args)
    image_keys, store, cache = prepare_images(dataset, model, processor, data_args, training_args)
    template = data_args.prompt_template
    windows = {
        split: encode_prompts(rows, processor, image_keys[split], template, data_args.num_proc)
        for split, rows in dataset.items()
    }
    # the logits of a whole vocabulary are not gathered
    training_args.prediction_loss_only = True
    collator = PromptCollator(processor, store, cache)
    trainer = build_trainer(VTFusionTrainer, model, processor, collator, windows, training_args)
    results: dict[str, Any] = train_model(trainer) if "train" in windows else {}
    model.to(training_args.device)
    run_args = RunArguments("image-text-to-text", model_args, data_args, training_args)
    evaluators: dict[str, Evaluator] = {}
    for split, rows in dataset.items():
        if split == "train":
            continue
        generate = Generator(trainer, processor, collator, rows, template, generation_args)
        evaluators[split] = ResponseEvaluator(rows, generate.prompts, generation_args.metric)
        results |= test_conditions(generate, windows, {split: evaluators[split]}, image_keys, run_args)
    write_results(results, training_args)
    if "test" in dataset and training_args.process_index == 0:
        write_generation_page(training_args.output_dir, image_keys["test"], store)
    if "train" in windows:
        write_card(model.config, results, evaluators, run_args)
    if training_args.push_to_hub:
        trainer.push_to_hub()
    return results


def ablate(
    model_args: GenerationModelArguments,
    data_args: GenerationDataArguments,
    training_args: VTFusionTrainingArguments,
    generation_args: GenerationArguments,
    seeds: list[int],
) -> None:
    """The study of `--image_ablation`."""
    from vtfusion.app.ablation_plot import save_ablation
    from vtfusion.training.ablation import ablate_images
    from vtfusion.training.generation import generation_scores, load_generation_dataset, read_generation_counts

    report = ablate_images(
        run,
        load_generation_dataset(data_args),
        read_generation_counts,
        generation_scores,
        generation_args.metric,
        model_args,
        data_args,
        training_args,
        seeds,
        generation_args,
    )
    save_ablation(report, training_args.output_dir)


if __name__ == "__main__":
    parser = ScriptArgumentParser(
        (
            GenerationModelArguments,
            GenerationDataArguments,
            GenerationArguments,
            AblationArguments,
            VTFusionTrainingArguments,
        )
    )
    parser.set_defaults(metric_for_best_model="loss")
    model_args, data_args, generation_args, ablation_args, training_args = parser.parse_args_into_dataclasses()
    if ablation_args.image_ablation:
        ablate(model_args, data_args, training_args, generation_args, ablation_args.seeds)
    else:
        run(model_args, data_args, training_args, generation_args)
