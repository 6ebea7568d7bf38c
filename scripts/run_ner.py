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

On two processes: `accelerate launch --num_processes 2 scripts/run_ner.py …`; on CPUs
`accelerate launch --multi_gpu --num_processes 2 scripts/run_ner.py … --use_cpu True --ddp_backend gloo`. Testing alone: give `--model_name_or_path`
and only `--test_file`. The text-only twin of a run: the same command with `--text_only`.

Writes to `output_dir`: the model with its processor and code, `results.json`, `test_report.txt` and
`test_predictions.jsonl`.
"""

from typing import Any

from transformers import HfArgumentParser

from vtfusion.training.arguments import DataArguments, ModelArguments, VTFusionTrainingArguments


def load_model(args: ModelArguments, label_names: list[str]) -> tuple[Any, Any]:
    """The model and its processor, from a VTFusion checkpoint or from two encoders."""
    import os

    from transformers import AutoImageProcessor, AutoTokenizer

    from vtfusion import VTFusionForTokenClassification, VTFusionProcessor

    labels = {"id2label": dict(enumerate(label_names)), "label2id": {name: i for i, name in enumerate(label_names)}}
    if args.model_name_or_path is not None:
        if args.text_model or args.vision_model:
            raise ValueError("Give `model_name_or_path`, or `text_model` and `vision_model`, not both.")
        processor = VTFusionProcessor.from_pretrained(args.model_name_or_path, revision=args.model_revision)
        model = VTFusionForTokenClassification.from_pretrained(
            args.model_name_or_path, revision=args.model_revision, ignore_mismatched_sizes=True, **labels
        )
    else:
        if args.text_model is None or args.vision_model is None:
            raise ValueError("Give `text_model` and `vision_model`, or a VTFusion model as `model_name_or_path`.")
        trust = {"trust_remote_code": args.trust_remote_code}
        model = VTFusionForTokenClassification.from_vision_text_pretrained(
            args.vision_model,
            args.text_model,
            vision_kwargs=trust,
            text_kwargs=trust,
            fusion_hidden_size=args.fusion_hidden_size,
            num_fusion_layers=args.num_fusion_layers,
            num_fusion_heads=args.num_fusion_heads,
            fusion_dropout=args.fusion_dropout,
            fusion_loss_weight=args.fusion_loss_weight,
            text_loss_weight=args.text_loss_weight,
            vision_loss_weight=args.vision_loss_weight,
            contrastive_loss_weight=args.contrastive_loss_weight,
            **labels,
        )
        parts: list[Any] = [model.config.text_config, model.config.vision_config]
        for config in parts:
            # A Hub id tells where an encoder comes from; a folder of this machine tells others nothing.
            if os.path.isdir(config.name_or_path):
                config.name_or_path = os.path.basename(os.path.normpath(config.name_or_path))
        tokenizer = AutoTokenizer.from_pretrained(args.text_model, **trust)
        if tokenizer.pad_token is None:
            # a language model that was never batched; the mask hides the padding
            tokenizer.pad_token = tokenizer.eos_token
        limits = [tokenizer.model_max_length, getattr(model.config.text_config, "max_position_embeddings", None)]
        processor = VTFusionProcessor(
            image_processor=AutoImageProcessor.from_pretrained(args.vision_model, **trust),
            tokenizer=tokenizer,
            window_length=args.max_length or min(limit for limit in limits if limit),
            window_stride=args.window_stride,
        )
    if args.freeze_text:
        model.freeze_text_encoder()
    if args.freeze_vision:
        model.freeze_vision_encoder()
    return model, processor


def main(
    model_args: ModelArguments, data_args: DataArguments, training_args: VTFusionTrainingArguments
) -> dict[str, Any]:
    import json
    import resource
    import time
    from pathlib import Path

    from transformers import AutoConfig, EarlyStoppingCallback, set_seed
    from transformers.trainer_utils import get_last_checkpoint
    from transformers.utils import logging

    from vtfusion.training.collator import FusionCollator
    from vtfusion.training.data import load_token_classification_dataset
    from vtfusion.training.images import BLANK_KEY, FeatureCache, ImageStore, apply_condition
    from vtfusion.training.metrics import entity_report
    from vtfusion.training.token_classification import WordEvaluator, encode_windows, with_image_keys
    from vtfusion.training.trainer import VTFusionTrainer
    from vtfusion.training.versions import package_versions

    logger = logging.get_logger("run_ner")
    if training_args.should_log:
        logging.set_verbosity_info() if training_args.log_level == "info" else logging.set_verbosity_warning()
    is_main = training_args.process_index == 0
    set_seed(training_args.seed)

    # ---- data
    label_names = None
    if model_args.model_name_or_path is not None and data_args.train_file is None and data_args.dataset_name is None:
        # only files to test on: their labels are the model's
        trained = AutoConfig.from_pretrained(model_args.model_name_or_path, revision=model_args.model_revision)
        label_names = [trained.id2label[index] for index in range(trained.num_labels)]
    with training_args.main_process_first(desc="loading the data"):
        dataset = load_token_classification_dataset(
            dataset_name=data_args.dataset_name,
            dataset_config_name=data_args.dataset_config_name,
            train_file=data_args.train_file,
            validation_file=data_args.validation_file,
            test_file=data_args.test_file,
            tokens_column=data_args.tokens_column,
            tags_column=data_args.tags_column,
            image_column=data_args.image_column,
            image_folder=data_args.image_folder,
            label_names=label_names,
        )
    for split in dataset:
        limit = data_args.max_train_samples if split == "train" else data_args.max_eval_samples
        if limit is not None:
            dataset[split] = dataset[split].select(range(min(limit, len(dataset[split]))))
    label_names = next(iter(dataset.values())).features["ner_tags"].feature.names

    # ---- model
    model, processor = load_model(model_args, label_names)

    # ---- images: keys for each row, checked or turned into features once
    store = ImageStore()
    image_keys: dict[str, list] = {}
    for split, rows in dataset.items():
        image_keys[split] = (
            [None] * len(rows) if data_args.text_only else store.add_split(split, rows, data_args.max_images)
        )
    bad: set[str] = set()
    cache = None
    started = time.perf_counter()
    if len(store) > 0:
        if model_args.freeze_vision:
            with training_args.main_process_first(desc="vision features"):
                encoder = model.to(training_args.device)
                cache = FeatureCache(encoder, processor, data_args.feature_cache_dir, data_args.feature_dtype)
                bad = cache.add(store, [*store.keys(), BLANK_KEY], data_args.on_bad_image)
        else:
            bad = store.find_bad(data_args.on_bad_image)
    feature_seconds = time.perf_counter() - started
    if bad:
        for split, rows in image_keys.items():
            image_keys[split] = [[key for key in keys or [] if key not in bad] or None for keys in rows]
    if is_main and not data_args.text_only:
        for split, rows in image_keys.items():
            print(f"{split}: {sum(keys is not None for keys in rows):,} of {len(rows):,} texts have an image")
        print(f"{len(store):,} different images, {len(bad)} of them unreadable and left out")

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
    results: dict[str, Any] = {"feature_seconds": round(feature_seconds, 1)}
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


if __name__ == "__main__":
    main(*HfArgumentParser((ModelArguments, DataArguments, VTFusionTrainingArguments)).parse_args_into_dataclasses())
