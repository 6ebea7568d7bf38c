"""Files of JSON lines. Nothing is imported that another environment might not have."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def read_json_lines(file: str | Path) -> list[Any]:
    """What stands in each line."""
    with open(file, encoding="utf-8") as lines:  # `splitlines` would also split at characters that may stand in a text
        return [json.loads(line) for line in lines]


def write_json_lines(file: str | Path, rows: Iterable[Any]) -> None:
    """A line for each row."""
    with open(file, "w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
