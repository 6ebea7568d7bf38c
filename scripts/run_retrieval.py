#!/usr/bin/env python
"""
Fine-tunes VTFusion to find images for texts and texts for images, and tests it by recall: all captions of the test split
against all its images by their vectors, then the `--rerank_top_k` best of each ranked again by the sum of similarity and
matching score of the fused pair, both side by side.

On your own files (JSONL, CSV, parquet, or a folder with metadata.jsonl; columns `text` or `captions`, one or a list, and
`image`, or say which with `--text_column`, `--image_column`). Rows with the same image are put together:

python scripts/run_retrieval.py \
    --text_model sentence-transformers/all-MiniLM-L6-v2 --vision_model microsoft/resnet-50 \
    --train_file train.jsonl --validation_file valid.jsonl --test_file test.jsonl \
    --learning_rate 5e-5 --fusion_learning_rate 5e-4 --num_train_epochs 10 --per_device_train_batch_size 64 \
    --output_dir outputs/retrieval

The other captions of a batch are what an image is told apart from, so a larger batch teaches more.
`--model_name_or_path` goes on from a model of run_pretraining.py. The best checkpoint has the best `recall_mean` of the
vectors on the validation split. There is no `--image_ablation` and no `--text_only`: without images there is nothing to
find.

Writes to `output_dir`: the model with its processor and code, `results.json`, `test_report.txt` and
`test_predictions.jsonl` (for each caption the row of its image, and the ranks of it before and after re-ranking).
"""

from typing import Any

from vtfusion.training.arguments import (
    CaptionDataArguments,
    ModelArguments,
    RetrievalArguments,
    RunArguments,
    ScriptArgumentParser,
    VTFusionTrainingArguments,
    random_order,
)


def run(
    model_args: ModelArguments,
    data_args: CaptionDataArguments,
    retrieval_args: RetrievalArguments,
    training_args: VTFusionTrainingArguments,
) -> dict[str, Any]:
    """One training with its tests."""
    from vtfusion import VTFusionForImageTextRetrieval
    from vtfusion.training.captions import CaptionCollator, load_captioned_images, prepare_captions
    from vtfusion.training.fine_tuning import build_trainer, start_run, train_model, write_results
    from vtfusion.training.image_text_retrieval import (
        RECALLS,
        RetrievalSplit,
        RetrievalTrainer,
        recall_report,
        write_retrieval,
    )
    from vtfusion.training.images import prepare_images
    from vtfusion.training.loading import load_model
    from vtfusion.training.model_card import Score, write_model_card

    start_run(training_args)
    with training_args.main_process_first(desc="loading the data"):
        dataset = load_captioned_images(data_args)
    model, processor = load_model(VTFusionForImageTextRetrieval, model_args)
    image_keys, store, cache = prepare_images(dataset, model, processor, data_args, training_args)
    rows = prepare_captions(dataset, processor, image_keys, data_args, training_args, keep_without_image=False)
    splits = {name: RetrievalSplit.from_dataset(part) for name, part in rows.items() if name != "train"}
    collator = CaptionCollator(processor, store, cache, seed=training_args.seed)
    trainer = build_trainer(
        RetrievalTrainer, model, processor, collator, {**rows, **splits}, training_args, metrics=RECALLS
    )
    results: dict[str, Any] = train_model(trainer) if "train" in rows else {}
    # A matching score that is not learned ranks nothing.
    top_k = retrieval_args.rerank_top_k if model.config.matching_loss_weight > 0 else 0
    for name, split in splits.items():
        ranks = trainer.retrieve(split, top_k)
        scores = {way: each.scores() for way, each in ranks.items()}
        results[name] = {**scores, "captions": len(split.texts), "images": len(split.image_keys)}
        if training_args.process_index == 0:
            print(
                f"\n{name}: {len(split.texts):,} captions, {len(split.image_keys):,} images\n{recall_report(scores)}"
            )
            if name == "test":
                write_retrieval(training_args.output_dir, split, ranks)
    if "train" in rows and training_args.process_index == 0:
        figures = [
            Score(name, way.replace("_", " "), metric, value)
            for name in splits
            for way, scores in results[name].items()
            if isinstance(scores, dict)
            for metric, value in scores.items()
            if metric.startswith("recall")
        ]
        run_args = RunArguments("zero-shot-image-classification", model_args, data_args, training_args)
        write_model_card(model.config, results, figures, run_args)
    write_results(results, training_args)
    if training_args.push_to_hub:
        trainer.push_to_hub()
    return results


if __name__ == "__main__":
    parser = ScriptArgumentParser(
        (ModelArguments, CaptionDataArguments, RetrievalArguments, VTFusionTrainingArguments)
    )
    parser.set_defaults(metric_for_best_model="recall_mean", **random_order())
    run(*parser.parse_args_into_dataclasses())
