"""Files for tests to read."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """JSON lines, in a folder that is made where there is none; gives the path back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write(path: Path, content: str | bytes) -> Path:
    """A text as UTF-8, or bytes as they are; gives the path back."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
