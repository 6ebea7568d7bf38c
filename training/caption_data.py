"""Images with captions, from the Hub or from files, a row for each caption: `text`, `image_row`, `images`."""

from typing import Unpack

from datasets import Dataset, DatasetDict, Features, Value

from .columns import find_columns, join_columns, map_columns, parse_cell
from .messages import at, shorten
from .sources import Origin, load_sources

CAPTION_COLUMNS = ("text", "caption", "captions", "sentence", "sentences")


def load_caption_dataset(
    dataset_name: str | None = None,
    *,
    text_column: str | None = None,
    image_column: str | None = None,
    **origin: Unpack[Origin],
) -> DatasetDict:
    """
    Loads a data set of images with captions as one row for each caption.

    Args:
        dataset_name (`str`, *optional*):
            A data set on the Hub, or a folder saved by `DatasetDict.save_to_disk`.
        text_column (`str`, *optional*):
            Column with the caption or the list of captions; in a CSV file a list stands as JSON. Found by itself if
            it is called `text`, `caption`, `captions`, `sentence` or `sentences`.
        image_column (`str`, *optional*):
            Column with the image or images, see [`~training.token_data.load_token_classification_dataset`].
        origin (*optional*):
            Files instead of `dataset_name`, and all else that says where data is, see [`~training.sources.Origin`].

    Returns:
        `DatasetDict`: Each split has `text`, `image_row` (`Value("int64")`, the number of the row of the source:
        captions that share it are of one image), `images` (`List(Image(decode=False))`, `None` for a row without;
        only if any split has images) and the other columns as they were. Where a row has several captions, all this
        is repeated for each, on disk too: give images as paths rather than bytes.

    Raises:
        `ValueError`: A column or a row is not as described; file, row and field are named.
        `FileNotFoundError`: A data or image file does not exist.

    Example:

    ```python
    >>> from vtfusion.training.caption_data import load_caption_dataset

    >>> dataset = load_caption_dataset(train_file="flickr8k")  # doctest: +SKIP
    >>> dataset["train"]["image_row"][:6]  # doctest: +SKIP
    [0, 0, 0, 0, 0, 1]
    ```
    """
    sources = load_sources(dataset_name, **origin)
    texts: dict[str, Dataset] = {}
    used: dict[str, set[str]] = {}
    for split, source in sources.items():
        (text,) = find_columns(source, {"text_column": (text_column, CAPTION_COLUMNS)})
        used[split] = {text}
        texts[split] = map_columns(
            source,
            [text],
            read_captions,
            Features({"text": Value("string"), "image_row": Value("int64")}),
            desc="Reading captions",
            text_column=text,
        )
    rows = {split: text["image_row"][:] for split, text in texts.items()}
    return join_columns(sources, texts, used, image_column, rows)


def read_captions(
    batch: dict[str, list], indices: list[int], text_column: str, where: str, version: int
) -> dict[str, list]:
    """A batch of rows as `text` and `image_row`, see [`load_caption_dataset`]."""
    result: dict[str, list] = {"text": [], "image_row": []}
    for row, value in zip(indices, batch[text_column], strict=True):
        value = parse_cell(value)
        captions = value if isinstance(value, list) else [value]
        if not captions or not all(isinstance(caption, str) and caption.strip() for caption in captions):
            raise ValueError(
                f"{at(where, row, text_column)}: expected a caption or a list of captions, got {shorten(value)}."
            )
        result["text"] += captions
        result["image_row"] += [row] * len(captions)
    return result
