from pathlib import Path

import pytest

from vtfusion.training.tags import (
    StrayInsideTags,
    detect_scheme,
    find_stray_inside_tags,
    iob2_label_names,
    split_tag,
    to_iob2,
)

# One text, four entities: PER over three words, LOC over one, and two ORG side by side, in every scheme.
SAME_TEXT = {
    "IOB1": ["I-PER", "I-PER", "I-PER", "O", "I-LOC", "O", "I-ORG", "I-ORG", "B-ORG"],
    "IOB2": ["B-PER", "I-PER", "I-PER", "O", "B-LOC", "O", "B-ORG", "I-ORG", "B-ORG"],
    "BIOES": ["B-PER", "I-PER", "E-PER", "O", "S-LOC", "O", "B-ORG", "E-ORG", "S-ORG"],
    "BILOU": ["B-PER", "I-PER", "L-PER", "O", "U-LOC", "O", "B-ORG", "L-ORG", "U-ORG"],
}


def ner_columns(path: Path) -> list[list[str]]:
    blocks = path.read_text(encoding="utf-8").split("\n\n")
    sentences = [[line.split()[-1] for line in b.splitlines() if line and line[:10] != "-DOCSTART-"] for b in blocks]
    return [tags for tags in sentences if tags]


@pytest.mark.parametrize("scheme", SAME_TEXT)
def test_every_scheme_is_detected_and_converted(scheme):
    assert detect_scheme([SAME_TEXT[scheme]]) == scheme
    assert to_iob2(SAME_TEXT[scheme], scheme) == SAME_TEXT["IOB2"]
    assert to_iob2(SAME_TEXT[scheme]) == SAME_TEXT["IOB2"]
    assert find_stray_inside_tags([SAME_TEXT[scheme]], scheme).count == 0


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([], []),
        (["O"], ["O"]),
        (["I-A"], ["B-A"]),
        (["O", "I-A", "I-A"], ["O", "B-A", "I-A"]),
        (["I-A", "I-B"], ["B-A", "B-B"]),
        (["B-A", "I-B", "I-B"], ["B-A", "B-B", "I-B"]),
        (["B-A", "B-A"], ["B-A", "B-A"]),
        (["I-A", "B-A", "I-A"], ["B-A", "B-A", "I-A"]),
        (["S-A", "I-A"], ["B-A", "B-A"]),  # the entity before is closed
        (["B-A", "E-A", "E-A"], ["B-A", "I-A", "B-A"]),
        (["B-A", "O", "E-A"], ["B-A", "O", "B-A"]),
        (["S-A", "S-A", "S-B"], ["B-A", "B-A", "B-B"]),
        (["B-per-son", "I-per-son"], ["B-per-son", "I-per-son"]),
    ],
)
def test_hand_worked_conversions(tags, expected):
    assert to_iob2(tags) == expected
    assert to_iob2(expected, "IOB2") == expected


def test_scheme_is_a_matter_of_the_whole_data_set():
    assert detect_scheme([["I-PER", "O"], ["O"]]) == "IOB1"
    # One stray tag in an IOB2 set does not make it IOB1, nor does an odd B- make an IOB1 set IOB2.
    assert detect_scheme([["I-PER", "O"], ["B-PER"], ["B-LOC", "I-LOC"]]) == "IOB2"
    assert detect_scheme([["I-PER", "O"], ["I-LOC"], ["O", "B-LOC"]]) == "IOB1"
    assert detect_scheme([]) == detect_scheme([["O", "O"]]) == "IOB2"
    # A BIOES set whose first texts look like IOB2.
    assert detect_scheme([["O", "B-A", "I-A"], ["S-A"]]) == "BIOES"
    with pytest.raises(ValueError, match="mix"):
        detect_scheme([["S-A"], ["U-A"]])


def test_stray_inside_tags_are_counted_and_located():
    sequences = [["B-A", "I-A", "O"], ["O", "I-A", "I-A", "I-B"], ["I-A"]]
    assert find_stray_inside_tags(sequences) == StrayInsideTags(count=3, row=1, position=1, tag="I-A")
    assert find_stray_inside_tags(sequences, "IOB1") == StrayInsideTags(0, None, None, None)
    assert find_stray_inside_tags([["S-A", "E-A"]], "BIOES") == StrayInsideTags(1, 0, 1, "E-A")


@pytest.mark.parametrize("tag", ["PER", "b-PER", "B", "B-", "B_PER", "X-PER", "", "o", None, 3])
def test_unreadable_tags_are_named(tag):
    with pytest.raises(ValueError, match="row 1, position 2") as error:
        detect_scheme([["O"], ["O", "O", tag]])
    assert repr(tag) in str(error.value)
    with pytest.raises(ValueError, match="row 7, position 0"):
        to_iob2([tag], row=7)
    with pytest.raises(ValueError, match=r"^position 0"):
        to_iob2([tag])


def test_a_tag_of_another_scheme_is_an_error():
    with pytest.raises(ValueError, match=r"position 1: tag 'S-A' does not belong to the scheme IOB2"):
        to_iob2(["O", "S-A"], "IOB2")
    with pytest.raises(ValueError, match="does not belong to the scheme BIOES"):
        to_iob2(["U-A"], "bioes")
    with pytest.raises(ValueError, match="Known ones: IOB1, IOB2, BIOES, BILOU"):
        to_iob2(["O"], "IOE2")


def test_split_tag_and_label_names():
    assert split_tag("B-PER") == ("B", "PER")
    assert split_tag("O") == ("O", "")
    assert iob2_label_names(["PER", "LOC", "PER"]) == ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@pytest.mark.parametrize(
    ("iob1", "iob2"), [("eng.train", "train.txt"), ("eng.testa", "valid.txt"), ("eng.testb", "test.txt")]
)
def test_conll2003(shared_data, iob1, iob2):
    folder = shared_data / "conll2003"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    old, new = ner_columns(folder / "iob1" / iob1), ner_columns(folder / iob2)
    assert detect_scheme(old) == "IOB1"
    assert detect_scheme(new) == "IOB2"
    assert find_stray_inside_tags(new).count == 0
    assert [to_iob2(tags, "IOB1") for tags in old] == new
    assert [to_iob2(tags, "IOB2") for tags in new] == new
