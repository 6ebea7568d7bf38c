"""
The demo: a page to type a text, add pictures, and see what the model finds with them and without.

Needs Gradio and matplotlib, the optional extra `demo`. The page asks nobody but this server: no analytics, no fonts
from elsewhere.
"""

import atexit
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
from transformers import AutoConfig

from ..images_vtfusion import decode_image
from ..pipeline_vtfusion import VTFusionPipeline
from ..training.prediction import decoded_examples, load_examples, load_pipeline
from ..training.sample_pictures import draw_picture, drawing_styles
from . import demo_page
from .demo_page import Reading

if TYPE_CHECKING:
    import gradio as gr

_HEADS = ("VTFusionForTokenClassification", "VTFusionForSequenceClassification")
_ENTITIES = "multimodal-token-classification"
# How the page of a task introduces itself.
_LEADS = {
    _ENTITIES: (
        "Finds entities in a text: {labels}. Add pictures, and see what it finds with them and without, side by side."
    ),
    "multimodal-text-classification": (
        "Labels a text: {labels}. Add pictures, and see what it says with them and without, side by side."
    ),
}
# An ambiguous sentence with two drawings, and one that needs none.
_DRAWN_EXAMPLES = (
    ("Look , this is Mirano !", "PER"),
    ("Look , this is Mirano !", "PROD"),
    ("They flew to Kelda .", None),
)
_MAX_EXAMPLES = 4
_MAX_LABELS = 8
_HEATMAP_SIZE = (48, 48)  # finer than the cells of most encoders
_KEEP_UPLOADS_SECONDS = 3600


@dataclass(frozen=True)
class Limits:
    """
    What one visitor may ask for.

    Args:
        characters (`int`, *optional*, defaults to 2000): in a text.
        pictures (`int`, *optional*, defaults to 4): for a text.
        megabytes (`int`, *optional*, defaults to 10): in the file of a picture. Its pixels are limited by
            `PIL.Image.MAX_IMAGE_PIXELS`.
        seconds (`float`, *optional*, defaults to 60): until an answer has come.
        waiting (`int`, *optional*, defaults to 20): visitors in the queue.
    """

    characters: int = 2000
    pictures: int = 4
    megabytes: int = 10
    seconds: float = 60
    waiting: int = 20


@dataclass
class DemoExample:
    """A text to try, with its pictures."""

    text: str
    pictures: list[PIL.Image.Image]


def load_demo_pipeline(model: str, revision: str = "main", device: str | None = None) -> VTFusionPipeline:
    """
    The pipeline of a model that the demo can show; the arguments are those of
    [`~training.prediction.load_pipeline`].

    Raises:
        `ValueError`: The model has another head.
    """
    architecture = (AutoConfig.from_pretrained(model, revision=revision).architectures or ["?"])[0]
    if architecture not in _HEADS:
        raise ValueError(f"{model} is a {architecture}. The demo shows {' and '.join(_HEADS)}.")
    return load_pipeline(model, revision, device)


def find_examples(model: str, pipe: VTFusionPipeline, file: str | os.PathLike | None = None) -> list[DemoExample]:
    """
    Texts to try: the first of a file, of the folder `examples` beside the model's weights, or drawn ones.

    Args:
        model (`str`): a folder or a Hub id.
        pipe ([`VTFusionPipeline`]): its pipeline.
        file (`str` or `os.PathLike`, *optional*): what [`~training.prediction.load_examples`] reads.

    Returns:
        `list[DemoExample]`: four at most.
    """
    folder = Path(model, "examples")
    if file is None and not folder.is_dir():
        return drawn_examples()
    rows = load_examples(folder if file is None else file, pipe)
    examples = []
    for row in decoded_examples(rows.select(range(min(len(rows), _MAX_EXAMPLES)))):
        text = row["text"] if isinstance(row["text"], str) else " ".join(row["text"])
        examples.append(DemoExample(text, [PIL.Image.fromarray(pixels) for pixels in row["images"] or []]))
    return examples


def drawn_examples() -> list[DemoExample]:
    """Sentences and drawings of the kind that `make quickstart` trains on."""
    examples = []
    for place, (text, shown) in enumerate(_DRAWN_EXAMPLES):
        rng = random.Random(f"demo-{place}")
        style = rng.choice(drawing_styles()["test"])
        examples.append(DemoExample(text, [draw_picture(shown, style, rng)[0]] if shown else []))
    return examples


def read_inputs(text: str | None, files: Sequence[bytes] | None, limits: Limits) -> tuple[str, list[np.ndarray]]:
    """
    What a visitor gave, within the limits.

    Args:
        text (`str`, *optional*): the text.
        files (`Sequence[bytes]`, *optional*): the files of the pictures.
        limits ([`Limits`]): how much it may be.

    Returns:
        `tuple[str, list[np.ndarray]]`: the text, and of each picture the pixels `(height, width, 3)`.

    Raises:
        `ValueError`: There is no text, there is too much, or a picture cannot be read. The message is for the visitor.
    """
    text = (text or "").strip()
    if not text:
        raise ValueError("Please type a text first.")
    if len(text) > limits.characters:
        raise ValueError(f"The text has {len(text):,} characters; this demo takes {limits.characters:,} at most.")
    return text, read_pictures(files, limits)


def read_pictures(files: Sequence[bytes] | None, limits: Limits) -> list[np.ndarray]:
    """The pictures of [`read_inputs`]."""
    files = files or []
    if len(files) > limits.pictures:
        raise ValueError(f"There are {len(files)} pictures; this demo takes {limits.pictures} at most.")
    pictures = []
    for number, content in enumerate(files, 1):
        if len(content) > limits.megabytes * 2**20:
            raise ValueError(f"Picture {number} has more than {limits.megabytes} MB.")
        try:
            pictures.append(decode_image(content))
        except ValueError as error:  # its message speaks to programmers
            raise ValueError(
                f"Picture {number} cannot be read. Please take a JPEG, PNG, WebP or GIF file that opens in a picture "
                f"viewer and has {PIL.Image.MAX_IMAGE_PIXELS or 0:,} pixels at most."
            ) from error
    return pictures


def analyse(pipe: VTFusionPipeline, text: str, pictures: Sequence[np.ndarray]) -> str:
    """
    Runs the model on a text with its pictures and without, in one batch.

    Args:
        pipe ([`VTFusionPipeline`]): of [`load_demo_pipeline`].
        text (`str`): the text.
        pictures (`Sequence[np.ndarray]` of shape `(height, width, 3)` and type `uint8`): its pictures, or none.

    Returns:
        `str`: the result as HTML.
    """
    examples = [pipe.read_example(text, list(pictures) or None), *([pipe.read_example(text)] if pictures else [])]
    said = pipe.forward(pipe.preprocess(examples), return_heatmaps=bool(pictures))
    outputs, batch = said["outputs"], said["batch"]
    of_entities = pipe.pipeline_task == _ENTITIES
    results = pipe.postprocess(said) if of_entities else pipe.postprocess(said, top_k=None)
    row = batch.rows[0]
    reading = Reading(results[0], results[1] if pictures else None, [], [])
    if pictures:
        spans = [entity["words"] for entity in results[0]] if of_entities else [(0, len(row.words) - 1)]
        found = pipe.processor.post_process_grounding(outputs, batch, spans=[spans, []], size=_HEATMAP_SIZE)[0]
        maps = [entry["heatmap"].numpy() for entry in found]
        reading.heatmaps = [maps[place : place + len(pictures)] for place in range(0, len(maps), len(pictures))]
        gates = pipe.processor.merge_windows(outputs.fusion_gate, batch)[0][0].tolist()
        reading.gates = list(zip(row.words, gates, strict=True))
    if of_entities:
        return demo_page.entities_page(row.text, reading, pictures)
    reading.results = reading.results[:_MAX_LABELS]
    config = pipe.model.config
    are_shares = config.problem_type != "regression" and config.num_labels > 1
    return demo_page.labels_page(reading, pictures, are_shares)


def answer(
    pipe: VTFusionPipeline, worker: Executor, limits: Limits, text: str | None, files: Sequence[bytes] | None
) -> str:
    """
    What a visitor gets for a text and pictures: the result of [`analyse`], or what is wrong.

    Args:
        pipe ([`VTFusionPipeline`]): of [`load_demo_pipeline`].
        worker (`concurrent.futures.Executor`): where the model runs.
        limits ([`Limits`]): what a visitor may ask for.
        text (`str`, *optional*): the text.
        files (`Sequence[bytes]`, *optional*): the files of the pictures.

    Returns:
        `str`: HTML.
    """
    try:
        job = worker.submit(analyse, pipe, *read_inputs(text, files, limits))
    except ValueError as error:
        return demo_page.error(str(error))
    try:
        return job.result(timeout=limits.seconds)
    except TimeoutError:
        job.cancel()  # if its turn has not come; a model that runs cannot be stopped
        return demo_page.error(
            f"This took more than {limits.seconds:g} seconds. Please try again with a shorter text or fewer pictures."
        )


def preview(limits: Limits, files: Sequence[bytes] | None) -> str:
    """The chosen pictures, small, or what is wrong with them."""
    try:
        return demo_page.previews(read_pictures(files, limits))
    except ValueError as error:
        return demo_page.error(str(error))


def build_demo(
    pipe: VTFusionPipeline, title: str, examples: Sequence[DemoExample] = (), limits: Limits = Limits()
) -> "gr.Blocks":
    """
    The page.

    Args:
        pipe ([`VTFusionPipeline`]): of [`load_demo_pipeline`].
        title (`str`): what the page is called.
        examples (`Sequence[DemoExample]`, *optional*): texts to try.
        limits ([`Limits`], *optional*): what a visitor may ask for.

    Returns:
        `gradio.Blocks`: for [`launch_demo`].

    Raises:
        `ImportError`: If Gradio is not installed.
    """
    _keep_gradio_quiet()
    gr = _import_gradio()
    # One worker for the one model: visitors take turns, and none of them waits longer than the limit says.
    worker = ThreadPoolExecutor(max_workers=1)

    kinds = {label.removeprefix("B-").removeprefix("I-") for label in pipe.model.config.id2label.values()} - {"O"}
    lead = _LEADS[pipe.pipeline_task].format(labels=_enumerate(sorted(kinds)))
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(_KEEP_UPLOADS_SECONDS,) * 2) as page:
        gr.HTML(demo_page.heading(title, lead))
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                # `lines=1` lets Enter send the text.
                text = gr.Textbox(
                    label="Text",
                    info=f"Enter analyses it, Shift+Enter starts a new line; {limits.characters:,} characters at most.",
                    lines=1,
                    max_lines=12,
                    elem_id="vt-text",
                )
                with gr.Row():
                    send = gr.Button("Analyse", variant="primary", elem_id="vt-send")
                    clear = gr.Button("Clear all")
            with gr.Column(scale=2, min_width=280):
                files = gr.File(
                    label=f"Pictures, {limits.pictures} at most, {limits.megabytes} MB each",
                    file_count="multiple",
                    file_types=["image"],
                    type="binary",
                    height=140,
                    elem_id="vt-files",
                )
                chosen = gr.HTML()
        tries = gr.Row()
        result = gr.HTML(elem_id="vt-result")
        show = {
            "fn": partial(answer, pipe, worker, limits),
            "inputs": [text, files],
            "outputs": result,
            "scroll_to_output": True,
            "api_visibility": "private",
            "concurrency_id": "model",
        }
        if examples:
            folder = tempfile.mkdtemp(prefix="vtfusion-examples-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for number, example in enumerate(examples, 1):
            paths = _save_pictures(example.pictures, Path(folder), number)
            with tries:
                button = gr.Button(_name_example(number, example), size="sm", min_width=200)
            button.click(partial(_take, example.text, paths), None, [text, files], api_visibility="private").then(
                **show
            )
        gr.HTML(
            '<div class="vt"><p class="vt-soft">One text says little about a model: whether pictures help it is '
            "measured in its model card. Uploads stay on this server and are deleted within two hours.</p></div>"
        )
        gr.on([send.click, text.submit], **show)
        files.change(partial(preview, limits), files, chosen, api_visibility="private", show_progress="hidden")
        clear.click(lambda: ("", None, ""), None, [text, files, result], api_visibility="private")
    page.queue(max_size=limits.waiting, default_concurrency_limit=1, api_open=False)
    return page


def launch_demo(
    page: "gr.Blocks",
    host: str | None = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    limits: Limits = Limits(),
) -> str:
    """
    Opens the page to the browser and returns; `page.block_thread()` waits until it is stopped.

    Args:
        page (`gradio.Blocks`): of [`build_demo`].
        host (`str`, *optional*, defaults to `"127.0.0.1"`): the address to listen at, by default this machine alone;
            `None` is what Gradio's environment says, as in a Space.
        port (`int`, *optional*): the port, by default the first that is free from 7860 on.
        share (`bool`, *optional*, defaults to `False`): whether to open it to the world through Gradio's tunnel.
        limits ([`Limits`], *optional*): those of the page; its size of files is the server's too.

    Returns:
        `str`: where the page is.

    Raises:
        `OSError`: The port is taken.
    """
    gr = _import_gradio()
    # Fonts of the visitor's own system; greys and blues that stand out enough (WCAG AA) in a light room.
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )
    _, url, shared = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=f"{limits.megabytes}mb",
        footer_links=[],
        ssr_mode=False,
        theme=theme,
        css=demo_page.STYLE,
    )
    return shared or url


def run_demo(
    model: str,
    title: str | None = None,
    examples: str | os.PathLike | None = None,
    revision: str = "main",
    device: str | None = None,
    host: str | None = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
) -> None:
    """
    The demo of a model, until it is stopped.

    Args:
        model (`str`): a folder or a Hub id.
        title (`str`, *optional*): what the page is called, by default the name of the model.
        examples (`str` or `os.PathLike`, *optional*): see [`find_examples`].
        revision (`str`, *optional*, defaults to `"main"`): branch, tag or commit of the model.
        device (`str`, *optional*): such as `"cpu"` or `"cuda:0"`; by default an accelerator if there is one.
        host, port, share (*optional*): see [`launch_demo`].

    Raises:
        `ImportError`: If Gradio is not installed.
        `ValueError`: The model has a head that the demo does not show.
        `OSError`: The model is not there, or the port is taken.
    """
    _import_gradio()  # before a large model is loaded
    pipe = load_demo_pipeline(model, revision, device)
    page = build_demo(pipe, title or name_model(model), find_examples(model, pipe, examples))
    print(f"The demo is at {launch_demo(page, host, port, share)} (Ctrl+C stops it)", flush=True)
    page.block_thread()


def name_model(model: str) -> str:
    """The name of a model on a page: its Hub id, or its folder's without the way there."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def _import_gradio() -> ModuleType:
    try:
        import gradio
    except ImportError as error:
        raise ImportError("The demo needs Gradio. Install it with `pip install vtfusion[demo]`.") from error
    return gradio


def _keep_gradio_quiet() -> None:
    # Read when the package is imported and when the page is launched.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"


def _take(text: str, paths: list[str]) -> tuple[str, list[str] | None]:
    return text, paths or None


def _save_pictures(pictures: Sequence[PIL.Image.Image], folder: Path, example: int) -> list[str]:
    paths = [folder / f"example-{example}-{number}.png" for number in range(1, len(pictures) + 1)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    return [str(path) for path in paths]


def _name_example(number: int, example: DemoExample) -> str:
    count = len(example.pictures)
    kind = "no picture" if count == 0 else "a picture" if count == 1 else f"{count} pictures"
    return f"Example {number}, {kind}: {_shorten(example.text)}"


def _enumerate(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_LABELS]) + (f" and {len(names) - _MAX_LABELS} more" if names[_MAX_LABELS:] else "")


def _shorten(text: str, length: int = 50) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
