import base64
import io

import numpy as np
import PIL.Image
import pytest

from vtfusion.app.pages import escape, html_page, html_table, image_data_uri, thumbnail

NASTY = "<script>alert('x')</script> & \"quoted\""


def test_text_is_escaped_everywhere():
    assert escape(NASTY) == "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;quoted&quot;"
    page = html_page(NASTY, html_table([NASTY], [[NASTY], [3]]))
    assert "<script" not in page and page.count("&lt;script&gt;") == 4
    assert "<td class=number>3</td>" in page


def test_a_page_fetches_nothing():
    page = html_page("t", "b")
    assert page.startswith("<!DOCTYPE html>") and 'charset="utf-8"' in page
    assert "default-src 'none'" in page
    assert not any(word in page for word in ("http:", "https:", "src=", "href=", "@import", "url("))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_a_picture_comes_back_from_its_text(mode):
    picture = PIL.Image.new("RGB", (400, 100), (200, 30, 30)).convert(mode)
    small = thumbnail(picture, max_side=100)
    assert small.size == (100, 25) and picture.size == (400, 100)  # the original is left alone
    uri = image_data_uri(small)
    kind, content = uri.split(",")
    assert kind == "data:image/jpeg;base64"
    back = PIL.Image.open(io.BytesIO(base64.b64decode(content)))
    assert back.size == (100, 25)
    if mode == "RGB":
        np.testing.assert_allclose(np.asarray(back)[10, 50], (200, 30, 30), atol=8)


def test_a_small_picture_keeps_its_size():
    picture = PIL.Image.new("RGB", (10, 20))
    small = thumbnail(picture)
    assert small.size == (10, 20) and small is not picture
    assert thumbnail(np.zeros((20, 10, 3), dtype=np.uint8)).size == (10, 20)
