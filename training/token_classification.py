"""Entity recognition: texts to windows, predictions back to words, scores, and the file of predictions."""

import os
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict

from ..processing_vtfusion import VTFusionBatch, VTFusionProcessor
from ..words_vtfusion import TextRow, read_text
from .arguments import TokenDataArguments
from .fine_tuning import limit_rows, read_records
from .images import RowKeys
from .loading import trained_labels
from .metrics import compute_entity_metrics, entity_counts, entity_report
from .token_data import load_token_classification_dataset
from .windows import gather_windows, map_to_windows


def load_splits(
    data_args: TokenDataArguments, model_name_or_path: str | None = None, model_revision: str = "main"
) -> DatasetDict:
    """
    All splits that the arguments name, cut to `max_train_samples` and `max_eval_samples`.

    Args:
        data_args ([`TokenDataArguments`]): where the data is.
        model_name_or_path (`str`, *optional*): a trained model, whose labels stay where the data has no others.
        model_revision (`str`, *optional*, defaults to `"main"`): its branch, tag or commit.

    Returns:
        `DatasetDict`: see [`load_token_classification_dataset`].
    """
    trained = trained_labels(model_name_or_path, model_revision)
    return limit_rows(load_token_classification_dataset(**data_args.source(), trained=trained), data_args)


def encode_windows(
    dataset: Dataset, processor: VTFusionProcessor, image_keys: Sequence[RowKeys], num_proc: int | None = None
) -> Dataset:
    """
    Tokenizes texts into windows that fit the text encoder.

    Args:
        dataset (`datasets.Dataset`): with `tokens` and `ner_tags`.
        processor ([`VTFusionProcessor`]): its `window_length` and `window_stride` decide the windows.
        image_keys (`Sequence[list[str] | None]`): for each row the keys of its images in an [`ImageStore`].
        num_proc (`int`, *optional*): processes to use.

    Returns:
        `datasets.Dataset`: a row per window with `input_ids`, `attention_mask`, `labels`, `word_positions` (see
        [`VTFusionBatch`]), `row` (the text it is a part of), `length` and `image_keys`.
    """

    def encode(batch: dict[str, list]) -> dict[str, list]:
        return processor.encode_text(batch["tokens"], word_labels=batch["ner_tags"])

    return map_to_windows(dataset, encode, image_keys, num_proc)


class WordEvaluator:
    """
    Scores windows by the words they were made from; an [`Evaluator`].

    Args:
        dataset (`datasets.Dataset`): the texts, with `tokens` and `ner_tags`.
        windows (`datasets.Dataset`): made from it by [`encode_windows`], in the order in which they are predicted.
        processor ([`VTFusionProcessor`]): puts windows back together, and reads tags off scores by its `decoding`.
    """

    metric = "f1"
    field = "predicted_tags"
    labelled = True

    def __init__(self, dataset: Dataset, windows: Dataset, processor: VTFusionProcessor):
        self.processor = processor
        self.label_names = dataset.features["ner_tags"].feature.names
        self.references = [[self.label_names[tag] for tag in tags] for tags in dataset["ner_tags"]]
        self.rows: list[TextRow] = [read_text(tokens, row) for row, tokens in enumerate(dataset["tokens"])]
        self.row_of_window: list[int] = list(windows["row"])
        self.word_positions: list[list[int]] = list(windows["word_positions"])

    @property
    def metrics(self) -> list[str]:
        """Names of the scores."""
        return list(self.score(self.references))

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.label_names))

    def gather(
        self, predictions: tuple[np.ndarray, np.ndarray], image_keys: Sequence[RowKeys] | None = None
    ) -> tuple[SimpleNamespace, VTFusionBatch]:
        """Outputs and batch of the whole split, for the processor's `post_process_…` methods."""
        logits, gates = (torch.from_numpy(np.asarray(array)) for array in predictions)
        batch = gather_windows(
            self.rows, self.row_of_window, logits.shape[1], image_keys, word_positions=self.word_positions
        )
        return SimpleNamespace(logits=logits, fusion_gate=gates), batch

    def answers(self, predictions: tuple[np.ndarray, np.ndarray]) -> list[list[str]]:
        """One IOB2 tag for every word of every text."""
        outputs, batch = self.gather(predictions)
        return self.processor.predict_word_labels(outputs, batch, self.id2label)

    def score(self, tags: Sequence[Sequence[str]]) -> dict[str, float | int]:
        """Strict entity scores of these tags, see [`compute_entity_metrics`]."""
        return compute_entity_metrics(tags, self.references)

    def report(self, scores: Mapping[str, float | int]) -> str:
        """The table of scores per entity type."""
        return entity_report(dict(scores))

    def records(
        self, predictions: tuple[np.ndarray, np.ndarray], image_keys: Sequence[RowKeys]
    ) -> list[dict[str, Any]]:
        """
        For each text its words, true and predicted tags, and entities with score, character offsets and gate.

        Args:
            predictions (`tuple[np.ndarray, np.ndarray]`): logits and gates of the windows.
            image_keys (`Sequence[list[str] | None]`): the images of each text, of which the number is told.
        """
        outputs, batch = self.gather(predictions, image_keys)
        entities = self.processor.post_process_token_classification(outputs, batch, self.id2label)
        tags = self.processor.predict_word_labels(outputs, batch, self.id2label)
        return [
            {
                "row": index,
                "tokens": row.words,
                "num_images": len(image_keys[index] or []),
                "ner_tags": self.references[index],
                "predicted_tags": tags[index],
                # the image region needs attention maps, which are too large to keep for a whole split
                "entities": [
                    {name: value for name, value in entity.items() if name != "image_region"}
                    for entity in entities[index]
                ],
            }
            for index, row in enumerate(self.rows)
        ]


def read_entity_counts(folder: str | os.PathLike, entity_types: Sequence[str]) -> dict[str, np.ndarray]:
    """
    Reads the `results.json` and `test_predictions.jsonl` of a run as counts that can be resampled, see
    [`entity_counts`].

    Args:
        folder (`str` or `os.PathLike`): the run's `output_dir`.
        entity_types (`Sequence[str]`): the types.

    Returns:
        `dict[str, np.ndarray]`: for each image condition of the test an array of shape `(texts, types, 3)`.
    """
    records, fields = read_records(folder, WordEvaluator.field)
    true = [record["ner_tags"] for record in records]
    return {
        condition: entity_counts([record[field] for record in records], true, entity_types)
        for condition, field in fields.items()
    }
