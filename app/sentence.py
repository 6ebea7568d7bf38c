"""A sentence in a figure: its words in lines, its entities as labelled chips, and under each word its gate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .style import GRID, INK, is_right_to_left, shorten, text_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg

GATE_COLOR = "#3B4B63"
# Points; 72 to an inch.
_WORD_SIZE, _LABEL_SIZE, _VALUE_SIZE, _SPACE = 13.0, 8.0, 7.0, 6.0
_CHIP_PADDING, _WORD_HEIGHT, _LABEL_HEIGHT, _GATE_HEIGHT, _LINE_SKIP = 3.0, 18.0, 11.0, 17.0, 9.0


@dataclass(frozen=True)
class PlacedWord:
    """A word, cut where it is wider than the figure, with its place in points and its line from 0."""

    left: float
    width: float
    line: int
    text: str

    @property
    def right(self) -> float:
        """`float`: Where it ends."""
        return self.left + self.width

    @property
    def middle(self) -> float:
        """`float`: Halfway between its ends."""
        return self.left + self.width / 2


@dataclass(frozen=True)
class SentenceLayout:
    """
    Where a sentence stands.

    Attributes:
        words (`list[PlacedWord]`): Its words.
        width (`float`): Of a line, in points.
        label_height (`float`): Of the strip above the words that holds the types of entities.
        line_height (`float`): From one line to the next.
    """

    words: list[PlacedWord]
    width: float
    label_height: float
    line_height: float

    @property
    def height(self) -> float:
        """`float`: Of all lines, one at least."""
        return self.line_height * (1 + max((word.line for word in self.words), default=0))


def layout_sentence(
    canvas: "FigureCanvasAgg",
    words: Sequence[str],
    entities: Sequence[Mapping[str, Any]],
    gates: np.ndarray | None,
    width: float,
) -> SentenceLayout:
    """
    Places the words. They are measured with the renderer, because estimates fail for wide scripts.

    Args:
        canvas (`FigureCanvasAgg`): of the figure.
        words (`Sequence[str]`): the words.
        entities (`Sequence[Mapping]`): as for [`~app.plotting.plot_entities`].
        gates (`np.ndarray`, *optional*): of the words.
        width (`float`): of a line, in points.

    Returns:
        [`SentenceLayout`]: for [`draw_sentence`].
    """
    from matplotlib.font_manager import FontProperties

    def measure(text: str, size: float, **style: Any) -> float:
        renderer = canvas.get_renderer()
        extent, _, _ = renderer.get_text_width_height_descent(text, FontProperties(size=size, **style), ismath=False)
        return extent * 72 / canvas.figure.dpi

    minimum = [measure("0.00", _VALUE_SIZE) if gates is not None else 0.0] * len(words)
    for entity in entities:
        first, last = entity["words"]
        # The chip's label needs its room too, however short the word.
        share = (measure(_chip_label(entity), _LABEL_SIZE, weight="bold") + 8) / (last - first + 1)
        for index in range(first, last + 1):
            minimum[index] = max(minimum[index], share - _SPACE if last > first else share)
    starts = {entity["words"][0]: entity["words"][1] for entity in entities}
    ends = set(starts.values())

    placed, left, line = [], _CHIP_PADDING, 0
    for index, word in enumerate(words):
        text = word
        extent = measure(text, _WORD_SIZE)
        while extent > width - 4 * _CHIP_PADDING and len(text) > 2:  # one word wider than the figure
            text = shorten(text, max(2, int(len(text) * 0.9)))
            extent = measure(text, _WORD_SIZE)
        extent = max(extent, minimum[index])
        if left + extent > width - _CHIP_PADDING and left > _CHIP_PADDING:
            left, line = _CHIP_PADDING, line + 1
        placed.append(PlacedWord(left, extent, line, text))
        left += extent + _SPACE + 2 * _CHIP_PADDING * (index in ends or index + 1 in starts)
    if is_right_to_left(words):
        placed = [PlacedWord(width - word.right, word.width, word.line, word.text) for word in placed]

    label_height = _LABEL_HEIGHT if entities else 0.0
    gate_height = _GATE_HEIGHT if gates is not None else 0.0
    return SentenceLayout(placed, width, label_height, label_height + _WORD_HEIGHT + gate_height + _LINE_SKIP)


def draw_sentence(
    axes: "Axes",
    layout: SentenceLayout,
    entities: Sequence[Mapping[str, Any]],
    gates: np.ndarray | None,
    colors: Mapping[str, str],
) -> None:
    """
    Draws what [`layout_sentence`] has placed.

    Args:
        axes (`matplotlib.axes.Axes`): where to, as large as the layout.
        layout ([`SentenceLayout`]): places of the words.
        entities, gates: what the layout was made for.
        colors (`Mapping[str, str]`): of the entity types.
    """
    axes.set_xlim(0, layout.width)
    axes.set_ylim(layout.height - 1, -1)  # one unit is one point, from the top
    axes.axis("off")
    for entity in entities:
        _draw_chips(axes, layout, entity, colors[str(entity["entity_group"])])
    for word in layout.words:
        axes.text(
            word.middle,
            word.line * layout.line_height + layout.label_height + _WORD_HEIGHT * 0.72,
            word.text,
            ha="center",
            va="baseline",
            fontsize=_WORD_SIZE,
            color=INK,
            parse_math=False,  # a word such as "$5" is no formula
        )
    if gates is not None:
        for word, gate in zip(layout.words, gates, strict=True):
            _draw_gate(axes, layout, word, gate)


def _draw_chips(axes: "Axes", layout: SentenceLayout, entity: Mapping[str, Any], color: str) -> None:
    """An entity that is broken over lines gets one chip per line, with the label on the first."""
    from matplotlib.patches import FancyBboxPatch, Rectangle

    first, last = entity["words"]
    inside = layout.words[first : last + 1]
    for line in dict.fromkeys(word.line for word in inside):
        part = [word for word in inside if word.line == line]
        left = min(word.left for word in part) - _CHIP_PADDING
        right = max(word.right for word in part) + _CHIP_PADDING
        top = line * layout.line_height
        body = FancyBboxPatch(
            (left, top),
            right - left,
            layout.label_height + _WORD_HEIGHT,
            boxstyle="round,pad=0,rounding_size=3",
            facecolor=_tint(color, 0.22),
            edgecolor=color,
            linewidth=1.2,
        )
        axes.add_patch(body)
        label = Rectangle((left, top), right - left, layout.label_height, facecolor=color, clip_on=True)
        axes.add_patch(label)
        label.set_clip_path(body)
        if line == inside[0].line:
            axes.text(
                (left + right) / 2,
                top + layout.label_height / 2,
                _chip_label(entity),
                ha="center",
                va="center_baseline",
                fontsize=_LABEL_SIZE,
                fontweight="bold",
                color=text_color(color),
                parse_math=False,
            )


def _draw_gate(axes: "Axes", layout: SentenceLayout, word: PlacedWord, gate: float) -> None:
    from matplotlib.patches import Rectangle

    top = word.line * layout.line_height + layout.label_height + _WORD_HEIGHT + 3
    axes.add_patch(Rectangle((word.left, top), word.width, 3.5, facecolor=GRID))
    if np.isfinite(gate):
        axes.add_patch(Rectangle((word.left, top), word.width * min(max(gate, 0), 1), 3.5, facecolor=GATE_COLOR))
        axes.text(
            word.middle,
            top + 11.5,
            f"{gate:.2f}",
            ha="center",
            va="baseline",
            fontsize=_VALUE_SIZE,
            color="#555555",
        )


def _chip_label(entity: Mapping[str, Any]) -> str:
    score = entity.get("score")
    return str(entity["entity_group"]) if score is None else f"{entity['entity_group']} {score:.2f}"


def _tint(color: str, share: float) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb

    return tuple(1 - share * (1 - channel) for channel in to_rgb(color))


__all__ = ["GATE_COLOR", "PlacedWord", "SentenceLayout", "draw_sentence", "layout_sentence"]
