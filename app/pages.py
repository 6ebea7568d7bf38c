"""HTML pages that are one file: styles and pictures are inside, and nothing is fetched from anywhere."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
import PIL.Image

# Readable in a light and a dark room and on paper; no colour carries a meaning alone.
_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #5b6470; --line: #d7dbe0; --card: #ffffff; --page: #f5f6f8;
        --mark: #ffe08a; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a3acb8; --line: #3a414b; --card: #20242a;
        --page: #15181c; --mark: #6b5200; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 2rem clamp(1rem, 4vw, 3rem); background: var(--page); color: var(--ink);
       font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { max-width: 48rem; }
table { border-collapse: collapse; margin: 1rem 0; background: var(--card); }
th, td { padding: .35rem .75rem; border: 1px solid var(--line); text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
mark { background: var(--mark); color: inherit; border-radius: .2em; padding: 0 .15em; }
.soft { color: var(--soft); font-size: .85rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; margin-top: 1.5rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem; overflow: hidden; }
.card p { margin: .5rem 0; overflow-wrap: anywhere; }
.pictures { display: flex; flex-wrap: wrap; gap: .75rem; }
figure { margin: 0; max-width: 100%; }
figure img { display: block; max-width: 100%; max-height: 12rem; border: 1px solid var(--line); }
figcaption { color: var(--soft); font-size: .8rem; overflow-wrap: anywhere; }
.missing { border: 1px dashed var(--line); padding: 1rem; color: var(--soft); font-size: .85rem; }
@media print { .card { break-inside: avoid; } }
"""


def escape(text: object) -> str:
    """Text that is safe in an element and in a quoted attribute, whatever is in it."""
    return html.escape(str(text), quote=True)


def thumbnail(image: PIL.Image.Image | np.ndarray, max_side: int = 240) -> PIL.Image.Image:
    """
    A small RGB copy of a picture.

    Args:
        image (`PIL.Image.Image` or `np.ndarray` of shape `(height, width, 3)` and type `uint8`): the picture.
        max_side (`int`, *optional*, defaults to 240): its longer side at most, in pixels. A smaller one keeps its size.

    Returns:
        `PIL.Image.Image`: the copy.
    """
    picture = PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture = picture.convert("RGB")  # a copy if it is RGB already; `thumbnail` works in place
    picture = picture.copy() if picture is image else picture
    picture.thumbnail((max_side, max_side))
    return picture


def image_data_uri(image: PIL.Image.Image, quality: int = 85) -> str:
    """
    A picture as text for the `src` of an `img`.

    Args:
        image (`PIL.Image.Image`): the picture; see [`thumbnail`] to make it small first.
        quality (`int`, *optional*, defaults to 85): of the JPEG, 1 to 95.

    Returns:
        `str`: `data:image/jpeg;base64,…`
    """
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def html_table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """
    A table. Cells are escaped; `int` and `float` cells are set flush right.

    Args:
        header (`Sequence[object]`): names of the columns.
        rows (`Sequence[Sequence[object]]`): the cells.

    Returns:
        `str`: a `table` element.
    """
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = ""
    for row in rows:
        cells = (f"<td{' class=number' * isinstance(cell, int | float)}>{escape(cell)}</td>" for cell in row)
        body += f"<tr>{''.join(cells)}</tr>\n"
    return f"<table>\n<tr>{head}</tr>\n{body}</table>"


def html_page(title: str, body: str) -> str:
    """
    A page of its own.

    Args:
        title (`str`): of the page, escaped here and set as its heading.
        body (`str`): HTML, whose texts you have escaped.

    Returns:
        `str`: the whole file. Its content security policy forbids scripts and everything from elsewhere, so that
        a text that slipped through unescaped could do no harm.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def cards_page(title: str, cards: Sequence[str], note: str = "", nothing: str = "") -> str:
    """
    A page of cards beside and below each other.

    Args:
        title (`str`): of the page.
        cards (`Sequence[str]`): each an element of class `card`, whose texts you have escaped.
        note (`str`, *optional*): a line under the heading, escaped here.
        nothing (`str`, *optional*): what a page without cards says, escaped here.

    Returns:
        `str`: the whole file, as of [`html_page`].
    """
    body = f"<p>{escape(note)}</p>\n" if note else ""
    if nothing and not cards:
        body += f"<p>{escape(nothing)}</p>"
    return html_page(title, body + '<div class="cards">\n' + "\n".join(cards) + "\n</div>")


__all__ = ["cards_page", "escape", "html_page", "html_table", "image_data_uri", "thumbnail"]
