"""Whatever holds an image, to its pixels; what of it an image processor lets the encoder see; and regions in it."""

import io
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

Box = tuple[float, float, float, float]

# Raster formats that Pillow reads by itself. Others it hands to another program, as EPS to Ghostscript, which runs what
# the file says; some it takes for pictures without any mark at their start.
IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

_URL_TIMEOUT_SECONDS, _URL_MAX_BYTES = 20, 64 * 2**20
_LONG = 100  # times as long as wide


def decode_image(
    image: Any, *, allow_paths: bool = False, allow_urls: bool = False, keep_floats: bool = False
) -> np.ndarray:
    """
    Turn whatever holds an image into its pixels, upright and in RGB.

    Args:
        image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, `bytes`, `dict`, `str` or `Path`):
            An image; a dict is an undecoded image of `datasets` (`{"bytes": …, "path": …}`). Files are of one of the
            `IMAGE_FORMATS`, whatever their names end in. Of an animation the first frame is taken, transparency is
            put on white, 16 bits are scaled to 8. Arrays are `(H, W)`,
            `(H, W, C)` or `(C, H, W)` with 1, 3 or 4 channels; where both orders fit, RGB goes first, then
            channels-last for NumPy arrays and channels-first for tensors. Floats lie in 0…1 or in 0…255.
        allow_paths (`bool`, *optional*, defaults to `False`): Whether a path may be opened.
        allow_urls (`bool`, *optional*, defaults to `False`): Whether a URL may be downloaded.
        keep_floats (`bool`, *optional*, defaults to `False`):
            Whether float arrays keep their values (for an image processor that does not rescale).

    Returns:
        `np.ndarray` of shape `(height, width, 3)`: `uint8`, or `float32` for kept floats.

    Raises:
        ValueError: if the image cannot be read or is not what is described above, or has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`. Its file is named, where that is known.

    Example:

    ```python
    >>> import numpy as np
    >>> from vtfusion.images_vtfusion import decode_image

    >>> grey = np.full((2, 4), 0.5)
    >>> decode_image(grey).shape, decode_image(grey)[0, 0].tolist()
    ((2, 4, 3), [128, 128, 128])
    ```
    """
    file = image.get("path") if isinstance(image, Mapping) else image
    try:
        return _decode(image, allow_paths, allow_urls, keep_floats)
    except ValueError as error:
        if not isinstance(file, str | Path) or str(file)[:200] in str(error) or repr(str(file)[:200]) in str(error):
            raise
        raise ValueError(f"{str(file)[:200]}: {error}") from error


def _decode(image: Any, allow_paths: bool, allow_urls: bool, keep_floats: bool) -> np.ndarray:
    if isinstance(image, Mapping) and ("bytes" in image or "path" in image):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
        if image is None:
            raise ValueError("the image has neither bytes nor a path")
    if isinstance(image, np.ndarray | torch.Tensor):
        return _array_to_rgb(image, keep_floats)
    if isinstance(image, str | Path):
        image = _read(str(image), allow_paths, allow_urls)
    if isinstance(image, bytes | bytearray | memoryview):
        image = _open(image)
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"expected a PIL image, an array, a tensor, bytes, a dict of `datasets`, a path or a URL, got {type(image)}"
        )
    if image.width * image.height == 0:
        raise ValueError(f"expected an image with at least one pixel, got {image.width}×{image.height}")
    # PIL itself only warns between one and two times the limit.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(
            f"the image has {image.width}×{image.height} pixels, more than `PIL.Image.MAX_IMAGE_PIXELS` = {limit} "
            "(it could be a decompression bomb); raise that limit if you trust the file"
        )
    try:
        if image.tell() != 0:
            image.seek(0)
        image.load()
        return _pil_to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:
        raise ValueError(f"the image cannot be read: {error}") from error


def _open(content: bytes | bytearray | memoryview) -> Image.Image:
    if len(content) == 0:
        raise ValueError("the image is empty (0 bytes)")
    Image.init()
    try:
        # Older versions and other builds of PIL lack AVIF or JPEG2000, and it stumbles over names it does not know.
        return Image.open(io.BytesIO(content), formats=[name for name in IMAGE_FORMATS if name in Image.OPEN])
    except UnidentifiedImageError as error:
        raise ValueError(
            f"the image cannot be read: it is damaged, or none of {', '.join(IMAGE_FORMATS)}; save it as PNG or JPEG"
        ) from error
    except Exception as error:  # the decoders of PIL raise almost anything, bombs and warnings included
        raise ValueError(f"the image cannot be read: {error}") from error


def _read(location: str, allow_paths: bool, allow_urls: bool) -> bytes:
    is_url = location.startswith(("http://", "https://"))
    if not (allow_urls if is_url else allow_paths):
        kind, flag = ("URL", "allow_urls") if is_url else ("path", "allow_paths")
        raise ValueError(f"the image is a {kind} ({location[:200]!r}), which is only opened with `{flag}=True`")
    try:
        if not is_url:
            return Path(location).read_bytes()
        with urllib.request.urlopen(location, timeout=_URL_TIMEOUT_SECONDS) as response:
            content = response.read(_URL_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ValueError(f"{location[:200]!r} cannot be opened: {error}") from error
    if len(content) > _URL_MAX_BYTES:
        raise ValueError(f"{location[:200]!r} is larger than {_URL_MAX_BYTES // 2**20} MiB")
    return content


def _pil_to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # 16-bit greys; `convert` would clip everything above 255. Older PIL versions open them in mode "I".
        grey, transparent = np.asarray(image, dtype=np.int64), image.info.get("transparency")
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(
                f"expected greys of 16 bits, 0…65535, got {grey.min()}…{grey.max()}; save it with 8 or 16 bits"
            )
        if isinstance(transparent, int):
            grey = np.where(grey == transparent, 65535, grey)
        image = Image.fromarray((grey / 257 + 0.5).astype(np.uint8))
    elif image.mode == "F":
        return _array_to_rgb(np.asarray(image), keep_floats=False)
    if image.mode == "La":  # which PIL turns into nothing else
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _array_to_rgb(image: np.ndarray | torch.Tensor, keep_floats: bool) -> np.ndarray:
    if isinstance(image, torch.Tensor):
        image = _channels_last(_tensor_to_array(image), axes=(0, 2))
    else:
        image = _channels_last(image, axes=(2, 0))
    is_float = image.dtype.kind == "f"
    if is_float and not np.isfinite(image).all():
        raise ValueError("the image has NaN or infinite pixels")
    if is_float and keep_floats:
        if image.shape[-1] == 4:
            raise ValueError("float images with an alpha channel need an image processor that rescales")
        return np.repeat(image, 3 // image.shape[-1], axis=-1).astype(np.float32)
    image = _to_eight_bits(image)
    if image.shape[-1] == 4:
        return _pil_to_rgb(Image.fromarray(image))
    return np.repeat(image, 3 // image.shape[-1], axis=-1)


def _tensor_to_array(image: torch.Tensor) -> np.ndarray:
    try:
        image = image.detach().cpu()
        return (image.float() if image.is_floating_point() else image).numpy()
    except (TypeError, RuntimeError) as error:  # sparse, quantized, or on the meta device
        raise ValueError(f"the tensor of the image has no plain numbers: {error}") from error


def _channels_last(image: np.ndarray, axes: tuple[int, int]) -> np.ndarray:
    """The array as `(height, width, channels)`; of two axes that may hold the channels the first goes first."""
    shape = image.shape
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"expected an array of 2 or 3 dimensions with at least one pixel, got shape {shape}")
    if image.ndim == 2:
        return image[:, :, None]
    axis = next((axis for counts in ((3,), (1, 4)) for axis in axes if shape[axis] in counts), None)
    if axis is None:
        raise ValueError(f"expected 1, 3 or 4 channels in the first or last axis, got shape {shape}")
    return np.moveaxis(image, axis, -1)


def _to_eight_bits(image: np.ndarray) -> np.ndarray:
    if image.dtype.kind == "f":
        if image.min() < 0 or image.max() > 255:
            raise ValueError(
                f"float pixels must lie in 0…1 or 0…255, these lie in {image.min():.4g}…{image.max():.4g}; "
                "pass `do_rescale=False` (and `do_normalize=False`) for pixels that are prepared already"
            )
        image = image * 255 if image.max() <= 1 else image
    elif image.dtype == np.uint16:
        image = image / 257
    elif image.dtype == bool:
        image = image * 255
    elif image.dtype.kind not in "iu" or image.min() < 0 or image.max() > 255:
        raise ValueError(f"expected pixels of 0…255, 16 bits (`uint16`) or floats, got other {image.dtype} values")
    if image.dtype.kind == "f":
        image = np.round(image)
    return image.astype(np.uint8)


def _get(size: Any, key: str) -> Any:
    # `size` is a dict in some versions and a dataclass with a `get` in others.
    return size.get(key) if isinstance(size, Mapping) else getattr(size, key, None)


def visible_rectangle(image_processor: Any, width: int, height: int, **images_kwargs: Any) -> Box:
    """
    The part of an image that is left after resizing and centre-cropping, (x0, y0, x1, y1) in its own pixels.

    Args:
        image_processor (`BaseImageProcessor`): Its `size`, `crop_size`, `do_resize`, `do_center_crop` and `crop_pct`.
        width (`int`), height (`int`): The size of the original image.
        images_kwargs (*optional*): What the image processor was called with instead of its own values.
    """

    def setting(name: str) -> Any:
        value = images_kwargs.get(name)
        return getattr(image_processor, name, None) if value is None else value

    size, crop = setting("size"), setting("crop_size") if setting("do_center_crop") else None
    edge = None if size is None else _get(size, "shortest_edge")
    if setting("do_resize") and edge and setting("crop_pct"):
        # As ConvNeXT does it: below 384 pixels enlarge by 1/crop_pct and crop to a square, from there on warp.
        if edge >= 384:
            return (0.0, 0.0, float(width), float(height))
        crop, edge = {"height": edge, "width": edge}, int(edge / setting("crop_pct"))
    if crop is None:
        return (0.0, 0.0, float(width), float(height))
    scale_x = scale_y = 1.0
    if setting("do_resize") and edge:
        scale_x = scale_y = edge / min(width, height)
    elif setting("do_resize") and size is not None and _get(size, "height") and _get(size, "width"):
        scale_x, scale_y = _get(size, "width") / width, _get(size, "height") / height
    side = _get(crop, "shortest_edge")
    crop_width = (_get(crop, "width") or side or width * scale_x) / scale_x
    crop_height = (_get(crop, "height") or side or height * scale_y) / scale_y
    x0, y0 = (width - crop_width) / 2, (height - crop_height) / 2
    return (x0, y0, x0 + crop_width, y0 + crop_height)


def without_unseen_ends(image: np.ndarray, image_processor: Any, **images_kwargs: Any) -> np.ndarray:
    """
    An image for its image processor. Of one that is more than 100 times as long as wide, what the centre crop leaves
    out stays behind, save for what resizing mixes in: 1×20,000 pixels scaled up to 224 of width would be a billion.

    Args:
        image (`np.ndarray` of shape `(height, width, channels)`): The image.
        image_processor (`BaseImageProcessor`): See [`visible_rectangle`].
        images_kwargs (*optional*): What the image processor is called with instead of its own values.
    """
    height, width = image.shape[:2]
    short, long = sorted((height, width))
    if long <= _LONG * short:
        return image
    x0, y0, *_ = visible_rectangle(image_processor, width, height, **images_kwargs)
    # Resizing mixes at most 2 pixels, or 2 of those that it makes, of which the short side has many. A multiple of the
    # short side becomes a whole number of pixels, so that the crop stays where it was.
    left, top = (max(0, int(edge) - short - 8) // short * short for edge in (x0, y0))
    return image[top : height - top, left : width - left]


# ------------------------------------------------------ regions -----------------------------------------------------


def to_pixels(boxes: np.ndarray, view: Box) -> np.ndarray:
    """Boxes in 0…1 of what the encoder saw, in pixels of the original image."""
    x0, y0, x1, y1 = view
    return boxes * [x1 - x0, y1 - y0, x1 - x0, y1 - y0] + [x0, y0, x0, y0]


def paint(boxes: np.ndarray, weights: np.ndarray, height: int, width: int) -> np.ndarray:
    """
    Spread the weight of each box evenly over its area. What lies inside the image adds up to the weights.

    Args:
        boxes (`np.ndarray` of shape `(num_boxes, 4)`): (x0, y0, x1, y1) in pixels, fractions allowed.
        weights (`np.ndarray` of shape `(num_boxes,)`): The weights.
        height (`int`), width (`int`): The size of the map.

    Returns:
        `np.ndarray` of shape `(height, width)`: The map, weight per pixel.
    """
    # How much of each pixel column and row each box covers: borders between pixels are shared fairly.
    low, high = boxes[:, :2], np.maximum(boxes[:, 2:], boxes[:, :2] + 1e-3)
    columns = np.minimum(high[:, :1], np.arange(width) + 1) - np.maximum(low[:, :1], np.arange(width))
    rows = np.minimum(high[:, 1:], np.arange(height) + 1) - np.maximum(low[:, 1:], np.arange(height))
    columns, rows = columns.clip(min=0), rows.clip(min=0)  # apart: no overlap
    return (rows * (weights / (high - low).prod(1))[:, None]).T @ columns


def strongest_region(boxes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """The boxes around the strongest one that have at least half of its weight: their hull and their weight."""
    strong = weights >= weights.max() / 2
    low, high = boxes[:, :2] - 1e-6, boxes[:, 2:] + 1e-6
    joined = np.arange(len(weights)) == weights.argmax()
    while True:
        touching = ((low[:, None] <= high[joined]) & (high[:, None] >= low[joined])).all(-1).any(-1)
        grown = joined | (strong & touching)
        if grown.sum() == joined.sum():
            break
        joined = grown
    hull = np.concatenate([boxes[joined, :2].min(0), boxes[joined, 2:].max(0)])
    return hull, float(weights[joined].sum())


__all__ = [
    "IMAGE_FORMATS",
    "Box",
    "decode_image",
    "paint",
    "strongest_region",
    "to_pixels",
    "visible_rectangle",
    "without_unseen_ends",
]
