"""Texts with a label, several labels or a number, from the Hub or from files: `text`, `label`, `images`."""

import itertools
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from .columns import (
    TrainedLabels,
    WantedColumns,
    class_label_names,
    find_column,
    find_columns,
    find_targets,
    first_value,
    is_missing,
    join_columns,
    map_columns,
    parse_cell,
    read_string,
    settle_labels,
)
from .messages import at, shorten
from .sources import CACHE_VERSION, Origin, Source, load_sources

logger = logging.getLogger(__name__)

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
_PROBLEM_TYPES = (SINGLE, MULTI, REGRESSION)

_TEXT_COLUMNS = ("text", "sentence", "tweet", "review", "content")
TEXT_PAIR_COLUMNS = ("text_pair",)
_LABEL_COLUMNS = ("label", "labels", "sentiment", "class", "intent")


def load_classification_dataset(
    dataset_name: str | None = None,
    *,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    image_column: str | None = None,
    labels: Sequence[str] | None = None,
    trained: TrainedLabels | None = None,
    problem_type: str | None = None,
    **origin: Unpack[Origin],
) -> tuple[DatasetDict, str, list[str]]:
    """
    Loads a data set of texts, or pairs of texts, with one label, several labels or a number each.

    Args:
        dataset_name (`str`, *optional*):
            A data set on the Hub, or a folder saved by `DatasetDict.save_to_disk`.
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
        labels (`Sequence[str]`, *optional*):
            The labels and their order, and what integers mean where the file does not say. Not for regression.
        trained ([`TrainedLabels`], *optional*):
            What a model knows already. Its labels stay, in its order, where the data has no others; without a training
            split they and its problem type are also the defaults of `labels` and `problem_type`.
        problem_type (`str`, *optional*):
            `"single_label_classification"`, `"multi_label_classification"` or `"regression"`. By default lists mean
            several labels, floats regression, and all else a single label.
        image_column (`str`, *optional*):
            Column with the image or images, see [`~training.token_data.load_token_classification_dataset`].
        origin (*optional*):
            Files instead of `dataset_name`, and all else that says where data is, see [`~training.sources.Origin`].

    Returns:
        `tuple[DatasetDict, str, list[str]]`: the splits, the problem type and the labels (none for regression). Each
        split has `text`, `text_pair` if there is one, `label` (`ClassLabel`; for several labels
        `List(Value("float32"))` with a 0 or 1 for each; for regression `Value("float32")`; `None` in a split that has
        no labels), `images` (`List(Image(decode=False))`, `None` for a row without; only if any split has images) and
        the other columns as they were. The labels of a `ClassLabel`, of `labels` and of `trained` keep their order;
        others are sorted, by value if they are all integers. A label that does not occur in the training split is
        reported by a warning.

    Raises:
        `ValueError`: A column or a row is not as described; file, row and field are named.
        `FileNotFoundError`: A data or image file does not exist.

    Example:

    ```python
    >>> from vtfusion.training.classification_data import load_classification_dataset

    >>> dataset, problem_type, labels = load_classification_dataset(train_file="train.jsonl")  # doctest: +SKIP
    >>> problem_type, labels  # doctest: +SKIP
    ('single_label_classification', ['negative', 'neutral', 'positive'])
    ```
    """
    if problem_type is not None and problem_type not in _PROBLEM_TYPES:
        raise ValueError(f"Unknown `problem_type` {problem_type!r}. Known ones: {', '.join(_PROBLEM_TYPES)}.")
    if labels is not None and len(set(labels)) < len(labels):
        raise ValueError(f"A label stands twice in `labels`: {', '.join(labels)}.")
    sources = load_sources(dataset_name, **origin)
    columns = find_targets("label_column", label_column, _LABEL_COLUMNS, sources)
    firsts = {split: first_value(source, columns[split]) for split, source in sources.items()}
    if trained is not None and "train" not in sources:
        problem_type = problem_type or trained.problem_type
    problem_type = problem_type or _infer_problem_type(firsts)
    if problem_type == REGRESSION and labels is not None:
        raise ValueError("`labels` are for classes: a regression has none.")
    if labels is None and trained is not None and "train" not in sources and problem_type != REGRESSION:
        labels = trained.names

    given = None if labels is None else list(labels)
    forms = _label_forms(sources, columns, firsts, given)
    texts: dict[str, Dataset] = {}
    used: dict[str, set[str]] = {}
    for split, source in sources.items():
        texts[split], used[split] = _read_texts(source, text_column, text_pair_column, problem_type, forms[split])
    unpaired = [split for split, text in texts.items() if "text_pair" not in text.column_names]
    if unpaired and len(unpaired) < len(texts):
        raise ValueError(f"{sources[unpaired[0]].where} has no column `text_pair`, but other splits have.")
    names: list[str] = []
    if problem_type != REGRESSION:
        declared = _declared_labels(forms.values()) if given is None else given
        texts, names = _to_labels(texts, sources, declared, given is not None, trained, problem_type == MULTI)
    return join_columns(sources, texts, used, image_column), problem_type, names


def labels_that_apply(names: Sequence[str], probabilities: Iterable[float]) -> list[str]:
    """Of several labels those that are as likely as not, or likelier, in the order of `names`."""
    return [name for name, value in zip(names, probabilities, strict=True) if value >= 0.5]


def _infer_problem_type(firsts: Mapping[str, Any]) -> str:
    """From the first label of the training split, or else of any split."""
    candidates = [firsts.get("train"), *firsts.values()]
    first = next((value for value in candidates if value is not None), None)
    if isinstance(first, list):
        return MULTI
    return REGRESSION if isinstance(first, float) else SINGLE


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, float | bool) for item in value)


def _are_integers(names: Iterable[str]) -> bool:
    return all(name.removeprefix("-").isdecimal() for name in names)


def _label_forms(
    sources: Mapping[str, Source],
    columns: Mapping[str, str | None],
    firsts: Mapping[str, Any],
    label_names: list[str] | None,
) -> dict[str, dict[str, Any]]:
    """How the labels of each split are written: arguments of [`_texts_and_labels`]."""
    # Where the labels are integers, as in a model of one to five stars, an integer is a label and not its position.
    positions = None if label_names is None or _are_integers(label_names) else label_names
    num_labels = next((len(first) for first in firsts.values() if _is_vector(first)), 0)
    of_vectors = [str(i) for i in range(num_labels)] if label_names is None else label_names
    forms = {}
    for split, source in sources.items():
        column = columns[split]
        class_names = None if column is None else class_label_names(source.dataset.features[column])
        forms[split] = {
            "label_column": column,
            "has_labels": firsts[split] is not None,
            "names": class_names or positions,
            "is_class_label": class_names is not None,
            "vector_names": of_vectors if _is_vector(firsts[split]) else None,
        }
    return forms


def _declared_labels(forms: Iterable[Mapping[str, Any]]) -> list[str]:
    """The labels that a data set says it has, in their order."""
    told = (form["vector_names"] or form["names"] or [] for form in forms)
    return list(dict.fromkeys(itertools.chain.from_iterable(told)))


def _read_texts(
    source: Source, text_column: str | None, text_pair_column: str | None, problem_type: str, form: dict[str, Any]
) -> tuple[Dataset, set[str]]:
    """The texts and labels of a split, see [`_texts_and_labels`], and the columns that they come from."""
    wanted: WantedColumns = {"text_column": (text_column, _TEXT_COLUMNS)}
    features = Features({"text": Value("string")})
    text_pair = find_column("text_pair_column", text_pair_column, TEXT_PAIR_COLUMNS, source)
    if text_pair is not None:
        wanted["text_pair_column"] = (text_pair, ())
        features["text_pair"] = Value("string")
    if form["label_column"] is not None:
        wanted["label_column"] = (form["label_column"], ())
    features["label"] = Value("float32") if problem_type == REGRESSION else List(Value("string"))
    columns = find_columns(source, wanted)
    texts = map_columns(
        source,
        columns,
        _texts_and_labels,
        features,
        desc="Reading texts and labels",
        text_column=columns[0],
        text_pair_column=text_pair,
        problem_type=problem_type,
        **form,
    )
    return texts, set(columns)


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
                read_text(value, at(where, row, column)) for row, value in zip(indices, batch[column], strict=True)
            ]
    result["label"] = [None] * len(indices)
    if label_column is None:
        return result
    for position, (row, value) in enumerate(zip(indices, batch[label_column], strict=True)):
        place = at(where, row, label_column)
        if is_missing(value, is_class_label):
            if has_labels:
                raise ValueError(f"{place}: expected a label, as in other rows, got {shorten(value)}.")
        elif problem_type == REGRESSION:
            result["label"][position] = _number(value, place)
        elif problem_type == MULTI:
            result["label"][position] = _several_labels(value, names, vector_names, place)
        else:
            result["label"][position] = [_label_name(value, names, place)]
    return result


def read_text(value: Any, place: str) -> str:
    """
    A text to classify; null is `""`.

    Args:
        value (`Any`): of a row.
        place (`str`): file, row and field, for messages.

    Raises:
        `ValueError`: It is no string.
    """
    return "" if value is None else read_string(value, place)


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
    if not isinstance(value, str | int) or is_missing(value):
        raise ValueError(f"{place}: expected a label (a string or an integer), got {shorten(value)}.")
    return str(value)


def _several_labels(value: Any, names: list[str] | None, vector_names: list[str] | None, place: str) -> list[str]:
    items = parse_cell(value, ("[",))
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
    texts: dict[str, Dataset],
    sources: Mapping[str, Source],
    declared: list[str],
    fixed: bool,
    trained: TrainedLabels | None,
    several: bool,
) -> tuple[dict[str, Dataset], list[str]]:
    """Labels as lists of names → `ClassLabel`, or vectors of 0 and 1, the same in all splits; and the labels."""
    found = {split: _unique_labels(text) for split, text in texts.items()}
    labels = declared
    if not fixed:
        new = set().union(*found.values()).difference(declared)
        labels = [*declared, *(sorted(new, key=int) if _are_integers(new) else sorted(new))]
    if not labels:
        raise ValueError(
            f"{next(iter(sources.values())).where}: no row has a label. Say with `labels` what the labels are."
        )
    labels = settle_labels(labels, trained, sources)
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
            raise ValueError(f"{at(where, row)}: the label {unknown[0]!r} is not among the `labels`.")
        if names is None:
            targets.append(None)
        elif several:
            targets.append([float(label in names) for label in labels])
        else:
            targets.append(index_of[names[0]])
    return {"label": targets}
