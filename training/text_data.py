"""Texts with labels, questions with answers and captions, with their images, from the Hub or from files."""

import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from .image_paths import shorten
from .sources import (
    CACHE_VERSION,
    Source,
    WantedColumns,
    find_column,
    find_columns,
    join_columns,
    load_sources,
    map_columns,
    parse_cell,
)

logger = logging.getLogger(__name__)

_SINGLE_LABEL = "single_label_classification"
_MULTI_LABEL = "multi_label_classification"
_REGRESSION = "regression"
_PROBLEM_TYPES = (_SINGLE_LABEL, _MULTI_LABEL, _REGRESSION)

_TEXT_COLUMNS = ("text", "sentence", "tweet", "review", "content")
_TEXT_PAIR_COLUMNS = ("text_pair",)
_LABEL_COLUMNS = ("label", "labels", "sentiment", "class", "intent")
_QUESTION_COLUMNS = ("question", "query")
_CONTEXT_COLUMNS = ("context", "passage", "tokens", "words")
_ANSWERS_COLUMNS = ("answers", "answer")
CAPTION_COLUMNS = ("text", "caption", "captions", "sentence", "sentences")

_HIDDEN = -1  # what `datasets` allows in the place of a class that is not told

# How a text begins that is a list as a CSV file has it; with texts or dicts in it, or a dict itself.
_LISTS = ("[",)
_STRUCTURES = ('["', "['", "[{", '{"', "{'", "[]")


def load_classification_dataset(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_file: str | os.PathLike | None = None,
    validation_file: str | os.PathLike | None = None,
    test_file: str | os.PathLike | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    image_column: str | None = None,
    label_names: Sequence[str] | None = None,
    problem_type: str | None = None,
    image_folder: str | os.PathLike | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    allow_outside_paths: bool = False,
) -> tuple[DatasetDict, str, list[str]]:
    """
    Loads a data set of texts, or pairs of texts, with one label, several labels or a number each.

    `dataset_name`, `dataset_config_name`, `train_file`, `validation_file`, `test_file`, `image_column`,
    `image_folder`, `revision`, `cache_dir` and `allow_outside_paths` are those of
    [`~training.data.load_token_classification_dataset`], without CoNLL columns.

    Args:
        text_column (`str`, *optional*):
            Column with the text; null is read as `""`. Found by itself if it is called `text`, `sentence`, `tweet`,
            `review` or `content`.
        text_pair_column (`str`, *optional*):
            Column with the second text of a pair. Found by itself if it is called `text_pair`.
        label_column (`str`, *optional*):
            Column with the label: a string or an integer; a list of them for several labels, or a list of floats, 1
            for each label that applies and 0 for the others; a float for regression. In a CSV file a list stands as
            JSON. Found by itself if it is called `label`, `labels`, `sentiment`, `class` or `intent`. Splits other
            than `train` may do without, for instance those to predict.
        label_names (`Sequence[str]`, *optional*):
            The labels and their order, for instance those of a trained model, and what integers mean where the file
            does not say. Not for regression.
        problem_type (`str`, *optional*):
            `"single_label_classification"`, `"multi_label_classification"` or `"regression"`. By default lists mean
            several labels, floats regression, and all else a single label.

    Returns:
        `tuple[DatasetDict, str, list[str]]`: the splits, the problem type and the labels (none for regression). Each
        split has `text`, `text_pair` if there is one, `label` (`ClassLabel`; for several labels
        `List(Value("float32"))` with a 0 or 1 for each; for regression `Value("float32")`; `None` in a split that has
        no labels), `images` (`List(Image(decode=False))`, `None` for a row without; only if any split has images) and
        the other columns as they were. The labels of a `ClassLabel` and of `label_names` keep their order; others are
        sorted, by value if they are all integers. A label that does not occur in the training split is reported by a
        warning.

    Raises:
        `ValueError`: A column or a row is not as described; file, row and field are named.
        `FileNotFoundError`: A data or image file does not exist.

    Example:

    ```python
    >>> from vtfusion.training.text_data import load_classification_dataset

    >>> dataset, problem_type, labels = load_classification_dataset(train_file="train.jsonl")  # doctest: +SKIP
    >>> problem_type, labels  # doctest: +SKIP
    ('single_label_classification', ['negative', 'neutral', 'positive'])
    ```
    """
    if problem_type is not None and problem_type not in _PROBLEM_TYPES:
        raise ValueError(f"Unknown `problem_type` {problem_type!r}. Known ones: {', '.join(_PROBLEM_TYPES)}.")
    if label_names is not None and len(set(label_names)) < len(label_names):
        raise ValueError(f"A label stands twice in `label_names`: {', '.join(label_names)}.")
    sources = load_sources(
        dataset_name,
        dataset_config_name,
        train_file,
        validation_file,
        test_file,
        image_folder,
        revision,
        cache_dir,
        allow_outside_paths=allow_outside_paths,
    )
    label_columns = _find_targets("label_column", label_column, _LABEL_COLUMNS, sources)
    firsts = {split: _first_value(source, label_columns[split]) for split, source in sources.items()}
    problem_type = problem_type or _infer_problem_type(firsts)
    if problem_type == _REGRESSION and label_names is not None:
        raise ValueError("`label_names` are for classes: a regression has none.")

    texts: dict[str, Dataset] = {}
    used: dict[str, set[str]] = {}
    declared: list[str] = [] if label_names is None else list(label_names)
    # Where the labels are integers, as in a model of one to five stars, an integer is a label and not its position.
    positions = None if label_names is None or _are_integers(label_names) else declared
    vector: list = next((first for first in firsts.values() if _is_vector(first)), [])
    vector_names = [str(i) for i in range(len(vector))] if label_names is None else declared
    for split, source in sources.items():
        wanted: WantedColumns = {"text_column": (text_column, _TEXT_COLUMNS)}
        text_pair = find_column("text_pair_column", text_pair_column, _TEXT_PAIR_COLUMNS, source)
        if text_pair is not None:
            wanted["text_pair_column"] = (text_pair, ())
        label = label_columns[split]
        if label is not None:
            wanted["label_column"] = (label, ())
        columns = find_columns(source, wanted)

        is_vector = _is_vector(firsts[split])
        class_names = None if label is None else _class_label_names(source.dataset.features[label])
        if label_names is None:
            names = vector_names if is_vector else class_names or []
            declared += [name for name in names if name not in declared]
        features = Features({"text": Value("string")})
        if text_pair is not None:
            features["text_pair"] = Value("string")
        features["label"] = Value("float32") if problem_type == _REGRESSION else List(Value("string"))
        texts[split] = map_columns(
            source,
            columns,
            _texts_and_labels,
            features,
            desc="Reading texts and labels",
            text_column=columns[0],
            text_pair_column=text_pair,
            label_column=label,
            has_labels=firsts[split] is not None,
            problem_type=problem_type,
            names=class_names or positions,
            is_class_label=class_names is not None,
            vector_names=vector_names if is_vector else None,
        )
        used[split] = set(columns)
    paired = {split: "text_pair" in text.column_names for split, text in texts.items()}
    if len(set(paired.values())) > 1:
        without = next(split for split, is_paired in paired.items() if not is_paired)
        raise ValueError(f"{sources[without].where} has no column `text_pair`, but other splits have.")
    if problem_type == _REGRESSION:
        return join_columns(sources, texts, used, image_column), problem_type, []
    fixed, several = label_names is not None, problem_type == _MULTI_LABEL
    texts, labels = _to_labels(texts, sources, declared, fixed, several)
    return join_columns(sources, texts, used, image_column), problem_type, labels


def load_question_answering_dataset(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_file: str | os.PathLike | None = None,
    validation_file: str | os.PathLike | None = None,
    test_file: str | os.PathLike | None = None,
    question_column: str | None = None,
    context_column: str | None = None,
    answers_column: str | None = None,
    image_column: str | None = None,
    image_folder: str | os.PathLike | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    allow_outside_paths: bool = False,
) -> DatasetDict:
    """
    Loads a data set of questions whose answers stand in a text, as in SQuAD.

    `dataset_name`, `dataset_config_name`, `train_file`, `validation_file`, `test_file`, `image_column`,
    `image_folder`, `revision`, `cache_dir` and `allow_outside_paths` are those of
    [`~training.data.load_token_classification_dataset`], without CoNLL columns.

    Args:
        question_column (`str`, *optional*):
            Column with the question. Found by itself if it is called `question` or `query`.
        context_column (`str`, *optional*):
            Column with the text that holds the answer, or the list of its words, which are joined by spaces. Found by
            itself if it is called `context`, `passage`, `tokens` or `words`.
        answers_column (`str`, *optional*):
            Column with the answers: `{"text": [...], "answer_start": [...]}`, a list of `{"text", "answer_start"}`,
            or bare texts, one or several. An answer without its start is looked for in the context, where the first
            occurrence is taken. Null, `""` and no texts mean that the context does not hold the answer. In a CSV file
            a list or dict stands as JSON. Found by itself if it is called `answers` or `answer`. Splits other than
            `train` may do without, for instance those to predict.

    Returns:
        `DatasetDict`: Each split has `id` (`Value("string")`, of the column `id`, or else the number of the row),
        `question`, `context`, `answers` (`{"text": List(Value("string")), "answer_start": List(Value("int32"))}`),
        `images` (`List(Image(decode=False))`, `None` for a row without; only if any split has images) and the other
        columns as they were.

    Raises:
        `ValueError`: A column or a row is not as described, or an answer does not stand in the context where it
            should; file, row and field are named.
        `FileNotFoundError`: A data or image file does not exist.

    Example:

    ```python
    >>> from vtfusion.training.text_data import load_question_answering_dataset

    >>> dataset = load_question_answering_dataset(train_file="train.jsonl", context_column="tokens")  # doctest: +SKIP
    >>> dataset["train"][0]["answers"]  # doctest: +SKIP
    {'text': ['25/12/2018'], 'answer_start': [156]}
    ```
    """
    sources = load_sources(
        dataset_name,
        dataset_config_name,
        train_file,
        validation_file,
        test_file,
        image_folder,
        revision,
        cache_dir,
        allow_outside_paths=allow_outside_paths,
    )
    answers_columns = _find_targets("answers_column", answers_column, _ANSWERS_COLUMNS, sources)
    features = Features(
        {
            "id": Value("string"),
            "question": Value("string"),
            "context": Value("string"),
            "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
        }
    )
    texts: dict[str, Dataset] = {}
    used: dict[str, set[str]] = {}
    for split, source in sources.items():
        wanted: WantedColumns = {
            "question_column": (question_column, _QUESTION_COLUMNS),
            "context_column": (context_column, _CONTEXT_COLUMNS),
        }
        answers = answers_columns[split]
        if answers is not None:
            wanted["answers_column"] = (answers, ())
        columns = find_columns(source, wanted)
        id_column = "id" if "id" in source.dataset.column_names and "id" not in columns else None
        used[split] = {*columns} if id_column is None else {*columns, id_column}
        texts[split] = map_columns(
            source,
            sorted(used[split]),
            _questions_with_contexts,
            features,
            desc="Reading questions and answers",
            id_column=id_column,
            question_column=columns[0],
            context_column=columns[1],
            answers_column=answers,
        )
    return join_columns(sources, texts, used, image_column)


def load_visual_question_answering_dataset(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_file: str | os.PathLike | None = None,
    validation_file: str | os.PathLike | None = None,
    test_file: str | os.PathLike | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    image_column: str | None = None,
    answer_names: Sequence[str] | None = None,
    max_answers: int | None = None,
    image_folder: str | os.PathLike | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    allow_outside_paths: bool = False,
) -> tuple[DatasetDict, list[str]]:
    """
    Loads a data set of questions about images, with the answers that a model can learn to choose from.

    `dataset_name`, `dataset_config_name`, `train_file`, `validation_file`, `test_file`, `image_column`,
    `image_folder`, `revision`, `cache_dir` and `allow_outside_paths` are those of
    [`~training.data.load_token_classification_dataset`], without CoNLL columns.

    Args:
        question_column (`str`, *optional*):
            Column with the question. Found by itself if it is called `question` or `query`.
        answer_column (`str`, *optional*):
            Column with the answer, which may be

            - one text (or integer, read as text), with score 1;
            - a list of the texts that people gave, or of `{"answer"}` as in VQA v2. Each is scored by VQA v2's
              min(count / 3, 1), so that an answer of one person out of ten counts a third (of fewer than three
              people by their share); empty ones are left out;
            - `{"text": [...], "score": [...]}` or a list of `{"text", "score"}`, with scores from 0 to 1.

            In a CSV file a list or dict stands as JSON. Found by itself if it is called `answers` or `answer`. Splits
            other than `train` may do without, for instance those to predict.
        answer_names (`Sequence[str]`, *optional*):
            The answers to choose from, for instance those of a trained model. By default those of the training split.
        max_answers (`int`, *optional*):
            How many answers of the training split to choose from; all by default.

    Returns:
        `tuple[DatasetDict, list[str]]`: the splits and the answers to choose from, those of the most rows of the
        training split first, ties in alphabetical order. Each split has `question`, `answers`
        (`{"text": List(Value("string")), "score": List(Value("float32"))}`, with answers that cannot be chosen too),
        `images` (`List(Image(decode=False))`, `None` for a row without; only if any split has images) and the other
        columns as they were.

    Raises:
        `ValueError`: A column or a row is not as described; file, row and field are named.
        `FileNotFoundError`: A data or image file does not exist.

    Example:

    ```python
    >>> from vtfusion.training.text_data import load_visual_question_answering_dataset

    >>> dataset, answers = load_visual_question_answering_dataset(train_file="train.jsonl")  # doctest: +SKIP
    >>> dataset["train"][0]["question"], dataset["train"][0]["answers"]  # doctest: +SKIP
    ('what color is the shape?', {'text': ['blue'], 'score': [1.0]})
    ```
    """
    if answer_names is not None and max_answers is not None:
        raise ValueError("`max_answers` cuts the answers of the training split: it does nothing to `answer_names`.")
    if answer_names is not None and len(set(answer_names)) < len(answer_names):
        raise ValueError("An answer stands twice in `answer_names`.")
    if max_answers is not None and max_answers < 1:
        raise ValueError(f"`max_answers` must be at least 1, got {max_answers}.")
    sources = load_sources(
        dataset_name,
        dataset_config_name,
        train_file,
        validation_file,
        test_file,
        image_folder,
        revision,
        cache_dir,
        allow_outside_paths=allow_outside_paths,
    )
    if answer_names is None and "train" not in sources:
        raise ValueError(
            "There is no train split whose answers could be chosen from: say with `answer_names` what they are."
        )
    answer_columns = _find_targets("answer_column", answer_column, _ANSWERS_COLUMNS, sources)
    features = Features(
        {
            "question": Value("string"),
            "answers": {"text": List(Value("string")), "score": List(Value("float32"))},
        }
    )
    texts: dict[str, Dataset] = {}
    used: dict[str, set[str]] = {}
    for split, source in sources.items():
        wanted: WantedColumns = {"question_column": (question_column, _QUESTION_COLUMNS)}
        answer = answer_columns[split]
        if answer is not None:
            wanted["answer_column"] = (answer, ())
        columns = find_columns(source, wanted)
        used[split] = set(columns)
        texts[split] = map_columns(
            source,
            columns,
            _questions_with_scores,
            features,
            desc="Reading questions and answers",
            question_column=columns[0],
            answer_column=answer,
            has_answers=_first_value(source, answer) is not None,
        )
    names = _frequent_answers(texts["train"], max_answers) if answer_names is None else list(answer_names)
    if not names:
        raise ValueError(f"{sources['train'].where}: no row has an answer.")
    return join_columns(sources, texts, used, image_column), names


def load_caption_dataset(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_file: str | os.PathLike | None = None,
    validation_file: str | os.PathLike | None = None,
    test_file: str | os.PathLike | None = None,
    text_column: str | None = None,
    image_column: str | None = None,
    image_folder: str | os.PathLike | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    allow_outside_paths: bool = False,
) -> DatasetDict:
    """
    Loads a data set of images with captions as one row for each caption.

    `dataset_name`, `dataset_config_name`, `train_file`, `validation_file`, `test_file`, `image_column`,
    `image_folder`, `revision`, `cache_dir` and `allow_outside_paths` are those of
    [`~training.data.load_token_classification_dataset`], without CoNLL columns.

    Args:
        text_column (`str`, *optional*):
            Column with the caption or the list of captions; in a CSV file a list stands as JSON. Found by itself if
            it is called `text`, `caption`, `captions`, `sentence` or `sentences`.

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
    >>> from vtfusion.training.text_data import load_caption_dataset

    >>> dataset = load_caption_dataset(train_file="flickr8k")  # doctest: +SKIP
    >>> dataset["train"]["image_row"][:6]  # doctest: +SKIP
    [0, 0, 0, 0, 0, 1]
    ```
    """
    sources = load_sources(
        dataset_name,
        dataset_config_name,
        train_file,
        validation_file,
        test_file,
        image_folder,
        revision,
        cache_dir,
        allow_outside_paths=allow_outside_paths,
    )
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


# What all of them need


def _find_targets(
    argument: str, wanted: str | None, known: tuple[str, ...], sources: Mapping[str, Source]
) -> dict[str, str | None]:
    """For each split the column with what is to be learned; `None` for a split, other than `train`, that has none."""
    here = [split for split, source in sources.items() if wanted in source.dataset.column_names]
    columns: dict[str, str | None] = {}
    for split, source in sources.items():
        if split == "train":
            (columns[split],) = find_columns(source, {argument: (wanted, known)})
        elif wanted is None or split in here or not here:  # a name that no split has is a mistake
            columns[split] = find_column(argument, wanted, known, source)
        else:
            columns[split] = None
        if columns[split] is None:
            logger.warning("%s has no column for `%s`: its rows are to predict only.", source.where, argument)
    return columns


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()  # an empty cell of a CSV file
    return value is None or (isinstance(value, float) and math.isnan(value))


def _first_value(source: Source, column: str | None) -> Any:
    """The first value that is not missing, or `None`."""
    if column is None:
        return None
    is_class_label = _class_label_names(source.dataset.features[column]) is not None
    for batch in source.dataset.select_columns([column]).iter(batch_size=1000):
        for value in batch[column]:
            if not _is_missing(value) and not (is_class_label and value == _HIDDEN):
                return parse_cell(value, _LISTS)
    return None


def _string(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place}: expected a string, got {shorten(value)}.")
    return value


def _pairs(value: dict[str, Any], key: str, place: str) -> list[tuple[Any, Any]]:
    """`{"text": …, key: …}`, single or lists, → (text, other); `None` where the other is not there."""
    texts, others = value.get("text"), value.get(key)
    if "text" not in value:
        raise ValueError(f"{place}: expected a dict with 'text' and {key!r}, got {shorten(value)}.")
    if texts is None:
        return []
    if not isinstance(texts, list):
        return [(texts, others)]
    if others is None:
        others = [None] * len(texts)
    if not isinstance(others, list) or len(others) != len(texts):
        raise ValueError(f"{place}: expected one {key!r} for each 'text', got {shorten(value)}.")
    return list(zip(texts, others, strict=True))


# Labels


def _class_label_names(feature: Any) -> list[str] | None:
    inner = getattr(feature, "feature", feature)
    return list(inner.names) if isinstance(inner, ClassLabel) else None


def _infer_problem_type(firsts: Mapping[str, Any]) -> str:
    """From the first label of the training split, or else of any split."""
    candidates = [firsts.get("train"), *firsts.values()]
    first = next((value for value in candidates if value is not None), None)
    if isinstance(first, list):
        return _MULTI_LABEL
    return _REGRESSION if isinstance(first, float) else _SINGLE_LABEL


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, float | bool) for item in value)


def _are_integers(names: Iterable[str]) -> bool:
    return all(name.removeprefix("-").isdecimal() for name in names)


def _texts_and_labels(
    batch: dict[str, list],
    indices: list[int],
    text_column: str,
    text_pair_column: str | None,
    label_column: str | None,
    has_labels: bool,
    problem_type: str,
    names: list[str] | None,
    is_class_label: bool,
    vector_names: list[str] | None,
    where: str,
    version: int,
) -> dict[str, list]:
    """Rows of any accepted form → texts, and labels as numbers (regression) or as lists of names, checked."""
    result: dict[str, list] = {}
    for name, column in (("text", text_column), ("text_pair", text_pair_column)):
        if column is not None:
            result[name] = [
                "" if value is None else _string(value, f"{where}, row {row}, column {column!r}")
                for row, value in zip(indices, batch[column], strict=True)
            ]
    result["label"] = [None] * len(indices)
    if label_column is None:
        return result
    for position, (row, value) in enumerate(zip(indices, batch[label_column], strict=True)):
        place = f"{where}, row {row}, column {label_column!r}"
        if _is_missing(value) or (is_class_label and value == _HIDDEN):
            if has_labels:
                raise ValueError(f"{place}: expected a label, as in other rows, got {shorten(value)}.")
        elif problem_type == _REGRESSION:
            result["label"][position] = _number(value, place)
        elif problem_type == _MULTI_LABEL:
            result["label"][position] = _several_labels(value, names, vector_names, place)
        else:
            result["label"][position] = [_label_name(value, names, place)]
    return result


def _number(value: Any, place: str) -> float:
    try:
        # A column of a CSV file is read as text if a cell is empty.
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{place}: expected a number, got {shorten(value)}.")
    return number


def _label_name(value: Any, names: list[str] | None, place: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas turns integers into floats where one is missing
    if isinstance(value, int) and not isinstance(value, bool) and names is not None:
        if not 0 <= value < len(names):
            raise ValueError(f"{place}: the label is {value}, but there are {len(names)} label names.")
        return names[value]
    if not isinstance(value, str | int) or _is_missing(value):
        raise ValueError(f"{place}: expected a label (a string or an integer), got {shorten(value)}.")
    return str(value)


def _several_labels(value: Any, names: list[str] | None, vector_names: list[str] | None, place: str) -> list[str]:
    items = parse_cell(value, _LISTS)
    if not isinstance(items, list):
        raise ValueError(f"{place}: expected a list of labels, got {shorten(value)}.")
    if vector_names is not None:
        if len(items) != len(vector_names) or any(item not in (0, 1) for item in items):
            raise ValueError(
                f"{place}: expected {len(vector_names)} numbers, each 0 or 1 for one label, got {shorten(value)}."
            )
        return [name for name, item in zip(vector_names, items, strict=True) if item]
    labels = [_label_name(item, names, place) for item in items]
    if len(set(labels)) < len(labels):
        raise ValueError(
            f"{place}: a label stands twice in {shorten(value)}. If these are a 0 or 1 for each label, write them as "
            "floats."
        )
    return labels


def _unique_labels(text: Dataset) -> set[str]:
    chunks = [chunk.flatten() for chunk in text.data.column("label").chunks]
    return set(pc.unique(pa.chunked_array(chunks, pa.string())).to_pylist())


def _to_labels(
    texts: dict[str, Dataset], sources: Mapping[str, Source], declared: list[str], fixed: bool, several: bool
) -> tuple[dict[str, Dataset], list[str]]:
    """Labels as lists of names → `ClassLabel`, or vectors of 0 and 1, the same in all splits; and the labels."""
    found = {split: _unique_labels(text) for split, text in texts.items()}
    labels = declared
    if not fixed:
        new = set().union(*found.values()).difference(declared)
        labels = [*declared, *(sorted(new, key=int) if _are_integers(new) else sorted(new))]
    if not labels:
        raise ValueError(
            f"{next(iter(sources.values())).where}: no row has a label. Say with `label_names` what the labels are."
        )
    converted = {}
    for split, text in texts.items():
        feature = List(Value("float32")) if several else ClassLabel(names=labels)
        converted[split] = text.map(
            _label_targets,
            batched=True,
            with_indices=True,
            features=Features({**text.features, "label": feature}),
            fn_kwargs={"labels": labels, "several": several, "where": sources[split].where, "version": CACHE_VERSION},
            desc="Converting labels",
        )
        unseen = found[split] - found.get("train", found[split])
        if unseen:
            logger.warning(
                "%s: no row of the train split has the labels %s.",
                sources[split].where,
                ", ".join(label for label in labels if label in unseen),
            )
    return converted, labels


def _label_targets(
    batch: dict[str, list], indices: list[int], labels: list[str], several: bool, where: str, version: int
) -> dict[str, list]:
    index_of = {label: i for i, label in enumerate(labels)}
    targets: list[Any] = []
    for row, names in zip(indices, batch["label"], strict=True):
        unknown = [name for name in names or [] if name not in index_of]
        if unknown:
            raise ValueError(f"{where}, row {row}: the label {unknown[0]!r} is not among the `label_names`.")
        if names is None:
            targets.append(None)
        elif several:
            targets.append([float(label in names) for label in labels])
        else:
            targets.append(index_of[names[0]])
    return {"label": targets}


# Questions


def _questions_with_contexts(
    batch: dict[str, list],
    indices: list[int],
    id_column: str | None,
    question_column: str,
    context_column: str,
    answers_column: str | None,
    where: str,
    version: int,
) -> dict[str, list]:
    result: dict[str, list] = {"id": [], "question": [], "context": [], "answers": []}
    for position, row in enumerate(indices):
        place = f"{where}, row {row}, column"
        id_ = row if id_column is None else batch[id_column][position]
        if not isinstance(id_, str | int):
            raise ValueError(f"{place} {id_column!r}: expected a string or an integer, got {shorten(id_)}.")
        context = batch[context_column][position]
        if isinstance(context, list) and all(isinstance(word, str) for word in context):
            context = " ".join(context)
        if not isinstance(context, str):
            raise ValueError(
                f"{place} {context_column!r}: expected a text or a list of words, got {shorten(context)}."
            )
        answers = None if answers_column is None else batch[answers_column][position]
        result["id"].append(str(id_))
        result["question"].append(_string(batch[question_column][position], f"{place} {question_column!r}"))
        result["context"].append(context)
        result["answers"].append(_located_answers(answers, context, f"{place} {answers_column!r}"))
    return result


def _located_answers(value: Any, context: str, place: str) -> dict[str, list]:
    value = parse_cell(value, _STRUCTURES)
    pairs: list[tuple[Any, Any]] = []
    if not _is_missing(value):
        for item in value if isinstance(value, list) else [value]:
            pairs += _pairs(item, "answer_start", place) if isinstance(item, dict) else [(item, None)]
    starts = []
    for text, start in pairs:
        if not isinstance(text, str) or _is_missing(text):
            raise ValueError(f"{place}: expected an answer (a string), got {shorten(text)}.")
        if start is None:
            start = context.find(text)
            if start < 0:
                raise ValueError(
                    f"{place}: the answer {shorten(text)} does not stand in the context, which begins "
                    f"{shorten(context)}."
                )
        elif not isinstance(start, int) or isinstance(start, bool):
            raise ValueError(f"{place}: expected an integer as 'answer_start', got {shorten(start)}.")
        elif start < 0 or not context.startswith(text, start):
            raise ValueError(
                f"{place}: the answer {shorten(text)} does not stand at character {start} of the context; there is "
                f"{shorten(context[max(start, 0) :][: len(text)])}."
            )
        starts.append(start)
    return {"text": [text for text, _ in pairs], "answer_start": starts}


def _questions_with_scores(
    batch: dict[str, list],
    indices: list[int],
    question_column: str,
    answer_column: str | None,
    has_answers: bool,
    where: str,
    version: int,
) -> dict[str, list]:
    result: dict[str, list] = {"question": [], "answers": []}
    for position, row in enumerate(indices):
        place = f"{where}, row {row}, column"
        answer = None if answer_column is None else batch[answer_column][position]
        if has_answers and _is_missing(answer):
            raise ValueError(
                f"{place} {answer_column!r}: expected an answer, as in other rows, got {shorten(answer)}."
            )
        result["question"].append(_string(batch[question_column][position], f"{place} {question_column!r}"))
        result["answers"].append(_scored_answers(answer, f"{place} {answer_column!r}"))
    return result


def _scored_answers(value: Any, place: str) -> dict[str, list]:
    value = parse_cell(value, _STRUCTURES)
    if _is_missing(value):
        return {"text": [], "score": []}
    if not isinstance(value, list | dict):
        return {"text": [_answer(value, place)], "score": [1.0]}
    items = value if isinstance(value, list) else [value]
    if isinstance(value, dict) or any(isinstance(item, dict) and "text" in item for item in items):
        return _given_scores(items, place)
    given = []
    for item in items:
        if isinstance(item, dict) and "answer" not in item:
            raise ValueError(
                f"{place}: expected a dict with 'answer', or with 'text' and 'score', got {shorten(item)}."
            )
        given.append(item["answer"] if isinstance(item, dict) else item)
    counts = Counter(_answer(item, place) for item in given if not _is_missing(item))
    # VQA v2 asked ten people; of one or two no three can agree
    enough = min(3, counts.total())
    return {"text": list(counts), "score": [min(count / enough, 1.0) for count in counts.values()]}


def _given_scores(items: list, place: str) -> dict[str, list]:
    texts, scores = [], []
    for item in items:
        if not isinstance(item, dict):
            raise ValueError(f"{place}: expected a dict with 'text' and 'score', got {shorten(item)}.")
        for text, score in _pairs(item, "score", place):
            if not isinstance(score, int | float) or isinstance(score, bool) or not 0 <= score <= 1:
                raise ValueError(f"{place}: expected a 'score' from 0 to 1 for {shorten(text)}, got {shorten(score)}.")
            texts.append(_answer(text, place))
            scores.append(float(score))
    if len(set(texts)) < len(texts):
        raise ValueError(f"{place}: an answer has two scores in {shorten(items)}.")
    return {"text": texts, "score": scores}


def _answer(value: Any, place: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or _is_missing(value):
        raise ValueError(f"{place}: expected an answer (a string), got {shorten(value)}.")
    return str(value)


def _frequent_answers(train: Dataset, max_answers: int | None) -> list[str]:
    answers = pc.list_flatten(pc.struct_field(train.data.column("answers"), "text"))
    counts = [(entry["values"], entry["counts"]) for entry in pc.value_counts(answers).to_pylist()]
    return [text for text, _ in sorted(counts, key=lambda entry: (-entry[1], entry[0]))][:max_answers]


# Captions


def read_captions(
    batch: dict[str, list], indices: list[int], text_column: str, where: str, version: int
) -> dict[str, list]:
    result: dict[str, list] = {"text": [], "image_row": []}
    for row, value in zip(indices, batch[text_column], strict=True):
        value = parse_cell(value)
        captions = value if isinstance(value, list) else [value]
        if not captions or not all(isinstance(caption, str) and caption.strip() for caption in captions):
            raise ValueError(
                f"{where}, row {row}, column {text_column!r}: expected a caption or a list of captions, got "
                f"{shorten(value)}."
            )
        result["text"] += captions
        result["image_row"] += [row] * len(captions)
    return result
