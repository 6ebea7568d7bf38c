"""Images stored once, test conditions, and the cache of frozen features."""

import io
import resource
import threading
import time

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from filelock import FileLock
from transformers import ViTImageProcessor

from tiny import tiny_config
from tokenizers_for_tests import TOKENIZERS
from vtfusion import VTFusionModel, VTFusionProcessor
from vtfusion.training.arguments import ClassificationDataArguments, DataArguments, GenerationDataArguments
from vtfusion.training.collator import FusionCollator
from vtfusion.training.images import BLANK_KEY, FeatureCache, ImageStore, apply_condition


def png(color: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (40, 24), color).save(buffer, "PNG")
    return buffer.getvalue()


RED, GREEN, BLUE = png((255, 0, 0)), png((0, 255, 0)), png((0, 0, 255))


def dataset_of(*rows: list[bytes] | None) -> Dataset:
    images = [None if row is None else [{"bytes": image, "path": None} for image in row] for row in rows]
    features = Features({"images": List(Image(decode=False)), "n": Value("int32")})
    return Dataset.from_dict({"images": images, "n": list(range(len(rows)))}, features=features)


@pytest.fixture
def parts() -> tuple[VTFusionModel, VTFusionProcessor]:
    torch.manual_seed(0)
    processor = VTFusionProcessor(ViTImageProcessor(size={"height": 32, "width": 32}), TOKENIZERS["bert"]())
    return VTFusionModel(tiny_config("bert", "resnet")).eval(), processor


def test_store_keeps_each_image_once():
    store = ImageStore()
    train = store.add_split("train", dataset_of([RED], None, [GREEN, RED], []))
    test = store.add_split("test", dataset_of([GREEN], [BLUE]))
    assert len(store) == 3
    assert train[1] is None and train[3] is None
    assert train[2] == [test[0][0], train[0][0]]
    assert np.asarray(store.load(test[1][0]))[0, 0].tolist() == [0, 0, 255]


def test_store_reads_paths_and_bytes_as_the_same_image(tmp_path):
    (tmp_path / "red.png").write_bytes(RED)
    rows = {"images": [[{"bytes": None, "path": str(tmp_path / "red.png")}], [{"bytes": RED, "path": None}]]}
    store = ImageStore()
    keys = store.add_split("train", Dataset.from_dict(rows, features=Features({"images": List(Image(decode=False))})))
    assert keys[0] == keys[1] and len(store) == 1


def test_store_cuts_at_max_images():
    assert len(ImageStore().add_split("train", dataset_of([RED, GREEN, BLUE]), max_images=2)[0]) == 2


@pytest.mark.parametrize("arguments", [DataArguments, ClassificationDataArguments, GenerationDataArguments])
@pytest.mark.parametrize("number", [0, -1])
def test_max_images_below_one_raises(arguments, number):
    with pytest.raises(ValueError, match=f"`max_images` must be at least 1, got {number}. `text_only`"):
        arguments(max_images=number)


def test_bad_image_names_split_row_and_field(parts):
    store = ImageStore()
    keys = store.add_split("train", dataset_of([RED], [b"not an image"]))
    with pytest.raises(ValueError, match=r"train split, row 1, field `images`"):
        store.load(keys[1][0])
    with pytest.raises(ValueError, match="skip_image"):
        store.find_bad("error", parts[1])
    assert store.find_bad("skip_image", parts[1]) == {keys[1][0]}


def test_conditions_by_hand():
    rows = [["a"], None, ["b", "c"], ["d"]]
    assert apply_condition(rows, "true") == rows
    assert apply_condition(rows, "none") == [None] * 4
    assert apply_condition(rows, "blank") == [[BLANK_KEY], None, [BLANK_KEY] * 2, [BLANK_KEY]]
    with pytest.raises(ValueError, match="true, shuffled, blank, none"):
        apply_condition(rows, "random")


@pytest.mark.parametrize("seed", range(20))
def test_shuffle_moves_every_image_to_another_row(seed):
    rows = [[str(i % 7)] if i % 3 else None for i in range(60)]
    shuffled = apply_condition(rows, "shuffled", seed)
    assert all(new != old for new, old in zip(shuffled, rows, strict=True) if old is not None)
    assert [new is None for new in shuffled] == [old is None for old in rows]
    assert sorted(map(str, shuffled)) == sorted(map(str, rows))
    assert shuffled == apply_condition(rows, "shuffled", seed)


def share(rows, shuffled):
    return [not set(old).isdisjoint(new) for old, new in zip(rows, shuffled, strict=True)]


@pytest.mark.parametrize("seed", range(20))
def test_shuffled_images_are_none_of_the_row_wherever_that_can_be(seed):
    for rows in (
        [["x", "y"], ["y", "x"], ["z"], ["u", "v"]],
        [["x"], ["x", "y"], ["y"], ["z"]],  # y for x, z for both, x for y, both for z, and no other way
        [[str(i), "logo"] if i % 2 else [str(i)] for i in range(60)],
        [[f"{i}-{place}" for place in range(3)] + [str(i % 9)] for i in range(60)],
    ):
        shuffled = apply_condition(rows, "shuffled", seed)
        assert not any(share(rows, shuffled))
        assert sorted(shuffled) == sorted(rows)
    # where there is no such order, as few rows as can be, and another list at least
    rows = [[str(i), "logo"] if i % 3 else [str(i)] for i in range(60)]
    shuffled = apply_condition(rows, "shuffled", seed)
    assert sum(share(rows, shuffled)) == 20
    assert all(old != new for old, new in zip(rows, shuffled, strict=True))
    assert apply_condition([["x"], ["x", "y"]], "shuffled", seed) == [["x", "y"], ["x"]]


def test_the_shuffle_of_rows_with_one_image_is_the_one_of_former_studies():
    rows = [[name] for name in "abcabcddda"]
    assert [keys[0] for keys in apply_condition(rows, "shuffled", 3)] == list("bcddabacad")


def test_shuffling_many_rows_takes_seconds():
    rows = [[str(i), "logo"] if i % 20 == 0 else [str(i), str(i % 20_000)] for i in range(100_000)]
    started = time.perf_counter()
    assert not any(share(rows, apply_condition(rows, "shuffled")))
    assert time.perf_counter() - started < 60


def test_shuffle_of_one_image_only_cannot_move_it():
    assert apply_condition([["a"], ["a"], None], "shuffled") == [["a"], ["a"], None]


def test_cache_gives_what_the_encoder_gives(parts, tmp_path):
    model, processor = parts
    store = ImageStore()
    keys = store.add_split("train", dataset_of([RED, GREEN], None, [BLUE]))
    cache = FeatureCache(model, processor, tmp_path)
    assert cache.add(store, store.keys(), "error") == set()
    batch = cache.gather(keys)
    images = [[store.load(key) for key in row] if row else None for row in keys]
    pixels = processor.encode_images(images)
    with torch.no_grad():
        features, boxes = model.get_visual_features(**pixels)
    assert torch.equal(batch["image_mask"], pixels["image_mask"])
    torch.testing.assert_close(batch["visual_embeds"], features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(batch["visual_boxes"], boxes)
    text = {"input_ids": torch.tensor([[5, 6], [7, 8], [9, 10]])}
    with torch.no_grad():
        cached, direct = model(**text, **batch), model(**text, **pixels)
    torch.testing.assert_close(cached.last_hidden_state, direct.last_hidden_state, rtol=1e-5, atol=1e-5)


def test_cache_computes_only_what_is_new(parts, tmp_path):
    model, processor = parts
    calls = []
    model.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    store = ImageStore()
    first = store.add_split("train", dataset_of([RED], [GREEN]))
    FeatureCache(model, processor, tmp_path).add(store, store.keys(), "error")
    assert calls == [2]
    # another run, one image more
    second = store.add_split("test", dataset_of([GREEN], [BLUE]))
    cache = FeatureCache(model, processor, tmp_path)
    cache.add(store, store.keys(), "error")
    assert calls == [2, 1]
    assert cache.gather([first[0], second[1]])["image_mask"].tolist() == [[1], [1]]
    FeatureCache(model, processor, tmp_path).add(store, store.keys(), "error")
    assert calls == [2, 1]


def test_cache_is_not_read_after_a_change(parts, tmp_path):
    model, processor = parts
    store = ImageStore()
    key = store.add_split("train", dataset_of([RED]))[0][0]
    before = FeatureCache(model, processor, tmp_path)
    before.add(store, [key], "error")
    other = VTFusionProcessor(ViTImageProcessor(size={"height": 48, "width": 48}), processor.tokenizer)
    assert key not in FeatureCache(model, other, tmp_path)
    assert key not in FeatureCache(model, processor, tmp_path, dtype="float16")
    with torch.no_grad():
        next(model.vision_model.parameters()).add_(1)
    assert key not in FeatureCache(model, processor, tmp_path)


def test_half_precision_cache_is_close(parts, tmp_path):
    model, processor = parts
    store = ImageStore()
    keys = store.add_split("train", dataset_of([RED]))
    caches = [FeatureCache(model, processor, tmp_path, dtype=dtype) for dtype in ("float32", "float16")]
    for cache in caches:
        cache.add(store, store.keys(), "error")
    full, half = (cache.gather(keys)["visual_embeds"] for cache in caches)
    torch.testing.assert_close(half, full, rtol=1e-2, atol=1e-2)
    assert half.dtype == torch.float32


def test_cache_skips_or_reports_a_bad_image(parts, tmp_path):
    model, processor = parts
    store = ImageStore()
    keys = store.add_split("train", dataset_of([RED], [b"broken"]))
    with pytest.raises(ValueError, match=r"train split, row 1, field `images`"):
        FeatureCache(model, processor, tmp_path).add(store, store.keys(), "error")
    cache = FeatureCache(model, processor, tmp_path)
    assert cache.add(store, store.keys(), "skip_image") == {keys[1][0]}
    assert keys[0][0] in cache and keys[1][0] not in cache


def test_collator_pads_on_the_right_and_leaves_text_only_batches_alone(parts):
    _, processor = parts
    store = ImageStore()
    key = store.add_split("train", dataset_of([RED]))[0][0]
    windows = [
        {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [-100, 1, -100], "image_keys": [key]},
        {"input_ids": [5], "attention_mask": [1], "labels": [2], "image_keys": None},
    ]
    batch = FusionCollator(processor, store)(windows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 1, -100], [2, -100, -100]]
    assert batch["pixel_values"].shape == (2, 1, 3, 32, 32) and batch["image_mask"].tolist() == [[1], [0]]
    assert set(FusionCollator(processor, store)(windows[1:])) == {"input_ids", "attention_mask", "labels"}


# Faults ----------------------------------------------------------------------------------------------------------------


def filled_cache(parts, folder, *images):
    model, processor = parts
    store = ImageStore()
    keys = store.add_split("train", dataset_of(*[[image] for image in images]))
    cache = FeatureCache(model, processor, folder)
    cache.add(store, store.keys(), "error")
    return cache, store, keys


@pytest.mark.parametrize("way", ["missing", "cut", "flipped"])
@pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "dataset_info.json", "state.json", "manifest.json"])
def test_a_damaged_part_of_the_cache_is_computed_again(parts, tmp_path, name, way):
    expected, store, keys = filled_cache(parts, tmp_path, RED, GREEN)
    features = {name: value.clone() for name, value in expected.gather(keys).items()}
    file = expected.folder / "part-00000" / name
    content = file.read_bytes()
    # most of the data are features, of which any other would do
    place = 2 * len(content) // 3
    file.unlink()
    if way == "cut":
        file.write_bytes(content[:place])
    elif way == "flipped":
        file.write_bytes(content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :])
    cache = FeatureCache(*parts, tmp_path)
    assert keys[0][0] not in cache
    for again in (cache, FeatureCache(*parts, tmp_path)):
        again.add(store, store.keys(), "error")
        assert all(torch.equal(value, features[name]) for name, value in again.gather(keys).items())
    assert [path.name for path in sorted(cache.folder.glob("part-*"))] == ["part-00000"]


def test_two_runs_fill_one_cache(parts, tmp_path):
    store = ImageStore()
    keys = store.add_split("train", dataset_of([RED], [GREEN]))
    first, second = (FeatureCache(*parts, tmp_path) for _ in range(2))  # both find it empty
    for cache in (first, second):
        cache.add(store, store.keys(), "error")
    assert all(torch.equal(value, second.gather(keys)[name]) for name, value in first.gather(keys).items())
    assert len(list(first.folder.glob("part-*"))) == 1


def test_a_run_waits_for_the_features_of_another(parts, tmp_path):
    _, store, keys = filled_cache(parts, tmp_path / "other", RED)
    cache = FeatureCache(*parts, tmp_path)
    cache.folder.mkdir(parents=True)
    lock = FileLock(cache.folder / ".lock", thread_local=False)
    lock.acquire()
    waiting = threading.Thread(target=cache.add, args=(store, store.keys(), "error"))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive() and not any(cache.folder.glob("part-*"))
    filled_cache(parts, tmp_path / "there", RED)[0].folder.joinpath("part-00000").rename(cache.folder / "part-00000")
    parts[0].vision_model.register_forward_pre_hook(lambda *_: pytest.fail("computed twice"))
    lock.release()
    waiting.join(60)
    assert not waiting.is_alive() and keys[0][0] in cache


def test_what_killed_runs_left_in_the_cache_is_removed(parts, tmp_path):
    cache, store, _ = filled_cache(parts, tmp_path, RED)
    (cache.folder / ".unfinished").mkdir()
    (cache.folder / ".unfinished" / "half").touch()
    (cache.folder / ".unfinished.arrow").touch()
    store.add_split("test", dataset_of([BLUE]))
    again = FeatureCache(*parts, tmp_path)
    again.add(store, store.keys(), "error")
    assert {path.name for path in cache.folder.iterdir()} == {".lock", "part-00000", "part-00001"}


def test_a_full_disk_is_named_and_leaves_nothing(parts, tmp_path):
    store = ImageStore()
    keys = store.add_split("train", dataset_of(*[[png((value, 0, 0))] for value in range(64)]))
    cache = FeatureCache(*parts, tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot be written into") as error:
            cache.add(store, store.keys(), "error")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(cache.folder) in str(error.value)
    assert [path.name for path in cache.folder.iterdir()] == [".lock"]
    cache.add(store, store.keys(), "error")
    assert keys[0][0] in cache


def sized(width: int, height: int, shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, height), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("sizes", "batch_size", "message"),
    [
        ([(32, 32), (32, 32), (64, 32)], 3, "row 2, field `images`: .* 64×32 pixels and not 32×32"),
        ([(64, 32), (32, 64)], 2, "row 1, field `images`: .* 32×64 pixels and not 64×32"),
        ([(32, 32), (32, 32), (64, 32), (64, 32)], 2, "row 2, field `images`: .* 32 features and not 16"),
        ([(32, 32), (32, 32)], 1, "the blank image: .* 784 features and not 16"),
    ],
)
def test_cache_refuses_images_of_another_size(parts, tmp_path, sizes, batch_size, message):
    model, processor = parts
    processor.image_processor = ViTImageProcessor(do_resize=False)
    store = ImageStore()
    rows = store.add_split("train", dataset_of(*([sized(*size, shade)] for shade, size in enumerate(sizes))))
    cache = FeatureCache(model, processor, tmp_path)
    with pytest.raises(ValueError, match=f"{message}.*`do_resize`"):
        cache.add(store, [*store.keys(), BLANK_KEY], "skip_image", batch_size)
    assert not any(cache.folder.glob("part-*")) and cache.add(store, rows[0], "error") == set()
    assert cache.gather(rows[:1])["visual_embeds"].shape[2] == sizes[0][0] * sizes[0][1] // 64
    with pytest.raises(ValueError, match=" and not "):  # what lies there counts too
        cache.add(store, [rows[-1][0], BLANK_KEY], "error", batch_size)
