"""Which words used the picture, over a data set: gates, and what the picture changed in the predictions."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..modeling_vtfusion import VTFusionForTokenClassification
from ..processing_vtfusion import VTFusionProcessor
from .images import RowKeys
from .tags import split_tag
from .token_classification import WordEvaluator

NO_ENTITY = "no entity"

_EXPLANATION = (
    "*Gate*: how far the model opened the way for the picture at a word, 0 to 1. *Effect*: how far the picture moved "
    "the prediction, 0 to 1 (total variation distance between the label distributions with and without it). A gate "
    "may be open and let nothing through; the effect says what came through. *Mended* and *broken*: words whose tag "
    "is right only with, or only without the picture."
)


def word_usage(
    evaluator: WordEvaluator,
    with_images: tuple[np.ndarray, np.ndarray],
    without_images: tuple[np.ndarray, np.ndarray],
    image_keys: list[RowKeys],
) -> pd.DataFrame:
    """
    What the pictures did to every word of the texts that have one.

    Args:
        evaluator ([`WordEvaluator`]): of the split.
        with_images (`tuple[np.ndarray, np.ndarray]`): logits and gates of its windows with the true images.
        without_images (`tuple[np.ndarray, np.ndarray]`): the same without.
        image_keys (`list[list[str] | None]`): the images of each text.

    Returns:
        `pandas.DataFrame`: a row for each word that the model saw, with `row`, `position`, `word`, `entity_type` (of
        the true tag), `true_tag`, `tag` and `tag_without_image` (predicted), `gate`, and `effect`: the total variation
        distance between the two predicted distributions.
    """
    merge = evaluator.processor.merge_windows
    outputs, batch = evaluator.gather(with_images)
    others, _ = evaluator.gather(without_images)
    gates, seen = merge(outputs.fusion_gate, batch)
    chances, _ = merge(torch.softmax(outputs.logits.float(), dim=-1), batch)
    other_chances, _ = merge(torch.softmax(others.logits.float(), dim=-1), batch)
    tags, other_tags = evaluator.answers(with_images), evaluator.answers(without_images)
    records = []
    for row, text in enumerate(evaluator.rows):
        if not image_keys[row]:
            continue
        effect = 0.5 * (chances[row] - other_chances[row]).abs().sum(dim=-1)
        for position, word in enumerate(text.words):
            if seen[row][position]:
                true = evaluator.references[row][position]
                records.append(
                    {
                        "row": row,
                        "position": position,
                        "word": word,
                        "entity_type": split_tag(true)[1] or NO_ENTITY,
                        "true_tag": true,
                        "tag": tags[row][position],
                        "tag_without_image": other_tags[row][position],
                        "gate": float(gates[row][position]),
                        "effect": float(effect[position]),
                    }
                )
    if not records:
        raise ValueError("No text of this split has an image: there is no use of pictures to report.")
    return pd.DataFrame.from_records(records)


@dataclass(frozen=True)
class GateReport:
    """
    Tables of [`word_usage`].

    Attributes:
        by_type (`pandas.DataFrame`): for each entity type and for all words the number of `words`, mean and standard
            deviation of the `gate`, mean `effect`, and how many words the picture `mended` and `broke`.
        by_word (`pandas.DataFrame`): the same for the words on which the picture had the largest mean effect.
    """

    by_type: pd.DataFrame
    by_word: pd.DataFrame

    def to_markdown(self) -> str:
        """Both tables with an explanation of their columns."""
        return (
            f"{_EXPLANATION}\n\n{_markdown(self.by_type, 'true entity type')}\n\n"
            f"Words with the largest mean effect:\n\n{_markdown(self.by_word, 'word')}\n"
        )

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `gate_report.md`, `gate_by_type.csv` and `gate_by_word.csv`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "gate_report.md").write_text(self.to_markdown(), encoding="utf-8")
        self.by_type.to_csv(Path(folder, "gate_by_type.csv"))
        self.by_word.to_csv(Path(folder, "gate_by_word.csv"))


def summarize_usage(usage: pd.DataFrame, min_count: int = 5, top: int = 30) -> GateReport:
    """
    Means by entity type and by word.

    Args:
        usage (`pandas.DataFrame`): see [`word_usage`].
        min_count (`int`, *optional*, defaults to 5): a word must occur so often to be listed.
        top (`int`, *optional*, defaults to 30): words listed.

    Returns:
        [`GateReport`]
    """
    usage = usage.assign(
        folded=usage["word"].str.casefold(),
        mended=(usage["tag"] == usage["true_tag"]) & (usage["tag_without_image"] != usage["true_tag"]),
        broken=(usage["tag"] != usage["true_tag"]) & (usage["tag_without_image"] == usage["true_tag"]),
    )

    def table(groups: pd.core.groupby.DataFrameGroupBy) -> pd.DataFrame:
        return groups.agg(
            words=("gate", "size"),
            gate=("gate", "mean"),
            gate_deviation=("gate", "std"),
            effect=("effect", "mean"),
            mended=("mended", "sum"),
            broken=("broken", "sum"),
        )

    by_type = table(usage.groupby("entity_type"))
    by_type = by_type.loc[sorted(by_type.index, key=lambda name: (name == NO_ENTITY, name))]
    total = table(usage.assign(entity_type="all words").groupby("entity_type"))
    by_word = table(usage.groupby("folded"))
    by_word = by_word[by_word["words"] >= min_count].sort_values("effect", ascending=False, kind="stable").head(top)
    return GateReport(pd.concat([by_type, total]), by_word)


def choose_examples(usage: pd.DataFrame, count: int) -> list[int]:
    """
    Rows to look at: in turn one that the picture mended, one that it broke, and one on which its effect was largest.

    Args:
        usage (`pandas.DataFrame`): see [`word_usage`].
        count (`int`): how many at most.

    Returns:
        `list[int]`: indices of texts, each once.
    """
    right, right_without = usage["tag"] == usage["true_tag"], usage["tag_without_image"] == usage["true_tag"]
    ranked = [
        list(part.groupby("row")["effect"].max().sort_values(ascending=False, kind="stable").index)
        for part in (usage[right & ~right_without], usage[~right & right_without], usage)
    ]
    chosen: list[int] = []
    while len(chosen) < count and any(ranked):
        for rows in ranked:
            rows[:] = [row for row in rows if row not in chosen]
            if rows and len(chosen) < count:
                chosen.append(int(rows.pop(0)))
    return chosen


def look_into(
    model: VTFusionForTokenClassification, processor: VTFusionProcessor, tokens: list[str], images: list[Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[float]]:
    """
    What a model does with one text and its images.

    Returns:
        `tuple` of its entities, the heat maps of their words, and the gate of each word; see [`VTFusionProcessor`].
    """
    batch = processor(text=[tokens], images=[images], return_tensors="pt").to(model.device)
    with torch.no_grad():
        outputs = model(**batch, output_fusion_attentions=True)
    entities = processor.post_process_token_classification(outputs, batch, model.config.id2label)[0]
    spans = [[entity["words"] for entity in entities]]
    heatmaps = processor.post_process_grounding(outputs, batch, spans=spans)[0]
    gates = processor.merge_windows(outputs.fusion_gate, batch)[0][0]
    return entities, heatmaps, gates.tolist()


def _markdown(table: pd.DataFrame, name: str) -> str:
    lines = [
        f"| {name} | words | gate, mean ± SD | effect | mended | broken |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for index, row in table.iterrows():
        deviation = "" if np.isnan(row["gate_deviation"]) else f" ± {row['gate_deviation']:.2f}"
        label = str(index).replace("|", "\\|")
        lines.append(
            f"| {label} | {row['words']:,.0f} | {row['gate']:.2f}{deviation} | {row['effect']:.3f} | "
            f"{row['mended']:.0f} | {row['broken']:.0f} |"
        )
    return "\n".join(lines)
