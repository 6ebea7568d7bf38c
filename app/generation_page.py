"""What a model generated as a page: each picture with the text under every image condition and the true ones."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ..training.fine_tuning import read_records
from ..training.images import IMAGE_CONDITIONS, ImageStore, RowKeys
from .pages import cards_page, escape, image_data_uri, thumbnail


def generation_page(
    title: str,
    records: Sequence[Mapping[str, Any]],
    pictures: Sequence[Sequence[PIL.Image.Image | np.ndarray]],
    fields: Mapping[str, str],
    note: str = "",
) -> str:
    """
    A self-contained HTML page.

    Args:
        title (`str`): its heading.
        records (`Sequence[dict]`): lines of a run's `test_predictions.jsonl`.
        pictures (`Sequence[Sequence[PIL.Image.Image or np.ndarray]]`): the images of each record, none where it has none.
        fields (`Mapping[str, str]`): for each image condition the field of a record that holds what was generated; see
            [`~training.fine_tuning.read_records`].
        note (`str`, *optional*): a line under the heading.

    Returns:
        `str`: the page.
    """
    cards = []
    for record, images in zip(records, pictures, strict=True):
        figures = "".join(
            f'<figure><img src="{image_data_uri(thumbnail(image))}" alt="image {number} of row {record["row"]}"></figure>'
            for number, image in enumerate(images)
        )
        shown = figures or '<div class="missing">no image</div>'
        generated = "".join(
            f'<p dir="auto"><span class="soft">{escape(IMAGE_CONDITIONS[condition])}</span><br>{escape(record[field]["text"])}</p>'
            for condition, field in fields.items()
        )
        true = "".join(f'<li dir="auto">{escape(response)}</li>' for response in record["responses"])
        cards.append(
            f'<article class="card">\n<div class="pictures">{shown}</div>\n'
            f'<p dir="auto"><b>{escape(record["prompt"])}</b></p>\n{generated}\n'
            f'<div class="soft">true, row {record["row"]:,}<ul>{true}</ul></div>\n</article>'
        )
    return cards_page(title, cards, note)


def write_generation_page(
    folder: str | os.PathLike, image_keys: Sequence[RowKeys], store: ImageStore, num_rows: int = 24
) -> Path:
    """
    Writes `test_samples.html` for rows evenly drawn from the test split of a run of `scripts/run_generation.py`.

    Args:
        folder (`str` or `os.PathLike`): the run's `output_dir`, with its `results.json` and `test_predictions.jsonl`.
        image_keys (`Sequence[list[str] | None]`): for each test row the keys of its images.
        store ([`~training.images.ImageStore`]): the images.
        num_rows (`int`, *optional*, defaults to 24): number of rows at most.

    Returns:
        `Path`: the page.
    """
    records, fields = read_records(folder, "generated")
    rows = np.linspace(0, len(records) - 1, min(num_rows, len(records)), dtype=int)
    pictures = [[store.load(key) for key in image_keys[row] or []] for row in rows]
    note = f"{len(rows)} of {len(records):,} test rows, evenly drawn; nothing was chosen by hand."
    path = Path(folder, "test_samples.html")
    path.write_text(
        generation_page("Generated text", [records[row] for row in rows], pictures, fields, note), encoding="utf-8"
    )
    return path


__all__ = ["generation_page", "write_generation_page"]
