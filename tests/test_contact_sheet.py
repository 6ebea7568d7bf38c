import re

import PIL.Image
import pytest
from datasets import Dataset, DatasetDict

from vtfusion.app.contact_sheet import contact_sheet_html, draw_sheet_rows, plot_contact_sheet, sheet_note
from vtfusion.training.image_bank import BankImage, ImageBank
from vtfusion.training.pairing import pair_at_random, pair_by_lexicon, pair_by_manifest, pair_with_none

NASTY = "<script>alert(1)</script>"


@pytest.fixture
def bank(tmp_path):
    images = []
    for place, (name, color) in enumerate({"Georgia": "red", "Madrid": "green", "Rome": "blue"}.items()):
        path = tmp_path / f"{place}.png"
        PIL.Image.new("RGB", (40 + 400 * place, 30), color).save(path)
        images.append(BankImage(f"picture{place}<b>", str(path), name))
    return ImageBank(images)


def texts(*rows, **splits):
    return DatasetDict(
        {
            name: Dataset.from_dict({"tokens": list(words)})
            for name, words in {"train": rows, **splits}.items()
            if words
        }
    )


def test_what_is_on_the_sheet(bank):
    paired = pair_by_lexicon(
        texts(["in", "Georgia"], ["no"], [NASTY, "Madrid", "&", "Rome"], test=[["Rome"]]), bank, max_images=2
    )
    rows = draw_sheet_rows(paired)
    assert [(row.split, row.row, row.named, row.num_pictures) for row in rows] == [
        ("train", 0, {1}, 1),
        ("train", 2, {1, 3}, 2),
        ("test", 0, {0}, 1),
    ]
    assert rows[1].pictures[1].image.size == (240, 9)  # of 840 × 30
    note = sheet_note(paired, len(rows), seed=0)
    assert note == "3 texts drawn at random (seed 0) from the 3 with a picture; 1 of 4 texts have none."

    page = contact_sheet_html(rows, title=NASTY, note=note)
    assert "<script" not in page and "picture0<b>" not in page
    assert page.count("<img ") == page.count('src="data:image/jpeg;base64,') == 4
    assert (
        '<p dir="auto">&lt;script&gt;alert(1)&lt;/script&gt; <mark>Madrid</mark> &amp; <mark>Rome</mark></p>' in page
    )
    assert "<figcaption>picture0&lt;b&gt;</figcaption>" in page
    assert "lexicon · train, row 2" in page and note in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)

    figure = plot_contact_sheet(rows, title=NASTY, note=note)
    assert len(figure.axes) == 4
    shown = {text.get_text(): text for text in figure.texts}
    assert shown["Georgia"].get_fontweight() == "bold" and shown["in"].get_fontweight() != "bold"
    assert "picture0<b>\nlexicon · train, row 0" in shown


def test_scores_are_shown_from_high_to_low(bank, tmp_path):
    manifest = tmp_path / "m.csv"
    manifest.write_text("row,image,score\n0,0.png,0.25\n1,1.png,0.75\n2,2.png,\n")
    rows = draw_sheet_rows(pair_by_manifest(texts(["a"], ["b"], ["c"]), manifest))
    assert [row.row for row in rows] == [1, 0, 2]
    page = contact_sheet_html(rows)
    assert "1.png · score 0.750" in page and "<figcaption>2.png</figcaption>" in page
    assert "manifest · train, row 1" in page


def test_the_draw_hangs_on_the_seed_and_takes_from_every_split(bank):
    many = pair_at_random(texts(*([str(number)] for number in range(50)), test=[["x"]] * 50), bank)
    rows = draw_sheet_rows(many, 10)
    assert len(rows) == 10 and {row.split for row in rows} == {"train", "test"}
    places = [(row.split, row.row) for row in rows]
    assert places == [(row.split, row.row) for row in draw_sheet_rows(many, 10)]
    assert places != [(row.split, row.row) for row in draw_sheet_rows(many, 10, seed=1)]


def test_a_broken_picture_is_shown_as_such(bank, tmp_path):
    (tmp_path / "0.png").write_bytes(b"<b>not</b> an image")
    rows = draw_sheet_rows(pair_by_lexicon(texts(["Georgia"]), bank))
    assert rows[0].pictures[0].image is None
    page = contact_sheet_html(rows)
    assert '<div class="missing">cannot be read: the image cannot be read' in page and "<b>not" not in page
    figure = plot_contact_sheet(rows)
    assert [text.get_text() for text in figure.axes[0].texts] == ["cannot\nbe read"]


def test_names_and_problems_are_escaped_too(tmp_path):
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    named = ImageBank([BankImage("1", str(tmp_path / "1.png"), "AT&T<i>")])
    (row,) = draw_sheet_rows(pair_by_lexicon(texts(["AT&T<i>"]), named))
    row.pictures[0].image, row.pictures[0].problem = None, "<b>no</b>"
    page = contact_sheet_html([row])
    assert "<mark>AT&amp;T&lt;i&gt;</mark>" in page and "cannot be read: &lt;b&gt;no&lt;/b&gt;" in page


def test_a_sheet_without_pictures_says_so():
    rows = draw_sheet_rows(pair_with_none(texts(["a"])))
    assert rows == []
    assert "No text has a picture." in contact_sheet_html(rows)
    assert "No text has a picture." in [text.get_text() for text in plot_contact_sheet(rows).texts]


@pytest.mark.filterwarnings("ignore:Glyph")  # no font has them all; the HTML page leaves that to the browser
def test_long_texts_wide_words_and_other_scripts_fit_their_cards(bank, tmp_path):
    rows = [
        ["Georgia"] * 5000,
        ["Georgia", "w" * 3000, "end"],
        ["Georgia", "$x_1^{$", "\\frac", "%"],
        ["שלום", "Georgia", "עולם"],
        ["Georgia", "", "🙂", "東京"],
    ]
    sheet = draw_sheet_rows(pair_by_lexicon(texts(*rows), bank))
    page = contact_sheet_html(sheet)
    assert page.count("<mark>") == 5 and "… (5,000 words)" in page
    figure = plot_contact_sheet(sheet)
    figure.savefig(tmp_path / "sheet.png")
    width = figure.get_figwidth()
    renderer = figure.canvas.get_renderer()
    for text in figure.texts:
        box = text.get_window_extent(renderer)
        assert box.x1 <= width * figure.dpi and box.y0 >= 0, text.get_text()[:40]
    assert "…" in [text.get_text() for text in figure.texts]
    positions = {text.get_text(): text.get_position()[0] for text in figure.texts}
    assert positions["שלום"] > positions["עולם"]  # from right to left


def test_pictures_of_a_card_lie_apart_and_those_left_out_are_counted(bank):
    (row,) = draw_sheet_rows(pair_at_random(texts(["a"]), bank, max_images=3))
    assert row.num_pictures == 3
    boxes = [axes.get_position() for axes in plot_contact_sheet([row]).axes]
    assert len({(round(box.x0, 3), round(box.y0, 3)) for box in boxes}) == 3
    row.num_pictures = 9
    assert "6 more pictures" in contact_sheet_html([row])


def test_without_matplotlib_there_is_still_a_page(bank, hide_package):
    hide_package("matplotlib")
    rows = draw_sheet_rows(pair_by_lexicon(texts(["Georgia"]), bank))
    assert "<img " in contact_sheet_html(rows)
    with pytest.raises(ImportError, match=r"vtfusion\[plots\]"):
        plot_contact_sheet(rows)
