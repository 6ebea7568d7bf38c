"""A trained model over files: what `vtfusion predict` says of a row is what the training's own test says of it."""

import json

import pytest
import torch

from pipelines import make
from vtfusion.training.classification import TextEvaluator
from vtfusion.training.classification_data import MULTI, load_classification_dataset
from vtfusion.training.prediction import load_examples, predict_file
from vtfusion.training.question_data import load_question_answering_dataset
from vtfusion.training.token_data import open_token_streams
from writing import write, write_jsonl


@pytest.fixture(scope="module")
def ner():
    return make("multimodal-token-classification")


@pytest.fixture(scope="module")
def classify():
    return make("multimodal-text-classification")


@pytest.fixture(scope="module")
def qa():
    return make("multimodal-question-answering")


def predict(pipe, file, options=None, **reading):
    """The lines that are written for a file."""
    output = file.parent / "predictions.jsonl"
    predict_file(pipe, load_examples(file, pipe, **reading), output, batch_size=2, **(options or {}))
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


# ------------------------------------------------------- texts ------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("tokens.csv", 'tokens\n"[""john\'s"", ""fox""]"\njohn\'s fox\n', [["john's", "fox"]] * 2),
        ("headline.csv", "headline\n\"['john', 'fox']\"\n", [["john", "fox"]]),
        ("tokens.jsonl", '{"tokens": ["john\'s", "fox"]}\n', [["john's", "fox"]]),
    ],
)
def test_words_are_read_as_in_the_training(ner, tmp_path, name, content, expected):
    file = write(tmp_path / name, content)
    lines = predict(ner, file, columns={"text": file.stem})
    trained_on = open_token_streams(test_file=file, tokens_column=file.stem)["test"]
    assert [line["text"] for line in lines] == [row["tokens"] for row in trained_on] == expected
    for line, words in zip(lines, expected, strict=True):
        found = [entity["text"] for entity in ner({"tokens": words})]
        assert found and [entity["text"] for entity in line["prediction"]] == found


def test_other_texts_are_no_lists_of_words(ner, classify, tmp_path):
    texts = ["[1]", "john's fox", '["john", "fox"]']
    file = write(tmp_path / "lines.txt", "\n".join(texts))
    assert [line["text"] for line in predict(ner, file)] == texts
    file = write_jsonl(tmp_path / "lines.jsonl", [{"text": texts[2]}])
    assert predict(classify, file)[0]["text"] == texts[2]


def test_the_name_of_a_text_file_is_no_pattern(ner, tmp_path):
    write(tmp_path / "a1.txt", "john")
    assert load_examples(write(tmp_path / "a[1].txt", "the fox"), ner)["text"][:] == ["the fox"]


@pytest.mark.parametrize("column", ["tokens", "words", "passage"])
def test_the_words_of_a_context_are_joined_as_in_the_training(qa, tmp_path, column):
    rows = [{"question": "who", column: ["john", "smith", "sees", "the", "fox"]}, {"question": "what", column: ["a"]}]
    file = write_jsonl(tmp_path / "words.jsonl", rows)
    lines = predict(qa, file)
    contexts = load_question_answering_dataset(test_file=file)["test"]["context"]
    assert [line["context"] for line in lines] == list(contexts) == ["john smith sees the fox", "a"]
    assert lines[0]["prediction"]["answer"] == qa(question="who", context=contexts[0])["answer"]


def test_a_text_that_is_null_is_empty_to_a_classifier_and_named_to_others(ner, qa, classify, tmp_path):
    file = write_jsonl(tmp_path / "null.jsonl", [{"text": "john"}, {"text": None}])
    assert [line["text"] for line in predict(classify, file)] == ["john", ""]
    with pytest.raises(ValueError, match=r"null.jsonl\), row 1, field `text`: expected a string, got None"):
        load_examples(file, ner)
    with pytest.raises(ValueError, match=r"row 1, field `tokens`: there are no words"):
        load_examples(write_jsonl(tmp_path / "none.jsonl", [{"tokens": ["a"]}, {"tokens": []}]), ner)
    file = write_jsonl(
        tmp_path / "null.jsonl", [{"question": "a", "context": "b"}, {"question": None, "context": "b"}]
    )
    with pytest.raises(ValueError, match=r"row 1, field `question`: expected a string, got None"):
        load_examples(file, qa)


@pytest.mark.parametrize("column", ["text_pair", "answer"])
def test_the_second_text_of_a_pair_is_read(classify, tmp_path, column):
    pairs = [("the fox", "john smith"), ("the fox", "paris"), ("the fox", "")]
    rows = [{"text": text, column: pair or None} for text, pair in pairs]
    file = write_jsonl(tmp_path / "pairs.jsonl", rows)
    columns = None if column == "text_pair" else {"text_pair": column}
    lines = predict(classify, file, columns=columns)
    assert [(line["text"], line["text_pair"]) for line in lines] == pairs
    scores = [classify(text=text, text_pair=pair, top_k=1)["score"] for text, pair in pairs]
    assert len({round(score, 4) for score in scores}) == 3  # so the pair matters
    assert [line["prediction"]["score"] for line in lines] == pytest.approx(scores, rel=1e-4)


def test_all_labels_that_apply_are_those_of_the_test(tmp_path):
    several = make("multimodal-text-classification", seed=2, problem_type=MULTI)  # labels of either kind
    names = ["bad", "so", "good"]
    texts = ["the fox", "john smith", "lower", " ".join(["john smith in paris"] * 20)]
    file = write_jsonl(tmp_path / "texts.jsonl", [{"text": text, "label": [1.0, 0.0, 0.0]} for text in texts])
    (dataset, problem_type, _) = load_classification_dataset(test_file=file, labels=names)
    batch = several.processor(text=texts, return_tensors="pt")
    assert len(batch.row_of_window) > len(texts)
    with torch.no_grad():
        logits = several.model(**batch).logits.numpy()
    tested = TextEvaluator(dataset["test"], {"row": batch.row_of_window}, problem_type, names).answers((logits,))
    assert {len(answer["label"]) for answer in tested} == {1, 3}
    for line, answer in zip(predict(several, file), tested, strict=True):
        assert line["prediction"].keys() == {*answer, "gate"}
        assert line["prediction"]["label"] == answer["label"]
        assert line["prediction"]["scores"] == pytest.approx(answer["scores"], abs=1e-5)
    assert predict(several, file, {"top_k": 1})[0]["prediction"].keys() == {"label", "score", "gate"}


def test_a_second_text_is_for_models_that_read_one(ner, tmp_path):
    file = write_jsonl(tmp_path / "pairs.jsonl", [{"text": "the fox", "text_pair": "john"}])
    assert predict(ner, file)[0].keys() == {"row", "text", "prediction"}
    with pytest.raises(ValueError, match="reads no text_pair, but text"):
        load_examples(file, ner, {"text_pair": "text_pair"})
