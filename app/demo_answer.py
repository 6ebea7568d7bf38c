"""What a visitor of the demo asks and gets: a text and pictures within limits, and the model's result as HTML."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import PIL.Image
from transformers import AutoConfig

from ..images_vtfusion import decode_image
from ..pipeline_vtfusion import VTFusionPipeline
from ..training.prediction import load_pipeline
from . import demo_page
from .demo_page import Reading

ENTITIES = "multimodal-token-classification"
MAX_LABELS = 8
_HEADS = ("VTFusionForTokenClassification", "VTFusionForSequenceClassification")
_HEATMAP_SIZE = (48, 48)  # finer than the cells of most encoders


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


DEFAULT_LIMITS = Limits()


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
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # half of a character, as a browser can send it
        raise ValueError("The text has a broken character. Please delete it or type it again.") from error
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
    of_entities = pipe.pipeline_task == ENTITIES
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
    reading.results = reading.results[:MAX_LABELS]
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


__all__ = [
    "DEFAULT_LIMITS",
    "ENTITIES",
    "MAX_LABELS",
    "Limits",
    "analyse",
    "answer",
    "load_demo_pipeline",
    "preview",
    "read_inputs",
    "read_pictures",
]
