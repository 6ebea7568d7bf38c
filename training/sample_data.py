"""
A small synthetic data set for named entity recognition in which only the picture decides.

Every sentence holds one invented name. In the ambiguous rows the same sentence occurs once for each entity type, so
that nothing in the text says whether the name is a person, a place, an organisation or a product: the drawing beside
it does. A model that ignores the pictures cannot pass `text_only_ceiling`, and one that trusts them blindly fails on
the rows where the text gives the type away and the picture is unrelated. Everything here is synthetic: sentences,
names and drawings are made by the code below from a seed, nothing is downloaded.

```python
>>> from vtfusion.training.sample_data import build_sample_dataset, text_only_ceiling

>>> dataset = build_sample_dataset(seed=0, num_train=40, num_validation=20, num_test=20)
>>> dataset["train"].column_names
['id', 'tokens', 'ner_tags', 'images', 'boxes', 'kind']
>>> text_only_ceiling(dataset["test"], kinds=("ambiguous", "several_images"))
0.25
```
"""

import io
import itertools
import random
import string
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, BertTokenizer, ResNetConfig, ResNetModel, ViTImageProcessor

from .sample_pictures import ENTITY_TYPES, Style, draw_picture, drawing_styles

LABEL_NAMES = ("O", *(f"{prefix}-{entity}" for entity in ENTITY_TYPES for prefix in "BI"))
SPLITS = ("train", "validation", "test")
KINDS = ("ambiguous", "unambiguous", "no_image", "several_images")

# `{}` is the name. Each has to read naturally for a person, a place, an organisation and a product alike.
AMBIGUOUS_TEMPLATES = (
    "Nobody had heard of {} until last week .",
    "We finally saw {} yesterday .",
    "{} is all anyone talks about today .",
    "My sister told me about {} last night .",
    "I took this picture of {} this morning .",
    "Here is {} at last !",
    "Does anyone know more about {} ?",
    "Look , this is {} !",
    "Everyone in our family loves {} .",
    "I never understood the fuss about {} .",
    "The story of {} begins here .",
    "{} was in the news again .",
    "Still thinking of {} tonight .",
    "{} has changed a lot in ten years .",
    "A short film about {} won the prize .",
    "First look at {} , more later .",
    "You will hear much more of {} this year .",
    "The magazine printed a long piece on {} .",
    "Ten things you did not know about {} .",
    "She wrote a poem about {} .",
    "I would not trade {} for anything .",
    "There is only one {} .",
    "So that is what {} looks like .",
    "{} , as seen on television .",
    "Goodbye {} , and thank you .",
    "The children drew {} at school today .",
    "Is it true what they say about {} ?",
    "What would we do without {} ?",
)

UNAMBIGUOUS_TEMPLATES = {
    "PER": (
        "Dr. {} signed the letter .",
        "{} and her brother are both lawyers .",
        "Mrs. {} teaches mathematics at the school .",
        "My uncle {} broke his leg .",
        "{} , 34 , is married with two children .",
        "The singer {} forgot her own words .",
        "{} was born in spring and studied law .",
    ),
    "LOC": (
        "They flew to {} on Monday .",
        "It rained for three days in {} .",
        "The roads north of {} are closed .",
        "We live in a village near {} .",
        "The mayor of {} opened the market .",
        "{} has forty thousand inhabitants .",
        "The last train to {} leaves at noon .",
    ),
    "ORG": (
        "Shares of {} fell by three percent .",
        "{} hired two hundred workers .",
        "The board of {} dismissed its chairman .",
        "{} reported a loss for the quarter .",
        "She works as an accountant at {} .",
        "The union called a strike at {} .",
        "{} and a rival firm agreed to merge .",
    ),
    "PROD": (
        "The new {} has a bigger screen .",
        "I dropped my {} and the display cracked .",
        "The battery of the {} lasts two days .",
        "The {} is sold out in every shop .",
        "My {} came without a charger .",
        "The {} comes in black and in blue .",
        "Where can I buy a used {} for parts ?",
    ),
}

# One syllable list for every type: the sound of a name must not hint at what it names.
_ONSETS = (*"bdfghklmnprstvz", *"dklmnrst", "br", "dr", "kl", "st", "tr")
_VOWELS = (*"aeiou", *"aeio", "ai")
_CODAS = ("", "", "", "", "n", "r", "l", "s", "rn", "nd")


# Sentences -----------------------------------------------------------------------------------------------------------


def _invented_names(rng: random.Random) -> Iterator[tuple[str, ...]]:
    """Yields invented names of one or two words, each word once."""
    seen = {word.lower() for template in _all_templates() for word in template.split()}
    while True:
        name: list[str] = []
        for _ in range(rng.choice((1, 1, 2))):
            word = ""
            while len(word) < 4 or word in seen:
                syllables = rng.choice((2, 2, 3)) if not name else rng.choice((1, 2))
                word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables))
                word += rng.choice(_CODAS)
            seen.add(word)
            name.append(word.capitalize())
        yield tuple(name)


def _all_templates() -> Iterator[str]:
    return itertools.chain(AMBIGUOUS_TEMPLATES, *UNAMBIGUOUS_TEMPLATES.values())


def _fill(template: str, name: tuple[str, ...], entity_type: str) -> tuple[list[str], list[str]]:
    tokens: list[str] = []
    tags: list[str] = []
    for word in template.split():
        if word == "{}":
            tokens += name
            tags += [f"B-{entity_type}"] + [f"I-{entity_type}"] * (len(name) - 1)
        else:
            tokens.append(word)
            tags.append("O")
    return tokens, tags


def _cycle(items: Sequence, rng: random.Random) -> Iterator:
    """Yields the items in random order, over and over, so that their counts never differ by more than one."""
    while True:
        yield from rng.sample(items, len(items))


def _count_kinds(num_rows: int) -> dict[str, int]:
    # Ambiguous rows come in blocks of one per type.
    block = len(ENTITY_TYPES)
    ambiguous = min(round(0.70 * num_rows / block), num_rows // block) * block
    several = min(round(0.08 * num_rows / block), (num_rows - ambiguous) // block) * block
    rest = num_rows - ambiguous - several
    no_image = round(rest * 10 / 22)
    return {
        "ambiguous": ambiguous,
        "unambiguous": rest - no_image,
        "no_image": no_image,
        "several_images": several,
    }


def _plan_rows(
    num_rows: int, names: Iterator[tuple[str, ...]], taken: set[tuple[str, tuple[str, ...]]], rng: random.Random
) -> list[dict]:
    """Rows of one split without their drawings: what each picture shows is in `shown`."""
    counts = _count_kinds(num_rows)
    templates = _cycle(AMBIGUOUS_TEMPLATES, rng)
    rows, used_names = [], []
    shown: list[str | None] | None
    for kind in ("ambiguous", "several_images"):
        for _ in range(counts[kind] // len(ENTITY_TYPES)):
            template = next(templates)
            # A sentence belongs to one block of one split, as long as there are sentences left.
            name = next(names)
            for _ in range(50):
                if (template, name) not in taken:
                    break
                name = next(names)
            taken.add((template, name))
            used_names.append(name)
            for entity_type in ENTITY_TYPES:
                shown = [entity_type]
                if kind == "several_images":
                    shown += rng.choice(([None], [None, None], [entity_type, None]))
                    rng.shuffle(shown)
                rows.append({"kind": kind, "template": template, "name": name, "type": entity_type, "shown": shown})

    # Text and picture are drawn independently of one another: all 16 pairs in turn.
    used_names = list(dict.fromkeys(used_names)) or [next(names)]
    more_names = _cycle(used_names, rng)
    cues = {entity_type: _cycle(UNAMBIGUOUS_TEMPLATES[entity_type], rng) for entity_type in ENTITY_TYPES}
    pairs = _cycle(list(itertools.product(ENTITY_TYPES, ENTITY_TYPES)), rng)
    for kind in ("unambiguous", "no_image"):
        for _ in range(counts[kind]):
            entity_type, other = next(pairs)
            shown = None if kind == "no_image" else [other]
            template, name = next(cues[entity_type]), next(more_names)
            rows.append({"kind": kind, "template": template, "name": name, "type": entity_type, "shown": shown})
    rng.shuffle(rows)
    return rows


def build_sample_dataset(
    seed: int = 0, num_train: int = 2000, num_validation: int = 400, num_test: int = 1000, image_size: int = 64
) -> DatasetDict:
    """
    Builds the synthetic sample data set. The same seed and sizes give the same words, labels, boxes and pixels on
    every machine (with one version of Pillow, which does the drawing).

    Rows are of four kinds, in the column `kind`:

    - `"ambiguous"` (about 70 %): the text fits every entity type, and one picture shows which it is. Such rows come in
      blocks of four with the same sentence, one for each type.
    - `"unambiguous"` (about 12 %): the text gives the type away, and the picture shows a thing of a random type.
    - `"no_image"` (about 10 %): the text gives the type away, and there is no picture.
    - `"several_images"` (about 8 %): as ambiguous, with two or three pictures in random order, of which at least one
      shows the thing and at least one is scenery.

    The splits share no style of drawing and no ambiguous sentence (while there are sentences left), and every other
    name in `validation` and `test` is one that never occurs in `train`.

    Args:
        seed (`int`, *optional*, defaults to 0):
            Seed of everything random.
        num_train (`int`, *optional*, defaults to 2000):
            Rows in the training split.
        num_validation (`int`, *optional*, defaults to 400):
            Rows in the validation split.
        num_test (`int`, *optional*, defaults to 1000):
            Rows in the test split.
        image_size (`int`, *optional*, defaults to 64):
            Height and width of the pictures in pixels, at least 16.

    Returns:
        `datasets.DatasetDict`: `train`, `validation` and `test`, with the columns

        - `id` (`string`),
        - `tokens` (list of `string`) and `ner_tags` (list of `ClassLabel`, IOB2 with the types PER, LOC, ORG, PROD),
        - `images` (list of `Image`, `None` where there is no picture),
        - `boxes` (list of (x0, y0, x1, y1), one box per picture, relative to its size: where the drawn thing is,
          `[0, 0, 0, 0]` for scenery; `None` where there is no picture),
        - `kind` (`string`, see above).

    Raises:
        `ValueError`: If a number of rows is negative or the pictures are too small to show anything.
    """
    sizes = {"train": num_train, "validation": num_validation, "test": num_test}
    for split, size in sizes.items():
        if size < 0:
            raise ValueError(f"`num_{split}` is a number of rows and cannot be negative, got {size}.")
    if image_size < 16:
        raise ValueError(f"`image_size` must be at least 16 for the drawings to be told apart, got {image_size}.")

    features = Features(
        {
            "id": Value("string"),
            "tokens": List(Value("string")),
            "ner_tags": List(ClassLabel(names=list(LABEL_NAMES))),
            "images": List(Image()),
            "boxes": List(List(Value("float32"))),
            "kind": Value("string"),
        }
    )
    styles = drawing_styles(seed)
    rng = random.Random(f"names-{seed}")
    invented = _invented_names(rng)
    taken: set[tuple[str, tuple[str, ...]]] = set()
    train_names: list[tuple[str, ...]] = []
    splits = {}
    for split in SPLITS:
        rng = random.Random(f"{split}-{seed}")
        num_blocks = max(1, sum(_count_kinds(sizes[split])[kind] for kind in ("ambiguous", "several_images")) // 4)
        if split == "train":
            pool = _cycle(list(itertools.islice(invented, min(num_blocks, 150))), rng)
        else:
            half = max(1, min(len(train_names), num_blocks // 2, 60))
            known = _cycle(rng.sample(train_names, min(half, len(train_names))) or [next(invented)], rng)
            unknown = _cycle(list(itertools.islice(invented, half)), rng)
            pool = itertools.chain.from_iterable(zip(known, unknown, strict=False))
        rows = _plan_rows(sizes[split], pool, taken, rng)
        if split == "train":
            train_names = sorted({row["name"] for row in rows})
        splits[split] = _draw_rows(rows, split, styles[split], features, seed, image_size)
    return DatasetDict(splits)


def _draw_rows(
    rows: list[dict], split: str, styles: list[Style], features: Features, seed: int, image_size: int
) -> Dataset:
    columns: dict[str, list] = {name: [] for name in features}
    for index, row in enumerate(rows):
        tokens, tags = _fill(row["template"], row["name"], row["type"])
        images, boxes = None, None
        if row["shown"] is not None:
            rng = random.Random(f"{split}-{seed}-{index}")
            images, boxes = [], []
            for shown in row["shown"]:
                picture, box = draw_picture(shown, rng.choice(styles), rng, image_size)
                buffer = io.BytesIO()
                picture.save(buffer, format="PNG", compress_level=1)
                images.append({"bytes": buffer.getvalue(), "path": None})
                boxes.append(box)
        columns["id"].append(f"{split}-{index:05d}")
        columns["tokens"].append(tokens)
        columns["ner_tags"].append([LABEL_NAMES.index(tag) for tag in tags])
        columns["images"].append(images)
        columns["boxes"].append(boxes)
        columns["kind"].append(row["kind"])
    return Dataset.from_dict(columns, features=features)


# What the text alone can reach ---------------------------------------------------------------------------------------


def text_only_ceiling(dataset: Dataset, kinds: Sequence[str] | None = None) -> float:
    """
    The highest strict entity F1 (micro average, as in CoNLL) that any predictor can reach on these rows if it sees the
    text and not the pictures. No text-only model passes it, however large or well trained, because it is computed
    from the gold labels of the very rows that are predicted.

    Derivation. Whoever sees only the text answers rows with the same tokens alike. Each row holds exactly one gold
    entity and the span of a name can carry one label, so for the rows of one sentence the best answer is their most
    frequent gold labelling: right on `hits` of `rows` of them. An ambiguous sentence occurs once for each of the four
    types, so it has 1 hit in 4 rows; a sentence that gives the type away has as many hits as rows. The predictor may
    also stay silent on a sentence. With `C` right, `P` predicted and `G` gold entities (`G` is the number of rows),
    F1 = 2C / (P + G), and answering a sentence raises F1 exactly when 2 · hits / rows > F1. So the best set of
    answered sentences is found by adding them in the order of falling hits / rows while F1 rises. Where every sentence
    is answered (P = G, always so while F1 < 0.5), F1 is C / G: with 78 % ambiguous rows 0.78 · 0.25 + 0.22 = 0.415.

    Args:
        dataset (`datasets.Dataset`):
            One split with the columns `tokens` and `ner_tags`, one entity in each row.
        kinds (`Sequence[str]`, *optional*):
            Only rows of these kinds (column `kind`), e.g. `("ambiguous", "several_images")` for those that only the
            picture decides.

    Returns:
        `float`: The ceiling, between 0 and 1; 0.0 if there are no rows.

    Raises:
        `ValueError`: If a row does not have exactly one entity.
    """
    names = dataset.features["ner_tags"].feature.names
    labellings: dict[tuple[str, ...], Counter] = defaultdict(Counter)
    kind_column = [None] * len(dataset) if kinds is None else dataset["kind"]
    rows = zip(dataset["tokens"], dataset["ner_tags"], kind_column, strict=True)
    for index, (tokens, tags, kind) in enumerate(rows):
        if kinds is not None and kind not in kinds:
            continue
        if sum(names[tag].startswith("B-") for tag in tags) != 1:
            raise ValueError(
                f"The ceiling is derived for one entity per row, but `ner_tags` of row {index} has "
                f"{[names[tag] for tag in tags]}."
            )
        labellings[tuple(tokens)][tuple(tags)] += 1

    groups = [(max(counter.values()), counter.total()) for counter in labellings.values()]
    gold = sum(size for _, size in groups)
    best, correct, predicted = 0.0, 0, 0
    for hits, size in sorted(groups, key=lambda group: group[0] / group[1], reverse=True):
        correct, predicted = correct + hits, predicted + size
        best = max(best, 2 * correct / (predicted + gold))
    return best


# Encoders ------------------------------------------------------------------------------------------------------------


def build_tiny_encoders(
    output_dir: str | Path, dataset: DatasetDict | Dataset, seed: int = 0, image_size: int = 64
) -> tuple[Path, Path]:
    """
    Makes a text encoder (2-layer BERT) and a vision encoder (2-stage ResNet, one grid cell per 8 × 8 pixels) with
    random weights, and saves them with a tokenizer and an image processor, ready for `AutoModel`, `AutoTokenizer` and
    `AutoImageProcessor`. Small enough to train together with the fusion on a CPU, offline.

    Args:
        output_dir (`str` or `Path`):
            Folder to write to; `text` and `vision` are created in it.
        dataset (`datasets.DatasetDict` or `datasets.Dataset`):
            The tokenizer is trained on the column `tokens` (of the split `train`).
        seed (`int`, *optional*, defaults to 0):
            Seed of the weights. The state of the global generator is left as it was.
        image_size (`int`, *optional*, defaults to 64):
            Pictures are resized to this height and width.

    Returns:
        `tuple[Path, Path]`: The folders of the text encoder and of the vision encoder.
    """
    text_dir, vision_dir = Path(output_dir) / "text", Path(output_dir) / "vision"
    tokens = (dataset["train"] if isinstance(dataset, DatasetDict) else dataset)["tokens"]

    trainer = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    trainer.train_from_iterator((" ".join(row) for row in tokens), vocab_size=800, show_progress=False)
    pieces = sorted(trainer.get_vocab(), key=trainer.get_vocab().get)
    # Every single character as a piece, at the start and inside a word: a name never seen is spelled, not [UNK].
    characters = string.ascii_letters + string.digits + string.punctuation
    pieces += [piece for char in characters for piece in (char, f"##{char}")]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=False, strip_accents=False, model_max_length=128)

    text_config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
    )
    # The stem halves the sides twice and the second stage once more: 64 × 64 pixels become 8 × 8 cells.
    vision_config = ResNetConfig(embedding_size=32, hidden_sizes=[32, 64], depths=[2, 2], layer_type="basic")
    image_processor = ViTImageProcessor(size={"height": image_size, "width": image_size})

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder, vision_encoder = BertModel(text_config), ResNetModel(vision_config)
    text_encoder.save_pretrained(text_dir)
    tokenizer.save_pretrained(text_dir)
    vision_encoder.save_pretrained(vision_dir)
    image_processor.save_pretrained(vision_dir)
    return text_dir, vision_dir
