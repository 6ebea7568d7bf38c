"""A figure of each benchmark, from what its JSON file holds."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vtfusion.app.style import GRID, INK, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PINK, RED, GREY = *PALETTE[:5], PALETTE[7]
MARKERS = "os^Dv"
Record = dict[str, Any]


def make_figure(columns: int, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    """A figure with its axes side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color=GRID, linewidth=0.8)
        each.set_axisbelow(True)
    return figure, axes


def rows_of(record: Record, kind: str) -> list[Record]:
    """The results of one kind."""
    return [row for row in record["rows"] if row.get("kind") == kind]


def draw_bars(axes: "Axes", names: list[str], values: list[float], colors: list[str], label: str) -> None:
    """Horizontal bars with their numbers, the first on top."""
    places = range(len(names))
    axes.barh(places, values, color=colors, height=0.65)
    for place, value in zip(places, values, strict=True):
        text = f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
        axes.text(value, place, f" {text}", va="center", fontsize=8)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18 * max(values))
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def draw_fusion_price(record: Record) -> "Figure":
    """The ratio of times with its quartiles, beside that of the operations."""
    training = [row for row in rows_of(record, "training") if row["contender"] != "plain"]
    figure, axes = make_figure(2, 11, 1.6 + 0.3 * len(training))
    for each, mode in zip(axes, ("training", "inference"), strict=True):
        rows = [row for row in rows_of(record, mode) if row["contender"] != "plain"]
        places = list(range(len(rows)))
        for place, row in zip(places, rows, strict=True):
            each.plot([row["ratio_low"], row["ratio_high"]], [place, place], color=BLUE, linewidth=2)
        each.plot([row["ratio"] for row in rows], places, "o", color=BLUE, label="time, with quartiles")
        each.plot(
            *([row["flops_ratio"] for row in rows], places),
            *("D",),
            color=RED,
            markerfacecolor="white",
            markersize=6,
            label="floating-point operations",
        )
        each.axvline(1, color=INK, linewidth=0.8)
        each.set_yticks(
            places,
            [f"{row['size']}, L {row['length']}, N {row['positions']}, {row['contender']}" for row in rows]
            if mode == "training"
            else [""] * len(rows),
        )
        each.invert_yaxis()
        each.set_xlabel("ratio to the plain text model")
        each.set_title(mode, loc="left", fontsize=10)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def draw_peers(record: Record) -> "Figure":
    """Speed and memory of each model; ours in another colour."""
    rows = record["rows"]
    names = [f"{row['contender']} ({row['parameters'] / 1e6:.0f} M)" for row in rows]
    colors = [BLUE if row["contender"].startswith("VTFusion") else GREY for row in rows]
    figure, axes = make_figure(3, 13, 1.2 + 0.32 * len(rows))
    panels = (
        ("training_examples_per_second", "training, texts a second"),
        ("inference_examples_per_second", "inference, texts a second"),
        ("training_mb", "peak memory of training, MB"),
    )
    for place, (each, (key, label)) in enumerate(zip(axes, panels, strict=True)):
        draw_bars(each, names if place == 0 else [""] * len(rows), [row[key] for row in rows], colors, label)
    return figure


def draw_growth(record: Record) -> "Figure":
    """Time and memory over size, and cost per row, all with logarithms on both axes."""
    figure, (time, memory, cost) = make_figure(3, 14, 4.6)
    draw_block_growth(record, time, memory)
    draw_cost_per_row(record, cost)
    for axes in (time, memory, cost):
        axes.set_xscale("log", base=10 if axes is cost else 2)
        axes.set_yscale("log")
        axes.legend(frameon=False, fontsize=8)
    return figure


def draw_block_growth(record: Record, time: "Axes", memory: "Axes") -> None:
    """A line for each series of the fusion block."""
    blocks = rows_of(record, "block")
    slopes = {row["series"]: row for row in rows_of(record, "slope")}
    series = list(dict.fromkeys(row["series"] for row in blocks))
    for name, color, marker in zip(series, (BLUE, ORANGE, GREEN, PINK, RED), MARKERS, strict=True):
        rows = [row for row in blocks if row["series"] == name]
        sizes = [row["size"] for row in rows]
        for axes, values, key in (
            (time, [1000 * row["seconds"] for row in rows], "time"),
            (memory, [row["memory_mb"] for row in rows], "memory"),
        ):
            label = f"{name} (slope {slopes[name][key]:.2f})"
            axes.plot(sizes, values, color=color, marker=marker, markersize=5, label=label)
        if name == "L and N":
            stored = [row["similarity_mb"] for row in rows]
            memory.plot(sizes, stored, ":", color=INK, label="S alone, if it were stored, of L and N")
    time.set_ylabel("forward and backward, ms")
    memory.set_ylabel("memory of a step, MB")
    for axes in (time, memory):
        axes.set_xlabel("size (N where L and N grow)")


def draw_cost_per_row(record: Record, axes: "Axes") -> None:
    """A line for each stage that a data set passes."""
    stages = list(dict.fromkeys(row["stage"] for row in rows_of(record, "rows")))
    for name, color, marker in zip(stages, (BLUE, ORANGE, GREEN), MARKERS, strict=False):
        rows = [row for row in rows_of(record, "rows") if row["stage"] == name]
        values = [1000 * row["seconds"] / row["count"] for row in rows]
        axes.plot([row["count"] for row in rows], values, color=color, marker=marker, label=name)
    axes.set_xlabel("rows")
    axes.set_ylabel("ms per row")


def draw_feature_cache(record: Record) -> "Figure":
    """An epoch each way, the start, and memory over the number of images."""
    figure, (epoch, start, many) = make_figure(3, 13, 3.2)
    rows = rows_of(record, "epoch")
    names = [row["contender"] for row in rows]
    draw_bars(epoch, names, [row["seconds"] for row in rows], [BLUE, ORANGE, GREY], "seconds of an epoch")
    rows = rows_of(record, "start")
    draw_bars(
        start,
        [f"{row['contender']} start" for row in rows],
        [row["seconds"] for row in rows],
        [ORANGE, BLUE],
        "seconds until the pictures are ready",
    )
    rows = rows_of(record, "many")
    counts = [row["count"] for row in rows]
    own = [row["memory_mb"] for row in rows]
    resident = [row["memory_mb"] + row["mapped_mb"] for row in rows]
    many.plot(counts, own, color=BLUE, marker="o", label="its own")
    many.plot(counts, resident, color=GREY, marker="s", linestyle="dotted", label="and pages of files")
    many.legend(frameon=False, fontsize=8)
    many.set_xscale("log")
    many.set_ylim(0, 1.3 * max(resident))
    many.set_xlabel("images cached")
    many.set_ylabel("memory, MB more")
    return figure


def draw_serving(record: Record) -> "Figure":
    """Texts a second through the pipeline, and of a batch by each backend."""
    figure, panels = make_figure(2, 13, 3.6)
    shown = (
        ("pipeline", "num_texts", BLUE, "pipeline, texts a second"),
        ("backend", "batch_size", GREEN, "one batch, texts a second"),
    )
    for axes, (kind, setting, color, label) in zip(panels, shown, strict=True):
        rows = rows_of(record, kind)
        speeds = [record["settings"][setting] / row["seconds"] for row in rows]
        draw_bars(axes, [row["contender"] for row in rows], speeds, [color] * len(rows), label)
    return figure


FIGURES: dict[str, "Callable[[Record], Figure]"] = {
    "fusion_price": draw_fusion_price,
    "peers": draw_peers,
    "growth": draw_growth,
    "feature_cache": draw_feature_cache,
    "serving": draw_serving,
}
