"""What a pairing did: how many texts have a picture and with which scores, and, afterwards, for which entities."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, List

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BINS = 10
_MOST_USED = 10

_WORDS_NOTE = "Nothing but the words was read to choose the pictures, never a label."
_MANIFEST_NOTE = (
    "The pictures are those that the manifest names. No label was read here; whether one was read to write the manifest, "
    "only its author knows."
)
LABEL_NOTE = "Analysis only: these figures read the labels, after the pairs were fixed. They had no part in the choice of a picture."


def coverage_report(dataset: DatasetDict) -> dict[str, Any]:
    """
    Counts what a pairing did, without reading a label.

    Args:
        dataset (`DatasetDict`):
            Made by one of the functions of `pairing.py`.

    Returns:
        `dict[str, Any]`, ready for JSON: for each split `texts`, `texts_with_image`, `coverage` (their ratio), `images`
        (links from a text to a picture), `different_images`, `images_per_text` (number of pictures → number of texts),
        `most_used` (the ten pictures with the most texts) and `scores` (`None` where there are none, else `count`, `mean`,
        `std`, `min`, `max`, `quantiles` and `histogram`: ten bins with `from`, `to` and `count`). Scores are those of all
        links, not only of the best picture of a text.

    Example:

    ```python
    >>> from datasets import Dataset, DatasetDict
    >>> from vtfusion.training.pairing import pair_with_blank
    >>> from vtfusion.training.pairing_report import coverage_report

    >>> paired = pair_with_blank(DatasetDict({"test": Dataset.from_dict({"tokens": [["Hello"], ["Paris"]]})}))
    >>> coverage_report(paired)["test"]["coverage"]
    1.0
    ```
    """
    return {split: _split_report(part) for split, part in dataset.items()}


def _split_report(part: Dataset) -> dict[str, Any]:
    per_text: Counter[int] = Counter()
    uses: Counter[str] = Counter()
    scores: list[np.ndarray] = []
    for batch in part.with_format(None).select_columns(["image_ids", "image_scores"]).iter(batch_size=10_000):
        per_text.update(map(len, batch["image_ids"]))
        for ids in batch["image_ids"]:
            uses.update(ids)
        scores.append(np.array([s for row in batch["image_scores"] for s in row if s is not None], dtype=np.float32))
    texts = len(part)
    with_image = texts - per_text[0]
    return {
        "texts": texts,
        "texts_with_image": with_image,
        "coverage": with_image / texts if texts else 0.0,
        "images": uses.total(),
        "different_images": len(uses),
        "images_per_text": {str(count): per_text[count] for count in sorted(per_text)},
        "scores": _distribution(np.concatenate(scores) if scores else np.zeros(0)),
        "most_used": [{"image_id": name, "texts": count} for name, count in uses.most_common(_MOST_USED)],
    }


def _distribution(scores: np.ndarray) -> dict[str, Any] | None:
    if not scores.size:
        return None
    scores = scores.astype(np.float64)
    counts, edges = np.histogram(scores, bins=_BINS)
    return {
        "count": int(scores.size),
        "mean": float(scores.mean()),
        "std": float(scores.std()),
        "min": float(scores.min()),
        "max": float(scores.max()),
        "quantiles": {
            str(q): float(value) for q, value in zip(_QUANTILES, np.quantile(scores, _QUANTILES), strict=True)
        },
        "histogram": [
            {"from": float(low), "to": float(high), "count": int(count)}
            for low, high, count in zip(edges, edges[1:], counts, strict=False)
        ],
    }


def label_analysis(dataset: DatasetDict) -> dict[str, Any] | None:
    """
    Counts for which entities the texts got pictures. **Reads the labels**, so it is only for data whose pairs are fixed.

    Args:
        dataset (`DatasetDict`):
            A paired data set.

    Returns:
        `dict[str, Any]` or `None`: `note`, and `splits`: for each split and entity type `entities`, `with_image` (those
        in a text with a picture) and, after a pairing by lexicon, `named` (those whose words, all of them and no more, are
        what gave the text one of its pictures). `None` if there is no column `ner_tags` of `ClassLabel`s.
    """
    feature = next(iter(dataset.values())).features.get("ner_tags")
    if not isinstance(feature, List) or not isinstance(feature.feature, ClassLabel):
        return None
    return {"note": LABEL_NOTE, "splits": {split: _entity_counts(part) for split, part in dataset.items()}}


def _entity_counts(part: Dataset) -> dict[str, dict[str, int]]:
    from seqeval.metrics.sequence_labeling import get_entities

    names = part.features["ner_tags"].feature.names
    has_spans = "image_spans" in part.column_names
    columns = ["ner_tags", "image_ids", *(["image_spans"] if has_spans else [])]
    counts: dict[str, Counter[str]] = {}
    for batch in part.with_format(None).select_columns(columns).iter(batch_size=10_000):
        spans = batch["image_spans"] if has_spans else [[]] * len(batch["image_ids"])
        for tags, ids, named in zip(batch["ner_tags"], batch["image_ids"], spans, strict=True):
            for entity_type, first, last in get_entities([names[tag] for tag in tags]):
                count = counts.setdefault(entity_type, Counter())
                count["entities"] += 1
                count["with_image"] += bool(ids)
                count["named"] += [first, last + 1] in named
    wanted = ("entities", "with_image", *(["named"] if has_spans else []))
    return {name: {field: counts[name][field] for field in wanted} for name in sorted(counts)}


def pairing_markdown(report: Mapping[str, Any]) -> str:
    """
    The report as a page to read.

    Args:
        report (`Mapping[str, Any]`):
            `strategy`, `settings` and `versions` (name → value), `coverage` (from [`coverage_report`]) and
            `label_analysis` (from [`label_analysis`]).

    Returns:
        `str`: Markdown.
    """
    coverage = report["coverage"]
    lines = [f"# Texts paired with images: {report['strategy']}", ""]
    lines += _table(
        ["split", "texts", "with an image", "coverage", "images", "different images"],
        [
            [
                split,
                f"{part['texts']:,}",
                f"{part['texts_with_image']:,}",
                f"{part['coverage']:.1%}",
                f"{part['images']:,}",
                f"{part['different_images']:,}",
            ]
            for split, part in coverage.items()
        ],
    )
    lines += [_MANIFEST_NOTE if report["strategy"] == "manifest" else _WORDS_NOTE, ""]
    lines += _scores({split: part["scores"] for split, part in coverage.items() if part["scores"]})

    lines += ["## Images per text", ""]
    sizes = sorted({size for part in coverage.values() for size in part["images_per_text"]}, key=int)
    lines += _table(
        ["split", *sizes],
        [[split, *(f"{part['images_per_text'].get(s, 0):,}" for s in sizes)] for split, part in coverage.items()],
    )
    lines += ["## Most used images", ""]
    lines += _table(
        ["split", "images (texts)"],
        [
            [split, ", ".join(f"{use['image_id']} ({use['texts']:,})" for use in part["most_used"])]
            for split, part in coverage.items()
        ],
    )
    if report.get("label_analysis"):
        lines += _entity_types(report["label_analysis"])
    lines += ["## Settings", ""]
    lines += _table(["setting", "value"], [[name, str(value)] for name, value in report["settings"].items()])
    lines += ["Versions: " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + "."]
    return "\n".join(lines) + "\n"


def _scores(scored: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Figures and a histogram for each split that has scores."""
    if not scored:
        return []
    lines = ["## Scores", ""]
    lines += _table(
        ["split", "mean", "std", "min", *(f"{float(q):.0%}" for q in _QUANTILES), "max"],
        [
            [
                split,
                *(f"{scores[name]:.3f}" for name in ("mean", "std", "min")),
                *(f"{value:.3f}" for value in scores["quantiles"].values()),
                f"{scores['max']:.3f}",
            ]
            for split, scores in scored.items()
        ],
    )
    for split, scores in scored.items():
        lines += [f"{split}:", "", "```"]
        peak = max(bin_["count"] for bin_ in scores["histogram"])
        for bin_ in scores["histogram"]:
            bar = "█" * round(40 * bin_["count"] / peak)
            lines.append(f"{bin_['from']:6.3f} – {bin_['to']:6.3f}  {bin_['count']:>9,}  {bar}".rstrip())
        lines += ["```", ""]
    return lines


def _entity_types(analysis: Mapping[str, Any]) -> list[str]:
    """For each split which types of entities are in a text with an image."""
    lines = ["## By entity type (reads the labels, afterwards)", "", analysis["note"], ""]
    for split, types in analysis["splits"].items():
        fields = {"with_image": "in a text with an image"}
        if any("named" in counts for counts in types.values()):
            fields["named"] = "their words gave an image"
        rows = [
            [
                name,
                f"{counts['entities']:,}",
                *(f"{counts[f]:,} ({counts[f] / counts['entities']:.1%})" for f in fields),
            ]
            for name, counts in types.items()
        ]
        lines += _table([split, "entities", *fields.values()], rows)
    return lines


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        # A bar would end the cell, a line break the table.
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

    return [line(header), line(["---"] * len(header)), *map(line, rows), ""]
