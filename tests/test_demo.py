"""The demo: what it says, what it refuses, and how its page works in a real browser."""

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor
from typer.testing import CliRunner

from hub_server import running_hub
from tiny import randomize_fusion, tiny_config
from tokenizers_for_tests import TOKENIZERS
from vtfusion import (
    VTFusionForMaskedLM,
    VTFusionForSequenceClassification,
    VTFusionForTokenClassification,
    VTFusionProcessor,
    VTFusionTextClassificationPipeline,
    VTFusionTokenClassificationPipeline,
)
from vtfusion.app import cli, demo, demo_answer
from vtfusion.app.demo_answer import Limits, answer, preview, read_inputs
from vtfusion.app.demo_examples import DemoExample, find_examples
from vtfusion.app.space import requirements, write_space
from vtfusion.training.files import seal

LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC", 5: "B-ORG", 6: "I-ORG"}
RED, BLUE = (230, 20, 20), (20, 20, 230)
LIMITS = Limits(characters=300, megabytes=1)


def png(color=RED, size=(40, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def processor():
    return VTFusionProcessor(ViTImageProcessor(size={"height": 32, "width": 32}), TOKENIZERS["bert"]())


class ColourNer(VTFusionForTokenClassification):
    """Only the picture tells what "john smith" and "paris" are: a person if it is red, a place if it is blue."""

    names = TOKENIZERS["bert"]().convert_tokens_to_ids(["john", "paris", "smith"])

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.vtfusion.get_visual_features = self.visual_features  # the pipeline encodes images first

    def visual_features(self, pixel_values, **kwargs):
        features, boxes = type(self.vtfusion).get_visual_features(self.vtfusion, pixel_values, **kwargs)
        red, _, blue = pixel_values.mean((-2, -1)).unbind(-1)
        return features.abs() * torch.sign(red - blue)[..., None, None], boxes

    def forward(self, input_ids=None, visual_embeds=None, image_mask=None, **kwargs):
        outputs = super().forward(input_ids=input_ids, visual_embeds=visual_embeds, image_mask=image_mask, **kwargs)
        kinds = ["ORG"] * len(input_ids)
        for row in range(len(input_ids) if visual_embeds is not None else 0):
            if image_mask is None or image_mask[row].any():
                kinds[row] = "PER" if visual_embeds[row, 0].sum() > 0 else "LOC"
        ids = {label: index for index, label in LABELS.items()}
        outputs.logits = torch.zeros_like(outputs.logits)
        outputs.logits[..., 0] = 5.0
        for row, tokens in enumerate(input_ids.tolist()):
            for place, token in enumerate(tokens):
                if token in self.names:
                    start = "I-" if token == self.names[2] else "B-"
                    outputs.logits[row, place, ids[start + kinds[row]]] = 9.0
        return outputs


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    model = ColourNer(tiny_config("bert", "resnet", num_labels=len(LABELS), id2label=LABELS)).eval()
    randomize_fusion(model)
    return VTFusionTokenClassificationPipeline(model=model, processor=processor(), device="cpu")


@pytest.fixture(scope="module")
def worker():
    with ThreadPoolExecutor(max_workers=1) as threads:
        yield threads


class Chips(HTMLParser):
    """The marked words of each side, and the texts of alternatives."""

    def __init__(self, page):
        super().__init__()
        self.sides, self.alternatives, self.text, self._open = [], [], "", 0
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.alternatives += [attributes["alt"]] if tag == "img" else []
        if attributes.get("class") == "vt-sentence":
            self.sides.append([])
        if attributes.get("class") == "vt-entity":
            self.sides[-1].append("")
            self._open = True

    def handle_endtag(self, tag):
        self._open = self._open and tag not in ("mark", "label")

    def handle_data(self, data):
        self.text += data
        if self._open:
            self.sides[-1][-1] += data

    def words(self):
        return [[" ".join(chip.split()) for chip in side] for side in self.sides]


def named(entities):
    return [f"{entity['text']} {entity['entity_group']} {entity['score']:.0%}" for entity in entities]


def without_kinds(page):
    return re.sub(r" (PER|LOC|ORG) \d+%", "", Chips(page).text)


def test_both_sides_are_those_of_the_pipeline(pipe, worker):
    text, pixels = "John Smith met the fox in Paris", np.asarray(Image.open(io.BytesIO(png())))
    page = Chips(answer(pipe, worker, LIMITS, text, [png()]))
    assert page.words() == [named(pipe(text, images=pixels)), named(pipe(text))]
    assert [side[0].split()[2] for side in page.words()] == ["PER", "ORG"]
    assert "John Smith is PER with, ORG without" in page.text and "Paris is PER with, ORG without" in page.text
    assert any("heat map of John Smith" in alternative for alternative in page.alternatives)
    words = pipe(text, images=pixels, aggregation_strategy="none")
    for word in words:
        assert f"{word['word']}{word['gate']:.2f}" in page.text


def test_a_text_alone_has_one_side(pipe, worker):
    page = Chips(answer(pipe, worker, LIMITS, "Paris", None))
    assert page.words() == [named(pipe("Paris"))] and not page.alternatives
    assert "No entity found" in Chips(answer(pipe, worker, LIMITS, "the fox", [])).text


def test_several_pictures_share_the_attention(pipe, worker):
    page = Chips(answer(pipe, worker, LIMITS, "Paris", [png(RED), png(BLUE, (10, 60))]))
    shares = [int(share) for share in re.findall(r"heat map of Paris: (\d+)%", " ".join(page.alternatives))]
    assert len(shares) == 2 and sum(shares) in (99, 100, 101)
    assert "With the pictures" in page.text


@pytest.mark.parametrize(("size", "shown"), [((1, 640), (1, 320)), ((2, 1400), (1, 320)), ((2000, 3), (320, 1))])
def test_a_strip_is_shown_a_pixel_wide(pipe, worker, size, shown):
    for page in (answer(pipe, worker, LIMITS, "Paris", [png(size=size)]), preview(LIMITS, [png(size=size)])):
        pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
        assert {Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures} == {shown}


@pytest.mark.parametrize("text", ["<script>alert(1)</script> paris", "a & b < paris > \"'", "paris {{x}} ${y}"])
def test_texts_are_shown_as_they_are(pipe, worker, text):
    page = answer(pipe, worker, LIMITS, text, [png()])
    assert "<script" not in page and text in without_kinds(page)


def test_no_word_is_lost_between_entities_and_lines(pipe, worker):
    text = "the fox\nJohn   Smith,  (Paris)\n\tlower"
    assert text in without_kinds(answer(pipe, worker, LIMITS, text, None))


CUT = png(size=(300, 200))[:200]


@pytest.mark.parametrize(
    ("text", "files", "message"),
    [
        (None, None, "type a text first"),
        (" \n ", [png()], "type a text first"),
        ("a" * 301, None, "301 characters; this demo takes 300 at most"),
        ("fox \ud800", None, "The text has a broken character"),
        ("fox", [png()] * 5, "5 pictures; this demo takes 4 at most"),
        ("fox", [png(), b"no picture"], "Picture 2 cannot be read"),
        ("fox", [b""], "Picture 1 cannot be read"),
        ("fox", [CUT], "Picture 1 cannot be read"),
        ("fox", [bytes(2**20 + 1)], "Picture 1 has more than 1 MB"),
    ],
)
def test_what_is_wrong_is_said_without_a_path(pipe, worker, text, files, message):
    page = answer(pipe, worker, LIMITS, text, files)
    assert message in page and 'role="alert"' in page
    assert not re.search(r"/\w+/|\.py|object at|Error", Chips(page).text)


def test_a_picture_of_too_many_pixels_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="has 1,000 pixels at most"):
        read_inputs("fox", [png()], LIMITS)


def test_a_slow_answer_is_given_up(pipe, worker, monkeypatch):
    monkeypatch.setattr(demo_answer, "analyse", lambda *inputs: time.sleep(0.5))
    page = answer(pipe, worker, Limits(seconds=0.05), "fox", None)
    assert "took more than 0.05 seconds" in page


def classifier(**options):
    torch.manual_seed(0)
    model = VTFusionForSequenceClassification(tiny_config("bert", "resnet", **options)).eval()
    randomize_fusion(model, 1.0)
    return VTFusionTextClassificationPipeline(model=model, processor=processor(), device="cpu")


def test_labels_with_and_without_the_picture(worker):
    pipe = classifier(num_labels=3, id2label={0: "bad", 1: "fair", 2: "good"})
    page = answer(pipe, worker, LIMITS, "the fox", [png()])
    cells = re.findall(r'<th scope="row">(\w+)</th>.*?(\d+)%</td>.*?(\d+)%</td>', page)
    expected = pipe({"text": "the fox", "image": np.asarray(Image.open(io.BytesIO(png())))}, top_k=None)
    without = {label["label"]: label["score"] for label in pipe("the fox", top_k=None)}
    for (label, score, other), wanted in zip(cells, expected, strict=True):
        assert (label, score) == (wanted["label"], f"{wanted['score']:.0%}"[:-1])
        assert other == f"{without[label]:.0%}"[:-1]
    assert any(score != other for _, score, other in cells)
    alone = answer(pipe, worker, LIMITS, "the fox", None)
    assert "Without the" not in alone and alone.count("</tr>") == 4


def test_a_value_is_no_percentage(worker):
    pipe = classifier(num_labels=1, id2label={0: "stars"}, problem_type="regression")
    value = pipe("the fox")["score"]
    page = answer(pipe, worker, LIMITS, "the fox", [png()])
    assert f"{value:.3g}" in page and "%</td>" not in page


def save(model, folder):
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    torch.manual_seed(0)
    model = VTFusionForTokenClassification(tiny_config("bert", "resnet", num_labels=7, id2label=LABELS))
    return save(model, tmp_path_factory.mktemp("models") / "posts")


def test_other_heads_are_refused_before_they_are_loaded(tmp_path):
    folder = save(VTFusionForMaskedLM(tiny_config("bert", "resnet")), tmp_path)
    for command in (["demo", folder], ["space", folder, "--output", str(tmp_path / "space")]):
        error = CliRunner().invoke(cli.app, command).exception
        assert isinstance(error, ValueError)
        assert "VTFusionForMaskedLM. The demo shows VTFusionForTokenClassification and" in str(error)
    assert not (tmp_path / "space").exists()


def test_a_missing_gradio_names_the_extra(hide_package, model_folder):
    hide_package("gradio")
    error = CliRunner().invoke(cli.app, ["demo", model_folder]).exception
    assert isinstance(error, ImportError) and "pip install vtfusion[demo]" in str(error)


def test_examples_come_from_a_file_the_model_or_the_pen(pipe, tmp_path):
    drawn = find_examples(str(tmp_path), pipe)
    assert len(drawn) == 3 and [len(example.pictures) for example in drawn] == [1, 1, 0]
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "a.png").write_bytes(png())
    rows = [{"text": f"text {row}", "images": ["a.png"] if row else []} for row in range(6)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "examples" / "metadata.jsonl").write_text(lines, encoding="utf-8")
    found = find_examples(str(tmp_path), pipe)
    assert [example.text for example in found] == ["text 0", "text 1", "text 2", "text 3"]
    assert [len(example.pictures) for example in found] == [0, 1, 1, 1]
    (tmp_path / "words.jsonl").write_text('{"tokens": ["We", "saw", "Paris"]}\n', encoding="utf-8")
    assert find_examples(str(tmp_path), pipe, tmp_path / "words.jsonl") == [DemoExample("We saw Paris", [])]


# The Space ----------------------------------------------------------------------------------------------------------


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1,localhost", **more}


def test_a_space_holds_the_model_the_code_and_what_they_need(model_folder, tmp_path):
    pytest.importorskip("gradio")
    (Path(model_folder) / "predictions.jsonl").write_text("private", encoding="utf-8")
    folder = write_space(model_folder, tmp_path / "space", [DemoExample("paris", [Image.new("RGB", (9, 9))])], "Posts")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"app.py", "README.md", "requirements.txt", "model/model.safetensors", "vtfusion/app/demo.py"} <= files
    assert {"vtfusion/__init__.py", "vtfusion/training/prediction.py", "examples/1-1.png"} <= files
    assert not any("predictions" in name or "test" in name or ".git" in name for name in files)
    assert "sdk: gradio" in (folder / "README.md").read_text(encoding="utf-8")
    for name in ("app.py", "README.md", "requirements.txt", "model/config.json", "examples/metadata.jsonl"):
        assert str(tmp_path) not in (folder / name).read_text(encoding="utf-8"), name
    assert all(re.fullmatch(r"[\w.-]+==[\d.]+\w*", line) for line in requirements())
    assert not any(line.startswith(("gradio", "pytest")) for line in requirements())
    assert any(line.startswith("matplotlib==") for line in requirements())


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_earlier_space_is_written_anew_and_what_else_lies_there_stays(model_folder, tmp_path):
    pytest.importorskip("gradio")
    folder = write_space(model_folder, tmp_path / "space", [DemoExample("paris", [Image.new("RGB", (9, 9))])])
    for name in (
        ".git/HEAD",
        "notes.txt",
        "vtfusion/__pycache__/words_vtfusion.cpython-313.pyc",
    ):  # it ran from a clone
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    write_space("someone/ner", folder, [])
    fresh = contents(write_space("someone/ner", tmp_path / "fresh", []))
    added = {".git/HEAD", "notes.txt", "vtfusion/__pycache__/words_vtfusion.cpython-313.pyc"}
    assert {**contents(folder), "manifest.json": b""} == {**fresh, **dict.fromkeys(added, b""), "manifest.json": b""}


def leave_a_checkout(folder):
    for name in ("vtfusion/.git/HEAD", "vtfusion/app/demo.py", "model/model.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine", encoding="utf-8")


def leave_a_sealed_checkpoint(folder):
    folder.mkdir()
    (folder / "model.safetensors").write_text("mine", encoding="utf-8")
    seal(folder)


def leave_a_space_and(name):
    def leave(folder):
        write_space("someone/ner", folder, [])
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine", encoding="utf-8")

    return leave


@pytest.mark.parametrize(
    ("leave", "message"),
    [
        (leave_a_checkout, "holds something else than a Space"),
        (leave_a_sealed_checkpoint, "holds something else than a Space"),
        (leave_a_space_and("model/model.safetensors"), "model.safetensors was not written by `vtfusion space`"),
        (leave_a_space_and("vtfusion/.git/HEAD"), "HEAD was not written by `vtfusion space`"),
        (leave_a_space_and("README.md"), "README.md has 4 bytes and not"),
        (leave_a_space_and("examples/metadata.jsonl"), "metadata.jsonl has 4 bytes and not 0"),
    ],
)
def test_what_somebody_else_wrote_is_not_replaced(model_folder, tmp_path, leave, message):
    pytest.importorskip("gradio")
    leave(tmp_path / "o")
    before = contents(tmp_path / "o")
    with pytest.raises(FileExistsError, match=message):
        write_space(model_folder, tmp_path / "o", [])
    assert contents(tmp_path / "o") == before


def test_a_model_in_the_space_is_refused(model_folder, tmp_path):
    pytest.importorskip("gradio")
    folder = write_space(model_folder, tmp_path / "space", [])
    before = contents(folder)
    for model in (folder / "model", folder / ".." / "space" / "model"):
        with pytest.raises(ValueError, match="which the Space is written into"):
            write_space(str(model), folder, [])
    assert contents(folder) == before


def test_a_space_that_cannot_be_built_leaves_the_earlier_one(model_folder, tmp_path):
    pytest.importorskip("gradio")
    folder = write_space("someone/ner", tmp_path / "space", [])
    before = contents(folder)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    for target in (folder, tmp_path / "new"):
        with pytest.raises(ValueError, match="no model of VTFusion"):
            write_space(str(tmp_path / "broken"), target, [])
        write_space("someone/ner", target, [])  # what was begun is in nobody's way
    assert contents(folder).keys() == before.keys()


def test_a_space_of_a_model_on_the_hub_names_it(tmp_path):
    pytest.importorskip("gradio")
    folder = write_space("someone/ner", tmp_path / "space", [], revision="v1")
    assert "run_demo('someone/ner', title='someone/ner'" in (folder / "app.py").read_text(encoding="utf-8")
    assert "revision='v1'" in (folder / "app.py").read_text(encoding="utf-8")
    assert "models:\n- someone/ner" in (folder / "README.md").read_text(encoding="utf-8")
    assert not (folder / "model").exists()


@pytest.mark.slow
def test_a_pushed_space_runs(model_folder, tmp_path):
    pytest.importorskip("gradio")
    (tmp_path / "hub").mkdir()
    with running_hub(tmp_path / "hub", {"token-of-owner": "owner"}) as hub:
        hub_only = environment(
            HF_ENDPOINT=hub.endpoint, HF_TOKEN="token-of-owner", HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1"
        )
        command = [sys.executable, "-m", "vtfusion.app.cli", "space", model_folder, "--output", str(tmp_path / "s")]
        command += ["--push", "owner/demo"]
        done = subprocess.run(command, env=hub_only, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        pushed = hub.files("owner/demo", kind="space")
    for name, content in pushed.items():
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / name).write_bytes(content)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # the code beside the app runs, not what is installed here
    code = tmp_path / "clone" / "vtfusion" / "app" / "demo.py"
    code.write_text(code.read_text(encoding="utf-8").replace("The demo is at", "The clone is at"), encoding="utf-8")
    command = [sys.executable, str(tmp_path / "clone" / "app.py")]
    space = environment(GRADIO_SERVER_NAME="127.0.0.1", GRADIO_SERVER_PORT=str(port))
    with subprocess.Popen(command, env=space, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            line = next(line for line in process.stdout if line.startswith("The clone is at"))
            assert f":{port}" in line
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=60) as response:
                assert "posts" in response.read().decode()
        finally:
            process.terminate()


# The browser --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outside():
    """What this process asked of anything but this machine."""
    asked = []
    real = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        if host not in (None, "localhost", "127.0.0.1", "::1", b"localhost", b"127.0.0.1"):
            asked.append(host)
            raise socket.gaierror(f"{host} is outside")
        return real(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield asked


@pytest.fixture(scope="module")
def url(pipe, outside):
    pytest.importorskip("gradio", reason="Gradio (the optional extra `demo`) is not installed")
    examples = [DemoExample("We saw Paris", [Image.new("RGB", (20, 20), BLUE)]), DemoExample("the fox", [])]
    page = demo.build_demo(pipe, "Names in posts", examples, LIMITS)
    yield demo.launch_demo(page, limits=LIMITS)
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for found in map(shutil.which, names) if found), None)
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        # without its sandbox, which root may not have
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visitor:
    """A person with a browser of their own."""

    def __init__(self, browser, url, **options):
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(60_000)
        self.requests = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page = self.context.new_page()
        self.page.goto(url)
        self.text = self.page.get_by_role("textbox", name="Text")
        self.text.wait_for()
        self.result = self.page.locator("#vt-result")

    def upload(self, *files):
        pictures = [
            {"name": f"{number}.png", "mimeType": "image/png", "buffer": file} for number, file in enumerate(files)
        ]
        self.page.locator("#vt-files input[type=file]").set_input_files(pictures)

    def previews(self, count):
        self.page.locator(".vt-pictures > img[alt^=Picture]").nth(count - 1).wait_for()

    def sides(self, count=2):
        """The marked words of each side, once they are there."""
        self.result.locator(".vt-sentence").nth(count - 1).wait_for()
        return [side.locator(".vt-entity").all_inner_texts() for side in self.result.locator(".vt-sentence").all()]

    def fits(self):
        return self.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.fixture
def visit(browser, url):
    visitors = []

    def arrive(**options):
        visitors.append(Visitor(browser, url, **options))
        return visitors[-1]

    yield arrive
    for visitor in visitors:
        visitor.context.close()


def test_type_upload_and_read(visit):
    visitor = visit()
    visitor.upload(png(RED))
    visitor.previews(1)
    visitor.text.fill("John Smith went to Paris")
    visitor.page.get_by_role("button", name="Analyse").click()
    seen, unseen = visitor.sides()
    assert [chip.split() for chip in seen] == [["John", "Smith", "PER", "98%"], ["Paris", "PER", "98%"]]
    assert [chip.split() for chip in unseen] == [["John", "Smith", "ORG", "98%"], ["Paris", "ORG", "98%"]]
    maps = visitor.result.locator("img[alt*='heat map']")
    assert [picture.is_visible() for picture in maps.all()] == [True, False]
    visitor.result.locator("label", has_text="Paris").click()
    assert [picture.is_visible() for picture in maps.all()] == [False, True]
    # a new result starts with its own first entity, whatever was chosen before
    visitor.text.fill("Paris is lower than John")
    visitor.text.press("Enter")
    visitor.result.locator(".vt-gates", has_text="lower").wait_for()
    assert [picture.is_visible() for picture in maps.all()] == [True, False]


def test_the_keyboard_is_enough(visit):
    visitor = visit()
    focused = "document.activeElement"
    for _ in range(20):
        visitor.page.keyboard.press("Tab")
        if visitor.page.evaluate(f"{focused}.tagName") == "TEXTAREA":
            break
    visitor.page.keyboard.type("Paris, John")
    for _ in range(20):
        visitor.page.keyboard.press("Tab")
        if "upload" in (visitor.page.evaluate(f"{focused}.getAttribute('aria-label')") or ""):
            break
    else:
        pytest.fail("the keyboard does not reach the upload")
    # what it opens is the system's dialog, which a headless browser does not show
    visitor.upload(png(BLUE))
    visitor.previews(1)
    visitor.text.focus()
    visitor.page.keyboard.press("Enter")
    assert [chip.split()[1] for chip in visitor.sides()[0]] == ["LOC", "LOC"]
    for _ in range(20):
        visitor.page.keyboard.press("Tab")
        if visitor.page.evaluate(f"{focused}.type") == "radio":
            break
    visitor.page.keyboard.press("ArrowRight")
    maps = visitor.result.locator("img[alt*='heat map']")
    assert [picture.is_visible() for picture in maps.all()] == [False, True]


def test_examples_run_at_a_click_and_can_be_cleared(visit):
    visitor = visit()
    visitor.page.get_by_role("button", name="Example 1").click()
    assert [side[0].split()[:2] for side in visitor.sides()] == [["Paris", "LOC"], ["Paris", "ORG"]]
    assert visitor.text.input_value() == "We saw Paris"
    visitor.page.get_by_role("button", name="Clear all").click()
    visitor.result.locator(".vt-sentence").first.wait_for(state="detached")
    assert visitor.text.input_value() == ""


def test_bad_files_and_no_text_are_told(visit):
    visitor = visit()
    alert = visitor.page.get_by_role("alert")
    visitor.text.press("Enter")
    alert.get_by_text("type a text first").wait_for()
    visitor.upload(b"this is a text")
    alert.get_by_text("Picture 1 cannot be read").wait_for()
    visitor.text.fill("Paris")
    visitor.text.press("Enter")
    visitor.result.get_by_text("Picture 1 cannot be read").wait_for()
    visitor.upload(bytes(2 * 2**20))
    visitor.page.get_by_text("exceed the maximum allowed size").wait_for()


def test_two_at_once_get_their_own(visit):
    visitors = [visit(), visit()]
    for visitor, color, text in zip(visitors, (RED, BLUE), ("Paris", "John Smith"), strict=True):
        visitor.upload(png(color))
        visitor.previews(1)
        visitor.text.fill(text)
    for visitor in visitors:
        visitor.text.press("Enter")
    found = [[chip.split()[:-1] for chip in visitor.sides()[0]] for visitor in visitors]
    assert found == [[["Paris", "PER"]], [["John", "Smith", "LOC"]]]


def test_a_narrow_screen_needs_no_sideways_scrolling(visit):
    visitor = visit(viewport={"width": 375, "height": 700})
    assert visitor.fits()
    visitor.upload(png(size=(900, 60)), png(BLUE))
    visitor.previews(2)
    visitor.text.fill("John Smith " + "fox" * 40 + " (Paris)")
    visitor.text.press("Enter")
    visitor.sides()
    assert visitor.fits()
    visitor.page.set_viewport_size({"width": 320, "height": 700})
    assert visitor.fits()


def test_texts_are_no_code_in_the_browser(visit):
    visitor = visit()
    text = "<img src=x onerror=document.title='x'> Paris ${1+1} {{1}}"
    visitor.text.fill(text)
    visitor.text.press("Enter")
    visitor.sides(1)
    assert text.replace("Paris", "Paris ORG 98%") in visitor.result.locator(".vt-sentence").inner_text()
    assert visitor.page.title() == "Names in posts"


def test_nothing_is_asked_of_others_and_no_path_is_shown(visit, url, outside):
    visitor = visit()
    visitor.page.get_by_role("button", name="Example 1").click()
    visitor.sides()
    local = ("http://127.0.0.1:", "data:", "blob:")
    assert visitor.requests and all(request.startswith(local) for request in visitor.requests)
    assert outside == []
    # An upload has an address below the folder that Gradio keeps it in; nothing else of this machine is there.
    uploads = os.path.join(tempfile.gettempdir(), "gradio")
    shown = visitor.page.content().replace(uploads, "")
    with urllib.request.urlopen(f"{url}config", timeout=60) as response:
        shown += response.read().decode().replace(uploads, "")
    for place in (Path.home(), Path.cwd(), Path(demo.__file__).parent, tempfile.gettempdir(), sys.prefix):
        assert f"{place}/" not in shown, place


def post(address, content, kind):
    request = urllib.request.Request(address, content, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read().decode()


def upload(url, content):
    head = '--x\r\nContent-Disposition: form-data; name="files"; filename="../../a.png"\r\n\r\n'
    body = head.encode() + content + b"\r\n--x--\r\n"
    return post(f"{url}gradio_api/upload", body, "multipart/form-data; boundary=x")


def test_uploads_beyond_the_limit_are_refused_by_the_server(url):
    """Whoever asks it without the page, which refuses them too."""
    (kept,) = json.loads(upload(url, png()))
    uploads = Path(tempfile.gettempdir(), "gradio").resolve()
    assert Path(kept).resolve().is_relative_to(uploads) and Path(kept).read_bytes() == png()
    with pytest.raises(urllib.error.HTTPError, match="413"):
        upload(url, bytes(LIMITS.megabytes * 2**20 + 1))


def test_an_error_that_nobody_foresaw_shows_no_path(visit, monkeypatch):
    def fail(*inputs):
        raise OSError(f"cannot read {demo.__file__}")

    monkeypatch.setattr(demo_answer, "analyse", fail)
    visitor = visit()
    visitor.text.fill("Paris")
    visitor.text.press("Enter")
    visitor.page.locator("#vt-result .error").get_by_text("Error").wait_for()
    assert "cannot read" not in visitor.page.content() and "demo.py" not in visitor.page.content()


@pytest.mark.parametrize("file", [__file__, "/etc/hostname", demo.__file__])
def test_files_of_the_server_are_not_served(url, file):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{url}gradio_api/file={file}", timeout=60)
