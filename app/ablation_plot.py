"""
An image ablation as a forest plot. Needs matplotlib, the optional extra `plots`, as [`~app.plotting.plot_entities`] does.
"""

import os
import textwrap
from typing import TYPE_CHECKING

from ..training.ablation import TEXT_ONLY, AblationReport, Difference
from ..training.model_card import is_in_nats
from .style import GRID, INK, PALETTE, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DECIDING = (("true", "shuffled"), ("true", TEXT_ONLY))


def plot_ablation(report: AblationReport) -> "Figure":
    """
    Draws the differences of an image ablation as a forest plot: a point for the mean over seeds, a bar for its
    interval, small marks for the single seeds, and a line at no difference. The two that decide come first, overall
    and for each part of the score; the other comparisons follow.

    Args:
        report ([`~training.ablation.AblationReport`]): What to draw.

    Returns:
        `matplotlib.figure.Figure`: The figure, with one axes; in points (hundredths) of the score, or in nats, without the
        parts that have the other unit.

    Raises:
        `ImportError`: If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    groups = _comparisons(report)
    lines = sum(len(group) + 1 for group in groups)
    figure = Figure(figsize=(10.0, 1.5 + 0.27 * lines), facecolor="white", layout="constrained")
    axes = figure.subplots()
    place, ticks, names = 0.0, [], []
    for group in groups:
        for difference in group:
            is_whole = difference.metric == report.metric
            _draw_difference(axes, difference, place, is_whole)
            ticks.append(place)
            names.append(difference.name if is_whole else difference.metric)
            place += 1
        place += 0.7
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(ticks, names)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_ylim(place - 0.4, -0.9)
    axes.set_xlabel(
        f"difference in {report.metric}, {'nats' if is_in_nats(report.metric) else 'points'}; mean and {100 * report.confidence:g} % interval"
        + (", ticks: single seeds" if len(report.seeds) > 1 else "")
    )
    axes.set_title("\n".join(textwrap.wrap(report.verdict, 105)), loc="left", fontsize=10, parse_math=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
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


def _comparisons(report: AblationReport) -> list[list[Difference]]:
    """The two that decide with their parts in the same unit, then the others as a whole; none that is empty."""
    alike = [d for d in report.differences if is_in_nats(d.metric) == is_in_nats(report.metric)]
    groups = [[d for d in alike if (d.first, d.second) == pair] for pair in _DECIDING]
    whole = [difference for difference in report.differences if difference.metric == report.metric]
    groups.append([difference for difference in whole if (difference.first, difference.second) not in _DECIDING])
    return [group for group in groups if group]


def _draw_difference(axes: "Axes", difference: Difference, place: float, is_whole: bool) -> None:
    color = PALETTE[0] if is_whole else "#7A7A7A"
    scale = 1 if is_in_nats(difference.metric) else 100
    mean, low, high = (scale * value for value in (difference.mean, difference.low, difference.high))
    axes.plot([low, high], [place, place], color=color, linewidth=2.2 if is_whole else 1.4, solid_capstyle="butt")
    axes.plot([mean], [place], marker="s" if is_whole else "o", markersize=7 if is_whole else 5, color=color)
    if len(difference.by_seed) > 1:
        seeds = [scale * value for value in difference.by_seed]
        axes.plot(seeds, [place + 0.25] * len(seeds), "|", markersize=5, color=color, alpha=0.8)


__all__ = ["plot_ablation", "save_ablation"]
