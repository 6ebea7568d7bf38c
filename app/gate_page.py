"""The gate report as a page: tables, and example texts with their pictures, heat maps and gates."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..training.gate_report import GateReport
from .pages import escape, html_page, html_table, image_data_uri

if TYPE_CHECKING:
    import pandas as pd

_HEADER = ("words", "gate", "deviation", "effect", "mended", "broken")


def gate_page(title: str, report: GateReport, examples: Sequence[dict[str, Any]]) -> str:
    """
    A self-contained HTML page.

    Args:
        title (`str`): of the page.
        report ([`~training.gate_report.GateReport`]): the tables.
        examples (`Sequence[dict]`): each with `figure`, a `PIL.Image.Image` of the text (see
            [`~app.plotting.plot_entities`]), and `usage`, its rows of
            [`~training.gate_report.word_usage`].

    Returns:
        `str`: the page.
    """
    explanation = report.to_markdown().split("\n\n")[0].replace("*", "")
    parts = [
        f"<p>{escape(explanation)}</p>",
        "<h2>By true entity type</h2>",
        html_table(("entity type", *_HEADER), _cells(report.by_type)),
        "<h2>Words on which the picture had the largest effect</h2>",
        html_table(("word", *_HEADER), _cells(report.by_word)),
        "<h2>Examples</h2>",
        "<p>In turn texts that the picture mended, texts that it broke, and those it moved most. Bars under the words "
        "are gates.</p>",
    ]
    for example in examples:
        usage = example["usage"]
        changed = usage[usage["tag"] != usage["tag_without_image"]]
        if len(changed):
            sentences = [
                f"{row.word}: {row.tag} with the picture, {row.tag_without_image} without, true {row.true_tag}"
                for row in changed.itertuples()
            ]
            text = "; ".join(sentences)
        else:
            text = "The picture changed no tag."
        parts.append(
            f'<div class="card"><img style="max-width:100%" alt="{escape(text)}" '
            f'src="{image_data_uri(example["figure"])}"><p>{escape(text)}</p></div>'
        )
    return html_page(title, "\n".join(parts))


def _cells(table: "pd.DataFrame") -> list[list[Any]]:
    return [
        [
            str(index),
            int(row["words"]),
            round(float(row["gate"]), 2),
            "" if row["gate_deviation"] != row["gate_deviation"] else round(float(row["gate_deviation"]), 2),
            round(float(row["effect"]), 3),
            int(row["mended"]),
            int(row["broken"]),
        ]
        for index, row in table.iterrows()
    ]


__all__ = ["gate_page"]
