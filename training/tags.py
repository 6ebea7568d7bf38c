"""Tag schemes of entity recognition: IOB1, IOB2, BIOES and BILOU are read, IOB2 is what the rest of the package uses."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

# What may stand before the hyphen. `O` has no entity type and is handled by itself.
_PREFIXES = {"IOB1": "BI", "IOB2": "BI", "BIOES": "BIES", "BILOU": "BILU"}
_CONTINUES = "IEL"  # claim to go on with the entity before
_LEAVES_OPEN = "BI"  # an entity can go on after these

SCHEMES = tuple(_PREFIXES)


@dataclass(frozen=True)
class StrayInsideTags:
    """How many tags claim to continue an entity that is not there, and where the first one is.

    Attributes:
        count (`int`): Number of stray tags; 0 when there is none.
        row (`int` or `None`): Index of the first sequence with a stray tag.
        position (`int` or `None`): Index of its first stray tag in that sequence.
        tag (`str` or `None`): That tag.
    """

    count: int
    row: int | None
    position: int | None
    tag: str | None


@lru_cache(maxsize=65536)
def split_tag(tag: str) -> tuple[str, str]:
    """Splits a tag into its prefix and entity type: `"B-PER"` → `("B", "PER")`, `"O"` → `("O", "")`.

    Raises:
        `ValueError`: The tag is neither `O` nor one of `B`, `I`, `E`, `S`, `L`, `U`, a hyphen and a type.
    """
    if tag == "O":
        return "O", ""
    prefix, hyphen, entity_type = tag.partition("-") if isinstance(tag, str) else ("", "", "")
    if prefix not in ("B", "I", "E", "S", "L", "U") or not hyphen or not entity_type:
        raise ValueError(
            f"{tag!r} is not an entity tag. Expected 'O', or one of B, I, E, S, L, U followed by a hyphen and the "
            "entity type, as in 'B-PER'."
        )
    return prefix, entity_type


def _read(
    tags: Sequence[str], prefixes: str = "BIESLU", scheme: str | None = None, row: int | None = None
) -> Iterator[tuple[str, str, bool]]:
    """Yields (prefix, type, whether the tag continues the entity before it) for each tag of one sequence."""
    open_type = None
    for position, tag in enumerate(tags):
        where = f"position {position}" if row is None else f"row {row}, position {position}"
        try:
            prefix, entity_type = split_tag(tag)
        except (TypeError, ValueError) as error:  # TypeError: what cannot be hashed
            raise ValueError(f"{where}: {error}") from None
        if prefix != "O" and prefix not in prefixes:
            raise ValueError(f"{where}: tag {tag!r} does not belong to the scheme {scheme}.")
        yield prefix, entity_type, prefix in _CONTINUES and entity_type == open_type
        open_type = entity_type if prefix in _LEAVES_OPEN else None


def _check_scheme(scheme: str) -> str:
    scheme = scheme.upper()
    if scheme not in _PREFIXES:
        raise ValueError(f"Unknown tag scheme {scheme!r}. Known ones: {', '.join(SCHEMES)}.")
    return scheme


def detect_scheme(sequences: Iterable[Sequence[str]]) -> str:
    """
    Tells which scheme a whole data set uses.

    `E-`/`S-` tags mean BIOES and `L-`/`U-` tags mean BILOU. With only `B-` and `I-` two things are counted: entities
    that begin with `I-`, which IOB2 does not have, and each `B-X` that does not follow a tag of the same type X, which
    IOB1 does not have, since there `B-` only parts two neighbours. Real files have a few of the wrong kind
    (CoNLL-2003's own IOB1 training file has two), so the data set is IOB1 if there are more of the first, else IOB2.
    Give all the sequences at once: a single sentence is often valid in several schemes.

    Args:
        sequences (`Iterable[Sequence[str]]`):
            The tags of every text.

    Returns:
        `str`: `"IOB1"`, `"IOB2"`, `"BIOES"` or `"BILOU"`.

    Raises:
        `ValueError`: A tag cannot be read (row, position and tag are named), or `E-`/`S-` and `L-`/`U-` are mixed.

    Example:

    ```python
    >>> from vtfusion.training.tags import detect_scheme

    >>> detect_scheme([["I-PER", "I-PER", "O", "I-LOC", "B-LOC"]])
    'IOB1'
    ```
    """
    seen: dict[str, str] = {}  # each prefix, and where it is first
    not_iob2 = not_iob1 = 0
    for row, tags in enumerate(sequences):
        previous_type = None
        for position, (prefix, entity_type, continues) in enumerate(_read(tags, row=row)):
            if prefix not in seen:
                seen[prefix] = f"{tags[position]!r} in row {row}, position {position}"
            if prefix == "I" and not continues:
                not_iob2 += 1
            elif prefix == "B" and entity_type != previous_type:
                not_iob1 += 1
            previous_type = entity_type or None
    bioes, bilou = ([seen[prefix] for prefix in prefixes if prefix in seen] for prefixes in ("ES", "LU"))
    if bioes and bilou:
        raise ValueError(f"The tags mix the schemes BIOES ({bioes[0]}) and BILOU ({bilou[0]}).")
    if bioes:
        return "BIOES"
    if bilou:
        return "BILOU"
    return "IOB1" if not_iob2 > not_iob1 else "IOB2"


def to_iob2(tags: Sequence[str], scheme: str | None = None, row: int | None = None) -> list[str]:
    """
    Rewrites the tags of one text in IOB2, where every entity starts with `B-`.

    A stray `I-X` (also `E-X`, `L-X`), one that does not continue an entity of type X, is read as `B-X`, which is how
    the `conlleval` script of CoNLL-2003 counts it. [`find_stray_inside_tags`] tells how many there are.

    Args:
        tags (`Sequence[str]`):
            The tags of one text.
        scheme (`str`, *optional*):
            `"IOB1"`, `"IOB2"`, `"BIOES"` or `"BILOU"`. By default any of their prefixes is read; the four do not
            contradict each other, so this only turns off the check that no foreign prefix occurs.
        row (`int`, *optional*):
            Index of the text, for error messages.

    Returns:
        `list[str]`: As many tags as were given.

    Raises:
        `ValueError`: A tag cannot be read or does not belong to `scheme` (row, position and tag are named).

    Example:

    ```python
    >>> from vtfusion.training.tags import to_iob2

    >>> to_iob2(["I-PER", "I-PER", "O", "S-LOC"])
    ['B-PER', 'I-PER', 'O', 'B-LOC']
    ```
    """
    prefixes = "BIESLU"
    if scheme is not None:
        scheme = _check_scheme(scheme)
        prefixes = _PREFIXES[scheme]
    return [
        "O" if prefix == "O" else f"{'I' if continues else 'B'}-{entity_type}"
        for prefix, entity_type, continues in _read(tags, prefixes, scheme, row)
    ]


def find_stray_inside_tags(sequences: Iterable[Sequence[str]], scheme: str = "IOB2") -> StrayInsideTags:
    """
    Counts the tags that claim to continue an entity but have none before them: in IOB2, `I-X` at the start, after
    `O`, or after another type. In IOB1 an entity may start with `I-`, so nothing is stray there.

    Args:
        sequences (`Iterable[Sequence[str]]`):
            The tags of every text.
        scheme (`str`, defaults to `"IOB2"`):
            The scheme they are in.

    Returns:
        [`StrayInsideTags`]: The count, and row, position and tag of the first one.
    """
    scheme = _check_scheme(scheme)
    if scheme == "IOB1":
        return StrayInsideTags(0, None, None, None)
    count = 0
    first: tuple[int | None, int | None, str | None] = (None, None, None)
    for row, tags in enumerate(sequences):
        for position, (prefix, _, continues) in enumerate(_read(tags, _PREFIXES[scheme], scheme, row)):
            if prefix in _CONTINUES and not continues:
                if not count:
                    first = (row, position, tags[position])
                count += 1
    return StrayInsideTags(count, *first)


def iob2_label_names(entity_types: Iterable[str]) -> list[str]:
    """
    The full list of IOB2 labels for some entity types: `["PER"]` → `["O", "B-PER", "I-PER"]`.

    Args:
        entity_types (`Iterable[str]`):
            The entity types, in the order wanted. Repeats are dropped.

    Returns:
        `list[str]`: `O`, then `B-` and `I-` of each type.
    """
    return ["O", *(f"{prefix}-{name}" for name in dict.fromkeys(entity_types) for prefix in "BI")]
