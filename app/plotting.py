"""
Pictures of a prediction: the sentence with its entities, what each entity looked at in the pictures, and how much each
word used them.

Needs matplotlib, the optional extra `plots`. Figures are made with `matplotlib.figure.Figure` and never touch pyplot,
so that they neither pile up in memory nor open a window; save them with `figure.savefig(...)`.
"""

import os
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from ..training.ablation import TEXT_ONLY, AblationReport, Difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure


# Okabe and Ito's palette, which stays apart under the common kinds of colour blindness.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#6E6E6E")
# The same type has the same colour in every figure; other types follow in the order in which they appear.
_KNOWN_GROUPS = {"PER": 0, "LOC": 1, "ORG": 2, "PROD": 3, "MISC": 4, "OTHER": 4}
_GATE_COLOR = "#3B4B63"
_HEAT_MAP = "inferno"
_INK = "#1A1A1A"

# Inches.
_WIDTH, _MARGIN, _CELL, _CAPTION, _GAP, _TITLE_HEIGHT = 10.0, 0.25, 2.27, 0.36, 0.14, 0.4
_COLUMNS = 4
# Points; 72 to an inch.
_WORD_SIZE, _LABEL_SIZE, _VALUE_SIZE, _SPACE = 13.0, 8.0, 7.0, 6.0
_CHIP_PADDING, _WORD_HEIGHT, _LABEL_HEIGHT, _GATE_HEIGHT, _LINE_SKIP = 3.0, 18.0, 11.0, 17.0, 9.0


def require_matplotlib() -> None:
    """
    Asks for matplotlib before anything is drawn.

    Raises:
        `ImportError`: telling how to install it.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError("Plotting needs matplotlib. Install it with `pip install vtfusion[plots]`.") from error


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
    canvas = FigureCanvasAgg(figure)
    layout = _layout_sentence(canvas, words, entities, gates, (_WIDTH - 2 * _MARGIN) * 72)
    text_height = layout["height"] / 72
    cells, grid_height = _arrange_panels(pictures, heatmaps)
    header = _TITLE_HEIGHT if title else 0.0
    height = 2 * _MARGIN + header + text_height + grid_height
    figure.set_size_inches(_WIDTH, height)

    if title:
        left, top = _MARGIN / _WIDTH, 1 - _MARGIN / height
        figure.text(left, top, title, va="top", fontsize=14, fontweight="bold", color=_INK, parse_math=False)
    bottom = height - _MARGIN - header - text_height
    axes = figure.add_axes((_MARGIN / _WIDTH, bottom / height, 1 - 2 * _MARGIN / _WIDTH, text_height / height))
    _draw_sentence(axes, entities, gates, colors, layout)

    for left, top, cell_height, index, overlay in cells:
        lower = bottom - top - cell_height
        axes = figure.add_axes(
            ((_MARGIN + left) / _WIDTH, lower / height, _CELL / _WIDTH, cell_height / height),
        )
        same = [heatmap for heatmap in heatmaps if overlay and tuple(heatmap["words"]) == tuple(overlay["words"])]
        _draw_panel(axes, pictures, index, overlay, same, words, entities, colors)
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
        axes.bar(positions, np.nan_to_num(heights), width=0.72, color=_GATE_COLOR)
        for position, value in zip(positions, heights, strict=True):
            if np.isfinite(value):
                axes.text(position, value + 0.03, f"{value:.2f}", ha="center", va="bottom", fontsize=8, color=_INK)
        axes.set_xlim(-0.6, per_row - 0.4)
        axes.set_ylim(0, 1.15)
        axes.set_yticks([0, 0.5, 1])
        axes.set_ylabel("gate")
        axes.set_xticks(positions, [_shorten(word, 16) for word in labels], rotation=40, ha="right", fontsize=9)
        for label in axes.get_xticklabels():
            label.set_rotation_mode("anchor")
            label.set_parse_math(False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#E3E3E3", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure


def plot_ablation(report: AblationReport) -> "Figure":
    """
    Draws the differences of an image ablation as a forest plot: a point for the mean over seeds, a bar for its
    interval, small marks for the single seeds, and a line at no difference. The two that decide come first, overall
    and for each part of the score; the other comparisons follow.

    Args:
        report ([`~training.ablation.AblationReport`]): What to draw.

    Returns:
        `matplotlib.figure.Figure`: The figure, with one axes; in points (hundredths) of the score.

    Raises:
        `ImportError`: If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    deciding = [("true", "shuffled"), ("true", TEXT_ONLY)]
    groups: list[list[Difference]] = [
        [d for d in report.differences if (d.first, d.second) == pair] for pair in deciding
    ]
    groups.append([d for d in report.differences if (d.first, d.second) not in deciding and d.metric == report.metric])
    lines = sum(len(group) + 1 for group in groups if group)
    figure = Figure(figsize=(_WIDTH, 1.5 + 0.27 * lines), facecolor="white", layout="constrained")
    axes = figure.subplots()
    place, ticks, names = 0.0, [], []
    for group in groups:
        for difference in group:
            main = difference.metric == report.metric
            color = PALETTE[0] if main else "#7A7A7A"
            mean, low, high = (100 * value for value in (difference.mean, difference.low, difference.high))
            axes.plot([low, high], [place, place], color=color, linewidth=2.2 if main else 1.4, solid_capstyle="butt")
            axes.plot([mean], [place], marker="s" if main else "o", markersize=7 if main else 5, color=color)
            if len(difference.by_seed) > 1:
                seeds = [100 * value for value in difference.by_seed]
                axes.plot(seeds, [place + 0.25] * len(seeds), "|", markersize=5, color=color, alpha=0.8)
            ticks.append(place)
            names.append(difference.name if main else difference.metric)
            place += 1
        place += 0.7 if group else 0
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.set_yticks(ticks, names)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_ylim(place - 0.4, -0.9)
    axes.set_xlabel(
        f"difference in {report.metric}, points; mean and {100 * report.confidence:g} % interval"
        + (", ticks: single seeds" if len(report.seeds) > 1 else "")
    )
    axes.set_title("\n".join(textwrap.wrap(report.verdict, 105)), loc="left", fontsize=10, parse_math=False)
    axes.grid(axis="x", color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def save_ablation(report: AblationReport | None, folder: str | os.PathLike) -> None:
    """
    Draws a report into `image_ablation.png`; says so where matplotlib is not installed.

    Args:
        report ([`~training.ablation.AblationReport`], *optional*):
            What to draw; nothing in a process that does not write, which gets none.
        folder (`str` or `os.PathLike`): Where to.
    """
    if report is None:
        return
    try:
        figure = plot_ablation(report)
    except ImportError as error:
        print(f"No figure of the ablation: {error}")
        return
    figure.savefig(os.path.join(folder, "image_ablation.png"), dpi=130)


# Checks --------------------------------------------------------------------------------------------------------------


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


# Colours and words ---------------------------------------------------------------------------------------------------


def group_colors(entities: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """For each entity type its colour, the same in every figure and page."""
    groups = list(dict.fromkeys(str(entity["entity_group"]) for entity in entities))
    colors = {group: PALETTE[_KNOWN_GROUPS[group]] for group in groups if group in _KNOWN_GROUPS}
    free = [color for color in PALETTE if color not in colors.values()] or list(PALETTE)
    others = [group for group in groups if group not in colors]
    return colors | {group: free[index % len(free)] for index, group in enumerate(others)}


def _tint(color: str, share: float) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb

    return tuple(1 - share * (1 - channel) for channel in to_rgb(color))


def text_color(color: str) -> str:
    """Black or white, whichever has the higher contrast (WCAG) on the colour."""
    from matplotlib.colors import to_rgb

    linear = [
        channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in to_rgb(color)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def is_right_to_left(words: Sequence[str]) -> bool:
    """Whether the first letter with a direction is of a script that is read from the right."""
    directions = (unicodedata.bidirectional(char) for word in words for char in word)
    return next((direction in ("R", "AL") for direction in directions if direction in ("L", "R", "AL")), False)


def _chip_label(entity: Mapping[str, Any]) -> str:
    score = entity.get("score")
    return str(entity["entity_group"]) if score is None else f"{entity['entity_group']} {score:.2f}"


# Sentence ------------------------------------------------------------------------------------------------------------


def _layout_sentence(
    canvas: "FigureCanvasAgg",
    words: Sequence[str],
    entities: Sequence[Mapping[str, Any]],
    gates: np.ndarray | None,
    width: float,
) -> dict[str, Any]:
    """
    Places the words, in points: `words` has (left, width, line, text) for each, `height` is that of all lines.
    Measured with the renderer, because estimates fail for wide scripts.
    """
    from matplotlib.font_manager import FontProperties

    def measure(text: str, size: float, **style: Any) -> float:
        renderer = canvas.get_renderer()
        extent, _, _ = renderer.get_text_width_height_descent(text, FontProperties(size=size, **style), ismath=False)
        return extent * 72 / canvas.figure.dpi

    minimum = [measure("0.00", _VALUE_SIZE) if gates is not None else 0.0] * len(words)
    starts: dict[int, int] = {}
    for entity in entities:
        first, last = entity["words"]
        starts[first] = last
        # The chip's label needs its room too, however short the word.
        share = (measure(_chip_label(entity), _LABEL_SIZE, weight="bold") + 8) / (last - first + 1)
        for index in range(first, last + 1):
            minimum[index] = max(minimum[index], share - _SPACE if last > first else share)

    ends = set(starts.values())
    placed, left, line = [], _CHIP_PADDING, 0
    for index, word in enumerate(words):
        text = word
        extent = measure(text, _WORD_SIZE)
        while extent > width - 4 * _CHIP_PADDING and len(text) > 2:  # one word wider than the figure
            text = _shorten(text, max(2, int(len(text) * 0.9)))
            extent = measure(text, _WORD_SIZE)
        extent = max(extent, minimum[index])
        if left + extent > width - _CHIP_PADDING and left > _CHIP_PADDING:
            left, line = _CHIP_PADDING, line + 1
        placed.append((left, extent, line, text))
        left += extent + _SPACE + 2 * _CHIP_PADDING * (index in ends or index + 1 in starts)
    if is_right_to_left(words):
        placed = [(width - left - extent, extent, line, text) for left, extent, line, text in placed]

    upper = _LABEL_HEIGHT if entities else 0.0
    pitch = upper + _WORD_HEIGHT + (_GATE_HEIGHT if gates is not None else 0.0) + _LINE_SKIP
    return {"words": placed, "width": width, "upper": upper, "pitch": pitch, "height": pitch * (line + 1)}


def _draw_sentence(
    axes: "Axes",
    entities: Sequence[Mapping[str, Any]],
    gates: np.ndarray | None,
    colors: Mapping[str, str],
    layout: Mapping[str, Any],
) -> None:
    from matplotlib.patches import FancyBboxPatch, Rectangle

    axes.set_xlim(0, layout["width"])
    axes.set_ylim(layout["height"] - 1, -1)  # one unit is one point, from the top
    axes.axis("off")
    placed = layout["words"]

    for entity in entities:
        first, last = entity["words"]
        color = colors[str(entity["entity_group"])]
        # An entity that is broken over lines gets one chip per line, with the label on the first.
        lines = dict.fromkeys(placed[index][2] for index in range(first, last + 1))
        for line in lines:
            part = [placed[index] for index in range(first, last + 1) if placed[index][2] == line]
            left = min(word[0] for word in part) - _CHIP_PADDING
            right = max(word[0] + word[1] for word in part) + _CHIP_PADDING
            top = line * layout["pitch"]
            body = FancyBboxPatch(
                (left, top),
                right - left,
                layout["upper"] + _WORD_HEIGHT,
                boxstyle="round,pad=0,rounding_size=3",
                facecolor=_tint(color, 0.22),
                edgecolor=color,
                linewidth=1.2,
            )
            axes.add_patch(body)
            label = Rectangle((left, top), right - left, layout["upper"], facecolor=color, clip_on=True)
            axes.add_patch(label)
            label.set_clip_path(body)
            if line == next(iter(lines)):
                axes.text(
                    (left + right) / 2,
                    top + layout["upper"] / 2,
                    _chip_label(entity),
                    ha="center",
                    va="center_baseline",
                    fontsize=_LABEL_SIZE,
                    fontweight="bold",
                    color=text_color(color),
                    parse_math=False,
                )

    for index, (left, extent, line, text) in enumerate(placed):
        top = line * layout["pitch"] + layout["upper"]
        axes.text(
            left + extent / 2,
            top + _WORD_HEIGHT * 0.72,
            text,
            ha="center",
            va="baseline",
            fontsize=_WORD_SIZE,
            color=_INK,
            parse_math=False,  # a word such as "$5" is no formula
        )
        if gates is None:
            continue
        value, top = gates[index], top + _WORD_HEIGHT + 3
        axes.add_patch(Rectangle((left, top), extent, 3.5, facecolor="#E3E3E3"))
        if np.isfinite(value):
            axes.add_patch(Rectangle((left, top), extent * min(max(value, 0), 1), 3.5, facecolor=_GATE_COLOR))
            axes.text(
                left + extent / 2,
                top + 11.5,
                f"{value:.2f}",
                ha="center",
                va="baseline",
                fontsize=_VALUE_SIZE,
                color="#555555",
            )


# Pictures ------------------------------------------------------------------------------------------------------------


def _arrange_panels(
    pictures: Sequence[np.ndarray], heatmaps: Sequence[Mapping[str, Any]]
) -> tuple[list[tuple[float, float, float, int, Mapping[str, Any] | None]], float]:
    """
    Places the pictures and heat maps, in inches from the upper left corner of their area: a list of (left, top, height,
    picture, heat map or `None`), and the height of the area. With heat maps each picture starts a row and its heat
    maps follow; without, the pictures stand side by side.
    """
    rows: list[list[tuple[int, int, Mapping[str, Any] | None]]] = []  # of (column, picture, heat map)
    if heatmaps:
        per_row = _COLUMNS - 1
        for index in range(len(pictures)):
            maps = [heatmap for heatmap in heatmaps if heatmap["image"] == index]
            for start in range(0, max(1, len(maps)), per_row):
                row: list[tuple[int, int, Mapping[str, Any] | None]] = [(0, index, None)] if start == 0 else []
                row += [(1 + column, index, heatmap) for column, heatmap in enumerate(maps[start : start + per_row])]
                rows.append(row)
    else:
        for start in range(0, len(pictures), _COLUMNS):
            shown = range(start, min(start + _COLUMNS, len(pictures)))
            rows.append([(index - start, index, None) for index in shown])

    cells, top = [], 0.0
    for row in rows:
        shapes = [pictures[index].shape for _, index, _ in row]
        # As high as the highest picture at full width; higher ones than a square are made narrower instead.
        row_height = _CELL * min(1.0, max(0.1, *(height / width for height, width, *_ in shapes)))
        top += _GAP + _CAPTION
        cells += [(column * (_CELL + _GAP), top, row_height, index, heatmap) for column, index, heatmap in row]
        top += row_height
    return cells, top


def _draw_panel(
    axes: "Axes",
    pictures: Sequence[np.ndarray],
    index: int,
    heatmap: Mapping[str, Any] | None,
    same: Sequence[Mapping[str, Any]],
    words: Sequence[str],
    entities: Sequence[Mapping[str, Any]],
    colors: Mapping[str, str],
) -> None:
    """`same` holds the heat maps of the same words on all pictures: they share one scale."""
    from matplotlib.patches import Rectangle

    picture = pictures[index]
    height, width = picture.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    shown = [entity for entity in entities if (entity.get("image_region") or {}).get("image") == index]
    if heatmap is None:
        axes.imshow(picture, cmap="gray", extent=extent)
        caption = f"Picture {index + 1}" if len(pictures) > 1 else "Picture"
        edge = "#BBBBBB"
    else:
        every = [np.nan_to_num(np.asarray(other["heatmap"], dtype=float)) for other in same]
        values = np.nan_to_num(np.asarray(heatmap["heatmap"], dtype=float))
        total = sum(float(other.sum()) for other in every)
        relative = _relative_heat(values, every)
        axes.imshow(_faded(picture), cmap="gray", vmin=0, vmax=1, extent=extent)
        axes.imshow(
            relative,
            cmap=_HEAT_MAP,
            vmin=0,
            vmax=1,
            alpha=_opacity(relative),
            extent=extent,
            interpolation="bicubic",
        )
        first, last = heatmap["words"]
        spans = [entity for entity in entities if tuple(entity["words"]) == (first, last)]
        shown = [entity for entity in shown if tuple(entity["words"]) == (first, last)]
        edge = colors[str(spans[0]["entity_group"])] if spans else "#BBBBBB"
        caption = _shorten(" ".join(words[first : last + 1]), 26)
        caption += f"\n{spans[0]['entity_group']}, " if spans else "\n"
        caption += f"{values.sum() / total if total > 0 else 0.0:.0%} of its attention"
    for entity in shown:
        x0, y0, x1, y1 = entity["image_region"]["box"]
        color = colors[str(entity["entity_group"])]
        for line_width, line_color in ((4.0, "white"), (2.0, color)):  # a white rim stands out on any picture
            axes.add_patch(
                Rectangle(
                    (x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, linewidth=line_width, edgecolor=line_color
                )
            )
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])
    axes.set_anchor("S")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(edge)
        spine.set_linewidth(1.0 if heatmap is None else 2.0)
    axes.set_title(caption, fontsize=9, color=_INK, pad=4, parse_math=False)


def heat_picture(
    picture: PIL.Image.Image, heatmap: np.ndarray, same: Sequence[np.ndarray] | None = None
) -> PIL.Image.Image:
    """
    A picture under a heat map, as [`plot_entities`] draws it, without a figure around it.

    Args:
        picture (`PIL.Image.Image`): the picture.
        heatmap (`np.ndarray` of shape `(h, w)`): attention; of any size, stretched over the picture.
        same (`Sequence[np.ndarray]`, *optional*): the heat maps of the same words on all pictures, which share one
            scale; by default `heatmap` alone.

    Returns:
        `PIL.Image.Image`: an RGB picture of the same size.

    Raises:
        `ImportError`: If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import colormaps

    values = np.nan_to_num(np.asarray(heatmap, dtype=float))
    every = [values] if same is None else [np.nan_to_num(np.asarray(other, dtype=float)) for other in same]
    heat = PIL.Image.fromarray(_relative_heat(values, every).astype(np.float32))
    relative = np.clip(np.asarray(heat.resize(picture.size, PIL.Image.Resampling.BICUBIC)), 0, 1)
    opacity = _opacity(relative)[..., None]
    mixed = (1 - opacity) * _faded(np.asarray(picture.convert("RGB")))[..., None]
    mixed = mixed + opacity * colormaps[_HEAT_MAP](relative)[..., :3]
    return PIL.Image.fromarray((255 * mixed).round().astype(np.uint8))


def _faded(picture: np.ndarray) -> np.ndarray:
    """In grey and lightened, so that the picture's own colours cannot be mistaken for heat; between 0 and 1."""
    gray = picture if picture.ndim == 2 else picture[..., :3] @ np.array([0.299, 0.587, 0.114])
    return 0.35 + 0.65 * gray / (1 if picture.dtype.kind == "f" else 255)


def _relative_heat(values: np.ndarray, every: Sequence[np.ndarray]) -> np.ndarray:
    """
    Between 0 and 1, the peak of the heat maps of the same words on all pictures. What counts is the heat of one pixel
    times their number, so that pictures of different sizes compare: a picture that the words hardly looked at must not
    glow.
    """
    peak = max((float(other.max()) * other.size for other in every if other.size), default=0.0)
    return np.clip(values * values.size / peak, 0, 1) if peak > 0 else np.zeros_like(values)


def _opacity(relative: np.ndarray) -> np.ndarray:
    return 0.25 + 0.5 * relative
