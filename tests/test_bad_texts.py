"""Texts as they come: every word gets one prediction whatever it is made of, or an error names the row and the field."""

import json
import time
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tiny import randomize_fusion, tiny_config
from tokenizers_for_tests import TOKENIZERS
from vtfusion import (
    VTFusionForTokenClassification,
    VTFusionProcessor,
    VTFusionTokenClassificationPipeline,
)
from vtfusion.training.classification_data import load_classification_dataset
from vtfusion.training.image_bank import ImageBank
from vtfusion.training.pairing import pair_by_manifest
from vtfusion.training.token_data import load_token_classification_dataset, open_token_streams
from writing import write

LABELS = {0: "O", 1: "B-X", 2: "I-X"}
PROCESSORS = {name: VTFusionProcessor(tokenizer=make(), window_stride=2) for name, make in TOKENIZERS.items()}

# A family of one character in seven, a flag, a skin tone, a joiner and marks alone, Hebrew with points, Arabic, Thai
# without spaces, a direction override, what no tokenizer keeps, and spaces that are none.
STRANGE = [
    *("👩‍👩‍👧‍👦", "🇫🇷", "👍🏽", "\u200d", "\u0301", "\u200b", "\ufeff", "שָׁלוֹם", "مرحبا", "สวัสดีครับ", "\u202eabc"),
    *(
        "\x00",
        "\x01\x02",
        "\x7f",
        "\x85",
        "\u2028",
        "\u00a0",
        " ",
        "\t",
        "\n",
        "",
        "ﬁ",
        "ⅳ",
        "İ",
        "ß",
        "日本語",
        "[SEP]",
        "<s>",
        "▁",
    ),
]
words = st.one_of(
    st.sampled_from(["fox", "John", "isn't", *STRANGE]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)


def always_x(batch):
    logits = torch.zeros(*batch.word_positions.shape, 3)
    logits[..., 1] = 1
    return SimpleNamespace(logits=logits)


@given(name=st.sampled_from(sorted(TOKENIZERS)), text=st.one_of(st.lists(words, min_size=1, max_size=20), words))
@settings(max_examples=300)
@example(name="llama", text=STRANGE)
@example(name="bert", text="👩‍👩‍👧‍👦 \u202eabc \u200d")
def test_every_word_gets_one_prediction_and_offsets_slice_the_text(name, text):
    processor = PROCESSORS[name]
    batch = processor(text=[text], max_length=12, return_tensors="pt")
    (row,) = batch.rows
    assert [row.text[start:end] for start, end in row.spans] == row.words
    assert row.words == text if isinstance(text, list) else row.text == text
    read = sorted(batch.word_positions[batch.word_positions >= 0].tolist())
    assert read == sorted(set(read))
    for decoding in ("argmax", "viterbi"):
        (labels,) = processor.predict_word_labels(always_x(batch), batch, LABELS, decoding)
        assert len(labels) == len(row.words)
        assert [place for place, label in enumerate(labels) if label != "O"] == read
    for entity in processor.post_process_token_classification(always_x(batch), batch, LABELS)[0]:
        assert row.text[entity["start"] : entity["end"]] == entity["text"]


@given(name=st.sampled_from(sorted(TOKENIZERS)), text=st.lists(words, min_size=1, max_size=30))
def test_the_same_words_are_read_in_windows_and_in_one_pass(name, text):
    whole, windows = (PROCESSORS[name](text=[text], max_length=length, return_tensors="pt") for length in (10_000, 9))

    def ids(batch):
        values = batch["input_ids"].float()
        return [merged.nan_to_num(-1) for merged in PROCESSORS[name].merge_windows(values, batch)[0]]

    assert len(whole["input_ids"]) == 1
    assert torch.equal(ids(whole)[0], ids(windows)[0])


@given(text=st.lists(words, min_size=1, max_size=8))
@settings(max_examples=15)
def test_a_window_that_the_text_fits_in_is_one_pass(pipes, text):
    pipe, processor = pipes
    length = len(processor(text=[text], max_length=1000)["input_ids"][0])
    fitting, one = (pipe({"tokens": text}, aggregation_strategy="none", max_length=most) for most in (length, 1000))
    assert fitting == one and [word["word"] for word in one] == text


@pytest.fixture(scope="module")
def pipes():
    torch.manual_seed(0)
    config = tiny_config("bert", "precomputed", id2label=LABELS)
    model = VTFusionForTokenClassification(config).eval()
    randomize_fusion(model)
    processor = VTFusionProcessor(tokenizer=TOKENIZERS["bert"](), window_length=60)
    return VTFusionTokenClassificationPipeline(model=model, processor=processor, device="cpu"), processor


# Long texts -----------------------------------------------------------------------------------------------------------


def test_labels_of_a_long_text_take_no_longer_than_its_words():
    """They were copied once for each window: 300,000 words took a minute."""
    processor = VTFusionProcessor(tokenizer=TOKENIZERS["bert"](), window_length=16)
    text = ["fox", "isn't", "lower"] * 7000

    def seconds(**options):
        start = time.perf_counter()
        encoded = processor.encode_text([text], **options)
        return time.perf_counter() - start, encoded

    seconds()
    plain, _ = seconds()
    labelled, encoded = seconds(word_labels=[[1] * len(text)])
    assert sum(label == 1 for window in encoded["labels"] for label in window) == len(text)
    assert labelled < 2.5 * plain + 0.5


def test_a_hundred_thousand_words_of_a_file_are_all_read(tmp_path):
    count = 100_000
    (tmp_path / "a.conll").write_text("".join(f"w{place} O\n" for place in range(count)), encoding="utf-8")
    start = time.perf_counter()
    (row,) = load_token_classification_dataset(train_file=tmp_path / "a.conll", cache_dir=tmp_path)["train"]
    assert len(row["tokens"]) == len(row["ner_tags"]) == count and row["tokens"][-1] == f"w{count - 1}"
    assert time.perf_counter() - start < 60


# Errors ---------------------------------------------------------------------------------------------------------------

BAD_TEXTS = {
    "no words": ([], "there are no words"),
    "none": (None, "expected a string or a list of words, got <class 'NoneType'>"),
    "a number": (7, "expected a string or a list of words, got <class 'int'>"),
    "bytes": (b"fox", "expected a string or a list of words"),
    "a dict": ({"text": "fox"}, "expected a string or a list of words"),
    "a word that is none": (["fox", None], r"expected words that are strings, got None \(<class 'NoneType'>\)"),
    "a word that is a list": (["fox", ["fox"]], r"expected words that are strings, got \['fox'\]"),
    "half a character": ("fox \ud83d", "the text is not valid Unicode"),
    "half a character in a word": (["fox", "\udc00"], "the text is not valid Unicode"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
@pytest.mark.parametrize("field", ["text", "text_pair"])
def test_bad_texts_name_row_and_field(name, field):
    text, message = BAD_TEXTS[name]
    given_texts = {"text": ["fox", "fox"], field: ["fox", text]}
    with pytest.raises(ValueError, match=rf"^row 1, field `{field}`: {message}"):
        PROCESSORS["bert"](**given_texts)


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_bad_texts_in_a_pipeline(pipes, name):
    text, message = BAD_TEXTS[name]
    said = "needs `text`, got" if text is None else f"^row 0, field `text`: {message}"
    with pytest.raises(ValueError, match=said):
        pipes[0]({"tokens": text})


@pytest.mark.parametrize("text", ["", "  ", "\n\t", "\u00a0", [" "], ["", "\t"], ["\x00"]])
def test_nothing_to_see_is_no_entity(pipes, text):
    example_of = {"text": text} if isinstance(text, str) else {"tokens": text}
    assert pipes[0](example_of) == []
    found = pipes[0](example_of, aggregation_strategy="none")
    assert [word["entity"] for word in found] == ["O"] * (len(text) if isinstance(text, list) else 0)


def test_windows_that_overlap_too_much_name_the_row():
    with pytest.raises(ValueError, match=r"^row 1, field `text`: `stride` = 6 must be less than the 6 tokens"):
        PROCESSORS["bert"](text=["fox", "fox " * 20], max_length=8, stride=6)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1], [1, 0, 2]], "there are 3 labels for 2 words"),
        ([[1], [[1, 0]]], "there are 1 labels for 2 words"),
        ([[1], [[1], [0]]], r"expected label ids \(whole numbers from 0 on, or -100\), got \[1\]"),
        ([[1], [1, None]], "expected label ids .* got None"),
        ([[1], [1, float("nan")]], "expected label ids .* got nan"),
        ([[1], "ab"], "expected a list of label ids, got 'ab'"),
        ([[1], {0: 1}], "expected a list of label ids"),
    ],
)
def test_bad_labels_name_row_and_field(labels, message):
    with pytest.raises(ValueError, match=rf"^row 1, field `word_labels`: {message}"):
        PROCESSORS["bert"](text=[["fox"], ["a", "b"]], word_labels=labels)


def test_labels_outside_of_the_map_are_refused_by_the_model(pipes):
    batch = pipes[1](text=[["fox"], ["a", "b"]], word_labels=[[1], [1, 9]], return_tensors="pt")
    with pytest.raises(ValueError, match=r"Row 1, field `labels`: 9 at position 2 is outside its range \(0 to 2"):
        pipes[0].model(**batch)


# Files ----------------------------------------------------------------------------------------------------------------


BAD_LINES = {
    "not utf-8": (b'{"row": 0, "image": "\xe9.png"}\n', "line 2: not UTF-8 text"),
    "too deep": (b'{"image": ' + b"[" * 100_000 + b"\n", "line 2: not valid JSON"),
    "a number of too many digits": (b'{"row": ' + b"1" * 5000 + b', "image": "a.png"}\n', "line 2: not valid JSON"),
    "half a character": (
        b'{"row": 0, "image": "a.png", "id": "\\ud83d"}\n',
        "line 2, field `id`: half of a character",
    ),
    "no object": (b"[1]\n", "line 2: expected a JSON object, got list"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_lines_of_manifests_and_banks_are_named(tmp_path, name):
    line, message = BAD_LINES[name]
    (tmp_path / "a.png").touch()
    write(tmp_path / "metadata.jsonl", b'{"image": "a.png", "name": "a"}\n' + line)
    with pytest.raises(ValueError, match=rf"metadata\.jsonl, {message}"):
        ImageBank.from_folder(tmp_path)
    texts = DatasetDict({"train": Dataset.from_dict({"tokens": [["a"]]})})
    manifest = write(tmp_path / "pairs.jsonl", b'{"row": 0, "image": null}\n' + line)
    with pytest.raises(ValueError, match=rf"pairs\.jsonl, {message}"):
        pair_by_manifest(texts, manifest)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"row,image\n0,\xe9.png\n", "line 2: not UTF-8 text"),
        (b"row,image\n0," + b"x" * 200_000 + b"\n", "line 2: not valid CSV: field larger"),
    ],
)
def test_bad_csv_manifests_are_named(tmp_path, content, message):
    texts = DatasetDict({"train": Dataset.from_dict({"tokens": [["a"]]})})
    with pytest.raises(ValueError, match=rf"pairs\.csv, {message}"):
        pair_by_manifest(texts, write(tmp_path / "pairs.csv", content))


@pytest.mark.parametrize("score", ["1e999", "-1e999", "NaN", "1" + "0" * 400, "1e39"])
def test_scores_are_numbers_that_can_be_stored(tmp_path, score):
    (tmp_path / "a.png").touch()
    texts = DatasetDict({"train": Dataset.from_dict({"tokens": [["a"]]})})
    manifest = write(tmp_path / "pairs.jsonl", f'{{"row": 0, "image": "a.png", "score": {score}}}')
    with pytest.raises(ValueError, match="line 1, field `score`: expected a number"):
        pair_by_manifest(texts, manifest)


@pytest.mark.parametrize(("field", "value"), [("id", ["a"]), ("id", {"a": 1}), ("kind", ["a"]), ("kind", 1.5)])
def test_fields_of_a_bank_have_their_types(tmp_path, field, value):
    (tmp_path / "a.png").touch()
    write(tmp_path / "metadata.jsonl", json.dumps({"image": "a.png", "name": "a", field: value}))
    with pytest.raises(ValueError, match=f"line 1, field `{field}`: expected a string or an integer"):
        ImageBank.from_folder(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"tokens": [2Lee"]}\n', b'{"tokens"- 1}\n', b'{"tokens": ["a]}\n'])
def test_streams_of_broken_json_name_their_file(tmp_path, content):
    path = write(tmp_path / "a.jsonl", content)
    with pytest.raises(ValueError, match=r"^train split \(.*a\.jsonl\)"):
        list(open_token_streams(train_file=path)["train"])


@pytest.mark.parametrize("text", [7, ["a"], {"a": 1}])
def test_bad_texts_of_a_classification_file_are_named(tmp_path, text):
    rows = [{"text": "a", "label": "x"}, {"text": text, "label": "y"}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    # datasets 4.0 refuses such a file itself, by the same names
    named = r"train split \(.*a\.jsonl\), row 1, field `text`|a\.jsonl cannot be read.*Column\(/text\).* in row 1"
    with pytest.raises(ValueError, match=named):
        load_classification_dataset(train_file=path, cache_dir=tmp_path)


def test_mixed_schemes_name_files_and_rows(tmp_path):
    for name, tag in (("train", "E-X"), ("dev", "U-Y")):
        write(tmp_path / f"{name}.conll", f"a O\n\nb O\nc {tag}\n")
    message = (
        r"^train split \(.*train\.conll\), then validation split \(.*dev\.conll\), rows counted through: The tags mix "
        r"the schemes BIOES \('E-X' in row 1, position 1\) and BILOU \('U-Y' in row 3, position 1\)"
    )
    with pytest.raises(ValueError, match=message):
        load_token_classification_dataset(
            train_file=tmp_path / "train.conll", validation_file=tmp_path / "dev.conll", cache_dir=tmp_path
        )
