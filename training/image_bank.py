"""Collections of pictures with names or captions: reading them, and finding their names among words."""

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .image_paths import ImageFolders, image_item
from .messages import at
from .sources import named_encoding, read_json_object

MATCH_CASES = ("capital", "ignore", "exact")


@dataclass(frozen=True)
class BankImage:
    """
    One picture of an [`ImageBank`].

    Attributes:
        image_id (`str`): The `id` of its row, or else its file name without the ending.
        path (`str`): Its file.
        name (`str` or `None`): What it shows.
        aliases (`tuple[str, ...]`): Other names for that.
        kind (`str` or `None`): The sort of picture, such as `"country_flag"`.
        captions (`tuple[str, ...]`): Sentences that describe it.
    """

    image_id: str
    path: str
    name: str | None = None
    aliases: tuple[str, ...] = ()
    kind: str | None = None
    captions: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """`tuple[str, ...]`: The name and the aliases."""
        return self.aliases if self.name is None else (self.name, *self.aliases)

    @property
    def texts(self) -> tuple[str, ...]:
        """`tuple[str, ...]`: What retrieval compares a sentence with: the captions, or the names where there are none."""
        return self.captions or self.names


@dataclass(frozen=True)
class ImageMatch:
    """
    A run of words that is the name of a picture.

    Attributes:
        start (`int`): Index of the first word.
        end (`int`): Index after the last word.
        text (`str`): The words.
        image (`BankImage`): The picture.
    """

    start: int
    end: int
    text: str
    image: BankImage


@lru_cache(maxsize=65536)  # a corpus says the same words over and over
def fold(text: str) -> str:
    """
    Text without case and accents and with single spaces: `"Atlético  MADRID"` → `"atletico madrid"`. Accents are the
    marks of Latin and Greek letters; in other scripts a mark makes another letter (`"パ"` is not `"ハ"`).
    """
    kept, has_accents = [], False
    for character in unicodedata.normalize("NFKD", text):
        if not unicodedata.combining(character):
            has_accents = unicodedata.name(character, "").startswith(("LATIN ", "GREEK "))
        elif has_accents:
            continue
        kept.append(character)
    return " ".join(unicodedata.normalize("NFC", "".join(kept).casefold()).split())


def _keep_case(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


class ImageBank:
    """
    Pictures with names, captions or both.

    Args:
        images (`Sequence[BankImage]`):
            The pictures. Where several have a name in common, the earlier one is found by it.
        max_words (`int`, defaults to 6):
            Longest run of words that is looked up.
        match_case (`str`, defaults to `"capital"`):
            Which runs of words may be a name. `"capital"`: those whose first word starts with a capital letter; case
            and accents do not matter beyond that ("GEORGIA", "Atletico Madrid"), so that "Turkey" is found and "turkey"
            is not. `"ignore"`: all runs, for common nouns and for scripts without capitals. `"exact"`: those that are
            written letter for letter like the name, for names such as "IT" and "US" that are also words.

    Raises:
        `ValueError`: `match_case` is none of these, or two pictures have the same id.

    Example:

    ```python
    >>> from vtfusion.training.image_bank import BankImage, ImageBank

    >>> bank = ImageBank([BankImage("flag_de", "flag_de.jpg", "Germany", ("German",))])
    >>> [(match.text, match.image.image_id) for match in bank.match(["EU", "rejects", "German", "call"])]
    [('German', 'flag_de')]
    ```
    """

    def __init__(self, images: Sequence[BankImage], max_words: int = 6, match_case: str = "capital"):
        if match_case not in MATCH_CASES:
            raise ValueError(f"`match_case` takes {', '.join(MATCH_CASES)}; got {match_case!r}.")
        self.images = list(images)
        self.max_words = max_words
        self.match_case = match_case
        self._normalize = _keep_case if match_case == "exact" else fold
        self._by_name: dict[str, BankImage] = {}
        ids: set[str] = set()
        for image in self.images:
            if image.image_id in ids:
                raise ValueError(f"Two images of the bank have the id {image.image_id!r}.")
            ids.add(image.image_id)
            for name in image.names:
                if normalized := self._normalize(name):
                    self._by_name.setdefault(normalized, image)
        # No need to look up runs that are longer than every name.
        self._longest = min(max_words, max((name.count(" ") + 1 for name in self._by_name), default=0))

    def __len__(self) -> int:
        return len(self.images)

    def __reduce__(self) -> tuple[Any, ...]:
        # What is sent to other processes and hashed by `datasets` is the pictures, not the index made from them.
        return type(self), (self.images, self.max_words, self.match_case)

    @classmethod
    def from_folder(
        cls,
        path: str | os.PathLike,
        max_words: int = 6,
        match_case: str = "capital",
        kinds: Sequence[str] | None = None,
        allow_outside_paths: bool = False,
    ) -> "ImageBank":
        """
        Reads a folder with a `metadata.jsonl`, a row for each picture: `image` (or `file_name`; the file, relative to
        the folder), `name` or `captions` (a list) or both, and, as you like, `aliases` (a list), `kind` and `id`.

        Args:
            path (`str` or `os.PathLike`):
                The folder.
            max_words, match_case:
                See [`ImageBank`].
            kinds (`Sequence[str]`, *optional*):
                See [`ImageBank.select_kinds`]. By default all kinds, in the order of the file.
            allow_outside_paths (`bool`, *optional*, defaults to `False`):
                Whether pictures may lie outside of the folder.

        Raises:
            `FileNotFoundError`: There is no `metadata.jsonl`, or a picture that it names is missing.
            `ValueError`: A line is not as described, or its picture lies outside of the folder (file, line and field are
            named), or a kind does not occur.
        """
        folder = os.path.abspath(os.path.expanduser(path))
        metadata = os.path.join(folder, "metadata.jsonl")
        if not os.path.isfile(metadata):
            raise FileNotFoundError(f"The image bank {folder} has no metadata.jsonl.")
        folders = ImageFolders.of_file(folder, allow_outside_paths=allow_outside_paths)
        images: dict[str, BankImage] = {}
        with open(metadata, encoding="utf-8-sig") as file, named_encoding(metadata):
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{metadata}, line {number}"
                image = _read_bank_image(line, folders, where)
                if image.image_id in images:
                    raise ValueError(
                        f"{at(where, field='id')}: the image id {image.image_id!r} was there before. Give each row a different one."
                    )
                images[image.image_id] = image
        if not images:
            raise ValueError(f"{metadata} names no image.")
        bank = cls(list(images.values()), max_words, match_case)
        return bank if kinds is None else bank.select_kinds(kinds)

    def select_kinds(self, kinds: Sequence[str]) -> "ImageBank":
        """
        A bank of the pictures of some kinds, the most wanted kind first: it decides where pictures of several kinds
        have a name ("Georgia").

        Raises:
            `ValueError`: The bank has no picture of one of the kinds.
        """
        known = dict.fromkeys(image.kind for image in self.images)
        for kind in kinds:
            if kind not in known:
                raise ValueError(
                    f"The bank has no image of the kind {kind!r} (`kinds`). It has: {', '.join(map(str, known))}."
                )
        order: dict[str | None, int] = {kind: place for place, kind in enumerate(kinds)}
        chosen = sorted((image for image in self.images if image.kind in order), key=lambda image: order[image.kind])
        return ImageBank(chosen, self.max_words, self.match_case)

    def match(self, tokens: Sequence[str]) -> list[ImageMatch]:
        """
        Finds names of pictures among the words of a text: from left to right, at each word the longest run of words
        that is a name or an alias. Runs do not overlap. `match_case` says which runs count.

        Args:
            tokens (`Sequence[str]`):
                The words.

        Returns:
            `list[ImageMatch]`: One picture for each run found.
        """
        normalized = [self._normalize(token) for token in tokens]
        matches = []
        start = 0
        while start < len(tokens):
            found = None
            if self.match_case != "capital" or tokens[start][:1].isupper():
                for end in range(min(start + self._longest, len(tokens)), start, -1):
                    image = self._by_name.get(" ".join(normalized[start:end]))
                    if image is not None:
                        found = ImageMatch(start, end, " ".join(tokens[start:end]), image)
                        break
            if found is None:
                start += 1
            else:
                matches.append(found)
                start = found.end
        return matches


def _read_bank_image(line: str, folders: ImageFolders, where: str) -> BankImage:
    row = read_json_object(line, where)
    place, file_name, name = at(where, field="image"), row.get("image", row.get("file_name")), row.get("name")
    item = image_item(file_name, folders.base, place) if isinstance(file_name, str) else None
    if item is None:
        raise ValueError(f"{place}: expected a string, got {file_name!r}.")
    texts = {}
    for field in ("aliases", "captions"):
        values = row.get(field) or []
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ValueError(f"{at(where, field=field)}: expected a list of strings, got {values!r}.")
        texts[field] = tuple(value for value in values if value.strip())
    if (name is not None and not isinstance(name, str)) or not (name or texts["captions"]):
        raise ValueError(
            f"{at(where, field='name')}: expected a string (or a list of strings in `captions`), got {name!r}."
        )
    path = item["path"]
    if folders.outside([path]):
        raise folders.refuse(path, place)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{place}: the image file {path} is missing.")
    for field in ("id", "kind"):
        if not isinstance(row.get(field), str | int | None):
            raise ValueError(f"{at(where, field=field)}: expected a string or an integer, got {row[field]!r}.")
    image_id = row.get("id")
    image_id = os.path.splitext(os.path.basename(path))[0] if image_id is None else str(image_id)
    return BankImage(image_id, path, name or None, texts["aliases"], row.get("kind"), texts["captions"])
