"""Images with captions: rows of one image with all its captions, streams of them, and batches that draw one."""

import itertools
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
)
from torch.utils.data import IterableDataset as TorchIterableDataset
from torch.utils.data import get_worker_info
from transformers import (
    DataCollatorForLanguageModeling,
    TrainingArguments,
)
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from ..images_vtfusion import decode_image
from ..processing_vtfusion import VTFusionProcessor
from .arguments import CaptionDataArguments, VTFusionTrainingArguments
from .caption_data import CAPTION_COLUMNS, load_caption_dataset, read_captions
from .collator import FusionCollator
from .columns import find_column, find_columns
from .fine_tuning import limit_rows
from .image_paths import ImageFolders, image_item
from .images import RowKeys, skip_bad_image
from .messages import at
from .streams import named_errors, open_streams, undecoded

logger = logging.get_logger(__name__)


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
        result[split] = concatenate_datasets(
            [Dataset(pa.table({"captions": captions})), rows.select_columns(["images"]).select(firsts)], axis=1
        )
    return limit_rows(result, data_args)


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
        folders ([`ImageFolders`]): where the images lie.
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
        folders: ImageFolders,
        where: str,
        max_images: int | None = None,
        shuffle_buffer_size: int = 1,
        seed: int = 0,
        repeat: bool = False,
    ):
        self.stream, self.where, self.folders = stream, where, folders
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
            while block := self._next_rows(rows):
                rng = np.random.default_rng((self.seed, number, blocks))
                order = rng.permutation(len(block)) if self.shuffle_buffer_size > 1 else range(len(block))
                yield from (block[position] for position in order)
                blocks += 1
            if not self.repeat or blocks == 0:
                return

    def _next_rows(self, rows: Iterator[tuple[int, dict[str, Any]]]) -> list[tuple[int, dict[str, Any]]]:
        with named_errors(self.where):
            return list(itertools.islice(rows, self.shuffle_buffer_size))

    def _read(self, index: int, row: Mapping[str, Any], place: int) -> dict[str, Any]:
        captions = read_captions({"text": [row[self.text_column]]}, [index], "text", self.where, 0)["text"]
        value = None if self.image_column is None else row[self.image_column]
        where = at(self.where, index, self.image_column)
        values = value if isinstance(value, list) else [value]
        items = [image_item(item, self.folders.base, where) for item in values]
        images = [item for item in items if item is not None][: self.max_images]
        paths = [item["path"] for item in images if item["bytes"] is None]
        if outside := self.folders.outside(paths):
            raise self.folders.refuse(next(path for path in paths if path in outside), where)
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
    for split, opened in open_streams(**data_args.origin()).items():
        where, folders = opened.where, opened.folders
        with named_errors(where):
            stream = undecoded(opened.stream)
            first = next(iter(stream), None)
        if first is None:
            raise ValueError(f"{where} has no rows.")
        source = opened.with_columns(first)
        if data_args.dataset_name is None:
            source.image_columns += ("file_name",)
        (text,) = find_columns(source, {"text_column": (data_args.text_column, CAPTION_COLUMNS)})
        image = find_column("image_column", data_args.image_column, source.image_columns, source, needed=False)
        if image is None:
            raise ValueError(
                f"{where} has no column with images. It has: {', '.join(first)}. Say with `image_column` which one to "
                "read."
            )
        limit, train = data_args.max_samples(split), split == "train"
        streams[split] = CaptionStream(
            stream if limit is None else stream.take(limit),
            text,
            image,
            folders,
            where,
            data_args.max_images,
            shuffle_buffer_size if train else 1,
            seed,
            repeat=train,
        )
    return streams


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
                skip_bad_image(f"{row['where']}: {error}", self.on_bad_image)
                self.bad_images += 1
        return images


def _decode_item(item: dict[str, Any]) -> Any:
    if item["bytes"] is not None:
        return decode_image(item["bytes"])
    if "://" in item["path"]:
        # in an archive or on the Hub
        return decode_image(Image().decode_example(item))
    return decode_image(Path(item["path"]).read_bytes())
