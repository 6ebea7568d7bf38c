import io
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    List,
    Value,
    load_from_disk,
)

from tiny import text_model
from vtfusion.training.bank_search import Embedder, ImageRetriever
from vtfusion.training.files import release_folder
from vtfusion.training.image_bank import BankImage, ImageBank
from vtfusion.training.images import BLANK_KEY, ImageStore
from vtfusion.training.pairing import (
    STRATEGIES,
    _columns,
    pair_at_random,
    pair_by_lexicon,
    pair_by_manifest,
    pair_by_retrieval,
    pair_with_blank,
    pair_with_none,
    save_paired_dataset,
)
from vtfusion.training.token_data import load_token_classification_dataset, open_token_streams
from writing import write_jsonl

LABELS = ["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
NAMES = ["Georgia", "Madrid", "United States"]
TRAIN = [["Georgia", "met", "Madrid", "in", "Georgia"], ["no", "name"], ["Madrid"]]
TEST = [["the", "United", "States"], ["fox"]]


def tagged(tags_of):
    features = Features(
        {"id": Value("string"), "tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=LABELS))}
    )

    def split(texts, prefix):
        rows = [
            {"id": f"{prefix}{row}", "tokens": words, "ner_tags": tags_of(words)} for row, words in enumerate(texts)
        ]
        return Dataset.from_list(rows, features=features)

    return DatasetDict({"train": split(TRAIN, "a"), "test": split(TEST, "b")})


@pytest.fixture
def texts():
    return tagged(lambda words: [0] * len(words))


@pytest.fixture
def bank(tmp_path):
    rng = np.random.default_rng(0)
    images = []
    for place, name in enumerate(NAMES):
        path = tmp_path / f"{place}.png"
        PIL.Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(path)
        images.append(BankImage(f"picture{place}", str(path), name))
    return ImageBank(images)


@pytest.fixture
def retriever(bank):
    return ImageRetriever(bank, Embedder(*text_model("bert")))


@pytest.fixture
def manifest(tmp_path, bank):
    lines = [
        {"split": "train", "row": 2, "image": "1.png", "score": 0.5},
        {"split": "train", "row": 0, "image": "2.png"},
        {"split": "test", "row": 1, "image": "0.png"},
        {"split": "train", "row": 2, "image": "0.png"},
        {"split": "test", "row": 0, "image": None},
    ]
    return write_jsonl(tmp_path / "pairs.jsonl", lines)


def pair(strategy, texts, bank, retriever, manifest, **kwargs):
    match strategy:
        case "manifest":
            return pair_by_manifest(texts, manifest, **kwargs)
        case "lexicon":
            return pair_by_lexicon(texts, bank, max_images=2, **kwargs)
        case "retrieval":
            return pair_by_retrieval(texts, retriever, top_k=2, **kwargs)
        case "random":
            return pair_at_random(texts, bank, max_images=2, **kwargs)
        case "blank":
            return pair_with_blank(texts, **kwargs)
        case "none":
            return pair_with_none(texts, **kwargs)


every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
NEW = ["images", "image_ids", "image_scores", "pairing_strategy"]


@every_strategy
def test_labels_are_never_read(strategy, bank, retriever, manifest):
    def columns(paired):
        return {
            split: part.select_columns([name for name in part.column_names if name not in ("id", "ner_tags")])[:]
            for split, part in paired.items()
        }

    rng = np.random.default_rng(0)
    ways = [
        lambda words: [0] * len(words),
        lambda words: [1] * len(words),
        lambda words: rng.integers(0, 5, len(words)).tolist(),
    ]
    results = [columns(pair(strategy, tagged(way), bank, retriever, manifest)) for way in ways]
    assert results[0] == results[1] == results[2]
    without = DatasetDict({split: part.remove_columns("ner_tags") for split, part in tagged(ways[0]).items()})
    assert results[0] == columns(pair(strategy, without, bank, retriever, manifest))


@every_strategy
def test_every_strategy_gives_the_same_columns(strategy, texts, bank, retriever, manifest):
    paired = pair(strategy, texts, bank, retriever, manifest)
    assert list(paired) == ["train", "test"]
    for split, part in paired.items():
        assert part.select_columns(texts[split].column_names)[:] == texts[split][:]  # what was there is untouched
        added = [name for name in part.column_names if name not in texts[split].column_names]
        assert added == NEW + (["image_spans"] if strategy == "lexicon" else [])
        assert part.features["images"] == List(Image(decode=False))
        assert part.features["image_ids"] == List(Value("string"))
        assert part.features["image_scores"] == List(Value("float32"))
        assert set(part["pairing_strategy"]) == {strategy}
        for row in part:
            assert len(row["image_ids"]) == len(row["image_scores"]) == len(row["images"] or [])
            assert row["images"] is None or row["images"]


@pytest.mark.parametrize("strategy", ["random", "lexicon", "retrieval"])  # the others share their code with these
def test_two_processes_give_what_one_gives(strategy, texts, bank, retriever, manifest):
    one = pair(strategy, texts, bank, retriever, manifest)
    two = pair(strategy, texts, bank, retriever, manifest, num_proc=2)
    assert [part[:] for part in one.values()] == [part[:] for part in two.values()]


def test_scores_are_those_that_are_stored():
    """Rows of a stream come as the strategy gives them, those of a saved data set as float32."""
    scores = _columns("any", [[("a.png", "a", 0.1), ("b.png", "b", None)], []])["image_scores"]
    assert scores == Dataset.from_dict({"x": scores}, Features({"x": List(Value("float32"))}))["x"][:]


def streams_of(texts):
    return IterableDatasetDict({split: part.to_iterable_dataset() for split, part in texts.items()})


streamed_strategy = pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "manifest"])


@streamed_strategy
@pytest.mark.parametrize("embed_images", [True, False])
def test_streams_get_the_same_pictures(strategy, embed_images, texts, bank, retriever, manifest, tmp_path):
    if strategy == "blank" and not embed_images:
        pytest.skip("a blank picture has no path")
    whole = pair(strategy, texts, bank, retriever, manifest)
    paired = pair(strategy, streams_of(texts), bank, retriever, manifest)
    assert {split: list(part) for split, part in paired.items()} == {
        split: list(part) for split, part in whole.items()
    }
    save_paired_dataset(whole, tmp_path / "whole", embed_images)
    save_paired_dataset(paired, tmp_path / "streamed", embed_images)
    expected, saved = load_from_disk(str(tmp_path / "whole")), load_from_disk(str(tmp_path / "streamed"))
    for split in expected:
        assert saved[split].features == expected[split].features
        assert saved[split].to_list() == expected[split].to_list()
        assert saved[split].split == split
    assert {path.name for path in (tmp_path / "streamed").iterdir()} == {".lock", "train", "test", "dataset_dict.json"}


@streamed_strategy
def test_labels_are_never_read_from_a_stream(strategy, bank, retriever, manifest):
    def ids(way):
        paired = pair(strategy, streams_of(tagged(way)), bank, retriever, manifest)
        return [row["image_ids"] for part in paired.values() for row in part]

    assert ids(lambda words: [0] * len(words)) == ids(lambda words: [1] * len(words))


@streamed_strategy
def test_a_stream_is_read_as_it_is_needed(strategy, bank, retriever, manifest):
    read = []

    def endless():
        while True:
            read.append(None)
            yield {"tokens": ["Madrid"]}

    features = Features({"tokens": List(Value("string"))})
    texts = IterableDatasetDict({"train": IterableDataset.from_generator(endless, features=features)})
    paired = pair(strategy, texts, bank, retriever, manifest)
    assert not read
    rows = list(paired["train"].take(3))
    assert [row["tokens"] for row in rows] == [["Madrid"]] * 3 and all(set(NEW) <= set(row) for row in rows)
    assert 3 <= len(read) <= 2000


def test_what_a_stream_cannot_do_is_said(texts, bank, manifest):
    with pytest.raises(ValueError, match="cannot be looked up in a stream"):
        pair_by_manifest(streams_of(texts), manifest)
    with pytest.raises(ValueError, match="`num_proc` is 2, but a stream is read by one process"):
        pair_by_lexicon(streams_of(texts), bank, num_proc=2)
    nothing = IterableDatasetDict({"train": IterableDataset.from_generator(lambda: iter(()))})
    with pytest.raises(ValueError, match="The train split has no rows"):
        pair_by_lexicon(nothing, bank)
    with pytest.raises(ValueError, match="The train split has a column 'images' already"):
        pair_by_lexicon(pair_by_lexicon(streams_of(texts), bank), bank)


def test_lexicon_worked_by_hand(texts, bank):
    train = pair_by_lexicon(texts, bank)["train"]
    assert train["image_ids"][:] == [["picture0"], [], ["picture1"]]
    assert train["image_spans"][:] == [[[0, 1]], [], [[0, 1]]]
    assert train["image_scores"][:] == [[None], [], [None]]
    assert train["images"][:] == [
        [{"bytes": None, "path": bank.images[0].path}],
        None,
        [{"bytes": None, "path": bank.images[1].path}],
    ]
    both = pair_by_lexicon(texts, bank, max_images=5)
    assert both["train"]["image_ids"][0] == ["picture0", "picture1"]  # each picture once, the leftmost first
    assert both["train"]["image_spans"][0] == [[0, 1], [2, 3]]
    assert both["test"]["image_spans"][:] == [[[1, 3]], []]


def test_retrieval_is_a_search_with_a_threshold(texts, bank, retriever):
    for split, words in (("train", TRAIN), ("test", TEST)):
        scores, places = retriever.search([" ".join(row) for row in words], top_k=2)
        paired = pair_by_retrieval(texts, retriever, top_k=2)[split]
        assert paired["image_ids"][:] == [[f"picture{place}" for place in row] for row in places]
        np.testing.assert_allclose(np.array(paired["image_scores"][:]), scores, atol=1e-6)
        assert [[image["path"] for image in row] for row in paired["images"]] == [
            [bank.images[place].path for place in row] for row in places
        ]

        threshold = float(np.sort(scores.flatten())[2])  # all but two of the links pass
        kept = pair_by_retrieval(texts, retriever, top_k=2, score_threshold=threshold)[split]
        expected = [
            [f"picture{p}" for p, s in zip(row, row_scores, strict=True) if s >= threshold]
            for row, row_scores in zip(places, scores, strict=True)
        ]
        assert kept["image_ids"][:] == expected and sum(map(len, expected)) == scores.size - 2
    nothing = pair_by_retrieval(texts, retriever, score_threshold=1.0)["test"]
    assert nothing["image_ids"][:] == [[], []] and nothing["images"][:] == [None, None]


def test_one_picture_each_unless_more_are_asked_for(texts, bank, retriever):
    for paired in (pair_at_random(texts, bank), pair_by_retrieval(texts, retriever), pair_by_lexicon(texts, bank)):
        assert max(len(ids) for part in paired.values() for ids in part["image_ids"]) == 1


def test_both_ends_of_the_cosine_are_thresholds(texts, retriever):
    lowest = pair_by_retrieval(texts, retriever, score_threshold=-1)["train"]["image_ids"][:]
    highest = pair_by_retrieval(texts, retriever, score_threshold=1)["train"]["image_ids"][:]
    assert all(lowest) and highest[:2] == [[], []]  # the third text is a picture's name


def test_splits_keep_their_names(texts, bank, tmp_path):
    read = DatasetDict()
    for name, part in texts.items():
        part.to_json(tmp_path / f"{name}.jsonl")
        file = str(tmp_path / f"{name}.jsonl")
        read[name] = Dataset.from_json(file, split=name, cache_dir=str(tmp_path))
    save_paired_dataset(pair_by_lexicon(read, bank), tmp_path / "saved", embed_images=False)
    for paired in (pair_by_lexicon(read, bank), load_from_disk(str(tmp_path / "saved"))):
        assert {name: str(part.split) for name, part in paired.items()} == {"train": "train", "test": "test"}


def test_random_pictures_depend_on_seed_split_and_row(texts, bank):
    many = DatasetDict({name: Dataset.from_dict({"tokens": [["a"]] * 300}) for name in ("train", "test")})
    first = pair_at_random(many, bank, max_images=2)
    ids = first["train"]["image_ids"][:]
    assert all(len(set(row)) == 2 for row in ids)
    counts = [sum(name in row for row in ids) for name in ("picture0", "picture1", "picture2")]
    assert sum(counts) == 600 and min(counts) > 160  # of 200 expected, with a standard deviation of 8
    assert ids != first["test"]["image_ids"][:]
    assert ids != pair_at_random(many, bank, max_images=2, seed=1)["train"]["image_ids"][:]
    assert (
        ids[:7]
        == pair_at_random(DatasetDict({"train": many["train"].select(range(7))}), bank, max_images=2)["train"][
            "image_ids"
        ][:]
    )


def test_blank_is_the_blank_of_the_image_conditions(texts):
    paired = pair_with_blank(texts)
    assert paired["test"]["image_ids"][:] == [["blank"], ["blank"]]
    picture = PIL.Image.open(io.BytesIO(paired["test"]["images"][1][0]["bytes"]))
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(ImageStore().load(BLANK_KEY)))


def test_none_gives_nothing(texts):
    paired = pair_with_none(texts)["train"]
    assert paired["images"][:] == [None] * 3 and paired["image_ids"][:] == [[]] * 3


# Manifest


def test_manifest_by_row(texts, bank, manifest):
    paired = pair_by_manifest(texts, manifest)
    assert paired["train"]["image_ids"][:] == [["2.png"], [], ["1.png", "0.png"]]  # in the order of the lines
    assert paired["train"]["image_scores"][:] == [[None], [], [0.5, None]]
    assert paired["train"]["images"][2] == [
        {"bytes": None, "path": bank.images[1].path},
        {"bytes": None, "path": bank.images[0].path},
    ]
    assert paired["test"]["image_ids"][:] == [[], ["0.png"]]


def test_manifest_by_id_and_in_csv(texts, bank, tmp_path):
    lines = [{"id": "b1", "image": "2.png"}, {"id": "a0", "image": "0.png", "score": 1}]
    paired = pair_by_manifest(texts, write_jsonl(tmp_path / "ids.jsonl", lines))
    assert paired["train"]["image_ids"][:] == [["0.png"], [], []]
    assert paired["test"]["image_ids"][:] == [[], ["2.png"]]

    path = tmp_path / "ids.csv"
    path.write_text("split,row,id,image,score,by\n,,b1,2.png,,me\n,,a0,0.png,1,me\ntrain,1,,,,me\n")
    assert pair_by_manifest(texts, path)["train"][:] == paired["train"][:]

    numbers = DatasetDict({"train": Dataset.from_dict({"tokens": [["a"], ["b"]], "number": [10, 20]})})
    lines = [{"id": 20, "image": "0.png"}]
    by_number = pair_by_manifest(numbers, write_jsonl(tmp_path / "n.jsonl", lines), id_column="number")
    assert by_number["train"]["image_ids"][:] == [[], ["0.png"]]
    # one split needs no name
    by_row = pair_by_manifest(numbers, write_jsonl(tmp_path / "r.jsonl", [{"row": 1, "image": "0.png"}]))
    assert by_row["train"]["image_ids"][:] == [[], ["0.png"]]


@pytest.mark.parametrize("mark", ["", "\ufeff"])  # some editors put a mark before the first line
@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.csv"])
def test_manifest_in_unicode_with_gaps_and_without_pictures(texts, bank, tmp_path, name, mark):
    (tmp_path / "0.png").rename(tmp_path / "Köln\n.png")
    lines = {
        "pairs.jsonl": [
            '{"id": "a0", "image": null}',
            "",
            '{"id": "a2", "image": "Köln\\n.png"}',
            '{"id": "a1", "image": ""}',
            '{"id": "a2", "image": "1.png"}',
        ],
        "pairs.csv": ["id,image", "a0,", "", 'a2,"Köln\n.png"', "a1,", "a2,1.png"],
    }
    path = tmp_path / name
    path.write_bytes((mark + "\n".join(lines[name]) + "\n").encode("utf-8"))
    paired = pair_by_manifest(texts, path)
    assert paired["train"]["image_ids"][:] == [[], [], ["Köln\n.png", "1.png"]]
    path.write_bytes(("\n".join(lines[name]) + "\n").encode("latin-1"))
    with pytest.raises(ValueError, match=f"{name}, line [34]: not UTF-8 text"):
        pair_by_manifest(texts, path)


def test_pictures_of_many_texts_keep_the_order_of_their_lines(bank, tmp_path):
    texts = DatasetDict({"train": Dataset.from_dict({"tokens": [["a"]] * 40})})
    pairs = [(row, picture) for picture in (2, 0, 1) for row in np.random.default_rng(picture).permutation(40)]
    path = write_jsonl(tmp_path / "m.jsonl", [{"row": int(row), "image": f"{picture}.png"} for row, picture in pairs])
    paired = pair_by_manifest(texts, path)["train"]
    assert paired["image_ids"][:] == [["2.png", "0.png", "1.png"]] * 40


def test_paths_of_a_manifest_that_cannot_be_are_named(texts, bank, tmp_path):
    (tmp_path / "inside").mkdir()
    path = write_jsonl(tmp_path / "inside" / "m.jsonl", [{"id": "a0", "image": "../0.png"}])
    outside = str(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"m\.jsonl, line 1, field `image`: the image .*") as error:
        pair_by_manifest(texts, path)
    assert repr(outside) in str(error.value)
    assert pair_by_manifest(texts, path, allow_outside_paths=True)["train"]["images"][0][0]["path"] == outside
    write_jsonl(path, [{"id": "a0", "image": "a\0b"}])
    with pytest.raises(ValueError, match=r"m\.jsonl, line 1, field `image`: no file can have the path"):
        pair_by_manifest(texts, path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"row": 0, "image": "0.png"}, "line 2: say with 'split' which of train, test the row 0 belongs to"),
        (
            {"split": "dev", "row": 0, "image": "0.png"},
            "line 2, field `split`: .* no split 'dev'. It has: train, test",
        ),
        (
            {"split": "test", "row": 2, "image": "0.png"},
            "line 2, field `row`: there is no row 2 in the test split.* 2 rows",
        ),
        (
            {"split": "test", "row": -1, "image": "0.png"},
            "line 2, field `row`: expected the index of a row, from 0, got -1",
        ),
        (
            {"split": "test", "row": "one", "image": "0.png"},
            "line 2, field `row`: expected the index of a row, from 0, got 'one'",
        ),
        (
            {"split": "test", "row": True, "image": "0.png"},
            "line 2, field `row`: expected the index of a row, from 0, got True",
        ),
        ({"split": 1, "row": 1, "image": "0.png"}, "line 2, field `split`: expected the name of a split, got 1"),
        ({"split": "test", "image": "0.png"}, "line 2: give either 'row' or 'id'"),
        ({"row": 1, "id": "a0", "image": "0.png"}, "line 2: give either 'row' or 'id'"),
        ({"id": ["a0"], "image": "0.png"}, "line 2, field `id`: expected a string or an integer"),
        ({"id": "z9", "image": "0.png"}, "line 2, field `id`: no row of the data set has 'z9' in the column 'id'"),
        ({"id": "a0", "split": "test", "image": "0.png"}, "line 2, field `id`: no row of the test split has 'a0'"),
        ({"split": "test", "row": 1}, "line 2, field `image`: it is missing. For a text without a picture write null"),
        ({"id": "a0", "image": 7}, "line 2, field `image`: expected the path of a file or null, got 7"),
        ({"id": "a0", "image": "http://a.b/c.png"}, "line 2, field `image`: .* is a URL. Nothing is downloaded"),
        (
            {"id": "a0", "image": "0.png", "score": "high"},
            "line 2, field `score`: expected a number, got 'high'",
        ),
        ({"id": "a0", "image": "0.png", "score": float("nan")}, "line 2, field `score`: expected a number"),
        (
            {"id": "a1", "image": "0.png"},
            "line 2: row 1 of the train split has the image '0.png' since line 1 already",
        ),
        ([1], "line 2: expected a JSON object, got list"),
    ],
)
def test_bad_manifest_lines_are_named(texts, bank, tmp_path, line, message):
    path = write_jsonl(tmp_path / "pairs.jsonl", [{"split": "train", "row": 1, "image": "0.png"}, line])
    with pytest.raises(ValueError, match=r"pairs\.jsonl, " + message):
        pair_by_manifest(texts, path)


def test_bad_manifests_are_named(texts, bank, manifest, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl does not exist"):
        pair_by_manifest(texts, tmp_path / "gone.jsonl")
    with pytest.raises(FileNotFoundError, match=r"line 1, field `image`: the image file .*9\.png is missing"):
        pair_by_manifest(texts, write_jsonl(tmp_path / "m.jsonl", [{"id": "a0", "image": "9.png"}]))
    for name, content, message in [
        ("m.txt", "x", r"must end in \.jsonl or \.csv"),
        ("m.jsonl", "\n", "has no lines"),
        ("m.jsonl", "{", "line 1: not valid JSON"),
        ("m.csv", "", "line 1: expected a header .* got nothing"),
        ("m.csv", "row,picture\n0,0.png\n", "line 1: expected a header .* got row, picture"),
        (
            "m.csv",
            "split,row,image\ntrain,first,0.png\n",
            "line 2, field `row`: expected the index of a row, from 0, got 'first'",
        ),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            pair_by_manifest(texts, tmp_path / name)
    with pytest.raises(ValueError, match=r"`id_column` is 'id', but .* names texts by 'row'. Leave it out"):
        pair_by_manifest(texts, manifest, id_column="id")


def test_ids_must_be_plain_and_clear(texts, bank, tmp_path):
    by_id = write_jsonl(tmp_path / "m.jsonl", [{"id": "x", "image": "0.png"}])
    same = Dataset.from_dict({"tokens": [["a"], ["b"]], "id": ["x", "x"]})
    with pytest.raises(ValueError, match=r"rows 0 and 1 of the train split both have 'x'.*Name the text by 'row'"):
        pair_by_manifest(DatasetDict({"train": same}), by_id)
    once = same.select([0])
    with pytest.raises(ValueError, match=r"the splits train and test both have the id 'x'. Say which with 'split'"):
        pair_by_manifest(DatasetDict({"train": once, "test": once}), by_id)
    with pytest.raises(ValueError, match=r"the train split has no column 'key'.*It has: tokens, id"):
        pair_by_manifest(DatasetDict({"train": once}), by_id, id_column="key")
    with pytest.raises(ValueError, match=r"The column 'ner_tags' .* not strings or integers"):
        pair_by_manifest(texts, by_id, id_column="ner_tags")
    labelled = once.add_column("label", [0]).cast_column("label", ClassLabel(names=["x"]))
    with pytest.raises(ValueError, match=r"The column 'label' .* not strings or integers"):
        pair_by_manifest(DatasetDict({"train": labelled}), by_id, id_column="label")


# Saving


@pytest.mark.parametrize("embed_images", [True, False])
def test_task_scripts_read_what_is_saved(texts, bank, tmp_path, embed_images):
    paired = pair_by_lexicon(texts, bank, max_images=2)
    save_paired_dataset(paired, tmp_path / "saved", embed_images=embed_images)
    saved = load_from_disk(str(tmp_path / "saved"))
    expected = List(Image(decode=False)) if embed_images else List(Value("string"))
    assert saved["train"].features["images"] == expected
    loaded = load_token_classification_dataset(
        str(tmp_path / "saved"), image_folder=None if embed_images else tmp_path
    )
    for split in texts:
        assert loaded[split].features["images"] == List(Image(decode=False))
        for name in ("tokens", "ner_tags", "image_ids", "image_spans", "image_scores"):
            assert loaded[split][name][:] == paired[split][name][:]
        for before, after in zip(paired[split]["images"], loaded[split]["images"], strict=True):
            files = [image["path"] for image in before or []]
            if embed_images:
                assert [image["bytes"] for image in after or []] == [Path(file).read_bytes() for file in files]
            else:
                assert [image["path"] for image in after or []] == files
    store = ImageStore()
    keys = store.add_split("train", loaded["train"])
    assert [len(row or []) for row in keys] == [2, 0, 1] and len(store) == 2
    cast = saved["train"].cast_column("images", List(Image()))
    assert cast[0]["images"][1].size == (8, 6) and cast[1]["images"] is None


def test_rows_of_a_stream_wait_beside_the_result(texts, bank, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))  # where the system's temporary files may be few
    for _ in range(2):  # the folder may be there
        save_paired_dataset(pair_by_lexicon(streams_of(texts), bank), tmp_path / "saved")
    assert load_from_disk(str(tmp_path / "saved"))["train"]["image_ids"][:] == [["picture0"], [], ["picture1"]]


def test_a_stream_that_breaks_off_is_named(bank, tmp_path):
    def rows():
        yield {"tokens": ["Madrid"]}
        raise ValueError("a broken row")

    stream = IterableDataset.from_generator(rows, features=Features({"tokens": List(Value("string"))}))
    with pytest.raises(ValueError, match=r"^dev split cannot be read: a broken row"):
        save_paired_dataset(pair_by_lexicon(IterableDatasetDict({"dev": stream}), bank), tmp_path / "saved")


def test_a_blank_picture_has_no_path(texts, tmp_path):
    with pytest.raises(ValueError, match="has no file, so that there is no path to save: embed the images"):
        save_paired_dataset(pair_with_blank(texts), tmp_path, embed_images=False)


def test_saving_with_several_processes(texts, bank, tmp_path):
    paired = pair_by_lexicon(texts, bank)
    save_paired_dataset(DatasetDict({"train": paired["train"]}), tmp_path / "two", num_proc=2)
    assert load_from_disk(str(tmp_path / "two"))["train"]["image_ids"][:] == paired["train"]["image_ids"][:]
    assert len(list((tmp_path / "two" / "train").glob("*.arrow"))) == 2
    one = DatasetDict({"test": paired["test"].select([0])})
    save_paired_dataset(one, tmp_path / "one", num_proc=2)  # fewer rows than processes
    assert load_from_disk(str(tmp_path / "one"))["test"]["image_ids"][:] == [["picture2"]]


def test_a_format_and_a_selection_do_not_matter(texts, bank, retriever):
    formatted = DatasetDict({split: part.with_format("numpy") for split, part in texts.items()})
    plain = pair_by_lexicon(texts, bank)
    assert pair_by_lexicon(formatted, bank)["train"].with_format(None)[:] == plain["train"][:]
    by_meaning = pair_by_retrieval(formatted, retriever)["train"].with_format(None)["image_ids"][:]
    assert by_meaning == pair_by_retrieval(texts, retriever)["train"]["image_ids"][:]
    turned = pair_by_lexicon(DatasetDict({"train": texts["train"].select([2, 0])}), bank)["train"]
    assert turned["id"][:] == ["a2", "a0"] and turned["image_ids"][:] == [["picture1"], ["picture0"]]


def test_what_is_wrong_is_named(texts, bank, retriever):
    for function in (pair_with_none, lambda texts: pair_by_retrieval(texts, retriever)):
        with pytest.raises(ValueError, match=r"The test split has no column 'tokens'\. It has: words"):
            function(DatasetDict({"test": Dataset.from_dict({"words": [["a"]]})}))
        for name in ("images", "image_ids", "image_spans"):
            with pytest.raises(ValueError, match=f"The test split has a column '{name}' already: remove it first"):
                function(DatasetDict({"test": Dataset.from_dict({"tokens": [["a"]], name: [None]})}))
    with pytest.raises(ValueError, match="`max_images` must be at least 1, got 0"):
        pair_by_lexicon(texts, bank, max_images=0)
    with pytest.raises(ValueError, match="`max_images` must be at least 1, got 0"):
        pair_at_random(texts, bank, max_images=0)
    with pytest.raises(ValueError, match="`max_images` is 4, but the image bank has only 3 images"):
        pair_at_random(texts, bank, max_images=4)
    with pytest.raises(ValueError, match="`top_k` must be at least 1, got 0"):
        pair_by_retrieval(texts, retriever, top_k=0)
    for wrong in (30, 1.5, -1.5):
        with pytest.raises(ValueError, match=f"`score_threshold` is a cosine, between -1 and 1; got {wrong}"):
            pair_by_retrieval(texts, retriever, score_threshold=wrong)
    with pytest.raises(ValueError, match=r"no names to look up, only captions. Pair by retrieval"):
        pair_by_lexicon(texts, ImageBank([BankImage("x", "x.jpg", captions=("a fox",))]))


def test_coverage_of_conll2003(shared_data, tmp_path):
    for name in ("conll2003", "entity-image-bank"):
        if not (shared_data / name).is_dir():
            pytest.skip(f"{shared_data / name} is not here")
    bank = ImageBank.from_folder(shared_data / "entity-image-bank")
    dataset = load_token_classification_dataset(
        validation_file=shared_data / "conll2003" / "valid.txt", cache_dir=tmp_path
    )
    paired = pair_by_lexicon(dataset, bank)["validation"]
    assert sum(map(bool, paired["image_ids"])) == 1361  # of 3250; the bank's README says so too


def test_a_saved_data_set_is_the_old_one_the_new_one_or_refused(
    texts, bank, retriever, manifest, tmp_path, monkeypatch
):
    old, new = (pair("random", texts, bank, retriever, manifest, seed=seed) for seed in (0, 1))

    def ids(data):
        return {split: part["image_ids"][:] for split, part in data.items()}

    assert ids(old) != ids(new)
    rename, left = Path.rename, []

    def killed(self, target):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return rename(self, target)

    save_paired_dataset(old, tmp_path)
    save = DatasetDict.save_to_disk
    monkeypatch.setattr(DatasetDict, "save_to_disk", lambda *args, **kwargs: killed(*args))
    with pytest.raises(KeyboardInterrupt):
        save_paired_dataset(new, tmp_path)
    assert ids(load_token_classification_dataset(str(tmp_path))) == ids(old)

    monkeypatch.setattr(DatasetDict, "save_to_disk", save)
    monkeypatch.setattr(Path, "rename", killed)
    for moved in range(len(texts) + 1):
        left.extend([None] * moved)
        with pytest.raises(KeyboardInterrupt):
            save_paired_dataset(new, tmp_path)
        release_folder(tmp_path)  # which the end of the process does
        for read in (load_token_classification_dataset, open_token_streams):
            with pytest.raises(ValueError, match="was not written to its end"):
                read(str(tmp_path))
    monkeypatch.undo()
    save_paired_dataset(new, tmp_path)
    assert ids(load_token_classification_dataset(str(tmp_path))) == ids(new)
