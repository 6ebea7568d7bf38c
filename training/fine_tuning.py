"""What every task script does once its data and model are ready: training, tests by image condition, files of results."""

import json
import os
import resource
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from datasets import Dataset, DatasetDict
from safetensors import SafetensorError, safe_open
from transformers import EarlyStoppingCallback, set_seed
from transformers.utils import logging

from ..configuration_vtfusion import VTFusionConfig
from ..modeling_vtfusion import VTFusionPreTrainedModel
from ..processing_vtfusion import VTFusionProcessor
from .arguments import DataArguments, RunArguments, VTFusionTrainingArguments
from .checkpoints import find_checkpoint_damage, last_whole_checkpoint, remove_surplus, stopped_early
from .collator import FusionCollator
from .files import claim_folder, release_folder, replaced_whole, write_whole
from .images import IMAGE_CONDITIONS, PreparedImages, RowKeys, apply_condition
from .lora import merge_lora
from .model_card import Score, format_score, write_model_card
from .trainer import VTFusionTrainer
from .versions import package_versions
from .windows import with_image_keys

logger = logging.get_logger(__name__)

AnyTrainer = TypeVar("AnyTrainer", bound=VTFusionTrainer)

# Of these less is better, besides losses.
_ERRORS = ("mse", "mae", "calibration_error")


class Evaluator(Protocol):
    """Judges the predictions of one split."""

    metric: str  # the score that sums it up, such as "f1"
    field: str  # what the prediction is called in a record, such as "predicted_tags"
    labelled: bool  # whether the true answers are known; a split without is to predict, and has no scores

    @property
    def metrics(self) -> Collection[str]:
        """The scores by which a checkpoint can be chosen."""

    def answers(self, predictions: Any) -> Sequence[Any]:
        """What is predicted for each row of the split."""

    def score(self, answers: Sequence[Any]) -> dict[str, float | int]:
        """Scores of these."""

    def report(self, scores: Mapping[str, float | int]) -> str:
        """The scores as a table for people."""

    def records(self, predictions: Any, image_keys: Sequence[RowKeys]) -> list[dict[str, Any]]:
        """A record for each row, with the prediction in `field`; in JSON but for arrays, which are rounded in the file."""


def start_run(training_args: VTFusionTrainingArguments) -> None:
    """
    Seeds everything, sets the verbosity of the libraries to what the run wants, and claims `output_dir` until
    [`write_results`] or the end of the process.

    Raises:
        `OSError`: another run is writing into `output_dir`.
    """
    if training_args.process_index == 0:
        claim_folder(training_args.output_dir)
    if training_args.should_log:
        logging.set_verbosity_info() if training_args.log_level == "info" else logging.set_verbosity_warning()
    set_seed(training_args.seed)


def limit_rows(dataset: DatasetDict, data_args: DataArguments) -> DatasetDict:
    """The first `max_train_samples` and `max_eval_samples` rows of the splits."""
    limited = DatasetDict()
    for split, rows in dataset.items():
        limit = data_args.max_samples(split)
        limited[split] = rows if limit is None else rows.select(range(min(limit, len(rows))))
    return limited


def has_labels(rows: Dataset, column: str) -> bool:
    """Whether a split has something in the column that is to be predicted: the loaders leave none, or all of it, out."""
    return rows[column][0] is not None


def labelled_splits(dataset: DatasetDict, column: str) -> list[str]:
    """The splits that can be learned from or scored, see [`has_labels`]."""
    return [split for split, rows in dataset.items() if has_labels(rows, column)]


def fine_tune(
    model: VTFusionPreTrainedModel,
    processor: VTFusionProcessor,
    images: PreparedImages,
    windows: Mapping[str, Dataset],
    evaluators: Mapping[str, Evaluator],
    run_args: RunArguments,
) -> dict[str, Any]:
    """
    Trains on the windows of the split `"train"`, if there is one, and tests on the others, or predicts where they have no
    labels.

    Writes the model with its processor, code and card into `output_dir`, `test_report.txt`, `test_predictions.jsonl`
    (a line for each row, with the predictions under every image condition), and last `results.json`.

    Args:
        model ([`VTFusionPreTrainedModel`]):
            A model with the head of the task.
        processor ([`VTFusionProcessor`]):
            Its processor.
        images ([`PreparedImages`]):
            What [`prepare_images`] returned.
        windows (`Mapping[str, Dataset]`):
            For each split the inputs of the model, with `row`, `length` and `image_keys`.
        evaluators (`Mapping[str, Evaluator]`):
            For each split but `"train"`.
        run_args ([`RunArguments`]):
            What the run was told.

    Returns:
        `dict[str, Any]`: what stands in `results.json`: the scores by split and image condition, seconds, peak memory,
        seed and versions.

    Raises:
        `ValueError`: the validation split should choose the checkpoint, but has no labels.
    """
    judge = evaluators.get("validation")
    if judge is not None and not judge.labelled:
        if "train" in windows and run_args.training.eval_strategy != "no":
            raise ValueError(
                "The validation split has no labels, so it cannot choose the best checkpoint. Give another "
                "`validation_file`, or --eval_strategy no --load_best_model_at_end False."
            )
        judge = None
    trainer = build_trainer(
        VTFusionTrainer,
        model,
        processor,
        FusionCollator(processor, images.store, images.cache, num_labels=model.config.num_labels),
        windows,
        run_args.training,
        metrics=("loss", *judge.metrics) if judge is not None else (),
        compute_metrics=judge and (lambda found: judge.score(judge.answers(found.predictions))),
    )
    results: dict[str, Any] = train_model(trainer) if "train" in windows else {}

    # Scored below, by the evaluator of the split.
    trainer.compute_metrics = None
    results |= test_conditions(
        lambda rows: trainer.predict(rows).predictions, windows, evaluators, images.keys, run_args
    )
    if "train" in windows:
        write_card(model.config, results, evaluators, run_args)
    write_results(results, run_args.training)
    if run_args.training.push_to_hub:
        trainer.push_to_hub()
    return results


def build_trainer(
    trainer_class: type[AnyTrainer],
    model: VTFusionPreTrainedModel,
    processor: VTFusionProcessor,
    collator: FusionCollator,
    splits: Mapping[str, Any],
    training_args: VTFusionTrainingArguments,
    metrics: Collection[str] = ("loss",),
    **kwargs: Any,
) -> AnyTrainer:
    """
    The trainer of a run: it learns from the split `"train"`, and where there is a split `"validation"`, that one decides
    about the best checkpoint and about `early_stopping_patience`. Without, `training_args` are told to evaluate nothing.

    Args:
        trainer_class (`type`): [`VTFusionTrainer`] or a kind of it.
        model, processor, training_args: those of the run.
        collator ([`FusionCollator`]): makes the batches.
        splits (`Mapping[str, Any]`): what the splits are to the trainer.
        metrics (`Collection[str]`, *optional*): what an evaluation tells, of which `metric_for_best_model` is one.
        kwargs (*optional*): further arguments of the trainer.

    Raises:
        `ValueError`: there is no such `metric_for_best_model`, no validation split to stop early by, or processes share the weights of a vision encoder that
        some rows need and others do not.
    """
    if "validation" not in splits:
        if "train" in splits and training_args.early_stopping_patience is not None:
            raise ValueError("`early_stopping_patience` needs a validation split: it decides when to stop.")
        training_args.eval_strategy, training_args.load_best_model_at_end = "no", False
    metric = training_args.metric_for_best_model
    if "train" in splits and training_args.eval_strategy != "no" and metric is not None:
        if metric not in metrics:
            raise ValueError(f"`metric_for_best_model` is {metric!r}; there are: {', '.join(metrics)}.")
        if metric in _ERRORS:
            training_args.greater_is_better = False
    patience = training_args.early_stopping_patience
    trainer = trainer_class(
        model=model,
        args=training_args,
        data_collator=collator,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=processor,
        callbacks=[] if patience is None else [EarlyStoppingCallback(patience)],
        **kwargs,
    )
    if collator.always_images and collator.cache is None:
        for name, split in splits.items():
            _check_images(name, split)
    return trainer


def _check_images(name: str, split: Any) -> None:
    """Refuses rows with and without images, where a vision encoder is trained whose weights the processes share."""
    keys = split["image_keys"] if "image_keys" in getattr(split, "column_names", ()) else []
    without = sum(1 for each in keys if not each)
    if 0 < without < len(keys):
        raise ValueError(
            f"{without:,} of {len(keys):,} texts in {name} have no image. Processes that share the weights of a trained "
            "vision encoder (FSDP, DeepSpeed) must all run it in every step: train with multi_gpu.yaml, or with "
            "--freeze_vision True."
        )


def train_model(trainer: VTFusionTrainer) -> dict[str, Any]:
    """
    Trains, from a checkpoint if `resume_from_checkpoint` says so, and saves the model with its processor and code.

    Returns:
        `dict[str, Any]`: `train_seconds`.

    Raises:
        `ValueError`: the checkpoint to go on from is not whole.
        `OSError`: what cannot be written is named.
    """
    args = trainer.args
    checkpoint = args.resume_from_checkpoint
    if checkpoint in ("True", "true", True):
        checkpoint = last_whole_checkpoint(args.output_dir)
    elif checkpoint and (damage := find_checkpoint_damage(checkpoint)):
        raise ValueError(
            f"{damage}: {checkpoint} cannot be gone on from. Give another one, or --resume_from_checkpoint True, which "
            "takes the last that is whole."
        )
    given = args.num_train_epochs, args.max_steps
    if checkpoint:
        load_renamed(trainer.model, checkpoint)
        if args.restore_callback_states_from_checkpoint and stopped_early(checkpoint):
            args.num_train_epochs, args.max_steps = 0, -1  # no step more
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    args.num_train_epochs, args.max_steps = given
    seconds = round(time.perf_counter() - started, 1)
    best = trainer.state.best_model_checkpoint if args.load_best_model_at_end else None
    if best:
        load_renamed(trainer.model, best)
    merge_lora(trainer.model)
    remove_results(args)
    with named_writing(args.output_dir), replaced_whole(args.output_dir, "config.json", args.should_save) as folder:
        # what is pushed is the finished model with its card, once
        trainer.save_model(str(folder), _internal_call=True)
        if args.should_save:
            trainer.state.save_to_json(str(folder / "trainer_state.json"))
    if best and args.save_total_limit == 1 and args.should_save:
        remove_surplus(Path(best), None, 1)
    return {"train_seconds": seconds}


@contextmanager
def named_writing(folder: str | os.PathLike) -> Iterator[None]:
    """
    A block that saves a model.

    Raises:
        `OSError`: naming the folder.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise OSError(f"The model cannot be written into {folder}: {error}") from error


def remove_results(training_args: VTFusionTrainingArguments) -> None:
    """Removes the `results.json` of an earlier run, which would stand beside what this one writes."""
    if training_args.process_index == 0:
        Path(training_args.output_dir, "results.json").unlink(missing_ok=True)


def load_renamed(model: VTFusionPreTrainedModel, checkpoint: str | os.PathLike) -> None:
    """
    Loads those weights of a checkpoint that stand in its files under other names than the model's. transformers saves
    some encoders (ViT, DINOv2, Swin, DETR) under the names of its earlier versions, and `Trainer`, which takes the names
    as they are, leaves these weights of the model as it finds them.

    Args:
        model ([`VTFusionPreTrainedModel`]): the model, with all other weights of the checkpoint.
        checkpoint (`str` or `os.PathLike`): a folder that `Trainer` saved.
    """
    saved: set[str] = set()
    for path in Path(checkpoint).glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            saved.update(file.keys())
    names = set(model.state_dict())
    if saved <= names:
        return
    weights = type(model).from_pretrained(checkpoint).state_dict()
    renamed = {name: weights[name] for name in names - saved}
    model.load_state_dict(renamed, strict=False)
    logger.info("%d weights of %s were loaded from their older names", len(renamed), checkpoint)


def test_conditions(
    predict: Callable[[Dataset], Any],
    windows: Mapping[str, Dataset],
    evaluators: Mapping[str, Evaluator],
    image_keys: Mapping[str, list[RowKeys]],
    run_args: RunArguments,
) -> dict[str, Any]:
    """
    Tests under every image condition; prints and writes the report of each split, and writes `test_predictions.jsonl`.
    Of a split without labels there are predictions only.

    Args:
        predict (`Callable`): from windows to the raw predictions for them, in their order.
        windows, evaluators, run_args: as for [`fine_tune`].
        image_keys (`Mapping[str, list[list[str] | None]]`): for each split the keys of the images of each row.

    Returns:
        `dict[str, Any]`: the scores by split and image condition, of those that have labels.
    """
    data_args, training_args = run_args.data, run_args.training
    is_main = training_args.process_index == 0
    remove_results(training_args)
    results: dict[str, Any] = {}
    for split, evaluator in evaluators.items():
        conditions = ["none"] if data_args.text_only else data_args.image_conditions
        # The validation split chose the checkpoint; only its true images are of interest.
        conditions = conditions if split == "test" else conditions[:1]
        if not evaluator.labelled and split != "test":
            continue
        records: list[dict[str, Any]] = []
        for condition in conditions:
            keys = apply_condition(image_keys[split], condition, training_args.seed)
            predictions = predict(with_image_keys(windows[split], keys))
            answers = evaluator.answers(predictions)
            if evaluator.labelled:
                results.setdefault(split, {})[condition] = evaluator.score(answers)
            if not is_main:
                continue
            if condition == conditions[0]:
                if evaluator.labelled:
                    report = evaluator.report(results[split][condition])
                    print(f"\n{split}, image: {condition}\n{report}")
                    write_whole(Path(training_args.output_dir, f"{split}_report.txt"), report + "\n")
                records = evaluator.records(predictions, keys) if split == "test" else []
            else:
                for record, answer in zip(records, answers, strict=True):
                    record[f"{evaluator.field}_{condition}"] = answer
        if is_main and split == "test":
            lines = "".join(json.dumps(record, ensure_ascii=False, default=_rounded) + "\n" for record in records)
            write_whole(Path(training_args.output_dir, "test_predictions.jsonl"), lines)
            if not evaluator.labelled:
                print(f"\ntest: {len(records):,} predictions written; without labels there are no scores")
                continue
            metric = evaluator.metric
            scored = (f"{name} {format_score(metric, results[split][name][metric])}" for name in conditions)
            print(f"\ntest {metric} by image:  {'  '.join(scored)}")
    results["texts"] = {split: len(keys) for split, keys in image_keys.items()}
    results["test_texts_with_image"] = sum(keys is not None for keys in image_keys.get("test", []))
    return results


def _rounded(scores: np.ndarray) -> list[float]:
    return [round(float(score), 6) for score in scores]


def write_results(results: dict[str, Any], training_args: VTFusionTrainingArguments) -> None:
    """Adds peak memory, seed and versions, writes `results.json`, and lets other runs write into `output_dir`."""
    results["peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    results["seed"] = training_args.seed
    results["versions"] = package_versions()
    if training_args.process_index == 0:
        Path(training_args.output_dir).mkdir(parents=True, exist_ok=True)
        path = Path(training_args.output_dir, "results.json")
        write_whole(path, json.dumps(results, indent=2) + "\n")
        release_folder(training_args.output_dir)
        logger.info("results written to %s", path)


def write_card(
    config: VTFusionConfig, results: Mapping[str, Any], evaluators: Mapping[str, Evaluator], run_args: RunArguments
) -> None:
    """The card with the main score of each split that has any under every image condition; see [`write_model_card`]."""
    if run_args.training.process_index != 0:
        return
    scores = [
        Score(split, IMAGE_CONDITIONS[condition], evaluator.metric, float(of_condition[evaluator.metric]))
        for split, evaluator in evaluators.items()
        if evaluator.labelled
        for condition, of_condition in results[split].items()
    ]
    used = {split: count for split, count in results["texts"].items() if split == "train" or split in results}
    write_model_card(config, {**results, "texts": used}, scores, run_args)


def read_records(folder: str | os.PathLike, field: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """
    The lines of a run's `test_predictions.jsonl`, and under which name they hold the prediction of each image condition
    that it was tested with.
    """
    conditions = list(json.loads(Path(folder, "results.json").read_text(encoding="utf-8"))["test"])
    with open(Path(folder, "test_predictions.jsonl"), encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return records, {name: f"{field}_{name}" if place else field for place, name in enumerate(conditions)}
