"""The forest plot of an image ablation."""

import PIL.Image
import pytest

from vtfusion.app.ablation_plot import plot_ablation, save_ablation
from vtfusion.training.ablation import TEXT_ONLY, AblationReport, Difference


def ablation(metric="F1", part="LOC"):
    pairs = [("true", "shuffled"), ("true", TEXT_ONLY), ("true", "blank"), ("true", "none"), ("none", TEXT_ONLY)]
    differences = [
        Difference(first, second, score, 0.01 * place, 0.01 * place - 0.02, 0.01 * place + 0.02, 0.5, (0.0, 0.02 * place))
        for place, (first, second) in enumerate(pairs)
        for score in (metric, part)
    ]  # fmt: skip
    return AblationReport(metric, (0, 1), 100, 60, 0.9, {"true": {metric: [0.5, 0.6]}}, differences)


def test_missing_matplotlib_is_said_by_the_ablation(hide_package, tmp_path, capsys):
    hide_package("matplotlib")
    save_ablation(ablation(), tmp_path)
    assert "No figure of the ablation" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_forest_plot_draws_every_comparison_at_its_place(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib (the optional extra `plots`) is not installed")
    [axes] = plot_ablation(ablation()).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    # the two that decide with their parts, then the others
    assert names == [
        "true image − shuffled image", "LOC", "true image − text-only twin", "LOC",
        "true image − blank image", "true image − no image", "no image − text-only twin",
    ]  # fmt: skip
    bars = [line.get_xdata() for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2]
    bars = [bar for bar in bars if bar[0] != bar[1]]
    assert [pytest.approx(tuple(bar)) for bar in bars] == [
        (-2, 2), (-2, 2), (-1, 3), (-1, 3), (0, 4), (1, 5), (2, 6),
    ]  # fmt: skip
    assert "90 % interval" in axes.get_xlabel()
    assert axes.get_title(loc="left").replace("\n", " ") == ablation().verdict
    save_ablation(ablation(), tmp_path)
    assert PIL.Image.open(tmp_path / "image_ablation.png").width > 1000


def test_a_log_likelihood_is_drawn_in_nats_and_alone(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib (the optional extra `plots`) is not installed")
    [axes] = plot_ablation(ablation("log_likelihood", "bleu")).axes
    assert "bleu" not in [label.get_text() for label in axes.get_yticklabels()]
    assert "log_likelihood, nats" in axes.get_xlabel()
    bars = [line.get_xdata() for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2]
    assert next(tuple(bar) for bar in bars if bar[0] != bar[1]) == pytest.approx((-0.02, 0.02))
