"""Batches: text windows padded on the right, with the images of their rows or the cached features of these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..processing_vtfusion import VTFusionProcessor
from .images import BLANK_KEY, FeatureCache, ImageStore, RowKeys

_PADDED = {"attention_mask": 0, "token_type_ids": 0, "labels": -100}
# one for each window, under the name that the model knows it by
_WHOLE = {"label": "labels", "start_positions": "start_positions", "end_positions": "end_positions"}


@dataclass
class FusionCollator:
    """
    Makes a batch of windows.

    Args:
        processor ([`VTFusionProcessor`]): prepares the images, and knows the padding token.
        store ([`ImageStore`]): where the images are.
        cache ([`FeatureCache`], *optional*): features of all images, where the vision encoder is frozen. Without it
            images are decoded for each batch.
        pad_to_multiple_of (`int`, *optional*): rounds the length up.
        num_labels (`int`, *optional*): width of the labels that windows hold as `label_scores`, places with scores.
        always_images (`bool`, *optional*, defaults to `False`):
            Whether a batch without an image gets one that is masked. It changes no result, but the batch then goes
            through every layer, as it must where processes share the weights of a layer and gather them together.
    """

    processor: VTFusionProcessor
    store: ImageStore
    cache: FeatureCache | None = None
    pad_to_multiple_of: int | None = None
    num_labels: int | None = None
    always_images: bool = False

    def __call__(self, windows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {**self.pad(windows), **self.gather_images([window["image_keys"] for window in windows])}

    def pad(self, windows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Model inputs without the images."""
        length = max(len(window["input_ids"]) for window in windows)
        if self.pad_to_multiple_of:
            length += -length % self.pad_to_multiple_of
        fill = {"input_ids": self.processor.tokenizer.pad_token_id, **_PADDED}
        batch = {
            name: torch.tensor([window[name] + [value] * (length - len(window[name])) for window in windows])
            for name, value in fill.items()
            if name in windows[0]
        }
        for name, argument in _WHOLE.items():
            if name in windows[0]:
                batch[argument] = torch.tensor([window[name] for window in windows])
        if "label_scores" in windows[0]:
            if self.num_labels is None:
                raise ValueError("Windows with `label_scores` need `num_labels`.")
            batch["labels"] = torch.zeros(len(windows), self.num_labels)
            for index, window in enumerate(windows):
                for entry in window["label_scores"]:
                    batch["labels"][index, entry["label"]] = entry["score"]
        return batch

    def gather_images(self, rows: Sequence[RowKeys]) -> dict[str, torch.Tensor]:
        """Model inputs for the images of each row; none if no row has any, but for `always_images`."""
        if self.always_images and not any(rows):
            masked = self._gather([[BLANK_KEY], *([None] * (len(rows) - 1))])
            masked["image_mask"].zero_()
            return masked
        return self._gather(rows)

    def _gather(self, rows: Sequence[RowKeys]) -> dict[str, torch.Tensor]:
        if self.cache is not None:
            return self.cache.gather(rows)
        images = [None if not keys else [self.store.load(key) for key in keys] for keys in rows]
        return self.processor.encode_images(images) if any(images) else {}
