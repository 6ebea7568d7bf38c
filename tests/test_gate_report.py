"""The gate report: use of pictures by word against a loop by hand, its tables, examples and page."""

import base64
import io
import re

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from transformers import AutoImageProcessor, AutoTokenizer

from vtfusion import VTFusionProcessor
from vtfusion.app.gate_page import gate_page
from vtfusion.training.gate_report import choose_examples, summarize_usage, word_usage
from vtfusion.training.sample_data import build_sample_dataset, build_tiny_encoders
from vtfusion.training.token_classification import WordEvaluator, encode_windows
from vtfusion.training.token_data import load_token_classification_dataset


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gates")
    build_sample_dataset(num_train=16, num_validation=8, num_test=12, image_size=32).save_to_disk(str(folder / "data"))
    dataset = load_token_classification_dataset(str(folder / "data"))
    build_tiny_encoders(folder, dataset, image_size=32)
    processor = VTFusionProcessor(
        AutoImageProcessor.from_pretrained(folder / "vision"), AutoTokenizer.from_pretrained(folder / "text")
    )
    windows = encode_windows(dataset["test"], processor, [None] * 12).sort("length", reverse=True)
    return WordEvaluator(dataset["test"], windows, processor)


def random_predictions(evaluator, seed):
    rng = np.random.default_rng(seed)
    shape = (len(evaluator.word_positions), max(map(len, evaluator.word_positions)))
    return rng.normal(size=(*shape, 9)).astype(np.float32), rng.random(shape).astype(np.float32)


def test_usage_of_every_word_by_hand(evaluator):
    true, none = random_predictions(evaluator, 0), random_predictions(evaluator, 1)
    keys = [["a"] if row % 3 else None for row in range(12)]
    usage = word_usage(evaluator, true, none, keys)
    assert set(usage["row"]) == {row for row in range(12) if row % 3}

    def softmax(logits):
        powers = np.exp(logits.astype(np.float64))
        return powers / powers.sum()

    found = {(row.row, row.position): row for row in usage.itertuples()}
    for window, row in enumerate(evaluator.row_of_window):
        for token, word in enumerate(evaluator.word_positions[window]):
            if word < 0 or not keys[row]:
                continue
            use = found.pop((row, word))
            assert use.word == evaluator.rows[row].words[word]
            assert use.gate == pytest.approx(true[1][window, token])
            p, q = softmax(true[0][window, token]), softmax(none[0][window, token])
            assert use.effect == pytest.approx(np.abs(p - q).sum() / 2, abs=1e-6)
            assert (use.tag, use.tag_without_image) == (
                evaluator.label_names[p.argmax()],
                evaluator.label_names[q.argmax()],
            )
            assert use.true_tag == evaluator.references[row][word]
            assert use.entity_type == ("no entity" if use.true_tag == "O" else use.true_tag[2:])
    assert not found


def test_rows_without_any_picture_are_refused(evaluator):
    predictions = random_predictions(evaluator, 0)
    with pytest.raises(ValueError, match="No text of this split has an image"):
        word_usage(evaluator, predictions, predictions, [None] * 12)


def usage_table():
    columns = ["row", "position", "word", "entity_type", "true_tag", "tag", "tag_without_image", "gate", "effect"]
    return pd.DataFrame(
        [
            (0, 0, "Kelda", "LOC", "B-LOC", "B-LOC", "O", 0.9, 0.8),  # mended
            (0, 1, "fell", "no entity", "O", "O", "O", 0.1, 0.0),
            (1, 0, "kelda", "LOC", "B-LOC", "O", "B-LOC", 0.5, 0.6),  # broken
            (2, 0, "Rim", "PER", "B-PER", "B-PER", "B-PER", 0.3, 0.9),  # moved, but not changed
            (3, 0, "Rim", "PER", "B-PER", "B-LOC", "O", 0.7, 0.1),  # wrong either way
        ],
        columns=columns,
    )


def test_tables_by_hand():
    report = summarize_usage(usage_table(), min_count=2)
    by_type = report.by_type
    assert list(by_type.index) == ["LOC", "PER", "no entity", "all words"]
    loc = by_type.loc["LOC"]
    assert (loc["words"], loc["mended"], loc["broken"]) == (2, 1, 1)
    assert (loc["gate"], loc["gate_deviation"], loc["effect"]) == pytest.approx((0.7, 0.4 / 2**0.5, 0.7))
    assert by_type.loc["all words", "effect"] == pytest.approx(2.4 / 5)
    # case is folded, rare words are left out, the largest effect comes first
    assert list(report.by_word.index) == ["kelda", "rim"]
    text = report.to_markdown()
    assert "| LOC | 2 | 0.70 ± 0.28 | 0.700 | 1 | 1 |" in text
    assert "| no entity | 1 | 0.10 | 0.000 | 0 | 0 |" in text


def test_examples_show_the_good_and_the_bad():
    assert choose_examples(usage_table(), 3) == [0, 1, 2]
    assert choose_examples(usage_table(), 10) == [0, 1, 2, 3]
    assert choose_examples(usage_table(), 1) == [0]


def test_saved_tables_and_page(tmp_path):
    usage = usage_table()
    usage.loc[0, "word"] = "<b>&"
    report = summarize_usage(usage, min_count=1)
    report.save(tmp_path)
    assert pd.read_csv(tmp_path / "gate_by_type.csv")["words"].tolist() == [2, 2, 1, 5]
    assert (tmp_path / "gate_report.md").read_text() == report.to_markdown()
    figure = PIL.Image.new("RGB", (40, 30), "red")
    page = gate_page("Title <i>", report, [{"figure": figure, "usage": usage[usage["row"] == row]} for row in (0, 2)])
    assert "<b>" not in page and "<i>" not in page
    assert "&lt;b&gt;&amp;: B-LOC with the picture, O without, true B-LOC" in page
    assert "The picture changed no tag." in page
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)\"", page)[1])))
    assert picture.size == (40, 30)
