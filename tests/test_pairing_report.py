import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from vtfusion.training.pairing_report import LABEL_NOTE, coverage_report, label_analysis, pairing_markdown

LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
FEATURES = Features(
    {
        "tokens": List(Value("string")),
        "ner_tags": List(ClassLabel(names=LABELS)),
        "image_ids": List(Value("string")),
        "image_scores": List(Value("float32")),
        "image_spans": List(List(Value("int32"))),
    }
)


def row(ids, scores, tags, spans=()):
    return {
        "tokens": ["word"] * len(tags),
        "ner_tags": tags,
        "image_ids": ids,
        "image_scores": scores,
        "image_spans": [list(span) for span in spans],
    }


@pytest.fixture
def paired():
    train = [
        row(["x", "y"], [0.75, 0.25], [1, 2, 0, 3], [(0, 2), (2, 3)]),  # the LOC is named, the PER is not
        row(["x"], [0.5], [3, 4, 0], [(0, 1)]),  # only a part of the PER gave the picture
        row([], [], [1, 0]),
        row([], [], [0]),
    ]
    test = [row(["z"], [None], [0])]
    return DatasetDict(
        {n: Dataset.from_list(rows, features=FEATURES) for n, rows in (("train", train), ("test", test))}
    )


def test_counts_by_hand(paired):
    report = coverage_report(paired)
    scores = report["train"].pop("scores")
    assert report["train"] == {
        "texts": 4,
        "texts_with_image": 2,
        "coverage": 0.5,
        "images": 3,
        "different_images": 2,
        "images_per_text": {"0": 2, "1": 1, "2": 1},
        "most_used": [{"image_id": "x", "texts": 2}, {"image_id": "y", "texts": 1}],
    }
    assert (scores["count"], scores["mean"], scores["min"], scores["max"]) == (3, 0.5, 0.25, 0.75)
    assert scores["std"] == pytest.approx((0.125 / 3) ** 0.5)
    assert scores["quantiles"] == pytest.approx(
        {"0.05": 0.275, "0.25": 0.375, "0.5": 0.5, "0.75": 0.625, "0.95": 0.725}
    )
    bins = scores["histogram"]
    assert [b["count"] for b in bins] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert (bins[0]["from"], bins[-1]["to"]) == (0.25, 0.75)
    np.testing.assert_allclose([b["to"] - b["from"] for b in bins], 0.05)
    assert report["test"]["scores"] is None and report["test"]["coverage"] == 1.0


def test_labels_are_read_in_the_analysis_alone(paired):
    assert label_analysis(paired) == {
        "note": LABEL_NOTE,
        "splits": {
            "train": {
                "LOC": {"entities": 2, "with_image": 1, "named": 1},
                "PER": {"entities": 2, "with_image": 2, "named": 0},
            },
            "test": {},
        },
    }
    bare = DatasetDict({split: part.remove_columns("ner_tags") for split, part in paired.items()})
    assert label_analysis(bare) is None
    assert coverage_report(bare) == coverage_report(paired)
    without = DatasetDict({split: part.remove_columns("image_spans") for split, part in paired.items()})
    assert label_analysis(without)["splits"]["train"]["LOC"] == {"entities": 2, "with_image": 1}


def test_the_page(paired):
    report = {
        "strategy": "retrieval",
        "settings": {"image_bank": "a|b", "kinds": ["x", "y"]},
        "versions": {"python": "3.11"},
        "coverage": coverage_report(paired),
        "label_analysis": label_analysis(paired),
    }
    page = pairing_markdown(json.loads(json.dumps(report)))  # as it was saved
    assert "| train | 4 | 2 | 50.0% | 3 | 2 |" in page
    assert "| train | 0.500 | 0.204 | 0.250 | 0.275 | 0.375 | 0.500 | 0.625 | 0.725 | 0.750 |" in page
    assert " 0.250 –  0.300          1  ████" in page
    assert "| train | x (2), y (1) |" in page
    assert "| LOC | 2 | 1 (50.0%) | 1 (50.0%) |" in page
    assert LABEL_NOTE in page and page.index(LABEL_NOTE) > page.index("## Scores")
    assert "| image_bank | a\\|b |" in page
    tables = [block for block in page.split("\n\n") if block.startswith("|")]
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1, table
    assert "Nothing but the words was read" in page
    assert "only its author knows" in pairing_markdown({**report, "strategy": "manifest"})
    report["label_analysis"] = None
    assert "labels, afterwards" not in pairing_markdown(report)
