"""
A contact sheet of a paired data set: texts with their pictures, scores and strategy, to look at before training.

As HTML it needs nothing, as a figure matplotlib (the optional extra `plots`).
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
from datasets import DatasetDict

from ..images_vtfusion import decode_image
from .pages import cards_page, escape, image_data_uri, thumbnail
from .style import GREY, INK, PALETTE, is_right_to_left, require_matplotlib, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A sheet is for a glance: a text as long as a book, or with a hundred pictures, is cut, and says so.
_MAX_WORDS = 120
_MAX_PICTURES = 4
_NOTHING = "No text has a picture."
# The words are measured at the resolution at which they are saved; glyphs are not as wide at another one.
_DPI = 120
# Agg draws no figure of more than 65,536 pixels on a side.
_MAX_FIGURE_ROWS = 200

# Inches and points.
_COLUMNS, _CARD_WIDTH, _CARD_HEIGHT, _GAP, _PICTURE, _HEADER = 2, 6.6, 1.5, 0.15, 1.4, 0.7
_WORD_SIZE, _NOTE_SIZE, _LINE = 9.0, 7.5, 13.0
_SOFT, _ACCENT = "#5B6470", PALETTE[0]


@dataclass
class SheetPicture:
    """
    A picture on the sheet.

    Attributes:
        image_id (`str`): Its id.
        score (`float` or `None`): Its score.
        image (`PIL.Image.Image` or `None`): A thumbnail; `None` if the file cannot be read.
        problem (`str`): Why it cannot be read.
    """

    image_id: str
    score: float | None
    image: PIL.Image.Image | None = None
    problem: str = ""


@dataclass
class SheetRow:
    """
    A text on the sheet.

    Attributes:
        split (`str`): Its split.
        row (`int`): Its row in the split.
        words (`list[str]`): Its words.
        strategy (`str`): How it was paired.
        pictures (`list[SheetPicture]`): Its pictures, at most four.
        num_pictures (`int`): How many it has.
        named (`set[int]`): Indices of the words that gave it a picture (by lexicon only).
    """

    split: str
    row: int
    words: list[str]
    strategy: str
    pictures: list[SheetPicture] = field(default_factory=list)
    num_pictures: int = 0
    named: set[int] = field(default_factory=set)

    @property
    def best_score(self) -> float:
        """`float`: The highest score of a picture; minus infinity where there is none."""
        return max((p.score for p in self.pictures if p.score is not None), default=-math.inf)


def draw_sheet_rows(dataset: DatasetDict, num_rows: int = 24, seed: int = 0) -> list[SheetRow]:
    """
    Draws texts with pictures at random from all splits, so that the sheet shows the pairing as it is and not its best side.

    Args:
        dataset (`DatasetDict`):
            Made by one of the functions of `training/pairing.py`.
        num_rows (`int`, defaults to 24):
            At most so many texts.
        seed (`int`, defaults to 0):
            Of the draw.

    Returns:
        `list[SheetRow]`: From the highest score to the lowest where there are scores, else in the order of the data. Empty
        if no text has a picture.
    """
    places = []
    for split, part in dataset.items():
        row = 0
        for batch in part.with_format(None).select_columns(["image_ids"]).iter(batch_size=10_000):
            places += [(split, row + i) for i, ids in enumerate(batch["image_ids"]) if ids]
            row += len(batch["image_ids"])
    chosen = set(random.Random(seed).sample(places, min(num_rows, len(places))))
    rows = [_read_row(dataset, split, row) for split, row in places if (split, row) in chosen]
    return sorted(rows, key=lambda row: -row.best_score)  # stable, so that without scores nothing moves


def _read_row(dataset: DatasetDict, split: str, row: int) -> SheetRow:
    part = dataset[split].with_format(None)
    values = part[row]
    pictures = []
    links = zip(values["image_ids"], values["image_scores"], values["images"], strict=True)
    for image_id, score, image in list(links)[:_MAX_PICTURES]:
        picture = SheetPicture(image_id, score)
        try:
            picture.image = thumbnail(decode_image(image, allow_paths=True))
        except ValueError as error:
            picture.problem = str(error).removeprefix(f"{image['path']}: ")  # the page tells no paths
        pictures.append(picture)
    spans = values.get("image_spans") or []
    return SheetRow(
        split=split,
        row=row,
        words=values["tokens"],
        strategy=values["pairing_strategy"],
        pictures=pictures,
        num_pictures=len(values["image_ids"]),
        named={index for first, end in spans for index in range(first, end)},
    )


def sheet_note(dataset: DatasetDict, num_shown: int, seed: int) -> str:
    """The line above the sheet: how many texts are shown, of how many with a picture, of how many in all."""
    texts = sum(len(part) for part in dataset.values())
    with_image = sum(
        sum(map(bool, batch["image_ids"]))
        for part in dataset.values()
        for batch in part.with_format(None).select_columns(["image_ids"]).iter(batch_size=10_000)
    )
    return (
        f"{num_shown:,} texts drawn at random (seed {seed}) from the {with_image:,} with a picture; {texts - with_image:,} "
        f"of {texts:,} texts have none."
    )


def _describe(picture: SheetPicture) -> str:
    return picture.image_id if picture.score is None else f"{picture.image_id} · score {picture.score:.3f}"


def _place(row: SheetRow) -> str:
    more = row.num_pictures - len(row.pictures)
    return f"{row.strategy} · {row.split}, row {row.row:,}" + (f" · {more} more pictures" if more else "")


def contact_sheet_html(rows: Sequence[SheetRow], title: str = "Contact sheet", note: str = "") -> str:
    """
    The sheet as a page of its own, with the pictures in it.

    Args:
        rows (`Sequence[SheetRow]`): from [`draw_sheet_rows`].
        title (`str`, *optional*): its heading.
        note (`str`, *optional*): a line under the heading.

    Returns:
        `str`: HTML. Words that gave a text its picture are marked.
    """
    cards = []
    for row in rows:
        figures = ""
        for picture in row.pictures:
            if picture.image is None:
                shown = f'<div class="missing">cannot be read: {escape(picture.problem)}</div>'
            else:
                shown = f'<img src="{image_data_uri(picture.image)}" alt="{escape(picture.image_id)}">'
            figures += f"<figure>{shown}<figcaption>{escape(_describe(picture))}</figcaption></figure>"
        words = [
            f"<mark>{escape(word)}</mark>" if index in row.named else escape(word)
            for index, word in enumerate(row.words[:_MAX_WORDS])
        ]
        if len(row.words) > _MAX_WORDS:
            words.append(f'<span class="soft">… ({len(row.words):,} words)</span>')
        cards.append(
            f'<article class="card">\n<div class="pictures">{figures}</div>\n<p dir="auto">{" ".join(words)}</p>\n'
            f'<div class="soft">{escape(_place(row))}</div>\n</article>'
        )
    return cards_page(title, cards, note, nothing=_NOTHING)


def plot_contact_sheet(rows: Sequence[SheetRow], title: str = "Contact sheet", note: str = "") -> "Figure":
    """
    The sheet as a figure, two texts side by side, at most 200. Save it with `figure.savefig("contact_sheet.png")`.

    Args:
        rows (`Sequence[SheetRow]`): from [`draw_sheet_rows`].
        title (`str`, *optional*): its heading.
        note (`str`, *optional*): a line under the heading.

    Returns:
        `matplotlib.figure.Figure`: the figure, with an axes for each picture. Words that gave a text its picture are blue
        and bold.

    Raises:
        `ImportError`: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if len(rows) > _MAX_FIGURE_ROWS:
        note = f"{note} Here the first {_MAX_FIGURE_ROWS} of them.".strip()
        rows = rows[:_MAX_FIGURE_ROWS]
    lines = max(1, math.ceil(len(rows) / _COLUMNS))
    width = _COLUMNS * (_CARD_WIDTH + _GAP) + _GAP
    height = _HEADER + lines * (_CARD_HEIGHT + _GAP) + _GAP
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)

    def write(left: float, top: float, text: str, **style: Any) -> None:
        """Text at a place in inches from the upper left corner."""
        style = {"color": INK, "va": "top", "parse_math": False, **style}
        figure.text(left / width, 1 - top / height, text, **style)

    def measure(text: str, bold: bool) -> float:
        from matplotlib.font_manager import FontProperties

        properties = FontProperties(size=_WORD_SIZE, weight="bold" if bold else "normal")
        extent, _, _ = canvas.get_renderer().get_text_width_height_descent(text, properties, ismath=False)
        return extent / figure.dpi

    write(_GAP, _GAP, title, fontsize=13, fontweight="bold")
    write(_GAP, _GAP + 0.25, note or "", fontsize=_WORD_SIZE, color=_SOFT)
    if not rows:
        write(_GAP, _HEADER + _GAP, _NOTHING, fontsize=_WORD_SIZE)
    for index, row in enumerate(rows):
        left = _GAP + index % _COLUMNS * (_CARD_WIDTH + _GAP)
        top = _HEADER + index // _COLUMNS * (_CARD_HEIGHT + _GAP)
        # several stand in a square of the same size
        side = _PICTURE if len(row.pictures) == 1 else _PICTURE / 2 - 0.02
        for number, picture in enumerate(row.pictures):
            x = left + number % 2 * (side + 0.04)
            y = top + number // 2 * (side + 0.04)
            axes = figure.add_axes((x / width, 1 - (y + side) / height, side / width, side / height))
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_anchor("NW")
            for spine in axes.spines.values():
                spine.set_color(GREY)
            if picture.image is None:
                axes.text(0.5, 0.5, "cannot\nbe read", ha="center", va="center", fontsize=_NOTE_SIZE, color=_SOFT)
            else:
                axes.imshow(np.asarray(picture.image))
        start = left + _PICTURE + 0.15
        room = _CARD_WIDTH - _PICTURE - 0.15
        notes = [*(shorten(_describe(picture), 80) for picture in row.pictures), _place(row)]
        capacity = int((_CARD_HEIGHT * 72 - len(notes) * 10.5 - 4) / _LINE)
        placed, used = _place_words(row, room, capacity, measure)
        for x, line, word, bold in placed:
            style = {"color": _ACCENT, "fontweight": "bold"} if bold else {}
            write(start + x, top + line * _LINE / 72, word, fontsize=_WORD_SIZE, **style)
        bottom = top + used * _LINE / 72 + 0.05
        write(start, bottom, "\n".join(notes), fontsize=_NOTE_SIZE, color=_SOFT, linespacing=1.25)
    return figure


def _place_words(
    row: SheetRow, room: float, capacity: int, measure: Callable[[str, bool], float]
) -> tuple[list[tuple[float, int, str, bool]], int]:
    """(left, line, word, whether it gave the picture) of each word that finds a place, and the number of lines."""
    space = measure("a a", False) - measure("aa", False)
    placed: list[tuple[float, float, int, str, bool]] = []
    x, line = 0.0, 0
    for index, word in enumerate(row.words[:_MAX_WORDS]):
        bold = index in row.named
        extent = measure(word, bold)
        while extent > room and len(word) > 2:  # one word wider than the card
            word = word[: int(len(word) * 0.8)].rstrip("…") + "…"
            extent = measure(word, bold)
        if x and x + extent > room:
            x, line = 0.0, line + 1
        if line == capacity or index == _MAX_WORDS - 1:
            last = placed.pop()
            placed.append((last[0], measure("…", False), last[2], "…", False))
            line = last[2]
            break
        placed.append((x, extent, line, word, bold))
        x += extent + space
    if is_right_to_left(row.words):
        placed = [(room - x - extent, extent, line, word, bold) for x, extent, line, word, bold in placed]
    return [(x, line, word, bold) for x, _, line, word, bold in placed], line + 1


__all__ = ["SheetPicture", "SheetRow", "contact_sheet_html", "draw_sheet_rows", "plot_contact_sheet", "sheet_note"]
