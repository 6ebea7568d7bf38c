"""
What the demo shows of a text: HTML without scripts that reads well in a light and a dark room, on a phone, by keyboard
and aloud. The chosen entity is a radio button, so that its heat map comes by click and by arrow key alike.
"""

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image

from .pages import escape, image_data_uri
from .panels import heat_picture
from .style import group_colors, text_color

# Colours are those of Gradio's theme, which knows whether the room is light or dark.
STYLE = """
#vt-text textarea { min-height: 5rem; }
.gradio-container { max-width: 64rem !important; margin: 0 auto !important; }
.vt { display: block; }
.vt h1 { font-size: 1.6rem; margin: .5rem 0 .25rem; overflow-wrap: anywhere; }
.vt h2 { font-size: 1.15rem; margin: 1.5rem 0 .5rem; }
.vt h3 { font-size: 1rem; margin: 0 0 .5rem; }
.vt, .vt p, .vt li, .vt td, .vt th, .vt h1, .vt h2, .vt h3, .vt figcaption { color: var(--body-text-color); }
.vt p { max-width: 48rem; margin: .25rem 0; }
.vt .vt-soft { color: var(--body-text-color-subdued); font-size: .9rem; }
.vt-columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
.vt-card { border: 1px solid var(--border-color-primary); border-radius: .5rem; padding: .75rem 1rem;
           background: var(--background-fill-primary); min-width: 0; }
.vt p.vt-sentence { line-height: 2.1; font-size: 1.1rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.vt-entity { border: 2px solid var(--vt-color); border-radius: .4rem; padding: .1rem .1rem .1rem .35rem;
             background: color-mix(in srgb, var(--vt-color) 18%, transparent);
             display: inline-block; max-width: 100%; line-height: 1.5; }
.vt-kind { background: var(--vt-color); color: var(--vt-ink); font-size: .75rem; font-weight: 700; border-radius: .2rem;
           padding: .1rem .35rem; white-space: nowrap; }
mark.vt-entity { color: inherit; }
label.vt-entity { cursor: pointer; }
label.vt-entity input { position: absolute; opacity: 0; width: 1px; height: 1px; }
label.vt-entity:has(input:checked) { border-style: double; border-width: 4px;
                                     background: color-mix(in srgb, var(--vt-color) 35%, transparent); }
label.vt-entity:has(input:focus-visible) { outline: 3px solid var(--body-text-color); outline-offset: 2px; }
.vt-pictures { display: flex; flex-wrap: wrap; gap: .75rem; }
.vt figure { margin: 0; max-width: 100%; }
.vt img { display: block; max-width: 14rem; height: auto; border-radius: .3rem; }
.vt figcaption { font-size: .9rem; margin: .25rem 0; overflow-wrap: anywhere; }
.vt ol.vt-gates { list-style: none; display: flex; flex-wrap: wrap; gap: .5rem .75rem; padding: 0; margin: .5rem 0; }
.vt .vt-gates li { margin: 0; min-width: 3rem; max-width: 100%; overflow-wrap: anywhere; }
.vt-bar { display: block; height: .4rem; min-width: 3rem; border-radius: .2rem; background: var(--border-color-primary); }
.vt-bar > span { display: block; height: 100%; border-radius: .2rem; background: #3f83c8; }
.vt-number { font-size: .8rem; font-variant-numeric: tabular-nums; color: var(--body-text-color-subdued); }
.vt table { border-collapse: collapse; width: 100%; margin: .5rem 0; table-layout: fixed; }
.vt th, .vt td { text-align: left; padding: .4rem .5rem; border-bottom: 1px solid var(--border-color-primary);
                 overflow-wrap: anywhere; font-weight: 400; }
.vt thead th, .vt tr.vt-best th { font-weight: 700; }
.vt .vt-error { border-left: 4px solid #c0392b; padding: .6rem .9rem; max-width: none;
                background: color-mix(in srgb, #c0392b 12%, transparent); }
"""
_SIDE = 320  # pixels of the longer side of a picture on the page


@dataclass
class Reading:
    """
    What a model made of a text.

    Args:
        results (`list[dict]`): entities, or labels, of its pipeline.
        without (`list[dict]`, *optional*): the same without the pictures; `None` where there were none.
        gates (`list[tuple[str, float]]`): the words, and how far each was open to the pictures; NaN where the model
            did not see a word.
        heatmaps (`list[list[np.ndarray]]`): for each entity, or once for all labels, and each picture where it looked.
    """

    results: list[dict[str, Any]]
    without: list[dict[str, Any]] | None
    gates: list[tuple[str, float]]
    heatmaps: list[list[np.ndarray]]


def heading(title: str, lead: str) -> str:
    """The top of the page."""
    return f'<div class="vt"><h1>{escape(title)}</h1><p>{escape(lead)}</p></div>'


def error(message: str) -> str:
    """What went wrong, told to those who see and to those who listen."""
    return _page(f'<p class="vt-error" role="alert">{escape(message)}</p>')


def previews(pictures: Sequence[np.ndarray]) -> str:
    """The pictures that were chosen, small."""
    images = "".join(
        f'<img style="max-height:7rem" alt="Picture {number}" src="{image_data_uri(_small(picture))}">'
        for number, picture in enumerate(pictures, 1)
    )
    return f'<div class="vt vt-pictures">{images}</div>'


def entities_page(text: str, reading: Reading, pictures: Sequence[np.ndarray]) -> str:
    """
    The text with its entities, beside it the same without the pictures, and where each entity looked.

    Args:
        text (`str`): the text.
        reading ([`Reading`]): its entities.
        pictures (`Sequence[np.ndarray]` of shape `(height, width, 3)` and type `uint8`): its pictures.

    Returns:
        `str`: HTML.
    """
    colors = group_colors([*reading.results, *(reading.without or [])])
    if reading.without is None:
        marked = _marked(text, reading.results, colors)
        return _page(_summary(_found(reading.results)), f'<div class="vt-card">{marked}</div>')
    name = "picture" if len(pictures) == 1 else "pictures"
    sides = (
        (f"With the {name}", _marked(text, reading.results, colors, choose=True)),
        (f"Without the {name}", _marked(text, reading.without, colors)),
    )
    columns = "".join(f'<div class="vt-card"><h3>{title}</h3>{marked}</div>' for title, marked in sides)
    parts = [_summary(_changes(reading.results, reading.without, name)), f'<div class="vt-columns">{columns}</div>']
    if reading.results:
        how = f"Choose an entity on the side with the {name}: click it, or use the arrow keys."
        parts += [
            "<h2>Where it looked</h2>",
            f'<p class="vt-soft">{how if len(reading.results) > 1 else ""}</p>',
            _heatmaps([str(entity["text"]) for entity in reading.results], reading.heatmaps, pictures),
        ]
    return _page(*parts, _gates(reading.gates))


def labels_page(reading: Reading, pictures: Sequence[np.ndarray], are_shares: bool) -> str:
    """
    The labels of a text, with and without its pictures, and where its words looked.

    Args:
        reading ([`Reading`]): its labels, best first.
        pictures (`Sequence[np.ndarray]` of shape `(height, width, 3)` and type `uint8`): its pictures.
        are_shares (`bool`): whether scores are probabilities, which have a bar; else they are values.

    Returns:
        `str`: HTML.
    """
    name = "picture" if len(pictures) == 1 else "pictures"

    def said(labels: Sequence[Mapping[str, Any]]) -> str:
        return f"{labels[0]['label']} ({_score(labels[0]['score'], are_shares)})"

    without = {} if reading.without is None else {label["label"]: label["score"] for label in reading.without}
    header = ["Label", "Score"] if reading.without is None else ["Label", f"With the {name}", f"Without the {name}"]
    head = "".join(f'<th scope="col">{title}</th>' for title in header)
    body = ""
    for place, label in enumerate(reading.results):
        scores = [label["score"], *([without[label["label"]]] if without else [])]
        cells = "".join(f"<td>{_bar(score) if are_shares else ''}{_score(score, are_shares)}</td>" for score in scores)
        best = ' class="vt-best"' if place == 0 else ""
        body += f'<tr{best}><th scope="row">{escape(label["label"])}</th>{cells}</tr>'
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    if reading.without is None:
        return _page(_summary(said(reading.results)), table)
    summary = _summary(f"{said(reading.results)} with the {name}, {said(reading.without)} without.")
    seen = _heatmaps(["the whole text"], reading.heatmaps, pictures)
    return _page(summary, table, "<h2>Where it looked</h2>", seen, _gates(reading.gates))


def _page(*parts: str) -> str:
    # Gradio mends the old result into the new one where tags agree, and with it keeps an old choice. A name that no
    # other result has makes it take this one whole.
    tag = f"vt-{uuid.uuid4().hex}"
    return f'<{tag} class="vt">{"".join(parts)}</{tag}>'


def _summary(sentence: str) -> str:
    return f'<p role="status"><strong>{escape(sentence)}</strong></p>'


def _found(entities: Sequence[Mapping[str, Any]]) -> str:
    found = ", ".join(f"{entity['text']} ({entity['entity_group']})" for entity in entities) or "no entity"
    return f"Found without a picture: {found}."


def _changes(entities: Sequence[Mapping[str, Any]], without: Sequence[Mapping[str, Any]], name: str) -> str:
    def spans(of: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], tuple[str, str]]:
        return {(entity["start"], entity["end"]): (entity["text"], entity["entity_group"]) for entity in of}

    seen, unseen = spans(entities), spans(without)
    changes = []
    for span in sorted(seen.keys() | unseen.keys()):
        kind, other = seen.get(span), unseen.get(span)
        if kind != other:
            word = (kind or other or ("",))[0]
            changes.append(
                f"{word} is {kind[1] if kind else 'nothing'} with, {other[1] if other else 'nothing'} without"
            )
    if not changes:
        return f"The {name} changed no entity of this text."
    return f"What the {name} changed: {'; '.join(changes)}."


def _marked(text: str, entities: Sequence[Mapping[str, Any]], colors: Mapping[str, str], choose: bool = False) -> str:
    parts, place = [], 0
    for index, entity in enumerate(entities):
        color = colors[str(entity["entity_group"])]
        style = f'style="--vt-color:{color};--vt-ink:{text_color(color)}"'
        kind = f' <span class="vt-kind">{escape(entity["entity_group"])} {_score(entity["score"])}</span>'
        words = escape(text[entity["start"] : entity["end"]])
        parts.append(escape(text[place : entity["start"]]))
        if choose:
            radio = f'<input type="radio" name="vt-entity" value="{index}"{" checked" * (index == 0)}>'
            parts.append(f'<label class="vt-entity" {style}>{radio}{words}{kind}</label>')
        else:
            parts.append(f'<mark class="vt-entity" {style}>{words}{kind}</mark>')
        place = entity["end"]
    group = (
        ' role="radiogroup" aria-label="Entities; choose one to see where it looked"' if choose and entities else ""
    )
    nothing = "" if entities else '<p class="vt-soft">No entity found.</p>'
    return f'<p class="vt-sentence" dir="auto"{group}>{"".join(parts)}{escape(text[place:])}</p>{nothing}'


def _heatmaps(names: Sequence[str], heatmaps: Sequence[Sequence[np.ndarray]], pictures: Sequence[np.ndarray]) -> str:
    """The pictures, then those of each name under its heat maps, of which the style shows the chosen one's."""
    small = [_small(picture) for picture in pictures]
    shown = "".join(
        f'<img alt="Picture {number} as it is" src="{image_data_uri(picture)}">'
        for number, picture in enumerate(small, 1)
    )
    rules, figures = "", ""
    for index, (name, maps) in enumerate(zip(names, heatmaps, strict=True)):
        total = sum(float(heatmap.sum()) for heatmap in maps)
        shares = [float(heatmap.sum()) / total if total > 0 else 0.0 for heatmap in maps]
        images = "".join(
            f'<img alt="Picture {number} with the heat map of {escape(name)}: {share:.0%} of its attention" '
            f'src="{image_data_uri(heat_picture(picture, heatmap, maps))}">'
            for number, (picture, heatmap, share) in enumerate(zip(small, maps, shares, strict=True), 1)
        )
        spread = ", ".join(f"{share:.0%} on picture {number}" for number, share in enumerate(shares, 1))
        caption = f"Attention of {escape(name)}{': ' * (len(maps) > 1)}{spread * (len(maps) > 1)}"
        figures += f'<figure class="vt-map-{index}"><div class="vt-pictures">{images}</div>'
        figures += f"<figcaption>{caption}</figcaption></figure>"
        if len(names) > 1:
            chosen = f'input[name="vt-entity"][value="{index}"]:checked'
            rules += f".vt:not(:has({chosen})) .vt-map-{index} {{ display: none; }}\n"
    original = f'<figure><div class="vt-pictures">{shown}</div><figcaption>As it is</figcaption></figure>'
    return f'<style>{rules}</style><div class="vt-pictures">{original}<div class="vt-maps">{figures}</div></div>'


def _gates(gates: Sequence[tuple[str, float]]) -> str:
    """Words with bars; as text rather than as a figure, to wrap on a phone and to be read aloud."""
    if not gates:
        return ""
    items = "".join(
        f"<li><span>{escape(word)}</span>{_bar(0 if math.isnan(gate) else gate)}"
        f'<span class="vt-number">{"not seen" if math.isnan(gate) else f"{gate:.2f}"}</span></li>'
        for word, gate in gates
    )
    return (
        "<h2>Gate of each word</h2>"
        '<p class="vt-soft">How far each word was open to the pictures, from 0 to 1. What they did to it shows only '
        f'beside the result without them.</p><ol class="vt-gates" dir="auto">{items}</ol>'
    )


def _bar(share: float) -> str:
    width = min(max(share, 0.0), 1.0)
    return f'<span class="vt-bar" aria-hidden="true"><span style="width:{width:.0%}"></span></span>'


def _score(score: float, is_share: bool = True) -> str:
    return f"{score:.0%}" if is_share else f"{score:.3g}"


def _small(picture: np.ndarray) -> PIL.Image.Image:
    height, width = picture.shape[:2]
    scale = _SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))  # a strip stays a pixel wide
    return PIL.Image.fromarray(picture).resize(size)


__all__ = ["STYLE", "Reading", "entities_page", "error", "heading", "labels_page", "previews"]
