"""Questions whose answers stand in a text, or are about images, from the Hub or from files: `question`, `answers`, `images`."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Unpack

import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, List, Value

from .columns import (
    TrainedLabels,
    WantedColumns,
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
from .sources import Origin, load_sources

QUESTION_COLUMNS = ("question", "query")
CONTEXT_COLUMNS = ("context", "passage", "tokens", "words")
_ANSWERS_COLUMNS = ("answers", "answer")

# How a text begins that is a list with texts or dicts in it, or a dict, as a CSV file has it.
_STRUCTURES = ('["', "['", "[{", '{"', "{'", "[]")


def load_question_answering_dataset(
    dataset_name: str | None = None,
    *,
    question_column: str | None = None,
    context_column: str | None = None,
    answers_column: str | None = None,
    image_column: str | None = None,
    **origin: Unpack[Origin],
) -> DatasetDict:
    """
    Loads a data set of questions whose answers stand in a text, as in SQuAD.

    Args:
        dataset_name (`str`, *optional*):
            A data set on the Hub, or a folder saved by `DatasetDict.save_to_disk`.
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
            `train` may do without, or have nothing but nulls in it, for instance those to predict.
        image_column (`str`, *optional*):
            Column with the image or images, see [`~training.token_data.load_token_classification_dataset`].
        origin (*optional*):
            Files instead of `dataset_name`, and all else that says where data is, see [`~training.sources.Origin`].

    Returns:
        `DatasetDict`: Each split has `id` (`Value("string")`, of the column `id`, or else the number of the row),
        `question`, `context`, `answers` (`{"text": List(Value("string")), "answer_start": List(Value("int32"))}`,
        `None` in a split, other than `train`, that has no answers), `images` (`List(Image(decode=False))`, `None` for a row without; only if any split has images) and the other
        columns as they were.

    Raises:
        `ValueError`: A column or a row is not as described, or an answer does not stand in the context where it
            should; file, row and field are named.
        `FileNotFoundError`: A data or image file does not exist.

    Example:

    ```python
    >>> from vtfusion.training.question_data import load_question_answering_dataset

    >>> dataset = load_question_answering_dataset(train_file="train.jsonl", context_column="tokens")  # doctest: +SKIP
    >>> dataset["train"][0]["answers"]  # doctest: +SKIP
    {'text': ['25/12/2018'], 'answer_start': [156]}
    ```
    """
    sources = load_sources(dataset_name, **origin)
    answers_columns = find_targets("answers_column", answers_column, _ANSWERS_COLUMNS, sources)
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
            "question_column": (question_column, QUESTION_COLUMNS),
            "context_column": (context_column, CONTEXT_COLUMNS),
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
            answers_column=answers if split == "train" or first_value(source, answers) is not None else None,
        )
    return join_columns(sources, texts, used, image_column)


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
        id_ = row if id_column is None else batch[id_column][position]
        if not isinstance(id_, str | int):
            raise ValueError(f"{at(where, row, id_column)}: expected a string or an integer, got {shorten(id_)}.")
        context = read_context(batch[context_column][position], at(where, row, context_column))
        result["id"].append(str(id_))
        result["question"].append(read_string(batch[question_column][position], at(where, row, question_column)))
        result["context"].append(context)
        answers = None
        if answers_column is not None:
            answers = _located_answers(batch[answers_column][position], context, at(where, row, answers_column))
        result["answers"].append(answers)
    return result


def read_context(value: Any, place: str) -> str:
    """
    A text, or a list of words joined by spaces.

    Args:
        value (`Any`): of a row.
        place (`str`): file, row and field, for messages.

    Raises:
        `ValueError`: It is neither.
    """
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        value = " ".join(value)
    if not isinstance(value, str):
        raise ValueError(f"{place}: expected a text or a list of words, got {shorten(value)}.")
    return value


def _located_answers(value: Any, context: str, place: str) -> dict[str, list]:
    value = parse_cell(value, _STRUCTURES)
    pairs: list[tuple[Any, Any]] = []
    if not is_missing(value):
        for item in value if isinstance(value, list) else [value]:
            pairs += _pairs(item, "answer_start", place) if isinstance(item, dict) else [(item, None)]
    starts = []
    for text, start in pairs:
        if not isinstance(text, str) or is_missing(text):
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


def load_visual_question_answering_dataset(
    dataset_name: str | None = None,
    *,
    question_column: str | None = None,
    answer_column: str | None = None,
    image_column: str | None = None,
    answer_names: Sequence[str] | None = None,
    trained: TrainedLabels | None = None,
    max_answers: int | None = None,
    **origin: Unpack[Origin],
) -> tuple[DatasetDict, list[str]]:
    """
    Loads a data set of questions about images, with the answers that a model can learn to choose from.

    Args:
        dataset_name (`str`, *optional*):
            A data set on the Hub, or a folder saved by `DatasetDict.save_to_disk`.
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
            The answers to choose from. By default those of the training split.
        trained ([`TrainedLabels`], *optional*):
            What a model knows already. Its answers are those to choose from where they hold all of the training split,
            or there is none.
        max_answers (`int`, *optional*):
            How many answers of the training split to choose from; all by default.
        image_column (`str`, *optional*):
            Column with the image or images, see [`~training.token_data.load_token_classification_dataset`].
        origin (*optional*):
            Files instead of `dataset_name`, and all else that says where data is, see [`~training.sources.Origin`].

    Returns:
        `tuple[DatasetDict, list[str]]`: the splits and the answers to choose from, those of the most rows of the
        training split first, ties in alphabetical order. Each split has `question`, `answers`
        (`{"text": List(Value("string")), "score": List(Value("float32"))}`, with answers that cannot be chosen too;
        `None` in a split that has no answers), `images` (`List(Image(decode=False))`, `None` for a row without; only if any split has images) and the other
        columns as they were.

    Raises:
        `ValueError`: A column or a row is not as described; file, row and field are named.
        `FileNotFoundError`: A data or image file does not exist.

    Example:

    ```python
    >>> from vtfusion.training.question_data import load_visual_question_answering_dataset

    >>> dataset, answers = load_visual_question_answering_dataset(train_file="train.jsonl")  # doctest: +SKIP
    >>> dataset["train"][0]["question"], dataset["train"][0]["answers"]  # doctest: +SKIP
    ('what color is the shape?', {'text': ['blue'], 'score': [1.0]})
    ```
    """
    if answer_names is not None and len(set(answer_names)) < len(answer_names):
        raise ValueError("An answer stands twice in `answer_names`.")
    if max_answers is not None and max_answers < 1:
        raise ValueError(f"`max_answers` must be at least 1, got {max_answers}.")
    sources = load_sources(dataset_name, **origin)
    if answer_names is None and trained is not None and "train" not in sources:
        answer_names = trained.names
    if answer_names is not None and max_answers is not None:
        raise ValueError("`max_answers` cuts the answers of the training split: it does nothing to given ones.")
    if answer_names is None and "train" not in sources:
        raise ValueError(
            "There is no train split whose answers could be chosen from: give one, or a trained model, or say with "
            "`answer_names` what they are."
        )
    answer_columns = find_targets("answer_column", answer_column, _ANSWERS_COLUMNS, sources)
    features = Features(
        {
            "question": Value("string"),
            "answers": {"text": List(Value("string")), "score": List(Value("float32"))},
        }
    )
    texts: dict[str, Dataset] = {}
    used: dict[str, set[str]] = {}
    for split, source in sources.items():
        wanted: WantedColumns = {"question_column": (question_column, QUESTION_COLUMNS)}
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
            has_answers=first_value(source, answer) is not None,
        )
    names = _frequent_answers(texts["train"], max_answers) if answer_names is None else list(answer_names)
    if not names:
        raise ValueError(f"{sources['train'].where}: no row has an answer.")
    return join_columns(sources, texts, used, image_column), settle_labels(names, trained, sources)


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
        place = at(where, row, answer_column)
        answer = None if answer_column is None else batch[answer_column][position]
        if has_answers and is_missing(answer):
            raise ValueError(f"{place}: expected an answer, as in other rows, got {shorten(answer)}.")
        result["question"].append(read_string(batch[question_column][position], at(where, row, question_column)))
        result["answers"].append(_scored_answers(answer, place) if has_answers else None)
    return result


def _scored_answers(value: Any, place: str) -> dict[str, list]:
    value = parse_cell(value, _STRUCTURES)
    if is_missing(value):
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
    counts = Counter(_answer(item, place) for item in given if not is_missing(item))
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
    if isinstance(value, bool) or not isinstance(value, str | int) or is_missing(value):
        raise ValueError(f"{place}: expected an answer (a string), got {shorten(value)}.")
    return str(value)


def _frequent_answers(train: Dataset, max_answers: int | None) -> list[str]:
    answers = pc.list_flatten(pc.struct_field(train.data.column("answers"), "text"))
    counts = [(entry["values"], entry["counts"]) for entry in pc.value_counts(answers).to_pylist()]
    return [text for text, _ in sorted(counts, key=lambda entry: (-entry[1], entry[0]))][:max_answers]


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
