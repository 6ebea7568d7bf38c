"""Small drawings of persons, places, organisations and products, for the synthetic sample set."""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw

ENTITY_TYPES = ("PER", "LOC", "ORG", "PROD")

# (thing, background); `inverted` swaps the two.
_PALETTES = (
    ((190, 40, 45), (242, 233, 214)),
    ((35, 75, 170), (226, 236, 245)),
    ((20, 110, 65), (240, 240, 220)),
    ((110, 45, 140), (241, 228, 238)),
    ((160, 85, 15), (226, 239, 238)),
    ((45, 45, 55), (230, 230, 230)),
)
_RENDERINGS = ("filled", "outline", "both", "inverted")
_BACKGROUNDS = ("plain", "gradient", "stripes", "dots")
_LINE_WIDTHS = (0.035, 0.06)  # of the canvas' reference side, see `_Pen`
_SUPERSAMPLING = 4  # PIL draws without anti-aliasing: draw larger, then average

_Color = tuple[int, int, int]
Style = tuple[int, str, int, str, float]


class _Pen:
    """Draws in the unit square of one thing, in one style, on a transparent layer."""

    def __init__(self, layer: PIL.Image.Image, box: tuple[float, float, float, float], style: Style, mirror: bool):
        _, self.rendering, palette, _, line_width = style
        self.draw = PIL.ImageDraw.Draw(layer)
        self.left, self.top, right, bottom = box
        self.width, self.height = right - self.left, bottom - self.top
        self.mirror = mirror
        self.main, self.back = _PALETTES[palette][:: -1 if self.rendering == "inverted" else 1]
        self.stroke = max(2, round(line_width * max(self.width, self.height) * 1.4))
        middle = tuple((a + b) // 2 for a, b in zip(self.main, self.back, strict=True))
        # Body and detail colours. Outlined bodies are filled with the background's colour, so that what lies behind
        # does not shine through.
        self.body_fill = {"outline": self.back, "both": middle}.get(self.rendering, self.main)
        self.detail_fill = self.main if self.rendering == "both" else self.back
        self.outline = self.main if self.rendering in ("outline", "both") else None

    def _points(self, points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
        return [
            (self.left + (1 - x if self.mirror else x) * self.width, self.top + y * self.height) for x, y in points
        ]

    def _box(self, x0: float, y0: float, x1: float, y1: float) -> list[float]:
        (xa, ya), (xb, yb) = self._points([(x0, y0), (x1, y1)])
        return [min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb)]

    def _look(self, detail: bool) -> dict:
        fill = self.detail_fill if detail else self.body_fill
        return {"fill": fill, "outline": self.outline, "width": self.stroke if self.outline else 0}

    def polygon(self, *points: tuple[float, float], detail: bool = False) -> None:
        self.draw.polygon(self._points(points), **self._look(detail))

    def ellipse(self, *box: float, detail: bool = False) -> None:
        self.draw.ellipse(self._box(*box), **self._look(detail))

    def rectangle(self, *box: float, detail: bool = False) -> None:
        self.draw.rectangle(self._box(*box), **self._look(detail))

    def rounded(self, *box: float, radius: float = 0.1, detail: bool = False) -> None:
        # In whole pixels, as Pillow 10.3 and newer round them; older versions fail where the corners nearly meet.
        corners = [round(value) for value in self._box(*box)]
        self.draw.rounded_rectangle(corners, radius=radius * self.width, **self._look(detail))

    def line(self, *points: tuple[float, float], detail: bool = False, scale: float = 1.0) -> None:
        # A line on a filled body has to be cut out of it; on an outlined one it is drawn.
        color = self.back if detail and self.outline is None else self.main
        self.draw.line(self._points(points), fill=color, width=max(2, round(self.stroke * scale)), joint="curve")

    def dot(self, x: float, y: float, radius: float) -> None:
        color = self.back if self.outline is None else self.main
        self.draw.ellipse(self._box(x - radius, y - radius, x + radius, y + radius), fill=color)

    def arc(self, *box: float, start: int, end: int, detail: bool = False, scale: float = 1.0) -> None:
        if self.mirror:
            start, end = 180 - end, 180 - start
        color = self.back if detail and self.outline is None else self.main
        self.draw.arc(self._box(*box), start, end, fill=color, width=max(2, round(self.stroke * scale)))


# Persons -------------------------------------------------------------------------------------------------------------


def _stick_figure(pen: _Pen, rng: random.Random) -> None:
    hands = rng.choice((0.25, 0.42, 0.6))
    pen.line((0.5, 0.3), (0.5, 0.66), scale=1.4)
    pen.line((0.2, hands), (0.5, 0.42), (0.8, hands), scale=1.4)
    pen.line((0.26, 1.0), (0.5, 0.66), (0.74, 1.0), scale=1.4)
    pen.ellipse(0.35, 0.0, 0.65, 0.3)


def _head_and_shoulders(pen: _Pen, rng: random.Random) -> None:
    pen.polygon(*[(0.5 - 0.45 * math.cos(a), 1.0 - 0.42 * math.sin(a)) for a in np.linspace(0, math.pi, 24)])
    pen.ellipse(0.27, 0.0, 0.73, 0.56)
    if rng.random() < 0.5:
        pen.polygon((0.4, 0.68), (0.6, 0.68), (0.5, 0.88), detail=True)


def _profile(pen: _Pen, rng: random.Random) -> None:
    nose = rng.uniform(0.86, 0.98)
    pen.polygon(
        *((0.3, 1.0), (0.32, 0.78), (0.16, 0.6), (0.12, 0.36), (0.22, 0.14), (0.44, 0.02), (0.64, 0.06), (0.76, 0.2)),
        *((0.76, 0.38), (nose, 0.54), (0.8, 0.58), (0.82, 0.68), (0.78, 0.82), (0.62, 0.84), (0.64, 1.0)),
    )
    pen.dot(0.6, 0.38, 0.05)


def _face(pen: _Pen, rng: random.Random) -> None:
    pen.ellipse(0.03, 0.4, 0.16, 0.62)
    pen.ellipse(0.84, 0.4, 0.97, 0.62)
    pen.ellipse(0.1, 0.0, 0.9, 1.0)
    for x in (0.34, 0.66):
        pen.dot(x, 0.42, 0.075)
    fringe = [(0.5 - 0.32 * math.cos(a), 0.3 - 0.22 * math.sin(a)) for a in np.linspace(0, math.pi, 16)]
    pen.polygon(*fringe, (0.5, rng.uniform(0.2, 0.3)), detail=True)
    smile = rng.choice(((20, 160), (0, 180)))
    pen.arc(0.28, 0.44, 0.72, 0.8, start=smile[0], end=smile[1], detail=True, scale=1.2)
    if rng.random() < 0.5:
        pen.line((0.5, 0.46), (0.46, 0.58), (0.52, 0.58), detail=True, scale=0.8)


def _standing_figure(pen: _Pen, rng: random.Random) -> None:
    skirt = rng.random() < 0.5
    for x in (0.34, 0.53):
        pen.rectangle(x, 0.6, x + 0.13, 1.0)
    pen.polygon((0.3, 0.3), (0.3, 0.4), (0.2, 0.66), (0.1, 0.62), (0.22, 0.3))
    pen.polygon((0.7, 0.3), (0.7, 0.4), (0.8, 0.66), (0.9, 0.62), (0.78, 0.3))
    if skirt:
        pen.polygon((0.34, 0.28), (0.66, 0.28), (0.8, 0.76), (0.2, 0.76))
    else:
        pen.rounded(0.28, 0.28, 0.72, 0.68, radius=0.1)
    pen.ellipse(0.37, 0.0, 0.63, 0.25)


# Places --------------------------------------------------------------------------------------------------------------


def _house(pen: _Pen, rng: random.Random) -> None:
    if rng.random() < 0.6:
        pen.rectangle(0.7, 0.1, 0.82, 0.4)
    pen.rectangle(0.12, 0.45, 0.88, 1.0)
    pen.polygon((0.0, 0.48), (0.5, 0.04), (1.0, 0.48))
    pen.rectangle(0.54, 0.66, 0.74, 1.0, detail=True)
    pen.rectangle(0.22, 0.6, 0.42, 0.78, detail=True)


def _mountains(pen: _Pen, rng: random.Random) -> None:
    peak = rng.uniform(0.34, 0.44)
    pen.polygon((0.4, 0.86), (0.74, 0.36), (1.0, 0.86))
    pen.polygon((0.0, 0.86), (peak, 0.14), (0.78, 0.86))
    snow = [(peak - 0.13, 0.42), (peak - 0.05, 0.36), (peak, 0.44), (peak + 0.06, 0.36), (peak + 0.13, 0.42)]
    pen.line(*snow, detail=True)


def _bridge(pen: _Pen, rng: random.Random) -> None:
    arches = rng.choice((2, 3))
    pen.rectangle(0.0, 0.34, 1.0, 0.74)
    width = 1.0 / arches
    for index in range(arches):
        left, right = index * width + 0.05, (index + 1) * width - 0.05
        middle, radius = (left + right) / 2, (right - left) / 2
        arch = [(middle - radius * math.cos(a), 0.76 - 0.28 * math.sin(a)) for a in np.linspace(0, math.pi, 16)]
        pen.polygon(*arch, detail=pen.outline is None)
    pen.line((0.0, 0.24), (1.0, 0.24))
    for index in range(2 * arches + 1):
        pen.line((index / (2 * arches), 0.24), (index / (2 * arches), 0.36), scale=0.8)


def _castle(pen: _Pen, rng: random.Random) -> None:
    pen.rectangle(0.2, 0.5, 0.8, 1.0)
    for left in (0.0, 0.68):
        pen.rectangle(left, 0.28, left + 0.32, 1.0)
        for x in (0.0, 0.125, 0.25):
            pen.rectangle(left + x - 0.005, 0.16, left + x + 0.075, 0.3)
    pen.rounded(0.39, 0.66, 0.61, 1.0, radius=0.1, detail=True)
    for left in (0.12, 0.8):
        pen.rectangle(left, 0.42, left + 0.08, 0.56, detail=True)


def _palm_island(pen: _Pen, rng: random.Random) -> None:
    pen.polygon(*[(0.5 - 0.5 * math.cos(a), 1.0 - 0.22 * math.sin(a)) for a in np.linspace(0, math.pi, 20)])
    top = (rng.uniform(0.5, 0.6), 0.26)
    pen.line((0.44, 0.82), (0.46, 0.55), top, scale=1.6)
    for dx, dy in ((-0.4, 0.18), (-0.34, -0.1), (-0.06, -0.26), (0.28, -0.14), (0.36, 0.14)):
        pen.line(top, (top[0] + dx * 0.5, top[1] + dy * 0.5 - 0.07), (top[0] + dx, top[1] + dy), scale=1.5)


# Organisations -------------------------------------------------------------------------------------------------------


def _flag(pen: _Pen, rng: random.Random) -> None:
    pen.line((0.08, 0.0), (0.08, 1.0), scale=1.4)
    upper = [(x, 0.08 + 0.05 * math.sin(2 * math.pi * x)) for x in np.linspace(0.1, 1.0, 12)]
    pen.polygon(*upper, *[(x, y + 0.5) for x, y in reversed(upper)])
    if rng.random() < 0.5:
        pen.ellipse(0.4, 0.2, 0.7, 0.48, detail=True)
    else:
        pen.line((0.12, 0.34), (0.98, 0.34), detail=True, scale=1.6)
        pen.line((0.42, 0.08), (0.42, 0.58), detail=True, scale=1.6)


def _gear(pen: _Pen, rng: random.Random) -> None:
    teeth = rng.choice((7, 8, 9))
    points = []
    for index in range(teeth):
        for offset, radius in ((-0.28, 0.36), (-0.2, 0.5), (0.2, 0.5), (0.28, 0.36)):
            angle = 2 * math.pi * (index + offset) / teeth
            points.append((0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)))
    pen.polygon(*points)
    pen.ellipse(0.34, 0.34, 0.66, 0.66, detail=True)


def _shield(pen: _Pen, rng: random.Random) -> None:
    side = [(1.0, 0.0), (1.0, 0.45), (0.9, 0.68), (0.72, 0.86), (0.5, 1.0)]
    pen.polygon((0.0, 0.0), *side, *[(1 - x, y) for x, y in reversed(side[1:-1])])
    if rng.random() < 0.5:
        star = []
        for index in range(10):
            radius, angle = (0.3 if index % 2 == 0 else 0.13), math.pi * (index / 5 - 0.5)
            star.append((0.5 + radius * math.cos(angle), 0.43 + radius * math.sin(angle)))
        pen.polygon(*star, detail=True)
    else:
        pen.polygon((0.1, 0.46), (0.5, 0.2), (0.9, 0.46), (0.9, 0.66), (0.5, 0.4), (0.1, 0.66), detail=True)


def _office(pen: _Pen, rng: random.Random) -> None:
    pen.rectangle(0.1, 0.04, 0.9, 0.2)
    pen.rectangle(0.2, 0.2, 0.8, 1.0)
    pen.line((0.18, 0.12), (0.82, 0.12), detail=True, scale=1.2)
    rows = rng.choice((4, 5))
    for row, column in itertools.product(range(rows), range(3)):
        x, y = 0.265 + column * 0.18, 0.27 + row * 0.7 / rows
        pen.draw.rectangle(
            pen._box(x, y, x + 0.11, y + 0.38 / rows), fill=pen.back if pen.outline is None else pen.main
        )


def _ring_emblem(pen: _Pen, rng: random.Random) -> None:
    count = rng.choice((3, 4))
    centres = [
        (0.5 + 0.34 * math.sin(2 * math.pi * i / count), 0.5 - 0.34 * math.cos(2 * math.pi * i / count))
        for i in range(count)
    ]
    for centre in centres:
        pen.line((0.5, 0.5), centre, scale=1.6)
    for x, y in [*centres, (0.5, 0.5)]:
        pen.ellipse(x - 0.16, y - 0.16, x + 0.16, y + 0.16)


# Products ------------------------------------------------------------------------------------------------------------


def _phone(pen: _Pen, rng: random.Random) -> None:
    pen.rounded(0.22, 0.0, 0.78, 1.0, radius=0.1)
    pen.rectangle(0.29, 0.12, 0.71, 0.8, detail=True)
    if pen.rendering == "both":  # a dark screen needs a reflection to read as glass
        pen.draw.line(pen._points([(0.38, 0.42), (0.6, 0.22)]), fill=pen.back, width=pen.stroke)
    if rng.random() < 0.7:
        pen.dot(0.5, 0.9, 0.05)
    else:
        pen.line((0.42, 0.9), (0.58, 0.9), detail=True)


def _bottle(pen: _Pen, rng: random.Random) -> None:
    shoulder = rng.uniform(0.36, 0.44)
    pen.polygon(
        *((0.42, 0.08), (0.58, 0.08), (0.58, 0.26), (0.72, shoulder), (0.72, 1.0)),
        *((0.28, 1.0), (0.28, shoulder), (0.42, 0.26)),
    )
    pen.rectangle(0.39, 0.0, 0.61, 0.1)
    pen.rectangle(0.34, 0.54, 0.66, 0.8, detail=True)


def _cup(pen: _Pen, rng: random.Random) -> None:
    pen.arc(0.62, 0.42, 1.0, 0.8, start=-90, end=100, scale=1.6)
    pen.polygon((0.04, 0.34), (0.8, 0.34), (0.7, 1.0), (0.14, 1.0))
    if rng.random() < 0.5:
        pen.line((0.08, 0.52), (0.76, 0.52), detail=True, scale=1.2)
    for x in (0.28, 0.52):
        pen.line((x, 0.26), (x + 0.06, 0.18), (x, 0.1), (x + 0.06, 0.0))


def _parcel(pen: _Pen, rng: random.Random) -> None:
    pen.polygon((0.0, 0.26), (0.5, 0.46), (0.5, 1.0), (0.0, 0.8))
    pen.polygon((1.0, 0.26), (0.5, 0.46), (0.5, 1.0), (1.0, 0.8))
    pen.polygon((0.0, 0.26), (0.5, 0.06), (1.0, 0.26), (0.5, 0.46))
    pen.line((0.0, 0.26), (0.5, 0.46), (1.0, 0.26), detail=True)
    pen.line((0.5, 0.46), (0.5, 1.0), detail=True)
    if rng.random() < 0.6:
        pen.line((0.25, 0.16), (0.75, 0.36), (0.75, 0.56), detail=True, scale=1.3)


def _laptop(pen: _Pen, rng: random.Random) -> None:
    pen.rounded(0.14, 0.12, 0.86, 0.68, radius=0.05)
    pen.rectangle(0.21, 0.19, 0.79, 0.61, detail=True)
    if pen.rendering == "both":
        pen.draw.line(pen._points([(0.32, 0.48), (0.5, 0.28)]), fill=pen.back, width=pen.stroke)
    pen.polygon((0.14, 0.7), (0.86, 0.7), (1.0, 0.9), (0.0, 0.9))
    pen.line((0.2, 0.8), (0.8, 0.8), detail=True, scale=0.9)


_DRAWINGS: dict[str, tuple[Callable[[_Pen, random.Random], None], ...]] = {
    "PER": (_stick_figure, _head_and_shoulders, _profile, _face, _standing_figure),
    "LOC": (_house, _mountains, _bridge, _castle, _palm_island),
    "ORG": (_flag, _gear, _shield, _office, _ring_emblem),
    "PROD": (_phone, _bottle, _cup, _parcel, _laptop),
}


def drawing_styles(seed: int = 0) -> dict[str, list[Style]]:
    """
    The styles that the drawings of each split may have. No style is in two splits, and all entity types share them,
    so that neither colour nor line nor background says anything about the type.

    Args:
        seed (`int`, *optional*, defaults to 0):
            Seed of the data set.

    Returns:
        `dict[str, list[tuple]]`: For `"train"`, `"validation"` and `"test"` (60, 15 and 25 % of all) a list of
        (index of the variant of the thing, rendering, index of the palette, background, line width).
    """
    variants = range(len(_DRAWINGS["PER"]))
    styles = list(itertools.product(variants, _RENDERINGS, range(len(_PALETTES)), _BACKGROUNDS, _LINE_WIDTHS))
    random.Random(f"styles-{seed}").shuffle(styles)
    first, second = len(styles) * 60 // 100, len(styles) * 75 // 100
    return {"train": styles[:first], "validation": styles[first:second], "test": styles[second:]}


def draw_picture(
    entity_type: str | None, style: Style, rng: random.Random, image_size: int = 64
) -> tuple[PIL.Image.Image, list[float]]:
    """
    Draws one picture: a thing of the given type at a random place and scale (35 to 60 % of the side), or scenery.

    Args:
        entity_type (`str`, *optional*):
            One of `"PER"`, `"LOC"`, `"ORG"`, `"PROD"`; `None` draws scenery, in which there is no thing.
        style (`tuple`):
            One entry of [`drawing_styles`].
        rng (`random.Random`):
            Source of everything that the style leaves open.
        image_size (`int`, *optional*, defaults to 64):
            Height and width in pixels.

    Returns:
        `tuple[PIL.Image.Image, list[float]]`: The RGB picture and the box (x0, y0, x1, y1) of the thing, relative to
        the picture's size; `[0, 0, 0, 0]` for scenery.
    """
    variant, rendering, palette, background, _ = style
    side = image_size * _SUPERSAMPLING
    main, back = _PALETTES[palette][:: -1 if rendering == "inverted" else 1]
    canvas = _draw_background(side, main, back, background, rng)
    layer = PIL.Image.new("RGBA", (side, side))
    if entity_type is None:
        _draw_clutter(PIL.ImageDraw.Draw(canvas), side, main, back, style, rng)
    else:
        scale, aspect = rng.uniform(0.37, 0.58) * side, rng.uniform(0.9, 1.0)
        width, height = (scale * aspect, scale) if rng.random() < 0.5 else (scale, scale * aspect)
        margin = 0.03 * side  # for strokes, which are centred on the edge of a shape
        left, top = rng.uniform(margin, side - width - margin), rng.uniform(margin, side - height - margin)
        pen = _Pen(layer, (left, top, left + width, top + height), style, mirror=rng.random() < 0.5)
        _DRAWINGS[entity_type][variant](pen, rng)
        canvas.paste(layer, mask=layer)
    box = [value / side for value in layer.getbbox() or (0, 0, 0, 0)]

    pixels = np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.int16)
    # Bytes of the Mersenne twister rather than a NumPy stream, whose values may change between NumPy versions.
    noise = np.frombuffer(rng.randbytes(pixels.size), dtype=np.uint8).reshape(pixels.shape)
    tint = np.array([rng.randint(-8, 8) for _ in range(3)], dtype=np.int16)
    pixels = np.clip(pixels + tint + (noise % 9).astype(np.int16) - 4, 0, 255)
    return PIL.Image.fromarray(pixels.astype(np.uint8)), box


def _mix(first: Sequence[int], second: Sequence[int], share: float) -> tuple[int, ...]:
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second, strict=True))


def _draw_background(side: int, main: _Color, back: _Color, background: str, rng: random.Random) -> PIL.Image.Image:
    canvas = PIL.Image.new("RGB", (side, side), back)
    draw = PIL.ImageDraw.Draw(canvas)
    faint = _mix(back, main, rng.uniform(0.06, 0.12))  # too faint to be taken for a thing
    if background == "gradient":
        across = rng.random() < 0.5
        for step in range(32):
            color = _mix(back, main, 0.14 * step / 31)
            start, end = step * side // 32, (step + 1) * side // 32
            draw.rectangle((start, 0, end, side) if across else (0, start, side, end), fill=color)
    elif background == "stripes":
        pitch, slope = rng.uniform(0.1, 0.22) * side, rng.uniform(-1, 1) * side
        for index in range(-12, 24):
            draw.line((index * pitch, 0, index * pitch + slope, side), fill=faint, width=round(pitch / 2))
    elif background == "dots":
        for _ in range(rng.randint(25, 60)):
            x, y, radius = rng.random() * side, rng.random() * side, rng.uniform(0.01, 0.04) * side
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=faint)
    return canvas


def _draw_clutter(
    draw: PIL.ImageDraw.ImageDraw, side: int, main: _Color, back: _Color, style: Style, rng: random.Random
) -> None:
    """Scenery: waves, scattered marks or loose strokes over the whole picture, and nothing to name."""
    width = max(2, round(style[4] * side * 0.6))
    color = _mix(main, back, rng.uniform(0.0, 0.4))
    motif = rng.choice(("waves", "marks", "strokes"))
    if motif == "waves":
        count, phase = rng.randint(3, 7), rng.random() * math.tau
        for index in range(count):
            y = (index + 0.5) * side / count
            points = [
                (x, y + 0.03 * side * math.sin(phase + index + 9 * x / side)) for x in range(0, side + 8, side // 32)
            ]
            draw.line(points, fill=color, width=width, joint="curve")
    elif motif == "marks":
        for _ in range(rng.randint(12, 30)):
            x, y, radius = rng.random() * side, rng.random() * side, rng.uniform(0.015, 0.05) * side
            if rng.random() < 0.5:
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
            else:
                draw.rectangle((x - radius, y - radius, x + radius, y + radius), fill=color)
    else:
        for _ in range(rng.randint(8, 18)):
            x, y, angle, length = rng.random() * side, rng.random() * side, rng.random() * math.tau, 0.15 * side
            draw.line((x, y, x + length * math.cos(angle), y + length * math.sin(angle)), fill=color, width=width)
