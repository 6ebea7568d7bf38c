"""Batches: text windows padded on the right, with the images of their rows or the cached features of these."""

from dataclasses import dataclass
from typing import Any

import torch

from ..processing_vtfusion import VTFusionProcessor
from .images import FeatureCache, ImageStore

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
    """

    processor: VTFusionProcessor
    store: ImageStore
    cache: FeatureCache | None = None
    pad_to_multiple_of: int | None = None

    def __call__(self, windows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
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
        rows = [window["image_keys"] for window in windows]
        if self.cache is not None:
            return {**batch, **self.cache.gather(rows)}
        images = [None if not keys else [self.store.load(key) for key in keys] for keys in rows]
        if any(images):
            batch |= self.processor.encode_images(images)
        return batch
