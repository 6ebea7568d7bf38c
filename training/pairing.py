"""Gives the texts of a text-only data set pictures from an image bank, by the words alone."""

import json
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset, Features, Image, List, Value

# See `_CACHE_VERSION` in `data.py`: raise it when what `match` returns changes.
_CACHE_VERSION = 1


@dataclass(frozen=True)
class BankImage:
    """
    One picture of an [`ImageBank`].

    Attributes:
        image_id (`str`): The `id` of its row, or else its file name without the ending.
        path (`str`): Its file.
        name (`str`): What it shows.
        aliases (`tuple[str, ...]`): Other names for that.
        kind (`str` or `None`): The sort of picture, such as `"country_flag"`.
    """

    image_id: str
    path: str
    name: str
    aliases: tuple[str, ...] = ()
    kind: str | None = None


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


def fold(text: str) -> str:
    """Text without case and accents and with single spaces: `"Atlético  MADRID"` → `"atletico madrid"`."""
    decomposed = unicodedata.normalize("NFKD", text)
    return " ".join("".join(c for c in decomposed if not unicodedata.combining(c)).casefold().split())


class ImageBank:
    """
    Pictures that are found by name.

    Args:
        images (`Sequence[BankImage]`):
            The pictures. Where several have a name in common, the earlier one comes first.
        max_words (`int`, defaults to 6):
            Longest run of words that is looked up.

    Example:

    ```python
    >>> from vtfusion.training.pairing import BankImage, ImageBank

    >>> bank = ImageBank([BankImage("flag_de", "flag_de.jpg", "Germany", ("German",))])
    >>> [(match.text, match.image.image_id) for match in bank.match(["EU", "rejects", "German", "call"])]
    [('German', 'flag_de')]
    ```
    """

    def __init__(self, images: Sequence[BankImage], max_words: int = 6):
        self.images = list(images)
        self.max_words = max_words
        self._by_name: dict[str, list[BankImage]] = {}
        for image in self.images:
            for name in dict.fromkeys(fold(name) for name in (image.name, *image.aliases)):
                if name:
                    self._by_name.setdefault(name, []).append(image)

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def from_folder(cls, path: str | os.PathLike, max_words: int = 6) -> "ImageBank":
        """
        Reads a folder with a `metadata.jsonl`, a row for each picture: `image` (or `file_name`; the file, relative to
        the folder), `name`, and, as you like, `aliases` (a list), `kind` and `id`.

        Raises:
            `FileNotFoundError`: There is no `metadata.jsonl`, or a picture that it names is missing.
            `ValueError`: A line is not as described (file, line and field are named).
        """
        folder = os.path.abspath(os.path.expanduser(path))
        metadata = os.path.join(folder, "metadata.jsonl")
        if not os.path.isfile(metadata):
            raise FileNotFoundError(f"The image bank {folder} has no metadata.jsonl.")
        images: dict[str, BankImage] = {}
        with open(metadata, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{metadata}, line {number}"
                image = _read_bank_image(line, folder, where)
                if image.image_id in images:
                    raise ValueError(f"{where}: the image id {image.image_id!r} was there before.")
                images[image.image_id] = image
        if not images:
            raise ValueError(f"{metadata} names no image.")
        return cls(list(images.values()), max_words)

    def match(self, tokens: Sequence[str], kinds: Sequence[str] | None = None) -> list[ImageMatch]:
        """
        Finds names of pictures among the words of a text: from left to right, at each word that starts with a capital
        letter the longest run of words that is a name or an alias, case and accents aside. Runs do not overlap.

        Args:
            tokens (`Sequence[str]`):
                The words.
            kinds (`Sequence[str]`, *optional*):
                The kinds of pictures to use, the most wanted first: it decides where pictures of several kinds have
                the name ("Georgia"). By default all kinds, in the order of the bank.

        Returns:
            `list[ImageMatch]`: One picture for each run found.
        """
        folded = [fold(token) for token in tokens]
        matches = []
        start = 0
        while start < len(tokens):
            found = None
            if tokens[start][:1].isupper():
                for end in range(min(start + self.max_words, len(tokens)), start, -1):
                    image = self._first(" ".join(folded[start:end]), kinds)
                    if image is not None:
                        found = ImageMatch(start, end, " ".join(tokens[start:end]), image)
                        break
            if found is None:
                start += 1
            else:
                matches.append(found)
                start = found.end
        return matches

    def _first(self, name: str, kinds: Sequence[str] | None) -> BankImage | None:
        candidates = self._by_name.get(name, [])
        if kinds is not None:
            candidates = sorted((c for c in candidates if c.kind in kinds), key=lambda c: kinds.index(c.kind))
        return candidates[0] if candidates else None


def _read_bank_image(line: str, folder: str, where: str) -> BankImage:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}.")
    file_name, name, aliases = row.get("image", row.get("file_name")), row.get("name"), row.get("aliases") or []
    if not isinstance(file_name, str) or not file_name:
        raise ValueError(f"{where}: expected a string in the field 'image', got {file_name!r}.")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: expected a string in the field 'name', got {name!r}.")
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise ValueError(f"{where}: expected a list of strings in the field 'aliases', got {aliases!r}.")
    path = os.path.normpath(os.path.join(folder, file_name))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{where}: the image file {path} is missing.")
    image_id = row.get("id")
    image_id = os.path.splitext(os.path.basename(file_name))[0] if image_id is None else str(image_id)
    return BankImage(image_id, path, name, tuple(aliases), row.get("kind"))


def pair_dataset(
    dataset: Dataset, bank: ImageBank, max_images: int = 1, kinds: Sequence[str] | None = None
) -> Dataset:
    """
    Gives each text the pictures whose names are among its words. Only `tokens` is read, never a label: a picture
    chosen by the tags would give the answer away.

    Args:
        dataset (`Dataset`):
            With a column `tokens` and no column `images` or `image_ids`.
        bank ([`ImageBank`]):
            The pictures.
        max_images (`int`, defaults to 1):
            At most so many different pictures for a text, the leftmost ones.
        kinds (`Sequence[str]`, *optional*):
            See [`ImageBank.match`].

    Returns:
        `Dataset`: The same rows with `images` (`List(Image(decode=False))`, `None` where no name was found) and
        `image_ids` (`List(Value("string"))`, empty there).

    Raises:
        `ValueError`: `tokens` is missing, one of the new columns is there already, `max_images` is below 1, or the
        bank has no picture of one of the kinds.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from vtfusion.training.pairing import BankImage, ImageBank, pair_dataset

    >>> bank = ImageBank([BankImage("flag_de", "flag_de.jpg", "Germany", ("German",))])
    >>> pair_dataset(Dataset.from_dict({"tokens": [["German", "call"], ["no", "name"]]}), bank)["image_ids"][:]
    [['flag_de'], []]
    ```
    """
    if "tokens" not in dataset.column_names:
        raise ValueError(f"The data set has no column 'tokens'. It has: {', '.join(dataset.column_names)}.")
    for name in ("images", "image_ids"):
        if name in dataset.column_names:
            raise ValueError(f"The data set has a column {name!r} already: remove it first.")
    if max_images < 1:
        raise ValueError(f"`max_images` must be at least 1, got {max_images}.")
    known = {image.kind for image in bank.images}
    for kind in kinds or []:
        if kind not in known:
            raise ValueError(f"The bank has no image of the kind {kind!r}. It has: {', '.join(map(str, known))}.")
    return dataset.map(
        _pair,
        batched=True,
        input_columns=["tokens"],
        features=Features(
            {
                **dataset.features,
                "images": List(Image(decode=False)),
                "image_ids": List(Value("string")),
            }
        ),
        fn_kwargs={
            "bank": bank,
            "max_images": max_images,
            "kinds": None if kinds is None else list(kinds),
            "version": _CACHE_VERSION,
        },
        desc="Pairing texts with images",
    )


def _pair(
    tokens: list[list[str]], bank: ImageBank, max_images: int, kinds: list[str] | None, version: int
) -> dict[str, list]:
    images, image_ids = [], []
    for words in tokens:
        # A dict keeps the order and drops a picture that is named twice.
        found = {match.image.image_id: match.image for match in bank.match(words, kinds)}
        chosen = list(found.values())[:max_images]
        images.append([{"bytes": None, "path": image.path} for image in chosen] or None)
        image_ids.append([image.image_id for image in chosen])
    return {"images": images, "image_ids": image_ids}
