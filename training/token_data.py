"""Token-classification data from the Hub or from files, always in the same columns: `tokens`, `ner_tags`, `images`."""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Unpack

import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, List, Value
from datasets.exceptions import DatasetGenerationError

from ..images_vtfusion import IMAGE_FORMATS
from .columns import (
    TrainedLabels,
    class_label_names,
    find_columns,
    join_columns,
    map_columns,
    parse_cell,
    settle_labels,
)
from .messages import at, shorten
from .sources import CACHE_VERSION, READERS, Origin, Source, StreamOrigin, check_encoding, load_sources
from .streams import known_features, named_errors, open_streams, undecoded
from .tags import SCHEMES, detect_scheme, find_stray_inside_tags, iob2_label_names, split_tag, to_iob2

logger = logging.getLogger(__name__)

TOKENS_COLUMNS = ("tokens", "words", "token")
TAGS_COLUMNS = ("ner_tags", "tags", "labels", "ner")
_CONLL_ENDINGS = (".conll", ".txt", ".tsv", ".bio", ".iob", ".iob2", "")
_OTHERS = ", ".join(ending for ending in READERS if ending not in _CONLL_ENDINGS)
_FORMATS = f"CoNLL columns, {_OTHERS}, or a folder with metadata.jsonl"


def load_token_classification_dataset(
    dataset_name: str | None = None,
    *,
    tokens_column: str | None = None,
    tags_column: str | None = None,
    image_column: str | None = None,
    labels: Sequence[str] | None = None,
    trained: TrainedLabels | None = None,
    tag_scheme: str | None = None,
    **origin: Unpack[Origin],
) -> DatasetDict:
    """
    Loads a data set of words, entity tags and, where there are any, images. No image is opened here; that the files
    exist is checked for all rows.

    Files are told apart by their ending: `.jsonl`/`.json`, `.csv`, `.parquet`; a folder is read by its
    `metadata.jsonl` (or `.csv`, `.parquet`) or as saved by `Dataset.save_to_disk`; all else, `.tsv` too, is CoNLL
    columns. In a CoNLL file the first column is `tokens`, the last `ner_tags`, those between `column_1`, `column_2` …
    (`pos_tags` and `chunk_tags` if there are four); `-DOCSTART-` lines are left out, and an `IMGID:` line before a
    sentence, as in the Twitter-2015/2017 sets, becomes the column `image_id`. In a CSV file a cell holds the words
    with spaces between them, or a list as JSON.

    Args:
        dataset_name (`str`, *optional*):
            A data set on the Hub, or a folder saved by `DatasetDict.save_to_disk`.
        tokens_column (`str`, *optional*):
            Column with the list of words. Found by itself if it is called `tokens`, `words` or `token`.
        tags_column (`str`, *optional*):
            Column with the tags, one for each word: strings, or integers. Found by itself if it is called `ner_tags`,
            `tags`, `labels` or `ner`.
        image_column (`str`, *optional*):
            Column with the image or the list of images of a row: a path, `{"bytes", "path"}`, or an `Image` feature.
            Null, `""` and an empty list mean no image. Found by itself if it is called `images` or `image`. A path
            may be relative or absolute; URLs are refused.
        labels (`Sequence[str]`, *optional*):
            What the integers in the tags column mean, where the file does not say. For tags that are strings: the
            labels and their order.
        trained ([`TrainedLabels`], *optional*):
            What a model knows already. Its labels stay, in its order, where the data has no others; without a training
            split they are also the default of `labels`.
        tag_scheme (`str`, *optional*):
            `"IOB1"`, `"IOB2"`, `"BIOES"` or `"BILOU"`. Detected by default.
        origin (*optional*):
            Files instead of `dataset_name`, and all else that says where data is, see [`~training.sources.Origin`]. For
            CoNLL files with `IMGID:` lines `image_folder` is the folder with the images, each named after its id, with the
            ending of an image or without; other files there do not matter.

    Returns:
        `DatasetDict`: Each split has `tokens` (`List(Value("string"))`), `ner_tags` (`List(ClassLabel)`, IOB2, with the
        same labels in the same order in all splits), `images` (`List(Image(decode=False))`, `None` for a row without;
        only if any split has images), and the other columns as they were. `O` and the labels of a `ClassLabel`, of
        `labels` or of `trained` keep their order; else the entity types are sorted. A stray `I-` (see
        [`~training.tags.find_stray_inside_tags`]) and labels that do not occur in the training split are reported by a
        warning and kept.

    Raises:
        `ValueError`: A column, a row or a line is not as described; file, row and field are named.
        `FileNotFoundError`: A data or image file does not exist.

    Example:

    ```python
    >>> from vtfusion.training.token_data import load_token_classification_dataset

    >>> dataset = load_token_classification_dataset(train_file="train.jsonl", validation_file="dev.conll")  # doctest: +SKIP
    >>> dataset["train"].features["ner_tags"].feature.names  # doctest: +SKIP
    ['O', 'B-LOC', 'I-LOC', 'B-PER', 'I-PER']
    ```
    """
    if tag_scheme is not None and tag_scheme.upper() not in SCHEMES:
        raise ValueError(f"Unknown `tag_scheme` {tag_scheme!r}. Known ones: {', '.join(SCHEMES)}.")
    sources = load_sources(dataset_name, load_text_file=_load_conll, text_endings=_CONLL_ENDINGS, **origin)
    texts: dict[str, Dataset] = {}
    used: dict[str, set[str]] = {}
    if labels is None and trained is not None and "train" not in sources:
        labels = trained.names
    declared: list[str] = [] if labels is None else list(labels)
    for split, source in sources.items():
        tokens, tags = find_columns(
            source,
            {"tokens_column": (tokens_column, TOKENS_COLUMNS), "tags_column": (tags_column, TAGS_COLUMNS)},
        )
        class_names = class_label_names(source.dataset.features[tags])
        if labels is None and class_names is not None:
            declared += [name for name in class_names if name not in declared]
        texts[split] = _read_texts(source, tokens, tags, class_names or labels)
        used[split] = {tokens, tags}
    texts = _to_class_labels(texts, sources, declared, labels is not None, trained, tag_scheme)
    return join_columns(sources, texts, used, image_column)


def open_token_streams(
    dataset_name: str | None = None,
    *,
    tokens_column: str | None = None,
    **origin: Unpack[StreamOrigin],
) -> IterableDatasetDict:
    """
    The words of what [`load_token_classification_dataset`] loads, row by row: for data that is too large to be kept on
    the disk as a whole. Tags are not looked at; texts without any are welcome.

    Args:
        dataset_name, tokens_column (`str`, *optional*):
            As there.
        origin (*optional*):
            Files instead of `dataset_name`, see [`~training.sources.StreamOrigin`].

    Returns:
        `IterableDatasetDict`: Each split has `tokens` (`List(Value("string"))`) and the other columns as they are.

    Raises:
        `ValueError`: A split has no rows or no column of words; while rows are read: one is not as described. File, row
        and field are named.
        `FileNotFoundError`: A file does not exist.
    """
    streams = IterableDatasetDict()
    opened = open_streams(dataset_name, open_text_file=_stream_conll, text_endings=_CONLL_ENDINGS, **origin)
    for split, source in opened.items():
        with named_errors(source.where):
            stream = undecoded(source.stream)
            features = known_features(stream, source.where)
        (tokens,) = find_columns(source.with_columns(features), {"tokens_column": (tokens_column, TOKENS_COLUMNS)})
        others = {name: feature for name, feature in features.items() if name not in (tokens, "tokens")}
        streams[split] = stream.map(
            _words,
            batched=True,
            with_indices=True,
            input_columns=[tokens],
            remove_columns=[tokens] if tokens != "tokens" else None,
            features=Features({"tokens": List(Value("string")), **others}),
            fn_kwargs={"where": source.where, "column": tokens},
        )
    return streams


def _words(values: list, indices: list[int], where: str, column: str) -> dict[str, list]:
    return {"tokens": [read_words(value, at(where, row, column)) for row, value in zip(indices, values, strict=True)]}


# CoNLL columns. The `conll` builder of `datasets` fills lines that are too short and cuts those that are too long
# without a word, splits at any Unicode space (tweets have them inside words), and has no answer to `IMGID:` lines.


def _load_conll(path: str, split: str, image_base: str | None, cache_dir: str | None) -> Dataset:
    features, gen_kwargs = _conll_format(path)
    has_image_ids = gen_kwargs["has_image_ids"]
    try:
        dataset = Dataset.from_generator(
            _conll_sentences, features=features, cache_dir=cache_dir, split=split, gen_kwargs=gen_kwargs
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
    if has_image_ids and image_base is not None:
        dataset = dataset.add_column("image", _image_names(dataset["image_id"], image_base, f"{split} split ({path})"))
    return dataset


def _image_names(ids: Iterable[str | None], folder: str, where: str) -> list[str | None]:
    """The file of each id: an image in the folder that is named after it, with an ending or without."""
    endings = {ending for ending, kind in PIL.Image.registered_extensions().items() if kind in IMAGE_FORMATS}
    files: dict[str, list[str]] = {}
    for entry in os.scandir(folder):
        if entry.is_file():
            stem, ending = os.path.splitext(entry.name)
            files.setdefault(stem if ending.lower() in endings else entry.name, []).append(entry.name)
    names: list[str | None] = []
    for row, id_ in enumerate(ids):
        found = [] if id_ is None else sorted(files.get(id_, [f"{id_}.jpg"]))
        if len(found) > 1:
            raise ValueError(
                f"{at(where, row, 'image')}: several images in {folder} are named after the id {shorten(id_)}: "
                f"{' and '.join(found)}. Leave one there."
            )
        names.append(found[0] if found else None)
    return names


def _stream_conll(path: str) -> IterableDataset:
    features, gen_kwargs = _conll_format(path)
    return IterableDataset.from_generator(_conll_sentences, features=features, gen_kwargs=gen_kwargs)


def _conll_format(path: str) -> tuple[Features, dict[str, Any]]:
    """The columns of a file and the arguments of [`_conll_sentences`]."""
    columns, delimiter, has_image_ids = _look_into_conll(path)
    features = Features({name: List(Value("string")) for name in columns})
    if has_image_ids:
        features["image_id"] = Value("string")
    stat = os.stat(path)
    return features, {
        "path": path,
        "columns": tuple(columns),  # a list would be taken for shards
        "delimiter": delimiter,
        "has_image_ids": has_image_ids,
        # Not read by the generator: a changed file must not be taken from the cache.
        "version": (CACHE_VERSION, stat.st_size, stat.st_mtime_ns),
    }


def _conll_lines(path: str) -> Iterator[tuple[int, str]]:
    """Yields (line number, line), an empty line for every kind of blank one, without `-DOCSTART-` lines."""
    with open(path, encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                line = line.rstrip("\n")
                if "\0" in line:
                    raise ValueError(
                        f"{path}, line {number}: a NUL byte, which no UTF-8 text has. Formats: {_FORMATS}."
                    )
                if not re.match("-DOCSTART-(?![^ \t])", line):
                    yield number, line if line.strip(" \t") else ""
        except UnicodeDecodeError:
            check_encoding(path)
            raise


def _conll_fields(line: str, delimiter: str) -> list[str]:
    if delimiter == "\t":
        return [field.strip(" ") for field in line.split("\t")]
    return re.split("[ \t]+", line.strip(" \t"))


def _is_image_id(line: str) -> bool:
    return line.startswith("IMGID:")


def _look_into_conll(path: str) -> tuple[list[str], str, bool]:
    """Finds the names of the columns, the delimiter, and whether sentences have image ids."""
    first = None
    has_image_ids = False
    for number, line in _conll_lines(path):
        has_image_ids = has_image_ids or _is_image_id(line)
        if first is None and line and not _is_image_id(line) and not line.startswith("# "):
            first = number, line
    if first is None:
        raise ValueError(f"{path} has no sentence in it.")
    number, line = first
    delimiter = "\t" if "\t" in line else " "
    n_columns = len(_conll_fields(line, delimiter))
    if n_columns < 2:
        raise ValueError(
            f"{path}, line {number}: expected a word and its tag with a tab or spaces between them, got "
            f"{shorten(line)}. Formats: {_FORMATS}."
        )
    middle = ["pos_tags", "chunk_tags"] if n_columns == 4 else [f"column_{i}" for i in range(1, n_columns - 1)]
    return ["tokens", *middle, "ner_tags"], delimiter, has_image_ids


def _conll_sentences(
    path: str, columns: tuple[str, ...], delimiter: str, has_image_ids: bool, version: tuple
) -> Iterator[dict]:
    sentence: list[list[str]] = []
    image_id = None

    def example() -> dict:
        row: dict[str, Any] = dict(zip(columns, map(list, zip(*sentence, strict=True)), strict=True))
        return {**row, "image_id": image_id} if has_image_ids else row

    for number, line in _conll_lines(path):
        if not line:
            if sentence:
                yield example()
                sentence, image_id = [], None
            continue
        if _is_image_id(line):
            if sentence:  # the blank line between two sentences was left out
                yield example()
                sentence = []
            image_id = line.removeprefix("IMGID:").strip()
            continue
        fields = _conll_fields(line, delimiter)
        if len(fields) != len(columns):
            if line.startswith("# ") and not sentence:  # a comment, as in the MultiCoNER and WNUT files
                continue
            raise ValueError(
                f"{path}, line {number}: expected {len(columns)} columns with "
                f"{'a tab' if delimiter == chr(9) else 'spaces'} between them, as in the first sentence, got "
                f"{len(fields)}: {shorten(line)}"
            )
        sentence.append(fields)
    if sentence:
        yield example()


# Words and tags


def _read_texts(source: Source, tokens: str, tags: str, names: Sequence[str] | None) -> Dataset:
    feature = source.dataset.features[tags]
    if class_label_names(feature) is None and _holds_integers(feature) and not names:
        raise ValueError(
            f"{at(source.where, field=tags)}: the tags are integers. Say what they mean with `labels`, in order, as "
            "in O B-PER I-PER."
        )
    return map_columns(
        source,
        [tokens, tags],
        _words_and_tags,
        Features({"tokens": List(Value("string")), "ner_tags": List(Value("string"))}),
        desc="Reading words and tags",
        tokens_column=tokens,
        tags_column=tags,
        names=None if names is None else list(names),
    )


def _holds_integers(feature: Any) -> bool:
    inner = getattr(feature, "feature", None)
    return isinstance(inner, Value) and "int" in inner.dtype


def _words_and_tags(
    batch: dict[str, list],
    indices: list[int],
    tokens_column: str,
    tags_column: str,
    names: list[str] | None,
    where: str,
    version: int,
) -> dict[str, list]:
    """Rows of any accepted form → lists of words and lists of tags, both strings, checked."""
    all_words, all_tags = [], []
    for row, words, tags in zip(indices, batch[tokens_column], batch[tags_column], strict=True):
        place = at(where, row, tags_column)
        words = read_words(words, at(where, row, tokens_column))
        tags = _as_list(tags, place, "tags")
        if len(words) != len(tags):
            raise ValueError(
                f"{at(where, row)}: {len(words)} words in field `{tokens_column}` but {len(tags)} tags in field "
                f"`{tags_column}`; there must be one tag for each word. The words begin {shorten(words)}."
            )
        all_words.append(words)
        all_tags.append(_tag_names(tags, names, place))
    return {"tokens": all_words, "ner_tags": all_tags}


def read_words(value: Any, place: str) -> list[str]:
    """
    Words as a list, or as a text with spaces between them or a list as JSON, which is what a CSV file can hold.

    Args:
        value (`Any`): of a row.
        place (`str`): file, row and field, for messages.

    Raises:
        `ValueError`: It is neither, a word is no string, or there is none.
    """
    words = _as_list(value, place, "words")
    for position, word in enumerate(words):
        if not isinstance(word, str):
            raise ValueError(
                f"{place}: expected strings, got {shorten(word)} ({type(word).__name__}) at position {position}."
            )
    if not words:
        raise ValueError(f"{place}: there are no words. Leave such rows out of the data.")
    return words


def _as_list(value: Any, place: str, what: str) -> list:
    if isinstance(value, list):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{place}: expected a list of {what}, got {shorten(value)}.")
    parsed = parse_cell(value)
    if isinstance(parsed, list):
        return parsed
    return value.split()


def _tag_names(tags: list, names: list[str] | None, place: str) -> list[str]:
    """Tags as they came, strings or integers → strings that are entity tags."""
    result = []
    for position, tag in enumerate(tags):
        if isinstance(tag, int) and not isinstance(tag, bool):
            if names is None:
                raise ValueError(
                    f"{place}, position {position}: the tag is the integer {tag}. Say what integers mean with "
                    "`labels`."
                )
            if not 0 <= tag < len(names):
                raise ValueError(
                    f"{place}, position {position}: the tag is {tag}, but there are {len(names)} label names."
                )
            tag = names[tag]
        if not isinstance(tag, str):
            raise ValueError(f"{place}, position {position}: expected a tag such as 'B-PER', got {shorten(tag)}.")
        try:
            split_tag(tag)
        except ValueError as error:
            raise ValueError(f"{place}, position {position}: {error}") from None
        result.append(tag)
    return result


def _tag_sequences(texts: Iterable[Dataset]) -> Iterator[list[str]]:
    for text in texts:
        for batch in text.select_columns(["ner_tags"]).iter(batch_size=1000):
            yield from batch["ner_tags"]


def _unique_tags(text: Dataset) -> list:
    """Tags that occur, as they are stored: strings before, label indices after the conversion."""
    chunks = [chunk.flatten() for chunk in text.data.column("ner_tags").chunks]
    return pc.unique(pa.chunked_array(chunks)).to_pylist()


def _to_class_labels(
    texts: dict[str, Dataset],
    sources: dict[str, Source],
    declared: list[str],
    fixed: bool,
    trained: TrainedLabels | None,
    scheme: str | None,
) -> dict[str, Dataset]:
    """Tags as strings of any scheme → `ClassLabel` of IOB2, the same in all splits."""
    try:
        scheme = (scheme or detect_scheme(_tag_sequences(texts.values()))).upper()
    except ValueError as error:
        splits = ", then ".join(sources[split].where for split in texts)
        raise ValueError(f"{splits}, rows counted through: {error}") from None
    used_types = {split_tag(tag)[1] for text in texts.values() for tag in _unique_tags(text)} - {""}
    labels = settle_labels(_label_list(declared, used_types, fixed), trained, sources)

    converted = {}
    for split, text in texts.items():
        where = sources[split].where
        converted[split] = text.map(
            _label_indices,
            batched=True,
            with_indices=True,
            features=Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=labels))}),
            fn_kwargs={"labels": labels, "scheme": scheme, "where": where, "version": CACHE_VERSION},
            desc="Converting tags to IOB2",
        )
        # Counted here, not in the function above: what `map` takes from its cache would not be reported again.
        stray = find_stray_inside_tags(_tag_sequences([text]), scheme)
        if stray.count:
            logger.warning(
                "%s: %d tags continue an entity that is not there and are read as its beginning; the first is %s in "
                "row %d, position %d.",
                where,
                stray.count,
                stray.tag,
                stray.row,
                stray.position,
            )

    known = set(_unique_tags(converted["train"])) if "train" in converted else None
    for split, text in converted.items():
        unseen = [] if known is None else sorted(set(_unique_tags(text)) - known)
        if unseen:
            logger.warning(
                "%s: no row of the train split has the labels %s.",
                sources[split].where,
                ", ".join(labels[i] for i in unseen),
            )
    return converted


def _label_list(declared: list[str], used_types: set[str], fixed: bool) -> list[str]:
    if not declared:
        return iob2_label_names(sorted(used_types))
    prefixes, types = set(), []
    for name in declared:
        try:
            prefix, entity_type = split_tag(name)
        except ValueError:  # such as a padding label: harmless where no word has it
            continue
        prefixes.add(prefix)
        types += [entity_type] if entity_type else []
    if prefixes & set("ESLU"):
        return iob2_label_names([*types, *sorted(used_types)])
    if fixed:
        return declared
    return [*declared, *(name for name in iob2_label_names(sorted(used_types)) if name not in declared)]


def _label_indices(
    batch: dict[str, list], indices: list[int], labels: list[str], scheme: str, where: str, version: int
) -> dict[str, list]:
    index_of = {label: i for i, label in enumerate(labels)}
    rows = []
    for row, tags in zip(indices, batch["ner_tags"], strict=True):
        try:
            rows.append([index_of[tag] for tag in to_iob2(tags, scheme, row)])
        except ValueError as error:
            raise ValueError(f"{where}, {error}") from None
        except KeyError as error:
            raise ValueError(f"{at(where, row)}: the label {error} is not among the `labels`.") from None
    return {"ner_tags": rows}
