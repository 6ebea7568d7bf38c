"""Files as people have them, and broken ones: the right rows, or an error that names the file, the row and the field."""

import json

import datasets
import pandas
import pytest
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vtfusion.training.arguments import CaptionDataArguments
from vtfusion.training.captions import open_caption_streams
from vtfusion.training.classification_data import load_classification_dataset
from vtfusion.training.tags import find_stray_inside_tags, split_tag, to_iob2
from vtfusion.training.token_data import _stream_conll, load_token_classification_dataset, open_token_streams
from writing import write, write_jsonl

WORDS, TAGS = [["Anna", "Lee"], ["Rome"]], [["B-PER", "I-PER"], ["B-LOC"]]
ROWS = [{"tokens": words, "ner_tags": tags} for words, tags in zip(WORDS, TAGS, strict=True)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = "tokens,ner_tags\nAnna Lee,B-PER I-PER\nRome,B-LOC\n"
CONLL = "Anna B-PER\nLee I-PER\n\nRome B-LOC\n"


def load(path):
    """Words and tags of a file, which a stream of it has too."""
    split = load_token_classification_dataset(train_file=path)["train"]
    names = split.features["ner_tags"].feature.names
    rows = [(row["tokens"], [names[tag] for tag in row["ner_tags"]]) for row in split]
    assert [row["tokens"] for row in open_token_streams(train_file=path)["train"]] == [words for words, _ in rows]
    return rows


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", JSONL), ("a.csv", CSV), ("a.conll", CONLL)])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.rstrip("\n"),
        lambda text: text + "\n\n",
    ],
    ids=["crlf", "byte order mark", "no last line break", "blank lines at the end"],
)
def test_ways_to_write_the_same_file(tmp_path, name, text, change):
    assert load(write(tmp_path / name, change(text))) == list(zip(WORDS, TAGS, strict=True))


@pytest.mark.parametrize(
    "text",
    [
        CONLL.replace(" ", "\t"),
        CONLL.replace(" ", "  "),
        CONLL.replace(" ", " \t"),
        CONLL.replace(" ", "\t").replace("B-PER", "B-PER "),
        CONLL.replace("\n", " \n"),
        " " + CONLL.replace("\n", "\n "),
        CONLL.replace("\n\n", "\n \t\n\n"),
        CONLL.replace("\n", "\r"),
        "-DOCSTART-\n\n" + CONLL,
        "-DOCSTART- -X-\n" + CONLL,
    ],
)
def test_ways_to_write_the_same_columns(tmp_path, text):
    assert load(write(tmp_path / "a.conll", text)) == list(zip(WORDS, TAGS, strict=True))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.conll", (CONLL + "é O\n").encode("latin-1"), r"a\.conll, line 5: not UTF-8 text"),
        ("a.conll", CONLL.encode("utf-16"), r"a\.conll, line 1: not UTF-8 text"),
        ("a.conll", CONLL.encode("utf-16-le"), r"a\.conll, line 1: a NUL byte"),
        ("a.conll", CONLL + "a\0b O\n", r"a\.conll, line 5: a NUL byte"),
        ("a.conll", CONLL + "x\n", r"a\.conll, line 5: expected 2 columns"),
        ("a.jsonl", (JSONL + JSONL.replace("Anna", "é")).encode("latin-1"), r"a\.jsonl, line 3: not UTF-8 text"),
        ("a.jsonl", JSONL.encode("utf-16"), r"a\.jsonl, line 1: not UTF-8 text"),
        (
            "a.jsonl",
            JSONL + JSONL.replace("Anna", "\\ud83d"),
            r"a\.jsonl, line 3, field `tokens`: half of a character",
        ),
        ("a.jsonl", JSONL + JSONL.replace("Anna", "a\0b"), r"a\.jsonl, line 3: not valid JSON"),
        ("a.jsonl", JSONL + "{" * 100_000 + "\n", r"a\.jsonl, line 3: not valid JSON"),
        ("a.csv", (CSV + "é,O\n").encode("latin-1"), r"a\.csv, line 4: not UTF-8 text"),
        ("a.csv", CSV + "Rome,B-LOC,x\n", r"a\.csv cannot be read as csv: .*line 4"),
        ("a.csv", CSV + "Rome\n", r"a\.csv\), row 2: 1 words in field `tokens` but 0 tags in field `ner_tags`"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        load_token_classification_dataset(train_file=write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", (JSONL + JSONL.replace("Anna", "é")).encode("latin-1")),
        ("a.jsonl", JSONL + JSONL.replace("Anna", "\\ud83d")),
        ("a.csv", CSV + "Rome,B-LOC,x\n"),
        ("a.json", "[1,2"),
    ],
)
def test_what_cannot_be_read_as_a_stream_is_named(tmp_path, name, content):
    text = content if isinstance(content, bytes) else content.encode()
    path = write(tmp_path / name, text.replace(b"tokens", b"text").replace(b"ner_tags", b"image"))
    with pytest.raises(ValueError, match=rf"train split \(.*{name}\).* cannot be read") as error:
        stream = open_caption_streams(CaptionDataArguments(train_file=str(path)))["train"]
        for _ in zip(range(10), stream, strict=False):
            pass
    assert str(path) in str(error.value)


def assert_nul_is_named(tmp_path, name, text):
    file = write(tmp_path / name, text)
    with pytest.raises(ValueError, match=rf"train split \(.*{name}\): the column 'n\\x00x' has a NUL"):
        open_token_streams(train_file=file)
    with pytest.raises(ValueError, match=rf"{name} cannot be read"):
        load_token_classification_dataset(train_file=file)


def test_a_nul_in_the_name_of_a_json_field_is_named(tmp_path):
    assert_nul_is_named(tmp_path, "a.jsonl", JSONL.replace("}", ', "n\\u0000x": 1}'))


@pytest.mark.skipif(pandas.__version__ < "3", reason="this pandas ends a name at the NUL")
def test_a_nul_in_the_name_of_a_csv_column_is_named(tmp_path):
    assert_nul_is_named(tmp_path, "a.csv", "tokens,ner_tags,n\0x\nRome,B-LOC,1\n")


def test_escaped_nul_and_odd_line_ends_stay_in_their_words(tmp_path):
    words = ["a\0b", "c\u2028d", "e\x85f", "g\x0bh", "\ufeff"]
    row = {"tokens": words, "ner_tags": ["O"] * len(words)}
    for ascii_only in (True, False):
        file = write(tmp_path / "a.jsonl", json.dumps(row, ensure_ascii=ascii_only) + "\n")
        assert load(file) == [(words, row["ner_tags"])]


def test_very_long_lines_and_words(tmp_path):
    many, long = {"tokens": ["w"] * 200_000, "ner_tags": ["O"] * 200_000}, "x" * 3_000_000
    text = JSONL + json.dumps(many) + "\n" + json.dumps({"tokens": [long], "ner_tags": ["O"]}) + "\n" + JSONL
    rows = load_token_classification_dataset(train_file=write(tmp_path / "a.jsonl", text))["train"]
    assert [len(words) for words in rows["tokens"]] == [2, 1, 200_000, 1, 2, 1] and rows[3]["tokens"] == [long]
    assert load(write(tmp_path / "a.conll", f"{long} O\n\n{CONLL}"))[0] == ([long], ["O"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", JSONL + json.dumps({"tokens": ["x" * 2000], "ner_tags": ["O"]}) + "\n"),
        ("a.conll", CONLL.split("\n")[0] + f"\n{'x' * 2000} O\n"),
        ("a.csv", "tokens,ner_tags\n" + "x" * 2000),
        ("a.tsv", "tokens\tner_tags\n" + "x" * 2000),
    ],
)
def test_a_line_that_is_too_long_for_any_reader_is_named(tmp_path, monkeypatch, name, text):
    monkeypatch.setattr("vtfusion.training.sources.MAX_LINE_BYTES", 1000)
    file = write(tmp_path / name, text)
    number = next(number for number, line in enumerate(text.split("\n"), 1) if len(line) > 1000)
    with pytest.raises(ValueError, match=rf"{name}, line {number}: longer than 1,000 bytes"):
        load_token_classification_dataset(train_file=file)


# Mixed types -----------------------------------------------------------------------------------------------------------


needs_json = pytest.mark.skipif(not hasattr(datasets, "Json"), reason="this datasets reads no column of mixed types")


@needs_json
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a b", None),
        ({"a": 1}, "expected a list of words, got {'a': 1}"),
        (3, "expected a list of words, got 3"),
        (["a", ["b"]], r"expected strings, got \['b'\] \(list\) at position 1"),
        ([["a"]], r"expected strings, got \['a'\] \(list\) at position 0"),
    ],
)
def test_a_row_of_another_type_changes_no_other_row(tmp_path, words, message):
    """`datasets` keeps a column of mixed types as JSON, whose quotation marks are no part of a word."""
    file = write(tmp_path / "a.jsonl", JSONL + json.dumps({"tokens": words, "ner_tags": ["O", "O"]}) + "\n")
    if message is None:
        assert load(file)[0][0] == WORDS[0] and load(file)[2] == (["a", "b"], ["O", "O"])
        return
    for read in (
        lambda: load_token_classification_dataset(train_file=file),
        lambda: list(open_token_streams(train_file=file)["train"]),
    ):
        with pytest.raises(ValueError, match=message) as error:
            read()
        assert f"train split ({file}), row 2, field `tokens`" in str(error.value)


@needs_json
def test_mixed_kinds_of_images_in_a_column(tmp_path):
    (tmp_path / "a.png").touch()
    images = ["a.png", ["a.png", None, "a.png"], None, {"path": "a.png"}, [], "", [{"path": "a.png"}]]
    expected = [1, 2, 0, 1, 0, 0, 1]
    rows = [{"text": "t", "label": "x", "image": image} for image in images]
    file = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    item = {"bytes": None, "path": str(tmp_path / "a.png")}
    loaded = load_classification_dataset(train_file=file)[0]["train"]
    assert loaded["images"][:] == [[item] * count or None for count in expected]
    stream = open_caption_streams(CaptionDataArguments(validation_file=str(file)))["validation"]
    assert [row["images"] for row in stream] == [[item] * count for count in expected]
    assert [row["captions"] for row in stream] == [["t"]] * len(rows)


@pytest.mark.parametrize(("name", "other"), [("a[1]", "a1"), ("a?", "ab"), ("a*", "ab")])
def test_a_name_is_no_pattern(tmp_path, name, other):
    for text, folder in ((WORDS[0], name), (WORDS[1], other)):
        write_jsonl(tmp_path / folder / f"{folder}.jsonl", [{"tokens": text, "ner_tags": ["B-PER"] * len(text)}])
    folder = tmp_path / name
    assert [words for words, _ in load(folder / f"{name}.jsonl")] == [WORDS[0]]  # streamed, too
    for read in (load_token_classification_dataset, open_token_streams):
        with pytest.raises(ValueError, match=r"would take the name of the folder .* for a pattern. Rename"):
            read(str(folder))


def test_splits_need_not_have_the_same_columns(tmp_path):
    rows = {
        "train": {**ROWS[0], "id": 1, "image": None},
        "validation": {**ROWS[0], "id": "x"},
        "test": {"tokens": "Anna Lee", "ner_tags": "B-PER I-PER", "images": []},
    }
    files = {f"{name}_file": write(tmp_path / f"{name}.jsonl", json.dumps(row)) for name, row in rows.items()}
    loaded = load_token_classification_dataset(**files)
    assert [part[0]["tokens"] for part in loaded.values()] == [WORDS[0]] * 3
    assert [part[0]["images"] for part in loaded.values()] == [None] * 3
    write(tmp_path / "test.jsonl", json.dumps({"tokens": ["a"]}))
    with pytest.raises(ValueError, match=r"test split \(.*test\.jsonl\): say with `tags_column`"):
        load_token_classification_dataset(**files)


# Any sentences, written in any style -----------------------------------------------------------------------------------

in_a_word = st.characters(codec="utf-8", exclude_characters=" \t\n\r\0\ufeff")
plain_words = st.text(in_a_word, min_size=1, max_size=6).filter(lambda word: word[:6] != "IMGID:")
entity_tags = st.one_of(st.just("O"), st.builds("{}-{}".format, st.sampled_from("BIESLU"), plain_words))
sentence_lists = st.lists(st.lists(st.tuples(plain_words, entity_tags), min_size=1, max_size=4), max_size=4)
styles = st.fixed_dictionaries(
    {
        "delimiter": st.sampled_from([" ", "\t", "  "]),
        "end": st.sampled_from(["\n", "\r\n", "\r"]),
        "blank": st.sampled_from(["", " ", "\t"]),
        "blanks": st.integers(1, 3),
        "trailing": st.sampled_from(["", " "]),
        "columns": st.integers(0, 3),
        "mark": st.booleans(),
        "docstart": st.booleans(),
        "last": st.booleans(),
    }
)


def as_conll(sentences, style):
    middle = [f"c{number}" for number in range(style["columns"])]
    blocks = ["-DOCSTART- -X- O O"] if style["docstart"] else []
    for sentence in sentences:
        lines = [style["delimiter"].join([word, *middle, tag]) + style["trailing"] for word, tag in sentence]
        blocks.append(style["end"].join(lines))
    between = style["end"] + (style["blank"] + style["end"]) * style["blanks"]
    return ("\ufeff" if style["mark"] else "") + between.join(blocks) + (style["end"] if style["last"] else "")


@given(sentences=sentence_lists, style=styles)
@settings(max_examples=150)
@example(
    sentences=[[("-DOCSTART-ish", "O"), ("#", "B-#")], [("New\u00a0York", "B-\x85")]],
    style={
        **{"delimiter": "\t", "end": "\n", "blank": "", "blanks": 1, "trailing": " "},
        **{"columns": 0, "mark": True, "docstart": True, "last": False},
    },
)
def test_sentences_come_back_from_conll_in_any_style(tmp_path_factory, sentences, style):
    sentences = [[("first", "O")], *sentences]  # tells the number of columns; `# …` in its place would be a comment
    path = tmp_path_factory.getbasetemp() / "any.conll"
    path.write_bytes(as_conll(sentences, style).encode())
    rows = [list(zip(row["tokens"], row["ner_tags"], strict=True)) for row in _stream_conll(str(path))]
    assert rows == sentences


@given(rows=st.lists(st.lists(st.text(max_size=5), min_size=1, max_size=4), min_size=1, max_size=3))
@settings(max_examples=20)
def test_any_words_come_back_from_parquet_and_json(tmp_path_factory, rows):
    folder = tmp_path_factory.getbasetemp()
    rows = [{"tokens": words, "ner_tags": ["O"] * len(words)} for words in rows]
    Dataset.from_list(rows).to_parquet(folder / "any.parquet")
    write(folder / "any.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    for name in ("any.parquet", "any.jsonl"):
        assert [row["tokens"] for row in open_token_streams(train_file=folder / name)["train"]] == [
            row["tokens"] for row in rows
        ]


# Tags ------------------------------------------------------------------------------------------------------------------

types = st.sampled_from(["PER", "LOC", "B-X", "-", "O"])
# lengths of runs of words, each an entity of a type or none
runs = st.lists(st.tuples(st.integers(1, 4), st.one_of(st.none(), types)), max_size=6)


def tags_of(entities, scheme):
    tags, before = [], None
    for length, kind in entities:
        if kind is None:
            tags += ["O"] * length
        elif scheme in ("BIOES", "BILOU"):
            last, single = ("E", "S") if scheme == "BIOES" else ("L", "U")
            inner = [f"B-{kind}", *[f"I-{kind}"] * (length - 2), f"{last}-{kind}"]
            tags += [f"{single}-{kind}"] if length == 1 else inner
        else:
            begins = scheme == "IOB2" or before == kind
            tags += [f"{'B' if begins else 'I'}-{kind}", *[f"I-{kind}"] * (length - 1)]
        before = kind
    return tags


@given(entities=runs, scheme=st.sampled_from(["IOB1", "IOB2", "BIOES", "BILOU"]))
def test_entities_are_the_same_in_every_scheme(entities, scheme):
    expected = tags_of(entities, "IOB2")
    tags = tags_of(entities, scheme)
    assert to_iob2(tags, scheme) == to_iob2(tags) == expected
    assert find_stray_inside_tags([tags], scheme).count == 0


@given(tags=st.lists(entity_tags, max_size=8))
def test_any_tags_become_iob2_of_the_same_types(tags):
    converted = to_iob2(tags)
    assert [split_tag(tag)[1] for tag in converted] == [split_tag(tag)[1] for tag in tags]
    assert find_stray_inside_tags([converted]).count == 0
    assert to_iob2(converted, "IOB2") == converted


@given(tags=st.lists(st.one_of(st.text(max_size=4), st.none(), st.integers(), st.lists(st.none())), max_size=4))
def test_what_is_no_tag_is_named(tags):
    def readable(tag):
        return isinstance(tag, str) and (tag == "O" or (len(tag) > 2 and tag[0] in "BIESLU" and tag[1] == "-"))

    if all(map(readable, tags)):
        assert len(to_iob2(tags)) == len(tags)
        return
    position = next(place for place, tag in enumerate(tags) if not readable(tag))
    with pytest.raises(ValueError, match=f"row 5, position {position}: "):
        to_iob2(tags, row=5)
