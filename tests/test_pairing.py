import json

import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from vtfusion.training.data import load_token_classification_dataset
from vtfusion.training.pairing import BankImage, ImageBank, fold, pair_dataset

ROWS = [
    {"image": "images/flag_ge.jpg", "kind": "flag", "name": "Georgia", "aliases": ["Georgian"]},
    {"image": "images/state_ga.jpg", "kind": "state", "name": "Georgia", "aliases": []},
    {"image": "images/flag_us.jpg", "kind": "flag", "name": "United States of America", "aliases": ["United States"]},
    {"image": "images/atletico.jpg", "kind": "club", "name": "Atlético Madrid", "aliases": ["Madrid"]},
    {"image": "images/nothing.jpg", "name": "it"},
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for row in ROWS:
        (tmp_path / row["image"]).write_bytes(b"not an image: nothing here opens it")
    write(tmp_path, ROWS)
    return tmp_path


def write(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def found(bank, words, **kwargs):
    return [(match.text, match.image.image_id) for match in bank.match(words.split(), **kwargs)]


def test_matching_worked_by_hand(folder):
    bank = ImageBank.from_folder(folder)
    assert len(bank) == 5
    assert found(bank, "the Georgian team beat ATLETICO MADRID .") == [
        ("Georgian", "flag_ge"),
        ("ATLETICO MADRID", "atletico"),
    ]
    assert found(bank, "United States of America") == [("United States of America", "flag_us")]  # longest first
    assert found(bank, "United States of Madrid") == [("United States", "flag_us"), ("Madrid", "atletico")]
    assert found(bank, "in georgia , it rains") == []  # no capital
    assert found(bank, "It rains") == [("It", "nothing")]  # no rule for the first word of a sentence
    assert found(bank, "") == []
    assert bank.match(["", "Georgia"])[0].start == 1
    match = bank.match(["in", "Atletico", "Madrid"])[0]
    assert (match.start, match.end, match.image.kind) == (1, 3, "club")
    assert match.image.path == str(folder / "images" / "atletico.jpg")


def test_kinds_filter_and_give_the_order(folder):
    bank = ImageBank.from_folder(folder)
    assert found(bank, "Georgia") == [("Georgia", "flag_ge")]
    assert found(bank, "Georgia", kinds=["state", "flag"]) == [("Georgia", "state_ga")]
    assert found(bank, "Georgia", kinds=["flag", "state"]) == [("Georgia", "flag_ge")]
    assert found(bank, "Georgia Madrid", kinds=["state"]) == [("Georgia", "state_ga")]


def test_runs_are_no_longer_than_asked_for():
    bank = ImageBank([BankImage("x", "x.jpg", "A b c d e f g")], max_words=6)
    assert found(bank, "A b c d e f g") == []
    assert found(ImageBank(bank.images, max_words=7), "A b c d e f g") == [("A b c d e f g", "x")]


def test_fold():
    assert fold("Atlético  MADRID") == fold("atletico madrid") == "atletico madrid"
    assert fold("Straße") == "strasse"


def test_pair_dataset(folder):
    bank = ImageBank.from_folder(folder)
    tokens = [["Georgia", "met", "Madrid", "in", "Georgia"], ["no", "name"], ["Madrid"]]
    dataset = Dataset.from_dict({"tokens": tokens, "id": [7, 8, 9]})

    paired = pair_dataset(dataset, bank)
    assert paired.features["images"] == List(Image(decode=False))
    assert paired["image_ids"][:] == [["flag_ge"], [], ["atletico"]]
    assert paired["images"][:] == [
        [{"bytes": None, "path": str(folder / "images" / "flag_ge.jpg")}],
        None,
        [{"bytes": None, "path": str(folder / "images" / "atletico.jpg")}],
    ]
    assert paired["tokens"][:] == tokens and paired["id"][:] == [7, 8, 9]

    assert pair_dataset(dataset, bank, max_images=5)["image_ids"][0] == ["flag_ge", "atletico"]  # each picture once
    assert pair_dataset(dataset, bank, kinds=["state"])["image_ids"][:] == [["state_ga"], [], []]


def test_labels_are_never_read(folder):
    bank = ImageBank.from_folder(folder)
    tokens = [["Georgia", "met", "Madrid"], ["no", "name"], ["United", "States"]]
    features = Features(
        {"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B-LOC", "I-LOC", "B-ORG"]))}
    )
    tags = [[[1, 0, 3], [0, 0], [1, 2]], [[0, 3, 1], [2, 1], [0, 0]], [[0, 0, 0], [0, 0], [0, 0]]]
    results = [
        pair_dataset(Dataset.from_dict({"tokens": tokens, "ner_tags": t}, features=features), bank)["images"][:]
        for t in tags
    ]
    assert results[0] == results[1] == results[2]
    assert results[0] == pair_dataset(Dataset.from_dict({"tokens": tokens}), bank)["images"][:]


def test_pair_dataset_names_what_is_wrong(folder):
    bank = ImageBank.from_folder(folder)
    with pytest.raises(ValueError, match=r"no column 'tokens'\. It has: words"):
        pair_dataset(Dataset.from_dict({"words": [["a"]]}), bank)
    with pytest.raises(ValueError, match="column 'images' already"):
        pair_dataset(Dataset.from_dict({"tokens": [["a"]], "images": [None]}), bank)
    with pytest.raises(ValueError, match="at least 1"):
        pair_dataset(Dataset.from_dict({"tokens": [["a"]]}), bank, max_images=0)
    with pytest.raises(ValueError, match="no image of the kind 'map'"):
        pair_dataset(Dataset.from_dict({"tokens": [["a"]]}), bank, kinds=["map"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "images/flag_ge.jpg"}, "line 2: expected a string in the field 'name'"),
        ({"name": "Georgia"}, "line 2: expected a string in the field 'image'"),
        ({"image": "images/flag_us.jpg", "name": "US", "aliases": "USA"}, "line 2: expected a list of strings"),
        ({"image": "images/flag_ge.jpg", "name": "Georgia"}, "line 2: the image id 'flag_ge' was there before"),
        (["x"], "line 2: expected a JSON object"),
    ],
)
def test_bad_bank_rows_are_named(folder, row, message):
    write(folder, [ROWS[0], row])
    with pytest.raises(ValueError, match=message):
        ImageBank.from_folder(folder)


def test_missing_bank_files_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"no metadata\.jsonl"):
        ImageBank.from_folder(folder / "images")
    write(folder, [{"image": "images/gone.jpg", "name": "Gone"}])
    with pytest.raises(FileNotFoundError, match=r"line 1: the image file .*gone\.jpg is missing"):
        ImageBank.from_folder(folder)
    (folder / "metadata.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="names no image"):
        ImageBank.from_folder(folder)


def test_coverage_of_conll2003(shared_data, tmp_path):
    for name in ("conll2003", "entity-image-bank"):
        if not (shared_data / name).is_dir():
            pytest.skip(f"{shared_data / name} is not here")
    bank = ImageBank.from_folder(shared_data / "entity-image-bank")
    dataset = load_token_classification_dataset(
        validation_file=shared_data / "conll2003" / "valid.txt", cache_dir=tmp_path
    )
    paired = pair_dataset(dataset["validation"], bank)
    assert sum(images is not None for images in paired["images"]) == 1361  # of 3250; the bank's README says so too
