"""Files and folders that a killed run leaves either whole or to be told from whole ones."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash
from filelock import FileLock, Timeout

MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"

_claims: dict[Path, FileLock] = {}


def write_whole(path: str | os.PathLike, text: str) -> None:
    """
    Writes a text file, which appears when it is whole and on the disk.

    Raises:
        `OSError`: naming the file.
    """
    path = Path(path)
    unfinished = path.with_name(f"{UNFINISHED}-{path.name}")
    try:
        with open(unfinished, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot be written: {error.strerror or error}", str(path)) from error


@contextmanager
def replaced_whole(folder: str | os.PathLike, last: str, is_main: bool = True) -> Iterator[Path]:
    """
    A new folder to write into; at the end of the block its files take the places of those in `folder`, each whole.

    Args:
        folder (`str` or `os.PathLike`): where the files go.
        last (`str`): the file without which the others are not read. It goes first, and its new version comes last, so
            that nobody reads old files beside new ones.
        is_main (`bool`, *optional*, defaults to `True`): whether this process moves the files.
    """
    unfinished = Path(folder, UNFINISHED)
    if is_main:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    yield unfinished
    if not is_main:
        return
    files = sorted(path for path in unfinished.rglob("*") if path.is_file())
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    Path(folder, last).unlink(missing_ok=True)
    for path in sorted(files, key=lambda path: path == unfinished / last):
        target = Path(folder, path.relative_to(unfinished))
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    shutil.rmtree(unfinished)


def seal(folder: str | os.PathLike) -> None:
    """
    Says that a folder is whole: writes `manifest.json` with the size and a hash of each of its files, when these are on
    the disk.
    """
    files = {}
    for path in _files(folder):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "xxh3_128": _hash(path)}
    manifest = {"sealed_at": time.time_ns(), "files": files}
    write_whole(Path(folder, MANIFEST), json.dumps(manifest, indent=2) + "\n")


def sealed_at(folder: str | os.PathLike) -> int:
    """When a folder was sealed, in nanoseconds; 0 where it was not, or nobody can read when."""
    try:
        return int(json.loads(Path(folder, MANIFEST).read_bytes())["sealed_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def sealed_files(folder: str | os.PathLike) -> set[str]:
    """The files of which a folder was sealed, with the way there; none where it was not, or nobody can read which."""
    try:
        return set(_read_files(Path(folder, MANIFEST)))
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def find_damage(folder: str | os.PathLike) -> str | None:
    """
    What a folder lacks to be as it was sealed, naming the file; `None` where it is whole. Reads all of its files.
    """
    manifest = Path(folder, MANIFEST)
    if not manifest.is_file():
        return f"{folder} was not written to its end"
    try:
        expected = {name: (each["size"], each["xxh3_128"]) for name, each in _read_files(manifest).items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{manifest} is damaged"
    for name, (size, digest) in expected.items():
        path = Path(folder, name)
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size:,} bytes and not {size:,}"
        if _hash(path) != digest:
            return f"{path} is damaged"
    return None


def _read_files(manifest: Path) -> dict:
    return json.loads(manifest.read_bytes())["files"]


def _files(folder: str | os.PathLike) -> list[Path]:
    return sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name != MANIFEST)


def _hash(path: Path) -> str:
    # finds any flipped bit, 20 times faster than SHA-256; it guards against bad disks, not against people
    with open(path, "rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def claim_folder(folder: str | os.PathLike, patience: float = 10.0) -> None:
    """
    Makes this process the only one that writes into a folder, until [`release_folder`] or its end, however it ends.

    Args:
        folder (`str` or `os.PathLike`): the folder, made if it is not there.
        patience (`float`, *optional*, defaults to 10.0): seconds to wait for a process that is about to end, such as the
            loader of a killed run.

    Raises:
        `OSError`: another process has claimed it.
    """
    folder = Path(folder).resolve()
    if folder in _claims:
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise OSError(
            f"Another run is writing into {folder}. Wait for it, or give this one another `output_dir`."
        ) from None
    _claims[folder] = lock


def release_folder(folder: str | os.PathLike) -> None:
    """Lets other processes write into a folder of [`claim_folder`]."""
    lock = _claims.pop(Path(folder).resolve(), None)
    if lock is not None:
        lock.release()
