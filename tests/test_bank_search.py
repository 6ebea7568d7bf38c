import json

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoModel, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel, T5Config, ViTImageProcessor

from tiny import text_model
from tokenizers_for_tests import TOKENIZERS
from vtfusion.training.bank_search import Embedder, ImageRetriever
from vtfusion.training.image_bank import BankImage, ImageBank

TEXTS = ["john smith", "the quick brown fox jumps over the lazy dog", "", "paris", "new york is new", " \t"]
CAPTIONS = {
    "a": ["the quick brown fox", "a fox", "lazy dog"],
    "b": ["john smith in new york"],
    "c": ["paris", "paris is old", "is it paris?", "reasons", "ten reasons: yes!"],
    "d": ["lower string"],
}


def unit(vector):
    return vector / np.linalg.norm(vector)


def mean_of_tokens(model, tokenizer, text):
    """One text alone, so that there is no padding."""
    encoding = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        states = model(input_ids=encoding["input_ids"]).last_hidden_state[0]
    return unit(states.numpy().mean(axis=0))


@pytest.fixture
def bank():
    return ImageBank([BankImage(name, f"{name}.jpg", captions=tuple(texts)) for name, texts in CAPTIONS.items()])


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "modernbert", "deberta-v2", "llama"])
@pytest.mark.parametrize("batch_size", [2, 64])
def test_the_mean_leaves_padding_out(kind, batch_size):
    model, tokenizer = text_model(kind)
    vectors = Embedder(model, tokenizer, batch_size=batch_size).embed_texts(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), 32)
    for text, vector in zip(TEXTS, vectors, strict=True):
        expected = mean_of_tokens(model, tokenizer, text) if text.strip() else np.zeros(32)
        np.testing.assert_allclose(vector, expected, atol=2e-5)


def test_the_side_of_the_padding_does_not_matter():
    model, tokenizer = text_model("bert")
    expected = Embedder(model, tokenizer).embed_texts(TEXTS)
    tokenizer.padding_side = "left"  # would move the absolute positions of all but the longest text
    np.testing.assert_allclose(Embedder(model, tokenizer).embed_texts(TEXTS), expected, atol=1e-6)


def test_long_texts_are_cut_and_blank_ones_alone_have_a_width():
    model, tokenizer = text_model("bert")
    embedder = Embedder(model, tokenizer)
    assert embedder.max_length == 64  # what the encoder takes
    assert np.isfinite(embedder.embed_texts(["word " * 1000])).all()
    assert embedder.embed_texts([" "]).shape == (1, 32)
    assert embedder.embed_texts([]).shape == (0, 32)
    short = Embedder(model, tokenizer, max_length=4)
    np.testing.assert_allclose(short.embed_texts(["a b c d e f"]), short.embed_texts(["a b x y z"]), atol=1e-6)


_PART = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}


def dual(kind):
    tokenizer = TOKENIZERS["bert"]()
    tokenizer.model_max_length = 40
    text = {**_PART, "vocab_size": len(tokenizer), "max_position_embeddings": 40}
    image = {**_PART, "image_size": 32, "patch_size": 8}
    if kind == "clip":
        text |= {"eos_token_id": tokenizer.sep_token_id, "pad_token_id": 0}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=16))
    else:
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=image))
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    return Embedder(model, tokenizer, processor, batch_size=3)


def tensor(features):
    return getattr(features, "pooler_output", features)[0].numpy()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_dual_encoders_embed_texts_and_images_in_one_space(kind, tmp_path):
    embedder = dual(kind)
    assert embedder.is_dual
    model, tokenizer, processor = embedder.model, embedder.tokenizer, embedder.image_processor
    texts = [text for text in TEXTS if text.strip()]
    padding = {"padding": "max_length", "max_length": 40} if kind == "siglip" else {}
    names = ("input_ids", "attention_mask")
    with torch.no_grad():
        encodings = [tokenizer(text, return_tensors="pt", **padding) for text in texts]
        expected = [
            unit(tensor(model.get_text_features(**{name: encoding[name] for name in names}))) for encoding in encodings
        ]
    np.testing.assert_allclose(embedder.embed_texts(texts), expected, atol=2e-5)

    rng = np.random.default_rng(0)
    pictures = [PIL.Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(5)]
    paths = [str(tmp_path / f"{index}.png") for index in range(5)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    with torch.no_grad():
        inputs = [processor(images=picture, return_tensors="pt") for picture in pictures]
        images = np.array([unit(tensor(model.get_image_features(**i))) for i in inputs])
    np.testing.assert_allclose(embedder.embed_images(paths), images, atol=2e-5)

    bank = ImageBank([BankImage(str(index), path) for index, path in enumerate(paths)])  # no captions are needed
    scores, places = ImageRetriever(bank, embedder).search(texts, top_k=2)
    cosines = np.array(expected) @ images.T
    np.testing.assert_array_equal(places, np.argsort(-cosines, axis=1)[:, :2])
    np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :2], atol=2e-5)

    (tmp_path / "3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"3\.png: the image cannot be read.*take it out of the image bank"):
        ImageRetriever(bank, embedder)


def test_search_is_that_of_brute_force(bank):
    model, tokenizer = text_model("bert")
    retriever = ImageRetriever(bank, Embedder(model, tokenizer))
    assert len(retriever) == 4
    texts = [text for text in TEXTS if text.strip()]
    queries = np.array([mean_of_tokens(model, tokenizer, text) for text in texts])
    best = np.stack(
        [
            (queries @ np.array([mean_of_tokens(model, tokenizer, caption) for caption in captions]).T).max(axis=1)
            for captions in CAPTIONS.values()
        ],
        axis=1,
    )
    for top_k in (1, 2, 3, 4):
        scores, places = retriever.search(texts, top_k)
        np.testing.assert_array_equal(places, np.argsort(-best, axis=1)[:, :top_k])
        np.testing.assert_allclose(scores, -np.sort(-best, axis=1)[:, :top_k], atol=1e-5)


def test_a_caption_finds_its_own_picture(bank):
    model, tokenizer = text_model("bert")
    retriever = ImageRetriever(bank, Embedder(model, tokenizer))
    for place, captions in enumerate(CAPTIONS.values()):
        scores, places = retriever.search(captions)
        assert (places == place).all()
        np.testing.assert_allclose(scores, 1, atol=1e-5)


def test_fewer_pictures_than_asked_for_and_blank_texts(bank):
    model, tokenizer = text_model("bert")
    retriever = ImageRetriever(bank, Embedder(model, tokenizer))
    scores, places = retriever.search(TEXTS, top_k=6)
    for text, row_scores, row_places in zip(TEXTS, scores, places, strict=True):
        count = 4 if text.strip() else 0
        assert sorted(row_places[:count]) == list(range(count))
        assert (row_places[count:] == -1).all()
        assert np.isfinite(row_scores[:count]).all() and np.isnan(row_scores[count:]).all()
    scores, places = retriever.search([" "])
    assert places.tolist() == [[-1]] and np.isnan(scores).all()


def test_a_saved_encoder_is_loaded(tmp_path, bank):
    model, tokenizer = text_model("bert")
    model.save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    loaded = Embedder.from_pretrained(str(tmp_path / "text"), device="cpu", batch_size=2)
    assert not loaded.is_dual and not loaded.model.training and loaded.batch_size == 2
    np.testing.assert_allclose(loaded.embed_texts(TEXTS), Embedder(model, tokenizer).embed_texts(TEXTS), atol=1e-6)

    pair = dual("clip")
    for part in (pair.model, pair.tokenizer, pair.image_processor):
        part.save_pretrained(tmp_path / "dual")
    config = json.loads((tmp_path / "dual" / "config.json").read_text())
    assert config["model_type"] == "clip"
    loaded = Embedder.from_pretrained(str(tmp_path / "dual"), device="cpu")
    assert loaded.is_dual and loaded.image_processor is not None
    np.testing.assert_allclose(loaded.embed_texts(TEXTS), pair.embed_texts(TEXTS), atol=1e-6)


def test_what_cannot_be_used_is_refused(bank, hide_package):
    model, tokenizer = text_model("bert")
    embedder = Embedder(model, tokenizer)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        Embedder(model, tokenizer, batch_size=0)
    t5 = AutoModel.from_config(T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="T5Model is an encoder-decoder"):
        Embedder(t5, tokenizer)
    with pytest.raises(ValueError, match="BertModel is no dual encoder"):
        embedder.embed_images(["a.jpg"])
    with pytest.raises(ValueError, match="no image with a caption or a name"):
        ImageRetriever(ImageBank([BankImage("x", "x.jpg")]), embedder)
    retriever = ImageRetriever(bank, embedder)
    with pytest.raises(ValueError, match="`top_k` must be at least 1, got 0"):
        retriever.search(["a"], top_k=0)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        embedder.embed_texts(["a"])
    hide_package("faiss")
    with pytest.raises(ImportError, match=r"pip install vtfusion\[retrieval\]"):
        ImageRetriever(bank, embedder)
