"""Every kind of picture that people have, and broken ones, through each door: the right pixels, or an error that says where."""

import io
import json
import os
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, features
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DetrImageProcessor,
    TrainingArguments,
    ViTImageProcessor,
)

from tiny import tiny_config
from tokenizers_for_tests import TOKENIZERS
from vtfusion import VTFusionForTokenClassification, VTFusionProcessor, VTFusionTokenClassificationPipeline
from vtfusion.app.demo_answer import Limits, answer, read_inputs
from vtfusion.images_vtfusion import (
    IMAGE_FORMATS,
    decode_image,
    strongest_region,
    visible_rectangle,
    without_unseen_ends,
)
from vtfusion.training.arguments import DataArguments
from vtfusion.training.images import FeatureCache, ImageStore, prepare_images
from vtfusion.training.prediction import decoded_examples, load_examples
from vtfusion.training.token_data import load_token_classification_dataset

COLOUR = (200, 30, 60)
FLAT = np.full((6, 8, 3), COLOUR, np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
GREY = np.repeat(NOISE[:, :, :1], 3, axis=2)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def raw_png(width, height, depth, colour, rows, before=b""):
    """A PNG written by hand; `colour` is its colour type, `rows` the bytes before compression."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def on_white(pixels, alpha):
    """What a viewer shows on a white page."""
    return np.round(pixels * (alpha / 255) + 255 * (1 - alpha / 255))


def palette():
    """NOISE's first channel as an index into grey steps, of which index 0 … 99 are see-through."""
    image = Image.fromarray(NOISE[:, :, 0]).convert("P")
    image.putdata(NOISE[:, :, 0].ravel().tolist())
    image.putpalette([value for value in range(256) for _ in range(3)])
    return image


def animation(kind, **options):
    return encode(FLAT, kind, save_all=True, append_images=[Image.new("RGB", (8, 6))], **options)


def oriented(number):
    exif = Image.Exif()
    exif[0x0112] = number  # 6: turn it right by 90° to see it upright
    return exif.tobytes()


ALPHA = np.random.default_rng(1).integers(0, 256, (6, 8, 1), np.uint8)
SIXTEEN = NOISE[:, :, 0].astype(np.uint16) * 257

# name → bytes, the pixels of an upright RGB picture on white, and how far a lossy format may be off
PICTURES = {
    "png": (encode(NOISE), NOISE, 0),
    "bmp": (encode(NOISE, "BMP"), NOISE, 0),
    "tiff": (encode(NOISE, "TIFF"), NOISE, 0),
    "ppm": (encode(NOISE, "PPM"), NOISE, 0),
    "webp": (encode(NOISE, "WEBP", lossless=True), NOISE, 0),
    "jpeg": (encode(FLAT, "JPEG"), FLAT, 3),
    "cmyk": (encode(Image.fromarray(FLAT).convert("CMYK"), "TIFF"), FLAT, 0),
    "cmyk jpeg": (encode(Image.fromarray(FLAT).convert("CMYK"), "JPEG"), FLAT, 6),
    "grey jpeg": (encode(Image.new("L", (8, 6), 90), "JPEG"), np.full((6, 8, 3), 90), 2),
    "palette": (encode(palette()), GREY, 0),
    "palette with transparency": (
        encode(palette(), transparency=bytes([0] * 100)),
        on_white(GREY, np.where(GREY < 100, 0, 255)),
        0,
    ),
    "palette with one transparent colour": (
        encode(palette(), "GIF", transparency=int(NOISE[0, 0, 0])),
        np.where(NOISE[0, 0, 0] == GREY, 255, GREY),
        0,
    ),
    "rgb and alpha": (encode(np.concatenate([NOISE, ALPHA], axis=2)), on_white(NOISE, ALPHA), 1),
    "grey and alpha": (encode(np.concatenate([NOISE[:, :, :1], ALPHA], axis=2)), on_white(GREY, ALPHA), 1),
    "grey with a transparent value": (
        encode(NOISE[:, :, 0], transparency=int(NOISE[0, 0, 0])),
        np.where(NOISE[0, 0, 0] == GREY, 255, GREY),
        0,
    ),
    "1 bit": (encode(Image.fromarray(NOISE[:, :, 0] > 127)), np.where(GREY > 127, 255, 0), 0),
    "16 bits": (encode(SIXTEEN), GREY, 0),
    "16 bits tiff": (encode(SIXTEEN, "TIFF"), GREY, 0),
    "16 bits with a transparent value": (
        raw_png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 1000, 32896), chunk(b"tRNS", struct.pack(">H", 1000))),
        np.array([[[255] * 3, [128] * 3]]),
        0,
    ),
    "16 bits rgb": (
        raw_png(1, 1, 16, 2, b"\0" + struct.pack(">HHH", 0, 32896, 65535)),
        np.array([[[0, 128, 255]]]),
        0,
    ),
    "32 bits of which 16 are used": (encode(SIXTEEN.astype(np.int32), "TIFF"), GREY, 0),
    "floats from 0 to 1": (encode(NOISE[:, :, 0].astype(np.float32) / 255, "TIFF"), GREY, 0),
    "floats from 0 to 255": (encode(NOISE[:, :, 0].astype(np.float32), "TIFF"), GREY, 0),
    "animated gif": (animation("GIF"), FLAT, 0),
    "animated webp": (animation("WEBP", lossless=True), FLAT, 0),
    "animated png": (animation("PNG"), FLAT, 0),
    "mpo": (animation("MPO"), FLAT, 3),
    "turned png": (encode(np.rot90(NOISE), exif=oriented(6)), NOISE, 0),
    "turned tiff": (encode(np.rot90(NOISE), "TIFF", exif=oriented(6)), NOISE, 0),
    "turned webp": (encode(np.rot90(NOISE), "WEBP", lossless=True, exif=oriented(6)), NOISE, 0),
    "turned jpeg": (encode(np.rot90(FLAT), "JPEG", exif=oriented(6)), FLAT, 3),
    "turned as nobody knows": (encode(NOISE, exif=oriented(99)), NOISE, 0),
    "corrupt exif": (encode(FLAT, "JPEG", exif=b"Exif\0\0nothing of the sort"), FLAT, 3),
    "corrupt colour profile": (encode(NOISE, icc_profile=b"no profile"), NOISE, 0),
    "corrupt colour profile in a jpeg": (encode(FLAT, "JPEG", icc_profile=b"no profile" * 9), FLAT, 3),
    "1 x 1": (encode(FLAT[:1, :1]), FLAT[:1, :1], 0),
    "1 x 20,000": (encode(np.full((20_000, 1, 3), COLOUR, np.uint8)), np.full((20_000, 1, 3), COLOUR), 0),
    "20,000 x 1": (encode(np.full((1, 20_000, 3), COLOUR, np.uint8)), np.full((1, 20_000, 3), COLOUR), 0),
}

CLEAN = encode(NOISE)
LARGE = np.random.default_rng(2).integers(0, 256, (80, 100, 3), np.uint8)
HALF = {kind: encode(LARGE, kind)[: len(encode(LARGE, kind)) // 2] for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF")}
FLIPPED = bytearray(encode(LARGE))
FLIPPED[len(FLIPPED) // 2] ^= 0xFF
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
NO_PICTURE = r"none of AVIF, BMP, GIF, JPEG, JPEG2000, PNG, PPM, TIFF, WEBP; save it as PNG or JPEG"

# name → bytes and what the message says
BROKEN = {
    "no bytes": (b"", r"empty \(0 bytes\)"),
    "one byte": (b"\xff", NO_PICTURE),
    "text": (b"this is no picture but a text\n" * 9, NO_PICTURE),
    "html": (b"<!DOCTYPE html><title>404</title>", NO_PICTURE),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', NO_PICTURE),
    "eps": (EPS, NO_PICTURE),
    "pdf": (encode(NOISE, "PDF"), NO_PICTURE),
    "icns": (b"icns" + bytes(60), NO_PICTURE),
    "half a png": (HALF["PNG"], "truncated"),
    "half a jpeg": (HALF["JPEG"], "truncated"),
    "half a webp": (HALF["WEBP"], "cannot be read"),
    "half a gif": (HALF["GIF"], "truncated"),
    "half a tiff": (HALF["TIFF"], "cannot be read"),
    "a jpeg without its last bytes": (encode(LARGE, "JPEG")[:-20], "truncated"),
    "a png with a wrong byte": (bytes(FLIPPED), "broken data stream"),
    "a png of no pixels": (raw_png(0, 0, 8, 2, b""), NO_PICTURE),
    "a bomb": (raw_png(50_000, 50_000, 1, 0, bytes(9)), "decompression bomb"),
    "a bomb that Pillow only warns of": (
        raw_png(12_000, 12_000, 1, 0, bytes(9)),
        "12000×12000 pixels.*decompression bomb",
    ),
    "a bomb of text": (
        raw_png(1, 1, 8, 0, bytes(2), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7)))),
        "(?i:decompressed data too large)",
    ),
    "32 bits": (encode(np.array([[0, 70_000]], np.int32), "TIFF"), r"greys of 16 bits, 0…65535, got 0…70000"),
    "negative greys": (encode(np.array([[0, -5]], np.int32), "TIFF"), "greys of 16 bits"),
    "floats that are not a number": (encode(np.array([[0, np.nan]], np.float32), "TIFF"), "NaN or infinite"),
    "floats without a range": (encode(np.array([[0, 7e4]], np.float32), "TIFF"), "0…1 or 0…255"),
}


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    processor = VTFusionProcessor(ViTImageProcessor(size={"height": 32, "width": 32}), TOKENIZERS["bert"]())
    return VTFusionForTokenClassification(tiny_config("bert", "resnet")).eval(), processor


@pytest.fixture(scope="module")
def pipe(parts):
    return VTFusionTokenClassificationPipeline(model=parts[0], processor=parts[1], device="cpu")


@pytest.fixture
def rows(tmp_path):
    """Writes a data set of two rows, of which the second has the picture, named .jpg whatever it is."""

    def write(content):
        (tmp_path / "picture.jpg").write_bytes(content)
        lines = [{"tokens": ["fox"], "ner_tags": ["O"], "image": image} for image in (None, "picture.jpg")]
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return tmp_path / "train.jsonl"

    return write


def store_of(file):
    store = ImageStore()
    dataset = load_token_classification_dataset(train_file=file, cache_dir=file.parent / "cache")
    return store, store.add_split("train", dataset["train"])


# The right pixels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICTURES)
def test_the_pixels_are_right_through_every_door(parts, pipe, rows, tmp_path, name):
    content, expected, tolerance = PICTURES[name]
    pixels = decode_image(content)
    assert pixels.dtype == np.uint8 and pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance
    model, processor = parts
    tensor = processor(text="fox", images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(text="fox", images=content, return_tensors="pt")["pixel_values"], tensor)

    file = rows(content)
    store, keys = store_of(file)
    assert np.array_equal(store.load(keys[1][0]), pixels)
    cache = FeatureCache(model, processor, tmp_path / "features")
    assert cache.add(store, store.keys(), "error") == set()
    with torch.no_grad():
        embeds, _ = model.base_model.get_visual_features(tensor, torch.ones(1, 1, dtype=torch.long))
    torch.testing.assert_close(cache.gather(keys)["visual_embeds"][1], embeds[0])

    assert pipe.preprocess([pipe.read_example("fox", content)])["pixel_values"].equal(tensor)
    (read,) = list(decoded_examples(load_examples(file, pipe)))[1]["images"]
    assert np.array_equal(read, pixels)
    assert np.array_equal(read_inputs("fox", [content], Limits())[1][0], pixels)


def test_an_open_picture_is_read_as_its_file_is():
    for name, (content, _, _) in PICTURES.items():
        assert np.array_equal(decode_image(Image.open(io.BytesIO(content))), decode_image(content)), name


def test_premultiplied_grey():
    assert decode_image(Image.new("LA", (2, 2), (0, 128)).convert("La"))[0, 0].tolist() == [127] * 3


def test_formats_that_this_pillow_lacks_hide_no_other(monkeypatch):
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    assert np.array_equal(decode_image(CLEAN), NOISE)


@pytest.mark.parametrize("name", [name for name in IMAGE_FORMATS if name != "AVIF" or features.check("avif")])
def test_every_format_is_taken(name):
    found = decode_image(encode(FLAT, name)).astype(int)
    assert found.shape == FLAT.shape and np.abs(found - FLAT).max() <= 8


# Long and narrow ------------------------------------------------------------------------------------------------------

CROPPING = {
    "clip": lambda: CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}),
    "dinov2": lambda: BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 24, "width": 24}),
    "convnext": lambda: ConvNextImageProcessor(size={"shortest_edge": 24}, crop_pct=0.875),
}


@pytest.mark.parametrize("name", CROPPING)
@pytest.mark.parametrize("shape", [(1, 901), (4, 1000), (60, 6120)])
def test_ends_that_are_cropped_off_change_nothing(name, shape):
    image_processor = CROPPING[name]()
    for axes in ((0, 1, 2), (1, 0, 2)):
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8).transpose(axes)
        short = without_unseen_ends(image, image_processor)
        assert short.size < image.size / 5
        whole, cut = (
            image_processor([of], input_data_format="channels_last", return_tensors="pt")["pixel_values"]
            for of in (image, short)
        )
        torch.testing.assert_close(cut, whole, atol=0.02, rtol=0)


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_a_narrow_picture_does_not_fill_the_memory(size):
    """Scaled up as it is, its 224 × 4,480,000 pixels took ten gigabytes and a minute."""
    processor = VTFusionProcessor(CLIPImageProcessor(), TOKENIZERS["bert"]())
    start = time.perf_counter()
    pixels = processor(text="fox", images=Image.new("RGB", size, COLOUR), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 1, 3, 224, 224) and time.perf_counter() - start < 5
    clean = processor(text="fox", images=Image.new("RGB", (20, 20), COLOUR), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, clean)


def test_only_what_is_cropped_off_is_left_out():
    image = np.zeros((1, 900, 3), np.uint8)
    assert without_unseen_ends(image, ViTImageProcessor()).shape == image.shape
    assert without_unseen_ends(image, CLIPImageProcessor(do_center_crop=False)).shape == image.shape
    assert without_unseen_ends(image[:, :100], CLIPImageProcessor()).shape == (1, 100, 3)


def test_what_an_image_processor_cannot_prepare_is_named(rows, tmp_path, caplog):
    """A detector keeps the long edge below its limit, which leaves nothing of the short one."""
    processor = VTFusionProcessor(
        DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}), TOKENIZERS["bert"]()
    )
    narrow = Image.new("RGB", (20_000, 1), COLOUR)
    with pytest.raises(
        ValueError, match=r"^row 1, field `images`: image 2: Detr\w+ cannot prepare .* 20000×1 pixels; crop"
    ):
        processor(text=["a", "b"], images=[FLAT, [FLAT, None, narrow]])
    model = VTFusionForTokenClassification(tiny_config("bert", "detr"))
    file = rows(encode(narrow))
    store, keys = store_of(file)
    message = r"^train split, row 1, field `images`: Detr\w+ cannot prepare .*`on_bad_image` skip_image"
    with pytest.raises(ValueError, match=message):
        FeatureCache(model, processor, tmp_path / "features").add(store, ["blank", *store.keys()], "error")
    cache = FeatureCache(model, processor, tmp_path / "features")
    assert cache.add(store, ["blank", *store.keys()], "skip_image") == {keys[1][0]}
    assert "blank" in cache and keys[1][0] not in cache
    assert "cannot prepare an image of 20000×1 pixels" in caplog.text

    # with a vision encoder that is trained, before the training too
    dataset = load_token_classification_dataset(train_file=file, cache_dir=tmp_path / "cache")
    training = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match=message):
        prepare_images(dataset, model, processor, DataArguments(train_file=str(file)), training)
    skipping = DataArguments(train_file=str(file), on_bad_image="skip_image")
    assert prepare_images(dataset, model, processor, skipping, training).keys == {"train": [None, None]}


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures_are_named_at_every_door(parts, pipe, rows, tmp_path, caplog, name):
    content, message = BROKEN[name]
    model, processor = parts
    with pytest.raises(ValueError, match=rf"^row 1, field `images`: .*{message}"):
        processor(text=["fox", "fox"], images=[None, content])
    with pytest.raises(ValueError, match=rf"^row 0, field `images`: .*{message}"):
        pipe("fox", content)

    file = rows(content)
    with pytest.raises(ValueError, match=rf"^row 0, field `images`: .*picture\.jpg.*{message}"):
        pipe("fox", str(tmp_path / "picture.jpg"), allow_paths=True)
    store, keys = store_of(file)
    where = rf"^train split, row 1, field `images`: .*picture\.jpg: .*{message}.*`on_bad_image` skip_image"
    cache = FeatureCache(model, processor, tmp_path / "features")
    for check in (lambda: store.find_bad("error", processor), lambda: cache.add(store, store.keys(), "error")):
        with pytest.raises(ValueError, match=where):
            check()
    assert store.find_bad("skip_image", processor) == cache.add(store, store.keys(), "skip_image") == {keys[1][0]}
    assert "picture.jpg" in caplog.text

    examples = load_examples(file, pipe)
    with pytest.raises(ValueError, match=rf"^row 1, field `images`: .*picture\.jpg: .*{message}.*skip_image"):
        list(decoded_examples(examples))
    assert [row["images"] for row in decoded_examples(examples, "skip_image")] == [None, None]

    with ThreadPoolExecutor(max_workers=1) as worker:
        page = answer(pipe, worker, Limits(), "fox", [CLEAN, content])
    assert "Picture 2 cannot be read" in page and "picture.jpg" not in page and "0x" not in page


@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_left_out_is_counted(parts, rows, tmp_path, capsys, frozen):
    model, processor = parts
    dataset = load_token_classification_dataset(
        train_file=rows(HALF["PNG"]), validation_file=tmp_path / "train.jsonl", cache_dir=tmp_path / "cache"
    )
    for parameter in model.base_model.vision_model.parameters():
        parameter.requires_grad_(not frozen)
    options = {"train_file": str(tmp_path / "train.jsonl"), "feature_cache_dir": str(tmp_path / "features")}
    training = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match=r"train split, row 1, field `images`: .*picture\.jpg"):
        prepare_images(dataset, model, processor, DataArguments(**options), training)
    skipping = DataArguments(on_bad_image="skip_image", **options)
    keys, _, cache = prepare_images(dataset, model, processor, skipping, training)
    assert keys == {"train": [None, None], "validation": [None, None]} and (cache is not None) == frozen
    said = capsys.readouterr().out
    assert "train: 0 of 2 texts have an image" in said
    assert "1 different images, 1 of them unreadable and left out" in said


def test_no_other_program_is_started(tmp_path, monkeypatch):
    """Pillow would give an EPS file to Ghostscript, which runs it."""
    called = tmp_path / "called"
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch '{called}'\n", encoding="utf-8")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # what it found before
    for mark in (b"", b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 32, len(EPS), 0, 0, 0, 0) + bytes(4)):
        with pytest.raises(ValueError, match=NO_PICTURE):
            decode_image(mark + EPS)
        assert not called.exists()
        with suppress(OSError):  # the program has drawn nothing
            Image.open(io.BytesIO(mark + EPS)).load()
        assert called.exists()  # so there was something to be afraid of
        called.unlink()


ARRAYS = {
    "objects": (np.array([["a", "b"]], object), "got other object values"),
    "texts": (np.array([["a", "b"]]), "got other <U1 values"),
    "complex numbers": (np.zeros((4, 4, 3), complex), "got other complex128 values"),
    "dates": (np.zeros((4, 4), "M8[s]"), "0…255"),
    "nothing": (np.zeros((4, 4), "V3"), "0…255"),
    "negative numbers": (np.full((4, 4), -1), "0…255"),
    "floats beyond 255": (np.full((4, 4, 3), 255.5), r"0…1 or 0…255, these lie in 255.5…255.5"),
    "negative floats": (np.full((4, 4, 3), -0.5), r"0…1 or 0…255, these lie in -0.5…-0.5; pass `do_rescale=False`"),
    "minus infinity": (np.full((4, 4, 3), -np.inf), "NaN or infinite"),
    "one NaN among good pixels": (np.where(np.arange(48).reshape(4, 4, 3) == 7, np.nan, 0.5), "NaN or infinite"),
    "no rows": (np.zeros((0, 4), np.uint8), "at least one pixel"),
    "a scalar": (np.array(3), "2 or 3 dimensions"),
    "a batch": (torch.zeros(2, 3, 4, 4), "2 or 3 dimensions"),
    "a sparse tensor": (torch.zeros(3, 4, 4).to_sparse(), "no plain numbers"),
    "a tensor without data": (torch.zeros(3, 4, 4, device="meta"), "no plain numbers"),
    "a picture without pixels": (Image.new("RGB", (0, 5)), "at least one pixel, got 0×5"),
    "a dict of something else": ({"a": 1}, "expected a PIL image"),
    "a dict in a dict": ({"bytes": {"bytes": CLEAN}}, "expected a PIL image"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_no_picture(parts, pipe, name):
    image, message = ARRAYS[name]
    with pytest.raises(ValueError, match=rf"^row 1, field `images`: .*{message}"):
        parts[1](text=["fox", "fox"], images=[None, [image]])
    with pytest.raises(ValueError, match=rf"^row 0, field `images`: .*{message}"):
        pipe({"text": "fox", "image": [image]})


def test_arrays_of_other_types_keep_their_values():
    values = np.array([[0, 51, 255]])
    expected = np.repeat(values[:, :, None], 3, axis=2)
    for given in (
        *(values.astype(kind) for kind in (np.uint8, np.int16, np.uint32, np.int64, np.float16)),
        values.astype(np.uint16) * 257,
        (values / 255).astype(np.float32),
        np.asfortranarray(values[:, :, None].repeat(3, axis=2)),
        torch.tensor(values / 255, dtype=torch.bfloat16),
        torch.tensor(values, dtype=torch.uint8),
        torch.tensor(values / 255, requires_grad=True),
    ):
        assert np.array_equal(decode_image(given), expected), given.dtype


# By itself ------------------------------------------------------------------------------------------------------------


def test_paths_and_urls_are_closed_by_default(tmp_path):
    Image.fromarray(FLAT).save(tmp_path / "image.png")
    with pytest.raises(ValueError, match="allow_paths=True"):
        decode_image(tmp_path / "image.png")
    with pytest.raises(ValueError, match="allow_urls=True"):
        decode_image("http://127.0.0.1:9/image.png")
    assert np.array_equal(decode_image({"path": str(tmp_path / "image.png")}, allow_paths=True), FLAT)


def test_an_image_of_just_as_many_pixels_as_are_allowed(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48)
    assert decode_image(Image.fromarray(FLAT)).shape == (6, 8, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 47)
    with pytest.raises(ValueError, match="8×6 pixels, more than"):
        decode_image(Image.fromarray(FLAT))


def test_prepared_grey_becomes_three_channels():
    grey = np.array([[[0.5], [300.0]], [[-2.0], [1.0]]])
    found = decode_image(grey, keep_floats=True)
    assert found.dtype == np.float32 and np.array_equal(found, np.repeat(grey, 3, axis=-1))
    with pytest.raises(ValueError, match=r"expected pixels of 0…255"):
        decode_image(np.array([[256]]))


def test_a_square_crop_by_its_edge():
    square = SimpleNamespace(do_resize=False, size=None, do_center_crop=True, crop_size={"shortest_edge": 4})
    assert visible_rectangle(square, 10, 8) == (3.0, 2.0, 7.0, 6.0)
    scaled = SimpleNamespace(
        do_resize=True, size={"shortest_edge": 16}, do_center_crop=True, crop_size={"height": 8, "width": None}
    )
    assert visible_rectangle(scaled, 10, 8) == (0.0, 2.0, 10.0, 6.0)


def test_a_region_is_the_strong_boxes_that_touch():
    boxes = np.array([[0, 0, 1, 1], [1, 0, 2, 1], [2, 0, 3, 1], [0, 1, 1, 2], [4, 0, 5, 1], [0, 3, 1, 4]], dtype=float)
    # the third is weak, the fifth lies to the right and the sixth below, both apart
    hull, weight = strongest_region(boxes, np.array([4.0, 3.0, 1.0, 2.0, 3.0, 3.0]))
    assert hull.tolist() == [0, 0, 2, 2] and weight == 9.0
    # from the right and from below
    hull, weight = strongest_region(boxes[[1, 0, 3]], np.array([4.0, 3.0, 2.0]))
    assert hull.tolist() == [0, 0, 2, 2] and weight == 9.0
