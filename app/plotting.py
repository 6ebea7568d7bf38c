"""
Pictures of a prediction: the sentence with its entities, what each entity looked at in the pictures, and how much each
word used them.

Needs matplotlib, the optional extra `plots`. Figures are made with `matplotlib.figure.Figure` and never touch pyplot,
so that they neither pile up in memory nor open a window; save them with `figure.savefig(...)`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from .panels import arrange_panels, draw_panel
from .sentence import GATE_COLOR, draw_sentence, layout_sentence
from .style import GRID, INK, group_colors, require_matplotlib, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches.
_WIDTH, _MARGIN, _TITLE_HEIGHT = 10.0, 0.25, 0.4


def plot_entities(
    words: Sequence[str],
    entities: Sequence[Mapping[str, Any]],
    images: Any = None,
    heatmaps: Sequence[Mapping[str, Any]] | None = None,
    gates: Sequence[float] | np.ndarray | None = None,
    title: str | None = None,
) -> "Figure":
    """
    Draws a sentence with its entities, and under it each picture followed by one heat map per entity.

    Args:
        words (`Sequence[str]`):
            The words of the sentence. Long sentences are wrapped.
        entities (`Sequence[Mapping]`):
            What `post_process_token_classification` returns for the sentence: `entity_group`, `words` (first and last
            index, both included) and, where there are, `score` and `image_region` (`{"image": index, "box": (x0, y0,
            x1, y1) in pixels, "score": …}` or `None`). Regions are outlined in the entity's colour.
        images (`PIL.Image.Image`, `np.ndarray` of shape `(height, width)` or `(height, width, channels)`, or a list of either, *optional*):
            The picture or pictures. Arrays hold integers up to 255 or floats up to 1.
        heatmaps (`Sequence[Mapping]`, *optional*):
            One entry for each entity and picture to show: `{"words": (first, last), "image": index, "heatmap": array
            of shape (h, w)}`. A heat map of any size is stretched over its picture and drawn relative to its own
            maximum, which is printed above it.
        gates (`Sequence[float]` of length `len(words)`, *optional*):
            How much each word used the pictures, between 0 and 1; drawn as a bar with its value under each word.
        title (`str`, *optional*):
            Printed above the sentence.

    Returns:
        `matplotlib.figure.Figure`: The figure. Its first axes hold the sentence, then come, picture by picture, the
        picture and its heat maps.

    Raises:
        `ImportError`: If matplotlib is not installed.
        `ValueError`: If there is not one gate per word, if an entity or heat map points at a word or a picture that
            is not there, if a heat map is not two-dimensional, or if something is neither a picture nor an array of one.

    Example:

    ```python
    >>> import PIL.Image
    >>> from vtfusion.app.plotting import plot_entities

    >>> figure = plot_entities(
    ...     ["We", "finally", "saw", "Kelda", "Tarn", "."],
    ...     [{"entity_group": "LOC", "words": (3, 4), "score": 0.98}],
    ...     images=PIL.Image.new("RGB", (64, 64), "beige"),
    ...     gates=[0.1, 0.1, 0.1, 0.8, 0.7, 0.1],
    ... )
    >>> len(figure.axes)
    2
    ```
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    words = [str(word) for word in words]
    pictures = _as_pictures(images)
    heatmaps = list(heatmaps or [])
    gates = None if gates is None else _as_gates(gates, len(words))
    for index, entity in enumerate(entities):
        _check_span(entity["words"], len(words), f"entities[{index}]")
        region = entity.get("image_region")
        if region is not None and pictures:  # a sentence may be drawn without its pictures
            _check_image(region["image"], len(pictures), f"entities[{index}]['image_region']")
    for index, heatmap in enumerate(heatmaps):
        _check_span(heatmap["words"], len(words), f"heatmaps[{index}]")
        _check_image(heatmap["image"], len(pictures), f"heatmaps[{index}]")
        if np.ndim(heatmap["heatmap"]) != 2:
            raise ValueError(
                f"heatmaps[{index}]['heatmap'] must have the shape (height, width), got {np.shape(heatmap['heatmap'])}."
            )
    colors = group_colors(entities)

    figure = Figure(figsize=(_WIDTH, 2.0), facecolor="white")
    layout = layout_sentence(FigureCanvasAgg(figure), words, entities, gates, (_WIDTH - 2 * _MARGIN) * 72)
    text_height = layout.height / 72
    panels, grid_height = arrange_panels(pictures, heatmaps)
    header = _TITLE_HEIGHT if title else 0.0
    height = 2 * _MARGIN + header + text_height + grid_height
    figure.set_size_inches(_WIDTH, height)

    if title:
        left, top = _MARGIN / _WIDTH, 1 - _MARGIN / height
        figure.text(left, top, title, va="top", fontsize=14, fontweight="bold", color=INK, parse_math=False)
    bottom = height - _MARGIN - header - text_height
    axes = figure.add_axes((_MARGIN / _WIDTH, bottom / height, 1 - 2 * _MARGIN / _WIDTH, text_height / height))
    draw_sentence(axes, layout, entities, gates, colors)

    for panel in panels:
        lower = bottom - panel.top - panel.height
        axes = figure.add_axes(
            ((_MARGIN + panel.left) / _WIDTH, lower / height, panel.width / _WIDTH, panel.height / height),
        )
        draw_panel(axes, panel, pictures, heatmaps, words, entities, colors)
    return figure


def plot_gate(words: Sequence[str], gates: Sequence[float] | np.ndarray) -> "Figure":
    """
    Draws how much each word used the pictures, one bar per word.

    Args:
        words (`Sequence[str]`):
            The words of the sentence; 20 go into a row.
        gates (`Sequence[float]` of length `len(words)`):
            Values between 0 (text only) and 1. NaN leaves the place of a word empty.

    Returns:
        `matplotlib.figure.Figure`: The figure, with one axes per row of words.

    Raises:
        `ImportError`: If matplotlib is not installed.
        `ValueError`: If there is not one gate per word.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    words = [str(word) for word in words]
    values = _as_gates(gates, len(words))
    per_row = min(20, max(8, len(words)))
    num_rows = max(1, -(-len(words) // per_row))
    figure = Figure(figsize=(_WIDTH, 0.3 + 2.1 * num_rows), facecolor="white", layout="constrained")
    rows = figure.subplots(num_rows, 1, squeeze=False)[:, 0]
    for index, axes in enumerate(rows):
        part = slice(index * per_row, (index + 1) * per_row)
        heights, labels = values[part], words[part]
        positions = np.arange(len(labels))
        axes.bar(positions, np.nan_to_num(heights), width=0.72, color=GATE_COLOR)
        for position, value in zip(positions, heights, strict=True):
            if np.isfinite(value):
                axes.text(position, value + 0.03, f"{value:.2f}", ha="center", va="bottom", fontsize=8, color=INK)
        axes.set_xlim(-0.6, per_row - 0.4)
        axes.set_ylim(0, 1.15)
        axes.set_yticks([0, 0.5, 1])
        axes.set_ylabel("gate")
        axes.set_xticks(positions, [shorten(word, 16) for word in labels], rotation=40, ha="right", fontsize=9)
        for label in axes.get_xticklabels():
            label.set_rotation_mode("anchor")
            label.set_parse_math(False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    return figure


def _as_pictures(images: Any) -> list[np.ndarray]:
    if images is None:
        return []
    if isinstance(images, (PIL.Image.Image, np.ndarray)):
        images = [images]
    pictures = []
    for index, image in enumerate(images):
        if isinstance(image, PIL.Image.Image):
            image = image.convert("RGB")
        pixels = np.asarray(image)
        if pixels.ndim == 3 and pixels.shape[-1] == 1:
            pixels = pixels[..., 0]
        if pixels.dtype == object or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (3, 4))):
            raise ValueError(
                f"images[{index}] must be a PIL image or an array of the shape (height, width) or (height, width, "
                f"3 or 4), got {type(image).__name__} of the shape {pixels.shape}."
            )
        pictures.append(pixels)
    return pictures


def _as_gates(gates: Sequence[float] | np.ndarray, num_words: int) -> np.ndarray:
    values = np.asarray(gates, dtype=float)
    if values.shape != (num_words,):
        raise ValueError(f"`gates` must hold one value per word ({num_words}), got the shape {values.shape}.")
    return values


def _check_span(span: Sequence[int], num_words: int, where: str) -> None:
    first, last = span
    if not 0 <= first <= last < num_words:
        raise ValueError(f"{where} has the words {tuple(span)}, but the sentence has the words 0 to {num_words - 1}.")


def _check_image(index: int, num_images: int, where: str) -> None:
    if not 0 <= index < num_images:
        raise ValueError(f"{where} belongs to picture {index}, but {num_images} were given in `images`.")


__all__ = ["plot_entities", "plot_gate"]
