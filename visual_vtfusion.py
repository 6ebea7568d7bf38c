"""VTFusion's visual side: building any vision encoder, and reading what it returns as features with a place each."""

import math
from typing import Any

import torch
from transformers import (
    MODEL_FOR_OBJECT_DETECTION_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    AutoBackbone,
    AutoModel,
    AutoModelForObjectDetection,
    AutoModelForTextEncoding,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput, logging

logger = logging.get_logger(__name__)


def grid_boxes(height: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """Boxes (x0, y0, x1, y1) from 0 to 1 of the cells of a grid, row by row, `(height * width, 4)`."""
    rows = torch.arange(height, device=device, dtype=torch.float32)
    columns = torch.arange(width, device=device, dtype=torch.float32)
    top, left = torch.meshgrid(rows / height, columns / width, indexing="ij")
    return torch.stack([left, top, left + 1 / width, top + 1 / height], dim=-1).flatten(0, 1)


def split_prefix_tokens(
    num_tokens: int, image_size: tuple[int, int], config: PreTrainedConfig, num_prefix_tokens: int | None = None
) -> tuple[int, int, int]:
    """
    Tells the prefix tokens (`[CLS]`, registers) of a vision transformer's sequence from its grid.

    Args:
        num_tokens (`int`): length of the sequence.
        image_size (`tuple[int, int]`): height and width of the pixel tensor.
        config (`PreTrainedConfig`): the vision encoder's configuration, of which the patches are read.
        num_prefix_tokens (`int`, *optional*): their number, where it is known.

    Returns:
        `tuple[int, int, int]` of the number of prefix tokens, and the grid's height and width.

    Raises:
        `ValueError` if no grid fits the sequence.

    Example:

    ```python
    >>> from transformers import ViTConfig
    >>> from vtfusion.visual_vtfusion import split_prefix_tokens

    >>> split_prefix_tokens(197, (224, 224), ViTConfig(patch_size=16))
    (1, 14, 14)
    ```
    """
    height, width = image_size
    if num_prefix_tokens is not None:
        # the grid has the image's aspect ratio
        rows = round(math.sqrt(max(num_tokens - num_prefix_tokens, 0) * height / width))
        if rows > 0 and (num_tokens - num_prefix_tokens) % rows == 0:
            return num_prefix_tokens, rows, (num_tokens - num_prefix_tokens) // rows
    else:
        patch = getattr(config, "patch_stride", None) or getattr(config, "patch_size", None)
        patch_height, patch_width = patch if isinstance(patch, (tuple, list)) else (patch, patch)
        # Hierarchical transformers (Swin) halve the grid after each stage, rounding up. They have no prefix, and pad
        # an image that the patch does not divide; a plain one drops what is left over.
        for stage in range(6 if patch_height else 0):
            scale = 2**stage
            rows, columns = -(-height // (patch_height * scale)), -(-width // (patch_width * scale))
            if rows * columns == num_tokens:
                return 0, rows, columns
            if stage == 0:
                rows, columns = height // patch_height, width // patch_width
                if 0 < rows * columns <= num_tokens:
                    return num_tokens - rows * columns, rows, columns
    raise ValueError(
        f"The vision encoder '{config.model_type}' returned {num_tokens} tokens for an image of {height} x {width} "
        "pixels, which fits no grid. Set `vision_num_prefix_tokens` in the config."
    )


def build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder with random weights from its configuration: a detector, a backbone, or what `AutoModel` gives."""
    auto_class = encoder_auto_class(config)
    try:
        return auto_class.from_config(config)
    except ValueError:
        # "sdpa" or "flash_attention_2" asked of the whole model reaches a CNN, which has no attention, and raises.
        if config._attn_implementation in (None, "eager"):
            raise
        logger.warning_once(
            f"'{config.model_type}' does not take attn_implementation='{config._attn_implementation}'; "
            "this encoder runs its own."
        )
        config._attn_implementation = None
        return auto_class.from_config(config)


def encoder_auto_class(config: PreTrainedConfig) -> Any:
    """The Auto class that builds an encoder of this configuration."""
    if type(config) in MODEL_FOR_OBJECT_DETECTION_MAPPING:
        return AutoModelForObjectDetection
    if config.model_type in ("timm_backbone", "maskformer-swin"):
        return AutoBackbone
    # The encoder of an encoder-decoder (T5), whose own config says after it was built that it is none.
    if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING and type(config)().is_encoder_decoder:
        return AutoModelForTextEncoding
    return AutoModel


def visual_hidden_size(config: PreTrainedConfig) -> int:
    """Width of a vision encoder's features: from its config, else from a dry run on the meta device."""
    for name in ("output_channels", "hidden_size"):  # SAM's neck is narrower than its layers
        if getattr(config, name, None):
            return getattr(config, name)
    size = getattr(config, "image_size", None) or 224
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    with torch.device("meta"), torch.no_grad():
        encoder = build_encoder(config).eval()
        outputs = encoder(pixel_values=torch.zeros(1, getattr(config, "num_channels", 3), height, width))
        features = outputs.feature_maps[-1] if hasattr(outputs, "feature_maps") else outputs.last_hidden_state
    return features.shape[1] if features.dim() == 4 else features.shape[-1]


def read_features(
    outputs: ModelOutput,
    image_size: tuple[int, int],
    config: PreTrainedConfig,
    width: int | None,
    num_prefix_tokens: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What any vision encoder returned, as features with a place each.

    Args:
        outputs (`ModelOutput`): feature maps of a CNN or backbone, a transformer's sequence, or a detector's queries.
        image_size (`tuple[int, int]`): height and width of the pixel tensor.
        config (`PreTrainedConfig`): the vision encoder's configuration.
        width (`int`, *optional*): the width of the features.
        num_prefix_tokens (`int`, *optional*): tokens before the grid of a transformer, where it is known.

    Returns:
        `tuple` of features `(images, n, width)` and boxes `(images, n, 4)`.
    """
    boxes = getattr(outputs, "pred_boxes", None)
    if boxes is not None:
        # YOLOS returns its patch tokens before the detection tokens.
        features = outputs.last_hidden_state[:, -boxes.shape[1] :]
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        # Geometry tells where a feature is from; it is not trained through.
        return features, torch.cat([centre - half, centre + half], dim=-1).clamp(0, 1).detach().float()

    features = outputs.feature_maps[-1] if hasattr(outputs, "feature_maps") else outputs.last_hidden_state
    if features.dim() == 4:
        if features.shape[1] != width and features.shape[-1] == width:
            # some timm transformers put the channels last
            features = features.permute(0, 3, 1, 2)
        height, columns = features.shape[-2:]
        features = features.flatten(2).transpose(1, 2)
    else:
        order = getattr(outputs, "ids_restore", None)
        if order is not None and features.shape[1] <= order.shape[1]:
            raise ValueError(
                f"The vision encoder '{config.model_type}' hides patches at random: set `mask_ratio` to 0 in its config."
            )
        prefix, height, columns = split_prefix_tokens(features.shape[1], image_size, config, num_prefix_tokens)
        features = features[:, prefix:]
        if order is not None:  # a masked autoencoder shuffles its patches
            features = features.gather(1, order[..., None].expand_as(features))
    boxes = grid_boxes(height, columns, device=features.device)
    return features, boxes.expand(features.shape[0], -1, -1)


__all__ = [
    "build_encoder",
    "encoder_auto_class",
    "grid_boxes",
    "read_features",
    "split_prefix_tokens",
    "visual_hidden_size",
]
