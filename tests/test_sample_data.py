import hashlib
import itertools
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from vtfusion.training.sample_data import (
    KINDS,
    LABEL_NAMES,
    build_sample_dataset,
    build_tiny_encoders,
    text_only_ceiling,
)
from vtfusion.training.sample_pictures import ENTITY_TYPES, draw_picture, drawing_styles

SIZES = {"num_train": 400, "num_validation": 60, "num_test": 200}
ONLY_PICTURE_DECIDES = ("ambiguous", "several_images")


@pytest.fixture(scope="module")
def dataset():
    return build_sample_dataset(seed=0, **SIZES)


def entity_type(row):
    return LABEL_NAMES[max(row["ner_tags"])].split("-")[1]


def entity_name(row):
    return tuple(token for token, tag in zip(row["tokens"], row["ner_tags"], strict=True) if tag)


def template(row):
    words = ["{}" if tag else token for token, tag in zip(row["tokens"], row["ner_tags"], strict=True)]
    return " ".join(words).replace("{} {}", "{}")


def texts(split):
    return split.remove_columns("images")


def digest(dataset):
    """Hash of everything in the data set; of pixels rather than of PNG bytes, which depend on the zlib version."""
    sha = hashlib.sha256()
    for split in dataset.values():
        for row in split:
            images = row.pop("images") or []
            sha.update(repr(sorted(row.items())).encode())
            for image in images:
                sha.update(image.tobytes())
    return sha.hexdigest()


def test_features_and_sizes(dataset):
    assert {name: len(split) for name, split in dataset.items()} == {"train": 400, "validation": 60, "test": 200}
    features = dataset["train"].features
    assert list(features) == ["id", "tokens", "ner_tags", "images", "boxes", "kind"]
    assert tuple(features["ner_tags"].feature.names) == LABEL_NAMES
    assert LABEL_NAMES[:3] == ("O", "B-PER", "I-PER")
    ids = [id_ for split in dataset.values() for id_ in split["id"]]
    assert len(set(ids)) == len(ids)


def test_same_seed_same_data_and_other_seed_other_data():
    sizes = {"num_train": 24, "num_validation": 12, "num_test": 12}
    first = digest(build_sample_dataset(seed=3, **sizes))
    assert digest(build_sample_dataset(seed=3, **sizes)) == first
    assert digest(build_sample_dataset(seed=4, **sizes)) != first


@pytest.mark.slow
def test_same_data_in_another_process():
    # String hashing is salted per process: nothing may depend on the order of a set.
    code = (
        "from vtfusion.training.sample_data import build_sample_dataset as build\n"
        "d = build(seed=3, num_train=24, num_validation=12, num_test=12)\n"
        "print([(r['tokens'], r['boxes'], r['kind'], [i.tobytes() for i in r['images'] or []]) for r in d['test']])"
    )
    salt = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    output = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": salt},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    split = build_sample_dataset(seed=3, num_train=24, num_validation=12, num_test=12)["test"]
    rows = [(r["tokens"], r["boxes"], r["kind"], [i.tobytes() for i in r["images"] or []]) for r in split]
    assert output.strip() == repr(rows)


@pytest.mark.parametrize("num_rows", [0, 1, 3, 4, 5, 17])
def test_any_number_of_rows(num_rows):
    dataset = build_sample_dataset(num_train=num_rows, num_validation=0, num_test=num_rows)
    assert len(dataset["train"]) == len(dataset["test"]) == num_rows
    assert len(dataset["validation"]) == 0
    assert text_only_ceiling(dataset["validation"]) == 0.0


def test_invalid_arguments():
    with pytest.raises(ValueError, match="num_test"):
        build_sample_dataset(num_train=1, num_validation=1, num_test=-1)
    with pytest.raises(ValueError, match="image_size"):
        build_sample_dataset(num_train=1, num_validation=1, num_test=1, image_size=8)


def test_labels_are_iob2_with_one_entity(dataset):
    for split in dataset.values():
        for row in texts(split):
            tags = [LABEL_NAMES[tag] for tag in row["ner_tags"]]
            assert len(tags) == len(row["tokens"])
            assert sum(tag.startswith("B-") for tag in tags) == 1
            for previous, tag in itertools.pairwise(["O", *tags]):
                if tag.startswith("I-"):
                    assert previous in (f"B-{tag[2:]}", f"I-{tag[2:]}")


def test_shares_of_the_kinds(dataset):
    for split in dataset.values():
        share = {kind: count / len(split) for kind, count in Counter(split["kind"]).items()}
        assert set(share) == set(KINDS)
        for kind, expected in zip(KINDS, (0.70, 0.12, 0.10, 0.08), strict=True):
            assert abs(share[kind] - expected) < 0.04


def test_type_is_independent_of_template_and_name_in_ambiguous_rows(dataset):
    for split in dataset.values():
        rows = [row for row in texts(split) if row["kind"] in ONLY_PICTURE_DECIDES]
        for key in (template, entity_name, lambda row: tuple(row["tokens"]), lambda row: row["kind"]):
            types = defaultdict(Counter)
            for row in rows:
                types[key(row)][entity_type(row)] += 1
            for counter in types.values():
                assert set(counter) == set(ENTITY_TYPES)
                assert len(set(counter.values())) == 1


def test_at_least_twenty_ambiguous_templates_in_train(dataset):
    assert len({template(row) for row in texts(dataset["train"]) if row["kind"] == "ambiguous"}) >= 20


def test_every_name_in_train_occurs_with_all_types(dataset):
    types = defaultdict(set)
    for row in texts(dataset["train"]):
        types[entity_name(row)].add(entity_type(row))
    assert all(found == set(ENTITY_TYPES) for found in types.values())


def test_half_of_the_names_of_validation_and_test_are_new(dataset):
    names = {split: {entity_name(row) for row in texts(rows)} for split, rows in dataset.items()}
    for split in ("validation", "test"):
        assert 0.4 <= len(names[split] - names["train"]) / len(names[split]) <= 0.6
    assert not (names["test"] & names["validation"]) - names["train"]
    assert {len(name) for name in names["train"]} == {1, 2}


def test_ambiguous_sentences_are_not_shared_between_splits(dataset):
    sentences = [
        {tuple(row["tokens"]) for row in texts(split) if row["kind"] in ONLY_PICTURE_DECIDES}
        for split in dataset.values()
    ]
    assert not any(first & second for first, second in itertools.combinations(sentences, 2))


def test_pictures_match_their_kind(dataset):
    for split in dataset.values():
        for row in split:
            images, boxes = row["images"], row["boxes"]
            if row["kind"] == "no_image":
                assert images is None and boxes is None
                continue
            assert len(images) == len(boxes)
            assert all(image.size == (64, 64) and image.mode == "RGB" for image in images)
            shows_thing = [any(box) for box in boxes]
            if row["kind"] == "several_images":
                assert 2 <= len(images) <= 3
                assert any(shows_thing) and not all(shows_thing)
            else:
                assert shows_thing == [True]


def test_drawings_of_the_splits_are_disjoint(dataset):
    styles = {split: set(found) for split, found in drawing_styles(0).items()}
    assert not any(first & second for first, second in itertools.combinations(styles.values(), 2))
    for found in styles.values():  # yet each split knows every variant, rendering, palette, background and width
        for position, values in enumerate(zip(*found, strict=True)):
            assert set(values) == {style[position] for style in set.union(*styles.values())}
    pictures = [
        image.tobytes() for split in dataset.values() for row in split if row["images"] for image in row["images"]
    ]
    assert len(set(pictures)) == len(pictures)


def test_boxes_contain_what_is_drawn(dataset):
    for row in dataset["test"]:
        for image, box in zip(row["images"] or [], row["boxes"] or [], strict=True):
            if not any(box):
                continue
            left, top, right, bottom = (value * 64 for value in box)
            assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
            assert 0.33 * 64 <= max(right - left, bottom - top) <= 0.66 * 64
            # The background is faint: what differs from the colour of the border by much belongs to the thing.
            pixels = np.asarray(image, dtype=int)
            border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
            drawn = np.abs(pixels - np.median(border, axis=0)).max(-1) > 60
            rows, columns = np.nonzero(drawn.any(1))[0], np.nonzero(drawn.any(0))[0]
            found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            np.testing.assert_allclose(found, (left, top, right, bottom), atol=2)


def test_variants_look_different():
    style, pictures = drawing_styles(0)["train"][0], set()
    for entity, variant in itertools.product(ENTITY_TYPES, range(5)):
        image, _ = draw_picture(entity, (variant, *style[1:]), random.Random(0))
        pictures.add(image.tobytes())
    assert len(pictures) == 20


def brute_force_ceiling(split):
    """Tries every way to answer each sentence with one of its labellings or with silence."""
    labellings = defaultdict(Counter)
    for tokens, tags in zip(split["tokens"], split["ner_tags"], strict=True):
        labellings[tuple(tokens)][tuple(tags)] += 1
    best = 0.0
    for answers in itertools.product(*([None, *counter] for counter in labellings.values())):
        answered = [
            (counter[answer], sum(counter.values()))
            for answer, counter in zip(answers, labellings.values(), strict=True)
            if answer is not None
        ]
        correct, predicted = sum(hits for hits, _ in answered), sum(size for _, size in answered)
        best = max(best, 2 * correct / (predicted + len(split)))
    return best


def make_split(rows):
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=list(LABEL_NAMES)))})
    return Dataset.from_dict(
        {"tokens": [row[0] for row in rows], "ner_tags": [[0, row[1]] for row in rows]}, features=features
    )


@pytest.mark.parametrize(
    "rows",
    [
        # One sentence in four labellings beside sure ones: silence on it is better, then answering it is better.
        [(["see", "a"], tag) for tag in (1, 3, 5, 7)] + [(["see", name], 1) for name in "bcdef"],
        [(["see", name], tag) for name in "ab" for tag in (1, 3, 5, 7)] + [(["see", "c"], 1)],
        [(["see", "a"], tag) for tag in (1, 1, 3)] + [(["see", "b"], tag) for tag in (5, 7)] + [(["see", "c"], 1)],
        [(["see", "a"], 1)],
    ],
)
def test_ceiling_equals_brute_force(rows):
    split = make_split(rows)
    assert text_only_ceiling(split) == pytest.approx(brute_force_ceiling(split))


def test_ceiling_of_the_sample_set(dataset):
    for split in dataset.values():
        counts = Counter(split["kind"])
        decided_by_picture = counts["ambiguous"] + counts["several_images"]
        expected = (len(split) - 0.75 * decided_by_picture) / len(split)
        assert text_only_ceiling(split) == pytest.approx(expected)
        assert text_only_ceiling(split, kinds=ONLY_PICTURE_DECIDES) == 0.25
        assert text_only_ceiling(split, kinds=("unambiguous", "no_image")) == 1.0


def test_ceiling_needs_one_entity_per_row():
    with pytest.raises(ValueError, match="row 1"):
        text_only_ceiling(make_split([(["see", "a"], 1), (["see", "b"], 0)]))


def test_bag_of_words_stays_at_the_ceiling(dataset):
    linear_model = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    text = pytest.importorskip("sklearn.feature_extraction.text", reason="needs scikit-learn")

    def split_rows(name, kinds):
        rows = [row for row in texts(dataset[name]) if row["kind"] in kinds]
        return [" ".join(row["tokens"]) for row in rows], [entity_type(row) for row in rows]

    train_texts, train_types = split_rows("train", KINDS)
    vectorizer = text.CountVectorizer(token_pattern=r"\S+").fit(train_texts)
    model = linear_model.LogisticRegression(max_iter=300).fit(vectorizer.transform(train_texts), train_types)
    scores = {}
    for kinds in (ONLY_PICTURE_DECIDES, ("unambiguous", "no_image")):
        test_texts, test_types = split_rows("test", kinds)
        scores[kinds] = model.score(vectorizer.transform(test_texts), test_types)
    assert scores[ONLY_PICTURE_DECIDES] <= 0.28
    assert scores[("unambiguous", "no_image")] >= 0.9


def test_tiny_encoders_load_with_auto_classes(dataset, tmp_path):
    state = torch.get_rng_state()
    text_dir, vision_dir = build_tiny_encoders(tmp_path, dataset, seed=0)
    assert torch.equal(torch.get_rng_state(), state)

    tokenizer, text_encoder = AutoTokenizer.from_pretrained(text_dir), AutoModel.from_pretrained(text_dir)
    assert tokenizer.is_fast
    words = dataset["test"][:]["tokens"] + [["Zzyqualo", "Q", "x7", "don't", "#tag"]]
    inputs = tokenizer(words, is_split_into_words=True, padding=True, return_tensors="pt")
    assert not (inputs["input_ids"] == tokenizer.unk_token_id).any()
    for index, row in enumerate(words):
        assert set(inputs.word_ids(index)) - {None} == set(range(len(row)))
    with torch.no_grad():
        assert text_encoder(**inputs).last_hidden_state.shape == (*inputs["input_ids"].shape, 128)

    image_processor, vision_encoder = (
        AutoImageProcessor.from_pretrained(vision_dir),
        AutoModel.from_pretrained(vision_dir),
    )
    images = [row["images"][0] for row in dataset["test"].select(range(20)) if row["images"]]
    pixel_values = image_processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        assert vision_encoder(pixel_values).last_hidden_state.shape == (len(images), 64, 8, 8)

    # The same seed gives the same weights.
    again, _ = build_tiny_encoders(tmp_path / "again", dataset["train"], seed=0)
    weights = AutoModel.from_pretrained(again).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in text_encoder.state_dict().items())


@pytest.mark.slow
def test_small_cnn_tells_the_types_apart_across_styles(tmp_path):
    dataset = build_sample_dataset(seed=1, num_test=400, num_validation=0)
    _, vision_dir = build_tiny_encoders(tmp_path, dataset)
    processor = AutoImageProcessor.from_pretrained(vision_dir)
    torch.manual_seed(0)
    encoder, head = AutoModel.from_pretrained(vision_dir), torch.nn.Linear(64, len(ENTITY_TYPES))

    def tensors(split):
        rows = [row for row in split if row["kind"] == "ambiguous"]
        pixels = processor([row["images"][0] for row in rows], return_tensors="pt")["pixel_values"]
        return pixels, torch.tensor([ENTITY_TYPES.index(entity_type(row)) for row in rows])

    def logits(pixels):
        return head(encoder(pixels).pooler_output.flatten(1))

    pixels, targets = tensors(dataset["train"])
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.05)
    num_epochs, batch_size = 8, 32
    num_steps = num_epochs * (len(pixels) // batch_size)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=num_steps)
    encoder.train()
    for _ in range(num_epochs):
        order = torch.randperm(len(pixels))
        for batch in order[: len(pixels) // batch_size * batch_size].split(batch_size):
            loss = torch.nn.functional.cross_entropy(logits(pixels[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    encoder.eval()
    pixels, targets = tensors(dataset["test"])
    with torch.no_grad():
        assert (logits(pixels).argmax(-1) == targets).float().mean() >= 0.97
