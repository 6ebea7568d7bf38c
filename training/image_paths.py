"""Which files a data file may name as its images: those in its own folder, in `image_folder`, and no others unasked."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import datasets
from huggingface_hub import constants

from .messages import shorten

_HUB = "hf://datasets/"


@dataclass(frozen=True)
class ImageFolders:
    """
    Where the images of a data file lie. Whoever wrote the file is not trusted with the rest of the disk: what it names
    is opened only inside of `allowed`, wherever links lead, unless `allow_outside_paths`.

    Args:
        base (`str`, *optional*): what relative paths start from.
        allowed (`tuple[str, ...]`, *optional*): folders in which, however deep, an image may lie.
        hub_name (`str`, *optional*): the data set on the Hub whose own files may be named by their address.
        allow_outside_paths (`bool`, *optional*, defaults to `False`): whether any path may be opened.
    """

    base: str | None = None
    allowed: tuple[str, ...] = ()
    hub_name: str | None = None
    allow_outside_paths: bool = False

    @classmethod
    def of_file(
        cls, folder: str, image_folder: str | None = None, allow_outside_paths: bool = False
    ) -> "ImageFolders":
        """
        For a file, or a saved data set.

        Args:
            folder (`str`): the folder in which it lies.
            image_folder (`str`, *optional*): what the user named as the folder of the images.
            allow_outside_paths (`bool`, *optional*, defaults to `False`): what the user allowed.
        """
        allowed = [folder if image_folder is None else image_folder, folder]
        hub_cache = os.path.realpath(constants.HF_HUB_CACHE)
        if _lies_in(os.path.realpath(folder), hub_cache):
            # A snapshot of the Hub: its files are links to the blobs that lie beside it.
            repository = os.path.relpath(os.path.realpath(folder), hub_cache).split(os.sep)[0]
            allowed.append(os.path.join(hub_cache, repository))
        return cls(allowed[0], tuple(dict.fromkeys(allowed)), allow_outside_paths=allow_outside_paths)

    @classmethod
    def of_name(
        cls,
        name: str,
        image_folder: str | None = None,
        allow_outside_paths: bool = False,
        cache_dir: str | None = None,
    ) -> "ImageFolders":
        """
        For what `load_dataset` loads by name: it lies in that folder, or in the caches of the Hub and of `datasets`.

        Args:
            name (`str`): a folder, or a data set on the Hub.
            image_folder (`str`, *optional*): what the user named as the folder of the images.
            allow_outside_paths (`bool`, *optional*, defaults to `False`): what the user allowed.
            cache_dir (`str`, *optional*): where `datasets` keeps what it has read.
        """
        folder = os.path.abspath(os.path.expanduser(name))
        local = folder if os.path.isdir(folder) else None
        caches = [cache_dir or datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH]
        caches += [datasets.config.EXTRACTED_DATASETS_PATH, constants.HF_HUB_CACHE]
        allowed = [str(place) for place in (image_folder, local, *caches) if place is not None]
        hub_name = name if local is None else None
        return cls(image_folder or local, tuple(dict.fromkeys(allowed)), hub_name, allow_outside_paths)

    def outside(self, paths: Iterable[str]) -> set[str]:
        """
        Those of some paths that may not be opened. No file is.

        Args:
            paths (`Iterable[str]`): of files, or addresses in an archive (`zip://…::…`) or on the Hub (`hf://…`).
        """
        if self.allow_outside_paths:
            return set()
        real_folder = cache(os.path.realpath)
        allowed = [real_folder(folder) for folder in self.allowed]

        def is_outside(path: str) -> bool:
            if "://" in path:
                *members, path = path.split("::")
                if not all(member.startswith("zip://") for member in members):
                    return True
                if "://" in path:
                    return not self._is_own_address(path)
            folder, name = os.path.split(path)
            real = os.path.join(real_folder(folder), name)
            if name in ("", ".", "..") or os.path.islink(real):
                real = os.path.realpath(path)
            return not any(_lies_in(real, root) for root in allowed)

        return {path for path in paths if is_outside(path)}

    def refuse(self, path: str, place: str) -> ValueError:
        """
        What to raise at a path that may not be opened.

        Args:
            path (`str`): the path.
            place (`str`): file, row and field.
        """
        inside = " or ".join(self.allowed[:2]) if self.hub_name is None else "the data set"
        return ValueError(
            f"{place}: the image {shorten(path)} does not lie in {inside or 'a folder that was given'}. Only if you trust "
            "this data: name the folder of the images with `image_folder`, or allow any path with `allow_outside_paths`."
        )

    def _is_own_address(self, path: str) -> bool:
        own = f"{_HUB}{self.hub_name}"
        return self.hub_name is not None and path.startswith((f"{own}/", f"{own}@")) and ".." not in path.split("/")


def _lies_in(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def image_item(value: Any, base: str | None, place: str) -> dict[str, Any] | None:
    """
    One image of a row as `datasets` stores it undecoded: `{"bytes", "path"}`. Whether its path may be opened is another
    question, for [`ImageFolders`].

    Args:
        value (`Any`): a path, bytes, a dict with both or one of them, or null or `""` for no image.
        base (`str`, *optional*): what relative paths start from.
        place (`str`): file, row and field, for messages.

    Returns:
        `dict` or `None`: a dict with `bytes` and `path`, `None` for no image.

    Raises:
        `ValueError`: The value is none of these, or a path that no file can have, or a URL, or relative without `base`.
    """
    content, path = None, value
    if isinstance(value, bytes):
        content, path = value, None
    elif isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path")
    if not isinstance(content, bytes | None) or not isinstance(path, str | None):
        raise ValueError(
            f"{place}: expected the path of an image, its bytes, or a dict with 'bytes' and 'path', got {shorten(value)}."
        )
    if content is not None:
        return {"bytes": content, "path": path}
    if not path:
        return None
    if re.match("https?://", path, re.IGNORECASE):
        raise ValueError(f"{place}: {shorten(path)} is a URL. Nothing is downloaded here: download the images first.")
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise ValueError(f"{place}: no file can have the path {shorten(path)}.")
    if "://" in path or os.path.isabs(path):  # `datasets` names a file in an archive `zip://…`
        return {"bytes": None, "path": path}
    if base is None:
        raise ValueError(f"{place}: {shorten(path)} is a relative path. Say with `image_folder` where it starts from.")
    return {"bytes": None, "path": os.path.normpath(os.path.join(base, path))}
