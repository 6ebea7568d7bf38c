"""Pictures under heat maps."""

import numpy as np
import PIL.Image
import pytest

from vtfusion.app.panels import heat_picture


def test_a_heat_picture_glows_where_the_heat_is_and_is_grey_elsewhere():
    pytest.importorskip("matplotlib", reason="matplotlib (the optional extra `plots`) is not installed")
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    heatmap = np.zeros((8, 8))
    heatmap[6, 1] = 1.0
    hot = np.asarray(heat_picture(image.resize((80, 40)), heatmap), dtype=int)
    assert hot.shape == (40, 80, 3)
    colourful = hot.max(-1) - hot.min(-1)
    cell = colourful[30:35, 10:20]
    far = colourful[:20, 40:]
    assert cell.min() > 40 and far.max() < 10
    # beside another picture that has all the attention nothing glows
    cold = np.asarray(heat_picture(image, heatmap / 1000, [heatmap / 1000, heatmap]), dtype=int)
    assert (cold.max(-1) - cold.min(-1)).max() < 10
    assert (np.asarray(heat_picture(image, np.full((2, 2), np.nan))).std() > 0).all()
