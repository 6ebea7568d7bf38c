import pickle
import unicodedata

import pytest

from vtfusion.training.image_bank import BankImage, ImageBank, fold
from writing import write_jsonl

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
    write_jsonl(tmp_path / "metadata.jsonl", ROWS)
    return tmp_path


def found(bank, words):
    return [(match.text, match.image.image_id) for match in bank.match(words.split())]


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


def test_rules_of_case(folder):
    ignore = ImageBank.from_folder(folder, match_case="ignore")
    assert found(ignore, "in georgia , it rains") == [("georgia", "flag_ge"), ("it", "nothing")]
    exact = ImageBank.from_folder(folder, match_case="exact")
    assert found(exact, "It rains in Georgia and GEORGIA") == [("Georgia", "flag_ge")]
    assert found(exact, "Atletico Madrid") == [("Madrid", "atletico")]  # the accent counts too
    assert found(exact, "Atle\u0301tico Madrid") == [("Atle\u0301tico Madrid", "atletico")]  # however it is encoded
    with pytest.raises(ValueError, match="`match_case` takes capital, ignore, exact; got 'upper'"):
        ImageBank([], match_case="upper")


def test_kinds_filter_and_give_the_order(folder):
    bank = ImageBank.from_folder(folder)
    assert found(bank, "Georgia") == [("Georgia", "flag_ge")]
    assert found(bank.select_kinds(["state", "flag"]), "Georgia") == [("Georgia", "state_ga")]
    assert found(bank.select_kinds(["flag", "state"]), "Georgia") == [("Georgia", "flag_ge")]
    assert found(ImageBank.from_folder(folder, kinds=["state"]), "Georgia Madrid") == [("Georgia", "state_ga")]
    assert ImageBank.from_folder(folder, match_case="ignore", kinds=["club"]).match_case == "ignore"
    with pytest.raises(ValueError, match=r"no image of the kind 'map'.*It has: flag, state, club, None"):
        bank.select_kinds(["flag", "map"])


def test_runs_are_no_longer_than_asked_for():
    bank = ImageBank([BankImage("x", "x.jpg", "A b c d e f g")], max_words=6)
    assert found(bank, "A b c d e f g") == []
    assert found(ImageBank(bank.images, max_words=7), "A b c d e f g") == [("A b c d e f g", "x")]


def test_fold():
    assert fold("Atlético  MADRID") == fold("atletico madrid") == "atletico madrid"
    assert fold("Straße") == "strasse"
    assert fold("ÉLÁN ΑΘΉΝΑ Ệ") == "elan αθηνα e"  # composed or not, one mark or two


@pytest.mark.parametrize(
    ("text", "other"), [("パリ", "ハリ"), ("バス", "ハス"), ("क्ल", "कल"), ("Толстой", "Толстои"), ("ﾊﾟﾘ", "ハリ")]
)
def test_marks_that_make_another_letter_stay(text, other):
    """Paris is no needle and a bus no lotus; a joined and a whole syllable; й and и; half the width is the same word."""
    bank = ImageBank([BankImage("a", "a.jpg", text)], match_case="ignore")
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        words = unicodedata.normalize(form, text).upper()
        assert found(bank, words) == [(words, "a")]
    assert found(bank, other) == []


def test_captions(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.jpg").touch()
    write_jsonl(
        tmp_path / "metadata.jsonl",
        [
            {"image": "a.jpg", "captions": ["A dog runs .", " "]},
            {"file_name": "b.jpg", "name": "tench", "aliases": ["Tinca tinca"], "captions": []},
            {"image": "c.jpg", "name": "boat", "captions": ["A red boat ."], "id": 7},
        ],
    )
    images = ImageBank.from_folder(tmp_path).images
    assert [image.texts for image in images] == [("A dog runs .",), ("tench", "Tinca tinca"), ("A red boat .",)]
    assert [image.names for image in images] == [(), ("tench", "Tinca tinca"), ("boat",)]
    assert [image.image_id for image in images] == ["a", "b", "7"]


def test_a_bank_survives_pickling(folder):
    bank = ImageBank.from_folder(folder, max_words=3, match_case="exact")
    copy = pickle.loads(pickle.dumps(bank))
    assert (copy.images, copy.max_words, copy.match_case) == (bank.images, 3, "exact")
    assert found(copy, "It rains in Georgia") == [("Georgia", "flag_ge")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "images/flag_ge.jpg"}, "line 2, field `name`: expected a string"),
        (
            {"image": "images/flag_us.jpg", "name": 5, "captions": ["x"]},
            "line 2, field `name`: expected a string",
        ),
        ({"name": "Georgia"}, "line 2, field `image`: expected a string"),
        (
            {"image": "images/flag_us.jpg", "name": "US", "aliases": "USA"},
            "line 2, field `aliases`: expected a list of strings, got 'USA'",
        ),
        (
            {"image": "images/flag_us.jpg", "captions": ["x", 1]},
            r"line 2, field `captions`: expected a list of strings, got \['x', 1\]",
        ),
        (
            {"image": "images/flag_ge.jpg", "name": "Georgia"},
            "line 2, field `id`: the image id 'flag_ge' was there before. Give each row a different one",
        ),
        (["x"], "line 2: expected a JSON object"),
    ],
)
def test_bad_bank_rows_are_named(folder, row, message):
    write_jsonl(folder / "metadata.jsonl", [ROWS[0], row])
    with pytest.raises(ValueError, match=message):
        ImageBank.from_folder(folder)


def test_bad_json_and_repeated_ids_are_named(folder):
    (folder / "metadata.jsonl").write_text('{"image": \n')
    with pytest.raises(ValueError, match=r"metadata\.jsonl, line 1: not valid JSON"):
        ImageBank.from_folder(folder)
    with pytest.raises(ValueError, match="Two images of the bank have the id 'x'"):
        ImageBank([BankImage("x", "x.jpg", "A"), BankImage("x", "y.jpg", "B")])


def test_missing_bank_files_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"no metadata\.jsonl"):
        ImageBank.from_folder(folder / "images")
    write_jsonl(folder / "metadata.jsonl", [{"image": "images/gone.jpg", "name": "Gone"}])
    with pytest.raises(FileNotFoundError, match=r"line 1, field `image`: the image file .*gone\.jpg is missing"):
        ImageBank.from_folder(folder)
    (folder / "metadata.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="names no image"):
        ImageBank.from_folder(folder)


@pytest.mark.parametrize(
    ("name", "images", "texts"), [("flickr8k-1000", 1000, 5000), ("imagenet-sample-1000", 1000, 1000)]
)
def test_real_banks(shared_data, name, images, texts):
    if not (shared_data / name).is_dir():
        pytest.skip(f"{shared_data / name} is not here")
    bank = ImageBank.from_folder(shared_data / name)
    assert (len(bank), sum(len(image.texts) for image in bank.images)) == (images, texts)  # as their READMEs say
