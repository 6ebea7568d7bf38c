"""Figures of a sentence with its entities, gates and heat maps."""

import io
import sys

import numpy as np
import PIL.Image
import pytest

from vtfusion.app.plotting import plot_entities, plot_gate

WORDS = ["We", "finally", "saw", "Kelda", "Tarn", "and", "Mirano", "."]


def entity(group, first, last, region=None, score=0.9):
    text = " ".join(WORDS[first : last + 1])
    return {
        "entity_group": group,
        "score": score,
        "words": (first, last),
        "start": 0,
        "end": len(text),
        "text": text,
        "gate": 0.5,
        "image_region": region,
    }


ENTITIES = [entity("LOC", 3, 4, {"image": 0, "box": (8, 16, 40, 48), "score": 0.7}), entity("PER", 6, 6)]


def test_missing_matplotlib_names_the_extra(hide_package):
    hide_package("matplotlib")
    for plot in (lambda: plot_entities(WORDS, []), lambda: plot_gate(["a"], [0.5])):
        with pytest.raises(ImportError, match=r"pip install vtfusion\[plots\]"):
            plot()


class TestWithMatplotlib:
    @pytest.fixture(autouse=True)
    def needs_matplotlib(self):
        pytest.importorskip("matplotlib", reason="matplotlib (the optional extra `plots`) is not installed")

    @pytest.fixture
    def image(self):
        return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))

    @staticmethod
    def texts(axes):
        return [text.get_text() for text in axes.texts]

    @staticmethod
    def save(figure):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=50)
        buffer.seek(0)
        return np.asarray(PIL.Image.open(buffer).convert("RGB"))

    def test_a_sentence_alone_is_its_words(self):
        figure = plot_entities(WORDS, [])
        assert len(figure.axes) == 1
        assert self.texts(figure.axes[0]) == WORDS
        assert (self.save(figure) < 128).any()

    def test_entities_are_labelled_in_readable_colours(self):
        axes = plot_entities(WORDS, ENTITIES, title="Prediction").axes[0]
        assert {"LOC 0.90", "PER 0.90"} < set(self.texts(axes))
        assert axes.figure.texts[0].get_text() == "Prediction"
        labels = {text.get_text(): text for text in axes.texts}
        assert labels["PER 0.90"].get_color() == "white"  # on blue
        assert labels["LOC 0.90"].get_color() == "black"  # on orange
        faces = {patch.get_facecolor() for patch in axes.patches}
        assert len(faces) == 4  # a strip and a body for each of the two types

    def test_types_of_any_name_get_different_colours(self):
        groups = ["PER", "LOC", "WEAPON", "FOOD", "ORG", "PROD", "MISC", "LAW"]
        words = [f"w{index}" for index in range(len(groups))]
        entities = [{"entity_group": group, "words": (index, index)} for index, group in enumerate(groups)]
        axes = plot_entities(words, entities).axes[0]
        assert set(groups) < set(self.texts(axes))
        assert len({patch.get_edgecolor() for patch in axes.patches if hasattr(patch, "get_boxstyle")}) == len(groups)

    def test_gates_are_drawn_under_the_words(self):
        gates = np.linspace(0, 1, len(WORDS))
        axes = plot_entities(WORDS, [], gates=gates).axes[0]
        values = [text for text in self.texts(axes) if text not in WORDS]
        assert values == [f"{gate:.2f}" for gate in gates]
        widths = [patch.get_width() for patch in axes.patches]
        np.testing.assert_allclose(np.divide(widths[1::2], widths[::2]), gates, atol=1e-6)

    def test_heat_maps_of_one_entity_share_a_scale(self, image):
        strong, weak = np.full((2, 2), 0.2), np.full((4, 4), 0.0125)
        heatmaps = [{"words": (3, 4), "image": i, "heatmap": heat} for i, heat in enumerate((strong, weak))]
        panels = [
            axes for axes in plot_entities(WORDS, ENTITIES, [image, image], heatmaps).axes if len(axes.images) == 2
        ]
        assert "80% of its attention" in panels[0].get_title() and "20% of its attention" in panels[1].get_title()
        np.testing.assert_allclose(panels[0].images[1].get_array(), 1.0)
        np.testing.assert_allclose(panels[1].images[1].get_array(), 0.25)

    def test_heat_maps_cover_their_picture(self, image):
        heatmaps = [
            {"words": (3, 4), "image": 0, "heatmap": np.eye(8)},
            {"words": (6, 6), "image": 0, "heatmap": np.full((4, 2), 0.25)},
        ]
        figure = plot_entities(WORDS, ENTITIES, image, heatmaps)
        assert len(figure.axes) == 4
        _, original, first, second = figure.axes
        np.testing.assert_array_equal(original.images[0].get_array(), np.asarray(image))
        assert "Kelda Tarn" in first.get_title() and "LOC" in first.get_title()
        assert "Mirano" in second.get_title() and "100% of its attention" in second.get_title()
        for axes, heatmap in ((first, heatmaps[0]), (second, heatmaps[1])):
            picture, heat = axes.images
            assert heat.get_array().shape == heatmap["heatmap"].shape
            # The heat map covers the picture exactly, whatever its own size.
            assert tuple(heat.get_extent()) == tuple(picture.get_extent()) == (-0.5, 63.5, 63.5, -0.5)
            np.testing.assert_allclose(heat.get_array(), heatmap["heatmap"] / heatmap["heatmap"].max())
        # The region is outlined on the picture and on its own heat map only.
        assert [len(axes.patches) for axes in (original, first, second)] == [2, 2, 0]
        assert original.patches[1].get_bbox().bounds == (7.5, 15.5, 32, 32)
        assert original.get_position().x0 < first.get_position().x0 < second.get_position().x0
        assert original.get_position().y0 == first.get_position().y0
        self.save(figure)

    def test_panels_of_different_shapes_do_not_overlap(self, image):
        images = [image, image.resize((100, 20)).convert("L"), np.random.default_rng(0).random((80, 10, 3))]
        heatmaps = [
            {"words": (3, 4), "image": index, "heatmap": np.random.default_rng(index).random((7, 7))}
            for index in (0, 0, 0, 0, 2)
        ]
        figure = plot_entities(WORDS, ENTITIES, images, heatmaps, gates=[0.5] * len(WORDS))
        assert len(figure.axes) == 1 + len(images) + len(heatmaps)
        assert [axes.get_title() for axes in figure.axes if axes.get_title().startswith("Picture")] == [
            "Picture 1",
            "Picture 2",
            "Picture 3",
        ]
        boxes = [axes.get_position() for axes in figure.axes]
        for index, box in enumerate(boxes):
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 1 and box.y1 <= 1
            assert not any(box.overlaps(other) for other in boxes[index + 1 :])
        self.save(figure)
        assert len(plot_entities(WORDS, ENTITIES, images * 3).axes) == 1 + 9

    @pytest.mark.parametrize("value", [0.0, np.nan])
    def test_a_heat_map_without_heat_stays_dark(self, image, value):
        heatmap = {"words": (6, 6), "image": 0, "heatmap": np.full((4, 4), value)}
        figure = plot_entities(WORDS, ENTITIES, image, [heatmap])
        assert (figure.axes[2].images[1].get_array() == 0).all()
        self.save(figure)

    def test_long_sentence_is_wrapped_inside_the_figure(self):
        words = [f"word{index}" for index in range(60)] + ["x" * 500]
        # An entity that reaches over the end of a line.
        figure = plot_entities(words, [{"entity_group": "ORG", "words": (2, 25)}], gates=[0.3] * 61)
        self.save(figure)
        renderer = figure.canvas.get_renderer()
        width, height = figure.bbox.size
        boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
        assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
        assert len({round(text.get_position()[1]) for text in figure.axes[0].texts if "word" in text.get_text()}) > 3
        assert self.texts(figure.axes[0]).count("ORG") == 1

    def test_words_do_not_overlap(self):
        entities = [{"entity_group": "A-LONG-LABEL", "words": (index, index)} for index in range(0, 12, 2)]
        words = ["a", "iii"] * 6
        figure = plot_entities(words, entities, gates=[0.1] * 12)
        renderer = figure.canvas.get_renderer()
        labels = [text for text in figure.axes[0].texts if text.get_text() == "A-LONG-LABEL"]
        boxes = [text.get_window_extent(renderer) for text in labels]
        assert not any(box.overlaps(other) for index, box in enumerate(boxes) for other in boxes[index + 1 :])

    @pytest.mark.filterwarnings("ignore:Glyph")
    @pytest.mark.parametrize(
        "words",
        [
            [],
            [""],
            ["$5", "and", "$6", "\\frac{", "$"],
            ["😀", "👩‍👩‍👧", "日本"],
            ["مرحبا", "يا", "ميرانو"],
            ["a\nb", "\t"],
        ],
    )
    def test_any_word_can_be_drawn(self, words):
        entities = [{"entity_group": "$X$", "words": (0, 0), "score": 1.0}] if words else []
        gates = [float("nan"), -0.5, 1.5, 0.2, 0.1][: len(words)]
        self.save(plot_entities(words, entities, gates=gates, title="$\\oops"))
        self.save(plot_gate(words, gates))

    def test_right_to_left_sentence_starts_on_the_right(self):
        axes = plot_entities(["مرحبا", "يا", "ميرانو"], []).axes[0]
        lefts = [text.get_position()[0] for text in axes.texts]
        assert lefts == sorted(lefts, reverse=True)

    def test_gates_are_bars_with_their_values(self):
        figure = plot_gate(["We", "saw", "Mirano"], [0.1, 0.25, 0.9])
        (axes,) = figure.axes
        assert [bar.get_height() for bar in axes.patches] == [0.1, 0.25, 0.9]
        assert self.texts(axes) == ["0.10", "0.25", "0.90"]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["We", "saw", "Mirano"]
        assert len(plot_gate([f"w{index}" for index in range(60)], np.zeros(60)).axes) == 3

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"gates": [0.5]}, r"one value per word \(8\)"),
            ({"entities": [{"entity_group": "PER", "words": (7, 8)}]}, r"entities\[0\] has the words \(7, 8\)"),
            (
                {"images": [np.zeros((8, 8))], "entities": [entity("PER", 6, 6, {"image": 1, "box": (0, 0, 4, 4)})]},
                r"entities\[0\]\['image_region'\] belongs to picture 1, but 1 were given",
            ),
            ({"heatmaps": [{"words": (0, 0), "image": 0, "heatmap": np.eye(2)}]}, r"heatmaps\[0\] belongs to picture"),
            ({"images": ["cat.png"]}, r"images\[0\] must be a PIL image"),
            ({"images": [np.zeros((3, 8, 8))]}, r"images\[0\] must be"),
            (
                {
                    "images": [np.zeros((8, 8))],
                    "heatmaps": [{"words": (0, 0), "image": 0, "heatmap": np.zeros((2, 2, 2))}],
                },
                r"shape \(height, width\)",
            ),
        ],
    )
    def test_wrong_arguments_are_named(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            plot_entities(WORDS, **{"entities": [], **arguments})
        with pytest.raises(ValueError, match="one value per word"):
            plot_gate(WORDS, [0.1])

    def test_global_state_is_untouched(self):
        before = "matplotlib.pyplot" in sys.modules
        plot_gate(WORDS, [0.1] * len(WORDS))
        plot_entities(WORDS, ENTITIES[1:])
        assert ("matplotlib.pyplot" in sys.modules) == before
