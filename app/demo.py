"""
The demo: a page to type a text, add pictures, and see what the model finds with them and without.

Needs Gradio and matplotlib, the optional extra `demo`. The page asks nobody but this server: no analytics, no fonts
from elsewhere.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import PIL.Image

from ..pipeline_vtfusion import VTFusionPipeline
from . import demo_page
from .demo_answer import DEFAULT_LIMITS, ENTITIES, MAX_LABELS, Limits, answer, load_demo_pipeline, preview
from .demo_examples import DemoExample, find_examples
from .style import shorten

if TYPE_CHECKING:
    import gradio as gr

# How the page of a task introduces itself.
_LEADS = {
    ENTITIES: (
        "Finds entities in a text: {labels}. Add pictures, and see what it finds with them and without, side by side."
    ),
    "multimodal-text-classification": (
        "Labels a text: {labels}. Add pictures, and see what it says with them and without, side by side."
    ),
}
_KEEP_UPLOADS_SECONDS = 3600


def build_demo(
    pipe: VTFusionPipeline, title: str, examples: Sequence[DemoExample] = (), limits: Limits = DEFAULT_LIMITS
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
    limits: Limits = DEFAULT_LIMITS,
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
        examples (`str` or `os.PathLike`, *optional*): see [`~app.demo_examples.find_examples`].
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
    return f"Example {number}, {kind}: {shorten(example.text, 50)}"


def _enumerate(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_LABELS]) + (f" and {len(names) - MAX_LABELS} more" if names[MAX_LABELS:] else "")


__all__ = ["build_demo", "launch_demo", "name_model", "run_demo"]
