"""The images of a data set: each stored once by its content, its features computed once by a frozen encoder."""

import hashlib
import json
import os
import random
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from datasets import Dataset, DatasetDict, Features, List, Value, config, load_from_disk
from filelock import FileLock, Timeout
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import logging

from ..images_vtfusion import decode_image
from ..modeling_vtfusion import VTFusionPreTrainedModel
from ..processing_vtfusion import VTFusionProcessor
from .arguments import DataArguments
from .files import UNFINISHED, find_damage, seal
from .messages import at

logger = logging.get_logger(__name__)

BLANK_KEY = "blank"
# What a model can be tested with, and how people read it.
IMAGE_CONDITIONS = {
    "true": "true image",
    "shuffled": "shuffled image",
    "blank": "blank image",
    "none": "no image",
}

RowKeys = list[str] | None


class ImageStore:
    """
    The images of all splits, each once, by a key made from its bytes. A row of a data set then holds a few short keys,
    so that windows, shuffling and feature caches never copy an image.

    The key `"blank"` stands for a mid-grey image, which is in every store.
    """

    def __init__(self) -> None:
        self._places: dict[str, str | tuple[Dataset, int, int]] = {}
        self._path_keys: dict[str, str] = {}
        self._first_seen: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._places)

    def keys(self) -> list[str]:
        """Keys of all images, without the blank one."""
        return list(self._places)

    def add_split(self, split: str, dataset: Dataset, max_images: int | None = None) -> list[RowKeys]:
        """
        Takes in the images of a split.

        Args:
            split (`str`): its name, for messages.
            dataset (`datasets.Dataset`): with a column `images` (`List(Image(decode=False))`), or without any images.
            max_images (`int`, *optional*): images of a row beyond this number are left out.

        Returns:
            `list[list[str] | None]`: for each row the keys of its images; `None` for a row without.
        """
        if "images" not in dataset.column_names:
            return [None] * len(dataset)
        images = dataset.select_columns(["images"])
        rows: list[RowKeys] = []
        progress = logging.tqdm(total=len(images), desc=f"Reading images of {split}", leave=False)
        for index, row in enumerate(images):
            keys = []
            for place, image in enumerate((row["images"] or [])[:max_images]):
                key = self._key(image, split, index)
                if key not in self._places:
                    self._places[key] = image["path"] if image.get("bytes") is None else (images, index, place)
                    self._first_seen[key] = at(f"{split} split", index, "images")
                keys.append(key)
            rows.append(keys or None)
            progress.update()
        progress.close()
        return rows

    def _key(self, image: dict[str, Any], split: str, index: int) -> str:
        content, path = image["bytes"], image["path"]
        if content is not None:
            return hashlib.sha256(content).hexdigest()
        if path not in self._path_keys:
            try:
                self._path_keys[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            except OSError as error:
                raise OSError(f"{at(f'{split} split', index, 'images')}: cannot read {path}: {error}") from error
        return self._path_keys[path]

    def load(self, key: str) -> PIL.Image.Image | np.ndarray:
        """
        The decoded image.

        Raises:
            `ValueError`: naming the split, the row and the field, if it cannot be decoded.
        """
        if key == BLANK_KEY:
            return PIL.Image.new("RGB", (224, 224), (128, 128, 128))
        place = self._places[key]
        if isinstance(place, str):
            image: dict[str, Any] = {"bytes": Path(place).read_bytes(), "path": place}
        else:
            dataset, index, position = place
            image = dataset[index]["images"][position]
        try:
            return decode_image(image)
        except ValueError as error:
            raise ValueError(f"{self.where(key)}: {error}") from error

    def where(self, key: str) -> str:
        """Split, row and field in which an image was first seen, for messages."""
        return self._first_seen.get(key, "the blank image")

    def prepare(self, key: str, image: Any, processor: VTFusionProcessor) -> dict[str, torch.Tensor]:
        """
        Model inputs of an image that was loaded.

        Raises:
            `ValueError`: naming the split, the row and the field, if the image processor cannot prepare it.
        """
        try:
            return processor.encode_images([[image]])
        except ValueError as error:
            message = str(error).removeprefix("row 0, ").removeprefix("field `images`: ")
            raise ValueError(f"{self.where(key)}: {message}") from error

    def find_bad(self, on_bad_image: str, processor: VTFusionProcessor) -> set[str]:
        """
        Decodes and prepares every image once.

        Args:
            on_bad_image (`str`): `"error"` raises at the first that cannot be decoded or prepared, `"skip_image"`
                collects them.
            processor ([`VTFusionProcessor`]): prepares the images.

        Returns:
            `set[str]`: keys of the images that cannot be decoded or prepared.
        """
        bad = set()
        for key in logging.tqdm(self._places, desc="Checking images", leave=False):
            try:
                self.prepare(key, self.load(key), processor)
            except ValueError as error:
                skip_bad_image(str(error), on_bad_image)
                bad.add(key)
        return bad


def skip_bad_image(problem: str, on_bad_image: str) -> None:
    """
    What `on_bad_image` says of an image that cannot be read or prepared: a warning, or the end.

    Args:
        problem (`str`): where the image is, and what is wrong with it.
        on_bad_image (`str`): `"skip_image"`, or `"error"`.

    Raises:
        `ValueError`: it is `"error"`.
    """
    if on_bad_image == "error":
        raise ValueError(f"{problem}. With `on_bad_image` skip_image it counts as no image.")
    logger.warning("%s: it counts as no image.", problem)


def apply_condition(rows: Sequence[RowKeys], condition: str, seed: int = 0) -> list[RowKeys]:
    """
    The images of each row under a test condition.

    Args:
        rows (`Sequence[list[str] | None]`): keys of the images of each row.
        condition (`str`): `"true"` leaves them; `"shuffled"` gives each row with images those of another row, of which
            none is its own wherever the data has such, else at least other ones in all; `"blank"` puts a grey image in
            the place of each; `"none"` takes them away.
        seed (`int`, *optional*, defaults to 0): of the shuffle.
    """
    if condition == "true":
        return list(rows)
    if condition == "none":
        return [None] * len(rows)
    if condition == "blank":
        return [None if keys is None else [BLANK_KEY] * len(keys) for keys in rows]
    if condition != "shuffled":
        raise ValueError(f"`image_conditions` takes {', '.join(IMAGE_CONDITIONS)}; got {condition!r}.")
    places = [index for index, keys in enumerate(rows) if keys is not None]
    shuffled: list[RowKeys] = [None] * len(rows)
    for place, keys in zip(places, _shuffle([rows[place] or [] for place in places], seed), strict=True):
        shuffled[place] = keys
    return shuffled


def _shuffle(rows: Sequence[list[str]], seed: int) -> list[list[str]]:
    """The lists in another order, in which as few as can be share an image with the one whose place they take."""
    rng = random.Random(seed)
    own = [frozenset(keys) for keys in rows]
    donors = list(range(len(rows)))
    rng.shuffle(donors)

    def shares(row: int, holder: int) -> bool:
        return not own[row].isdisjoint(own[donors[holder]])

    # A shuffle leaves some rows with an image of their own: they exchange donors with others, most of them with one.
    open_rows, in_all = (
        donors.copy(),
        frozenset[str](),
    )  # whose donors may still change, and the images that all these have
    for row in range(len(rows)):
        if not shares(row, row) or not own[row].isdisjoint(in_all):
            continue
        if rows[donors[row]] == rows[row]:
            others = list(range(len(rows)))
            rng.shuffle(others)
        else:  # so many may share some image that an order for each of them would take too long
            start = rng.randrange(len(open_rows))
            others = open_rows[start:] + open_rows[:start]
        chain, unseen = _find_exchange(row, others, own, donors)
        taken = [donors[holder] for holder in [*chain[1:], *chain[:1]]]
        for taker, donor in zip(chain, taken, strict=True):
            donors[taker] = donor
        if not chain:
            open_rows = unseen
            in_all = frozenset.intersection(*(own[donors[other]] for other in open_rows))

    # What is left has no donor without such an image: another list will do, if that costs no other row its donor.
    settled: set[tuple[str, ...]] = set()
    for row in range(len(rows)):
        if rows[donors[row]] != rows[row] or tuple(rows[row]) in settled:
            continue
        start = rng.randrange(len(rows))
        for other in [*range(start, len(rows)), *range(start)]:
            differ = rows[donors[other]] != rows[row] and rows[donors[row]] != rows[other]
            if differ and shares(row, other) + shares(other, row) <= 1 + shares(other, other):
                donors[row], donors[other] = donors[other], donors[row]
                break
        else:
            settled.add(tuple(rows[row]))
    return [rows[donor] for donor in donors]


def _find_exchange(
    first: int, others: list[int], own: Sequence[frozenset[str]], donors: Sequence[int]
) -> tuple[list[int], list[int]]:
    """
    Rows that exchange their donors so that more of them have one without an image of their own: each takes that of the
    next, the last that of `first`. This is the search for an augmenting path in a bipartite matching, which finds one if
    there is any.

    Returns:
        `tuple[list[int], list[int]]`: the rows, none if there are no such; and then those of `others` that were not come
        by, `first` among them. The rest is of no use to any other row either.
    """
    before: dict[int, int] = {}
    waiting = deque([first])
    unseen = others
    searched: set[frozenset[str]] = set()
    in_all = frozenset[str]()
    while waiting:
        row = waiting.popleft()
        if own[row] in searched or not own[row].isdisjoint(in_all):
            continue
        searched.add(own[row])
        refused = []
        for other in unseen:
            if other == first or not own[row].isdisjoint(own[donors[other]]):
                refused.append(other)
                continue
            before[other] = row
            if own[other].isdisjoint(own[donors[first]]) or not own[other].isdisjoint(own[donors[other]]):
                chain = [other]
                while chain[-1] != first:
                    chain.append(before[chain[-1]])
                return chain[::-1], []
            waiting.append(other)
        if len(refused) < len(unseen):
            in_all = frozenset.intersection(*(own[donors[other]] for other in refused))
        unseen = refused
    return [], unseen


class FeatureCache:
    """
    Features of a frozen vision encoder, on disk and memory-mapped (`datasets`), one entry for each image. The folder's
    name is a hash of the encoder's weights and configuration, of the preprocessing and of the number format; the key
    of an entry is a hash of the image's bytes. So nothing stale is ever read, and a later run computes only what is
    new, and what lies in a part that is no longer as it was written. Several runs may share a folder.

    Args:
        model ([`VTFusionPreTrainedModel`]): a model whose vision encoder computes the features.
        processor ([`VTFusionProcessor`]): prepares the images.
        cache_dir (`str` or `os.PathLike`, *optional*): by default `vtfusion_features` in the cache of `datasets`.
        dtype (`str`, *optional*, defaults to `"float32"`): `"float32"`, or `"float16"` for half the disk.
    """

    def __init__(
        self,
        model: VTFusionPreTrainedModel,
        processor: VTFusionProcessor,
        cache_dir: str | os.PathLike | None = None,
        dtype: str = "float32",
    ):
        root = Path(cache_dir or Path(config.HF_DATASETS_CACHE) / "vtfusion_features")
        self.model, self.processor, self.dtype = model.base_model, processor, dtype
        self.folder = root / _fingerprint(self.model.vision_model, processor, dtype)
        self._parts: list[Dataset] = []
        self._opened: set[Path] = set()
        self._index: dict[str, tuple[int, int]] = {}
        self._shape: tuple[int, int] = (0, 0)
        self._open()

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def _open(self) -> None:
        for folder in sorted(self.folder.glob("part-*")):
            if folder in self._opened:
                continue
            damage = find_damage(folder)
            if damage is not None:
                logger.warning("%s: the features in %s are computed again.", damage, folder)
                continue
            self._opened.add(folder)
            part = load_from_disk(str(folder))
            number = len(self._parts)
            self._index |= {key: (number, row) for row, key in enumerate(part["key"])}
            self._shape = tuple(part[0]["shape"])
            self._parts.append(part.select_columns(["features", "boxes"]).with_format("numpy"))

    def add(self, store: ImageStore, keys: Sequence[str], on_bad_image: str, batch_size: int = 32) -> set[str]:
        """
        Computes the features of images that are not in the cache yet.

        Args:
            store ([`ImageStore`]): where the images are.
            keys (`Sequence[str]`): the images wanted.
            on_bad_image (`str`): `"error"` raises at an image that cannot be decoded or prepared, `"skip_image"` leaves
                it out.
            batch_size (`int`, *optional*, defaults to 32): images in a call of the encoder.

        Returns:
            `set[str]`: keys of the images that cannot be decoded or prepared.

        Raises:
            `OSError`: naming the folder, if the features cannot be written.
            `ValueError`: naming an image, if the image processor makes images of different sizes.
        """
        if all(key in self for key in keys):
            return set()
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            held = lock.acquire(blocking=False)
        except Timeout:
            logger.warning("Another run computes features in %s: waiting for it.", self.folder)
            held = lock.acquire()
        with held:
            self._open()
            self._remove_unusable()
            missing = [key for key in dict.fromkeys(keys) if key not in self]
            return self._compute(store, missing, on_bad_image, batch_size)

    def _remove_unusable(self) -> None:
        """What killed runs left, and damaged parts; nobody writes here while this process has the lock."""
        for path in self.folder.iterdir():
            if path.is_dir() and path not in self._opened:
                shutil.rmtree(path)
            elif path.name.startswith(UNFINISHED):
                path.unlink()

    def _compute(self, store: ImageStore, missing: Sequence[str], on_bad_image: str, batch_size: int) -> set[str]:
        bad: set[str] = set()
        if not missing:
            return bad
        device = next(self.model.vision_model.parameters()).device

        def loaded(keys: Sequence[str]) -> dict[str, Any]:
            images = {}
            for key in keys:
                try:
                    images[key] = store.load(key)
                except ValueError as error:
                    skip_bad_image(str(error), on_bad_image)
                    bad.add(key)
            return images

        def refuse_other_size(key: str, size: str, expected: str, cause: Exception | None = None) -> None:
            if size != expected:
                raise ValueError(
                    f"{store.where(key)}: the image processor makes it another size than the images before it: {size} and "
                    f"not {expected}. All must come out in one size, the blank image of 224×224 pixels too: see the "
                    "image processor's `size`, `do_resize` and `do_center_crop`."
                ) from cause

        def encode(images: dict[str, Any]) -> dict[str, torch.Tensor]:
            """Leaves those out of `images` that the image processor cannot prepare."""
            try:
                return self.processor.encode_images([[image] for image in images.values()])
            except ValueError:
                sizes = {}
                for key in list(images):
                    try:
                        pixels = store.prepare(key, images[key], self.processor)["pixel_values"]
                        sizes[key] = f"{pixels.shape[-1]}×{pixels.shape[-2]} pixels"
                    except ValueError as error:
                        skip_bad_image(str(error), on_bad_image)
                        bad.add(key)
                        del images[key]
                try:
                    return self.processor.encode_images([[image] for image in images.values()])
                except ValueError as error:
                    for key, size in sizes.items():
                        refuse_other_size(key, size, next(iter(sizes.values())), error)
                    raise

        def rows() -> Iterator[dict[str, Any]]:
            training, count = self.model.training, self._shape[0]
            self.model.eval()
            for start in logging.tqdm(range(0, len(missing), batch_size), desc="Vision features"):
                kept = loaded(missing[start : start + batch_size])
                inputs = {name: value.to(device) for name, value in encode(kept).items()}
                if not kept:
                    continue
                with torch.no_grad():
                    features, boxes = self.model.get_visual_features(**inputs)
                count = count or features.shape[2]
                refuse_other_size(next(iter(kept)), f"{features.shape[2]} features", f"{count} features")
                for key, feature, box in zip(kept, features[:, 0].cpu(), boxes[:, 0].cpu(), strict=True):
                    yield {
                        "key": key,
                        "shape": list(feature.shape),
                        "features": feature.to(getattr(torch, self.dtype)).flatten().numpy(),
                        "boxes": box.float().flatten().numpy(),
                    }
            self.model.train(training)

        if self._write(rows()):
            self._open()
        return bad

    @contextmanager
    def _named_writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            free = shutil.disk_usage(self.folder).free / 2**20
            raise OSError(
                f"The features cannot be written into {self.folder}: {error} ({free:,.0f} MiB are free). Free some space "
                "or give another `feature_cache_dir`."
            ) from error

    def _write(self, rows: Iterator[dict[str, Any]]) -> bool:
        from datasets.arrow_writer import ArrowWriter

        features = Features(
            {
                "key": Value("string"),
                "shape": List(Value("int32")),
                "features": List(Value(self.dtype)),
                "boxes": List(Value("float32")),
            }
        )
        rows_file, unfinished = self.folder / f"{UNFINISHED}.arrow", self.folder / UNFINISHED
        try:
            # row by row to disk: features of a large collection do not fit in memory
            writer = ArrowWriter(features=features, path=str(rows_file), writer_batch_size=64)
            for row in rows:
                with self._named_writing():
                    writer.write(row)
            with self._named_writing():
                count, _ = writer.finalize()
                if count == 0:
                    return False
                Dataset.from_file(str(rows_file)).save_to_disk(str(unfinished))
                seal(unfinished)
            numbers = [int(path.name.removeprefix("part-")) for path in self._opened]
            unfinished.rename(self.folder / f"part-{max(numbers, default=-1) + 1:05d}")
            return True
        finally:
            rows_file.unlink(missing_ok=True)
            shutil.rmtree(unfinished, ignore_errors=True)

    def gather(self, rows: Sequence[RowKeys]) -> dict[str, torch.Tensor]:
        """
        Model inputs of a batch.

        Args:
            rows (`Sequence[list[str] | None]`): keys of the images of each row.

        Returns:
            `dict[str, torch.Tensor]`: `visual_embeds` of shape `(B, M, n, C)`, `visual_boxes` of shape `(B, M, n, 4)`
            and `image_mask` of shape `(B, M)`; empty if no row has an image.
        """
        places = [(r, m, key) for r, keys in enumerate(rows) for m, key in enumerate(keys or [])]
        if not places:
            return {}
        size = (len(rows), max(len(keys or []) for keys in rows))
        count, width = self._shape
        embeds = np.zeros((*size, count, width), dtype=np.float32)
        boxes = np.zeros((*size, count, 4), dtype=np.float32)
        mask = torch.zeros(size, dtype=torch.long)
        for row, slot, key in places:
            part, index = self._index[key]
            entry = self._parts[part][index]
            embeds[row, slot] = entry["features"].reshape(count, width)
            boxes[row, slot] = entry["boxes"].reshape(count, 4)
            mask[row, slot] = 1
        return {
            "visual_embeds": torch.from_numpy(embeds),
            "visual_boxes": torch.from_numpy(boxes),
            "image_mask": mask,
        }


class PreparedImages(NamedTuple):
    """
    The images of all splits, as [`prepare_images`] leaves them.

    Attributes:
        keys (`dict[str, list[list[str] | None]]`): for each split the keys of the images of each row.
        store ([`ImageStore`]): where the images are.
        cache ([`FeatureCache`], *optional*): `None` where the vision encoder is trained or there is no image.
    """

    keys: dict[str, list[RowKeys]]
    store: ImageStore
    cache: FeatureCache | None


def prepare_images(
    dataset: DatasetDict,
    model: VTFusionPreTrainedModel,
    processor: VTFusionProcessor,
    data_args: DataArguments,
    training_args: TrainingArguments,
) -> PreparedImages:
    """
    Gets the images of all splits ready: with a frozen vision encoder their features are computed or found in the
    cache, else every image is decoded and prepared once, so that a broken one shows before the training.

    Args:
        dataset (`DatasetDict`): splits with or without a column `images`.
        model ([`VTFusionPreTrainedModel`]): its vision encoder computes the features; moved to the device for that.
        processor ([`VTFusionProcessor`]): prepares the images.
        data_args ([`DataArguments`]): `text_only`, `max_images`, `on_bad_image`, `feature_cache_dir`, `feature_dtype`.
        training_args (`TrainingArguments`): the device, and which process goes first.

    Returns:
        [`PreparedImages`]: without the keys of unreadable images.
    """
    store = ImageStore()
    keys: dict[str, list[RowKeys]] = {}
    for split, rows in dataset.items():
        keys[split] = [None] * len(rows) if data_args.text_only else store.add_split(split, rows, data_args.max_images)
    bad: set[str] = set()
    cache = None
    encoder = model.base_model.vision_model
    if len(store) > 0 and any(parameter.requires_grad for parameter in encoder.parameters()):
        bad = store.find_bad(data_args.on_bad_image, processor)
    elif len(store) > 0:
        with training_args.main_process_first(desc="vision features"):
            cache = FeatureCache(
                model.to(training_args.device), processor, data_args.feature_cache_dir, data_args.feature_dtype
            )
            started = time.perf_counter()
            bad = cache.add(store, [*store.keys(), BLANK_KEY], data_args.on_bad_image)
            logger.info("vision features ready after %.1f s", time.perf_counter() - started)
    if bad:
        keys = {
            split: [[key for key in row or [] if key not in bad] or None for row in rows]
            for split, rows in keys.items()
        }
    if training_args.process_index == 0 and not data_args.text_only:
        for split, rows in keys.items():
            print(f"{split}: {sum(row is not None for row in rows):,} of {len(rows):,} texts have an image")
        print(f"{len(store):,} different images, {len(bad)} of them unreadable and left out")
    return PreparedImages(keys, store, cache)


def _fingerprint(encoder: PreTrainedModel, processor: VTFusionProcessor, dtype: str) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    settings = encoder.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "architectures", "dtype"):
        settings.pop(name, None)
    preprocessing = processor.image_processor.to_dict()
    digest.update(json.dumps([settings, preprocessing, dtype], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]
