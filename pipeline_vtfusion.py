"""`pipeline(...)` for texts with pictures: entities, classes, answers."""

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import BatchFeature, Pipeline
from transformers.utils import ModelOutput, logging

logger = logging.get_logger(__name__)


class _Stream(IterableDataset):
    """Examples that come one after the other, as a data set for `DataLoader`."""

    def __init__(self, examples: Iterable[Any]):
        self.examples = examples

    def __iter__(self) -> Iterator[Any]:
        return iter(self.examples)


class VTFusionPipeline(Pipeline):
    """
    What the pipelines share. An example is a mapping with the texts of the task and `image` (one) or `images` (a
    list), which may be left out or `None`; other keys, such as the labels of a data set, are not read. Images are
    whatever [`VTFusionProcessor`] takes.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False

    pipeline_task = ""  # its name for `pipeline(...)`
    auto_class = ""  # the Auto class that loads its model
    text_fields: tuple[str, ...] = ("text",)
    optional_text_fields: tuple[str, ...] = ()  # beside them
    other_text_fields: tuple[str, ...] = ()  # instead of them

    def __call__(self, inputs: Any = None, images: Any = None, **kwargs: Any) -> Any:
        """
        Runs one example or many.

        Args:
            inputs (`str`, `dict`, `list` or any iterable, *optional*):
                An example; a list of them; or anything else that gives examples one by one (a generator, a
                `datasets.Dataset` or one of its columns). Where the task has one text, a string is an example too.
                For a single example the fields of the task may be given by name instead.
            images (*optional*):
                The image or list of images of a single example, or one entry for each example of a list, if they are
                not in the examples.
            batch_size (`int`, *optional*, defaults to 1):
                Examples in a batch.
            num_workers (`int`, *optional*, defaults to 0):
                Processes that prepare batches; of examples that come one by one, one at most.
            allow_paths (`bool`, *optional*, defaults to `False`):
                Whether images may be given as paths.
            allow_urls (`bool`, *optional*, defaults to `False`):
                Whether images may be given as URLs.
            max_length (`int`, *optional*):
                Tokens in a window, by default what the model was trained with. Longer texts become several windows.
            stride (`int`, *optional*):
                Tokens that neighbouring windows share.
            return_heatmaps (`bool`, *optional*, defaults to `False`):
                Whether results have `heatmaps`: for each image of the example a `torch.FloatTensor` `(height, width)`
                of where the words looked.
            kwargs (*optional*):
                What the task takes besides, see its `postprocess`.

        Returns:
            The result of a single example, a list of results, or an iterator over results, in the order of `inputs`.

        Raises:
            `ValueError`: an example lacks a field of the task, or holds something that cannot be read.
        """
        if inputs is None:
            names = (*self.text_fields, *self.optional_text_fields, *self.other_text_fields, "image")
            inputs = {name: kwargs.pop(name) for name in names if name in kwargs}
        if isinstance(inputs, (str, Mapping)):
            return super().__call__(self.read_example(inputs, images), **kwargs)
        if isinstance(inputs, (list, tuple)):
            if images is None:
                images = [None] * len(inputs)
            if not isinstance(images, (list, tuple)) or len(images) != len(inputs):
                raise ValueError(f"`images` must be a list with an entry for each of the {len(inputs)} examples.")
            pairs = zip(inputs, images, strict=True)
            return super().__call__([self.read_example(example, of) for example, of in pairs], **kwargs)
        if images is not None:
            raise ValueError("`images` is for one example or a list; here put them into the examples.")
        return super().__call__(_Stream(self.read_example(example) for example in inputs), **kwargs)

    def read_example(self, example: Any, images: Any = None) -> dict[str, Any]:
        """The fields of the task and `images` (a list, an image or `None`) of an example."""
        if isinstance(example, str) and len(self.text_fields) == 1:
            example = {self.text_fields[0]: example}
        if not isinstance(example, Mapping) or any(example.get(name) is None for name in self.text_fields):
            wanted = "`, `".join(self.text_fields)
            keys = f"the keys {', '.join(map(str, example))}" if isinstance(example, Mapping) else f"{type(example)}"
            raise ValueError(f"An example of {self.pipeline_task} needs `{wanted}`, got {keys}.")
        found = [of for of in (images, example.get("image"), example.get("images")) if of is not None]
        if len(found) > 1:
            raise ValueError("Give the images of an example once: as `image` or as `images`.")
        return {**{name: example[name] for name in self.text_fields}, "images": found[0] if found else None}

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess: dict[str, Any] = {
            name: kwargs.pop(name) for name in ("allow_paths", "allow_urls", "max_length", "stride") if name in kwargs
        }
        known = list(inspect.signature(self.postprocess).parameters)[1:]
        unknown = [name for name in kwargs if name not in known]
        if unknown:
            raise ValueError(f"{type(self).__name__} takes no `{'`, `'.join(unknown)}`.")
        maps = ("return_heatmaps", "return_regions")
        forward = {name: kwargs[name] for name in maps if name in kwargs}
        return preprocess, forward, kwargs

    # A text may be several windows, and what leads from windows back to texts does not survive the collating of the
    # base class: here a batch is prepared as one, from its examples.
    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """The results of examples one by one, from batches of them; see [`Pipeline`]."""
        if not isinstance(inputs, list):
            if num_workers > 1:
                logger.warning("Examples that come one by one are prepared by one worker, not by %d.", num_workers)
            num_workers = min(num_workers, 1)
        prepare = partial(self.preprocess, **preprocess_params)
        encoded: dict[bytes, Any] = {}
        for batch in DataLoader(inputs, batch_size=batch_size, num_workers=num_workers, collate_fn=prepare):
            outputs = self.forward(batch, encoded=encoded, **forward_params)
            yield from self.postprocess(outputs, **postprocess_params)

    def run_single(
        self,
        inputs: Any,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Any:
        """The result of a single example; see [`Pipeline`]."""
        return next(self.get_iterator([inputs], 0, 1, preprocess_params, forward_params, postprocess_params))

    def preprocess(self, examples: Sequence[Mapping[str, Any]], **options: Any) -> BatchFeature:
        """A batch for the model from what [`read_example`] gives."""
        images = [example["images"] for example in examples]
        if any(of is not None for of in images):
            options["images"] = images
        batch = self.processor(**self.texts(examples), return_tensors="pt", **options)
        batch.image_keys = _image_keys(batch)
        return batch

    def texts(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The arguments of the processor for the texts of a batch."""
        return {"text": [example["text"] for example in examples]}

    def _forward(
        self,
        batch: BatchFeature,
        encoded: dict[bytes, Any] | None = None,
        return_heatmaps: bool = False,
        return_regions: bool = False,
    ) -> dict[str, Any]:
        inputs = self.encode_images(batch, {} if encoded is None else encoded)
        outputs = self.model(**inputs, output_fusion_attentions=return_heatmaps or return_regions)
        return {"outputs": outputs, "batch": batch}

    def encode_images(self, batch: BatchFeature, encoded: dict[bytes, Any]) -> dict[str, Any]:
        """
        The inputs of the model with features in the place of pixels. An image that several texts share, or several
        windows of one, is encoded once.

        Args:
            batch (`BatchFeature`): What [`preprocess`] gave.
            encoded (`dict`): Features and boxes of the images of the batch before, which are not encoded again; those
                of this one take their place.
        """
        inputs = dict(batch)
        if "pixel_values" not in inputs:
            return inputs
        pixels, pixel_mask = inputs.pop("pixel_values"), inputs.pop("pixel_mask", None)
        keys = batch.image_keys
        places = {key: place for place, key in reversed([*enumerate(keys)]) if key is not None}
        new = {key: place for key, place in places.items() if key not in encoded}
        if new:
            which = torch.tensor([*new.values()], device=pixels.device)
            features, boxes = self.model.base_model.get_visual_features(
                pixels.flatten(0, 1)[which, None],
                pixel_mask=None if pixel_mask is None else pixel_mask.flatten(0, 1)[which, None],
            )
            encoded.update(zip(new, zip(features[:, 0], boxes[:, 0], strict=True), strict=True))
        for key in encoded.keys() - places.keys():
            del encoded[key]
        nothing = tuple(torch.zeros_like(value) for value in next(iter(encoded.values())))
        for name, values in zip(
            ("visual_embeds", "visual_boxes"),
            zip(*(nothing if key is None else encoded[key] for key in keys), strict=True),
            strict=True,
        ):
            inputs[name] = torch.stack(values).unflatten(0, pixels.shape[:2])
        return inputs

    def _ensure_tensor_on_device(self, inputs: Any, device: torch.device) -> Any:
        # The base class would make plain mappings of both, without the texts and the fields.
        if isinstance(inputs, BatchFeature):
            return inputs.to(device)
        if isinstance(inputs, ModelOutput):
            for name, value in inputs.items():
                inputs[name] = super()._ensure_tensor_on_device(value, device)
            return inputs
        return super()._ensure_tensor_on_device(inputs, device)

    def add_heatmaps(
        self, results: list[list[dict[str, Any]]], spans: list[list[tuple[int, int]]], model_outputs: dict[str, Any]
    ) -> None:
        """Puts `heatmaps` into the results of each text, of which `spans` are the first and last words."""
        maps = self.processor.post_process_grounding(model_outputs["outputs"], model_outputs["batch"], spans=spans)
        for of_text, found in zip(results, maps, strict=True):
            num_images = len(found) // max(len(of_text), 1)
            for place, result in enumerate(of_text):
                of_result = found[place * num_images : (place + 1) * num_images]
                result["heatmaps"] = [entry["heatmap"] for entry in of_result]

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Saves the model, which names its pipeline and brings the code, and the processor."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


class VTFusionTokenClassificationPipeline(VTFusionPipeline):
    """
    Entities in texts with or without pictures. An example has `text` or a list of words as `tokens`; among several
    examples a list of words is one too.

    Example:

    ```python
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import BertConfig, PreTrainedTokenizerFast, pipeline
    >>> from vtfusion import VTFusionConfig, VTFusionForTokenClassification, VTFusionProcessor

    >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "Ada": 2, "met": 3, "Bob": 4}, unk_token="[UNK]"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    >>> text = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    >>> config = VTFusionConfig(text, visual_hidden_size=8, fusion_hidden_size=16, num_labels=3)
    >>> pipe = pipeline(
    ...     "multimodal-token-classification",
    ...     model=VTFusionForTokenClassification(config),
    ...     processor=VTFusionProcessor(tokenizer=tokenizer),
    ... )
    >>> [word["word"] for word in pipe("Ada met Bob", aggregation_strategy="none")]
    ['Ada', 'met', 'Bob']
    ```
    """

    pipeline_task = "multimodal-token-classification"
    auto_class = "AutoModelForTokenClassification"
    other_text_fields = ("tokens",)

    def read_example(self, example: Any, images: Any = None) -> dict[str, Any]:
        """`text`, a string or a list of words, and `images` of an example; `tokens` are such a list."""
        if isinstance(example, (list, tuple)):
            example = {"tokens": list(example)}
        if isinstance(example, Mapping) and example.get("tokens") is not None:
            if example.get("text") is not None:
                raise ValueError("Give the words of an example once: as `text` or as `tokens`.")
            example = {**example, "text": example["tokens"]}
        return super().read_example(example, images)

    def _forward(
        self,
        batch: BatchFeature,
        encoded: dict[bytes, Any] | None = None,
        return_heatmaps: bool = False,
        return_regions: bool = True,
    ) -> dict[str, Any]:
        return super()._forward(batch, encoded, return_heatmaps, return_regions)

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        aggregation_strategy: str = "simple",
        decoding: str | None = None,
        return_heatmaps: bool = False,
        return_regions: bool = True,
    ) -> list[list[dict[str, Any]]]:
        """
        Entities, or words with their labels.

        Args:
            model_outputs (`dict`):
                What the model said, and the batch.
            aggregation_strategy (`str`, *optional*, defaults to `"simple"`):
                `"simple"` gives entities, see [`~VTFusionProcessor.post_process_token_classification`]; `"none"` every
                word as `entity` (its label), `score`, `index`, `word`, `start`, `end` and `gate`.
            decoding (`str`, *optional*):
                `"argmax"` or `"viterbi"`, by default what the processor was saved with; see
                [`~VTFusionProcessor.predict_word_labels`].
            return_heatmaps (`bool`, *optional*, defaults to `False`):
                Whether to add `heatmaps`.
            return_regions (`bool`, *optional*, defaults to `True`):
                Whether entities have their `image_region`; without it and heat maps no attention map is built.

        Returns:
            `list[list[dict]]`: for each text its entities or words.
        """
        outputs, batch = model_outputs["outputs"], model_outputs["batch"]
        id2label = self.model.config.id2label
        if aggregation_strategy == "simple":
            results = self.processor.post_process_token_classification(outputs, batch, id2label, decoding)
            spans = [[entity["words"] for entity in entities] for entities in results]
        elif aggregation_strategy == "none":
            results = self.processor.post_process_words(outputs, batch, id2label, decoding)
            spans = [[(word["index"], word["index"]) for word in words] for words in results]
        else:
            raise ValueError(f"`aggregation_strategy` must be 'simple' or 'none', got {aggregation_strategy!r}.")
        if return_heatmaps:
            self.add_heatmaps(results, spans, model_outputs)
        return results


class VTFusionTextClassificationPipeline(VTFusionPipeline):
    """
    Labels of texts with or without pictures. An example has `text`, perhaps `text_pair`.

    Example:

    ```python
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import BertConfig, PreTrainedTokenizerFast, pipeline
    >>> from vtfusion import VTFusionConfig, VTFusionForSequenceClassification, VTFusionProcessor

    >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "Ada": 2, "met": 3, "Bob": 4}, unk_token="[UNK]"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    >>> text = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    >>> config = VTFusionConfig(text, visual_hidden_size=8, fusion_hidden_size=16, id2label={0: "bad", 1: "good"})
    >>> pipe = pipeline(
    ...     "multimodal-text-classification",
    ...     model=VTFusionForSequenceClassification(config),
    ...     processor=VTFusionProcessor(tokenizer=tokenizer),
    ... )
    >>> sorted(label["label"] for label in pipe({"text": "Ada met Bob", "image": None}, top_k=2))
    ['bad', 'good']
    ```
    """

    pipeline_task = "multimodal-text-classification"
    auto_class = "AutoModelForSequenceClassification"
    optional_text_fields: tuple[str, ...] = ("text_pair",)

    def read_example(self, example: Any, images: Any = None) -> dict[str, Any]:
        """`text`, `text_pair` (`None` for none) and `images` of an example."""
        pair = example.get("text_pair") if isinstance(example, Mapping) else None
        return {**super().read_example(example, images), "text_pair": pair}

    def texts(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The arguments of the processor for the texts of a batch, with `text_pair` if they have one."""
        pairs = [example["text_pair"] for example in examples]
        with_pair = [pair is not None for pair in pairs]
        if any(with_pair) and not all(with_pair):
            raise ValueError("Some examples of a batch have a `text_pair` and some have none.")
        return {**super().texts(examples), **({"text_pair": pairs} if all(with_pair) else {})}

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        top_k: int | None = 1,
        function_to_apply: str | None = None,
        return_heatmaps: bool = False,
    ) -> list[Any]:
        """
        The best label of each text, or several.

        Args:
            model_outputs (`dict`):
                What the model said, and the batch.
            top_k (`int`, *optional*, defaults to 1):
                How many labels, best first. With 1 the result is a `dict`, else a list; `None` gives all.
            function_to_apply (`str`, *optional*):
                `"softmax"`, `"sigmoid"` or `"none"`. By default what the model was trained for.
            return_heatmaps (`bool`, *optional*, defaults to `False`):
                Whether to add `heatmaps`, of all words.

        Returns:
            `list`: for each text a `dict` of `label`, `score` and `gate`, or a list of them, see
            [`~VTFusionProcessor.post_process_sequence_classification`].
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"`top_k` must be positive, got {top_k}.")
        config, batch = self.model.config, model_outputs["batch"]
        if function_to_apply is None:
            by_problem = {"multi_label_classification": "sigmoid", "regression": "none"}
            function_to_apply = by_problem.get(config.problem_type, "none" if config.num_labels == 1 else "softmax")
        results = self.processor.post_process_sequence_classification(
            model_outputs["outputs"], batch, config.id2label, function_to_apply
        )
        results = [labels[:top_k] for labels in results]
        if return_heatmaps:
            spans = [[(0, len(row.words) - 1)] if row.words else [] for row in batch.rows]
            best: list[list[dict[str, Any]]] = [[{}] for _ in results]
            self.add_heatmaps(best, spans, model_outputs)
            for labels, ((of_text,)) in zip(results, best, strict=True):
                for label in labels:
                    label.update(of_text)
        return [labels[0] if top_k == 1 else labels for labels in results]


class VTFusionVisualQuestionAnsweringPipeline(VTFusionTextClassificationPipeline):
    """
    Answers to questions about pictures, out of those that the model knows. An example has `question`.

    Example:

    ```python
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import BertConfig, PreTrainedTokenizerFast, pipeline
    >>> from vtfusion import VTFusionConfig, VTFusionForVisualQuestionAnswering, VTFusionProcessor

    >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "Ada": 2, "met": 3, "Bob": 4}, unk_token="[UNK]"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    >>> text = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    >>> config = VTFusionConfig(text, visual_hidden_size=8, fusion_hidden_size=16, id2label={0: "no", 1: "yes"})
    >>> pipe = pipeline(
    ...     "multimodal-visual-question-answering",
    ...     model=VTFusionForVisualQuestionAnswering(config),
    ...     processor=VTFusionProcessor(tokenizer=tokenizer),
    ... )
    >>> pipe(question="met Ada Bob", top_k=None)[0]["answer"] in ("no", "yes")
    True
    ```
    """

    pipeline_task = "multimodal-visual-question-answering"
    auto_class = "AutoModelForVisualQuestionAnswering"
    text_fields = ("question",)
    optional_text_fields = ()

    def texts(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The arguments of the processor for the questions of a batch."""
        return {"text": [example["question"] for example in examples]}

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        top_k: int | None = 1,
        function_to_apply: str | None = None,
        return_heatmaps: bool = False,
    ) -> list[Any]:
        """
        The best answer to each question, or several.

        Args:
            model_outputs (`dict`):
                What the model said, and the batch.
            top_k (`int`, *optional*, defaults to 1):
                How many answers, best first. With 1 the result is a `dict`, else a list; `None` gives all.
            function_to_apply (`str`, *optional*):
                `"softmax"`, `"sigmoid"` or `"none"`. By default what the model was trained for.
            return_heatmaps (`bool`, *optional*, defaults to `False`):
                Whether to add `heatmaps`, of all words of the question.

        Returns:
            `list`: for each question a `dict` of `answer`, `score` and `gate`, or a list of them.
        """
        results = super().postprocess(model_outputs, top_k, function_to_apply, return_heatmaps)
        for answers in results:
            for answer in [answers] if top_k == 1 else answers:
                answer["answer"] = answer.pop("label")
        return results


class VTFusionQuestionAnsweringPipeline(VTFusionPipeline):
    """
    Answers that stand in a text beside its picture. An example has `question` and `context`.

    Example:

    ```python
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import BertConfig, PreTrainedTokenizerFast, pipeline
    >>> from vtfusion import VTFusionConfig, VTFusionForQuestionAnswering, VTFusionProcessor

    >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "Ada": 2, "met": 3, "Bob": 4}, unk_token="[UNK]"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    >>> text = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    >>> config = VTFusionConfig(text, visual_hidden_size=8, fusion_hidden_size=16)
    >>> pipe = pipeline(
    ...     "multimodal-question-answering",
    ...     model=VTFusionForQuestionAnswering(config),
    ...     processor=VTFusionProcessor(tokenizer=tokenizer),
    ... )
    >>> pipe(question="met Ada", context="Ada met Bob")["answer"] in "Ada met Bob"
    True
    ```
    """

    pipeline_task = "multimodal-question-answering"
    auto_class = "AutoModelForQuestionAnswering"
    text_fields = ("question", "context")

    def texts(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The arguments of the processor for the contexts of a batch, with their questions before them."""
        return {
            "text": [example["context"] for example in examples],
            "text_pair": [example["question"] for example in examples],
            "pair_first": True,
        }

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        top_k: int = 1,
        max_answer_length: int = 30,
        handle_impossible_answer: bool = False,
        null_threshold: float = 0.0,
        return_heatmaps: bool = False,
    ) -> list[Any]:
        """
        The best answer to each question, or several.

        Args:
            model_outputs (`dict`):
                What the model said, and the batch.
            top_k (`int`, *optional*, defaults to 1):
                How many answers, best first. With 1 the result is a `dict`, else a list.
            max_answer_length (`int`, *optional*, defaults to 30):
                The most tokens of an answer.
            handle_impossible_answer (`bool`, *optional*, defaults to `False`):
                Whether there may be no answer, which is `""`.
            null_threshold (`float`, *optional*, defaults to 0.0):
                How far the score of no answer must lie above that of the best one (in logits).
            return_heatmaps (`bool`, *optional*, defaults to `False`):
                Whether to add `heatmaps`, of the words of each answer.

        Returns:
            `list`: for each question a `dict` of `answer`, `score`, `start`, `end` and `gate`, or a list of them, see
            [`~VTFusionProcessor.post_process_question_answering`]. A context without words has the answer `""` with
            a score of 0.
        """
        if top_k < 1:
            raise ValueError(f"`top_k` must be positive, got {top_k}.")
        batch = model_outputs["batch"]
        found = self.processor.post_process_question_answering(
            model_outputs["outputs"],
            batch,
            n_best=max(20, top_k),
            max_answer_length=max_answer_length,
            allow_no_answer=handle_impossible_answer,
            null_threshold=null_threshold,
        )
        nothing = {"answer": "", "score": 0.0, "start": 0, "end": 0, "gate": None}
        results = [answers[:top_k] or [dict(nothing)] for answers in found]
        if return_heatmaps:
            in_text = [[answer for answer in answers if answer["answer"]] for answers in results]
            spans = [
                [_words_of(answer, row.spans) for answer in answers]
                for answers, row in zip(in_text, batch.rows, strict=True)
            ]
            self.add_heatmaps(in_text, spans, model_outputs)
            for answers in results:
                for answer in answers:
                    answer.setdefault("heatmaps", [])
        return [answers[0] if top_k == 1 else answers for answers in results]


def _words_of(answer: Mapping[str, Any], spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The first and last word that share a character with an answer."""
    words = [index for index, (start, end) in enumerate(spans) if start < answer["end"] and end > answer["start"]]
    return words[0], words[-1]


def _image_keys(batch: BatchFeature) -> list[bytes | None]:
    """What tells the images of a batch apart, row by row: a digest of their pixels, `None` where there is no image."""
    if "pixel_values" not in batch:
        return []
    keys: list[bytes | None] = []
    masks = batch["pixel_mask"].flatten(0, 1) if "pixel_mask" in batch else None
    for place, there in enumerate(batch["image_mask"].flatten().tolist()):
        if not there:
            keys.append(None)
            continue
        pixels = batch["pixel_values"].flatten(0, 1)[place]
        digest = hashlib.blake2b(repr(tuple(pixels.shape)).encode(), digest_size=16)
        for values in (pixels, None if masks is None else masks[place]):
            if values is not None:
                digest.update(values.contiguous().numpy())
        keys.append(digest.digest())
    return keys


__all__ = [
    "VTFusionPipeline",
    "VTFusionQuestionAnsweringPipeline",
    "VTFusionTextClassificationPipeline",
    "VTFusionTokenClassificationPipeline",
    "VTFusionVisualQuestionAnsweringPipeline",
]
