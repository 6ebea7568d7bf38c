"""Pictures in a figure, and pictures under heat maps, with outlines around what entities looked at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from .style import GREY, INK, require_matplotlib, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEAT_MAP = "inferno"
# Inches.
_CELL, _CAPTION, _GAP = 2.27, 0.36, 0.14
_COLUMNS = 4


@dataclass(frozen=True)
class Panel:
    """
    The place of a picture, in inches from the upper left corner of the area of all.

    Attributes:
        left, top, width, height (`float`): Where it is and how large.
        image (`int`): The index of the picture.
        heatmap (`Mapping` or `None`): What is drawn over it.
    """

    left: float
    top: float
    width: float
    height: float
    image: int
    heatmap: Mapping[str, Any] | None


def arrange_panels(pictures: Sequence[np.ndarray], heatmaps: Sequence[Mapping[str, Any]]) -> tuple[list[Panel], float]:
    """
    Places pictures and heat maps. With heat maps each picture starts a row and its heat maps follow; without, the
    pictures stand side by side.

    Args:
        pictures (`Sequence[np.ndarray]`): the pictures.
        heatmaps (`Sequence[Mapping]`): as for [`~app.plotting.plot_entities`].

    Returns:
        `tuple[list[Panel], float]`: the places, and the height of all rows.
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

    panels, top = [], 0.0
    for row in rows:
        shapes = [pictures[index].shape for _, index, _ in row]
        # As high as the highest picture at full width; higher ones than a square are made narrower instead.
        height = _CELL * min(1.0, max(0.1, *(shape[0] / shape[1] for shape in shapes)))
        top += _GAP + _CAPTION
        panels += [
            Panel(column * (_CELL + _GAP), top, _CELL, height, index, heatmap) for column, index, heatmap in row
        ]
        top += height
    return panels, top


def draw_panel(
    axes: "Axes",
    panel: Panel,
    pictures: Sequence[np.ndarray],
    heatmaps: Sequence[Mapping[str, Any]],
    words: Sequence[str],
    entities: Sequence[Mapping[str, Any]],
    colors: Mapping[str, str],
) -> None:
    """
    Draws a panel with its caption, and the regions of the entities that it shows.

    Args:
        axes (`matplotlib.axes.Axes`): where to.
        panel ([`Panel`]): of [`arrange_panels`].
        pictures, heatmaps: what they were arranged for; the heat maps of the same words share one scale.
        words, entities: of the sentence, as for [`~app.plotting.plot_entities`].
        colors (`Mapping[str, str]`): of the entity types.
    """
    picture, heatmap = pictures[panel.image], panel.heatmap
    height, width = picture.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    looking = [entity for entity in entities if (entity.get("image_region") or {}).get("image") == panel.image]
    edge = GREY
    if heatmap is None:
        axes.imshow(picture, cmap="gray", extent=extent)
        caption = f"Picture {panel.image + 1}" if len(pictures) > 1 else "Picture"
    else:
        span = tuple(heatmap["words"])
        every = [_as_heat(other["heatmap"]) for other in heatmaps if tuple(other["words"]) == span]
        values = _as_heat(heatmap["heatmap"])
        _draw_heat(axes, picture, _relative_heat(values, every), extent)
        looking = [entity for entity in looking if tuple(entity["words"]) == span]
        group = next((str(entity["entity_group"]) for entity in entities if tuple(entity["words"]) == span), None)
        total = sum(float(other.sum()) for other in every)
        caption = shorten(" ".join(words[span[0] : span[1] + 1]), 26) + "\n"
        if group is not None:
            edge = colors[group]
            caption += f"{group}, "
        caption += f"{values.sum() / total if total > 0 else 0.0:.0%} of its attention"
    for entity in looking:
        _outline(axes, entity["image_region"]["box"], colors[str(entity["entity_group"])])
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])
    axes.set_anchor("S")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(edge)
        spine.set_linewidth(1.0 if heatmap is None else 2.0)
    axes.set_title(caption, fontsize=9, color=INK, pad=4, parse_math=False)


def heat_picture(
    picture: PIL.Image.Image, heatmap: np.ndarray, same: Sequence[np.ndarray] | None = None
) -> PIL.Image.Image:
    """
    A picture under a heat map, as [`~app.plotting.plot_entities`] draws it, without a figure around it.

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

    values = _as_heat(heatmap)
    every = [values] if same is None else [_as_heat(other) for other in same]
    heat = PIL.Image.fromarray(_relative_heat(values, every).astype(np.float32))
    relative = np.clip(np.asarray(heat.resize(picture.size, PIL.Image.Resampling.BICUBIC)), 0, 1)
    opacity = _opacity(relative)[..., None]
    mixed = (1 - opacity) * _faded(np.asarray(picture.convert("RGB")))[..., None]
    mixed = mixed + opacity * colormaps[_HEAT_MAP](relative)[..., :3]
    return PIL.Image.fromarray((255 * mixed).round().astype(np.uint8))


def _draw_heat(
    axes: "Axes", picture: np.ndarray, relative: np.ndarray, extent: tuple[float, float, float, float]
) -> None:
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


def _outline(axes: "Axes", box: Sequence[float], color: str) -> None:
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = box
    for width, line_color in ((4.0, "white"), (2.0, color)):  # a white rim stands out on any picture
        axes.add_patch(
            Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, linewidth=width, edgecolor=line_color)
        )


def _as_heat(heatmap: Any) -> np.ndarray:
    return np.nan_to_num(np.asarray(heatmap, dtype=float))


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


__all__ = ["Panel", "arrange_panels", "draw_panel", "heat_picture"]
