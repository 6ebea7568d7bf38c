"""The processor: words, windows, images and the way back. Expectations are worked out by hand or by brute force."""

import copy
import io
import itertools
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    BertConfig,
    BertTokenizerLegacy,
    ConvNextImageProcessor,
    DetrImageProcessor,
    ProcessorMixin,
    ViTConfig,
)
from transformers import ViTImageProcessor as ViT

from tokenizers_for_tests import TOKENIZERS
from vtfusion import (
    VTFusionConfig,
    VTFusionForTokenClassification,
    VTFusionProcessor,
    images_vtfusion,
    processing_vtfusion,
)
from vtfusion.images_vtfusion import decode_image, paint, visible_rectangle
from vtfusion.postprocessing_vtfusion import entity_spans, viterbi
from vtfusion.words_vtfusion import assign_windows, first_tokens, read_text

LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
IDS = {label: index for index, label in LABELS.items()}
RAW = {"do_normalize": False, "do_rescale": False}  # pixels come out as they went in


def image_processor(side=8, **kwargs):
    return ViT(size={"height": side, "width": side}, **kwargs)


@pytest.fixture(scope="module")
def processor(bert):
    return VTFusionProcessor(image_processor(), bert)


def oracle(batch, labels, **extra):
    """What a model would say that knows `labels` (names, per text) and speaks at reading positions only."""
    logits = torch.zeros(*batch.word_positions.shape, len(LABELS))
    for window, row in enumerate(batch.row_of_window):
        for token, word in enumerate(batch.word_positions[window]):
            if word >= 0:
                logits[window, token, IDS[labels[row][word]]] = 5.0
    return SimpleNamespace(logits=logits, **extra)


def png(image, **kwargs):
    buffer = io.BytesIO()
    image.save(buffer, kwargs.pop("format", "PNG"), **kwargs)
    return buffer.getvalue()


def color(rgb, width=4, height=3):
    return Image.new("RGB", (width, height), rgb)


# ------------------------------------------------------- words ------------------------------------------------------


def test_ids_are_those_of_the_tokenizer(tokenizer):
    processor = VTFusionProcessor(tokenizer=tokenizer)
    for text in ["John lives in New York", "it isn't (really)  Paris!", "  spaces \t", "😀 שלום", ""]:
        assert processor(text=text)["input_ids"] == tokenizer(text)["input_ids"]
        assert processor(text=[text])["input_ids"] == [tokenizer(text)["input_ids"]]
        pair = processor(text=[text], text_pair=["a fox"])["input_ids"]
        assert pair == tokenizer([text], ["a fox"])["input_ids"]
    tensors = processor(text="John lives", return_tensors="pt")
    assert torch.equal(tensors["input_ids"], tokenizer("John lives", return_tensors="pt")["input_ids"])


def test_words_of_strings_and_of_lists(bert):
    processor = VTFusionProcessor(tokenizer=bert)
    batch = processor(text=["Isn't it? ", ["New York", "", "fox"]])
    assert batch.rows[0].words == ["Isn", "'", "t", "it", "?"]
    assert batch.rows[0].spans == [(0, 3), (3, 4), (4, 5), (6, 8), (8, 9)]
    assert batch.rows[1].text == "New York  fox"
    assert batch.rows[1].spans == [(0, 8), (9, 9), (10, 13)]
    # [CLS] i ##s ##n ' t i ##t ? [SEP] and [CLS] new york fox [SEP]
    assert batch.word_positions.tolist() == [
        [-1, 0, -1, -1, 1, 2, 3, -1, 4, -1],
        [-1, 0, -1, 2, -1, -1, -1, -1, -1, -1],
    ]
    one = processor(text=["New", "fox"], is_split_into_words=True)
    assert one.rows[0].words == ["New", "fox"] and len(one.rows) == 1


def test_words_labels_and_images_may_be_arrays(bert):
    processor = VTFusionProcessor(image_processor(), bert)
    words, labels = np.array(["the", "fox"]), [2, 1]
    picture = np.asarray(color((255, 0, 0)))
    expected = processor(text=[["the", "fox"]], word_labels=[labels], images=[color((255, 0, 0))], return_tensors="pt")
    for given in (np.array(labels), torch.tensor(labels)):
        batch = processor(text=[words], word_labels=[given], images=picture, return_tensors="pt")
        assert batch.rows[0].words == ["the", "fox"]
        for name in expected:
            assert torch.equal(batch[name], expected[name])
    several = processor(text=["fox", "the"], images=torch.zeros(2, 3, 4, 4), return_tensors="pt")
    assert several["image_mask"].tolist() == [[1], [1]]


def test_a_method_of_the_library_is_looked_for_in_the_library_first():
    """transformers' common tests compare a processor's methods with those of its first parent."""
    assert VTFusionProcessor.__bases__[0] is ProcessorMixin


def test_labels_at_first_sub_words(bert):
    processor = VTFusionProcessor(tokenizer=bert)
    batch = processor(text=[["Smith", "is"], ["", "fox", "  ", "\t"]], word_labels=[[1, 0], [4, 2, 3, 1]])
    # [CLS] smith i ##s [SEP] and [CLS] fox [SEP]: blank words have no label to learn
    assert batch["labels"] == [[-100, 1, 0, -100, -100], [-100, 2, -100, -100, -100]]
    flat = processor(text="fox is", word_labels=[3, -100], return_tensors="pt")
    assert flat["labels"].tolist() == [[-100, 3, -100, -100, -100]]


def brute_force_first_tokens(tokens, words):
    taken, chosen = -1, []
    for start, end in words:
        fit = [i for i, (a, b) in enumerate(tokens) if min(b, end) > max(a, start) and i > taken]
        chosen.append(fit[0] if fit else -1)
        taken = max(taken, chosen[-1])
    return chosen


def test_first_tokens_by_hand_and_by_brute_force():
    # "a bc d": the second token has the space before, the third covers two words, the last is empty
    tokens = np.array([(0, 1), (1, 3), (3, 6), (6, 6)])
    assert first_tokens(tokens, np.array([(0, 1), (2, 4), (5, 6)])).tolist() == [0, 1, 2]
    # one token for two words: the second has none; a word of two tokens keeps the one that is left
    assert first_tokens(np.array([(0, 3)]), np.array([(0, 1), (2, 3)])).tolist() == [0, -1]
    assert first_tokens(np.array([(0, 3), (3, 4)]), np.array([(0, 1), (2, 4)])).tolist() == [0, 1]
    assert first_tokens(np.array([(0, 3)]), np.array([(1, 1)])).tolist() == [-1]
    random = np.random.default_rng(0)
    for _ in range(200):
        cuts = np.sort(random.integers(0, 30, 12))
        words = cuts.reshape(-1, 2)
        starts = np.sort(random.integers(0, 30, 15))
        tokens = np.stack([starts, np.maximum.accumulate(starts + random.integers(1, 5, 15))], 1)
        assert first_tokens(tokens, words).tolist() == brute_force_first_tokens(tokens, words)


STRANGE = [
    "Emoji 😀👩‍👩‍👧 stay",
    "שלום עולם fox",
    "مرحبا بالعالم",
    "日本語のテキスト",
    "naïve café résumé",
    "a\u200bb \ufeff",
    "\x00\x01 fox",
    "…“quotes”—dashes",
    "tab\tnewline\n\nend",
]


def test_strange_texts_have_a_prediction_per_word(tokenizer):
    processor = VTFusionProcessor(tokenizer=tokenizer)
    batch = processor(text=STRANGE, return_tensors="pt")
    for row, text in zip(batch.rows, STRANGE, strict=True):
        assert row.text == text and [text[a:b] for a, b in row.spans] == row.words
    predicted = processor.predict_word_labels(
        oracle(batch, [["B-PER"] * len(r.words) for r in batch.rows]), batch, LABELS
    )
    assert [len(labels) for labels in predicted] == [len(row.words) for row in batch.rows]
    for window, row in zip(batch.word_positions, batch.row_of_window, strict=True):
        words = window[window >= 0]
        assert (np.diff(words) > 0).all() and len(batch.rows[row].words) > words.max(initial=-1)


@pytest.mark.parametrize("text", ["", "   ", "\n\t "])
def test_texts_without_words(tokenizer, text):
    processor = VTFusionProcessor(tokenizer=tokenizer)
    batch = processor(text=[text, "fox"], return_tensors="pt")
    outputs = oracle(batch, [[], ["B-PER"]])
    assert processor.predict_word_labels(outputs, batch, LABELS) == [[], ["B-PER"]]
    assert processor.post_process_token_classification(outputs, batch, LABELS)[0] == []


def test_a_word_without_a_token_is_o(bert):
    processor = VTFusionProcessor(tokenizer=bert)
    words = ["John", "", "\x01", " ", "Smith"]  # BERT drops control characters
    batch = processor(text=[words], return_tensors="pt")
    outputs = oracle(batch, [["B-PER", "I-PER", "I-PER", "I-PER", "I-PER"]])
    values, found = processor.merge_windows(outputs.logits, batch)
    assert found[0].tolist() == [True, False, False, False, True]
    assert torch.isnan(values[0][1:4]).all() and not torch.isnan(values[0][[0, 4]]).any()
    for decoding in ("argmax", "viterbi"):
        labels = processor.predict_word_labels(outputs, batch, LABELS, decoding)[0]
        assert labels[:4] == ["B-PER", "O", "O", "O"]
    # wherever "O" stands among the labels
    outputs = SimpleNamespace(logits=outputs.logits.flip(-1))
    names = dict(enumerate(reversed(LABELS.values())))
    assert processor.predict_word_labels(outputs, batch, names)[0][:4] == ["B-PER", "O", "O", "O"]
    outputs = SimpleNamespace(logits=outputs.logits.flip(-1))
    assert [e["text"] for e in processor.post_process_token_classification(outputs, batch, LABELS)[0]] == [
        "John",
        "Smith",
    ]


# ------------------------------------------------------ windows -----------------------------------------------------


def test_five_thousand_words_with_an_entity_at_the_end(tokenizer):
    processor = VTFusionProcessor(tokenizer=tokenizer, window_length=128, window_stride=32)
    vocabulary = ["the", "lazy", "isn't", "10,000", "Acme", "wordings"]
    words = [vocabulary[i % 6] for i in range(4999)] + ["Paris"]
    labels = ["O"] * 4999 + ["B-LOC"]
    batch = processor(text=[words], return_tensors="pt")
    assert batch["input_ids"].shape[1] == 128 and len(batch["input_ids"]) > 40
    outputs = oracle(batch, [labels])
    assert processor.predict_word_labels(outputs, batch, LABELS) == [labels]
    (entity,) = processor.post_process_token_classification(outputs, batch, LABELS)[0]
    assert entity["entity_group"] == "LOC" and entity["words"] == (4999, 4999) and entity["text"] == "Paris"
    assert (entity["start"], entity["end"]) == (len(batch.rows[0].text) - 5, len(batch.rows[0].text))
    assert entity["score"] == pytest.approx(np.exp(5) / (np.exp(5) + 4), rel=1e-5)
    assert entity["gate"] is None and entity["image_region"] is None


def test_windows_are_those_of_the_tokenizer(tokenizer):
    processor = VTFusionProcessor(tokenizer=tokenizer)
    text = " ".join(["the quick brown fox isn't lazy 😀"] * 9)
    ours = processor(text=text, max_length=20, stride=6, padding=False)["input_ids"]
    theirs = tokenizer(text, truncation=True, max_length=20, stride=6, return_overflowing_tokens=True)["input_ids"]
    assert ours == theirs
    pairs = processor.encode_text([text], text_pair=["a fox"], max_length=24, stride=4)["input_ids"]
    theirs = tokenizer(
        text, "a fox", truncation="only_first", max_length=24, stride=4, return_overflowing_tokens=True
    )["input_ids"]
    assert pairs == theirs


@pytest.mark.parametrize(("length", "stride"), [(9, 0), (10, 3), (16, 11), (40, 20), (7, 4)])
def test_every_word_is_owned_once_by_the_window_that_shows_most(tokenizer, length, stride):
    processor = VTFusionProcessor(tokenizer=tokenizer)
    text = " ".join(["the quick brown fox isn't lazy 😀 reworded"] * 5)
    whole = processor.encode_text([text], max_length=10**6)
    special = len(tokenizer("")["input_ids"])
    windows = processor.encode_text([text], max_length=length, stride=stride)
    expected_owner = {}
    lead = tokenizer(text)["input_ids"].index(tokenizer(text, add_special_tokens=False)["input_ids"][0])
    content = len(whole["input_ids"][0]) - special
    for position, word in enumerate(whole["word_positions"][0]):
        if word < 0:
            continue
        token = position - lead
        distances = []
        for start in range(0, content, length - special - stride):
            end = min(start + length - special, content)
            if start <= token < end:
                distances.append((min(token - start, end - 1 - token), -(start // (length - special - stride))))
            if end == content:
                break
        expected_owner[word] = -max(distances)[1]
    found = {}
    for index, (ids, positions) in enumerate(zip(windows["input_ids"], windows["word_positions"], strict=True)):
        assert len(ids) == len(positions) <= length
        for position, word in enumerate(positions):
            if word >= 0:
                assert word not in found
                found[word] = index
                # it is read at the same token as in the whole text
                assert ids[position] == whole["input_ids"][0][whole["word_positions"][0].index(word)]
    assert found == expected_owner


def test_where_the_limit_comes_from(bert):
    text = "fox " * 30
    bert = copy.deepcopy(bert)

    def longest(processor, **kwargs):
        return max(map(len, processor(text=[text], **kwargs)["input_ids"]))

    assert longest(VTFusionProcessor(tokenizer=bert)) == 32
    bert.model_max_length = 20
    assert longest(VTFusionProcessor(tokenizer=bert)) == 20
    assert longest(VTFusionProcessor(tokenizer=bert, window_length=12)) == 12
    assert longest(VTFusionProcessor(tokenizer=bert, window_length=12), max_length=15) == 15
    assert longest(VTFusionProcessor(tokenizer=bert, window_length=12), text_kwargs={"max_length": 16}) == 16
    bert.init_kwargs["max_length"] = 14  # as some tokenizers are saved
    assert longest(VTFusionProcessor(tokenizer=bert)) == 14
    assert longest(VTFusionProcessor(tokenizer=bert, window_length=12)) == 12


def test_truncation_of_the_caller_is_the_tokenizers(bert):
    processor = VTFusionProcessor(tokenizer=bert, window_length=8)
    batch = processor(text=["fox the fox the fox the fox"], truncation=True, max_length=6, return_tensors="pt")
    assert batch["input_ids"].tolist() == [bert("fox the fox the")["input_ids"]]
    labels = processor.predict_word_labels(oracle(batch, [["B-PER"] * 7]), batch, LABELS)
    assert labels == [["B-PER"] * 4 + ["O"] * 3]
    uncut = processor(text=["fox " * 20], truncation=False)
    assert len(uncut["input_ids"]) == 1 and len(uncut["input_ids"][0]) == 22


def test_windows_that_cannot_be(bert):
    processor = VTFusionProcessor(tokenizer=bert)
    with pytest.raises(ValueError, match=r"row 1, field `text`: the window is full .* 1 more tokens are needed"):
        processor.encode_text(["", "fox"], max_length=2)
    with pytest.raises(ValueError, match=r"row 0, field `text`: the window is full .* 3 more tokens are needed"):
        processor.encode_text(["fox"], text_pair=["the fox"], max_length=3)
    assert processor.encode_text(["the fox"], max_length=3)["row"] == [0, 0]
    with pytest.raises(ValueError, match="`stride` = -1 must be less than the 6"):
        processor.encode_text(["fox " * 20], max_length=8, stride=-1)
    assert len(processor.encode_text(["fox " * 20], max_length=8, stride=5)["row"]) == 15
    with pytest.raises(ValueError, match="`stride` = 6 must be less than the 6"):
        processor.encode_text(["fox " * 20], max_length=8, stride=6)
    with pytest.raises(ValueError, match="window_length"):
        VTFusionProcessor(tokenizer=bert, window_length=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side(bert, side):
    processor = VTFusionProcessor(tokenizer=copy.deepcopy(bert))
    processor.tokenizer.padding_side = side
    batch = processor(
        text=[["fox"], ["the", "fox", "is"]], word_labels=[[1], [2, 3, 4]], pad_to_multiple_of=8, return_tensors="pt"
    )
    assert batch["input_ids"].shape == (2, 8)
    for window, length in enumerate([3, 6]):
        real = slice(8 - length, 8) if side == "left" else slice(0, length)
        assert batch["attention_mask"][window].nonzero().flatten().tolist() == list(range(8))[real]
        assert batch["input_ids"][window, real].tolist()[0] == processor.tokenizer.cls_token_id
        read = np.flatnonzero(batch.word_positions[window] >= 0)
        assert (batch["labels"][window] >= 0).nonzero().flatten().tolist() == read.tolist()
        assert read[0] == real.start + 1
    assert processor(text=["fox", "the fox"], padding="max_length", max_length=9, return_tensors="pt")[
        "input_ids"
    ].shape == (2, 9)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("padding", [False, "do_not_pad"])
def test_rows_of_different_lengths_keep_their_words_without_padding(bert, side, padding):
    processor = VTFusionProcessor(tokenizer=bert)
    batch = processor(text=["fox", "the fox"], padding=padding, padding_side=side)
    assert [len(ids) for ids in batch["input_ids"]] == [3, 4]
    expected = [[-1, -1, 0, -1], [-1, 0, 1, -1]] if side == "left" else [[-1, 0, -1, -1], [-1, 0, 1, -1]]
    assert batch.word_positions.tolist() == expected
    spans = {-1: [-1, -1]}
    for row, (words, ends) in enumerate(zip(expected, ([(0, 3)], [(0, 3), (4, 7)]), strict=True)):
        spans |= {word: list(end) for word, end in enumerate(ends)}
        assert batch.token_spans[row].tolist() == [spans[word] for word in words]


def test_padding_to_the_limit(bert):
    bert = copy.deepcopy(bert)

    def shape(limit, **kwargs):
        return processor(text=["fox"], padding="max_length", return_tensors="pt", **kwargs)["input_ids"].shape[1]

    processor = VTFusionProcessor(tokenizer=bert, window_length=9)
    assert [shape(9), shape(7, max_length=7), shape(2, max_length=12, pad_to_multiple_of=8)] == [9, 7, 16]
    processor, bert.model_max_length = VTFusionProcessor(tokenizer=bert), 11
    assert shape(11) == 11
    bert.model_max_length = 10**30
    assert shape(None) == 3


def test_padding_needs_a_token(bert):
    tokenizer = copy.deepcopy(bert)
    tokenizer.pad_token = None
    processor = VTFusionProcessor(tokenizer=tokenizer)
    assert processor(text=["fox", "the"], return_tensors="pt")["input_ids"].shape == (2, 3)
    with pytest.raises(ValueError, match="padding token"):
        processor(text=["fox", "the fox"], return_tensors="pt")


def test_encode_text_is_what_a_dataset_map_needs(bert):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"tokens": [["fox"] * 20, ["the"]], "ner_tags": [[1] * 20, [2]]})
    processor = VTFusionProcessor(tokenizer=bert, window_length=12, window_stride=4)

    def encode(batch):
        return processor.encode_text(batch["tokens"], word_labels=batch["ner_tags"])

    windows = rows.map(encode, batched=True, remove_columns=rows.column_names)
    assert windows["row"][:] == [0, 0, 0, 1]
    read = [
        word for row, ids in zip(windows["row"], windows["word_positions"], strict=True) if row == 0 for word in ids
    ]
    assert sorted(word for word in read if word >= 0) == list(range(20))
    assert windows["labels"][3] == [-100, 2, -100]


def test_a_hundred_thousand_words(bert):
    processor = VTFusionProcessor(tokenizer=bert, window_length=512)
    words = ["fox", "isn't", "lower"] * 33_333 + ["Paris"]
    start = time.perf_counter()
    batch = processor(text=[words], return_tensors="pt")
    logits = torch.zeros(*batch.word_positions.shape, 5)
    logits[..., 0] = 1
    labels = processor.predict_word_labels(SimpleNamespace(logits=logits), batch, LABELS)
    assert len(labels[0]) == 100_000 and time.perf_counter() - start < 20
    read = batch.word_positions[batch.word_positions >= 0]
    assert sorted(read.tolist()) == list(range(100_000))


# ------------------------------------------------------ images ------------------------------------------------------


def test_rows_with_none_one_and_several_images(bert):
    processor = VTFusionProcessor(image_processor(2, **RAW), bert)
    red, green, blue = (color(c) for c in [(200, 0, 0), (0, 200, 0), (0, 0, 200)])
    batch = processor(text=["fox", "the", "is", "a"], images=[None, red, [green, None, blue], []], return_tensors="pt")
    assert batch["pixel_values"].shape == (4, 3, 3, 2, 2) and batch["pixel_values"].dtype == torch.float32
    assert batch["image_mask"].tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0]]
    assert batch["image_mask"].dtype == torch.long
    colors = batch["pixel_values"][..., 0, 0].tolist()
    assert colors[1][0] == [200, 0, 0] and colors[2] == [[0, 200, 0], [0, 0, 0], [0, 0, 200]]
    assert batch["pixel_values"][0].abs().sum() == 0
    assert [row.image_sizes for row in batch.rows] == [[], [(4, 3)], [(4, 3), None, (4, 3)], []]
    assert "pixel_mask" not in batch


def test_images_of_a_single_text(processor):
    red = color((255, 0, 0))
    assert processor(text="fox", images=red, return_tensors="pt")["pixel_values"].shape == (1, 1, 3, 8, 8)
    for images in ([red, red], [[red, red]]):
        assert processor(text="fox", images=images, return_tensors="pt")["image_mask"].tolist() == [[1, 1]]
    assert processor(text=["fox"], images=red, return_tensors="pt")["image_mask"].tolist() == [[1]]
    for images in (None, [], [None]):
        assert "pixel_values" not in processor(text="fox", images=images, return_tensors="pt")


def test_no_image_no_keys(processor):
    batch = processor(text=["fox", "the"], images=[None, []], return_tensors="pt")
    assert not {"pixel_values", "image_mask", "pixel_mask"} & set(batch)
    assert processor.encode_images([None, [], [None]]) == {}


def test_windows_repeat_the_images(processor):
    red, blue = color((255, 0, 0)), color((0, 0, 255))
    batch = processor(text=["fox " * 20, "fox"], images=[red, blue], max_length=12, stride=2, return_tensors="pt")
    assert batch.row_of_window == [0, 0, 0, 1] and batch["pixel_values"].shape[:2] == (4, 1)
    alone = processor.encode_images([red, blue])["pixel_values"]
    assert torch.equal(batch["pixel_values"], alone[[0, 0, 0, 1]])


def test_images_without_a_text_take_the_arguments_of_the_image_processor(bert, tmp_path):
    processor = VTFusionProcessor(image_processor(4), bert)
    red = color((255, 51, 0))
    red.save(tmp_path / "red.png")
    for images in (red, [red], str(tmp_path / "red.png")):
        arrays = processor(images=images, return_tensors="np", allow_paths=True, **RAW)["pixel_values"]
        assert isinstance(arrays, np.ndarray) and arrays.shape == (1, 3, 4, 4)
        assert arrays[0, :, 0, 0].tolist() == [255, 51, 0]
    for allowed in ({}, {"allow_urls": True}):
        with pytest.raises(ValueError, match="allow_paths"):
            processor.encode_images([str(tmp_path / "red.png")], **allowed)
    with pytest.raises(ValueError, match="cannot be opened"):
        processor.encode_images(["http://127.0.0.1:9/a.png"], allow_urls=True)
    with pytest.raises(ValueError, match="allow_urls"):
        processor.encode_images(["http://127.0.0.1:9/a.png"], allow_paths=True)
    nested = processor(images=[[red], None], return_tensors="pt", **RAW)
    assert nested["pixel_values"][:, 0, :, 0, 0].tolist() == [[255, 51, 0], [0, 0, 0]]


@pytest.mark.parametrize("name", ["np", "pt"])
def test_a_text_with_its_image_as_arrays(bert, name):
    processor = VTFusionProcessor(image_processor(4), bert)
    batch = processor(text=["fox", "the"], images=[color((255, 51, 0)), None], return_tensors=name, **RAW)
    kind = np.ndarray if name == "np" else torch.Tensor
    assert all(isinstance(value, kind) for value in batch.values())
    assert batch["pixel_values"][:, 0, :, 0, 0].tolist() == [[255, 51, 0], [0, 0, 0]]
    assert batch["image_mask"].tolist() == [[1], [0]]


def test_images_without_a_text(processor):
    red = color((255, 0, 0))
    assert processor(images=[red, red], return_tensors="pt")["pixel_values"].shape == (2, 3, 8, 8)
    assert processor(images=[[red, red], None], return_tensors="pt")["image_mask"].tolist() == [[1, 1], [0, 0]]
    with pytest.raises(ValueError, match="pass `text`, `images` or both"):
        processor()


def test_pixel_mask_of_a_detector(bert):
    detector = DetrImageProcessor(size={"shortest_edge": 8, "longest_edge": 16})
    processor = VTFusionProcessor(detector, bert)
    batch = processor(text=["a", "b", "c"], images=[color(0, 20, 10), None, color(0, 8, 8)], return_tensors="pt")
    assert batch["pixel_values"].shape == (3, 1, 3, 8, 16) and batch["pixel_mask"].shape == (3, 1, 8, 16)
    assert batch["pixel_mask"].sum((1, 2, 3)).tolist() == [128, 0, 64]
    assert {"pixel_values", "pixel_mask", "image_mask"} <= set(processor.model_input_names)


def test_decoding_orientation_modes_and_depths():
    upright = np.zeros((3, 5, 3), np.uint8)
    upright[0, 0] = 255
    lying = Image.fromarray(np.rot90(upright))  # turned left; orientation 6 turns it right again
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(decode_image(png(lying, exif=exif)), upright)

    cmyk = Image.merge("CMYK", [Image.new("L", (2, 2), value) for value in (0, 255, 255, 0)])
    assert decode_image(cmyk)[0, 0].tolist() == [255, 0, 0]
    # half-transparent black on white, in every way to say it
    for image in (Image.new("RGBA", (2, 2), (0, 0, 0, 128)), Image.new("LA", (2, 2), (0, 128))):
        for source in (image, png(image)):
            assert decode_image(source)[0, 0].tolist() == [127, 127, 127]
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decode_image(png(palette))[0, 0].tolist() == [10, 20, 30]
    assert decode_image(png(palette, transparency=1))[0, 0].tolist() == [255, 255, 255]
    premultiplied = Image.new("RGBA", (2, 2), (255, 0, 0, 51)).convert("RGBa")
    assert decode_image(premultiplied)[0, 0].tolist() == [255, 204, 204]
    grey = np.array([[0, 257, 1000, 32896, 40000, 65535]], np.uint16)
    for source in (Image.fromarray(grey), png(Image.fromarray(grey)), Image.fromarray(grey.astype(np.int32)), grey):
        assert decode_image(source)[0, :, 0].tolist() == [0, 1, 4, 128, 156, 255]
    assert decode_image(Image.new("1", (2, 2), 1))[0, 0].tolist() == [255, 255, 255]
    assert decode_image(Image.fromarray(np.full((2, 2), 0.2, np.float32)))[0, 0].tolist() == [51, 51, 51]
    frames = [color((255, 0, 0)), color((0, 255, 0))]
    gif = png(frames[0], format="GIF", save_all=True, append_images=frames[1:])
    opened = Image.open(io.BytesIO(gif))
    opened.seek(1)
    for source in (gif, opened):
        assert decode_image(source)[0, 0].tolist() == [255, 0, 0]


def test_decoding_arrays():
    rgb = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    sources = [rgb, np.moveaxis(rgb, -1, 0), torch.from_numpy(rgb).permute(2, 0, 1), rgb / 255, rgb.astype(np.float64)]
    for source in [*sources, rgb.astype(np.int64), torch.from_numpy(rgb), {"bytes": png(Image.fromarray(rgb))}]:
        if isinstance(source, np.ndarray) and source.dtype == np.float64 and source.max() <= 1:
            source = source / source.max() * (59 / 255)
        assert np.array_equal(decode_image(source), rgb)
    grey = rgb[:, :, 0]
    for source in (grey, grey[:, :, None], grey[None], torch.from_numpy(grey)):
        assert np.array_equal(decode_image(source), np.stack([grey] * 3, -1))
    assert decode_image(np.ones((4, 5), bool))[0, 0].tolist() == [255] * 3
    # both ends fit: NumPy means channels last, torch channels first
    assert decode_image(np.zeros((3, 7, 3))).shape == (3, 7, 3)
    assert decode_image(torch.zeros(3, 7, 3)).shape == (7, 3, 3)
    assert decode_image(torch.zeros(3, 4, 5, dtype=torch.bfloat16)).shape == (4, 5, 3)


def test_decoding_arrays_with_transparency():
    half = np.full((2, 2, 4), 0, np.uint8)
    half[..., 3] = 128
    for source in (half, torch.from_numpy(half).permute(2, 0, 1), half / 255):
        assert decode_image(source)[0, 0].tolist() == [127, 127, 127]
    with pytest.raises(ValueError, match="alpha channel need an image processor that rescales"):
        decode_image(half / 255, keep_floats=True)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 3), (3, 1), (4, 3), (1, 200)])
def test_small_images_keep_their_channel_axis(bert, size):
    processor = VTFusionProcessor(image_processor(4, **RAW), bert)
    pixels = processor.encode_images([color((10, 20, 30), *size)])["pixel_values"]
    assert pixels.shape == (1, 1, 3, 4, 4)
    assert pixels[0, 0].mean((1, 2)).tolist() == [10, 20, 30]


def test_prepared_floats_pass_through(bert):
    processor = VTFusionProcessor(image_processor(4), bert)
    prepared = torch.randn(3, 4, 4)
    out = processor.encode_images([prepared], do_resize=False, do_rescale=False, do_normalize=False)["pixel_values"]
    assert torch.equal(out[0, 0], prepared)
    with pytest.raises(ValueError, match=r"row 0.*do_rescale=False"):
        processor.encode_images([prepared])


def broken_png():
    return png(Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8)))[:500]


BAD_IMAGES = {
    "unreadable": (b"not an image", "cannot be read"),
    "empty": (b"", "empty"),
    "truncated": (broken_png(), "cannot be read"),
    "nan": (np.full((4, 4, 3), np.nan), "NaN or infinite"),
    "infinite": (torch.full((3, 4, 4), float("inf")), "NaN or infinite"),
    "two channels": (np.zeros((6, 7, 2), np.uint8), "1, 3 or 4 channels"),
    "five channels": (np.zeros((5, 6, 7), np.uint8), "1, 3 or 4 channels"),
    "one dimension": (np.zeros(4), "2 or 3 dimensions"),
    "four dimensions": (np.zeros((1, 3, 4, 4)), "2 or 3 dimensions"),
    "no pixels": (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
    "too bright": (np.full((4, 4, 3), 300.0), "0…1 or 0…255"),
    "odd integers": (np.full((4, 4, 3), 300), "0…255"),
    "path": ("picture.png", "`allow_paths=True`"),
    "path object": (Path("picture.png"), "`allow_paths=True`"),
    "path of a data set": ({"bytes": None, "path": "picture.png"}, "`allow_paths=True`"),
    "nothing in a dict": ({"bytes": None, "path": None}, "neither bytes nor a path"),
    "URL": ("http://127.0.0.1:9/a.png", "`allow_urls=True`"),
    "something else": (3.5, "expected a PIL image"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_name_row_and_field(processor, name):
    bad, message = BAD_IMAGES[name]
    good = color((1, 2, 3))
    with pytest.raises(ValueError, match=r"^row 2, field `images`: ") as error:
        processor(text=["a", "b", "c"], images=[good, None, bad])
    assert message in str(error.value)
    with pytest.raises(ValueError, match=r"^row 0, field `images`: image 1: "):
        processor(text=["a"], images=[[good, bad]])


@pytest.mark.parametrize("limit", [11, 5])  # PIL itself warns in the first case and raises in the second
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs(processor, monkeypatch, limit):
    image = color((1, 2, 3), 4, 3)
    data = png(image)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for source in (data, image):
        with pytest.raises(ValueError, match=r"row 0, field `images`: .*(bomb|exceeds limit)"):
            processor(text="a", images=source)


def test_paths_and_urls_only_when_allowed(processor, tmp_path):
    path = tmp_path / "a.png"
    color((1, 2, 3)).save(path)
    nested = processor(text="a", images=path, images_kwargs={"allow_paths": True}, return_tensors="pt")
    assert nested["pixel_values"].shape == (1, 1, 3, 8, 8)
    for source in (path, str(path), {"bytes": None, "path": str(path)}):
        assert "pixel_values" in processor(text="a", images=source, allow_paths=True, return_tensors="pt")
    with pytest.raises(ValueError, match=r"row 0, field `images`: .*cannot be opened"):
        processor(text="a", images=str(tmp_path / "missing.png"), allow_paths=True)
    with pytest.raises(ValueError, match="allow_urls"):
        processor(text="a", images="https://127.0.0.1:9/a.png", allow_paths=True)
    with pytest.raises(ValueError, match="cannot be opened"):
        processor(text="a", images="http://127.0.0.1:9/a.png", allow_urls=True)
    with pytest.raises(ValueError, match="allow_paths"):
        processor(text="a", images="file:///etc/hostname", allow_urls=True)


def test_urls_are_downloaded_up_to_a_limit(processor, monkeypatch):
    content = png(color((1, 2, 3)))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        assert decode_image(url, allow_urls=True)[0, 0].tolist() == [1, 2, 3]
        monkeypatch.setattr(images_vtfusion, "_URL_MAX_BYTES", len(content))
        assert decode_image(url, allow_urls=True).shape == (3, 4, 3)
        monkeypatch.setattr(images_vtfusion, "_URL_MAX_BYTES", len(content) - 1)
        with pytest.raises(ValueError, match=r"row 0, field `images`: .*is larger than"):
            processor(text="a", images=url, allow_urls=True)
        server.shutdown()


def test_numbers_of_rows_and_shapes_that_differ(bert, processor):
    red = color((255, 0, 0))
    for images, found in (([red], "1 rows"), ([red, red, red], "3 rows"), (red, "one image")):
        with pytest.raises(ValueError, match=f"field `images`: got {found} for 2 texts"):
            processor(text=["a", "b"], images=images)
    ragged = VTFusionProcessor(image_processor(do_resize=False), bert)
    with pytest.raises(ValueError, match=r"field `images`: .*one size"):
        ragged(text=["a", "b"], images=[color(0, 4, 4), color(0, 5, 5)])
    with pytest.raises(ValueError, match="no image processor"):
        VTFusionProcessor(tokenizer=bert)(text="a", images=red)

    class Patches(ViT):
        def __call__(self, images, **kwargs):
            return {"pixel_values": torch.zeros(len(images), 16, 768)}

    with pytest.raises(ValueError, match=r"Patches must give `pixel_values` of shape \(1, 3, height, width\)"):
        VTFusionProcessor(Patches(), bert)(text="a", images=red)


def test_labels_of_a_single_text_come_flat_or_as_a_row(bert):
    processor = VTFusionProcessor(tokenizer=bert)
    expected = processor(text="fox the fox", word_labels=[1, 0, 2])["labels"]
    for make in (list, tuple, np.array, torch.tensor):
        for labels in (make([1, 0, 2]), make([[1, 0, 2]]), [make([1, 0, 2])]):
            assert processor(text="fox the fox", word_labels=labels)["labels"] == expected


# -------------------------------------------------- bad texts and labels --------------------------------------------


@pytest.mark.parametrize(
    ("text", "labels", "message"),
    [
        ([["fox"], []], None, "row 1, field `text`: there are no words"),
        ([["fox"], ["a", 3]], None, "row 1, field `text`: expected words that are strings, got 3 (<class 'int'>)"),
        (["fox", None], None, "row 1, field `text`: expected a string or a list of words, got <class 'NoneType'>"),
        (["fox", "\ud800"], None, "row 1, field `text`: the text is not valid Unicode"),
        ([], None, "field `text`: there are no texts"),
        ([["fox"], ["a", "b"]], [[1], [1, 2, 3]], "row 1, field `word_labels`: there are 3 labels for 2 words"),
        ([["fox"], ["a", "b"]], [[1], [1]], "row 1, field `word_labels`: there are 1 labels for 2 words"),
        ([["fox"], ["a"]], [[1], ["B-PER"]], "row 1, field `word_labels`: expected label ids"),
        ([["fox"]], [[1.0]], "row 0, field `word_labels`: expected label ids"),
        ([["fox"]], [[True]], "row 0, field `word_labels`: expected label ids"),
        ([["fox"]], [[-1]], "row 0, field `word_labels`: expected label ids"),
        ([["fox"]], [None], "row 0, field `word_labels`: expected a list"),
        ([["fox"], ["a"]], [[1]], "field `word_labels`: there are 1 rows for 2 texts"),
    ],
)
def test_bad_texts_and_labels(processor, text, labels, message):
    with pytest.raises(ValueError) as error:
        processor(text=text, word_labels=labels)
    assert str(error.value).startswith(message)


def test_what_does_not_work_says_so(processor, tmp_path):
    for place in ("text_kwargs", None):
        flag = {"return_offsets_mapping": True}
        with pytest.raises(ValueError, match="return_offsets_mapping"):
            processor(text="a", **(flag if place is None else {place: flag}))
    with pytest.raises(ValueError, match="field `text_pair`: there are 1 rows for 2"):
        processor(text=["a", "b"], text_pair=["c"])
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nfox\n")
    with pytest.raises(ValueError, match=r"needs a fast tokenizer .*, BertTokenizerLegacy is a slow one"):
        VTFusionProcessor(tokenizer=BertTokenizerLegacy(str(vocabulary)))(text="fox")
    with pytest.raises(ValueError, match="needs a tokenizer"):
        VTFusionProcessor(image_processor())
    for setting, message in (
        ({"image_scope": "last"}, "`image_scope` must be 'latest' or 'all', got 'last'"),
        ({"window_length": 0}, "`window_length` must be positive, got 0"),
        ({"window_stride": -1}, "`window_stride` must not be negative, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            VTFusionProcessor(tokenizer=processor.tokenizer, **setting)
    assert VTFusionProcessor(tokenizer=processor.tokenizer, window_length=1, window_stride=0).window_length == 1


# ---------------------------------------------------- the way back --------------------------------------------------


def test_batch_keeps_its_rows(processor):
    batch = processor(text=["fox", "the fox"], images=[None, color(0)], return_tensors="pt")
    for other in (copy.copy(batch), copy.deepcopy(batch), pickle.loads(pickle.dumps(batch)), batch.to("cpu")):
        assert [row.words for row in other.rows] == [["fox"], ["the", "fox"]]
        assert other.row_of_window == [0, 1] and np.array_equal(other.word_positions, batch.word_positions)
        assert set(other) == {"input_ids", "token_type_ids", "attention_mask", "pixel_values", "image_mask"}
    assert batch.to(torch.float16)["pixel_values"].dtype == torch.float16
    assert batch.to(torch.float16).rows[0].words == ["fox"]


def test_merging_gates_and_mismatches(processor):
    batch = processor(text=["the fox", ["is"]], return_tensors="pt")
    gates = torch.arange(batch.word_positions.size).reshape(batch.word_positions.shape).float()
    merged, found = processor.merge_windows(gates, batch)
    assert [m.tolist() for m in merged] == [[1, 2], [5]] and all(f.all() for f in found)
    with pytest.raises(ValueError, match="do not belong together"):
        processor.merge_windows(gates[:, :-1], batch)


def entities_of(labels, decoding="argmax"):
    processor = VTFusionProcessor(tokenizer=TOKENIZERS["bert"]())
    batch = processor(text=[["fox"] * len(labels)], return_tensors="pt")
    found = processor.post_process_token_classification(oracle(batch, [labels]), batch, LABELS, decoding)[0]
    return [(e["entity_group"], *e["words"]) for e in found]


def test_entities_by_the_rules_of_conlleval():
    assert entities_of(["B-PER", "I-PER", "O", "B-PER", "B-PER"]) == [("PER", 0, 1), ("PER", 3, 3), ("PER", 4, 4)]
    assert entities_of(["I-PER", "I-PER", "I-LOC", "O", "I-LOC"]) == [("PER", 0, 1), ("LOC", 2, 2), ("LOC", 4, 4)]
    assert entities_of(["B-PER", "I-LOC", "B-LOC", "I-LOC"]) == [("PER", 0, 0), ("LOC", 1, 1), ("LOC", 2, 3)]
    assert entities_of(["O", "O"]) == []


def test_labels_without_a_prefix_go_on_as_their_own_kind():
    processor = VTFusionProcessor(tokenizer=TOKENIZERS["bert"]())
    names = {0: "O", 1: "PER", 2: "X-LOC"}
    batch = processor(text=[["fox"] * 6], return_tensors="pt")
    logits = torch.full((1, 8, 3), -9.0)
    for token, label in enumerate([1, 1, 2, 2, 0, 2], 1):
        logits[0, token, label] = 9.0
    found = processor.post_process_token_classification(SimpleNamespace(logits=logits), batch, names)[0]
    assert [(e["entity_group"], *e["words"]) for e in found] == [("PER", 0, 1), ("X-LOC", 2, 3), ("X-LOC", 5, 5)]


def test_words_with_their_labels_by_hand(bert):
    processor = VTFusionProcessor(image_processor(), bert)
    batch = processor(text=[["John", "", "fox"], ["Paris"]], images=[color(0), None], return_tensors="pt")
    length = batch.word_positions.shape[1]
    gate = torch.arange(length).float().expand(2, length) / 10
    outputs = oracle(batch, [["B-PER", "O", "O"], ["I-LOC"]], fusion_gate=gate)
    sure = float(torch.tensor([5.0, 0, 0, 0, 0]).softmax(0)[0])
    john, empty, fox = processor.post_process_words(outputs, batch, LABELS)[0]
    place = {"word": "John", "index": 0, "start": 0, "end": 4}
    assert john == place | {"entity": "B-PER", "score": pytest.approx(sure), "gate": pytest.approx(0.1)}
    place = {"word": "", "index": 1, "start": 5, "end": 5}
    assert empty == place | {"entity": "O", "score": 0.0, "gate": 0.0}
    place = {"word": "fox", "index": 2, "start": 6, "end": 9}
    assert fox == place | {"entity": "O", "score": pytest.approx(sure), "gate": pytest.approx(0.2)}
    (paris,) = processor.post_process_words(outputs, batch, LABELS)[1]
    assert (paris["entity"], paris["gate"]) == ("I-LOC", 0.0)
    (paris,) = processor.post_process_words(outputs, batch, LABELS, "viterbi")[1]
    assert paris["entity"] == "O"
    silent = processor.post_process_words(oracle(batch, [["O"] * 3, ["O"]]), batch, LABELS)
    assert [word["gate"] for row in silent for word in row] == [None] * 4


def test_viterbi_finds_what_enumeration_finds():
    names = [LABELS[i] for i in range(5)]

    def valid(path):
        before = ["O", *[names[i] for i in path]]
        return all(
            not now.startswith("I-") or last in (f"B-{now[2:]}", now) for last, now in itertools.pairwise(before)
        )

    random = np.random.default_rng(0)
    for length in (1, 2, 4):
        for _ in range(20):
            log_probs = np.log(random.dirichlet(np.ones(5) * 0.5, length))
            paths = [p for p in itertools.product(range(5), repeat=length) if valid(p)]
            best = max(paths, key=lambda p: sum(log_probs[i, label] for i, label in enumerate(p)))
            assert tuple(viterbi(log_probs, names)) == best


def test_decoding_choices(processor):
    batch = processor(text=["fox the"], return_tensors="pt")
    logits = torch.zeros(1, 4, 5)
    logits[0, 1] = torch.tensor([2.0, 1.9, 0, 0, 0])  # O, nearly B-PER
    logits[0, 2] = torch.tensor([0, 0, 3.0, 0, 0])  # I-PER
    outputs = SimpleNamespace(logits=logits)
    assert processor.predict_word_labels(outputs, batch, LABELS) == [["O", "I-PER"]]
    names = {str(index): label for index, label in LABELS.items()}  # keys as JSON has them
    assert processor.predict_word_labels(outputs, batch, names, "viterbi") == [["B-PER", "I-PER"]]
    with pytest.raises(ValueError, match="decoding"):
        processor.predict_word_labels(outputs, batch, LABELS, "beam")
    with pytest.raises(ValueError, match="id2label"):
        processor.predict_word_labels(outputs, batch, {0: "O"})


def test_decoding_is_saved_with_the_processor(bert, tmp_path):
    logits = torch.zeros(1, 4, 5)
    logits[0, 1] = torch.tensor([2.0, 1.9, 0, 0, 0])  # O, nearly B-PER
    logits[0, 2] = torch.tensor([0, 0, 3.0, 0, 0])  # I-PER
    outputs, argmax, viterbi = SimpleNamespace(logits=logits), [["O", "I-PER"]], [["B-PER", "I-PER"]]
    VTFusionProcessor(tokenizer=bert, decoding="viterbi").save_pretrained(tmp_path)
    loaded = VTFusionProcessor.from_pretrained(tmp_path)
    batch = loaded(text=["fox the"], return_tensors="pt")
    assert loaded.predict_word_labels(outputs, batch, LABELS) == viterbi
    assert [word["entity"] for word in loaded.post_process_words(outputs, batch, LABELS)[0]] == viterbi[0]
    (entity,) = loaded.post_process_token_classification(outputs, batch, LABELS)[0]
    assert entity["words"] == (0, 1)
    assert loaded.predict_word_labels(outputs, batch, LABELS, "argmax") == argmax
    (entity,) = loaded.post_process_token_classification(outputs, batch, LABELS, "argmax")[0]
    assert entity["words"] == (1, 1)
    # set after loading, as a training does
    loaded.decoding = "argmax"
    loaded.save_pretrained(tmp_path / "again")
    again = VTFusionProcessor.from_pretrained(tmp_path / "again")
    assert again.predict_word_labels(outputs, batch, LABELS) == argmax
    # from before it was saved
    file = tmp_path / "processor_config.json"
    saved = json.loads(file.read_text())
    assert saved.pop("decoding") == "viterbi"
    file.write_text(json.dumps(saved))
    assert VTFusionProcessor.from_pretrained(tmp_path).predict_word_labels(outputs, batch, LABELS) == argmax
    with pytest.raises(ValueError, match="`decoding` must be 'argmax' or 'viterbi', got 'beam'"):
        VTFusionProcessor(tokenizer=bert, decoding="beam")


def test_scores_of_a_text_are_the_mean_over_its_windows(processor):
    batch = processor(text=["fox " * 20, "fox"], max_length=12, stride=2, return_tensors="pt")
    assert batch.row_of_window == [0, 0, 0, 1]
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0], [3.0, 0.0], [-1.0, 1.0]])
    names = {"0": "no", "1": "yes"}  # keys as JSON has them
    outputs = SimpleNamespace(logits=logits)

    def scores(**kwargs):
        rows = processor.post_process_sequence_classification(outputs, batch, names, **kwargs)
        return [[(answer["label"], pytest.approx(answer["score"], abs=1e-6)) for answer in row] for row in rows]

    softmax = logits.double().softmax(-1)
    mean = softmax[:3].mean(0)
    assert scores() == [
        [("no", mean[0]), ("yes", mean[1])],
        [("yes", softmax[3, 1]), ("no", softmax[3, 0])],
    ]
    assert scores(function_to_apply="none")[0] == [("no", 4 / 3), ("yes", 2 / 3)]
    sigmoid = logits.double().sigmoid()
    assert scores(function_to_apply="sigmoid")[1] == [("yes", sigmoid[3, 1]), ("no", sigmoid[3, 0])]
    with pytest.raises(ValueError, match="`function_to_apply` must be one of softmax, sigmoid, none, got 'max'"):
        scores(function_to_apply="max")
    assert [answer["gate"] for answer in processor.post_process_sequence_classification(outputs, batch, names)[1]] == [
        None,
        None,
    ]
    outputs.logits = logits[:3]
    with pytest.raises(ValueError, match=r"`logits` of shape \(3, 2\), .* they must have \(4, 2\)"):
        scores()


def test_gate_of_a_text_is_the_mean_over_its_words(bert):
    processor = VTFusionProcessor(image_processor(), bert)
    batch = processor(text=["the fox the", "", "fox"], images=[color(0), color(0), None], return_tensors="pt")
    gate = torch.tensor([0.0, 1, 2, 6, 9]).expand(3, 5)
    outputs = SimpleNamespace(logits=torch.zeros(3, 2), fusion_gate=gate)
    answers = processor.post_process_sequence_classification(outputs, batch, {0: "no", 1: "yes"})
    assert [[answer["gate"] for answer in row] for row in answers] == [[3.0] * 2, [0.0] * 2, [0.0] * 2]


def test_heat_map_by_hand():
    # a box of 2 × 2 pixels, one of half a pixel row, one half outside
    heat = paint(np.array([[0, 0, 2, 2], [2, 0, 4, 0.5], [3, 1, 5, 2]]), np.array([4.0, 1.0, 2.0]), 2, 4)
    assert np.allclose(heat, [[1, 1, 0.5, 0.5], [1, 1, 0, 1]])
    # borders between pixels: weight is conserved
    fine = paint(np.array([[0.3, 0.2, 1.7, 2.9], [1.0, 1.0, 1.0, 1.0]]), np.array([0.75, 0.25]), 4, 4)
    assert fine.sum() == pytest.approx(1.0) and fine[0, 0] == pytest.approx(0.75 * 0.7 * 0.8 / (1.4 * 2.7))


GRID = torch.tensor([[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]])


def looking_outputs(batch, labels, attention, num_images=1):
    """`attention`: {(row, word): weights of all positions}; two heads that differ and average to it."""
    windows, length = batch.word_positions.shape
    maps = torch.zeros(windows, 2, length, 4 * num_images)
    for (row, word), weights in attention.items():
        window, token = np.argwhere((batch.word_positions == word) & (np.array(batch.row_of_window) == row)[:, None])[
            0
        ]
        maps[window, 0, token] = torch.tensor(weights) * 1.5
        maps[window, 1, token] = torch.tensor(weights) * 0.5
    gate = torch.arange(length).float().expand(windows, length) / 10
    boxes = GRID.repeat(num_images, 1).expand(windows, -1, 4)
    return oracle(batch, labels, text_to_image_attention=maps, visual_boxes=boxes, fusion_gate=gate)


def test_entities_say_where_they_looked(bert):
    processor = VTFusionProcessor(image_processor(), bert)
    texts = [["John", "Smith", "fox"], ["Paris"]]
    images = [[color(0, 10, 10), color(0, 40, 20)], None]
    batch = processor(text=texts, images=images, return_tensors="pt")
    look = {(0, 0): [0.1, 0.1, 0, 0, 0, 0.5, 0, 0.3], (0, 1): [0.1, 0.1, 0, 0, 0.1, 0.3, 0, 0.4]}
    outputs = looking_outputs(batch, [["B-PER", "I-PER", "O"], ["B-LOC"]], look, num_images=2)
    person, place = (e for row in processor.post_process_token_classification(outputs, batch, LABELS) for e in row)
    assert person["gate"] == pytest.approx(0.15) and person["text"] == "John Smith"
    # means 0.05, 0.4, 0, 0.35 in the second image: its right column, 20…40 × 0…20 pixels
    assert person["image_region"]["image"] == 1 and person["image_region"]["box"] == (20, 0, 40, 20)
    assert person["image_region"]["score"] == pytest.approx(0.75)
    assert place["gate"] == 0.0 and place["image_region"] is None
    # the image with the most weight, wherever it stands
    batch = processor(text=texts, images=[images[0][::-1], None], return_tensors="pt")
    look = {word: weights[4:] + weights[:4] for word, weights in look.items()}
    outputs = looking_outputs(batch, [["B-PER", "I-PER", "O"], ["B-LOC"]], look, num_images=2)
    moved = processor.post_process_token_classification(outputs, batch, LABELS)[0][0]
    assert moved["image_region"] == person["image_region"] | {"image": 0}


@pytest.mark.parametrize(
    ("weights", "region", "score"),
    [
        ([0.5, 0.24, 0.01, 0.25], (0, 3), 0.75),  # half as much is enough, less is not; corners adjoin
        ([0.1, 0.6, 0.0, 0.3], (1, 3), 0.9),
        ([0.2, 0.2, 0.2, 0.4], (0, 3), 1.0),
        ([0.0, 0.7, 0.2, 0.1], (1, 1), 0.7),
    ],
)
def test_a_region_grows_over_what_adjoins_it_at_half_the_weight(bert, weights, region, score):
    processor = VTFusionProcessor(image_processor(), bert)
    batch = processor(text=[["Paris"]], images=[color(0, 40, 20)], return_tensors="pt")
    outputs = looking_outputs(batch, [["B-LOC"]], {(0, 0): weights})
    (entity,) = processor.post_process_token_classification(outputs, batch, LABELS)[0]
    cells = GRID * torch.tensor([40, 20, 40, 20])
    low, high = cells[list(region), :2].amin(0), cells[list(region), 2:].amax(0)
    assert entity["image_region"]["box"] == pytest.approx((*low.tolist(), *high.tolist()))
    assert entity["image_region"]["score"] == pytest.approx(score)


def test_a_region_does_not_jump_over_gaps(bert):
    processor = VTFusionProcessor(image_processor(), bert)
    batch = processor(text=[["Paris"]], images=[color(0, 10, 10)], return_tensors="pt")
    outputs = looking_outputs(batch, [["B-LOC"]], {(0, 0): [0.3, 0.2, 0.3, 0.2]})
    # the first and the third are as strong, but lie apart; the fourth adjoins the first through the second
    outputs.visual_boxes = torch.tensor(
        [[[0.0, 0, 0.2, 0.5], [0.2, 0, 0.4, 0.5], [0.75, 0, 1, 0.5], [0.4, 0.5, 0.5, 0.7]]]
    )
    (entity,) = processor.post_process_token_classification(outputs, batch, LABELS)[0]
    assert entity["image_region"]["box"] == pytest.approx((0, 0, 5, 7))
    assert entity["image_region"]["score"] == pytest.approx(0.7)


def test_grounding_by_hand(bert):
    processor = VTFusionProcessor(image_processor(), bert)
    batch = processor(text=[["John", "Smith", ""], ["fox"]], images=[color(0, 4, 2), None], return_tensors="pt")
    outputs = looking_outputs(batch, [["O"] * 3, ["O"]], {(0, 0): [0.8, 0.2, 0, 0], (0, 1): [0, 0.4, 0, 0.6]})
    by_word = processor.post_process_grounding(outputs, batch)
    assert by_word[1] == [] and [(g["words"], g["image"]) for g in by_word[0]] == [((w, w), 0) for w in range(3)]
    # cells of 2 × 1 pixels
    assert torch.allclose(by_word[0][0]["heatmap"], torch.tensor([[0.4, 0.4, 0.1, 0.1], [0, 0, 0, 0]]))
    assert by_word[0][2]["heatmap"].abs().sum() == 0  # the empty word looked nowhere
    (both,) = processor.post_process_grounding(outputs, batch, spans=[[(0, 1)], []])[0]
    assert torch.allclose(both["heatmap"], torch.tensor([[0.2, 0.2, 0.15, 0.15], [0, 0, 0.15, 0.15]]))
    (small,) = processor.post_process_grounding(outputs, batch, spans=[[(0, 0)], []], size=(2, 2))[0]
    assert torch.allclose(small["heatmap"], torch.tensor([[0.8, 0.2], [0, 0]]))
    for wrong in ((2, 3), (-1, 0), (1, 0)):
        with pytest.raises(ValueError, match=rf"row 0, field `spans`: \({wrong[0]}, {wrong[1]}\) is not in 0…2"):
            processor.post_process_grounding(outputs, batch, spans=[[wrong], []])
    with pytest.raises(ValueError, match="`output_fusion_attentions=True`"):
        processor.post_process_grounding(SimpleNamespace(logits=outputs.logits), batch)
    text_only = processor(text="fox", return_tensors="pt")
    assert processor.post_process_grounding(SimpleNamespace(), text_only) == [[]]


def test_an_empty_slot_is_looked_at_by_nobody(bert):
    processor = VTFusionProcessor(image_processor(), bert)
    batch = processor(text=[["Paris"]], images=[[None, color(0, 4, 2)]], return_tensors="pt")
    look = {(0, 0): [0.0] * 4 + [0.0, 1.0, 0, 0]}
    outputs = looking_outputs(batch, [["B-LOC"]], look, num_images=2)
    (grounding,) = processor.post_process_grounding(outputs, batch)[0]
    assert grounding["image"] == 1
    assert torch.allclose(grounding["heatmap"], torch.tensor([[0, 0, 0.5, 0.5], [0, 0, 0, 0]]))
    (entity,) = processor.post_process_token_classification(outputs, batch, LABELS)[0]
    assert entity["image_region"] == {"image": 1, "box": (2.0, 0.0, 4.0, 1.0), "score": 1.0}
    with pytest.raises(ValueError, match="`spans` has 2 rows for 1 texts"):
        processor.post_process_grounding(outputs, batch, spans=[[(0, 0)], []])


def test_who_looks_nowhere_or_at_features_of_no_size_has_no_region(bert):
    processor = VTFusionProcessor(image_processor(), bert)
    batch = processor(text=[["Paris"]], images=[color(0, 4, 2)], return_tensors="pt")
    (entity,) = processor.post_process_token_classification(looking_outputs(batch, [["B-LOC"]], {}), batch, LABELS)[0]
    assert entity["image_region"] is None and entity["gate"] == pytest.approx(0.1)
    features = processor(text=[["Paris"]], return_tensors="pt")
    features["visual_embeds"], features["image_mask"] = torch.zeros(1, 1, 4, 2), torch.ones(1, 1)
    look = {(0, 0): [1.0, 0, 0, 0]}
    outputs = looking_outputs(features, [["B-LOC"]], look)
    (entity,) = processor.post_process_token_classification(outputs, features, LABELS)[0]
    assert entity["image_region"] is None and entity["gate"] == pytest.approx(0.1)


def test_what_cropping_leaves(bert):
    plain = image_processor()
    assert visible_rectangle(plain, 30, 20) == (0, 0, 30, 20)
    cropping = ViT(size={"shortest_edge": 10}, do_center_crop=True, crop_size={"height": 8, "width": 8})
    # 40 × 20 becomes 20 × 10; the 8 × 8 in the middle are 16 × 16 pixels of the original
    assert visible_rectangle(cropping, 40, 20) == (12, 2, 28, 18)
    assert visible_rectangle(cropping, 40, 20, do_center_crop=False) == (0, 0, 40, 20)
    squeezed = ViT(size={"height": 10, "width": 10}, do_center_crop=True, crop_size={"height": 5, "width": 5})
    assert visible_rectangle(squeezed, 40, 20) == (10, 5, 30, 15)
    # ConvNeXT: shortest edge to 8 / 0.8 = 10, then the middle 8 × 8; from 384 pixels on it warps
    assert visible_rectangle(ConvNextImageProcessor(size={"shortest_edge": 8}, crop_pct=0.8), 40, 20) == (
        12,
        2,
        28,
        18,
    )
    assert visible_rectangle(ConvNextImageProcessor(size={"shortest_edge": 384}), 40, 20) == (0, 0, 40, 20)
    # a crop larger than the image has a border, which the heat map leaves out
    assert visible_rectangle(ViT(do_resize=False, do_center_crop=True, crop_size={"height": 8, "width": 8}), 4, 4) == (
        -2,
        -2,
        6,
        6,
    )


def test_crops_are_mapped_back(bert):
    cropping = ConvNextImageProcessor(size={"shortest_edge": 8}, crop_pct=0.8)
    processor = VTFusionProcessor(cropping, bert)
    batch = processor(text=["John"], images=[color(0, 40, 20)], return_tensors="pt")
    outputs = looking_outputs(batch, [["B-PER"]], {(0, 0): [0.0, 1.0, 0, 0]})
    (entity,) = processor.post_process_token_classification(outputs, batch, LABELS)[0]
    assert entity["image_region"]["box"] == pytest.approx((20, 2, 28, 10))
    (grounding,) = processor.post_process_grounding(outputs, batch)[0]
    heat = grounding["heatmap"]
    assert heat.shape == (20, 40) and heat[2:10, 20:28].sum() == pytest.approx(1.0) == heat.sum()


def test_with_a_model(bert):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = VTFusionConfig(
        text_config=BertConfig(vocab_size=len(bert), max_position_embeddings=32, **sizes),
        vision_config=ViTConfig(image_size=8, patch_size=4, **sizes),
        fusion_hidden_size=16,
        num_fusion_heads=2,
        id2label=LABELS,
        label2id=IDS,
    )
    model = VTFusionForTokenClassification(config).eval()
    processor = VTFusionProcessor(image_processor(8), bert, window_length=16, window_stride=4)
    red = color((255, 0, 0), 6, 4)
    texts, images = ["John Smith lives in Paris. " * 4, "fox", "the fox"], [[red, red], None, red]
    batch = processor(text=texts, images=images, word_labels=[[1] * 24, [0], [0, 0]], return_tensors="pt")
    assert len(batch["input_ids"]) > 5
    with torch.no_grad():
        outputs = model(**batch, output_fusion_attentions=True)
    assert torch.isfinite(outputs.loss)
    labels = processor.predict_word_labels(outputs, batch, config.id2label, "viterbi")
    assert [len(row) for row in labels] == [24, 1, 2]
    for row, has_image in zip(
        processor.post_process_token_classification(outputs, batch, config.id2label), (1, 0, 1), strict=True
    ):
        assert all((e["gate"] > 0) == has_image == (e["image_region"] is not None) for e in row)
    heat = processor.post_process_grounding(outputs, batch)
    assert [len(row) for row in heat] == [48, 0, 2]
    first, second = heat[0][:2]
    assert first["heatmap"].shape == (4, 6)
    assert float(first["heatmap"].sum() + second["heatmap"].sum()) == pytest.approx(1.0, abs=1e-5)
    assert all(float(g["heatmap"].sum()) == pytest.approx(1.0, abs=1e-5) for g in heat[2])


# ----------------------------------------------------- save and load ------------------------------------------------


def test_save_and_load(bert, tmp_path):
    processor = VTFusionProcessor(image_processor(6), bert, window_length=77, window_stride=5)
    processor.save_pretrained(tmp_path)
    loaded = VTFusionProcessor.from_pretrained(tmp_path)
    assert loaded.window_length == 77 and loaded.window_stride == 5 and loaded.to_dict() == processor.to_dict()
    assert loaded.image_processor.size["height"] == 6
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["auto_map"] == {"AutoProcessor": "processing_vtfusion.VTFusionProcessor"}
    red = color((255, 0, 0))
    ours, theirs = (p(text="fox", images=red, return_tensors="pt") for p in (processor, loaded))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_image_processor_in_a_file_of_its_own_is_loaded(bert, tmp_path):
    """As older versions of transformers saved it."""
    VTFusionProcessor(image_processor(6), bert, window_length=9).save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    saved = json.loads(file.read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved.pop("image_processor")))
    file.write_text(json.dumps(saved))
    loaded = VTFusionProcessor.from_pretrained(tmp_path)
    assert loaded.image_processor.size["height"] == 6 and loaded.window_length == 9


def test_save_and_load_without_an_image_processor(bert, tmp_path):
    processor = VTFusionProcessor(tokenizer=bert, window_length=9)
    processor.save_pretrained(tmp_path)
    loaded = VTFusionProcessor.from_pretrained(tmp_path)
    assert loaded.image_processor is None and loaded.window_length == 9
    assert loaded(text="fox")["input_ids"] == bert("fox")["input_ids"]
    assert copy.deepcopy(pickle.loads(pickle.dumps(loaded))).get_attributes() == ["tokenizer"]
    loaded.save_pretrained(tmp_path / "again")
    assert "VTFusionProcessor" in repr(loaded)
    assert set(loaded(text="fox")) == set(loaded.model_input_names)


REMOTE = """
import sys
class Hide:  # an editable install is found from anywhere
    def find_spec(self, name, path=None, target=None):
        if name == "vtfusion":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
from types import SimpleNamespace
import torch
from transformers import AutoProcessor
for folder in sys.argv[1:]:
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(processor).__module__.startswith("transformers_modules"), type(processor).__module__
    batch = processor(text=["the fox " * 20], max_length=16, return_tensors="pt")
    assert len(batch.rows[0].words) == 40
    processor.save_pretrained(folder + "/again")
    again = AutoProcessor.from_pretrained(folder + "/again", trust_remote_code=True)
    batch, logits = again(text=["fox the"], return_tensors="pt"), torch.zeros(1, 4, 3)
    logits[0, 1], logits[0, 2] = torch.tensor([2.0, 1.9, 0]), torch.tensor([0, 0, 3.0])
    labels = again.predict_word_labels(SimpleNamespace(logits=logits), batch, {0: "O", 1: "B-A", 2: "I-A"})[0]
    print(type(again).__name__, again.image_processor is None, again.window_stride, *labels)
"""


@pytest.mark.slow
def test_remote_code(bert, tmp_path):
    folders = [str(tmp_path / name) for name in ("images", "text")]
    for folder, images in zip(folders, (image_processor(), None), strict=True):
        VTFusionProcessor(images, bert, window_stride=3, decoding="viterbi").save_pretrained(folder)
        assert (Path(folder) / "processing_vtfusion.py").is_file()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", REMOTE, *folders]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == [
        "VTFusionProcessor False 3 B-A I-A",
        "VTFusionProcessor True 3 B-A I-A",
        "",
    ]


def test_auto_processor_here(bert, tmp_path):
    VTFusionProcessor(image_processor(), bert).save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(loaded).__name__ == "VTFusionProcessor"


def test_an_image_of_several_texts_is_prepared_once(bert, monkeypatch):
    processor = VTFusionProcessor(image_processor(), bert)
    red, grey = (Image.new("RGB", (8, 8), colour) for colour in ("red", "grey"))
    texts, images = ["a", "b", "c"], [[red, None, grey], None, red]
    expected = processor(text=texts, images=[[red.copy(), None, grey], None, red.copy()], return_tensors="pt")
    decoded, prepared = [], []
    whole, prepare = processing_vtfusion.decode_image, type(processor.image_processor).__call__

    def count(into, function, *args, **kwargs):
        into.append(args[-1])
        return function(*args, **kwargs)

    monkeypatch.setattr(processing_vtfusion, "decode_image", partial(count, decoded, whole))
    monkeypatch.setattr(type(processor.image_processor), "__call__", lambda *a, **k: count(prepared, prepare, *a, **k))
    batch = processor(text=texts, images=images, return_tensors="pt")
    assert len(decoded) == 2
    assert [len(of) for of in prepared] == [2]
    for name in ("pixel_values", "image_mask"):
        torch.testing.assert_close(batch[name], expected[name], atol=0, rtol=0)
    assert [row.image_sizes for row in batch.rows] == [row.image_sizes for row in expected.rows]


def test_an_image_processor_that_does_not_say_whether_it_rescales(bert):
    """It is taken for one that does: floats beyond 255 are no pixels for it."""
    processor = VTFusionProcessor(image_processor(), bert)
    processor.image_processor = SimpleNamespace()
    with pytest.raises(ValueError, match="float pixels must lie in"):
        processor(text="fox", images=np.full((4, 4, 3), 300.0))


def test_words_are_read_where_most_text_is_around_them():
    # tokens 0 … 9 in windows of 6 that share 4; token 3 is two from the end of the first, one from the start of the second
    assert assign_windows(np.arange(10), [(0, 6), (2, 8), (4, 10)]).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert assign_windows(np.array([1, 7]), [(0, 4)]).tolist() == [0, -1]
    assert assign_windows(np.empty(0, dtype=np.int64), [(0, 4)]).tolist() == []


def test_pixels_that_are_prepared_already_beside_a_text(bert):
    prepared = np.full((4, 4, 3), 300.0, dtype=np.float32)
    raw = {"do_resize": False, "do_rescale": False, "do_normalize": False}
    by_call = VTFusionProcessor(image_processor(), bert)(text="fox", images=prepared, return_tensors="pt", **raw)
    by_setting = VTFusionProcessor(image_processor(**raw), bert)(text="fox", images=prepared, return_tensors="pt")
    for batch in (by_call, by_setting):
        assert batch["pixel_values"].eq(300).all()


def test_a_word_of_spaces_has_no_token():
    # the token of "fox" begins with the space before it
    processor = VTFusionProcessor(tokenizer=TOKENIZERS["llama"]())
    batch = processor(text=[["fox", " ", "fox"]], return_tensors="pt")
    read = [word for word in batch.word_positions[0].tolist() if word >= 0]
    assert read == [0, 2]


def test_equal_scores_stay_in_the_order_of_the_labels(bert):
    processor = VTFusionProcessor(tokenizer=bert)
    batch = processor(text=["fox"], return_tensors="pt")
    names = {index: f"label {index:02}" for index in range(40)}
    (found,) = processor.post_process_sequence_classification(SimpleNamespace(logits=torch.zeros(1, 40)), batch, names)
    assert [label["label"] for label in found] == list(names.values())


def test_features_without_a_mask_are_images(bert):
    processor = VTFusionProcessor(tokenizer=bert)
    batch = processor(text=["fox"], return_tensors="pt")
    outputs = SimpleNamespace(logits=torch.zeros(1, 2), fusion_gate=torch.full(batch["input_ids"].shape, 0.5))
    names = {0: "a", 1: "b"}
    assert processor.post_process_sequence_classification(outputs, batch, names)[0][0]["gate"] == 0
    batch["visual_embeds"] = torch.zeros(1, 1, 3, 4)
    assert processor.post_process_sequence_classification(outputs, batch, names)[0][0]["gate"] == pytest.approx(0.5)


def test_a_batch_of_nothing_has_places_of_two():
    empty = processing_vtfusion.VTFusionBatch()
    assert empty.token_spans.shape == (0, 0, 2) and empty.word_positions.shape == (0, 0)


def test_entities_of_many_words_by_hand():
    labels = ["B-PER", "I-PER", "I-PER", "I-PER", "O", "I-LOC", "I-LOC", "I-LOC", "B-LOC", "I-PER"]
    expected = [("PER", 0, 3), ("LOC", 5, 7), ("LOC", 8, 8), ("PER", 9, 9)]
    assert entity_spans(labels) == expected


def test_half_characters_in_words_are_named():
    with pytest.raises(ValueError, match=r"^row 3, field `text`: the text is not valid Unicode"):
        read_text(["fox", "\ud800"], 3)
