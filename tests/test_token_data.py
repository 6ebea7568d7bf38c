import json
import logging
import os
from pathlib import Path

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, load_dataset

from vtfusion.training.columns import TrainedLabels
from vtfusion.training.token_data import load_token_classification_dataset, open_token_streams
from writing import write, write_jsonl

ROWS = [
    {"id": "a", "tokens": ["Anna", "Lee", "in", "Rome"], "ner_tags": ["B-PER", "I-PER", "O", "B-LOC"]},
    {"id": "b", "tokens": ["no", "entity"], "ner_tags": ["O", "O"]},
]
LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
INDICES = [[3, 4, 0, 1], [0, 0]]


@pytest.fixture
def load(tmp_path):
    def _load(*args, **kwargs):
        return load_token_classification_dataset(*args, cache_dir=tmp_path / "cache", **kwargs)

    return _load


def with_images(*images, name="image"):
    return [{**ROWS[i % 2], name: image} for i, image in enumerate(images)]


def names(dataset, split="train"):
    return dataset[split].features["ner_tags"].feature.names


def assert_is_rows(split):
    assert split.features["tokens"] == List(Value("string"))
    assert split.features["ner_tags"] == List(ClassLabel(names=LABELS))
    assert split["tokens"][:] == [row["tokens"] for row in ROWS]
    assert split["ner_tags"][:] == INDICES


# Formats


def as_json(folder):
    return write(folder / "a.json", json.dumps(ROWS))


def as_jsonl(folder):
    return write_jsonl(folder / "a.jsonl", ROWS)


def as_parquet(folder):
    Dataset.from_list(ROWS).to_parquet(folder / "a.parquet")
    return folder / "a.parquet"


def as_csv_words(folder):
    frame = pd.DataFrame({key: [" ".join(row[key]) for row in ROWS] for key in ("tokens", "ner_tags")})
    frame.to_csv(folder / "a.csv", index=False)
    return folder / "a.csv"


def as_csv_json(folder):
    frame = pd.DataFrame({key: [json.dumps(row[key]) for row in ROWS] for key in ("tokens", "ner_tags")})
    frame.to_csv(folder / "a.csv", index=False)
    return folder / "a.csv"


def as_csv_of_pandas(folder):
    pd.DataFrame(ROWS).to_csv(folder / "a.csv", index=False)  # lists as Python prints them
    return folder / "a.csv"


def as_conll(folder):
    lines = ["\n".join(map(" ".join, zip(row["tokens"], row["ner_tags"], strict=True))) for row in ROWS]
    return write(folder / "a.conll", "-DOCSTART- O\n\n" + "\n\n".join(lines))


def as_tsv(folder):
    lines = ["\n".join(map("\t".join, zip(row["tokens"], row["ner_tags"], strict=True))) for row in ROWS]
    return write(folder / "a", "\n\n\n".join(lines) + "\n \n")  # a file without an ending


def as_tsv_by_name(folder):
    return as_tsv(folder).rename(folder / "a.tsv")  # a table with a header elsewhere, CoNLL columns here


def as_folder(folder):
    return write_jsonl(folder / "set" / "metadata.jsonl", ROWS).parent


def as_saved(folder):
    Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return folder / "saved"


every_format = pytest.mark.parametrize(
    "make",
    [
        as_json,
        as_jsonl,
        as_parquet,
        as_csv_words,
        as_csv_json,
        as_csv_of_pandas,
        as_conll,
        as_tsv,
        as_tsv_by_name,
        as_folder,
        as_saved,
    ],
)


@every_format
def test_every_format_gives_the_same(load, tmp_path, make):
    dataset = load(train_file=make(tmp_path))
    assert isinstance(dataset, DatasetDict) and list(dataset) == ["train"]
    assert_is_rows(dataset["train"])
    assert "images" not in dataset["train"].column_names


@every_format
def test_every_format_gives_the_same_words_as_a_stream(load, tmp_path, make):
    file = make(tmp_path)
    streams = open_token_streams(train_file=file)
    rows = list(streams["train"])
    assert [row["tokens"] for row in rows] == load(train_file=file)["train"]["tokens"][:]
    assert streams["train"].features["tokens"] == List(Value("string"))
    assert set(rows[0]) == set(streams["train"].features)


def test_streams_by_name_and_by_column(tmp_path):
    splits = {"train": Dataset.from_list(ROWS), "validation": Dataset.from_list(ROWS[1:])}
    DatasetDict(splits).rename_column("tokens", "said").save_to_disk(tmp_path / "saved")
    streams = open_token_streams(str(tmp_path / "saved"), tokens_column="said")
    assert list(streams) == ["train", "validation"] and "said" not in streams["train"].features
    assert [row["tokens"] for row in streams["validation"]] == [row["tokens"] for row in ROWS[1:]]
    with pytest.raises(ValueError, match="has no column 'words'"):
        open_token_streams(str(tmp_path / "saved"), tokens_column="words")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"tokens": ["a"]}, {"tokens": []}], r"train split \(.*\), row 1, field `tokens`: there are no words"),
        ([{"tokens": [1, 2]}], r"row 0, field `tokens`: expected strings, got 1 \(int\) at position 0"),
        ([{"text": "a b"}], "say with `tokens_column` which of these columns to read: text"),
    ],
)
def test_bad_rows_of_a_stream_are_named(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        list(open_token_streams(train_file=write_jsonl(tmp_path / "a.jsonl", rows))["train"])


def test_saved_dataset_dict_by_name(load, tmp_path):
    splits = {"train": Dataset.from_list(ROWS), "validation": Dataset.from_list(ROWS[1:])}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    dataset = load(str(tmp_path / "saved"))
    assert list(dataset) == ["train", "validation"]
    assert_is_rows(dataset["train"])
    assert dataset["train"]["id"][:] == ["a", "b"]

    with pytest.raises(ValueError, match="give it as `dataset_name`"):
        load(train_file=tmp_path / "saved")
    with pytest.raises(ValueError, match="give it as `train_file`"):
        load(str(tmp_path / "saved" / "train"))


def test_a_saved_format_does_not_matter_and_no_rows_are_an_error(load, tmp_path, monkeypatch):
    Dataset.from_list(ROWS).with_format("numpy").save_to_disk(tmp_path / "numpy")
    assert_is_rows(load(train_file=tmp_path / "numpy")["train"])
    Dataset.from_list(ROWS).select([]).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=r"none\.parquet cannot be read as parquet: .* no data"):
        load(train_file=tmp_path / "none.parquet")
    hub = DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS).select([])})
    monkeypatch.setattr("vtfusion.training.sources.load_dataset", lambda *args, **kwargs: hub)
    with pytest.raises(ValueError, match="test split of someone/ner has no rows"):
        load("someone/ner")


def test_a_hub_name_goes_to_load_dataset(load, monkeypatch, tmp_path):
    seen = []

    def load_dataset(*args, **kwargs):
        seen.append((args, kwargs))
        return DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS)})

    monkeypatch.setattr("vtfusion.training.sources.load_dataset", load_dataset)
    dataset = load("someone/ner", dataset_config_name="en", revision="v1")
    assert seen == [(("someone/ner", "en"), {"revision": "v1", "cache_dir": str(tmp_path / "cache")})]
    assert list(dataset) == ["train", "test"]
    assert_is_rows(dataset["test"])


def test_the_result_is_memory_mapped_and_comes_from_the_cache_again(load, tmp_path):
    file = as_conll(tmp_path)
    first, second = load(train_file=file)["train"], load(train_file=file)["train"]
    assert first.cache_files and first.cache_files == second.cache_files
    assert first._fingerprint == second._fingerprint  # so that a `map` on top is found again too

    write(file, "Rome B-LOC\n")
    assert load(train_file=file)["train"]["tokens"][:] == [["Rome"]]


def test_a_path_with_brackets_and_a_home_folder(load, tmp_path, monkeypatch):
    folder = tmp_path / "data [v2]*"
    folder.mkdir()
    assert_is_rows(load(train_file=as_jsonl(folder))["train"])
    monkeypatch.setenv("HOME", str(folder))
    assert_is_rows(load(train_file="~/a.jsonl")["train"])


# CoNLL columns


def test_conll_columns_get_names(load, tmp_path):
    four = load(train_file=write(tmp_path / "4.txt", "EU NNP I-NP B-ORG\nsays VBZ I-VP O\n"))["train"]
    assert four[0] == {
        "tokens": ["EU", "says"],
        "ner_tags": [1, 0],
        "pos_tags": ["NNP", "VBZ"],
        "chunk_tags": ["I-NP", "I-VP"],
    }
    five = write(tmp_path / "5.txt", "EU a b B-X B-ORG\n")
    assert load(train_file=five)["train"].column_names == ["tokens", "ner_tags", "column_1", "column_2", "column_3"]
    other = load(train_file=five, tags_column="column_3")
    assert names(other) == ["O", "B-X", "I-X"]
    assert other["train"].column_names == ["tokens", "ner_tags", "column_1", "column_2"]


def test_conll_of_tweets(load, tmp_path):
    # Unicode spaces and `#` are part of the words, a comment is not a sentence, a byte order mark is not a letter.
    text = "\ufeff# id 1\na\u00a0b\tO\n#\tO\n# x\tO\n\nIMGID:7\nRome\tB-LOC\nIMGID:8\nx\tO\n"
    dataset = load(train_file=write(tmp_path / "a.txt", text))["train"]
    assert dataset["tokens"][:] == [["a\u00a0b", "#", "# x"], ["Rome"], ["x"]]
    assert dataset["image_id"][:] == [None, "7", "8"]
    assert "images" not in dataset.column_names

    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "7.png").touch()
    (tmp_path / "pictures" / "8.jpg").touch()
    paired = load(train_file=tmp_path / "a.txt", image_folder=tmp_path / "pictures")["train"]
    paths = [row and row[0]["path"] for row in paired["images"]]
    assert paths == [None, str(tmp_path / "pictures" / "7.png"), str(tmp_path / "pictures" / "8.jpg")]
    (tmp_path / "pictures" / "8.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"row 2, field `image`: the image file .*8\.jpg is missing"):
        load(train_file=tmp_path / "a.txt", image_folder=tmp_path / "pictures")


def test_conll_image_ids_are_names_of_images(load, tmp_path):
    ids = [f"{number}.{number}" for number in range(20)]
    text = write(tmp_path / "a.txt", "".join(f"IMGID:{id_}\na O\n\n" for id_ in ids))
    (tmp_path / "pictures").mkdir()
    for place, id_ in enumerate(ids):
        (tmp_path / "pictures" / f"{id_}{('.png', '.JPG', '.webp', '')[place % 4]}").touch()
        for ending in (".txt", ".json", ".npy"):
            (tmp_path / "pictures" / f"{id_}{ending}").touch()
    (tmp_path / "pictures" / f"{ids[0]}.tiff").mkdir()
    dataset = load(train_file=text, image_folder=tmp_path / "pictures")["train"]
    found = [os.path.basename(row[0]["path"]) for row in dataset["images"]]
    assert found == [f"{id_}{('.png', '.JPG', '.webp', '')[place % 4]}" for place, id_ in enumerate(ids)]
    (tmp_path / "pictures" / "17.17.gif").touch()
    (tmp_path / "pictures" / "another.gif").touch()
    (tmp_path / "pictures" / "another.png").touch()
    with pytest.raises(ValueError, match=r"a\.txt\), row 17, field `image`: .*: 17\.17\.JPG and 17\.17\.gif"):
        load(train_file=text, image_folder=tmp_path / "pictures")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("EU B-ORG\nsays\n", r"a\.conll, line 2: expected 2 columns with spaces between them.* got 1: 'says'"),
        ("EU\tO\n\nsays O\n", r"line 3: expected 2 columns with a tab between them.* got 1: 'says O'"),
        ("EU O\nsays VBZ O\n", r"line 2: expected 2 columns .* got 3"),
        ("EU\nsays\n", r"line 1: expected a word and its tag .* got 'EU'"),
        ("-DOCSTART- O\n\n\n", "has no sentence in it"),
        ("", "is empty"),
        ("EU O\n\nsays PER\n", r"train split .*row 1, field `ner_tags`, position 0: 'PER' is not an entity tag"),
    ],
)
def test_bad_conll_lines_are_named(load, tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load(train_file=write(tmp_path / "a.conll", text))


def test_what_is_no_text_is_no_conll(load, tmp_path):
    (tmp_path / "a.txt").write_bytes("caf\u00e9 O\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt, line 1: not UTF-8 text"):
        load(train_file=tmp_path / "a.txt")
    (tmp_path / "a.xlsx").write_bytes(b"PK\0\0")
    with pytest.raises(ValueError, match=r"'\.xlsx' is none of \.jsonl"):
        load(train_file=tmp_path / "a.xlsx")


# Tags and labels


def test_labels_are_the_same_in_all_splits_and_new_ones_are_reported(load, tmp_path, caplog):
    train = write_jsonl(tmp_path / "train.jsonl", ROWS)
    test = write_jsonl(tmp_path / "test.jsonl", [{"tokens": ["UN", "x"], "ner_tags": ["B-ORG", "O"]}])
    with caplog.at_level(logging.WARNING):
        dataset = load(train_file=train, test_file=test)
    assert names(dataset) == names(dataset, "test") == [*LABELS[:3], "B-ORG", "I-ORG", *LABELS[3:]]
    assert dataset["test"]["ner_tags"][0] == [3, 0]
    assert [r.getMessage() for r in caplog.records] == [
        f"test split ({test}): no row of the train split has the labels B-ORG."
    ]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["I-PER", "I-PER", "B-PER", "I-LOC"], ["B-PER", "I-PER", "B-PER", "B-LOC"]),
        (["B-PER", "E-PER", "S-PER", "S-LOC"], ["B-PER", "I-PER", "B-PER", "B-LOC"]),
        (["B-PER", "L-PER", "U-PER", "U-LOC"], ["B-PER", "I-PER", "B-PER", "B-LOC"]),
    ],
)
def test_other_schemes_become_iob2(load, tmp_path, caplog, tags, expected):
    file = write_jsonl(tmp_path / "a.jsonl", [{"tokens": list("abcd"), "ner_tags": tags}])
    with caplog.at_level(logging.WARNING):
        dataset = load(train_file=file)
    assert names(dataset) == LABELS
    assert [LABELS[i] for i in dataset["train"][0]["ner_tags"]] == expected
    assert not caplog.records


def test_stray_inside_tags_are_reported_every_time(load, tmp_path, caplog):
    rows = [*ROWS, {"id": "c", "tokens": list("abc"), "ner_tags": ["O", "I-PER", "I-LOC"]}]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            dataset = load(train_file=file)
        (record,) = caplog.records
        assert "2 tags continue" in record.getMessage()
        assert "I-PER in row 2, position 1" in record.getMessage()
    assert dataset["train"][2]["ner_tags"] == [0, 3, 1]


def test_scheme_can_be_given(load, tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", [{"tokens": ["a"], "ner_tags": ["S-PER"]}])
    with pytest.raises(ValueError, match="row 0, position 0: tag 'S-PER' does not belong to the scheme IOB2"):
        load(train_file=file, tag_scheme="iob2")
    with pytest.raises(ValueError, match="Unknown `tag_scheme` 'BIO'"):
        load(train_file=file, tag_scheme="BIO")
    assert names(load(train_file=file, tag_scheme="bioes")) == ["O", "B-PER", "I-PER"]


def test_integer_tags_with_class_label_keep_the_order_of_the_labels(load, tmp_path):
    order = ["O", "B-PER", "I-PER", "B-MISC", "I-MISC", "B-LOC", "I-LOC"]
    features = Features({"words": List(Value("string")), "tags": List(ClassLabel(names=order))})
    rows = [{"words": ROWS[0]["tokens"], "tags": [1, 2, 0, 5]}]
    DatasetDict({"train": Dataset.from_list(rows, features=features)}).save_to_disk(tmp_path / "saved")
    dataset = load(str(tmp_path / "saved"))
    assert names(dataset) == order
    assert dataset["train"]["ner_tags"][0] == [1, 2, 0, 5]

    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=["S-X", "O", "B-X", "E-X"]))})
    Dataset.from_list([{"tokens": list("abc"), "tags": [0, 2, 3]}], features=features).save_to_disk(tmp_path / "one")
    dataset = load(train_file=tmp_path / "one")
    assert names(dataset) == ["O", "B-X", "I-X"]
    assert dataset["train"]["ner_tags"][0] == [1, 1, 2]


def test_integer_tags_with_labels(load, tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", [{"tokens": ["Rome", "x"], "ner_tags": [2, 0]}])
    with pytest.raises(ValueError, match=r"field `ner_tags`: the tags are integers. Say what they mean with `labels`"):
        load(train_file=file)
    dataset = load(train_file=file, labels=["O", "B-PER", "B-LOC"])
    assert names(dataset) == ["O", "B-PER", "B-LOC"]
    assert dataset["train"]["ner_tags"][0] == [2, 0]
    with pytest.raises(ValueError, match="row 0, field `ner_tags`, position 0: the tag is 2, but there are 2 label"):
        load(train_file=file, labels=["O", "B-PER"])


def test_labels_fix_the_order_of_string_tags(load, tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", ROWS)
    order = ["B-PER", "I-PER", "B-LOC", "I-LOC", "O"]
    dataset = load(train_file=file, labels=order)
    assert names(dataset) == order
    assert dataset["train"]["ner_tags"][0] == [0, 1, 4, 2]
    with pytest.raises(ValueError, match="row 0: the label 'B-LOC' is not among the `labels`"):
        load(train_file=file, labels=["O", "B-PER", "I-PER"])


def test_labels_of_a_trained_model_keep_their_order(load, tmp_path):
    train = write_jsonl(tmp_path / "a.jsonl", ROWS)
    trained = TrainedLabels(["B-PER", "I-PER", "B-LOC", "I-LOC", "O", "B-ORG", "I-ORG"])
    fewer = TrainedLabels(["O", "B-PER", "I-PER"])
    for labels in (None, ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]):
        dataset = load(train_file=train, labels=labels, trained=trained)
        assert names(dataset) == trained.names and dataset["train"]["ner_tags"][0] == [0, 1, 4, 2]
    # others than the model knows: a training begins with a new head, a test cannot be made
    assert names(load(train_file=train, trained=fewer)) == names(load(train_file=train))
    with pytest.raises(ValueError, match="row 0: the label 'B-LOC' is not among the `labels`"):
        load(test_file=train, trained=fewer)
    with pytest.raises(ValueError, match=r"a\.jsonl.*: the model does not know the labels B-LOC, I-LOC"):
        load(test_file=train, labels=["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], trained=fewer)


def test_integers_mean_what_a_trained_model_says_where_nothing_is_trained(load, tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", [{"tokens": ["Rome", "x"], "ner_tags": [2, 0]}])
    dataset = load(test_file=file, trained=TrainedLabels(["O", "B-PER", "B-LOC"]))
    assert names(dataset, "test") == ["O", "B-PER", "B-LOC"] and dataset["test"]["ner_tags"][0] == [2, 0]
    with pytest.raises(ValueError, match=r"the tags are integers. Say what they mean with `labels`"):
        load(train_file=file, trained=TrainedLabels(["O", "B-PER", "B-LOC"]))


# Rows and columns


# datasets 4.0 cannot read a JSON list of mixed types at all, and says in which row it stopped.
MIXED = "cannot be read as json: .* changed from string to number in row 2"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "ner_tags": ["O"]}, "2 words in field `tokens` but 1 tags in field `ner_tags`"),
        ({"tokens": [], "ner_tags": []}, "field `tokens`: there are no words"),
        ({"tokens": ["a", 1], "ner_tags": ["O", "O"]}, rf"expected strings, got 1 \(int\) at position 1|{MIXED}"),
        ({"tokens": ["a", None], "ner_tags": ["O", "O"]}, r"expected strings, got None \(NoneType\) at position 1"),
        ({"tokens": None, "ner_tags": ["O"]}, "field `tokens`: expected a list of words, got None"),
        ({"tokens": ["a"], "ner_tags": None}, "field `ner_tags`: expected a list of tags, got None"),
        ({"tokens": ["a"]}, "field `ner_tags`: expected a list of tags, got None"),
        ({"tokens": ["a"], "ner_tags": [None]}, "position 0: expected a tag such as 'B-PER', got None"),
        ({"tokens": ["a"], "ner_tags": ["PER"]}, "field `ner_tags`, position 0: 'PER' is not an entity tag"),
        ({"tokens": ["a"], "ner_tags": [1]}, f"position 0: the tag is the integer 1. Say what|{MIXED}"),
    ],
)
def test_bad_rows_are_named(load, tmp_path, row, message):
    file = write_jsonl(tmp_path / "a.jsonl", [*ROWS, row])
    with pytest.raises(ValueError, match=message) as error:
        load(validation_file=file)
    where = (f"validation split ({file}), row 2", f"{file} cannot be read")
    assert any(place in str(error.value) for place in where)


def test_empty_and_odd_words_are_words(load, tmp_path):
    tokens = ["", " ", "👩‍👩‍👧", "שלום", "NA", "null", '"']
    file = write_jsonl(tmp_path / "a.jsonl", [{"tokens": tokens, "ner_tags": ["O"] * len(tokens)}])
    assert load(train_file=file)["train"]["tokens"][0] == tokens
    csv = write(tmp_path / "a.csv", 'tokens,ner_tags\nNA,B-LOC\n"[ ""x"" ]",O O O\n')
    assert load(train_file=csv)["train"]["tokens"][:] == [["NA"], ["[", '"x"', "]"]]


def test_broken_json_lines_are_named(load, tmp_path):
    file = write(tmp_path / "a.jsonl", json.dumps(ROWS[0]) + '\n{"tokens": ["a"]\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not valid JSON"):
        load(train_file=file)
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as parquet"):
        load(train_file=write(tmp_path / "a.parquet", "nothing"))


def test_columns_are_found_or_asked_for(load, tmp_path, caplog):
    words = write_jsonl(tmp_path / "a.jsonl", [{"words": ["Rome"], "tags": ["B-LOC"], "score": 1.5}])
    assert load(train_file=words)["train"][0] == {"tokens": ["Rome"], "ner_tags": [1], "score": 1.5}

    other = write_jsonl(tmp_path / "b.jsonl", [{"w": ["Rome"], "t": ["B-LOC"]}])
    with pytest.raises(ValueError, match=r"say with `tokens_column` and `tags_column` which of these .*: w, t"):
        load(train_file=other)
    with pytest.raises(ValueError, match="say with `tags_column` which"):
        load(train_file=other, tokens_column="w")
    with pytest.raises(ValueError, match=r"has no column 'word' \(`tokens_column`\). It has: w, t\."):
        load(train_file=other, tokens_column="word")
    assert load(train_file=other, tokens_column="w", tags_column="t")["train"][0]["ner_tags"] == [1]

    both = write_jsonl(tmp_path / "c.jsonl", [{"tokens": ["a"], "tags": ["O"], "labels": ["O"]}])
    with pytest.raises(ValueError, match="has the columns tags and labels: say which one with `tags_column`"):
        load(train_file=both)

    clash = write_jsonl(tmp_path / "d.jsonl", [{"tokens": ["a"], "words": ["b"], "ner_tags": ["O"], "id": 3}])
    with caplog.at_level(logging.WARNING):
        assert load(train_file=clash, tokens_column="words")["train"][0] == {"tokens": ["b"], "ner_tags": [0], "id": 3}
    assert "column tokens is replaced" in caplog.text


def test_sources_are_checked(load, tmp_path):
    with pytest.raises(ValueError, match="Give either"):
        load()
    with pytest.raises(ValueError, match="Give either"):
        load("name", train_file="a.jsonl")
    with pytest.raises(FileNotFoundError, match=r"no\.jsonl given for the test split does not exist"):
        load(test_file=tmp_path / "no.jsonl")
    with pytest.raises(FileNotFoundError, match=r"has none of metadata\.jsonl"):
        load(train_file=tmp_path)
    with pytest.raises(FileNotFoundError, match="`image_folder`"):
        load(train_file=as_jsonl(tmp_path), image_folder=tmp_path / "no")


# Images


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "set" / "images").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (tmp_path / "set" / "images" / name).write_bytes(b"no image: opening it would raise")
    return tmp_path / "set"


def test_images_may_be_missing_single_or_many(load, pictures):
    a, b = ({"bytes": None, "path": str(pictures / "images" / name)} for name in ("a.png", "b.png"))
    many = with_images(["images/a.png", None, "images/b.png"], [], None, [None], [""], name="images")
    dataset = load(train_file=write_jsonl(pictures / "many.jsonl", many))["train"]
    assert dataset.features["images"] == List(Image(decode=False))
    assert dataset["images"][:] == [[a, b], None, None, None, None]

    single = with_images("images/a.png", None, "", b["path"], "images/../images/b.png")
    dataset = load(train_file=write_jsonl(pictures / "single.jsonl", single))["train"]
    assert dataset["images"][:] == [[a], None, None, [b], [b]]
    assert dataset.column_names == ["tokens", "ner_tags", "images", "id"]

    dicts = with_images({"path": "images/a.png"}, None, {"path": None})
    assert load(train_file=write_jsonl(pictures / "d.jsonl", dicts))["train"]["images"][:] == [[a], None, None]
    none = write_jsonl(pictures / "none.jsonl", with_images(None, None))
    assert load(train_file=none)["train"]["images"][:] == [None, None]


def test_metadata_folder_and_csv_with_images(load, pictures):
    write_jsonl(pictures / "metadata.jsonl", with_images("images/a.png", None, name="file_name"))
    dataset = load(train_file=pictures)["train"]
    assert dataset["images"][:] == [[{"bytes": None, "path": str(pictures / "images" / "a.png")}], None]
    csv = write(pictures / "a.csv", "tokens,ner_tags,image\na,O,images/a.png\nb,O,\n")
    assert load(train_file=csv)["train"]["images"][:] == dataset["images"][:]


def test_image_features_and_bytes(load, tmp_path, pictures):
    content = {"bytes": b"some bytes", "path": "x.png"}
    path = str(pictures / "images" / "a.png")
    single = Features({"tokens": List(Value("string")), "ner_tags": List(Value("string")), "image": Image()})
    rows = [{"tokens": ["a"], "ner_tags": ["O"], "image": image} for image in (content, None, {"path": path})]
    Dataset.from_list(rows, features=single).to_parquet(tmp_path / "a.parquet")
    dataset = load(train_file=tmp_path / "a.parquet")["train"]
    assert dataset["images"][0] == [content]
    assert dataset["images"][1] is None
    assert dataset["images"][2] is not None

    raw = Dataset.from_list([{"tokens": ["a"], "ner_tags": ["O"], "image": b"some bytes"}])
    raw.to_parquet(tmp_path / "raw.parquet")
    assert load(train_file=tmp_path / "raw.parquet")["train"]["images"][0] == [{"bytes": b"some bytes", "path": None}]


@pytest.mark.parametrize("dirty", [False, True])
def test_lists_of_stored_images_are_taken_as_they_are(load, tmp_path, dirty):
    features = Features({"tokens": List(Value("string")), "ner_tags": List(Value("string")), "images": List(Image())})
    content = {"bytes": b"some bytes", "path": "x.png"}
    lists = [[content, content], None, *([[], [None, content]] if dirty else [])]
    rows = [{"tokens": ["a"], "ner_tags": ["O"], "images": images} for images in lists]
    Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    dataset = load(train_file=tmp_path / "saved")["train"]
    assert dataset.features["images"] == List(Image(decode=False))
    assert dataset["images"][:] == [[content, content], None, *([None, [content]] if dirty else [])]
    files = [Path(file["filename"]).name for file in dataset.cache_files]
    assert ("data-00000-of-00001.arrow" in files) is not dirty  # the images are not in a second file
    assert load(train_file=tmp_path / "saved")["train"]._fingerprint == dataset._fingerprint


def test_load_dataset_of_an_image_folder(load, tmp_path, pictures):
    from PIL import Image as Pillow

    Pillow.new("RGB", (2, 2)).save(pictures / "images" / "a.png")
    write_jsonl(pictures / "images" / "metadata.jsonl", with_images("a.png", name="file_name"))
    (pictures / "images" / "b.png").unlink()
    plain = load_dataset(str(pictures / "images"), cache_dir=str(tmp_path / "cache"))["train"]
    assert isinstance(plain.features["image"], Image)
    dataset = load(str(pictures / "images"))["train"]
    assert dataset["images"][0] == [{"bytes": None, "path": str(pictures / "images" / "a.png")}]


def test_missing_image_files_are_found_before_training(load, pictures):
    rows = with_images("images/a.png", None, "images/gone.png", "images/b.png", "images/lost.png")
    file = write_jsonl(pictures / "a.jsonl", rows)
    with pytest.raises(FileNotFoundError) as error:
        load(train_file=file)
    message = str(error.value)
    assert f"train split ({file}), row 2, field `image`: the image file {pictures / 'images' / 'gone.png'}" in message
    assert "1 other" in message

    for name in ("gone.png", "lost.png"):
        (pictures / "images" / name).touch()
    assert load(train_file=file)["train"]["images"][2] is not None
    (pictures / "images" / "lost.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"row 4, field `image`: the image file .*lost\.png"
    ):  # not hidden by the cache
        load(train_file=file)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (3, "row 2, field `image`: expected the path of an image, its bytes, or a dict .* got 3"),
        ({"bytes": "text"}, "expected the path of an image, its bytes, or a dict"),
        ("https://example.org/a.png", "is a URL. Nothing is downloaded here"),
    ],
)
def test_bad_images_are_named(load, pictures, image, message):
    file = write_jsonl(pictures / "a.jsonl", with_images(None, None, image))
    with pytest.raises(ValueError, match=message):
        load(train_file=file)


def test_image_columns_are_found_or_asked_for(load, pictures, caplog):
    rows = [{**row, "image": "images/a.png", "images": ["images/b.png"]} for row in ROWS]
    file = write_jsonl(pictures / "a.jsonl", rows)
    with pytest.raises(ValueError, match="has the columns images and image: say which one with `image_column`"):
        load(train_file=file)
    for column, name in (("image", "a.png"), ("images", "b.png")):
        dataset = load(train_file=file, image_column=column)["train"]
        assert dataset["images"][0][0]["path"] == str(pictures / "images" / name)
    with pytest.raises(ValueError, match=r"no column 'img' \(`image_column`\)"):
        load(train_file=file, image_column="img")

    other = write_jsonl(pictures / "b.jsonl", ROWS)
    train = write_jsonl(pictures / "c.jsonl", with_images("images/a.png"))
    with caplog.at_level(logging.WARNING):
        dataset = load(train_file=train, test_file=other)
    assert dataset["test"].features == dataset["train"].features
    assert dataset["test"]["images"][:] == [None, None]
    assert "has no image column" in caplog.text


def test_relative_paths_start_from_the_file_or_the_image_folder(load, tmp_path, pictures):
    file = write_jsonl(tmp_path / "a.jsonl", with_images("images/a.png"))
    with pytest.raises(FileNotFoundError):
        load(train_file=file)
    dataset = load(train_file=file, image_folder=pictures)["train"]
    assert dataset["images"][0][0]["path"] == str(pictures / "images" / "a.png")


def test_without_a_folder_relative_paths_are_refused(load, monkeypatch):
    hub = DatasetDict({"train": Dataset.from_list(with_images("a.png"))})
    monkeypatch.setattr("vtfusion.training.sources.load_dataset", lambda *args, **kwargs: hub)
    with pytest.raises(ValueError, match=r"'a\.png' is a relative path. Say with `image_folder`"):
        load("someone/ner")


# Real data


def test_conll2003_in_both_schemes(load, real, caplog):
    folder = real("conll2003")
    with caplog.at_level(logging.WARNING):
        new = load(validation_file=folder / "valid.txt")["validation"]
        old = load(validation_file=folder / "iob1" / "eng.testa")["validation"]
    assert not caplog.records
    assert (len(new), sum(map(len, new["tokens"]))) == (3250, 51362)
    assert new["tokens"][:] == old["tokens"][:] and new["ner_tags"][:] == old["ner_tags"][:]
    begins = [name[2:] for name in new.features["ner_tags"].feature.names]
    counts = {}
    for tags in new["ner_tags"]:
        for tag in tags:
            if tag % 2:  # O, B, I, B, I …
                counts[begins[tag]] = counts.get(begins[tag], 0) + 1
    assert counts == {"LOC": 1837, "ORG": 1341, "PER": 1842, "MISC": 922}


def test_receipts_and_tweets_with_images(load, real):
    receipts = load(validation_file=real("sroie-receipts") / "valid.jsonl")["validation"]
    assert (len(receipts), sum(map(len, receipts["tokens"]))) == (63, 7085)
    assert all(len(images) == 1 and Path(images[0]["path"]).is_file() for images in receipts["images"])
    assert {"id", "boxes", "line_ids"} <= set(receipts.column_names)
    folder = real("twitter-mner-toy-with-images") / "twitter_2015"
    tweets = load(train_file=folder / "train.jsonl", validation_file=folder / "dev.jsonl")
    assert [len(split) for split in tweets.values()] == [5, 5]
