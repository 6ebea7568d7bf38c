"""Texts with labels, questions with answers and captions, from files of every form and from real data."""

import json
import logging
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from vtfusion.training.caption_data import load_caption_dataset
from vtfusion.training.classification_data import load_classification_dataset
from vtfusion.training.columns import TrainedLabels
from vtfusion.training.question_data import load_question_answering_dataset, load_visual_question_answering_dataset
from writing import write_jsonl

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
CONTEXT = "Rome is old. Rome is in Italy."


@pytest.fixture
def load(tmp_path):
    """Loads rows, or files, with one of the loaders: `load(loader, rows, test_file=…)`."""

    def _load(loader, train=None, **kwargs):
        given = {"train_file": train, **kwargs}
        for name, rows in given.items():
            if name.endswith("_file") and isinstance(rows, list):
                given[name] = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        return loader(cache_dir=tmp_path / "cache", **given)

    return _load


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"no image: opening it would raise")
    return str(path)


def labelled(*labels, name="label"):
    return [{"text": f"text {i}", name: label} for i, label in enumerate(labels)]


def asked(answers, context=CONTEXT):
    return {"question": "Where?", "context": context, "answers": answers}


# What all loaders share: each of them reads the same kinds of sources


LOADERS = {
    load_classification_dataset: {"text": "a", "label": "x"},
    load_question_answering_dataset: {"id": "0", "question": "Where?", "context": CONTEXT, "answers": "Italy"},
    load_visual_question_answering_dataset: {"question": "Where?", "answer": "Italy"},
    load_caption_dataset: {"text": "a"},
}


@pytest.fixture(params=LOADERS, ids=lambda loader: loader.__name__)
def loader(request):
    def _loader(*args, **kwargs):
        result = request.param(*args, **kwargs)
        return result if isinstance(result, DatasetDict) else result[0]

    _loader.rows = [LOADERS[request.param]] * 2
    return _loader


def test_every_format_gives_the_same(loader, tmp_path, picture):
    paired = [{**loader.rows[0], "image": image} for image in ("a.png", None)]
    Dataset.from_list(paired).to_parquet(tmp_path / "a.parquet")
    Dataset.from_list(paired).save_to_disk(tmp_path / "saved")
    pd.DataFrame(paired).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame(paired).to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    (tmp_path / "a.json").write_text(json.dumps(paired))
    (tmp_path / "set").mkdir()
    write_jsonl(tmp_path / "set" / "metadata.jsonl", paired)
    DatasetDict({"train": Dataset.from_list(paired)}).save_to_disk(tmp_path / "all")
    files = [tmp_path / name for name in ("a.parquet", "a.csv", "a.tsv", "a.json", "set", "saved")]
    given = [{"train_file": file} for file in (write_jsonl(tmp_path / "a.jsonl", paired), *files)]
    given.append({"dataset_name": str(tmp_path / "all")})
    splits = [loader(**kwargs, image_folder=tmp_path, cache_dir=tmp_path / "cache")["train"] for kwargs in given]
    assert splits[0].features["images"] == List(Image(decode=False))
    assert splits[0]["images"][:] == [[{"bytes": None, "path": picture}], None]
    assert "image" not in splits[0].column_names
    for split in splits[1:]:
        assert split.features == splits[0].features
        assert split[:] == splits[0][:]


def test_tables_with_tabs_have_no_quotation(tmp_path):
    texts = ['say "NA"', 'a lone " is', "a character", '"whole"', "NA", "a, b"]
    rows = "".join(f"{text}\tx\n" for text in texts)
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + rows)
    dataset, _, _ = load_classification_dataset(train_file=tmp_path / "a.tsv", cache_dir=tmp_path / "cache")
    assert dataset["train"]["text"][:] == texts
    (tmp_path / "b.tsv").write_text("text\tlabel\na\tx\nb\tx\ty\n")
    with pytest.raises(ValueError, match=r"b\.tsv cannot be read as csv: .*line 3"):
        load_classification_dataset(train_file=tmp_path / "b.tsv", cache_dir=tmp_path / "cache")


def test_a_hub_name_goes_to_load_dataset(loader, tmp_path, monkeypatch):
    seen = []

    def load_dataset(*args, **kwargs):
        seen.append((args, kwargs))
        return DatasetDict({"train": Dataset.from_list(loader.rows), "test": Dataset.from_list(loader.rows[:1])})

    monkeypatch.setattr("vtfusion.training.sources.load_dataset", load_dataset)
    dataset = loader("someone/set", dataset_config_name="en", revision="v1", cache_dir=tmp_path)
    assert seen == [(("someone/set", "en"), {"revision": "v1", "cache_dir": str(tmp_path)})]
    assert {split: len(part) for split, part in dataset.items()} == {"train": 2, "test": 1}


def test_what_was_read_comes_from_the_cache_again(loader, tmp_path, picture):
    file = write_jsonl(tmp_path / "a.jsonl", [{**row, "image": picture, "boxes": [1]} for row in loader.rows])
    first, second = (loader(train_file=file, cache_dir=tmp_path / "cache")["train"] for _ in range(2))
    assert first.cache_files and first.cache_files == second.cache_files
    assert first._fingerprint == second._fingerprint  # so that a `map` on top is found again too


def test_errors_of_sources_and_images(loader, tmp_path, picture):
    def load(rows, **kwargs):
        return loader(train_file=write_jsonl(tmp_path / "a.jsonl", rows), cache_dir=tmp_path / "cache", **kwargs)

    with pytest.raises(ValueError, match="Give either `dataset_name`"):
        loader()
    with pytest.raises(FileNotFoundError, match=r"no\.jsonl given for the train split does not exist"):
        loader(train_file=tmp_path / "no.jsonl")
    (tmp_path / "a.conll").write_text("EU B-ORG\n")
    with pytest.raises(ValueError, match=r"'\.conll' is none of \.jsonl, \.json, \.csv, \.parquet"):
        loader(train_file=tmp_path / "a.conll")
    with pytest.raises(ValueError, match="`image_column`"):
        load([{**loader.rows[0], "image": picture, "images": [picture]}])
    with pytest.raises(ValueError, match=r"row 1, field `image`: expected the path of an image.* got 3"):
        load([{**loader.rows[0], "image": image} for image in (None, 3)])
    with pytest.raises(FileNotFoundError, match=r"row 0, field `image`: the image file .*gone\.png is missing"):
        load([{**loader.rows[0], "image": "gone.png"}])
    two = load([{**loader.rows[0], "photos": [picture, picture]}], image_column="photos")["train"]
    assert two["images"][0] == [{"bytes": None, "path": picture}] * 2


def test_other_columns_and_splits_without_images(loader, tmp_path, picture, caplog):
    train = write_jsonl(tmp_path / "train.jsonl", [{**loader.rows[0], "image": picture, "boxes": [[1, 2]]}])
    test = write_jsonl(tmp_path / "test.jsonl", [{**loader.rows[0], "boxes": [[3, 4]]}])
    with caplog.at_level(logging.WARNING):
        dataset = loader(train_file=train, test_file=test, cache_dir=tmp_path / "cache")
    assert dataset["test"]["images"][:] == [None]
    assert "has no image column" in caplog.text
    assert [dataset[split]["boxes"][0] for split in dataset] == [[[1, 2]], [[3, 4]]]


# Classification


def test_labels_as_strings(load, caplog):
    with caplog.at_level(logging.WARNING):
        dataset, problem_type, names = load(
            load_classification_dataset, labelled("b", "c", "b"), test_file=labelled("a", "c")
        )
    assert (problem_type, names) == (SINGLE, ["a", "b", "c"])
    assert dataset["train"].features == Features({"text": Value("string"), "label": ClassLabel(names=names)})
    assert dataset["test"].features == dataset["train"].features
    assert dataset["train"]["label"][:] == [1, 2, 1]
    assert dataset["test"]["label"][:] == [0, 2]
    (record,) = caplog.records
    assert record.getMessage().endswith("no row of the train split has the labels a.")


def test_labels_as_integers(load, tmp_path):
    dataset, problem_type, names = load(load_classification_dataset, labelled(10, 9, -1))
    assert (problem_type, names) == (SINGLE, ["-1", "9", "10"])
    assert dataset["train"]["label"][:] == [2, 1, 0]
    # The labels of the trained model: an integer is what it was, not a position in them.
    dataset, _, names = load(load_classification_dataset, test_file=labelled(9, 10), labels=["-1", "9", "10"])
    assert dataset["test"]["label"][:] == [1, 2]
    assert names == ["-1", "9", "10"]

    dataset, _, names = load(load_classification_dataset, labelled(1, 0), labels=["no", "yes", "maybe"])
    assert names == dataset["train"].features["label"].names == ["no", "yes", "maybe"]
    assert dataset["train"]["label"][:] == [1, 0]

    features = Features({"sentence": Value("string"), "class": ClassLabel(names=["z", "1"])})
    rows = [{"sentence": "a", "class": 1}, {"sentence": "b", "class": 0}]
    Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    dataset, _, names = load(load_classification_dataset, tmp_path / "saved")
    assert names == ["z", "1"]
    assert dataset["train"]["label"][:] == [1, 0]


def test_labels_of_class_label_in_another_order(load, tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    Dataset.from_list(labelled(0, 1), features=features).save_to_disk(tmp_path / "saved")
    dataset, _, _ = load(load_classification_dataset, tmp_path / "saved", labels=["b", "a"])
    assert dataset["train"]["label"][:] == [1, 0]


def test_labels_of_a_trained_model_keep_their_order(load):
    trained = TrainedLabels(["positive", "negative", "neutral"], SINGLE)
    rows = labelled("negative", "positive")
    for given in ({}, {"labels": ["negative", "positive"]}):
        dataset, _, names = load(load_classification_dataset, rows, trained=trained, **given)
        assert names == dataset["train"].features["label"].names == trained.names
        assert dataset["train"]["label"][:] == [1, 0]
    dataset, _, names = load(load_classification_dataset, labelled("good", "bad"), trained=trained)
    assert names == ["bad", "good"]
    dataset, _, names = load(load_classification_dataset, test_file=labelled(1, 0), trained=trained)
    assert names == trained.names and dataset["test"]["label"][:] == [1, 0]
    with pytest.raises(ValueError, match="row 1: the label 'bad' is not among the `labels`"):
        load(load_classification_dataset, test_file=labelled("neutral", "bad"), trained=trained)
    with pytest.raises(ValueError, match=r": the model does not know the labels bad"):
        load(load_classification_dataset, test_file=labelled(0), labels=["bad", "neutral"], trained=trained)


def test_the_problem_of_a_trained_model_where_nothing_is_trained(load):
    several = TrainedLabels(["b", "a"], MULTI)
    assert load(load_classification_dataset, test_file=labelled(["a"]), trained=several)[1:] == (MULTI, ["b", "a"])
    assert load(load_classification_dataset, labelled("a"), trained=several)[1:] == (SINGLE, ["b", "a"])
    number = TrainedLabels(["LABEL_0"], REGRESSION)
    dataset, problem_type, names = load(load_classification_dataset, test_file=labelled(3), trained=number)
    assert (problem_type, names) == (REGRESSION, []) and dataset["test"]["label"][0] == 3.0
    assert load(load_classification_dataset, labelled(3), trained=number)[1:] == (SINGLE, ["3"])


def test_booleans_and_whole_floats_are_labels(load):
    dataset, _, names = load(load_classification_dataset, labelled(True, False))
    assert names == ["False", "True"]
    assert dataset["train"]["label"][:] == [1, 0]
    dataset, _, names = load(load_classification_dataset, labelled(1.0, 0.0), problem_type=SINGLE)
    assert names == ["0", "1"]
    assert dataset["train"]["label"][:] == [1, 0]


def test_several_labels(load, tmp_path):
    dataset, problem_type, names = load(load_classification_dataset, labelled([], ["b", "a"], ["b"]))
    assert (problem_type, names) == (MULTI, ["a", "b"])
    assert dataset["train"].features["label"] == List(Value("float32"))
    assert dataset["train"]["label"][:] == [[0, 0], [1, 1], [0, 1]]

    dataset, _, names = load(load_classification_dataset, labelled([2], [0, 2]), labels=["x", "y", "z"])
    assert names == ["x", "y", "z"]
    assert dataset["train"]["label"][:] == [[0, 0, 1], [1, 0, 1]]

    vectors = labelled([0.0, 1.0, 0.0], [1.0, 1.0, 0.0])
    for given, expected in ((None, ["0", "1", "2"]), (["x", "y", "z"], ["x", "y", "z"])):
        dataset, problem_type, names = load(load_classification_dataset, vectors, labels=given)
        assert (problem_type, names) == (MULTI, expected)
        assert dataset["train"]["label"][:] == [[0, 1, 0], [1, 1, 0]]

    features = Features({"text": Value("string"), "labels": List(ClassLabel(names=["q", "p"]))})
    Dataset.from_list(labelled([1], [], name="labels"), features=features).save_to_disk(tmp_path / "saved")
    dataset, problem_type, names = load(load_classification_dataset, tmp_path / "saved")
    assert (problem_type, names) == (MULTI, ["q", "p"])
    assert dataset["train"]["label"][:] == [[0, 1], [0, 0]]

    pd.DataFrame(labelled(["a", "b c"], [])).to_csv(tmp_path / "a.csv", index=False)
    dataset, problem_type, names = load(load_classification_dataset, tmp_path / "a.csv")
    assert (problem_type, names) == (MULTI, ["a", "b c"])
    assert dataset["train"]["label"][:] == [[1, 1], [0, 0]]


def test_regression(load, tmp_path):
    dataset, problem_type, names = load(load_classification_dataset, labelled(1.5, -2), test_file=labelled(3))
    assert (problem_type, names) == (REGRESSION, [])
    assert dataset["train"].features["label"] == dataset["test"].features["label"] == Value("float32")
    assert dataset["train"]["label"][:] == [1.5, -2.0]
    assert dataset["test"]["label"][:] == [3.0]
    dataset, _, _ = load(load_classification_dataset, labelled(1, 2), problem_type=REGRESSION)
    assert dataset["train"]["label"][:] == [1.0, 2.0]


def test_a_split_without_labels_is_to_predict(load, tmp_path, caplog):
    train = labelled("a", "b")
    for test in (labelled(None, None), [{"text": "x"}, {"text": "y"}]):
        dataset, _, names = load(load_classification_dataset, train, test_file=test)
        assert dataset["test"]["label"][:] == [None, None]
        assert dataset["test"].features == dataset["train"].features
    assert "has no column for `label_column`: its rows are to predict only" in caplog.text

    dataset, _, names = load(load_classification_dataset, test_file=[{"text": "x"}], labels=["a", "b"])
    assert (dataset["test"]["label"][:], names) == ([None], ["a", "b"])
    with pytest.raises(ValueError, match=r"no row has a label\. Say with `labels`"):
        load(load_classification_dataset, test_file=[{"text": "x"}])
    with pytest.raises(ValueError, match=r"has no column 'mood' \(`label_column`\)"):
        load(load_classification_dataset, test_file=[{"text": "x"}], labels=["a"], label_column="mood")
    with pytest.raises(
        ValueError, match=r"train split .*say with `label_column` which of these columns to read: text"
    ):
        load(load_classification_dataset, [{"text": "x"}], test_file=train)

    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    parts = {"train": labelled(0, 1), "test": labelled(-1, -1)}
    DatasetDict({k: Dataset.from_list(v, features=features) for k, v in parts.items()}).save_to_disk(tmp_path / "glue")
    dataset, _, _ = load(load_classification_dataset, dataset_name=str(tmp_path / "glue"))
    assert dataset["test"]["label"][:] == [None, None]


def test_texts_pairs_and_null(load, caplog):
    rows = [{"tweet": None, "reply": "r", "sentiment": "a"}, {"tweet": "NA", "reply": None, "sentiment": "b"}]
    dataset, _, _ = load(load_classification_dataset, rows, text_pair_column="reply")
    assert dataset["train"].column_names == ["text", "text_pair", "label"]
    assert dataset["train"]["text"][:] == ["", "NA"]
    assert dataset["train"]["text_pair"][:] == ["r", ""]
    found, _, _ = load(load_classification_dataset, [{"text": "a", "text_pair": "b", "label": "x"}])
    assert found["train"]["text_pair"][:] == ["b"]
    with pytest.raises(ValueError, match=r"test split .* has no column `text_pair`, but other splits have"):
        load(load_classification_dataset, [{"text": "a", "text_pair": "b", "label": "x"}], test_file=labelled("x"))

    clash = [{"text": "a", "title": "b", "label": "x"}]
    with caplog.at_level(logging.WARNING):
        dataset, _, _ = load(load_classification_dataset, clash, text_column="title")
    assert dataset["train"][0] == {"text": "b", "label": 0}
    assert "column text is replaced" in caplog.text


@pytest.mark.parametrize(
    ("rows", "kwargs", "message"),
    [
        ([{"text": 3, "label": "a"}], {}, "row 0, field `text`: expected a string, got 3"),
        (labelled("a", None), {}, "row 1, field `label`: expected a label, as in other rows, got None"),
        (labelled("a", " "), {}, "row 1, field `label`: expected a label, as in other rows, got ' '"),
        (labelled(0, 2), {"labels": ["a", "b"]}, "row 1, .*: the label is 2, but there are 2 label names"),
        (labelled("a", "c"), {"labels": ["a", "b"]}, "row 1: the label 'c' is not among the `labels`"),
        (labelled(0.5), {"problem_type": SINGLE}, r"expected a label \(a string or an integer\), got 0\.5"),
        (labelled(["a"]), {"problem_type": SINGLE}, r"expected a label \(a string or an integer\), got \['a'\]"),
        (labelled("a b"), {"problem_type": MULTI}, "row 0, field `label`: expected a list of labels, got 'a b'"),
        (labelled(["a", None]), {}, r"expected a label \(a string or an integer\), got None"),
        (labelled([0, 1, 0, 1]), {}, r"a label stands twice in \[0, 1, 0, 1\].* write them as floats"),
        (labelled([0.0, 1.0], [1.0]), {}, r"row 1, .*: expected 2 numbers, each 0 or 1 for one label, got \[1\.0\]"),
        (labelled([0.0, 0.5]), {}, r"expected 2 numbers, each 0 or 1 for one label, got \[0\.0, 0\.5\]"),
        (labelled([0.0, 1.0]), {"labels": ["a"]}, "expected 1 numbers"),
        (labelled(0.5, None), {}, "row 1, field `label`: expected a label, as in other rows, got"),
        (labelled("a"), {"problem_type": REGRESSION}, "row 0, field `label`: expected a number, got 'a'"),
        (labelled(0.5), {"labels": ["a"]}, "`labels` are for classes: a regression has none"),
        (labelled("a"), {"labels": ["a", "a"]}, "A label stands twice in `labels`"),
        (labelled("a"), {"problem_type": "ranking"}, "Unknown `problem_type` 'ranking'"),
        (labelled("a"), {"label_column": "text"}, "say with `text_column` and `label_column` which"),
        ([{"body": "a", "label": "x"}], {}, "say with `text_column` which of these columns to read: body, label"),
        ([{"tweet": "a", "review": "b", "label": "x"}], {}, "has the columns tweet and review: say which one with"),
        (labelled(None), {}, "no row has a label"),
    ],
)
def test_bad_labels_are_named(load, rows, kwargs, message):
    with pytest.raises(ValueError, match=message):
        load(load_classification_dataset, rows, **kwargs)


def test_vectors_of_different_lengths_in_two_splits(load):
    with pytest.raises(ValueError, match=r"test split .*row 0, .*expected 2 numbers"):
        load(load_classification_dataset, labelled([0.0, 1.0]), test_file=labelled([0.0, 1.0, 1.0]))


# Extractive question answering


def test_answers_of_every_form(load, tmp_path):
    italy = {"text": ["Italy"], "answer_start": [24]}
    both = {"text": ["Italy", "Rome"], "answer_start": [24, 13]}
    none = {"text": [], "answer_start": []}
    located = {"text": ["Italy", "Rome"], "answer_start": [24, 0]}
    forms = {
        "squad": [(italy, italy), (both, both), (none, none), (None, none)],
        "list_of_dicts": [
            ([{"text": "Italy", "answer_start": 24}, {"text": "Rome", "answer_start": 13}], both),
            ([{"text": "Italy", "answer_start": 24}, {"text": "Rome", "answer_start": None}], located),
            ([], none),
        ],
        "dict": [({"text": "Italy", "answer_start": 24}, italy), (None, none)],
        "text_only": [({"text": ["Italy", "Rome"]}, located)],
        "string": [("Italy", italy), ("", none), (None, none)],
        "list": [(["Italy", "Rome"], located), ([], none), (None, none)],
    }
    for pairs in forms.values():
        train = load(load_question_answering_dataset, [asked(answers) for answers, _ in pairs])["train"]
        assert train.features["answers"] == {"text": List(Value("string")), "answer_start": List(Value("int32"))}
        assert train["answers"][:] == [expected for _, expected in pairs]
        assert train["id"][:] == [str(row) for row in range(len(pairs))]
    pairs = [pair for name in ("squad", "list_of_dicts", "string", "list") for pair in forms[name]]
    pd.DataFrame([asked(answers) for answers, _ in pairs]).to_csv(tmp_path / "a.csv", index=False)
    train = load(load_question_answering_dataset, tmp_path / "a.csv")["train"]
    assert train["answers"][:] == [expected for _, expected in pairs]


def test_contexts_of_words_and_ids(load):
    rows = [{"id": 7, "query": "Sum?", "words": ["TOTAL", "8.70", "RM", "ü"], "answer": "8.70 RM", "boxes": [1]}]
    assert load(load_question_answering_dataset, rows)["train"][0] == {
        "id": "7",
        "question": "Sum?",
        "context": "TOTAL 8.70 RM ü",
        "answers": {"text": ["8.70 RM"], "answer_start": [6]},
        "boxes": [1],
    }
    named = [{"q": "Sum?", "c": "8.70", "a": "8.70"}]
    columns = {"question_column": "q", "context_column": "c", "answers_column": "a"}
    dataset = load(load_question_answering_dataset, named, test_file=[{"q": "Who?", "c": "x"}], **columns)
    assert dataset["train"]["answers"][0] == {"text": ["8.70"], "answer_start": [0]}
    assert dataset["test"]["answers"][0] is None


def test_a_split_without_answers_is_to_predict_and_not_to_have_none(load):
    some = [asked("Rome"), asked(None)]
    for test in ([{name: value for name, value in asked(None).items() if name != "answers"}], [asked(None)]):
        dataset = load(load_question_answering_dataset, some, test_file=test)
        assert dataset["test"]["answers"][:] == [None]
        assert dataset["train"]["answers"][1] == {"text": [], "answer_start": []}
        assert dataset["test"].features == dataset["train"].features
    dataset = load(load_question_answering_dataset, some, test_file=some[::-1])
    assert dataset["test"]["answers"][0] == {"text": [], "answer_start": []}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (asked({"text": ["Italy"], "answer_start": [23]}), "'Italy' does not stand at character 23 .* is ' Ital'"),
        (
            asked({"text": ["Italy."], "answer_start": [-6]}),
            r"'Italy\.' does not stand at character -6 of the context",
        ),
        (asked({"text": ["Italy"], "answer_start": [24, 2]}), "expected one 'answer_start' for each 'text'"),
        (asked({"text": ["Italy"], "answer_start": [24.5]}), r"expected an integer as 'answer_start', got 24\.5"),
        (asked({"text": [""], "answer_start": [0]}), r"expected an answer \(a string\), got ''"),
        (asked({"answer_start": [0]}), "expected a dict with 'text' and 'answer_start'"),
        (asked("France"), "the answer 'France' does not stand in the context, which begins 'Rome is old"),
        (asked([3]), r"expected an answer \(a string\), got 3"),
        (asked(3), r"expected an answer \(a string\), got 3"),
    ],
)
def test_bad_answers_are_named(load, tmp_path, row, message):
    with pytest.raises(ValueError, match=message) as error:
        load(load_question_answering_dataset, [{**row, "answers": None}, row])
    assert f"train split ({tmp_path / 'train_file.jsonl'}), row 1, field `answers`: " in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**asked(None), "question": None}, "row 1, field `question`: expected a string, got None"),
        ({**asked(None), "context": None}, "row 1, field `context`: expected a text or a list of words, got None"),
        ({**asked(None), "id": None}, "row 1, field `id`: expected a string or an integer, got None"),
    ],
)
def test_bad_questions_are_named(load, row, message):
    with pytest.raises(ValueError, match=message):
        load(load_question_answering_dataset, [{**asked("Rome"), "id": "a"}, {"id": "b", **row}])


def test_question_columns_are_asked_for(load):
    wanted = "say with `question_column` and `context_column` which of these columns to read: q, c, answers"
    with pytest.raises(ValueError, match=wanted):
        load(load_question_answering_dataset, [{"q": "a", "c": "b", "answers": "b"}])
    with pytest.raises(
        ValueError, match="say with `answers_column` which of these columns to read: question, context"
    ):
        load(load_question_answering_dataset, [{"question": "a", "context": "b"}])


# Visual question answering


def vqa(*answers):
    return [{"question": "What?", "answers": answer} for answer in answers]


def test_answers_are_scored(load, tmp_path):
    people = ["yes"] * 4 + ["no"] * 2 + ["maybe", ""]
    soft = {"text": ["yes", "no", "maybe"], "score": [1.0, pytest.approx(2 / 3), pytest.approx(1 / 3)]}
    given = {"text": ["a", "b"], "score": [1.0, 0.25]}
    none = {"text": [], "score": []}
    forms = [
        [("yes", {"text": ["yes"], "score": [1.0]})],
        [(3, {"text": ["3"], "score": [1.0]})],
        [(people, soft), ([], none)],
        [(["yes"], {"text": ["yes"], "score": [1.0]}), (["a", "b"], {"text": ["a", "b"], "score": [0.5, 0.5]})],
        [([{"answer": text, "answer_id": i} for i, text in enumerate(people)], soft)],
        [(given, given), ({"text": [], "score": []}, none)],
        [([{"text": "a", "score": 1}, {"text": "b", "score": 0.25}], given)],
    ]
    for pairs in forms:
        dataset, _ = load(load_visual_question_answering_dataset, vqa(*(answer for answer, _ in pairs), pairs[0][0]))
        train = dataset["train"]
        assert train.features["answers"] == {"text": List(Value("string")), "score": List(Value("float32"))}
        assert train["answers"][:] == [expected for _, expected in pairs] + [pairs[0][1]]
    pd.DataFrame(vqa("yes", people, given)).to_csv(tmp_path / "a.csv", index=False)
    dataset, _ = load(load_visual_question_answering_dataset, tmp_path / "a.csv")
    assert dataset["train"]["answers"][:] == [forms[0][0][1], soft, given]


def test_answers_to_choose_from(load):
    train = vqa(["c", "b", "b"], ["b", "a"], ["c"], ["d"])  # rows with: b 2, c 2, a 1, d 1
    test = vqa(["z"])
    dataset, names = load(load_visual_question_answering_dataset, train, test_file=test)
    assert names == ["b", "c", "a", "d"]
    dataset, names = load(load_visual_question_answering_dataset, train, test_file=test, max_answers=3)
    assert names == ["b", "c", "a"]
    assert dataset["train"]["answers"][3]["text"] == ["d"]
    assert dataset["test"]["answers"][0]["text"] == ["z"]
    _, names = load(load_visual_question_answering_dataset, train, answer_names=["x", "b"])
    assert names == ["x", "b"]
    dataset, _ = load(load_visual_question_answering_dataset, test_file=[{"question": "?"}], answer_names=["x"])
    assert dataset["test"][0] == {"question": "?", "answers": None}
    dataset, _ = load(load_visual_question_answering_dataset, train, test_file=vqa(None, None))
    assert dataset["test"]["answers"][:] == [None] * 2

    trained = TrainedLabels(["d", "z", "c", "b", "a"])
    for kwargs in ({"train": train}, {"train": train, "max_answers": 2}, {"test_file": test}):
        assert load(load_visual_question_answering_dataset, trained=trained, **kwargs)[1] == trained.names
    fewer = TrainedLabels(["b", "c"])
    assert load(load_visual_question_answering_dataset, train, trained=fewer)[1] == ["b", "c", "a", "d"]
    assert load(load_visual_question_answering_dataset, test_file=test, trained=fewer)[1] == ["b", "c"]
    with pytest.raises(ValueError, match="`max_answers` cuts"):
        load(load_visual_question_answering_dataset, test_file=test, trained=fewer, max_answers=1)

    with pytest.raises(ValueError, match="say with `answer_names` what they are"):
        load(load_visual_question_answering_dataset, test_file=test)
    with pytest.raises(ValueError, match="`max_answers` cuts"):
        load(load_visual_question_answering_dataset, train, answer_names=["a"], max_answers=3)
    with pytest.raises(ValueError, match="`max_answers` must be at least 1, got 0"):
        load(load_visual_question_answering_dataset, train, max_answers=0)
    with pytest.raises(ValueError, match="An answer stands twice in `answer_names`"):
        load(load_visual_question_answering_dataset, train, answer_names=["a", "a"])
    with pytest.raises(ValueError, match="no row has an answer"):
        load(load_visual_question_answering_dataset, vqa([], [""]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (vqa("a", None), "row 1, field `answers`: expected an answer, as in other rows, got None"),
        (vqa("a", ""), "row 1, field `answers`: expected an answer, as in other rows, got ''"),
        (vqa(1.5), r"row 0, field `answers`: expected an answer \(a string\), got 1\.5"),
        (vqa([True]), r"expected an answer \(a string\), got True"),
        (vqa({"text": ["a"], "score": [2]}), "expected a 'score' from 0 to 1 for 'a', got 2"),
        (vqa({"text": ["a"], "score": None}), "expected a 'score' from 0 to 1 for 'a', got None"),
        (vqa({"text": ["a", "b"], "score": [1.0]}), "expected one 'score' for each 'text'"),
        (vqa({"text": ["a", "a"], "score": [1.0, 0.5]}), "an answer has two scores"),
        (vqa({"ids": ["a"]}), "expected a dict with 'text' and 'score'"),
        (vqa([{"name": "a"}]), "expected a dict with 'answer', or with 'text' and 'score'"),
        ([{"question": None, "answer": "a"}], "row 0, field `question`: expected a string, got None"),
        ([{"question": "a"}], "say with `answer_column` which of these columns to read: question"),
    ],
)
def test_bad_visual_answers_are_named(load, rows, message):
    with pytest.raises(ValueError, match=message):
        load(load_visual_question_answering_dataset, rows)


# Captions


def test_one_row_for_each_caption(load, tmp_path, picture):
    rows = [
        {"captions": ["a", "b"], "image": picture, "width": 3},
        {"captions": ["c"], "image": None, "width": 4},
        {"captions": ["d", "e", "a"], "image": picture, "width": 5},
    ]
    expected = {
        "text": ["a", "b", "c", "d", "e", "a"],
        "image_row": [0, 0, 1, 2, 2, 2],
        "images": [[{"bytes": None, "path": picture}], [{"bytes": None, "path": picture}], None]
        + [[{"bytes": None, "path": picture}]] * 3,
        "width": [3, 3, 4, 5, 5, 5],
    }
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    first, second = (load(load_caption_dataset, file)["train"] for _ in range(2))
    assert first[:] == expected
    assert first.cache_files and first.cache_files == second.cache_files
    assert first._fingerprint == second._fingerprint
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    assert load(load_caption_dataset, tmp_path / "a.csv")["train"][:] == expected

    single = load(load_caption_dataset, [{"caption": "a"}, {"caption": "b"}], test_file=[{"caption": "c"}])
    assert single["train"][:] == {"text": ["a", "b"], "image_row": [0, 1]}
    assert single["test"][:] == {"text": ["c"], "image_row": [0]}


def test_captions_of_stored_images(load, tmp_path):
    content = {"bytes": b"some bytes", "path": "x.png"}
    features = Features({"caption": List(Value("string")), "image": Image()})
    Dataset.from_list([{"caption": ["a", "b"], "image": content}], features=features).save_to_disk(tmp_path / "saved")
    assert load(load_caption_dataset, tmp_path / "saved")["train"]["images"][:] == [[content], [content]]


@pytest.mark.parametrize(
    ("good", "bad"),
    [("a", None), ("a", ""), (["a"], []), (["a"], ["a", None]), (["a"], [" "]), (None, 3)],
)
def test_bad_captions_are_named(load, good, bad):
    rows = [{"text": good}, {"text": bad}] if good else [{"text": bad}]
    place = f"row {len(rows) - 1}, field `text`: expected a caption or a list of captions, got "
    with pytest.raises(ValueError, match=place):
        load(load_caption_dataset, rows)


def test_caption_columns_are_asked_for(load):
    with pytest.raises(ValueError, match="has the columns caption and captions: say which one with `text_column`"):
        load(load_caption_dataset, [{"caption": "a", "captions": ["b"]}])
    assert load(load_caption_dataset, [{"raw": "a"}], text_column="raw")["train"]["text"][:] == ["a"]
    with pytest.raises(ValueError, match="say with `text_column` which of these columns to read: raw"):
        load(load_caption_dataset, [{"raw": "a"}])


# Real data: the counts are those of the READMEs beside it


def test_tweets_with_a_sentiment(load, real):
    folder = real("mvsa-single")
    dataset, problem_type, names = load(
        load_classification_dataset, folder / "train.jsonl", test_file=folder / "test.jsonl"
    )
    assert (problem_type, names) == (SINGLE, ["negative", "neutral", "positive"])
    assert Counter(dataset["train"]["label"]) == {0: 1043, 1: 367, 2: 2090}
    assert set(dataset["test"]["label"]) == {None} and len(dataset["test"]) == 511
    assert all(Path(images[0]["path"]).is_file() for images in dataset["test"]["images"])


def test_shapes_with_questions(load, real):
    folder = real("easy-vqa")
    dataset, names = load(load_visual_question_answering_dataset, folder / "test.jsonl")
    counts = "yes 3611, no 3525, rectangle 450, circle 416, triangle 391, gray 178, yellow 169, green 165, black 156"
    assert names[:9] == [pair.split()[0] for pair in counts.split(", ")]
    assert set(names) == set((folder / "answers.txt").read_text().split())
    assert Counter(answers["text"][0] for answers in dataset["train"]["answers"])["yes"] == 3611
    assert dataset["train"]["images"][0] == [{"bytes": None, "path": str(folder / "test" / "images" / "0.png")}]


def test_photographs_with_captions(load, real):
    train = load(load_caption_dataset, real("flickr8k-1000"))["train"]
    assert train["image_row"][:] == [row for row in range(1000) for _ in range(5)]
    line = json.loads((real("flickr8k-1000") / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert train["text"][5:10] == line["captions"]
    assert train["images"][9][0]["path"] == str(real("flickr8k-1000") / line["image"])


def test_receipts_with_questions(load, real):
    """The receipts come without questions: here each asks for a field whose text stands in the receipt."""
    folder = real("sroie-receipts")
    rows, sums = [], []
    for line in (folder / "valid.jsonl").read_text(encoding="utf-8").splitlines():
        receipt = json.loads(line)
        for name in ("date", "total"):
            rows.append({**receipt, "question": f"What is the {name}?", "answer": receipt["fields"][name]})
            sums.append(receipt["fields"][name])
    valid = load(load_question_answering_dataset, validation_file=rows, image_folder=folder)["validation"]
    assert len(valid) == 126 and valid["id"][1] == "500"
    for row, expected in zip(valid, sums, strict=True):
        (start,) = row["answers"]["answer_start"]
        assert row["context"][start : start + len(expected)] == row["answers"]["text"][0] == expected
    assert {"boxes", "line_ids"} <= set(valid.column_names) and "tokens" not in valid.column_names


@pytest.mark.parametrize("name", ["dev", "eval", "val", "valid"])
def test_a_validation_split_by_another_name(load, name, tmp_path):
    rows = Dataset.from_list([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    DatasetDict({"train": rows, name: rows, "test": rows}).save_to_disk(tmp_path)
    dataset, _, _ = load(load_classification_dataset, dataset_name=str(tmp_path))
    assert sorted(dataset) == ["test", "train", "validation"]
    DatasetDict({"train": rows, name: rows, "validation": rows}).save_to_disk(tmp_path / "both")
    dataset, _, _ = load(load_classification_dataset, dataset_name=str(tmp_path / "both"))
    assert sorted(dataset) == sorted(["train", "validation", name])
