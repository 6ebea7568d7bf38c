"""Texts with pictures to try in the demo: a user's own, those beside a model, or drawn ones."""

import os
import random
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from ..pipeline_vtfusion import VTFusionPipeline
from ..training.prediction import decoded_examples, load_examples
from ..training.sample_pictures import draw_picture, drawing_styles

# An ambiguous sentence with two drawings, and one that needs none.
_DRAWN_EXAMPLES = (
    ("Look , this is Mirano !", "PER"),
    ("Look , this is Mirano !", "PROD"),
    ("They flew to Kelda .", None),
)
_MAX_EXAMPLES = 4


@dataclass
class DemoExample:
    """A text to try, with its pictures."""

    text: str
    pictures: list[PIL.Image.Image]


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


__all__ = ["DemoExample", "drawn_examples", "find_examples"]
