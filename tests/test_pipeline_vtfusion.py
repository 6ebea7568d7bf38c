"""Pipelines: what they say is what the model and the processor say, in whatever form and batch the examples come."""

import datasets
import numpy as np
import pytest
import torch
from transformers import pipeline

from pipelines import HEADS, LABELS, make, picture
from vtfusion import pipeline_vtfusion

LONG = " ".join(["john smith", "the lower fox in paris"] * 20)


@pytest.fixture(scope="module")
def ner():
    return make("multimodal-token-classification")


@pytest.fixture(scope="module")
def classify():
    return make("multimodal-text-classification")


@pytest.fixture(scope="module")
def vqa():
    return make("multimodal-visual-question-answering")


@pytest.fixture(scope="module")
def qa():
    return make("multimodal-question-answering")


def run(pipe, text, images, **kwargs):
    """The model's word on one text, without the pipeline."""
    batch = pipe.processor(text=[text], images=None if images is None else [images], return_tensors="pt", **kwargs)
    with torch.no_grad():
        return pipe.model(**batch, output_fusion_attentions=True), batch


def assert_close(found, expected, where="result"):
    """Equal, with numbers as close as other batches allow."""
    assert type(found) is type(expected), (where, found, expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_close(found[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_close(one, other, f"{where}[{index}]")
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=lambda message: f"{where}: {message}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5), where
    else:
        assert found == expected, where


# ------------------------------------------------------ entities ----------------------------------------------------


def test_entities_are_those_of_model_and_processor(ner):
    outputs, batch = run(ner, "john smith sees the fox", picture())
    expected = ner.processor.post_process_token_classification(outputs, batch, ner.model.config.id2label)[0]
    assert expected and expected[0]["image_region"] is not None
    found = ner("john smith sees the fox", images=picture())
    assert_close(found, expected)
    without, batch = run(ner, "john smith sees the fox", None)
    expected = ner.processor.post_process_token_classification(without, batch, ner.model.config.id2label)[0]
    assert_close(ner("john smith sees the fox"), expected)


def test_labels_are_read_as_the_processor_says(ner, monkeypatch):
    texts = ["john smith sees the fox", "the fox sees john smith, 😀 fox"]

    def labels(**kwargs):
        return [[word["entity"] for word in words] for words in ner(texts, aggregation_strategy="none", **kwargs)]

    # what the model likes best cannot stand first
    monkeypatch.setattr(ner.model.config, "id2label", {0: "O", 1: "I-PER", 2: "B-PER"})
    monkeypatch.setattr(ner.model.classifier.bias, "data", torch.tensor([-30.0, 9.0, 0.0]))
    by_argmax, by_viterbi = labels(), labels(decoding="viterbi")
    assert by_argmax[0][0] == "I-PER" != by_viterbi[0][0]
    monkeypatch.setattr(ner.processor, "decoding", "viterbi")
    assert labels() == by_viterbi and labels(decoding="argmax") == by_argmax
    assert [entity["words"] for of_text in ner(texts) for entity in of_text] == [
        entity["words"] for of_text in ner(texts, decoding="viterbi") for entity in of_text
    ]


def test_words_with_their_labels(ner):
    outputs, batch = run(ner, "john smith, 😀 fox", picture())
    probabilities = outputs.logits[0].softmax(-1)
    words = ner("john smith, 😀 fox", images=picture(), aggregation_strategy="none")
    assert [word["word"] for word in words] == ["john", "smith", ",", "😀", "fox"]
    assert [word["index"] for word in words] == [0, 1, 2, 3, 4]
    for word in words:
        assert "john smith, 😀 fox"[word["start"] : word["end"]] == word["word"]
    for word in (words[0], words[4]):
        position = list(batch.word_positions[0]).index(word["index"])
        best = int(probabilities[position].argmax())
        assert word["entity"] == ner.model.config.id2label[best]
        assert word["score"] == pytest.approx(float(probabilities[position, best]), rel=1e-5)
        assert word["gate"] == pytest.approx(float(outputs.fusion_gate[0, position]), rel=1e-5)
    assert all(word["gate"] == 0.0 for word in ner("john smith", aggregation_strategy="none"))


def test_tokens_keep_the_words_of_the_data_set(ner):
    words = ner({"tokens": ["john", "smith's", "new york"], "image": picture()}, aggregation_strategy="none")
    assert [word["word"] for word in words] == ["john", "smith's", "new york"]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_of_texts_with_images_and_without(ner, batch_size):
    examples = [
        {"text": "john smith sees the fox", "image": picture(1)},
        {"text": "the fox", "image": None},
        {"text": LONG, "images": [picture(2), picture(3)]},
        {"text": "", "image": picture(1)},
        {"tokens": ["paris", "john"]},
        {"text": LONG},
        {"text": "new york john", "images": []},
    ]
    alone = [ner(example, return_heatmaps=True) for example in examples]
    assert alone[0] and alone[2] and alone[3] == [] and len(alone[2][0]["heatmaps"]) == 2
    assert alone[0][0]["heatmaps"][0].shape == (20, 30) and alone[5][0]["heatmaps"] == []
    together = ner(examples, batch_size=batch_size, return_heatmaps=True)
    assert_close(together, alone)


def test_a_text_of_3000_words_loses_none(ner):
    text = " ".join(["john", "fox", "paris"] * 1000)
    words = ner(text, images=picture(), aggregation_strategy="none")
    assert [word["word"] for word in words] == text.split()
    assert {word["entity"] for word in words} <= set(ner.model.config.id2label.values())


def test_generators_are_consumed_as_they_are_needed(ner):
    taken = []

    def examples():
        for index in range(6):
            taken.append(index)
            yield {"text": "john smith", "image": picture(index)}

    results = ner(examples(), batch_size=2)
    assert taken == []
    first = next(results)
    assert len(taken) < 6
    rest = list(results)
    assert_close([first, *rest], [ner("john smith", images=picture(index)) for index in range(6)])


def test_data_sets_and_their_columns(ner):
    rows = {"tokens": [["john", "smith"], ["the", "fox"], ["paris"]], "ner_tags": [[1, 2], [0, 0], [0]]}
    dataset = datasets.Dataset.from_dict({**rows, "image": [picture(), None, picture(1)]}).cast_column(
        "image", datasets.Image()
    )
    expected = [
        ner({"tokens": row, "image": of})
        for row, of in zip(rows["tokens"], [picture(), None, picture(1)], strict=True)
    ]
    assert_close(list(ner(dataset, batch_size=2)), expected)
    assert_close(list(ner(dataset.to_iterable_dataset(), batch_size=2)), expected)
    texts = datasets.Dataset.from_dict({"text": ["john smith", "the fox"]})
    assert_close(list(ner(texts["text"])), [ner("john smith"), ner("the fox")])
    expected = [ner({"tokens": row}) for row in rows["tokens"]]
    assert_close(list(ner(dataset["tokens"])), expected)
    assert_close(ner(rows["tokens"], batch_size=3), expected)


def test_images_beside_a_list_of_texts(ner):
    found = ner(["john smith", "the fox"], images=[picture(), None])
    assert_close(found, [ner("john smith", images=picture()), ner("the fox")])
    with pytest.raises(ValueError, match="entry for each of the 2 examples"):
        ner(["john smith", "the fox"], images=[picture()])
    with pytest.raises(ValueError, match="put them into the examples"):
        ner((text for text in ["john"]), images=[picture()])


def test_workers_change_nothing(ner):
    examples = [{"text": "john smith", "image": picture(index)} for index in range(4)]
    assert_close(ner(examples, batch_size=2, num_workers=2), ner(examples))


def test_paths_are_opened_where_it_is_said(ner, tmp_path):
    picture().save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    with pytest.raises(ValueError, match="`allow_paths=True`"):
        ner("john smith", images=path)
    assert_close(ner("john smith", images=path, allow_paths=True), ner("john smith", images=picture()))


def test_regions_can_be_left_out(ner):
    entities = ner("john smith sees the fox", images=picture(), return_regions=False)
    assert entities and all(entity["image_region"] is None for entity in entities)


# ------------------------------------------------------- classes ----------------------------------------------------


def test_the_class_of_a_text_is_the_mean_over_its_windows(classify):
    outputs, batch = run(classify, LONG, picture())
    assert len(batch.row_of_window) > 2
    mean = outputs.logits.double().softmax(-1).mean(0)
    labels = classify({"text": LONG, "image": picture()}, top_k=None)
    assert {label["label"]: label["score"] for label in labels} == pytest.approx(
        {"bad": float(mean[0]), "so": float(mean[1]), "good": float(mean[2])}, rel=1e-5
    )
    assert [label["score"] for label in labels] == sorted((label["score"] for label in labels), reverse=True)
    gates = torch.cat(
        [outputs.fusion_gate[w][torch.tensor(batch.word_positions[w] >= 0)] for w in range(len(batch.row_of_window))]
    )
    assert labels[0]["gate"] == pytest.approx(float(gates.mean()), rel=1e-4)
    assert classify({"text": LONG, "image": picture()}) == labels[0]
    assert classify(LONG)["gate"] == 0.0


def test_the_function_is_what_the_model_was_trained_for():
    several = make("multimodal-text-classification", problem_type="multi_label_classification")
    outputs, _ = run(several, "the fox", None)
    expected = outputs.logits[0].sigmoid().sort(descending=True).values.tolist()
    found = several("the fox", top_k=3)
    assert [label["score"] for label in found] == pytest.approx(expected, rel=1e-5)
    raw = several("the fox", top_k=3, function_to_apply="none")
    assert [label["score"] for label in raw] == pytest.approx(
        outputs.logits[0].sort(descending=True).values.tolist(), rel=1e-5
    )


def test_a_second_text(classify):
    batch = classify.processor(text=["the fox"], text_pair=["john smith"], return_tensors="pt")
    with torch.no_grad():
        probabilities = classify.model(**batch).logits[0].softmax(-1)
    found = classify({"text": "the fox", "text_pair": "john smith"})
    assert found == classify(text="the fox", text_pair="john smith")
    assert found["score"] == pytest.approx(float(probabilities.max()), rel=1e-5)
    with pytest.raises(ValueError, match="some have none"):
        classify([{"text": "the fox", "text_pair": "john"}, {"text": "the fox"}], batch_size=2)


def test_classes_of_many_texts(classify):
    examples = [{"text": "the fox", "image": picture()}, {"text": LONG}, {"text": "", "image": picture(1)}]
    alone = [classify(example, top_k=2, return_heatmaps=True) for example in examples]
    assert alone[0][0]["heatmaps"][0].shape == (20, 30) and alone[1][0]["heatmaps"] == []
    assert_close(classify(examples, top_k=2, return_heatmaps=True, batch_size=3), alone)


# ------------------------------------------------------- answers ----------------------------------------------------


def test_answers_about_a_picture(vqa):
    outputs, _ = run(vqa, "what is the fox", picture())
    best = outputs.logits[0].softmax(-1)
    found = vqa(question="what is the fox", image=picture())
    assert found["answer"] == LABELS["multimodal-visual-question-answering"][int(best.argmax())]
    assert found["score"] == pytest.approx(float(best.max()), rel=1e-5) and found["gate"] > 0
    listed = vqa([{"question": "what is the fox", "image": picture()}] * 2, top_k=2, batch_size=2)
    assert [len(answers) for answers in listed] == [2, 2]
    assert_close(listed[0][0], found)


def test_answers_in_a_text(qa):
    context = LONG + " and the dog is new"
    options = {"text_pair": ["what is new"], "pair_first": True}
    outputs, batch = run(qa, context, picture(), **options)
    assert len(batch.row_of_window) > 2
    expected = qa.processor.post_process_question_answering(outputs, batch, allow_no_answer=True)[0]
    found = qa(question="what is new", context=context, image=picture(), top_k=5, handle_impossible_answer=True)
    assert_close(found, expected[:5])
    best = qa({"question": "what is new", "context": context, "image": picture()}, handle_impossible_answer=True)
    assert_close(best, expected[0])


def test_answers_with_heat_maps_and_without_words(qa):
    examples = [
        {"question": "who", "context": "john smith sees the fox", "image": picture()},
        {"question": "who", "context": "", "image": picture()},
        {"question": "who", "context": "the fox"},
    ]
    found = qa(examples, return_heatmaps=True, batch_size=3)
    assert found[1] == {"answer": "", "score": 0.0, "start": 0, "end": 0, "gate": None, "heatmaps": []}
    assert found[2]["heatmaps"] == [] and found[2]["gate"] == 0.0
    answer = found[0]
    assert answer["heatmaps"][0].shape == (20, 30)
    outputs, batch = run(qa, "john smith sees the fox", picture(), text_pair=["who"], pair_first=True)
    first = len("john smith sees the fox"[: answer["start"]].split())
    last = first + len(answer["answer"].split()) - 1
    heat = qa.processor.post_process_grounding(outputs, batch, spans=[[(first, last)]])[0][0]["heatmap"]
    assert_close(answer["heatmaps"][0], heat)


# -------------------------------------------------------- rules -----------------------------------------------------


@pytest.mark.parametrize(
    ("task", "example"),
    [
        ("multimodal-token-classification", {"text": "john smith"}),
        ("multimodal-token-classification", {"tokens": ["john", "smith"]}),
        ("multimodal-text-classification", {"text": "the fox", "text_pair": "paris"}),
        ("multimodal-visual-question-answering", {"question": "the fox"}),
        ("multimodal-question-answering", {"question": "who", "context": "john smith"}),
    ],
)
def test_fields_by_name_are_those_of_an_example(task, example):
    pipe = make(task)
    for images in ({}, {"image": picture()}, {"images": [picture(0), picture(1)]}):
        assert_close(pipe(**example, **images), pipe({**example, **images}))


@pytest.mark.parametrize(
    ("task", "example", "message"),
    [
        ("multimodal-token-classification", {"words": ["a"]}, "needs `text`, got the keys words"),
        ("multimodal-token-classification", {"text": "a", "tokens": ["a"]}, "once: as `text` or as `tokens`"),
        ("multimodal-token-classification", 3, "needs `text`"),
        (
            "multimodal-token-classification",
            {"text": "a", "image": 1, "images": [1]},
            "once: as `image` or as `images`",
        ),
        ("multimodal-question-answering", {"question": "a"}, "needs `question`, `context`"),
        ("multimodal-question-answering", "a", "needs `question`, `context`"),
    ],
)
def test_examples_that_lack_something(task, example, message):
    pipe = make(task)
    with pytest.raises(ValueError, match=message):
        pipe([example])


def test_options_that_do_nothing_are_refused(ner, classify, qa):
    with pytest.raises(ValueError, match="takes no `top_k`"):
        ner("john", top_k=2)
    with pytest.raises(ValueError, match="takes no `text_pair`"):
        ner(text="john", text_pair="smith")
    with pytest.raises(ValueError, match="once: as `text` or as `tokens`"):
        ner(text="john", tokens=["john"])
    with pytest.raises(ValueError, match="takes no `grouped_entities`"):
        pipeline("multimodal-token-classification", model=ner.model, processor=ner.processor, grouped_entities=True)
    with pytest.raises(ValueError, match="`aggregation_strategy` must be"):
        ner("john", aggregation_strategy="max")
    for pipe, example in ((classify, "a"), (qa, {"question": "a", "context": "b"})):
        with pytest.raises(ValueError, match="`top_k` must be positive"):
            pipe(example, top_k=0)


def test_options_may_be_given_once_for_all_calls(ner):
    words = pipeline(
        "multimodal-token-classification", model=ner.model, processor=ner.processor, aggregation_strategy="none",
        batch_size=2, device="cpu",
    )  # fmt: skip
    assert [word["word"] for word in words("john smith")] == ["john", "smith"]
    assert words("john smith", aggregation_strategy="simple") == ner("john smith")


@pytest.mark.parametrize("task", HEADS)
def test_a_saved_model_names_its_pipeline_and_brings_the_code(task, tmp_path):
    make(task).save_pretrained(tmp_path)
    assert (tmp_path / "pipeline_vtfusion.py").is_file() and (tmp_path / "processor_config.json").is_file()
    config = HEADS[task].config_class.from_pretrained(tmp_path)
    assert list(config.custom_pipelines) == [task]
    assert config.custom_pipelines[task]["impl"] == f"pipeline_vtfusion.{HEADS[task].pipeline_class.__name__}"


# --------------------------------------------- images that come again ----------------------------------------------


def count_encoded(pipe, *args, **kwargs):
    """What a pipeline says, and how many images its vision encoder saw."""
    seen = []
    handle = pipe.model.base_model.vision_model.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(len(inputs["pixel_values"])), with_kwargs=True
    )
    try:
        return list(pipe(*args, **kwargs)), sum(seen)
    finally:
        handle.remove()


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_an_image_of_several_texts_is_encoded_once(classify, batch_size):
    red, grey = picture(1), picture(2)
    texts = ["the lower fox", "in paris", LONG, "john smith", "fox"]
    # the same object, an equal one, and another
    examples = [
        {"text": text, "image": of} for text, of in zip(texts, [red, red.copy(), red, grey, grey], strict=True)
    ]
    alone = [classify(example) for example in examples]
    found, encoded = count_encoded(classify, examples, batch_size=batch_size)
    assert encoded == 2
    assert [label["label"] for label in found] == [label["label"] for label in alone]
    np.testing.assert_allclose([of["score"] for of in found], [of["score"] for of in alone], atol=1e-5)
    assert count_encoded(classify, iter(examples), batch_size=batch_size)[1] == 2


def test_windows_of_a_text_share_its_image(ner):
    example = {"tokens": LONG.split(), "images": [picture(1), picture(2), picture(1)]}
    batch = ner.preprocess([ner.read_example(example)])
    assert len(batch["input_ids"]) > 3
    assert count_encoded(ner, [example])[1] == 2
    with torch.no_grad():
        expected = ner.model(**batch)
        found = ner.forward(batch)["outputs"]
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.fusion_gate, expected.fusion_gate, atol=1e-5, rtol=1e-5)


def test_images_beside_none(classify):
    examples = [
        {"text": "fox", "images": [picture(1), None, picture(2)]},
        {"text": "fox", "image": None},
        {"text": "in paris", "images": [picture(2)]},
    ]
    alone = [classify(example)["score"] for example in examples]
    found, encoded = count_encoded(classify, examples, batch_size=3)
    assert encoded == 2
    np.testing.assert_allclose([of["score"] for of in found], alone, atol=1e-5)


def test_changed_weights_encode_again(classify):
    example = {"text": "fox", "image": picture(1)}
    before = classify([example])[0]["score"]
    weights = {name: value.clone() for name, value in classify.model.state_dict().items()}
    try:
        for parameter in classify.model.base_model.vision_model.parameters():
            torch.nn.init.normal_(parameter)
        assert classify([example])[0]["score"] != before
    finally:
        classify.model.load_state_dict(weights)


def test_equal_pixels_with_other_padding_are_other_images():
    # a detector reads where its pixels end
    pixels = torch.zeros(2, 1, 3, 4, 4)
    padding = torch.ones(2, 1, 4, 4, dtype=torch.long)
    padding[1, 0, 2:] = 0
    batch = {"pixel_values": pixels, "image_mask": torch.ones(2, 1)}
    one, other = pipeline_vtfusion._image_keys(batch)
    assert one == other
    one, other = pipeline_vtfusion._image_keys({**batch, "pixel_mask": padding})
    assert one != other
    assert pipeline_vtfusion._image_keys({**batch, "pixel_values": pixels.flatten(3)[..., None]})[0] != one
