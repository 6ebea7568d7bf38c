"""Images with captions: batches for pretraining and retrieval, streams, recall, and ranking again by the matching score."""

import itertools
import json
import os
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    List,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import IterableDataset as TorchIterableDataset
from transformers import (
    DataCollatorForLanguageModeling,
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy, get_last_checkpoint
from transformers.utils import logging

from ..modeling_vtfusion import VTFusionForPreTraining, VTFusionModelOutput
from ..processing_vtfusion import VTFusionProcessor, decode_image
from .arguments import CaptionDataArguments, ModelArguments, PretrainingArguments, VTFusionTrainingArguments
from .collator import FusionCollator
from .images import RowKeys
from .loading import checkpoint_head, load_model
from .lora import merge_lora
from .sources import Source, _image_item, find_column, find_columns
from .text_data import _CAPTION_COLUMNS, _captions, load_caption_dataset
from .trainer import VTFusionTrainer
from .versions import package_versions

logger = logging.get_logger(__name__)

RECALL_AT = (1, 5, 10)
LOSSES = ("fusion_loss", "text_loss", "matching_loss", "contrastive_loss")

_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


# ------------------------------------------------------------------------------------------------ rows, one per image


def load_captioned_images(data_args: CaptionDataArguments) -> DatasetDict:
    """
    All splits that the arguments name, with a row for each image, cut to `max_train_samples` and `max_eval_samples` of
    them: `captions` (`List(Value("string"))`) and `images`.

    Raises:
        `ValueError`: no split has images.
    """
    result = DatasetDict()
    for split, rows in load_caption_dataset(**data_args.source()).items():
        if "images" not in rows.column_names:
            raise ValueError(
                f"The {split} split has no column with images. It has: {', '.join(rows.column_names)}. Say with "
                "`image_column` which one to read."
            )
        # The captions of an image stand one after the other.
        _, firsts = np.unique(rows["image_row"][:], return_index=True)
        texts = rows.select_columns(["text"]).with_format("arrow")[:]["text"].combine_chunks()
        captions = pa.ListArray.from_arrays(pa.array([*firsts, len(rows)], type=pa.int32()), texts)
        images = concatenate_datasets(
            [Dataset(pa.table({"captions": captions})), rows.select_columns(["images"]).select(firsts)], axis=1
        )
        limit = data_args.max_train_samples if split == "train" else data_args.max_eval_samples
        result[split] = images if limit is None else images.select(range(min(limit, len(images))))
    return result


def group_by_image(captions: Sequence[Sequence[str]], image_keys: Sequence[RowKeys]) -> Dataset:
    """
    Puts rows of the same image together, so that no batch holds it twice: data sets often have a row for each caption.
    Rows without an image stay as they are.

    Args:
        captions (`Sequence[Sequence[str]]`): of each row.
        image_keys (`Sequence[list[str] | None]`): keys of the images of each row in an [`ImageStore`].

    Returns:
        `datasets.Dataset`: with `texts`, `image_keys` and `row` (the first one with this image).
    """
    groups: dict[Any, list[int]] = {}
    for row, keys in enumerate(image_keys):
        groups.setdefault(row if keys is None else tuple(keys), []).append(row)
    return Dataset.from_dict(
        {
            "texts": [list(itertools.chain.from_iterable(captions[row] for row in rows)) for rows in groups.values()],
            "image_keys": [image_keys[rows[0]] for rows in groups.values()],
            "row": [rows[0] for rows in groups.values()],
        },
        features=Features(
            {"texts": List(Value("string")), "image_keys": List(Value("string")), "row": Value("int64")}
        ),
    )


def encode_captions(images: Dataset, processor: VTFusionProcessor, num_proc: int | None = None) -> Dataset:
    """
    Tokenizes captions. A caption becomes one vector, so one that is longer than `processor.window_length` is cut.

    Args:
        images (`datasets.Dataset`): with `texts`, made by [`group_by_image`].
        processor ([`VTFusionProcessor`]): its `window_length` is the limit.
        num_proc (`int`, *optional*): processes to use.

    Returns:
        `datasets.Dataset`: the same with `captions` (token ids of each caption) and `num_cut` (captions that were cut).
    """

    def encode(batch: dict[str, list]) -> dict[str, list]:
        counts = [len(texts) for texts in batch["texts"]]
        windows = processor.encode_text(list(itertools.chain.from_iterable(batch["texts"])))
        _, firsts, parts = np.unique(windows["row"], return_index=True, return_counts=True)
        tokens = [windows["input_ids"][first] for first in firsts]
        ends = np.cumsum(counts)
        return {
            "captions": [tokens[end - count : end] for end, count in zip(ends, counts, strict=True)],
            "num_cut": [int((parts[end - count : end] > 1).sum()) for end, count in zip(ends, counts, strict=True)],
        }

    return images.map(
        encode,
        batched=True,
        num_proc=num_proc,
        features=Features(
            {**images.features, "captions": List(List(Value("int32"))), "num_cut": Value("int32")},
        ),
        # A cached result would outlive a change of the processor's code.
        load_from_cache_file=False,
        desc="Tokenizing",
    )


def prepare_captions(
    dataset: DatasetDict,
    processor: VTFusionProcessor,
    image_keys: Mapping[str, Sequence[RowKeys]],
    data_args: CaptionDataArguments,
    training_args: TrainingArguments,
    keep_without_image: bool,
) -> dict[str, Dataset]:
    """
    The rows of each split, one for each image, grouped and tokenized.

    Args:
        dataset (`DatasetDict`): made by [`load_captioned_images`].
        processor ([`VTFusionProcessor`]): tokenizes.
        image_keys (`Mapping[str, Sequence[list[str] | None]]`): what [`prepare_images`] returned.
        data_args ([`CaptionDataArguments`]): `num_proc`.
        training_args (`TrainingArguments`): the main process prints what is cut or left out.
        keep_without_image (`bool`): whether captions without an image are of use.

    Raises:
        `ValueError`: nothing of a split is left.
    """
    prepared = {}
    for split, rows in dataset.items():
        images = group_by_image(rows["captions"], image_keys[split])
        if not keep_without_image:
            images = images.select([i for i, keys in enumerate(images["image_keys"]) if keys is not None])
        if len(images) == 0:
            raise ValueError(f"The {split} split has no caption with an image.")
        prepared[split] = encode_captions(images, processor, data_args.num_proc)
        if training_args.process_index == 0:
            captions = sum(map(len, prepared[split]["captions"]))
            left_out = sum(map(len, rows["captions"])) - captions
            cut = sum(prepared[split]["num_cut"])
            print(
                f"{split}: {captions:,} captions of {len(images):,} different images; {cut:,} longer than "
                f"{processor.window_length} tokens and cut, {left_out:,} without an image and left out"
            )
    return prepared


# ------------------------------------------------------------------------------------------------------------ streams


class CaptionStream(TorchIterableDataset):
    """
    Rows of a stream, shuffled `shuffle_buffer_size` at a time; for training over and over, without an end.

    The order depends on the seed alone, so that a run that was stopped goes on where it was. For that it reads past
    what it has had, without tokenizing or decoding: `skip_batches` batches then come as rows that are `None`. Rows with
    the same image are not brought together, as they are where everything can be read first.

    Args:
        stream (`datasets.IterableDataset`): the rows, undecoded.
        text_column (`str`): where the caption or the captions are.
        image_column (`str`, *optional*): where the image or the images are.
        folder (`str`, *optional*): what relative image paths start from.
        where (`str`): split and source, for messages.
        max_images (`int`, *optional*): images of a row beyond this number are left out.
        shuffle_buffer_size (`int`, *optional*): rows to shuffle; by default they stay in order.
        seed (`int`, *optional*, defaults to 0): of the shuffle.
        repeat (`bool`, *optional*, defaults to `False`): whether to begin again at the end.
    """

    def __init__(
        self,
        stream: IterableDataset,
        text_column: str,
        image_column: str | None,
        folder: str | None,
        where: str,
        max_images: int | None = None,
        shuffle_buffer_size: int = 1,
        seed: int = 0,
        repeat: bool = False,
    ):
        self.stream, self.where, self.folder = stream, where, folder
        self.text_column, self.image_column, self.max_images = text_column, image_column, max_images
        self.shuffle_buffer_size, self.seed, self.repeat = shuffle_buffer_size, seed, repeat
        self.skip_batches, self.batch_size = 0, 1

    @property
    def num_shards(self) -> int:
        """Parts that can be read side by side: `dataloader_num_workers` at most."""
        return self.stream.num_shards

    def skip(self, num_batches: int, batch_size: int) -> None:
        """
        Begins after batches that a run has had already.

        Args:
            num_batches (`int`): their number, in a process.
            batch_size (`int`): rows of a batch, of all processes together.
        """
        self.skip_batches, self.batch_size = num_batches, batch_size

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        # Batches come from the workers in turn, each of which reads shards of its own.
        skipped = max(-(-(self.skip_batches - worker) // num_workers), 0) * self.batch_size
        for place, (index, row) in enumerate(self._shuffled()):
            yield None if place < skipped else self._read(index, row, place * num_workers + worker)

    def _shuffled(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in itertools.count():
            rows = enumerate(self.stream)
            blocks = 0
            # Blocks instead of the usual buffer, from which rows are drawn: they come out the same whatever was skipped.
            while block := list(itertools.islice(rows, self.shuffle_buffer_size)):
                rng = np.random.default_rng((self.seed, number, blocks))
                order = rng.permutation(len(block)) if self.shuffle_buffer_size > 1 else range(len(block))
                yield from (block[position] for position in order)
                blocks += 1
            if not self.repeat or blocks == 0:
                return

    def _read(self, index: int, row: Mapping[str, Any], place: int) -> dict[str, Any]:
        captions = _captions({"text": [row[self.text_column]]}, [index], "text", self.where, 0)["text"]
        value = None if self.image_column is None else row[self.image_column]
        where = f"{self.where}, row {index}, column {self.image_column!r}"
        items = [_image_item(item, self.folder, where) for item in (value if isinstance(value, list) else [value])]
        images = [item for item in items if item is not None][: self.max_images]
        return {"captions": captions, "images": images, "where": where, "row": place}


def open_caption_streams(
    data_args: CaptionDataArguments, shuffle_buffer_size: int = 1, seed: int = 0
) -> dict[str, CaptionStream]:
    """
    The splits that the arguments name, read row by row.

    Args:
        data_args ([`CaptionDataArguments`]): where the data is, with `max_train_samples` and `max_eval_samples`.
        shuffle_buffer_size (`int`, *optional*, defaults to 1): rows of the training split to shuffle at a time.
        seed (`int`, *optional*, defaults to 0): of the shuffle.

    Raises:
        `ValueError`: a split has no rows, or a column is not found.
        `FileNotFoundError`: a file does not exist.
    """
    streams = {}
    for split, (stream, where, folder) in _open_streams(data_args).items():
        if stream.features is not None:
            stream = stream.decode(False)
        first = next(iter(stream), None)
        if first is None:
            raise ValueError(f"{where} has no rows.")
        # The finders of columns look at the names alone.
        names = Dataset.from_dict({name: [0] for name in first})
        image_columns = Source.image_columns if data_args.dataset_name else (*Source.image_columns, "file_name")
        source = Source(names, where, folder, image_columns)
        (text,) = find_columns(source, {"text_column": (data_args.text_column, _CAPTION_COLUMNS)})
        image = find_column("image_column", data_args.image_column, source.image_columns, source, needed=False)
        if image is None:
            raise ValueError(
                f"{where} has no column with images. It has: {', '.join(first)}. Say with `image_column` which one to "
                "read."
            )
        limit = data_args.max_train_samples if split == "train" else data_args.max_eval_samples
        train = split == "train"
        streams[split] = CaptionStream(
            stream if limit is None else stream.take(limit),
            text,
            image,
            folder,
            where,
            data_args.max_images,
            shuffle_buffer_size if train else 1,
            seed,
            repeat=train,
        )
    return streams


def _open_streams(data_args: CaptionDataArguments) -> dict[str, tuple[IterableDataset, str, str | None]]:
    given = {"train": data_args.train_file, "validation": data_args.validation_file, "test": data_args.test_file}
    files = {split: file for split, file in given.items() if file is not None}
    name = data_args.dataset_name
    if (name is None) == (not files):
        raise ValueError("Give either `dataset_name` or at least one of `train_file`, `validation_file`, `test_file`.")
    base = None if data_args.image_folder is None else os.path.abspath(os.path.expanduser(data_args.image_folder))
    if name is None:
        return {split: _open_file(file, split, base) for split, file in files.items()}
    folder = os.path.abspath(os.path.expanduser(name))
    if os.path.isfile(os.path.join(folder, "dataset_dict.json")):
        loaded = {split: rows.to_iterable_dataset() for split, rows in load_from_disk(folder).items()}
    else:
        loaded = load_dataset(name, data_args.dataset_config_name, streaming=True)
    return {split: (stream, f"{split} split of {name}", base) for split, stream in loaded.items()}


def _open_file(file: str, split: str, base: str | None) -> tuple[IterableDataset, str, str | None]:
    path = os.path.abspath(os.path.expanduser(file))
    if os.path.isfile(os.path.join(path, "state.json")):
        return load_from_disk(path).to_iterable_dataset(), f"{split} split ({path})", base or path
    if os.path.isdir(path):
        found = [name for name in _METADATA_FILES if os.path.isfile(os.path.join(path, name))]
        path = os.path.join(path, (found or _METADATA_FILES)[0])
    if not os.path.isfile(path):
        raise FileNotFoundError(f"The file {path} given for the {split} split does not exist.")
    builder = _BUILDERS.get(os.path.splitext(path)[1].lower())
    if builder is None:
        raise ValueError(f"{path} cannot be streamed: its ending is none of {', '.join(_BUILDERS)}.")
    # Without this, the word "NA" and its like would become null.
    options = {"keep_default_na": False} if builder == "csv" else {}
    stream = load_dataset(builder, data_files={split: [path]}, split=split, streaming=True, **options)
    return stream, f"{split} split ({path})", base or os.path.dirname(path)


def check_streaming(streams: Mapping[str, CaptionStream], training_args: VTFusionTrainingArguments) -> None:
    """
    Fits the training to streams, in place: `"epoch"` as a time to evaluate and save becomes every `save_steps` steps.

    Raises:
        `ValueError`: `max_steps` is missing, or there are more workers than a stream has parts.
    """
    if "train" in streams and training_args.max_steps <= 0:
        raise ValueError("`streaming` needs `max_steps`: nobody knows where a stream ends.")
    for stream in streams.values():
        if training_args.dataloader_num_workers > stream.num_shards:
            raise ValueError(
                f"{stream.where} has {stream.num_shards} parts to read side by side: `dataloader_num_workers` "
                f"{training_args.dataloader_num_workers} is more than these."
            )
    # Every process reads the stream and takes its own batches; one that hands them out would need batches of one length.
    training_args.accelerator_config.dispatch_batches = False
    for name in ("eval_strategy", "save_strategy"):
        if getattr(training_args, name) == IntervalStrategy.EPOCH:
            logger.warning("A stream has no epochs: `%s` is every %g steps.", name, training_args.save_steps)
            setattr(training_args, name, type(getattr(training_args, name))("steps"))
    if training_args.eval_strategy == IntervalStrategy.STEPS and training_args.eval_steps is None:
        training_args.eval_steps = training_args.save_steps


# ------------------------------------------------------------------------------------------------------------ batches


@dataclass
class CaptionCollator(FusionCollator):
    """
    Makes a batch of images, each with one of its captions, which is drawn anew in every epoch.

    What is drawn depends on the seed, the epoch and the rows of the batch alone, so that a run that was stopped goes on
    as if it had not been, and every evaluation sees the same.

    Args:
        mlm_probability (`float`, *optional*):
            Part of the tokens that are masked, for [`VTFusionForPreTraining`]; 0 where no loss of words is wanted. By
            default the batch is for [`VTFusionForImageTextRetrieval`].
        seed (`int`, *optional*, defaults to 0):
            Of all that is drawn.
        on_bad_image (`str`, *optional*, defaults to `"error"`):
            What an image of a stream that cannot be read does: `"error"`, or `"skip_image"`.
        epoch (`int`, *optional*, defaults to 0):
            The epoch.
    """

    mlm_probability: float | None = None
    seed: int = 0
    on_bad_image: str = "error"
    epoch: int = 0
    bad_images: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.masker = None
        if self.mlm_probability:
            tokenizer = self.processor.tokenizer
            if tokenizer.mask_token is None:
                raise ValueError(
                    f"{type(tokenizer).__name__} has no mask token, so no words can be masked. Turn their losses off "
                    "with --fusion_loss_weight 0 --text_loss_weight 0."
                )
            self.masker = DataCollatorForLanguageModeling(tokenizer, mlm_probability=self.mlm_probability)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if rows[0] is None:
            # a batch that the run has had before it was stopped
            return {}
        rng = np.random.default_rng([self.seed, self.epoch, *(row["row"] for row in rows)])
        captions = [row["captions"][rng.integers(len(row["captions"]))] for row in rows]
        if isinstance(captions[0], str):
            captions = self.processor.encode_text(captions, truncation=True)["input_ids"]
        batch: dict[str, Any] = self.pad_captions(captions)
        if self.mlm_probability is None:
            batch["return_loss"] = True
        elif self.masker is not None:
            self.masker.generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            batch["input_ids"], batch["labels"] = self.masker.torch_mask_tokens(batch["input_ids"])
        else:
            # The other losses count by a batch's share of the labels: one for each row, which no loss of words reads.
            batch["labels"] = torch.full_like(batch["input_ids"], -100)
            batch["labels"][:, 0] = batch["input_ids"][:, 0]
        if "image_keys" in rows[0]:
            return {**batch, **self.gather_images([row["image_keys"] for row in rows])}
        images = [self._decode(row) for row in rows]
        return {**batch, **(self.processor.encode_images(images) if any(images) else {})}

    def pad_captions(self, captions: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """Model inputs of tokenized captions, without images."""
        return self.pad([{"input_ids": list(ids), "attention_mask": [1] * len(ids)} for ids in captions])

    def pair(self, rows: Sequence[tuple[Sequence[int], RowKeys]]) -> dict[str, torch.Tensor]:
        """Model inputs of tokenized captions, each with the images of these keys."""
        captions, keys = zip(*rows, strict=True)
        return {**self.pad_captions(captions), **self.gather_images(keys)}

    def _decode(self, row: Mapping[str, Any]) -> list[Any]:
        images = []
        for item in row["images"]:
            try:
                images.append(_decode_item(item))
            except (OSError, ValueError) as error:
                if self.on_bad_image == "error":
                    raise ValueError(
                        f"{row['where']}: {error}. With --on_bad_image skip_image it counts as no image."
                    ) from error
                self.bad_images += 1
                logger.warning("%s: %s: counts as no image.", row["where"], error)
        return images


def _decode_item(item: dict[str, Any]) -> Any:
    if item["bytes"] is not None:
        return decode_image(item["bytes"])
    if "://" in item["path"]:
        # in an archive or on the Hub
        return decode_image(Image().decode_example(item))
    return decode_image(Path(item["path"]).read_bytes())


# ----------------------------------------------------------------------------------------------------------- training


class _EpochCallback(TrainerCallback):
    """Tells the collator which epoch it is."""

    def __init__(self, collator: CaptionCollator):
        self.collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.collator.epoch = int(state.epoch or 0)


class ImageTextTrainer(VTFusionTrainer):
    """
    [`VTFusionTrainer`] that logs each loss beside their sum, in training and in evaluation, and draws the same captions,
    masks and hard negatives at every evaluation. Its collator is a [`CaptionCollator`].
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._totals = self._no_losses()
        self.add_callback(_EpochCallback(self.data_collator))

    def _no_losses(self) -> torch.Tensor:
        # of each loss the sum and the number; where it is computed, so that no step waits for the device
        return torch.zeros(len(LOSSES), 2, device=self.args.device)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        weight, scale = inputs["input_ids"].shape[0], 1
        if model.training:
            # A step's losses are the sum of what its batches and processes give, each by its share.
            weight = 1
            if num_items_in_batch is not None:
                scale = self.current_gradient_accumulation_steps * self.args.world_size
        for place, name in enumerate(LOSSES):
            value = outputs.get(name)
            if value is not None:
                value = value.detach().float().mean()
                self._totals[place] += torch.stack([value * scale * weight, torch.full_like(value, weight)])
        return (loss, outputs) if return_outputs else loss

    def _mean_losses(self, prefix: str = "") -> dict[str, float]:
        totals = self.accelerator.reduce(self._totals, reduction="sum").tolist()
        self._totals = self._no_losses()
        return {f"{prefix}{name}": total / count for name, (total, count) in zip(LOSSES, totals, strict=True) if count}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self._mean_losses()}
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        epoch, totals = self.data_collator.epoch, self._totals
        self.data_collator.epoch, self._totals = 0, self._no_losses()
        with torch.random.fork_rng():
            torch.manual_seed(self.args.seed)
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        output.metrics.update(self._mean_losses(f"{metric_key_prefix}_"))
        self.data_collator.epoch, self._totals = epoch, totals
        return output


def load_pretraining_model(args: ModelArguments) -> tuple[VTFusionForPreTraining, VTFusionProcessor]:
    """
    A model for pretraining and its processor. If it was not pretrained before, `contrastive_loss_weight` is 1 unless
    given, since matching needs it; of two new encoders joined the word embeddings are the output matrix too.
    """
    settings: dict[str, Any] = {}
    head = checkpoint_head(args)
    if args.contrastive_loss_weight is None and head != VTFusionForPreTraining.__name__:
        settings["contrastive_loss_weight"] = 1.0
    if head is None:
        settings["tie_word_embeddings"] = True
    return load_model(VTFusionForPreTraining, args, **settings)


def masked_part(model: VTFusionForPreTraining, args: PretrainingArguments) -> float:
    """`mlm_probability`, or 0 where no loss of words is wanted."""
    wanted = model.config.fusion_loss_weight > 0 or model.config.text_loss_weight > 0
    return args.mlm_probability if wanted else 0.0


def early_stopping(training_args: VTFusionTrainingArguments) -> list[TrainerCallback]:
    """The callback of `early_stopping_patience`, if it is given."""
    patience = training_args.early_stopping_patience
    return [] if patience is None else [EarlyStoppingCallback(patience)]


def train_model(trainer: VTFusionTrainer, training_args: VTFusionTrainingArguments) -> dict[str, Any]:
    """
    Trains, from a checkpoint if `resume_from_checkpoint` says so, and saves the model with its processor and code.

    Returns:
        `dict[str, Any]`: `train_seconds`.
    """
    checkpoint = training_args.resume_from_checkpoint
    if checkpoint in ("True", "true", True):
        checkpoint = get_last_checkpoint(training_args.output_dir)
    stream = trainer.train_dataset
    if checkpoint is not None and isinstance(stream, CaptionStream):
        steps = TrainerState.load_from_json(os.path.join(checkpoint, "trainer_state.json")).global_step
        stream.skip(
            steps * training_args.gradient_accumulation_steps,
            training_args.train_batch_size * training_args.world_size,
        )
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = round(time.perf_counter() - started, 1)
    merge_lora(trainer.model)
    trainer.save_model()
    trainer.save_state()
    return {"train_seconds": seconds}


def save_results(results: dict[str, Any], training_args: VTFusionTrainingArguments) -> dict[str, Any]:
    """Adds peak memory, seed and versions, and writes `results.json`."""
    results["peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    results["seed"] = training_args.seed
    results["versions"] = package_versions()
    if training_args.process_index == 0:
        path = Path(training_args.output_dir, "results.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        logger.info("results written to %s", path)
    return results


# ------------------------------------------------------------------------------------------------------------- recall


def best_ranks(scores: torch.Tensor, relevant: torch.Tensor) -> torch.Tensor:
    """
    For each query how many wrong candidates stand before the best right one. A wrong one with the same score stands
    before it, so that a model that scores everything alike finds nothing; so does one whose score is not a number.

    Args:
        scores (`torch.FloatTensor` of shape `(queries, candidates)`): the higher the better.
        relevant (`torch.BoolTensor` of shape `(queries, candidates)`): which are right.

    Returns:
        `torch.LongTensor` of shape `(queries,)`: from 0 on; where none is right, the number of candidates.

    Example:

    ```python
    >>> import torch
    >>> from vtfusion.training.image_text import best_ranks

    >>> best_ranks(torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([[False, True, True]])).tolist()
    [1]
    ```
    """
    best = scores.masked_fill(~relevant, float("-inf")).amax(dim=-1, keepdim=True)
    return (~relevant & ~(scores < best)).sum(dim=-1)


def search(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    query_groups: torch.Tensor,
    candidate_groups: torch.Tensor,
    top_k: int,
    chunk_size: int = 1024,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Compares every query with every candidate. What is of the same group, here of the same image, belongs together.

    Args:
        queries (`torch.FloatTensor` of shape `(queries, D)`): unit vectors.
        candidates (`torch.FloatTensor` of shape `(candidates, D)`): unit vectors.
        query_groups (`torch.LongTensor` of shape `(queries,)`): their groups.
        candidate_groups (`torch.LongTensor` of shape `(candidates,)`): their groups.
        top_k (`int`): how many of the best candidates are wanted.
        chunk_size (`int`, *optional*, defaults to 1024): queries at a time, which bounds the memory.

    Returns:
        `tuple` of the ranks `(queries,)`, see [`best_ranks`], and the places of the best candidates
        `(queries, min(top_k, candidates))`, best first.
    """
    top_k = min(top_k, len(candidates))
    ranks, places = [], []
    for chunk, groups in zip(queries.split(chunk_size), query_groups.split(chunk_size), strict=True):
        scores = chunk.float() @ candidates.float().T
        ranks.append(best_ranks(scores, groups[:, None] == candidate_groups[None, :]))
        places.append(scores.topk(top_k, dim=-1).indices)
    return torch.cat(ranks), torch.cat(places)


def rerank(
    ranks: torch.Tensor,
    places: torch.Tensor,
    scores: torch.Tensor,
    query_groups: torch.Tensor,
    candidate_groups: torch.Tensor,
) -> torch.Tensor:
    """
    Ranks `(queries,)` after the best candidates were put into a new order; the others stay behind them.

    Args:
        ranks (`torch.LongTensor` of shape `(queries,)`): those of [`search`].
        places (`torch.LongTensor` of shape `(queries, k)`): those of [`search`].
        scores (`torch.FloatTensor` of shape `(queries, k)`): by which these candidates are ranked again.
        query_groups (`torch.LongTensor` of shape `(queries,)`): their groups.
        candidate_groups (`torch.LongTensor` of shape `(candidates,)`): their groups.
    """
    relevant = candidate_groups[places] == query_groups[:, None]
    return torch.where(relevant.any(dim=-1), best_ranks(scores, relevant), ranks)


def recall_scores(text_ranks: torch.Tensor, image_ranks: torch.Tensor) -> dict[str, float]:
    """
    The share of queries with something right among the first 1, 5 and 10, and the mean of these six.

    Args:
        text_ranks (`torch.LongTensor` of shape `(texts,)`): of each text's image among the images.
        image_ranks (`torch.LongTensor` of shape `(images,)`): of each image's best text among the texts.
    """
    scores = {
        f"{direction}_recall@{k}": (ranks < k).double().mean().item()
        for direction, ranks in (("text_to_image", text_ranks), ("image_to_text", image_ranks))
        for k in RECALL_AT
    }
    return {**scores, "recall_mean": sum(scores.values()) / len(scores)}


def recall_report(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Recall in percent, a line for each way of ranking."""
    width, names = max(len(name) for name in scores), [f"R@{k}" for k in RECALL_AT]
    columns = [f"{direction}_recall@{k}" for direction in ("text_to_image", "image_to_text") for k in RECALL_AT]
    lines = [
        f"{'':<{width}}  {'text to image':^22}  {'image to text':^22}",
        f"{'':<{width}}  {'  '.join([f'{name:>6}' for name in names] * 2)}    mean",
    ]
    for name, values in scores.items():
        cells = "  ".join(f"{100 * values[column]:6.2f}" for column in (*columns, "recall_mean"))
        lines.append(f"{name:<{width}}  {cells}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------- retrieval


@dataclass
class RetrievalSplit:
    """
    What is searched: all captions and all images of a split.

    Args:
        texts (`list[str]`): the captions.
        tokens (`list[list[int]]`): the same as token ids.
        image_of_text (`torch.LongTensor` of shape `(texts,)`): which image each belongs to.
        image_keys (`list[list[str]]`): keys of the images in an [`ImageStore`].
        image_rows (`list[int]`): the rows of the images in the data.
    """

    texts: list[str]
    tokens: list[list[int]]
    image_of_text: torch.Tensor
    image_keys: list[list[str]]
    image_rows: list[int]

    @classmethod
    def from_dataset(cls, images: Dataset) -> "RetrievalSplit":
        """From what [`encode_captions`] returned."""
        texts = images["texts"][:]
        return cls(
            texts=list(itertools.chain.from_iterable(texts)),
            tokens=list(itertools.chain.from_iterable(images["captions"])),
            image_of_text=torch.arange(len(images)).repeat_interleave(torch.tensor([len(each) for each in texts])),
            image_keys=images["image_keys"][:],
            image_rows=images["row"][:],
        )

    def first_texts(self) -> torch.Tensor:
        """For each image `(images,)` the place of its first caption."""
        return torch.searchsorted(self.image_of_text, torch.arange(len(self.image_keys)))


@dataclass
class Ranks:
    """Of each caption's image among the images `(texts,)`, and of each image's best caption `(images,)`; from 0 on."""

    texts: torch.Tensor
    images: torch.Tensor

    def scores(self) -> dict[str, float]:
        """See [`recall_scores`]."""
        return recall_scores(self.texts, self.images)


class RetrievalTrainer(ImageTextTrainer):
    """
    [`ImageTextTrainer`] whose evaluation is a search: `eval_dataset` is a [`RetrievalSplit`], the scores are recall by
    the vectors. Every process searches by itself.
    """

    control: TrainerControl

    def evaluate(
        self,
        eval_dataset: RetrievalSplit | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        split = self.eval_dataset if eval_dataset is None else eval_dataset
        started = time.perf_counter()
        scores = self.retrieve(split)["vectors"].scores()
        scores["runtime"] = round(time.perf_counter() - started, 4)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def retrieve(self, split: RetrievalSplit, top_k: int = 0) -> dict[str, Ranks]:
        """
        Finds images for captions and captions for images.

        Args:
            split ([`RetrievalSplit`]): what is searched.
            top_k (`int`, *optional*, defaults to 0): how many of the best are ranked again by the matching score.

        Returns:
            `dict[str, Ranks]`: `"vectors"`, and with `top_k` also `"reranked"`.
        """
        self.model.eval()
        texts, images = self._embed_texts(split), self._embed_images(split)
        owners, numbers = split.image_of_text.to(texts.device), torch.arange(len(images), device=texts.device)
        text_ranks, best_images = search(texts, images, owners, numbers, max(top_k, 1))
        image_ranks, best_texts = search(images, texts, numbers, owners, max(top_k, 1))
        ranks = {"vectors": Ranks(text_ranks.cpu(), image_ranks.cpu())}
        if top_k > 0:
            numbers_of_texts = torch.arange(len(texts), device=texts.device)
            pairs = torch.cat(
                [
                    torch.stack([numbers_of_texts[:, None].expand_as(best_images), best_images], dim=-1).flatten(0, 1),
                    torch.stack([best_texts, numbers[:, None].expand_as(best_texts)], dim=-1).flatten(0, 1),
                ]
            )
            # in the order of the texts, and a pair that is wanted in both directions once
            unique, where = pairs.unique(dim=0, return_inverse=True)
            scores = self._score_pairs(split, unique.cpu()).to(texts.device)[where]
            of_texts, of_images = scores.split([best_images.numel(), best_texts.numel()])
            ranks["reranked"] = Ranks(
                rerank(text_ranks, best_images, of_texts.view_as(best_images), owners, numbers).cpu(),
                rerank(image_ranks, best_texts, of_images.view_as(best_texts), numbers, owners).cpu(),
            )
        return ranks

    def _batches(self, items: Sequence[Any], collate: Any, desc: str) -> Iterator[dict[str, torch.Tensor]]:
        loader = DataLoader(
            items,  # type: ignore[arg-type]  # a sequence will do
            batch_size=self.args.eval_batch_size,
            collate_fn=collate,
            num_workers=self.args.dataloader_num_workers,
        )
        for batch in logging.tqdm(loader, desc=desc, leave=False):
            yield {name: value.to(self.args.device) for name, value in batch.items()}

    def _by_length(self, split: RetrievalSplit) -> torch.Tensor:
        return torch.tensor([len(ids) for ids in split.tokens]).argsort(descending=True, stable=True)

    def _embed_texts(self, split: RetrievalSplit) -> torch.Tensor:
        order = self._by_length(split)
        tokens = [split.tokens[place] for place in order.tolist()]
        batches = self._batches(tokens, self.data_collator.pad_captions, "Vectors of captions")
        vectors = torch.cat([self.model.get_text_features(**batch) for batch in batches])
        return vectors[order.argsort().to(vectors.device)]

    def _embed_images(self, split: RetrievalSplit) -> torch.Tensor:
        batches = self._batches(split.image_keys, self.data_collator.gather_images, "Vectors of images")
        return torch.cat([self.model.get_image_features(**batch) for batch in batches])

    def _image_states(self, split: RetrievalSplit) -> tuple[torch.Tensor, torch.Tensor]:
        """X_v of all images `(images, N, D)` and their mask `(images, N)`, in the memory of the host."""
        # An image is read beside a text: its first caption, of which nothing is kept.
        rows = [(split.tokens[text], keys) for text, keys in zip(split.first_texts(), split.image_keys, strict=True)]
        states: list[torch.Tensor] = []
        masks: list[torch.Tensor] = []
        for batch in self._batches(rows, self.data_collator.pair, "Reading images"):
            outputs = self.model.base_model(**batch)
            states.extend(outputs.visual_hidden_state.cpu())
            masks.extend(outputs.visual_mask.cpu())
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(states, batch_first=True), pad(masks, batch_first=True)

    def _score_pairs(self, split: RetrievalSplit, pairs: torch.Tensor) -> torch.Tensor:
        """Matching scores `(pairs,)` of texts and images `(pairs, 2)`, which are in the order of the texts."""
        states, masks = self._image_states(split)
        order = self._by_length(split)
        ends = torch.searchsorted(pairs[:, 0].contiguous(), torch.arange(len(split.texts)), right=True)
        counts = torch.bincount(pairs[:, 0], minlength=len(split.texts))
        scores = torch.empty(len(pairs))
        model, size = self.model, self.args.eval_batch_size
        tokens = [split.tokens[place] for place in order.tolist()]
        batches = self._batches(tokens, self.data_collator.pad_captions, "Matching scores")
        for places, batch in zip(order.split(size), batches, strict=True):
            mask = batch["attention_mask"].bool()
            text = model.base_model(**batch).text_hidden_state
            # Every text once through its encoder, then beside each of its images.
            local = torch.arange(len(places)).repeat_interleave(counts[places])
            spans = zip(ends[places].tolist(), counts[places].tolist(), strict=True)
            wanted = torch.cat([torch.arange(end - count, end) for end, count in spans])
            for part, rows in zip(wanted.split(16 * size), local.split(16 * size), strict=True):
                rows, images = rows.to(text.device), pairs[part, 1]
                fused, _ = model.base_model.fuse(
                    text[rows], mask[rows], states[images].to(text.device), masks[images].to(text.device)
                )
                output = VTFusionModelOutput(last_hidden_state=fused["last_hidden_state"])
                scores[part] = model.match(output, mask[rows]).float().cpu()
        return scores


def write_retrieval(folder: str | os.PathLike, split: RetrievalSplit, ranks: Mapping[str, Ranks]) -> str:
    """
    Writes `test_report.txt`, and `test_predictions.jsonl` with the row of the image and the ranks (from 1 on) of each
    caption.

    Returns:
        `str`: the report.
    """
    report = recall_report({name: each.scores() for name, each in ranks.items()})
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, "test_report.txt").write_text(report + "\n", encoding="utf-8")
    with open(Path(folder, "test_predictions.jsonl"), "w", encoding="utf-8") as file:
        for place, (text, image) in enumerate(zip(split.texts, split.image_of_text.tolist(), strict=True)):
            record = {"text": text, "image_row": split.image_rows[image]}
            for name, each in ranks.items():
                record["rank" if name == "vectors" else f"rank_{name}"] = int(each.texts[place]) + 1
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return report
