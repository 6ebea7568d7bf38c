"""
Finds the pictures of a bank whose captions, or which themselves, are closest to a text, by the vectors of an encoder.

Needs faiss, the optional extra `retrieval`.
"""

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..images_vtfusion import decode_image
from .image_bank import ImageBank

# Texts of one length in a batch need little padding; sorting this many at a time keeps memory bounded.
_SORTED = 4096


class Embedder:
    """
    Vectors of length one for texts, from any text encoder, or for texts and images, from a dual encoder.

    A text encoder's last hidden state is averaged over the tokens of a text, padding left out (mean pooling, as in
    Sentence-BERT, [Reimers and Gurevych 2019](https://arxiv.org/abs/1908.10084)). A dual encoder is a model with
    `get_text_features` and `get_image_features`, such as CLIP and SigLIP.

    Args:
        model ([`PreTrainedModel`]):
            The encoder. An encoder-decoder is refused.
        tokenizer ([`PreTrainedTokenizerBase`]):
            Its tokenizer.
        image_processor (`BaseImageProcessor`, *optional*):
            Of a dual encoder.
        max_length (`int`, defaults to 256):
            Tokens of a text beyond this number do not count, nor those beyond what the encoder takes.
        batch_size (`int`, defaults to 64):
            Texts or images in a call of the encoder.

    Raises:
        `ValueError`: The model is an encoder-decoder, or `batch_size` or `max_length` is below 1.

    Example:

    ```python
    >>> from vtfusion.training.bank_search import Embedder

    >>> embedder = Embedder.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")  # doctest: +SKIP
    >>> embedder.embed_texts(["A dog runs.", "A puppy is running."]).shape  # doctest: +SKIP
    (2, 384)
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Any = None,
        max_length: int = 256,
        batch_size: int = 64,
    ):
        for name, value in (("max_length", max_length), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        self.is_dual = hasattr(model, "get_text_features") and hasattr(model, "get_image_features")
        if model.config.is_encoder_decoder and not self.is_dual:
            raise ValueError(
                f"{type(model).__name__} is an encoder-decoder. Retrieval takes a text encoder such as BERT, a decoder, or "
                "a dual encoder such as CLIP."
            )
        if tokenizer.pad_token is None:
            # a language model that was never batched; the mask hides the padding
            tokenizer.pad_token = tokenizer.eos_token
        self.model, self.tokenizer, self.image_processor = model.eval(), tokenizer, image_processor
        self.batch_size = batch_size
        limits = [
            max_length,
            tokenizer.model_max_length,
            getattr(model.config.get_text_config(), "max_position_embeddings", None),
        ]
        self.max_length = min(limit for limit in limits if limit)
        # SigLIP reads a text off its last position, and was trained on texts padded to their full length.
        self._padding: str | bool = "max_length" if "siglip" in model.config.model_type else True

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        revision: str = "main",
        trust_remote_code: bool = False,
        device: str | torch.device | None = None,
        max_length: int = 256,
        batch_size: int = 64,
    ) -> "Embedder":
        """
        Loads an encoder with its tokenizer, and with its image processor if it is a dual encoder.

        Args:
            name (`str`):
                A folder or a Hub id.
            revision (`str`, defaults to `"main"`):
                Branch, tag or commit on the Hub.
            trust_remote_code (`bool`, defaults to `False`):
                Whether to run code that comes with the encoder.
            device (`str` or `torch.device`, *optional*):
                By default a GPU if there is one, else the CPU.
            max_length, batch_size:
                See [`Embedder`].
        """
        options = {"revision": revision, "trust_remote_code": trust_remote_code}
        model = AutoModel.from_pretrained(name, **options)
        is_dual = hasattr(model, "get_image_features")
        return cls(
            model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")),
            AutoTokenizer.from_pretrained(name, **options),
            AutoImageProcessor.from_pretrained(name, **options) if is_dual else None,
            max_length,
            batch_size,
        )

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """
        Args:
            texts (`Sequence[str]`): the texts.

        Returns:
            `np.ndarray` of shape `(len(texts), D)`: `float32`, each row of length one; zeros for a text without any
            visible character.

        Raises:
            `ValueError`: the encoder's output is not finite, or not one vector for each text.
        """
        rows: list[np.ndarray | None] = [None] * len(texts)
        written = [index for index, text in enumerate(texts) if text.strip()]
        for first in range(0, len(written), _SORTED):
            order = sorted(written[first : first + _SORTED], key=lambda index: len(texts[index]))
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                for index, vector in zip(batch, self._embed_batch([texts[index] for index in batch]), strict=True):
                    rows[index] = vector
        width = next((row.size for row in rows if row is not None), None)
        if width is None:  # nothing but blanks, yet the width must be known
            width = self._embed_batch(["a"]).shape[1]
        result = np.zeros((len(texts), width), dtype=np.float32)
        for index in written:
            result[index] = rows[index]
        return result

    def _embed_batch(self, texts: list[str]) -> np.ndarray:
        encoding = self.tokenizer(
            texts,
            padding=self._padding,
            truncation=True,
            max_length=self.max_length,
            # A mean does not care on which side the padding is, but absolute positions do.
            padding_side=None if self.is_dual else "right",
            # The mean needs the mask; of a dual encoder the tokenizer knows best whether it was trained with one.
            return_attention_mask=None if self.is_dual else True,
            return_tensors="pt",
        ).to(self.model.device)
        # Not `token_type_ids`, which some tokenizers return and their models refuse.
        names = ("input_ids", "attention_mask")
        inputs = {name: encoding[name] for name in names if name in encoding}
        with torch.inference_mode():
            if self.is_dual:
                return _unit(_pooled(self.model.get_text_features(**inputs)))
            states = self.model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
            return _unit((states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1))

    def embed_images(self, paths: Sequence[str]) -> np.ndarray:
        """
        Args:
            paths (`Sequence[str]`): image files.

        Returns:
            `np.ndarray` of shape `(len(paths), D)`: `float32`, each row of length one, in the space of
            [`~Embedder.embed_texts`].

        Raises:
            `ValueError`: the encoder is no dual encoder, or an image cannot be read (its file is named).
        """
        if not self.is_dual or self.image_processor is None:
            raise ValueError(f"{type(self.model).__name__} is no dual encoder with an image processor.")
        vectors = []
        for start in range(0, len(paths), self.batch_size):
            images = []
            for path in paths[start : start + self.batch_size]:
                try:
                    images.append(decode_image(path, allow_paths=True))
                except ValueError as error:
                    raise ValueError(f"{path}: {error}. Mend the file or take it out of the image bank.") from error
            inputs = self.image_processor(images=images, return_tensors="pt").to(self.model.device)
            with torch.inference_mode():
                vectors.append(_unit(_pooled(self.model.get_image_features(**inputs))))
        return np.concatenate(vectors)


def _pooled(features: Any) -> torch.Tensor:
    # A tensor before transformers 5, since then an output whose `pooler_output` is what the tensor was.
    features = getattr(features, "pooler_output", features)
    if features.ndim != 2:
        raise ValueError(
            f"The encoder gives features of the shape {tuple(features.shape)}; retrieval needs one vector for each text or "
            "image."
        )
    return features


def _unit(vectors: torch.Tensor) -> np.ndarray:
    vectors = vectors.float()
    if not torch.isfinite(vectors).all():
        raise ValueError("The encoder's output is not finite. Load it in another number format, such as float32.")
    return torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy()


class ImageRetriever:
    """
    Searches a bank for the pictures closest to a text: by their captions (or names, see [`BankImage`]) with a text
    encoder, by the pictures themselves with a dual encoder. An exact search over inner products of unit vectors, so that
    a score is a cosine; the score of a picture is that of its best caption.

    Args:
        bank ([`ImageBank`]):
            The pictures. With a text encoder one that has neither a caption nor a name is never found.
        embedder ([`Embedder`]):
            The encoder.

    Raises:
        `ImportError`: faiss is not installed.
        `ValueError`: The bank has nothing to search, or one of its pictures cannot be read.

    Example:

    ```python
    >>> from vtfusion.training.image_bank import BankImage, ImageBank
    >>> from vtfusion.training.bank_search import Embedder, ImageRetriever

    >>> bank = ImageBank([BankImage("1", "1.jpg", captions=("A dog runs .", "A puppy plays .")), BankImage("2", "2.jpg", "boat")])
    >>> embedder = Embedder.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")  # doctest: +SKIP
    >>> scores, places = ImageRetriever(bank, embedder).search(["My dog is fast ."])  # doctest: +SKIP
    >>> bank.images[places[0, 0]].image_id  # doctest: +SKIP
    '1'
    ```
    """

    def __init__(self, bank: ImageBank, embedder: Embedder):
        faiss = _require_faiss()
        self.bank, self.embedder = bank, embedder
        if embedder.is_dual:
            items, owners = [image.path for image in bank.images], list(range(len(bank)))
            embed: Callable[[Sequence[str]], np.ndarray] = embedder.embed_images
            desc = "Embedding images"
        else:
            pairs = [(text, place) for place, image in enumerate(bank.images) for text in image.texts]
            items, owners = [text for text, _ in pairs], [place for _, place in pairs]
            embed, desc = embedder.embed_texts, "Embedding captions"
        if not items:
            raise ValueError("The image bank has nothing to search: no image with a caption or a name.")
        self._owners = np.array(owners, dtype=np.int64)
        self._most_captions = int(np.bincount(self._owners).max())
        # Vectors go to a temporary file and from there to the index: they are in memory once, not twice.
        self._vectors = Dataset.from_dict({"item": items}).map(
            lambda batch: {"vector": embed(batch["item"])},
            batched=True,
            batch_size=_SORTED if not embedder.is_dual else 4 * embedder.batch_size,
            remove_columns=["item"],
            features=Features({"vector": List(Value("float32"))}),
            # Without it `datasets` would pickle the whole encoder to name a result that nobody looks up again.
            new_fingerprint=uuid.uuid4().hex,
            desc=desc,
        )
        self._vectors.add_faiss_index("vector", metric_type=faiss.METRIC_INNER_PRODUCT)

    def __len__(self) -> int:
        return len(self.bank)

    def search(self, texts: Sequence[str], top_k: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """
        Args:
            texts (`Sequence[str]`): the texts.
            top_k (`int`, *optional*, defaults to 1): pictures wanted for each.

        Returns:
            `tuple[np.ndarray, np.ndarray]`, both of shape `(len(texts), top_k)`: the scores (`float32`, cosines, falling),
            and the places of the pictures in the bank (`int32`). Where the bank has fewer pictures, and for a text
            without any visible character, the place is −1 and the score NaN.
        """
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
        scores = np.full((len(texts), top_k), np.nan, dtype=np.float32)
        places = np.full((len(texts), top_k), -1, dtype=np.int32)
        vectors = self.embedder.embed_texts(texts)
        searched = np.flatnonzero(np.any(vectors, axis=1))
        if not len(searched):
            return scores, places
        # Before the best caption of the k-th picture stand at most all captions of the k − 1 better ones.
        count = min((top_k - 1) * self._most_captions + 1, len(self._vectors))
        found = self._vectors.search_batch("vector", vectors[searched], k=count)
        for row, caption_scores, captions in zip(searched, found.total_scores, found.total_indices, strict=True):
            _, first = np.unique(self._owners[captions], return_index=True)  # the best caption of each picture
            first = np.sort(first)[:top_k]
            scores[row, : len(first)] = caption_scores[first]
            places[row, : len(first)] = self._owners[captions[first]]
        return scores, places


def _require_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError("Retrieval needs faiss. Install it with `pip install vtfusion[retrieval]`.") from error
    return faiss


def search_all(
    retriever: ImageRetriever, texts: Dataset, top_k: int = 1, desc: str = "Retrieving images"
) -> tuple[np.ndarray, np.ndarray]:
    """
    Searches for every text of a data set, a bounded number at a time, with a progress bar.

    Args:
        retriever ([`ImageRetriever`]): where to search.
        texts (`datasets.Dataset`): with a column `tokens`; the words are joined by spaces.
        top_k (`int`, *optional*, defaults to 1): pictures wanted for each text.
        desc (`str`, *optional*): of the progress bar.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: see [`ImageRetriever.search`].
    """
    scores = np.empty((len(texts), top_k), dtype=np.float32)
    places = np.empty((len(texts), top_k), dtype=np.int32)
    done = 0
    with logging.tqdm(total=len(texts), desc=desc, unit=" texts") as progress:
        for batch in texts.with_format(None).select_columns(["tokens"]).iter(batch_size=_SORTED // 4):
            words = [" ".join(tokens) for tokens in batch["tokens"]]
            part = slice(done, done + len(words))
            scores[part], places[part] = retriever.search(words, top_k)
            done += len(words)
            progress.update(len(words))
    return scores, places
