"""Words and images to tensors, and tensors back to entities, boxes and heat maps."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, BatchFeature
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, ProcessorMixin, Unpack

from .images_vtfusion import decode_image, paint, strongest_region, to_pixels, visible_rectangle, without_unseen_ends
from .prompts_vtfusion import chat_template_with_images, take_image_tokens, visible_images
from .words_vtfusion import (
    Span,
    TextRow,
    assign_windows,
    best_spans,
    entity_spans,
    first_tokens,
    read_labels,
    read_text,
    valid_unicode,
    visible_spans,
    viterbi,
)

# Tokenizers without a limit say 10^30.
_SANE_LENGTH = 1_000_000
# They change what the tokenizer returns, which the windows are made from. `TextRow` holds what they are asked for.
_UNSUPPORTED = (
    "return_overflowing_tokens",
    "return_offsets_mapping",
    "return_special_tokens_mask",
    "return_length",
    "text_target",
    "text_pair_target",
)


class VTFusionImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """
    What [`VTFusionProcessor`] takes for its images besides what its image processor takes.

    Args:
        allow_paths (`bool`, *optional*, defaults to `False`):
            Whether strings in `images` may be opened as files.
        allow_urls (`bool`, *optional*, defaults to `False`):
            Whether strings in `images` that start with `http://` or `https://` may be downloaded.
    """

    allow_paths: bool | None
    allow_urls: bool | None


class VTFusionProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """What [`VTFusionProcessor`] takes besides texts and images: for its tokenizer, and [`VTFusionImagesKwargs`]."""

    images_kwargs: VTFusionImagesKwargs  # type: ignore[misc]

    _defaults = {"text_kwargs": {"padding": True}}  # type: ignore[misc]


class VTFusionBatch(BatchFeature):
    """
    What [`VTFusionProcessor`] returns. As a mapping it holds model inputs only, so `model(**batch)` works; what the
    way back to words needs lies in attributes, which survive `.to(device)`, copying and pickling.

    Attributes:
        rows (`list[TextRow]`): One record per text.
        row_of_window (`list[int]` of length `batch_size`): The text that each window is a part of.
        word_positions (`np.ndarray` of shape `(batch_size, sequence_length)`):
            At each token where the prediction of a word is read, the index of the word in its text; −1 elsewhere.
        token_spans (`np.ndarray` of shape `(batch_size, sequence_length, 2)`):
            Where each token of a text starts and ends (exclusive) in it, in characters and without the spaces around;
            (−1, −1) at special tokens, those of `text_pair`, padding, and tokens that show nothing but spaces.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        tensor_type: str | None = None,
        rows: list[TextRow] | None = None,
        row_of_window: list[int] | None = None,
        word_positions: np.ndarray | None = None,
        token_spans: np.ndarray | None = None,
        **kwargs: Any,
    ):
        super().__init__(data, tensor_type=tensor_type, **kwargs)
        self.rows = rows or []
        self.row_of_window = row_of_window or []
        self.word_positions = np.full((0, 0), -1) if word_positions is None else word_positions
        self.token_spans = np.full((0, 0, 2), -1) if token_spans is None else token_spans

    # The parent pickles `data` alone, which would lose the rows between the workers of a data loader.
    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


# ----------------------------------------------------- processor ----------------------------------------------------


class VTFusionProcessor(ProcessorMixin):
    r"""
    Joins an image processor and a tokenizer, keeps track of words, and turns model outputs back into answers about
    words.

    Args:
        image_processor (`BaseImageProcessor`, *optional*):
            Prepares the images. Without it the processor takes texts only (or images come as precomputed features).
        tokenizer (`PreTrainedTokenizerBase`):
            A fast tokenizer: words are found through its character offsets.
        window_length (`int`, *optional*):
            The most tokens of one model input; longer texts become overlapping windows. Defaults to what the
            tokenizer says, where it says anything sensible. `max_length` in a call goes first.
        window_stride (`int`, *optional*, defaults to 64):
            How many tokens neighbouring windows share (at most half a window). `stride` in a call goes first.
        chat_template (`str`, *optional*):
            A chat template, as in any processor. With `image_token`, the tokenizer's, made to take image parts.
        image_token (`str`, *optional*):
            For the generation model: what stands for an image in a prompt, for example `"<image>"`. It is taken out of
            the text, and `cross_attention_mask` says which tokens come after which image. With it every text is one
            sequence, without windows and words.
        image_scope (`str`, *optional*, defaults to `"latest"`):
            With `image_token`: whether a token may look at the `"latest"` image before it or at `"all"` of them.

    Example:

    ```python
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import PreTrainedTokenizerFast

    >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "Ada": 2, "met": 3, "Bob": 4}, unk_token="[UNK]"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")

    >>> processor = VTFusionProcessor(tokenizer=tokenizer)
    >>> batch = processor(text=["Ada met Bob", "Bob"], word_labels=[[1, 0, 1], [1]], return_tensors="pt")
    >>> batch["labels"].tolist()
    [[1, 0, 1], [1, -100, -100]]
    >>> batch.rows[0].words
    ['Ada', 'met', 'Bob']
    ```
    """

    valid_processor_kwargs = VTFusionProcessorKwargs  # type: ignore[assignment]

    # The two lengths are not called `max_length` and `stride`: a processor's own settings must not share names with
    # its call arguments, or the values that tokenizers save under those names would overrule them.
    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        window_length: int | None = None,
        window_stride: int = 64,
        chat_template: Any = None,
        image_token: str | None = None,
        image_scope: str = "latest",
    ):
        if tokenizer is None:
            raise ValueError("`VTFusionProcessor` needs a tokenizer")
        if image_scope not in ("latest", "all"):
            raise ValueError(f"`image_scope` must be 'latest' or 'all', got {image_scope!r}")
        self.image_token, self.image_scope = image_token, image_scope
        if image_token is not None:
            template = chat_template or tokenizer.chat_template
            chat_template = chat_template_with_images(template, image_token) if isinstance(template, str) else template
        if window_length is not None and window_length < 1:
            raise ValueError(f"`window_length` must be positive, got {window_length}")
        if window_stride < 0:
            raise ValueError(f"`window_stride` must not be negative, got {window_stride}")
        self.window_length = window_length
        self.window_stride = window_stride
        # Saving would set it too, but only then: a processor equals what is loaded from its files.
        self.auto_map = {"AutoProcessor": "processing_vtfusion.VTFusionProcessor"}
        if image_processor is not None:
            super().__init__(image_processor, tokenizer, chat_template=chat_template)
            return
        # The mixin saves and asks every part that `get_attributes` names; this one has one part less.
        self.check_argument_for_proper_class("tokenizer", tokenizer)
        self.image_processor: Any = None
        self.tokenizer, self.chat_template = tokenizer, chat_template
        self.get_attributes = partial(list, ("tokenizer",))  # type: ignore

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        # Saved without an image processor: the file says `null`, and there is none to load.
        if processor_dict is not None and processor_dict.get("image_processor", "") is None:
            return [None, AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)]
        return super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        names = [*super().model_input_names, "attention_mask"]
        if self.image_processor is not None:
            names.append("image_mask")
        return list(dict.fromkeys(names))

    # ------------------------------------------------ to the model -------------------------------------------------

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        word_labels: Sequence[int] | Sequence[Sequence[int]] | None = None,
        pair_first: bool | None = None,
        response: str | Sequence[str] | None = None,
        **kwargs: Unpack[VTFusionProcessorKwargs],
    ) -> VTFusionBatch:
        """
        Prepare texts with their images.

        Args:
            images (*optional*):
                One entry for each text: an image (see [`decode_image`]), a list of images, or `None`. With a single
                text, its image or its list of images. `None` inside a list is an empty slot.
            text (`str`, `list[str]` or `list[list[str]]`, *optional*):
                A text, several texts, or several lists of words; one list of words with `is_split_into_words=True`.
                The words of a string are its runs of letters and digits and its runs of punctuation. Strings without
                words ("" or only whitespace) are fine and have no predictions.
            word_labels (`list[list[int]]`, *optional*):
                A label id (or −100) for each word of each text; for a single text also a flat list.
            pair_first (`bool`, *optional*, defaults to `False`):
                Whether `text_pair` stands before the text in every window, not after it. So it must be for questions
                about a text (`text=contexts, text_pair=questions, pair_first=True`): a causal text encoder would
                read the text before it knows what is asked.
            response (`str` or `list[str]`, *optional*):
                With `image_token`: what is to be generated after each text. It is added with an end-of-text token, and
                **labels** holds its tokens, −100 elsewhere.
            kwargs (*optional*):
                `allow_paths=True` and `allow_urls=True` allow images to be opened from disk and from the net.
                `max_length` and `stride` set the windows. `truncation` turns windows off: the tokenizer then cuts as
                it always does, and words beyond the cut get no prediction of the model. `text_pair` is passed on to
                the tokenizer; words are those of `text`. Rows are padded to the longest unless `padding` says
                otherwise. Other arguments go to the tokenizer and the image processor.

        Returns:
            [`VTFusionBatch`]: one row per window, with

            - **input_ids**, **attention_mask** and, where the tokenizer gives it, **token_type_ids** of shape
              `(batch_size, sequence_length)`;
            - **labels** of shape `(batch_size, sequence_length)`, if `word_labels` are given: the label of each word
              at the token where it is read, −100 elsewhere;
            - if any text has an image, **pixel_values** of shape `(batch_size, num_images, 3, height, width)`,
              **image_mask** of shape `(batch_size, num_images)`, 1 for a real image, and, where the image processor
              gives it, **pixel_mask** of shape `(batch_size, num_images, height, width)`.

            Without `return_tensors` tokens come as lists, for one short text without images as flat ones, as from a
            tokenizer. Without `text`, a flat list of images gives what the image processor gives, `pixel_values` of
            shape `(num_images, 3, height, width)`.

        Raises:
            ValueError: naming the row and the field, for unreadable images, words that are not strings, labels that
                do not fit the words, numbers of rows that differ, or a tokenizer that is not fast.
        """
        if text is None and images is None:
            raise ValueError("pass `text`, `images` or both")
        options: dict[str, Any] = dict(kwargs)
        given = {**options.get("common_kwargs", {}), **options.get("text_kwargs", {}), **options}
        merged: dict[str, Any] = self._merge_kwargs(
            VTFusionProcessorKwargs,  # type: ignore[arg-type]
            tokenizer_init_kwargs=self.tokenizer.init_kwargs,
            **options,
        )
        text_kwargs, images_kwargs = merged["text_kwargs"], merged["images_kwargs"]
        images_kwargs.pop("return_tensors", None)
        allow = {name: bool(images_kwargs.pop(name, False)) for name in ("allow_paths", "allow_urls")}
        return_tensors = text_kwargs.get("return_tensors")
        unsupported = [name for name in _UNSUPPORTED if given.get(name)]
        if unsupported:
            raise ValueError(f"{unsupported} cannot be used here: see `rows` and `word_positions` of the result")
        if text is None:
            return VTFusionBatch(self._images_alone(images, **allow, **images_kwargs), tensor_type=return_tensors)
        if self.image_token is not None:
            unread = {"word_labels": word_labels, "text_pair": given.get("text_pair"), "pair_first": pair_first}
            unread["is_split_into_words"] = text_kwargs.get("is_split_into_words")
            return self._prompts(images, text, response, unread, text_kwargs, images_kwargs, allow)
        if response is not None:
            raise ValueError("`response` is for prompts: this processor has no `image_token`")
        is_single = isinstance(text, str)
        if text_kwargs.get("is_split_into_words") and not is_single:
            is_single = all(isinstance(word, str) for word in text)
        texts = [text] if is_single else list(text)
        pairs = given.get("text_pair")
        if pairs is not None and is_single:
            pairs = [pairs]
        labels: Any = word_labels
        if labels is not None and is_single and not any(isinstance(i, list | tuple) for i in labels):
            labels = [labels]
        limit = given.get("max_length") or self.window_length or text_kwargs.get("max_length")
        passed_on = ("add_special_tokens", "return_token_type_ids", "sanitize_control_tokens")
        tokenizer_kwargs = {name: text_kwargs[name] for name in passed_on if text_kwargs.get(name) is not None}
        if given.get("truncation") is not None:
            tokenizer_kwargs["truncation"] = given["truncation"]
        rows, encoding = self._encode(
            texts, pairs, labels, limit, given.get("stride"), bool(pair_first), **tokenizer_kwargs
        )
        row_of_window, token_spans = encoding.pop("row"), encoding.pop("token_spans")
        pictures: dict[str, torch.Tensor] = {}
        if images is not None:
            image_rows = self._align_images(images, len(rows), is_single)
            pictures = self._pictures(image_rows, rows, **allow, **images_kwargs)
            if pictures and len(row_of_window) > len(rows):
                pictures = {name: value[row_of_window] for name, value in pictures.items()}

        side = text_kwargs.get("padding_side") or self.tokenizer.padding_side
        multiple = text_kwargs.get("pad_to_multiple_of")
        self._pad(encoding, text_kwargs.get("padding"), limit or self._model_limit(), multiple, side)
        word_positions = encoding.pop("word_positions")
        if is_single and return_tensors is None and len(row_of_window) == 1 and not pictures:
            data = {name: value[0] for name, value in encoding.items()}
        else:
            data = {name: _as_array(value) if return_tensors else value for name, value in encoding.items()}
        longest = max(map(len, word_positions))
        return VTFusionBatch(
            {**data, **pictures},
            tensor_type=return_tensors,
            rows=rows,
            row_of_window=row_of_window,
            word_positions=_stack(word_positions, (longest,), side),
            token_spans=_stack(token_spans, (longest, 2), side),
        )

    def _images_alone(self, images: Any, **images_kwargs: Any) -> dict[str, torch.Tensor]:
        """What the image processor gives for a flat list of images; with `image_mask` for rows of them."""
        nested = isinstance(images, list | tuple) and any(i is None or isinstance(i, list | tuple) for i in images)
        encoded = self.encode_images([images] if _is_one(images) else images, **images_kwargs)
        return encoded if nested else {name: value[:, 0] for name, value in encoded.items() if name != "image_mask"}

    def encode_text(
        self,
        text: Sequence[str] | Sequence[Sequence[str]],
        text_pair: Sequence[str] | Sequence[Sequence[str]] | None = None,
        word_labels: Sequence[Sequence[int]] | None = None,
        max_length: int | None = None,
        stride: int | None = None,
        pair_first: bool = False,
        return_token_spans: bool = False,
        **tokenizer_kwargs: Any,
    ) -> dict[str, list[Any]]:
        """
        Tokenize a batch of texts into windows without padding, for instance in `dataset.map(…, batched=True)`.

        Args:
            text (`list[str]` or `list[list[str]]`): The texts, as strings or as lists of words.
            text_pair (`list[str]` or `list[list[str]]`, *optional*): Second texts, whole in every window.
            word_labels (`list[list[int]]`, *optional*): A label id (or −100) for each word.
            max_length (`int`, *optional*, defaults to `self.window_length`): The most tokens of a window.
            stride (`int`, *optional*, defaults to `self.window_stride`): How many tokens windows share.
            pair_first (`bool`, *optional*, defaults to `False`): Whether `text_pair` stands before the text.
            return_token_spans (`bool`, *optional*, defaults to `False`): Whether to give `token_spans` too.
            tokenizer_kwargs (*optional*): Further arguments of the tokenizer. With `truncation` it cuts instead.

        Returns:
            `dict[str, list]`: one entry per window of `input_ids`, `attention_mask`, `token_type_ids` (where the
            tokenizer gives them), `word_positions`, `labels` (if given), `token_spans` (if asked for; see
            [`VTFusionBatch`]) and `row`, the text it is a part of.

        Raises:
            ValueError: naming the row and the field.
        """
        limit = max_length or self.window_length
        texts = [text] if isinstance(text, str) else list(text)
        windows = self._encode(texts, text_pair, word_labels, limit, stride, pair_first, **tokenizer_kwargs)[1]
        if not return_token_spans:
            del windows["token_spans"]
        return windows

    def encode_prompts(
        self,
        text: Sequence[str],
        num_images: Sequence[int],
        response: Sequence[str] | None = None,
        **tokenizer_kwargs: Any,
    ) -> dict[str, list[Any]]:
        """
        Tokenize prompts for the generation model without padding, for instance in `dataset.map(…, batched=True)`.

        Args:
            text (`list[str]`): The prompts, with an image token where each image stands, or none at all: images then
                stand before the text.
            num_images (`list[int]`): How many images each has. With 0 its image tokens are dropped.
            response (`list[str]`, *optional*): What is to be generated after each.
            tokenizer_kwargs (*optional*): Further arguments of the tokenizer.

        Returns:
            `dict[str, list]`: one entry per text of `input_ids`, `attention_mask`, `visible_images` (for each token a list
            with a 1 or 0 for each image) and, with `response`, `labels`.

        Raises:
            ValueError: naming the row and the field.
        """
        if self.image_token is None:
            raise ValueError("this processor has no `image_token`, and takes no prompts")
        if response is not None and len(response) != len(text):
            raise ValueError(f"field `response`: there are {len(response)} rows for {len(text)} texts")
        if response is not None and self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-text token: a model could not learn where a response ends")
        cleaned, places = [], []
        for row, (prompt, count) in enumerate(zip(text, num_images, strict=True)):
            if not isinstance(prompt, str):
                raise ValueError(f"row {row}, field `text`: expected a string, got {type(prompt)}")
            clean, stands = take_image_tokens(valid_unicode(prompt, f"row {row}, field `text`: "), self.image_token)
            if count and stands and len(stands) != count:
                raise ValueError(
                    f"row {row}, field `text`: there are {len(stands)} times {self.image_token!r} for {count} images"
                )
            cleaned.append(clean)
            places.append((stands or [0] * count) if count else [])
        whole = [first + second for first, second in zip(cleaned, response or [""] * len(cleaned), strict=True)]
        encoded = self.tokenizer(whole, return_offsets_mapping=True, verbose=False, **tokenizer_kwargs)
        result: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "visible_images": []}
        if response is not None:
            result["labels"] = []
        limit = None if tokenizer_kwargs.get("truncation") else self.window_length or self._model_limit()
        for row, (ids, offsets) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)):
            ids, ends = list(ids), [end for _, end in offsets]
            if response is not None and (not ids or ids[-1] != self.tokenizer.eos_token_id):
                ids, ends = [*ids, self.tokenizer.eos_token_id], [*ends, len(whole[row])]
            if not ids:
                raise ValueError(f"row {row}, field `text`: there are no tokens to go on from")
            if limit is not None and len(ids) > limit:
                raise ValueError(
                    f"row {row}, field `text`: {len(ids)} tokens are more than the {limit} that the model reads; "
                    "shorten the text, or pass `truncation=True`"
                )
            result["input_ids"].append(ids)
            result["attention_mask"].append([1] * len(ids))
            result["visible_images"].append(visible_images(ends, places[row], self.image_scope).tolist())
            if response is not None:
                start = len(cleaned[row])
                learned = [end > start for end in ends]
                learned[-1] = True
                result["labels"].append([i if keep else -100 for i, keep in zip(ids, learned, strict=True)])
        return result

    def pad_prompts(
        self, prompts: Mapping[str, list[Any]], padding: Any = True, **text_kwargs: Any
    ) -> dict[str, list[Any]]:
        """
        Pad prompts to one length, on the tokenizer's side.

        Args:
            prompts (`dict[str, list]`): What [`VTFusionProcessor.encode_prompts`] gives.
            padding (`bool` or `str`, *optional*, defaults to `True`): As in a tokenizer.
            text_kwargs (*optional*): `padding_side`, `pad_to_multiple_of` and `max_length`, as in a tokenizer.

        Returns:
            `dict[str, list]`: the same, with `cross_attention_mask` (for each token a 1 or 0 for each image) instead of
            `visible_images`, where any row has an image.
        """
        encoding = {name: [list(row) for row in rows] for name, rows in prompts.items()}
        side = text_kwargs.get("padding_side") or self.tokenizer.padding_side
        seen = encoding.pop("visible_images")
        limit = text_kwargs.get("max_length") or self.window_length or self._model_limit()
        self._pad(encoding, padding, limit, text_kwargs.get("pad_to_multiple_of"), side)
        num_images = max(len(tokens[0]) for tokens in seen)
        if num_images:
            encoding["cross_attention_mask"] = []
            for tokens, ids in zip(seen, encoding["input_ids"], strict=True):
                mask = [token + [0] * (num_images - len(token)) for token in tokens]
                blanks = [[0] * num_images] * (len(ids) - len(mask))
                encoding["cross_attention_mask"].append(blanks + mask if side == "left" else mask + blanks)
        return encoding

    def _prompts(
        self,
        images: Any,
        text: Any,
        response: Any,
        unread: dict[str, Any],
        text_kwargs: dict[str, Any],
        images_kwargs: dict[str, Any],
        allow: dict[str, bool],
    ) -> VTFusionBatch:
        wrong = [name for name, value in unread.items() if value]
        if wrong:
            raise ValueError(f"{wrong} cannot be used with `image_token`: a prompt is one string")
        is_single = isinstance(text, str)
        texts = [text] if is_single else list(text)
        if not texts:
            raise ValueError("field `text`: there are no texts")
        responses = [response] if isinstance(response, str) else response
        rows = [[] for _ in texts] if images is None else self._align_images(images, len(texts), is_single)
        names = ("add_special_tokens", "truncation", "max_length")
        passed_on = {name: text_kwargs[name] for name in names if text_kwargs.get(name) is not None}
        encoded = self.encode_prompts(texts, [len(row) for row in rows], responses, **passed_on)
        padding = {
            name: value for name, value in text_kwargs.items() if name in ("padding_side", "pad_to_multiple_of")
        }
        data: dict[str, Any] = self.pad_prompts(
            encoded, text_kwargs.get("padding"), max_length=text_kwargs.get("max_length"), **padding
        )
        return_tensors = text_kwargs.get("return_tensors")
        if return_tensors:
            data = {name: _as_array(value) for name, value in data.items()}
        pictures = self._pixels(self._decode(rows, **allow, **images_kwargs), **images_kwargs)
        clean = [TextRow(prompt, [], []) for prompt in texts]
        return VTFusionBatch({**data, **pictures}, return_tensors, rows=clean, row_of_window=list(range(len(texts))))

    def encode_images(
        self, images: Sequence[Any], allow_paths: bool = False, allow_urls: bool = False, **images_kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """
        Prepare the images of a batch of rows.

        Args:
            images (`Sequence`): For each row an image (see [`decode_image`]), a list of images, or `None`.
            allow_paths (`bool`, *optional*, defaults to `False`): Whether paths may be opened.
            allow_urls (`bool`, *optional*, defaults to `False`): Whether URLs may be downloaded.
            images_kwargs (*optional*): Further arguments of the image processor.

        Returns:
            `dict[str, torch.Tensor]`: `pixel_values` of shape `(num_rows, num_images, 3, height, width)`,
            `image_mask` of shape `(num_rows, num_images)` and, where the image processor gives it, `pixel_mask` of
            shape `(num_rows, num_images, height, width)`. Empty if no row has an image.

        Raises:
            ValueError: naming the row.
        """
        decoded = self._decode(_image_rows(images), allow_paths, allow_urls, **images_kwargs)
        return self._pixels(decoded, **images_kwargs)

    def _model_limit(self) -> int | None:
        limit = self.tokenizer.model_max_length
        return limit if limit is not None and limit < _SANE_LENGTH else None

    def _encode(
        self,
        texts: Sequence[Any],
        pairs: Any,
        word_labels: Any,
        limit: int | None,
        stride: int | None,
        pair_first: bool,
        **tokenizer_kwargs: Any,
    ) -> tuple[list[TextRow], dict[str, list[Any]]]:
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"`VTFusionProcessor` needs a fast tokenizer (one that knows character offsets), "
                f"{type(self.tokenizer).__name__} is a slow one"
            )
        rows, pairs, word_labels = self._read_rows(texts, pairs, word_labels, pair_first)
        if tokenizer_kwargs.get("truncation"):
            tokenizer_kwargs["max_length"] = limit
        cuts = tokenizer_kwargs.get("truncation") is not None
        first, second = [row.text for row in rows], pairs
        if pair_first:
            first, second = second, first
        encoded = self.tokenizer(
            first,
            text_pair=second,
            return_offsets_mapping=True,
            return_attention_mask=True,
            verbose=False,  # it would warn of long texts, which are cut into windows below
            **tokenizer_kwargs,
        )
        names = [name for name in encoded if name != "offset_mapping"]
        windows: dict[str, list[Any]] = {name: [] for name in (*names, "word_positions", "token_spans", "row")}
        if word_labels is not None:
            windows["labels"] = []
        for index, row in enumerate(rows):
            # The text is tokenized once and whole. Its windows are slices between the same special tokens (and pair).
            content = np.flatnonzero(
                np.array([source == int(pair_first) for source in encoded.sequence_ids(index)], dtype=bool)
            )
            offset, count = (int(content[0]), len(content)) if len(content) else (0, 0)
            length = len(encoded["input_ids"][index])
            token_spans = np.array(encoded["offset_mapping"][index], dtype=np.int64).reshape(-1, 2)[content]
            shown = visible_spans(token_spans, row.text)
            word_spans = [(start, start if word.isspace() else end) for word, (start, end) in _words(row)]
            read_at = np.full(len(word_spans), -1)
            if count and word_spans:
                read_at = first_tokens(token_spans, np.array(word_spans))
            starts, size = [0], count
            most = limit or self._model_limit()
            if most is not None and length > most and not cuts:
                size = most - (length - count)
                starts = self._window_starts(count, size, stride, index)
            has_token = np.flatnonzero(read_at >= 0)
            positions = read_at[has_token]
            bounds = [(start, min(start + size, count)) for start in starts]
            owner = assign_windows(positions, bounds)
            # −1 reads the last one
            labels = None if word_labels is None else np.array([*word_labels[index], -100])
            for window, (start, end) in enumerate(bounds):
                body = slice(offset + start, offset + end)
                for name in names:
                    values = encoded[name][index]
                    windows[name].append(values[:offset] + values[body] + values[offset + count :])
                read = np.full(length - count + end - start, -1)
                low, high = np.searchsorted(positions, [start, end])
                owned = np.flatnonzero(owner[low:high] == window) + low
                read[offset + positions[owned] - start] = has_token[owned]
                windows["word_positions"].append(read.tolist())
                window_spans = np.full((len(read), 2), -1)
                window_spans[offset : offset + end - start] = shown[start:end]
                windows["token_spans"].append(window_spans)
                windows["row"].append(index)
                if labels is not None:
                    windows["labels"].append(labels[read].tolist())
        return rows, windows

    def _read_rows(
        self, texts: Sequence[Any], pairs: Any, word_labels: Any, pair_first: bool
    ) -> tuple[list[TextRow], list[str] | None, list[list[int]] | None]:
        """The words of each text, its second text and the labels of its words, all checked."""
        if len(texts) == 0:
            raise ValueError("field `text`: there are no texts")
        rows = [read_text(text, index) for index, text in enumerate(texts)]
        for name, values in (("text_pair", pairs), ("word_labels", word_labels)):
            if values is not None and len(values) != len(rows):
                raise ValueError(f"field `{name}`: there are {len(values)} rows for {len(rows)} texts")
        if word_labels is not None:
            word_labels = [read_labels(word_labels[i], row.words, i) for i, row in enumerate(rows)]
        if pairs is not None:
            pairs = [read_text(pair, index, "text_pair").text for index, pair in enumerate(pairs)]
        elif pair_first:
            raise ValueError("`pair_first` says where `text_pair` stands, and there is none")
        return rows, pairs, word_labels

    def _window_starts(self, count: int, size: int, stride: int | None, row: int) -> list[int]:
        if size < 1:
            raise ValueError(
                f"row {row}, field `text`: the window is full of special tokens and `text_pair`, {1 - size} more "
                "tokens are needed; raise `max_length`"
            )
        if stride is not None and not 0 <= stride < size:
            raise ValueError(
                f"row {row}, field `text`: `stride` = {stride} must be less than the {size} tokens of text in a window"
            )
        shared = min(self.window_stride, size // 2) if stride is None else stride
        return list(range(0, count - shared, size - shared))

    def _pad(self, encoding: dict[str, list[Any]], padding: Any, limit: int | None, multiple: Any, side: str) -> None:
        if padding in (None, False, "do_not_pad"):
            return
        longest = max(len(ids) for ids in encoding["input_ids"])
        target = max(longest, limit or 0) if padding == "max_length" else longest
        if multiple:
            target += -target % multiple
        fill = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        fill |= {"word_positions": -1, "labels": -100}
        if fill["input_ids"] is None and any(len(ids) < target for ids in encoding["input_ids"]):
            raise ValueError("the tokenizer has no padding token: set `tokenizer.pad_token`, or pass `padding=False`")
        for name, windows in encoding.items():
            for window in windows:
                blanks = [fill.get(name, 0)] * (target - len(window))
                window[:] = blanks + window if side == "left" else window + blanks

    def _align_images(self, images: Any, num_rows: int, is_single: bool) -> list[list[Any]]:
        nested = isinstance(images, list | tuple) and any(isinstance(i, list | tuple) for i in images)
        if (is_single and not nested) or (num_rows == 1 and _is_one(images)):
            images = [images]
        if _is_one(images) or len(images) != num_rows:
            found = "one image" if _is_one(images) else f"{len(images)} rows"
            raise ValueError(f"field `images`: got {found} for {num_rows} texts; pass one entry per text, or `None`")
        return _image_rows(images)

    def _keeps_floats(self, images_kwargs: dict[str, Any]) -> bool:
        rescale = images_kwargs.get("do_rescale")
        return not (getattr(self.image_processor, "do_rescale", True) if rescale is None else rescale)

    def _decode(
        self, rows: list[list[Any]], allow_paths: bool = False, allow_urls: bool = False, **images_kwargs: Any
    ) -> list[list[np.ndarray | None]]:
        if self.image_processor is None and any(image is not None for row in rows for image in row):
            raise ValueError("field `images`: this processor has no image processor")
        keep_floats = self._keeps_floats(images_kwargs)
        decoded: list[list[np.ndarray | None]] = []
        known: dict[int, np.ndarray] = {}  # several texts may share one image
        for index, row in enumerate(rows):
            decoded.append([])
            for slot, image in enumerate(row):
                try:
                    if image is not None and id(image) not in known:
                        known[id(image)] = decode_image(
                            image, allow_paths=allow_paths, allow_urls=allow_urls, keep_floats=keep_floats
                        )
                except ValueError as error:
                    where = f"image {slot}: " if len(row) > 1 else ""
                    raise ValueError(f"row {index}, field `images`: {where}{error}") from error
                decoded[-1].append(None if image is None else known[id(image)])
        return decoded

    def _pictures(
        self,
        image_rows: list[list[Any]],
        rows: list[TextRow],
        allow_paths: bool = False,
        allow_urls: bool = False,
        **images_kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """The images of texts, whose sizes and views go into their rows."""
        decoded = self._decode(image_rows, allow_paths, allow_urls, **images_kwargs)
        for row, pixels in zip(rows, decoded, strict=True):
            sizes = [None if image is None else (image.shape[1], image.shape[0]) for image in pixels]
            row.image_sizes = sizes
            row.image_views = [
                None if size is None else visible_rectangle(self.image_processor, *size, **images_kwargs)
                for size in sizes
            ]
        return self._pixels(decoded, **images_kwargs)

    def _pixels(self, rows: list[list[np.ndarray | None]], **images_kwargs: Any) -> dict[str, torch.Tensor]:
        places = [(r, s) for r, row in enumerate(rows) for s, image in enumerate(row) if image is not None]
        if not places:
            return {}
        # an image that several texts share was decoded into one array, and is prepared once
        number: dict[int, int] = {}
        numbers = [number.setdefault(id(rows[row][slot]), len(number)) for row, slot in places]
        distinct = [places[numbers.index(index)] for index in range(len(number))]
        flat: list[Any] = [
            without_unseen_ends(rows[row][slot], self.image_processor, **images_kwargs)  # type: ignore[arg-type]
            for row, slot in distinct
        ]
        # Left to itself an image processor guesses the channel axis, and guesses wrong for images 1 or 3 pixels wide.
        images_kwargs["input_data_format"] = "channels_last"
        try:
            features = self.image_processor(flat, return_tensors="pt", **images_kwargs)
        except (ValueError, RuntimeError) as error:
            self._refuse_single_images(rows, distinct, flat, images_kwargs)
            raise ValueError(
                f"field `images`: {type(self.image_processor).__name__} failed on {len(flat)} images; all images must "
                f"come out in one size (see its `size`, `do_resize` and `do_center_crop`): {error}"
            ) from error
        pixels = features.get("pixel_values")
        if not isinstance(pixels, torch.Tensor) or pixels.ndim != 4 or pixels.shape[:2] != (len(flat), 3):
            shape = tuple(pixels.shape) if isinstance(pixels, torch.Tensor) else type(pixels)
            raise ValueError(
                f"field `images`: {type(self.image_processor).__name__} must give `pixel_values` of shape "
                f"({len(flat)}, 3, height, width), got {shape}"
            )
        row_ids, slots = (torch.tensor(ids) for ids in zip(*places, strict=True))
        shape = (len(rows), max(map(len, rows)))

        def place(values: torch.Tensor) -> torch.Tensor:
            placed = values.new_zeros((*shape, *values.shape[1:]))
            placed[row_ids, slots] = values[numbers]
            return placed

        data = {"pixel_values": place(pixels.float()), "image_mask": place(torch.ones(len(flat), dtype=torch.long))}
        if "pixel_mask" in features:
            data["pixel_mask"] = place(features["pixel_mask"])
        return data

    def _refuse_single_images(
        self, rows: list[list[np.ndarray | None]], places: list[Span], images: list[Any], images_kwargs: dict[str, Any]
    ) -> None:
        """Names the first of some images that the image processor fails on although it is alone, if there is one."""
        for (row, slot), image in zip(places, images, strict=True):
            try:
                self.image_processor([image], return_tensors="pt", **images_kwargs)
            except (ValueError, RuntimeError) as error:
                where = f"image {slot}: " if len(rows[row]) > 1 else ""
                height, width = image.shape[:2]
                raise ValueError(
                    f"row {row}, field `images`: {where}{type(self.image_processor).__name__} cannot prepare an image of "
                    f"{width}×{height} pixels; crop it or leave it out: {error}"
                ) from error

    # ----------------------------------------------- from the model ------------------------------------------------

    def merge_windows(
        self, values: torch.Tensor, batch: VTFusionBatch
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """
        Bring what a model says about tokens back to words: each word is read once, at its first sub-word in the
        window that shows most of its surroundings.

        Args:
            values (`torch.Tensor` of shape `(batch_size, sequence_length)` or `(batch_size, sequence_length, *)`):
                Logits, gates, or anything else per token.
            batch ([`VTFusionBatch`]): What the model was called with.

        Returns:
            `tuple(list[torch.Tensor], list[torch.Tensor])`: for each text the values of its words, `float` of shape
            `(num_words, *)`, and which words have one, `bool` of shape `(num_words,)`. A word has none where the
            tokenizer gave it no token of its own; its values are NaN.
        """
        if tuple(values.shape[:2]) != batch.word_positions.shape:
            raise ValueError(
                f"the outputs have shape {tuple(values.shape)}, the batch has `word_positions` of shape "
                f"{batch.word_positions.shape}: they do not belong together"
            )
        counts = [len(row.words) for row in batch.rows]
        first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        windows, tokens = np.nonzero(batch.word_positions >= 0)
        row_of_window = np.asarray(batch.row_of_window, dtype=np.int64)
        words = torch.from_numpy(first[row_of_window[windows]] + batch.word_positions[windows, tokens])
        values = values.detach().float().cpu()
        merged = values.new_full((int(first[-1]), *values.shape[2:]), float("nan"))
        found = torch.zeros(int(first[-1]), dtype=torch.bool)
        merged[words] = values[torch.from_numpy(windows), torch.from_numpy(tokens)]
        found[words] = True
        return list(merged.split(counts)), list(found.split(counts))

    def predict_word_labels(
        self, outputs: Any, batch: VTFusionBatch, id2label: Mapping[Any, str], decoding: str = "argmax"
    ) -> list[list[str]]:
        """
        Exactly one label for every word of every text. A word that the model did not see as a token gets `"O"`.

        Args:
            outputs (`TokenClassifierOutput`): With `logits` of shape `(batch_size, sequence_length, num_labels)`.
            batch ([`VTFusionBatch`]): What the model was called with.
            id2label (`dict[int, str]`): The names of the labels, as in the model's config.
            decoding (`str`, *optional*, defaults to `"argmax"`):
                `"argmax"` takes the best label of each word, `"viterbi"` the best sequence in which `I-X` follows
                `B-X` or `I-X` only.

        Returns:
            `list[list[str]]`: The labels.
        """
        return [labels for labels, _ in self._predict(outputs, batch, id2label, decoding)]

    def _predict(
        self, outputs: Any, batch: VTFusionBatch, id2label: Mapping[Any, str], decoding: str
    ) -> list[tuple[list[str], np.ndarray]]:
        if decoding not in ("argmax", "viterbi"):
            raise ValueError(f"`decoding` must be 'argmax' or 'viterbi', got {decoding!r}")
        names = {int(index): label for index, label in id2label.items()}
        num_labels = outputs.logits.shape[-1]
        if set(names) != set(range(num_labels)):
            raise ValueError(f"`id2label` must name the labels 0…{num_labels - 1} of the logits, got {sorted(names)}")
        label_names = [names[index] for index in range(num_labels)]
        predictions = []
        for logits, found in zip(*self.merge_windows(outputs.logits, batch), strict=True):
            log_probs, seen = logits.double().log_softmax(-1).numpy(), found.numpy()
            chosen = np.where(seen, np.nan_to_num(log_probs, nan=-np.inf).argmax(-1), 0)
            if decoding == "viterbi":
                # A word without a token is "O", so nothing continues across it.
                for run in np.split(np.arange(len(seen)), np.flatnonzero(np.diff(seen)) + 1):
                    if len(run) and seen[run[0]]:
                        chosen[run] = viterbi(log_probs[run], label_names)
            labels = [label_names[label] if is_seen else "O" for label, is_seen in zip(chosen, seen, strict=True)]
            predictions.append((labels, np.exp(log_probs[np.arange(len(chosen)), chosen])))
        return predictions

    def post_process_words(
        self, outputs: Any, batch: VTFusionBatch, id2label: Mapping[Any, str], decoding: str = "argmax"
    ) -> list[list[dict[str, Any]]]:
        """
        Every word of every text with its label; the arguments are those of
        [`~VTFusionProcessor.post_process_token_classification`].

        Returns:
            `list[list[dict]]`: for each text its words, with `entity`, the label; `score`, its probability; `index`,
            the word's place; `word`; `start` and `end`, where it stands in `batch.rows[i].text`; and `gate`, how much
            it used the image (0 without an image, `None` if the model does not say). A word that the model did not see
            as a token is `"O"` with a score and a gate of 0.
        """
        predictions = self._predict(outputs, batch, id2label, decoding)
        results = []
        for row, (labels, probs), gate in zip(batch.rows, predictions, self._gates(outputs, batch), strict=True):
            gates: list[float | None] = [None] * len(labels) if gate is None else gate.nan_to_num().tolist()
            results.append(
                [
                    {"entity": label, "score": float(prob), "index": index, "word": word, "start": start, "end": end}
                    | {"gate": of_word}
                    for index, (label, prob, (word, (start, end)), of_word) in enumerate(
                        zip(labels, np.nan_to_num(probs), _words(row), gates, strict=True)
                    )
                ]
            )
        return results

    def _gates(self, outputs: Any, batch: VTFusionBatch) -> list[torch.Tensor] | list[None]:
        """For each text the gates of its words, 0 without an image; `None` where the model does not say."""
        if getattr(outputs, "fusion_gate", None) is None:
            return [None] * len(batch.rows)
        gates, _ = self.merge_windows(outputs.fusion_gate, batch)
        return [
            gate if has_image else torch.zeros_like(gate)
            for gate, has_image in zip(gates, _rows_with_image(batch), strict=True)
        ]

    def post_process_token_classification(
        self, outputs: Any, batch: VTFusionBatch, id2label: Mapping[Any, str], decoding: str = "argmax"
    ) -> list[list[dict[str, Any]]]:
        """
        The entities of each text.

        Args:
            outputs (`TokenClassifierOutput`):
                With `logits` of shape `(batch_size, sequence_length, num_labels)` and, optionally, `fusion_gate` of
                shape `(batch_size, sequence_length)`, `text_to_image_attention` of shape
                `(batch_size, num_heads, sequence_length, num_positions)` and `visual_boxes` of shape
                `(batch_size, num_positions, 4)`.
            batch ([`VTFusionBatch`]): What the model was called with.
            id2label (`dict[int, str]`): The names of the labels (`O`, `B-X`, `I-X`), as in the model's config.
            decoding (`str`, *optional*, defaults to `"argmax"`): `"argmax"` or `"viterbi"`, see
                [`~VTFusionProcessor.predict_word_labels`].

        Returns:
            `list[list[dict]]`: for each text its entities, with `entity_group`; `score`, the mean probability of its
            words' labels; `words`, its first and last word; `start` and `end`, where it stands in
            `batch.rows[i].text`; `text`; `gate`, how much its words used the image on average (0 without an image,
            `None` if the model does not say); and `image_region`, where they looked: the `image`'s index, a `box`
            (x0, y0, x1, y1) in pixels of the original image, and the attention in it as `score`, or `None`. The
            region is the position with the most attention with what adjoins it at half of that or more.
        """
        predictions = self._predict(outputs, batch, id2label, decoding)
        gates = self._gates(outputs, batch)
        looks = self._attention(outputs, batch)
        with_image = _rows_with_image(batch)
        results: list[list[dict[str, Any]]] = []
        for index, (row, (labels, probs)) in enumerate(zip(batch.rows, predictions, strict=True)):
            has_image = bool(with_image[index])
            results.append([])
            for kind, first, last in entity_spans(labels):
                start, end = row.spans[first][0], row.spans[last][1]
                gate = gates[index]
                region = None
                if looks is not None and has_image:
                    attention, boxes = looks[index]
                    region = self._image_region(attention[first : last + 1].mean(0), boxes, row)
                results[-1].append(
                    {
                        "entity_group": kind,
                        "score": float(probs[first : last + 1].mean()),
                        "words": (first, last),
                        "start": start,
                        "end": end,
                        "text": row.text[start:end],
                        "gate": None if gate is None else float(gate[first : last + 1].mean()),
                        "image_region": region,
                    }
                )
        return results

    def post_process_sequence_classification(
        self, outputs: Any, batch: VTFusionBatch, id2label: Mapping[Any, str], function_to_apply: str = "softmax"
    ) -> list[list[dict[str, Any]]]:
        """
        What is said about each text as a whole: the mean over its windows.

        Args:
            outputs (`VTFusionClassifierOutput`):
                With `logits` of shape `(batch_size, num_labels)` and, optionally, `fusion_gate` of shape
                `(batch_size, sequence_length)`.
            batch ([`VTFusionBatch`]): What the model was called with.
            id2label (`dict[int, str]`): The names of the labels, as in the model's config.
            function_to_apply (`str`, *optional*, defaults to `"softmax"`):
                What makes scores of a window's logits: `"softmax"` (one label), `"sigmoid"` (several) or `"none"`
                (numbers).

        Returns:
            `list[list[dict]]`: for each text every `label` with its `score`, the highest first, and `gate`, how much
            the words used the image on average (0 without an image, `None` if the model does not say).
        """
        functions: dict[str, Any] = {"softmax": partial(torch.softmax, dim=-1), "sigmoid": torch.sigmoid, "none": None}
        if function_to_apply not in functions:
            raise ValueError(f"`function_to_apply` must be one of {', '.join(functions)}, got {function_to_apply!r}")
        names = {int(index): label for index, label in id2label.items()}
        shape = (len(batch.row_of_window), len(names))
        if tuple(outputs.logits.shape) != shape:
            raise ValueError(
                f"the outputs have `logits` of shape {tuple(outputs.logits.shape)}, for the windows of the batch and "
                f"the labels of `id2label` they must have {shape}"
            )
        scores = outputs.logits.detach().double().cpu()
        if functions[function_to_apply] is not None:
            scores = functions[function_to_apply](scores)
        row_of_window = torch.tensor(batch.row_of_window)
        mean = scores.new_zeros(len(batch.rows), len(names)).index_add(0, row_of_window, scores)
        mean = mean / torch.bincount(row_of_window, minlength=len(batch.rows))[:, None]
        results = []
        for row, gate in zip(mean, self._gates(outputs, batch), strict=True):
            best_first = row.argsort(descending=True, stable=True).tolist()
            of_words = None if gate is None else float(gate.nanmean()) if gate.isfinite().any() else 0.0
            results.append([{"label": names[i], "score": float(row[i]), "gate": of_words} for i in best_first])
        return results

    def post_process_question_answering(
        self,
        outputs: Any,
        batch: VTFusionBatch,
        n_best: int = 20,
        max_answer_length: int = 30,
        allow_no_answer: bool = False,
        null_threshold: float = 0.0,
    ) -> list[list[dict[str, Any]]]:
        """
        The answers to a question about each text, out of all of its windows.

        The first token of a window stands for "no answer", whatever it is, and is never a part of one. With the
        question first (`pair_first=True`, as models are trained) it is `[CLS]` or the like, or, from tokenizers that
        put nothing around a text, the question's first token.

        Args:
            outputs (`VTFusionQuestionAnsweringOutput`):
                With `start_logits` and `end_logits` and, optionally, `fusion_gate`, all of shape
                `(batch_size, sequence_length)`.
            batch ([`VTFusionBatch`]):
                What the model was called with, made by `processor(text=contexts, text_pair=questions,
                pair_first=True)`.
            n_best (`int`, *optional*, defaults to 20):
                The most answers of a text. Answers that are the same characters are one.
            max_answer_length (`int`, *optional*, defaults to 30):
                The most tokens of an answer.
            allow_no_answer (`bool`, *optional*, defaults to `False`):
                Whether there may be no answer, which then is one more in the list: `""`, from 0 to 0.
            null_threshold (`float`, *optional*, defaults to 0.0):
                No answer comes first if its score is higher than that of the best answer by more than this (in logits).

        Returns:
            `list[list[dict]]`: for each text its answers, best first: the `answer`; its `score`, a probability among
            those listed; `start` and `end`, where it stands in `batch.rows[i].text`; and `gate`, how much its tokens
            used the image on average (0 without an image, `None` if the model does not say, and for no answer). The
            score of no answer is the lowest of all windows, since most windows of a long text do not hold the answer;
            its difference to another answer's is that of the logarithms of their probabilities. Without
            `allow_no_answer` the list is empty for a text that has no tokens.
        """
        for name, number in (("n_best", n_best), ("max_answer_length", max_answer_length)):
            if number < 1:
                raise ValueError(f"`{name}` must be positive, got {number}")
        if null_threshold != 0 and not allow_no_answer:
            raise ValueError("`null_threshold` needs `allow_no_answer=True`")
        shape = batch.token_spans.shape[:2]
        for name in ("start_logits", "end_logits"):
            found_shape = tuple(getattr(outputs, name).shape)
            if found_shape != shape:
                raise ValueError(
                    f"`{name}` has shape {found_shape}, the batch has `token_spans` of shape {(*shape, 2)}: they do not "
                    "belong together"
                )
        start_scores, end_scores = (
            logits.detach().float().cpu().double().numpy() for logits in (outputs.start_logits, outputs.end_logits)
        )
        gates = getattr(outputs, "fusion_gate", None)
        gates = None if gates is None else gates.detach().float().cpu().numpy()
        no_answer = np.full(len(batch.rows), np.inf)
        # For each text the best place of each answer by its characters: score, window, first and last token.
        found: list[dict[Span, tuple[float, int, int, int]]] = [{} for _ in batch.rows]
        for window, (row_index, place) in enumerate(zip(batch.row_of_window, _first_places(batch), strict=True)):
            starts, ends, spans = start_scores[window], end_scores[window], batch.token_spans[window].copy()
            no_answer[row_index] = min(no_answer[row_index], starts[place] + ends[place])
            spans[place] = -1
            for score, (first, last) in zip(*best_spans(starts, ends, spans, n_best, max_answer_length), strict=True):
                characters = (int(spans[first, 0]), int(spans[last, 1]))
                if characters not in found[row_index] or score > found[row_index][characters][0]:
                    found[row_index][characters] = (score, window, first, last)

        with_image = _rows_with_image(batch)
        results = []
        for index, row in enumerate(batch.rows):
            ranked = sorted(found[index].items(), key=lambda item: (-item[1][0], item[0]))[:n_best]
            scores = np.array([score for _, (score, *_) in ranked] + [no_answer[index]] * allow_no_answer)
            probs = np.exp(scores - scores.max(initial=-np.inf))
            probs = (probs / probs.sum()).tolist()
            answers: list[dict[str, Any]] = []
            for ((start, end), (_, window, first, last)), prob in zip(ranked, probs, strict=False):
                gate = None
                if gates is not None:
                    gate = float(gates[window, first : last + 1].mean()) if with_image[index] else 0.0
                answers.append(
                    {"answer": row.text[start:end], "score": prob, "start": start, "end": end, "gate": gate}
                )
            if allow_no_answer:
                rank = 0
                if ranked and no_answer[index] - scores[0] <= null_threshold:
                    rank = max(1, int((scores[:-1] >= no_answer[index]).sum()))
                answers.insert(rank, {"answer": "", "score": probs[-1], "start": 0, "end": 0, "gate": None})
            results.append(answers)
        return results

    def post_process_grounding(
        self,
        outputs: Any,
        batch: VTFusionBatch,
        spans: Sequence[Sequence[Span]] | None = None,
        size: tuple[int, int] | None = None,
    ) -> list[list[dict[str, Any]]]:
        """
        Where in the images each word or entity looked.

        Args:
            outputs (`ModelOutput`): With `text_to_image_attention` and `visual_boxes`, see
                [`~VTFusionProcessor.post_process_token_classification`].
            batch ([`VTFusionBatch`]): What the model was called with.
            spans (`list[list[tuple[int, int]]]`, *optional*):
                For each text the (first, last) words that belong together. Defaults to every word by itself.
            size (`tuple[int, int]`, *optional*):
                (height, width) of the heat maps. Defaults to the size of each original image.

        Returns:
            `list[list[dict]]`: for each text, span and image the `words`, the index of the `image` and a `heatmap`,
            `torch.FloatTensor` of shape `(height, width)`: attention per pixel, averaged over heads and words. It
            adds up to the attention on the image (all images together have 1); what is cropped off has none.

        Raises:
            ValueError: if the model was called without `output_fusion_attentions=True`.
        """
        if spans is not None and len(spans) != len(batch.rows):
            raise ValueError(f"`spans` has {len(spans)} rows for {len(batch.rows)} texts")
        results: list[list[dict[str, Any]]] = [[] for _ in batch.rows]
        if "image_mask" not in batch:
            return results
        looks = self._attention(outputs, batch)
        if looks is None:
            raise ValueError(
                "the outputs hold no `text_to_image_attention` and `visual_boxes`: call the model with "
                "`output_fusion_attentions=True`"
            )
        for index, (row, (attention, boxes)) in enumerate(zip(batch.rows, looks, strict=True)):
            wanted = [(word, word) for word in range(len(row.words))] if spans is None else spans[index]
            for first, last in wanted:
                if not 0 <= first <= last < len(row.words):
                    raise ValueError(f"row {index}, field `spans`: ({first}, {last}) is not in 0…{len(row.words) - 1}")
                seen = attention[first : last + 1]
                seen = seen[~np.isnan(seen).any((1, 2))]
                weights = seen.mean(0) if len(seen) else np.zeros(attention.shape[1:])
                for image, (original, view) in enumerate(zip(row.image_sizes, row.image_views, strict=True)):
                    if original is None or view is None:
                        continue
                    height, width = size or (original[1], original[0])
                    scale = np.array([width / original[0], height / original[1]] * 2)
                    heat = paint(to_pixels(boxes[image], view) * scale, weights[image], height, width)
                    heatmap = torch.from_numpy(heat).float()
                    results[index].append({"words": (first, last), "image": image, "heatmap": heatmap})
        return results

    def _attention(self, outputs: Any, batch: VTFusionBatch) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """For each text the attention (num_words, num_images, n) and the boxes (num_images, n, 4), or `None`."""
        attention = getattr(outputs, "text_to_image_attention", None)
        boxes = getattr(outputs, "visual_boxes", None)
        if attention is None or boxes is None or "image_mask" not in batch:
            return None
        num_images = batch["image_mask"].shape[1]
        merged, _ = self.merge_windows(attention.float().mean(1), batch)
        all_boxes = boxes.detach().double().cpu().numpy()
        first_window = _first_windows(batch)
        each = all_boxes.shape[1] // num_images  # not left to `reshape`, which cannot tell for a text without words
        return [
            (values.double().numpy().reshape(len(values), num_images, each), all_boxes[w].reshape(num_images, each, 4))
            for values, w in zip(merged, first_window, strict=True)
        ]

    def _image_region(self, weights: np.ndarray, boxes: np.ndarray, row: TextRow) -> dict[str, Any] | None:
        real = [image for image, size in enumerate(row.image_sizes) if size is not None]
        if not real:  # precomputed features: nobody said how large the image was
            return None
        image = max(real, key=lambda index: weights[index].sum())
        original, view = row.image_sizes[image], row.image_views[image]
        if original is None or view is None or not weights[image].sum() > 0:
            return None
        box, score = strongest_region(boxes[image], weights[image])
        pixels = to_pixels(box, view).clip(0, [*original, *original])
        return {"image": image, "box": tuple(float(edge) for edge in pixels), "score": score}


def _is_one(images: Any) -> bool:
    """Whether this is one image, not a sequence with an entry per row."""
    if isinstance(images, np.ndarray | torch.Tensor):
        return images.ndim != 4
    return isinstance(images, str | bytes | bytearray | memoryview | Path | Image.Image | Mapping) or images is None


def _image_rows(images: Sequence[Any]) -> list[list[Any]]:
    return [list(i) if isinstance(i, list | tuple) else [] if i is None else [i] for i in images]


def _first_windows(batch: VTFusionBatch) -> np.ndarray:
    """The index of a window of each text, whatever the order of the windows."""
    return np.unique(batch.row_of_window, return_index=True)[1]


def _first_places(batch: VTFusionBatch) -> list[int]:
    """Where each window begins: behind its padding, where that is on the left."""
    if "attention_mask" not in batch:
        return [0] * len(batch.row_of_window)
    mask = torch.as_tensor(batch["attention_mask"]).cpu()
    return mask.reshape(len(batch.row_of_window), -1).int().argmax(dim=1).tolist()


def _rows_with_image(batch: VTFusionBatch) -> np.ndarray:
    if "image_mask" not in batch:
        return np.full(len(batch.rows), "visual_embeds" in batch)
    first_window = _first_windows(batch)
    mask = torch.as_tensor(batch["image_mask"]).cpu().bool()
    return mask.any(dim=1).numpy()[first_window]


def _words(row: TextRow) -> list[tuple[str, Span]]:
    return list(zip(row.words, row.spans, strict=True))


def _stack(windows: list[list[Any]], shape: tuple[int, ...], side: str) -> np.ndarray:
    """Windows of unequal length as one array, filled up with −1 on one side."""
    stacked = np.full((len(windows), *shape), -1, dtype=np.int64)
    for row, window in zip(stacked, windows, strict=True):
        start = shape[0] - len(window) if side == "left" else 0
        row[start : start + len(window)] = window
    return stacked


def _as_array(windows: list[list[int]]) -> Any:
    # Ragged rows stay lists: the conversion to tensors says what is wrong with them.
    return np.array(windows, dtype=np.int64) if len({len(window) for window in windows}) == 1 else windows


VTFusionProcessor.register_for_auto_class("AutoProcessor")
