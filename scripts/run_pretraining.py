#!/usr/bin/env python
"""
Pretrains VTFusion on images with captions, without labels: masked words that see the picture, masked words from the text
alone, image-text matching with hard negatives, and the contrastive loss. Every fine-tuning script takes the result as
`--model_name_or_path`.

On your own files (JSONL, CSV, parquet, or a folder with metadata.jsonl; columns `text` or `captions`, one or a list, and
`image`, or say which with `--text_column`, `--image_column`). Rows with the same image are put together:

python scripts/run_pretraining.py \
    --text_model google-bert/bert-base-uncased --vision_model microsoft/resnet-50 \
    --train_file train.jsonl --validation_file valid.jsonl \
    --learning_rate 5e-5 --fusion_learning_rate 5e-4 --num_train_epochs 10 --per_device_train_batch_size 64 \
    --output_dir outputs/pretrained

More than fits on the disk: `--streaming True --max_steps 100000` reads, tokenizes and decodes rows as they are needed and
keeps nothing. Rows with the same image are then not put together, captions that are too long are cut without a count,
and a run that goes on with `--resume_from_checkpoint` first reads past what it has had.

Each loss has a weight, and 0 turns it off: `--fusion_loss_weight`, `--text_loss_weight`, `--matching_loss_weight`,
`--contrastive_loss_weight`. A text model without a mask token needs the first two at 0. The best checkpoint has the
lowest loss on the validation split, with the same masks at every evaluation.

Writes to `output_dir`: the model with its processor and code, and `results.json` with each loss by split.
"""

from typing import Any

from vtfusion.training.arguments import (
    CaptionDataArguments,
    ModelArguments,
    PretrainingArguments,
    RunArguments,
    ScriptArgumentParser,
    VTFusionTrainingArguments,
    random_order,
)


def run(
    model_args: ModelArguments,
    data_args: CaptionDataArguments,
    pretraining_args: PretrainingArguments,
    training_args: VTFusionTrainingArguments,
) -> dict[str, Any]:
    """One training with its tests."""
    from vtfusion.training.captions import (
        CaptionCollator,
        check_streaming,
        load_captioned_images,
        open_caption_streams,
        prepare_captions,
    )
    from vtfusion.training.fine_tuning import build_trainer, start_run, train_model, write_results
    from vtfusion.training.images import ImageStore, prepare_images
    from vtfusion.training.model_card import Score, write_model_card
    from vtfusion.training.pretraining import LOSSES, ImageTextTrainer, load_pretraining_model, masked_part

    start_run(training_args)
    rows: dict[str, Any]
    if pretraining_args.streaming:
        rows = open_caption_streams(data_args, pretraining_args.shuffle_buffer_size, training_args.seed)
        check_streaming(rows, training_args)
        model, processor = load_pretraining_model(model_args)
        store, cache = ImageStore(), None
    else:
        with training_args.main_process_first(desc="loading the data"):
            dataset = load_captioned_images(data_args)
        model, processor = load_pretraining_model(model_args)
        image_keys, store, cache = prepare_images(dataset, model, processor, data_args, training_args)
        rows = prepare_captions(dataset, processor, image_keys, data_args, training_args, keep_without_image=True)
    collator = CaptionCollator(
        processor,
        store,
        cache,
        mlm_probability=masked_part(model, pretraining_args),
        seed=training_args.seed,
        on_bad_image=data_args.on_bad_image,
    )
    learned = [name for name in LOSSES if getattr(model.config, f"{name}_weight") > 0]
    trainer = build_trainer(
        ImageTextTrainer, model, processor, collator, rows, training_args, metrics=["loss", *learned]
    )
    results: dict[str, Any] = train_model(trainer) if "train" in rows else {}
    for name, split in rows.items():
        if name == "train":
            continue
        metrics = trainer.evaluate(split, metric_key_prefix=name)
        results[name] = {key.removeprefix(f"{name}_"): value for key, value in metrics.items() if key.endswith("loss")}
        if training_args.process_index == 0:
            losses = (f"{key} {value:.4f}" for key, value in results[name].items())
            print(f"\n{name}: {'  '.join(losses)}")
    if collator.bad_images and training_args.process_index == 0:
        print(f"{collator.bad_images:,} times an image could not be read and was left out")
    if "train" in rows and training_args.process_index == 0:
        figures = [
            Score(name, "", metric, value)
            for name in rows
            if name != "train"
            for metric, value in results[name].items()
        ]
        run_args = RunArguments("fill-mask", model_args, data_args, training_args)
        write_model_card(model.config, results, figures, run_args)
    write_results(results, training_args)
    if training_args.push_to_hub:
        trainer.push_to_hub()
    return results


if __name__ == "__main__":
    parser = ScriptArgumentParser(
        (ModelArguments, CaptionDataArguments, PretrainingArguments, VTFusionTrainingArguments)
    )
    parser.set_defaults(metric_for_best_model="loss", **random_order())
    run(*parser.parse_args_into_dataclasses())
