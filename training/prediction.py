"""A trained model over files: examples as the pipelines take them, and their results as JSON lines."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, List, Value
from transformers import AutoConfig
from transformers.utils import logging

from .. import modeling_vtfusion
from ..images_vtfusion import decode_image
from ..pipeline_vtfusion import VTFusionPipeline, VTFusionTextClassificationPipeline
from ..processing_vtfusion import VTFusionProcessor
from .classification_data import MULTI, TEXT_PAIR_COLUMNS, labels_that_apply, read_text
from .columns import (
    WantedColumns,
    find_column,
    find_columns,
    first_value,
    join_columns,
    map_columns,
    read_string,
)
from .images import skip_bad_image
from .messages import at
from .question_data import CONTEXT_COLUMNS, QUESTION_COLUMNS, read_context
from .sources import Source, file_pattern, load_sources, uncounted
from .token_data import TOKENS_COLUMNS, read_words

logger = logging.get_logger(__name__)

# What the texts of a pipeline are usually called in people's files, best first.
_COLUMNS = {
    "text": ("text", "tokens", "words", "sentence", "caption"),
    "text_pair": TEXT_PAIR_COLUMNS,
    "question": QUESTION_COLUMNS,
    "context": (*CONTEXT_COLUMNS, "document"),
}
# From the value of a row and its place to what a pipeline is given.
_Reader = Callable[[Any, str], Any]


def load_pipeline(model: str, revision: str = "main", device: str | None = None) -> VTFusionPipeline:
    """
    The pipeline of a trained model, with the code of this package.

    Args:
        model (`str`): a folder or a Hub id.
        revision (`str`, *optional*, defaults to `"main"`): its branch, tag or commit.
        device (`str`, *optional*): such as `"cpu"` or `"cuda:0"`; by default an accelerator if there is one.

    Raises:
        `ValueError`: The model has no pipeline: it is none of ours, or for pretraining or retrieval.
    """
    config = AutoConfig.from_pretrained(model, revision=revision)
    architecture = (config.architectures or ["?"])[0]
    head = getattr(modeling_vtfusion, architecture, None)
    if head is None or getattr(head, "pipeline_class", None) is None:
        raise ValueError(f"{model} is a {architecture}, which has no pipeline to predict with.")
    pipeline_class: type[VTFusionPipeline] = head.pipeline_class
    return pipeline_class(
        model=head.from_pretrained(model, revision=revision).eval(),
        processor=VTFusionProcessor.from_pretrained(model, revision=revision),
        task=pipeline_class.pipeline_task,
        device=device,
    )


def load_examples(
    file: str | os.PathLike,
    pipe: VTFusionPipeline,
    columns: Mapping[str, str | None] | None = None,
    image_column: str | None = None,
    image_folder: str | os.PathLike | None = None,
    allow_outside_paths: bool = False,
) -> Dataset:
    """
    Reads what a pipeline needs of a file: JSONL, CSV, TSV, parquet, a folder with `metadata.jsonl`, or plain text with
    a text in each line.

    Args:
        file (`str` or `os.PathLike`): the file or folder.
        pipe ([`VTFusionPipeline`]): its `text_fields` are read, and of its `optional_text_fields` those that
            there are.
        columns (`Mapping[str, str | None]`, *optional*): for a field of the pipeline the column that holds it, where
            it has no usual name.
        image_column (`str`, *optional*): the column with the image or images.
        image_folder (`str` or `os.PathLike`, *optional*): what relative image paths start from.
        allow_outside_paths (`bool`, *optional*, defaults to `False`): whether images may lie outside of the folder of
            the file and of `image_folder`.

    Returns:
        `datasets.Dataset`: the fields and, if there are any, `images`, undecoded.
    """
    columns = columns or {}
    known = (*pipe.text_fields, *pipe.optional_text_fields)
    unknown = [name for name, column in columns.items() if column is not None and name not in known]
    if unknown:
        raise ValueError(f"{pipe.pipeline_task} reads no {' or '.join(unknown)}, but {', '.join(known)}.")
    sources = load_sources(
        test_file=file,
        image_folder=image_folder,
        load_text_file=_read_lines,
        text_endings=(".txt", ""),
        allow_outside_paths=allow_outside_paths,
    )
    source = sources["test"]
    fields = list(pipe.text_fields)
    wanted: WantedColumns = {f"{name}_column": (columns.get(name), _COLUMNS[name]) for name in fields}
    for name in pipe.optional_text_fields:
        argument = f"{name}_column"
        column = find_column(argument, columns.get(name), _COLUMNS[name], source)
        if column is not None:
            fields.append(name)
            wanted[argument] = (column, ())
    found = find_columns(source, wanted)
    column_of = dict(zip(fields, found, strict=True))
    readers = {name: _reader(pipe, name, source, column) for name, column in column_of.items()}
    texts = map_columns(
        source,
        found,
        _texts,
        Features(
            {
                name: List(Value("string")) if reader is read_words else Value("string")
                for name, reader in readers.items()
            }
        ),
        desc="Reading texts",
        fields=column_of,
        readers=readers,
    )
    rows = join_columns({"test": source}, {"test": texts}, {"test": set(found)}, image_column)["test"]
    return rows.select_columns([name for name in (*fields, "images") if name in rows.column_names])


def _reader(pipe: VTFusionPipeline, field: str, source: Source, column: str) -> _Reader:
    """What the loader of the training reads the field with; besides, an entity model takes whole texts, and a classifier words."""
    if field == "context":
        return read_context
    if field == "question":
        return read_string
    if field == "text" and isinstance(source.dataset.features[column], List):
        return read_words
    if pipe.pipeline_task == VTFusionTextClassificationPipeline.pipeline_task:
        return read_text
    first = first_value(source, column)
    lists = isinstance(first, list) and all(isinstance(word, str) for word in first)
    return read_words if lists or column in TOKENS_COLUMNS else read_string


def _texts(
    batch: dict[str, list],
    indices: list[int],
    fields: dict[str, str],
    readers: dict[str, _Reader],
    where: str,
    version: int,
) -> dict[str, list]:
    return {
        name: [readers[name](value, at(where, row, column)) for row, value in zip(indices, batch[column], strict=True)]
        for name, column in fields.items()
    }


def _read_lines(path: str, split: str, image_folder: str | None, cache_dir: str | None) -> Dataset:
    with uncounted():
        loaded = datasets.load_dataset(
            "text", data_files={split: file_pattern(path)}, split=split, cache_dir=cache_dir
        )
    if not isinstance(loaded, Dataset):
        raise ValueError(f"{path} cannot be read as lines of text.")
    return loaded


def decoded_examples(
    rows: Dataset, on_bad_image: str = "error", max_images: int | None = None
) -> Iterator[dict[str, Any]]:
    """
    The examples of [`load_examples`] with their images as pixels.

    Args:
        rows (`datasets.Dataset`): the examples.
        on_bad_image (`str`, *optional*, defaults to `"error"`): what an unreadable image does: `"error"`, or
            `"skip_image"` to leave it out, with a warning that names the row.
        max_images (`int`, *optional*): images of a row beyond this number are left out, with a warning in the end that
            counts such rows.
    """
    num_cut = 0
    for index, row in enumerate(rows):
        images = []
        given = row.get("images") or []
        num_cut += len(given) > len(given[:max_images])
        for image in given[:max_images]:
            try:
                images.append(decode_image(image, allow_paths=True))
            except ValueError as error:
                skip_bad_image(f"{at(row=index, field='images')}: {error}", on_bad_image)
        yield {**row, "images": images or None}
    if num_cut:
        logger.warning(
            "%d of %d rows have more images than the %s that are used: `max_images` says how many.",
            num_cut,
            len(rows),
            max_images,
        )


def predict_file(
    pipe: VTFusionPipeline,
    rows: Dataset,
    output: str | os.PathLike,
    batch_size: int = 16,
    on_bad_image: str = "error",
    max_images: int | None = None,
    **options: Any,
) -> int:
    """
    Writes a line for each example: `row`, the texts, and `prediction`, which is the result of the pipeline. Where a text
    may have several labels it is `label`, a list of all that apply, `scores`, one for each label of the model in its order,
    as in the `test_predictions.jsonl` of a training, and `gate`. The file appears when it is whole.

    Args:
        pipe ([`VTFusionPipeline`]): what predicts.
        rows (`datasets.Dataset`): what [`load_examples`] read.
        output (`str` or `os.PathLike`): the file of JSON lines.
        batch_size (`int`, *optional*, defaults to 16): examples in a batch.
        on_bad_image (`str`, *optional*, defaults to `"error"`): see [`decoded_examples`].
        max_images (`int`, *optional*): see [`decoded_examples`].
        options (*optional*): what the pipeline takes besides.

    Returns:
        `int`: the number of lines.
    """
    unfinished = Path(f"{os.fspath(output)}.unfinished")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    of_labels = pipe.pipeline_task == VTFusionTextClassificationPipeline.pipeline_task
    several = of_labels and pipe.model.config.problem_type == MULTI and "top_k" not in options
    if several:
        options["top_k"] = None
    results = pipe(decoded_examples(rows, on_bad_image, max_images), batch_size=batch_size, **options)
    texts = rows.select_columns([name for name in rows.column_names if name != "images"])
    try:
        with open(unfinished, "w", encoding="utf-8") as file:
            progress = logging.tqdm(zip(texts, results, strict=True), total=len(rows), desc="Predicting")
            for index, (row, prediction) in enumerate(progress):
                if several:
                    prediction = _several_labels(prediction, pipe.model.config.id2label)
                line = {"row": index, **row, "prediction": prediction}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)
    return len(rows)


def _several_labels(labels: list[dict[str, Any]], id2label: Mapping[int, str]) -> dict[str, Any]:
    names = [id2label[index] for index in range(len(id2label))]
    score_of = {label["label"]: label["score"] for label in labels}
    scores = [score_of[name] for name in names]
    return {"label": labels_that_apply(names, scores), "scores": scores, "gate": labels[0]["gate"]}
