"""The processor: words, images and prompts to tensors. The way back is in `postprocessing_vtfusion.py`."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Encoding
from transformers import AutoTokenizer
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, ProcessorMixin, Unpack

from .images_vtfusion import decode_image, visible_rectangle, without_unseen_ends
from .postprocessing_vtfusion import VTFusionPostProcessingMixin, check_decoding
from .prompts_vtfusion import chat_template_with_images, take_image_tokens, visible_images
from .words_vtfusion import (
    Span,
    TextRow,
    VTFusionBatch,
    read_labels,
    read_text,
    valid_unicode,
    visible_spans,
    words_in_windows,
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


# ----------------------------------------------------- processor ----------------------------------------------------


class VTFusionProcessor(ProcessorMixin, VTFusionPostProcessingMixin):
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
        decoding (`str`, *optional*, defaults to `"argmax"`):
            How labels of words are read off a model's scores: `"argmax"` or `"viterbi"`, see
            [`~VTFusionProcessor.predict_word_labels`]. `decoding` in a call goes first.

    Raises:
        ValueError: if there is no tokenizer, or a setting is not what is said above.

    Example:

    ```python
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import PreTrainedTokenizerFast
    >>> from vtfusion import VTFusionProcessor

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
        decoding: str = "argmax",
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
        check_decoding(decoding)
        self.window_length = window_length
        self.window_stride = window_stride
        self.decoding = decoding
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
        """What the models may be called with: the names of both parts, and `image_mask` where there are images."""
        names = [*super().model_input_names, "attention_mask"]
        if self.image_processor is not None:
            names.append("image_mask")
        return list(dict.fromkeys(names))

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
                it always does, and words beyond the cut get no prediction of the model. With `image_token` texts of
                more than `max_length` tokens are refused, or with `truncation` cut. `text_pair` is passed on to
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
        given, text_kwargs, images_kwargs = self._sort_kwargs(dict(kwargs))
        if text is None:
            pixels = self._images_alone(images, **images_kwargs)
            return VTFusionBatch(pixels, tensor_type=text_kwargs.get("return_tensors"))
        if self.image_token is not None:
            unread = {"word_labels": word_labels, "text_pair": given.get("text_pair"), "pair_first": pair_first}
            unread["is_split_into_words"] = text_kwargs.get("is_split_into_words")
            wrong = [name for name, value in unread.items() if value]
            if wrong:
                raise ValueError(f"{wrong} cannot be used with `image_token`: a prompt is one string")
            return self._prompts(images, text, response, given, text_kwargs, images_kwargs)
        if response is not None:
            raise ValueError("`response` is for prompts: this processor has no `image_token`")
        return self._windows(
            images,
            text,
            word_labels,
            pair_first=bool(pair_first),
            given=given,
            text_kwargs=text_kwargs,
            images_kwargs=images_kwargs,
        )

    def _sort_kwargs(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """What the caller says of texts, the same with what tokenizer and processor say by default, and of images."""
        given = {**kwargs.get("common_kwargs", {}), **kwargs.get("text_kwargs", {}), **kwargs}
        unsupported = [name for name in _UNSUPPORTED if given.get(name)]
        if unsupported:
            raise ValueError(f"{unsupported} cannot be used here: see `rows` and `word_positions` of the result")
        merged: dict[str, Any] = self._merge_kwargs(
            VTFusionProcessorKwargs,  # type: ignore[arg-type]
            tokenizer_init_kwargs=self.tokenizer.init_kwargs,
            **kwargs,
        )
        merged["images_kwargs"].pop("return_tensors", None)
        return given, merged["text_kwargs"], merged["images_kwargs"]

    def _windows(
        self,
        images: Any,
        text: Any,
        word_labels: Any,
        *,
        pair_first: bool,
        given: dict[str, Any],
        text_kwargs: dict[str, Any],
        images_kwargs: dict[str, Any],
    ) -> VTFusionBatch:
        """Texts as windows, with the images of each text for all of its windows."""
        texts, pairs, labels, is_single = _as_lists(
            text, given.get("text_pair"), word_labels, bool(text_kwargs.get("is_split_into_words"))
        )
        limit = self._limit(given, text_kwargs)
        names = ("add_special_tokens", "return_token_type_ids", "sanitize_control_tokens")
        options = {name: text_kwargs.get(name) for name in names} | {"truncation": given.get("truncation")}
        options = {name: value for name, value in options.items() if value is not None}
        rows, encoding = self._encode(texts, pairs, labels, limit, given.get("stride"), pair_first, **options)
        row_of_window, token_spans = encoding.pop("row"), encoding.pop("token_spans")
        pictures: dict[str, torch.Tensor] = {}
        if images is not None:
            pictures = self._pictures(self._align_images(images, len(rows), is_single), rows, **images_kwargs)
            if len(row_of_window) > len(rows):
                pictures = {name: value[row_of_window] for name, value in pictures.items()}
        side = self._pad(encoding, limit or self._model_limit(), text_kwargs.get("padding"), text_kwargs)
        word_positions = encoding.pop("word_positions")
        longest = max(map(len, word_positions))
        return_tensors = text_kwargs.get("return_tensors")
        if is_single and return_tensors is None and len(row_of_window) == 1 and not pictures:
            encoding = {name: value[0] for name, value in encoding.items()}
        return VTFusionBatch(
            {**(_as_arrays(encoding) if return_tensors else encoding), **pictures},
            tensor_type=return_tensors,
            rows=rows,
            row_of_window=row_of_window,
            word_positions=_stack(word_positions, (longest,), side),
            token_spans=_stack(token_spans, (longest, 2), side),
        )

    def _limit(self, given: Mapping[str, Any], text_kwargs: Mapping[str, Any]) -> int | None:
        """The most tokens of one input. What a tokenizer was saved with as its `max_length` goes last."""
        return given.get("max_length") or self.window_length or text_kwargs.get("max_length")

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
        max_length: int | None = None,
        truncation: Any = None,
        **tokenizer_kwargs: Any,
    ) -> dict[str, list[Any]]:
        """
        Tokenize prompts for the generation model without padding, for instance in `dataset.map(…, batched=True)`.

        Args:
            text (`list[str]`): The prompts, with an image token where each image stands, or none at all: images then
                stand before the text. One that begins with the tokenizer's begin token, as a chat may, gets no second.
            num_images (`list[int]`): How many images each has. With 0 its image tokens are dropped.
            response (`list[str]`, *optional*): What is to be generated after each.
            max_length (`int`, *optional*, defaults to `self.window_length`): The most tokens of one.
            truncation (`bool` or `str`, *optional*): Whether longer ones are cut, as in a tokenizer; else they are
                refused. A response without its end gets no end-of-text token.
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
        read = [
            _read_prompt(prompt, count, self.image_token, row)
            for row, (prompt, count) in enumerate(zip(text, num_images, strict=True))
        ]
        responses: Sequence[str | None] = [None] * len(read) if response is None else response
        whole = [prompt + (then or "") for (prompt, _), then in zip(read, responses, strict=True)]
        limit = max_length or self.window_length or self._model_limit()
        is_cutting = truncation not in (None, False, "do_not_truncate")
        if is_cutting:
            tokenizer_kwargs |= {"truncation": truncation, "max_length": limit}
        encoded = self._tokenize_prompts(whole, **tokenizer_kwargs)
        inputs = [
            self._prompt_inputs(
                encoded[row],
                prompt=prompt,
                places=places,
                response=responses[row],
                limit=limit,
                is_cutting=is_cutting,
                row=row,
            )
            for row, (prompt, places) in enumerate(read)
        ]
        names = ("input_ids", "attention_mask", "visible_images", *(() if response is None else ("labels",)))
        return {name: [of_row[name] for of_row in inputs] for name in names}

    def _tokenize_prompts(self, texts: Sequence[str], **tokenizer_kwargs: Any) -> list[Encoding]:
        """What the tokenizer makes of each text. One that begins with its begin token, as chats do, has all it needs."""
        self._refuse_slow_tokenizer()
        begin = self.tokenizer.bos_token
        is_begun = [begin is not None and text.startswith(begin) for text in texts]
        encoded: dict[int, Encoding] = {}
        for begun, options in ((False, {}), (True, {"add_special_tokens": False})):
            rows = [row for row in range(len(texts)) if is_begun[row] is begun]
            if rows:
                of_rows = self.tokenizer(
                    [texts[row] for row in rows], verbose=False, **{**tokenizer_kwargs, **options}
                )
                encoded.update(zip(rows, of_rows.encodings, strict=True))
        return [encoded[row] for row in range(len(texts))]

    def _prompt_inputs(
        self,
        encoding: Encoding,
        *,
        prompt: str,
        places: list[int],
        response: str | None,
        limit: int | None,
        is_cutting: bool,
        row: int,
    ) -> dict[str, list[Any]]:
        """
        What the model is given of a prompt.

        Args:
            encoding (`Encoding`): The tokens of prompt and response.
            prompt (`str`): The text before the response.
            places (`list[int]`): For each image the character before which it stands.
            response (`str`, *optional*): What follows.
            limit (`int`, *optional*): The most tokens.
            is_cutting (`bool`): Whether more are cut off, which the tokenizer has done.
            row (`int`): Its place in the batch, for error messages.
        """
        ids, ends = encoding.ids, [end for _, end in encoding.offsets]
        keeps_end = self.tokenizer.truncation_side == "left"
        learns_end = response is not None and (keeps_end or not encoding.overflowing)
        if learns_end and ids[-1:] != [self.tokenizer.eos_token_id]:
            if is_cutting and limit is not None and len(ids) >= limit:
                # The end-of-text token is cut too, or on the left the first token of the text in its place.
                is_special = encoding.special_tokens_mask
                learns_end = keeps_end and 0 in is_special
                if learns_end:
                    del ids[is_special.index(0)], ends[is_special.index(0)]
            if learns_end:
                ids, ends = [*ids, self.tokenizer.eos_token_id], [*ends, len(prompt) + len(response or "")]
        if not ids:
            raise ValueError(f"row {row}, field `text`: there are no tokens to go on from")
        if not is_cutting and limit is not None and len(ids) > limit:
            raise ValueError(
                f"row {row}, field `text`: {len(ids)} tokens are more than the {limit} that the model reads; "
                "shorten the text, or pass `truncation=True`"
            )
        visible = visible_images(ends, places, self.image_scope).tolist()
        inputs = {"input_ids": ids, "attention_mask": [1] * len(ids), "visible_images": visible}
        if response is not None:
            # what stands behind the prompt, and the end of the text
            learned = [end > len(prompt) for end in ends]
            learned[-1] |= learns_end
            inputs["labels"] = [i if keep else -100 for i, keep in zip(ids, learned, strict=True)]
        return inputs

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
        seen = encoding.pop("visible_images")
        limit = text_kwargs.get("max_length") or self.window_length or self._model_limit()
        side = self._pad(encoding, limit, padding, text_kwargs)
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
        given: dict[str, Any],
        text_kwargs: dict[str, Any],
        images_kwargs: dict[str, Any],
    ) -> VTFusionBatch:
        """Prompts for the generation model with their images."""
        is_single = isinstance(text, str)
        texts = [text] if is_single else list(text)
        if not texts:
            raise ValueError("field `text`: there are no texts")
        responses = [response] if isinstance(response, str) else response
        rows = [[] for _ in texts] if images is None else self._align_images(images, len(texts), is_single)
        limit = self._limit(given, text_kwargs)
        options: dict[str, Any] = {"max_length": limit, "truncation": given.get("truncation")}
        if text_kwargs.get("add_special_tokens") is not None:
            options["add_special_tokens"] = text_kwargs["add_special_tokens"]
        encoded = self.encode_prompts(texts, [len(row) for row in rows], responses, **options)
        padding = {name: text_kwargs.get(name) for name in ("padding", "padding_side", "pad_to_multiple_of")}
        encoded = self.pad_prompts(encoded, max_length=limit, **padding)
        return_tensors = text_kwargs.get("return_tensors")
        return VTFusionBatch(
            {**(_as_arrays(encoded) if return_tensors else encoded), **self.encode_images(rows, **images_kwargs)},
            tensor_type=return_tensors,
            rows=[TextRow(prompt, [], []) for prompt in texts],
            row_of_window=list(range(len(texts))),
        )

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

    def _refuse_slow_tokenizer(self) -> None:
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"`VTFusionProcessor` needs a fast tokenizer (one that knows character offsets), "
                f"{type(self.tokenizer).__name__} is a slow one"
            )

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
        """The rows of texts, and what [`~VTFusionProcessor.encode_text`] gives of them."""
        self._refuse_slow_tokenizer()
        rows, pairs, word_labels = self._read_rows(texts, pairs, word_labels, pair_first)
        first, second = [row.text for row in rows], pairs
        if pair_first:
            first, second = second, first
        if tokenizer_kwargs.get("truncation"):
            tokenizer_kwargs["max_length"] = limit
        encoded = self.tokenizer(
            first,
            text_pair=second,
            return_offsets_mapping=True,
            return_attention_mask=True,
            verbose=False,  # it would warn of long texts, which are cut into windows below
            **tokenizer_kwargs,
        )
        # `truncation`, be it `False`, leaves all to the tokenizer
        most = None if tokenizer_kwargs.get("truncation") is not None else limit or self._model_limit()
        names = [name for name in encoded if name != "offset_mapping"]
        windows: dict[str, list[Any]] = {}
        for index, row in enumerate(rows):
            sources = encoded.sequence_ids(index)
            count = sources.count(int(pair_first))
            offset = sources.index(int(pair_first)) if count else 0
            bounds = self._window_bounds(len(sources), count, most, stride, index)
            cut = _cut(
                row,
                {name: encoded[name][index] for name in names},
                np.array(encoded["offset_mapping"][index], dtype=np.int64).reshape(-1, 2)[offset : offset + count],
                offset,
                bounds,
                None if word_labels is None else word_labels[index],
            )
            for name, values in cut.items():
                windows.setdefault(name, []).extend(values)
            windows.setdefault("row", []).extend([index] * len(bounds))
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

    def _window_bounds(
        self, length: int, count: int, most: int | None, stride: int | None, row: int
    ) -> list[tuple[int, int]]:
        """Of the `count` tokens of a text, among `length`, the first of each window and the one behind its last."""
        if most is None or length <= most:
            return [(0, count)]
        size = most - (length - count)
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
        return [(start, min(start + size, count)) for start in range(0, count - shared, size - shared)]

    def _pad(
        self, encoding: dict[str, list[Any]], limit: int | None, padding: Any, text_kwargs: Mapping[str, Any]
    ) -> str:
        """Fills windows up to one length, in place. Returns the side on which it does."""
        side = text_kwargs.get("padding_side") or self.tokenizer.padding_side
        if padding in (None, False, "do_not_pad"):
            return side
        longest = max(len(ids) for ids in encoding["input_ids"])
        target = max(longest, limit or 0) if padding == "max_length" else longest
        target += -target % (text_kwargs.get("pad_to_multiple_of") or 1)
        fill = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        fill |= {"word_positions": -1, "labels": -100}
        if fill["input_ids"] is None and any(len(ids) < target for ids in encoding["input_ids"]):
            raise ValueError("the tokenizer has no padding token: set `tokenizer.pad_token`, or pass `padding=False`")
        for name, windows in encoding.items():
            for window in windows:
                blanks = [fill.get(name, 0)] * (target - len(window))
                window[:] = blanks + window if side == "left" else window + blanks
        return side

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
        """Tensors of decoded images, each at its row and slot. One that several texts share is prepared once."""
        places = [(r, s) for r, row in enumerate(rows) for s, image in enumerate(row) if image is not None]
        if not places:
            return {}
        number: dict[int, int] = {}
        numbers = [number.setdefault(id(rows[row][slot]), len(number)) for row, slot in places]
        distinct = [places[numbers.index(index)] for index in range(len(number))]
        features = self._prepare(rows, distinct, images_kwargs)
        row_ids, slots = (torch.tensor(ids) for ids in zip(*places, strict=True))
        shape = (len(rows), max(map(len, rows)))

        def place(values: torch.Tensor) -> torch.Tensor:
            placed = values.new_zeros((*shape, *values.shape[1:]))
            placed[row_ids, slots] = values[numbers]
            return placed

        data = {
            "pixel_values": place(features["pixel_values"].float()),
            "image_mask": place(torch.ones(len(distinct), dtype=torch.long)),
        }
        if "pixel_mask" in features:
            data["pixel_mask"] = place(features["pixel_mask"])
        return data

    def _prepare(
        self, rows: list[list[np.ndarray | None]], places: list[Span], images_kwargs: dict[str, Any]
    ) -> Mapping[str, Any]:
        """What the image processor makes of the images at these places (row, slot): one tensor of `pixel_values`."""
        images: list[Any] = [
            without_unseen_ends(rows[row][slot], self.image_processor, **images_kwargs)  # type: ignore[arg-type]
            for row, slot in places
        ]
        # Left to itself an image processor guesses the channel axis, and guesses wrong for images 1 or 3 pixels wide.
        images_kwargs = {**images_kwargs, "input_data_format": "channels_last"}
        name = type(self.image_processor).__name__
        try:
            features = self.image_processor(images, return_tensors="pt", **images_kwargs)
        except (ValueError, RuntimeError) as error:
            self._refuse_single_images(rows, places, images, images_kwargs)
            raise ValueError(
                f"field `images`: {name} failed on {len(images)} images; all images must come out in one size (see its "
                f"`size`, `do_resize` and `do_center_crop`): {error}"
            ) from error
        pixels = features.get("pixel_values")
        if not isinstance(pixels, torch.Tensor) or pixels.ndim != 4 or pixels.shape[:2] != (len(images), 3):
            shape = tuple(pixels.shape) if isinstance(pixels, torch.Tensor) else type(pixels)
            raise ValueError(
                f"field `images`: {name} must give `pixel_values` of shape ({len(images)}, 3, height, width), got {shape}"
            )
        return features

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


def _is_one(images: Any) -> bool:
    """Whether this is one image, not a sequence with an entry per row."""
    if isinstance(images, np.ndarray | torch.Tensor):
        return images.ndim != 4
    return isinstance(images, str | bytes | bytearray | memoryview | Path | Image.Image | Mapping) or images is None


def _is_row(labels: Any) -> bool:
    """Whether these are the labels of a text, not the label of a word, which a tensor gives as a tensor too."""
    return isinstance(labels, list | tuple) or getattr(labels, "ndim", 0) > 0


def _as_lists(text: Any, pairs: Any, word_labels: Any, is_split_into_words: bool) -> tuple[Any, Any, Any, bool]:
    """Texts, second texts and labels with an entry for each text, and whether it was a single one."""
    is_single = isinstance(text, str) or (is_split_into_words and all(isinstance(word, str) for word in text))
    if not is_single:
        return list(text), pairs, word_labels, False
    if word_labels is not None and not any(_is_row(labels) for labels in word_labels):
        word_labels = [word_labels]
    return [text], None if pairs is None else [pairs], word_labels, True


def _read_prompt(prompt: Any, num_images: int, image_token: str, row: int) -> tuple[str, list[int]]:
    """A prompt without its image tokens, and for each image the character before which it stands."""
    where = f"row {row}, field `text`: "
    if not isinstance(prompt, str):
        raise ValueError(f"{where}expected a string, got {type(prompt)}")
    clean, places = take_image_tokens(valid_unicode(prompt, where), image_token)
    if num_images == 0:
        return clean, []
    if places and len(places) != num_images:
        raise ValueError(f"{where}there are {len(places)} times {image_token!r} for {num_images} images")
    return clean, places or [0] * num_images


def _image_rows(images: Sequence[Any]) -> list[list[Any]]:
    return [list(i) if isinstance(i, list | tuple) else [] if i is None else [i] for i in images]


def _cut(
    row: TextRow,
    tokens: Mapping[str, list[int]],
    token_spans: np.ndarray,
    offset: int,
    bounds: list[tuple[int, int]],
    labels: list[int] | None,
) -> dict[str, list[Any]]:
    """
    The windows of a text that was tokenized once and whole: slices of it between the same special tokens (and pair).

    Args:
        row ([`TextRow`]): The text.
        tokens (`dict[str, list[int]]`): What the tokenizer gives, special tokens and pair included.
        token_spans (`np.ndarray` of shape `(count, 2)`): Character offsets of the tokens of the text alone.
        offset (`int`): Where these begin among all tokens.
        bounds (`list[tuple[int, int]]`): Among these, the first token of each window and the one behind its last.
        labels (`list[int]`, *optional*): The labels of the words.
    """
    behind, shown = offset + len(token_spans), visible_spans(token_spans, row.text)
    of_words = None if labels is None else np.array([*labels, -100])  # −1 reads the last one
    windows: dict[str, list[Any]] = {name: [] for name in (*tokens, "word_positions", "token_spans")}
    if of_words is not None:
        windows["labels"] = []
    for (start, end), words in zip(bounds, words_in_windows(row, token_spans, bounds), strict=True):
        for name, values in tokens.items():
            windows[name].append(values[:offset] + values[offset + start : offset + end] + values[behind:])
        length, body = len(windows["input_ids"][-1]), slice(offset, offset + end - start)
        read, spans = np.full(length, -1), np.full((length, 2), -1)
        read[body], spans[body] = words, shown[start:end]
        windows["word_positions"].append(read.tolist())
        windows["token_spans"].append(spans)
        if of_words is not None:
            windows["labels"].append(of_words[read].tolist())
    return windows


def _stack(windows: list[list[Any]], shape: tuple[int, ...], side: str) -> np.ndarray:
    """Windows of unequal length as one array, filled up with −1 on one side."""
    stacked = np.full((len(windows), *shape), -1, dtype=np.int64)
    for row, window in zip(stacked, windows, strict=True):
        start = shape[0] - len(window) if side == "left" else 0
        row[start : start + len(window)] = window
    return stacked


def _as_arrays(encoding: Mapping[str, list[list[int]]]) -> dict[str, Any]:
    # Ragged rows stay lists: the conversion to tensors says what is wrong with them.
    return {
        name: np.array(windows, dtype=np.int64) if len({len(window) for window in windows}) == 1 else windows
        for name, windows in encoding.items()
    }


VTFusionProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["VTFusionBatch", "VTFusionImagesKwargs", "VTFusionProcessor", "VTFusionProcessorKwargs"]
