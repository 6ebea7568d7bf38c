"""What figures and pages have in common: colours, the order and the length of words, and matplotlib where it is there."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# Okabe and Ito's palette, which stays apart under the common kinds of colour blindness.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#6E6E6E")
INK, GRID, GREY = "#1A1A1A", "#E3E3E3", "#BBBBBB"
# The same type has the same colour in every figure; other types follow in the order in which they appear.
_KNOWN_GROUPS = {"PER": 0, "LOC": 1, "ORG": 2, "PROD": 3, "MISC": 4, "OTHER": 4}


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


def group_colors(entities: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """For each entity type its colour, the same in every figure and page."""
    groups = list(dict.fromkeys(str(entity["entity_group"]) for entity in entities))
    colors = {group: PALETTE[_KNOWN_GROUPS[group]] for group in groups if group in _KNOWN_GROUPS}
    free = [color for color in PALETTE if color not in colors.values()] or list(PALETTE)
    others = [group for group in groups if group not in colors]
    return colors | {group: free[index % len(free)] for index, group in enumerate(others)}


def text_color(color: str) -> str:
    """Black or white, whichever has the higher contrast (WCAG) on the colour."""
    from matplotlib.colors import to_rgb

    linear = [
        channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in to_rgb(color)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


def shorten(text: str, length: int) -> str:
    """A text of `length` characters at most, with an ellipsis where it was cut."""
    return text if len(text) <= length else text[: length - 1] + "…"


def is_right_to_left(words: Sequence[str]) -> bool:
    """Whether the first letter with a direction is of a script that is read from the right."""
    directions = (unicodedata.bidirectional(char) for word in words for char in word)
    return next((direction in ("R", "AL") for direction in directions if direction in ("L", "R", "AL")), False)


__all__ = [
    "GREY",
    "GRID",
    "INK",
    "PALETTE",
    "group_colors",
    "is_right_to_left",
    "require_matplotlib",
    "shorten",
    "text_color",
]
