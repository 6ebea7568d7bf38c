"""How every message says where something is wrong, and what stands there."""

from typing import Any


def at(where: str = "", row: int | None = None, field: str | None = None) -> str:
    """
    The beginning of a message: ``train split (a.jsonl), row 3, field `tokens` ``.

    Args:
        where (`str`, *optional*): split and file, or file and line.
        row (`int`, *optional*): the row, from 0.
        field (`str`, *optional*): the field or column.
    """
    parts = (where, "" if row is None else f"row {row}", "" if field is None else f"field `{field}`")
    return ", ".join(filter(None, parts))


def shorten(value: Any, length: int = 80) -> str:
    """`repr` of a value, cut to a length that fits a message."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"
