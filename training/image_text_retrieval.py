"""Image-text retrieval: search by vectors, ranking again by the matching score, and recall both ways."""

import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import (
    Dataset,
)
from torch.utils.data import DataLoader
from transformers import (
    TrainerControl,
)
from transformers.utils import logging

from ..modeling_vtfusion import VTFusionModelOutput
from .files import write_whole
from .pretraining import ImageTextTrainer

RECALL_AT = (1, 5, 10)
RECALLS = (*(f"{way}_recall@{k}" for way in ("text_to_image", "image_to_text") for k in RECALL_AT), "recall_mean")


def best_ranks(scores: torch.Tensor, relevant: torch.Tensor) -> torch.Tensor:
    """
    For each query how many wrong candidates stand before the best right one. A wrong one with the same score stands
    before it, so that a model that scores everything alike finds nothing; so does one whose score is not a number.

    Args:
        scores (`torch.FloatTensor` of shape `(queries, candidates)`): the higher the better.
        relevant (`torch.BoolTensor` of shape `(queries, candidates)`): which are right.

    Returns:
        `torch.LongTensor` of shape `(queries,)`: from 0 on; where none is right, the number of candidates.

    Example:

    ```python
    >>> import torch
    >>> from vtfusion.training.image_text_retrieval import best_ranks

    >>> best_ranks(torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([[False, True, True]])).tolist()
    [1]
    ```
    """
    best = scores.masked_fill(~relevant, float("-inf")).amax(dim=-1, keepdim=True)
    return (~relevant & ~(scores < best)).sum(dim=-1)


def search(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    query_groups: torch.Tensor,
    candidate_groups: torch.Tensor,
    top_k: int,
    chunk_size: int = 1024,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Compares every query with every candidate. What is of the same group, here of the same image, belongs together.

    Args:
        queries (`torch.FloatTensor` of shape `(queries, D)`): unit vectors.
        candidates (`torch.FloatTensor` of shape `(candidates, D)`): unit vectors.
        query_groups (`torch.LongTensor` of shape `(queries,)`): their groups.
        candidate_groups (`torch.LongTensor` of shape `(candidates,)`): their groups.
        top_k (`int`): how many of the best candidates are wanted.
        chunk_size (`int`, *optional*, defaults to 1024): queries at a time, which bounds the memory.

    Returns:
        `tuple` of the ranks `(queries,)`, see [`best_ranks`], and the places of the best candidates
        `(queries, min(top_k, candidates))`, best first.
    """
    top_k = min(top_k, len(candidates))
    ranks, places = [], []
    for chunk, groups in zip(queries.split(chunk_size), query_groups.split(chunk_size), strict=True):
        scores = chunk.float() @ candidates.float().T
        ranks.append(best_ranks(scores, groups[:, None] == candidate_groups[None, :]))
        places.append(scores.topk(top_k, dim=-1).indices)
    return torch.cat(ranks), torch.cat(places)


def rerank(
    ranks: torch.Tensor,
    places: torch.Tensor,
    scores: torch.Tensor,
    query_groups: torch.Tensor,
    candidate_groups: torch.Tensor,
) -> torch.Tensor:
    """
    Ranks `(queries,)` after the best candidates were put into a new order; the others stay behind them.

    Args:
        ranks (`torch.LongTensor` of shape `(queries,)`): those of [`search`].
        places (`torch.LongTensor` of shape `(queries, k)`): those of [`search`].
        scores (`torch.FloatTensor` of shape `(queries, k)`): by which these candidates are ranked again.
        query_groups (`torch.LongTensor` of shape `(queries,)`): their groups.
        candidate_groups (`torch.LongTensor` of shape `(candidates,)`): their groups.
    """
    relevant = candidate_groups[places] == query_groups[:, None]
    return torch.where(relevant.any(dim=-1), best_ranks(scores, relevant), ranks)


def recall_scores(text_ranks: torch.Tensor, image_ranks: torch.Tensor) -> dict[str, float]:
    """
    The share of queries with something right among the first 1, 5 and 10, and the mean of these six.

    Args:
        text_ranks (`torch.LongTensor` of shape `(texts,)`): of each text's image among the images.
        image_ranks (`torch.LongTensor` of shape `(images,)`): of each image's best text among the texts.
    """
    scores = {
        f"{direction}_recall@{k}": (ranks < k).double().mean().item()
        for direction, ranks in (("text_to_image", text_ranks), ("image_to_text", image_ranks))
        for k in RECALL_AT
    }
    return {**scores, "recall_mean": sum(scores.values()) / len(scores)}


def recall_report(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Recall in percent, a line for each way of ranking."""
    width, names = max(len(name) for name in scores), [f"R@{k}" for k in RECALL_AT]
    lines = [
        f"{'':<{width}}  {'text to image':^22}  {'image to text':^22}",
        f"{'':<{width}}  {'  '.join([f'{name:>6}' for name in names] * 2)}    mean",
    ]
    for name, values in scores.items():
        cells = "  ".join(f"{100 * values[column]:6.2f}" for column in RECALLS)
        lines.append(f"{name:<{width}}  {cells}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------- retrieval


@dataclass
class RetrievalSplit:
    """
    What is searched: all captions and all images of a split.

    Args:
        texts (`list[str]`): the captions.
        tokens (`list[list[int]]`): the same as token ids.
        image_of_text (`torch.LongTensor` of shape `(texts,)`): which image each belongs to.
        image_keys (`list[list[str]]`): keys of the images in an [`ImageStore`].
        image_rows (`list[int]`): the rows of the images in the data.
    """

    texts: list[str]
    tokens: list[list[int]]
    image_of_text: torch.Tensor
    image_keys: list[list[str]]
    image_rows: list[int]

    @classmethod
    def from_dataset(cls, images: Dataset) -> "RetrievalSplit":
        """From what [`encode_captions`] returned."""
        texts = images["texts"][:]
        return cls(
            texts=list(itertools.chain.from_iterable(texts)),
            tokens=list(itertools.chain.from_iterable(images["captions"])),
            image_of_text=torch.arange(len(images)).repeat_interleave(torch.tensor([len(each) for each in texts])),
            image_keys=images["image_keys"][:],
            image_rows=images["row"][:],
        )

    def first_texts(self) -> torch.Tensor:
        """For each image `(images,)` the place of its first caption."""
        return torch.searchsorted(self.image_of_text, torch.arange(len(self.image_keys)))


@dataclass
class Ranks:
    """Of each caption's image among the images `(texts,)`, and of each image's best caption `(images,)`; from 0 on."""

    texts: torch.Tensor
    images: torch.Tensor

    def scores(self) -> dict[str, float]:
        """See [`recall_scores`]."""
        return recall_scores(self.texts, self.images)


class RetrievalTrainer(ImageTextTrainer):
    """
    [`ImageTextTrainer`] whose evaluation is a search: `eval_dataset` is a [`RetrievalSplit`], the scores are recall by
    the vectors. Every process searches by itself.
    """

    control: TrainerControl

    def evaluate(
        self,
        eval_dataset: RetrievalSplit | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        split = self.eval_dataset if eval_dataset is None else eval_dataset
        started = time.perf_counter()
        scores = self.retrieve(split)["vectors"].scores()
        scores["runtime"] = round(time.perf_counter() - started, 4)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def retrieve(self, split: RetrievalSplit, top_k: int = 0) -> dict[str, Ranks]:
        """
        Finds images for captions and captions for images.

        Args:
            split ([`RetrievalSplit`]): what is searched.
            top_k (`int`, *optional*, defaults to 0):
                How many of the best are ranked again, by the sum of similarity and matching logit: what that logit is
                trained against is drawn by the similarity, so it tells what the vectors do not know (an energy-based
                model over the vectors' residual, as in 2004.11714; BLIP, 2201.12086, sums them too).

        Returns:
            `dict[str, Ranks]`: `"vectors"`, and with `top_k` also `"reranked"`.
        """
        with self.whole_model():
            return self._retrieve(split, top_k)

    def _retrieve(self, split: RetrievalSplit, top_k: int) -> dict[str, Ranks]:
        texts, images = self._embed_texts(split), self._embed_images(split)
        owners, numbers = split.image_of_text.to(texts.device), torch.arange(len(images), device=texts.device)
        text_ranks, best_images = search(texts, images, owners, numbers, max(top_k, 1))
        image_ranks, best_texts = search(images, texts, numbers, owners, max(top_k, 1))
        ranks = {"vectors": Ranks(text_ranks.cpu(), image_ranks.cpu())}
        if top_k > 0:
            numbers_of_texts = torch.arange(len(texts), device=texts.device)
            pairs = torch.cat(
                [
                    torch.stack([numbers_of_texts[:, None].expand_as(best_images), best_images], dim=-1).flatten(0, 1),
                    torch.stack([best_texts, numbers[:, None].expand_as(best_texts)], dim=-1).flatten(0, 1),
                ]
            )
            # in the order of the texts, and a pair that is wanted in both directions once
            unique, where = pairs.unique(dim=0, return_inverse=True)
            cosines = (texts[unique[:, 0]] * images[unique[:, 1]]).sum(dim=-1)
            matching = self._score_pairs(split, unique.cpu()).to(texts.device)
            scores = (cosines * self.model.base_model.contrastive_scale() + matching)[where]
            of_texts, of_images = scores.split([best_images.numel(), best_texts.numel()])
            ranks["reranked"] = Ranks(
                rerank(text_ranks, best_images, of_texts.view_as(best_images), owners, numbers).cpu(),
                rerank(image_ranks, best_texts, of_images.view_as(best_texts), numbers, owners).cpu(),
            )
        return ranks

    def _batches(self, items: Sequence[Any], collate: Any, desc: str) -> Iterator[dict[str, torch.Tensor]]:
        loader = DataLoader(
            items,  # type: ignore[arg-type]  # a sequence will do
            batch_size=self.args.eval_batch_size,
            collate_fn=collate,
            num_workers=self.args.dataloader_num_workers,
        )
        for batch in logging.tqdm(loader, desc=desc, leave=False):
            yield {name: value.to(self.args.device) for name, value in batch.items()}

    def _by_length(self, split: RetrievalSplit) -> torch.Tensor:
        return torch.tensor([len(ids) for ids in split.tokens]).argsort(descending=True, stable=True)

    def _embed_texts(self, split: RetrievalSplit) -> torch.Tensor:
        order = self._by_length(split)
        tokens = [split.tokens[place] for place in order.tolist()]
        batches = self._batches(tokens, self.data_collator.pad_captions, "Vectors of captions")
        vectors = torch.cat([self.model.get_text_features(**batch).pooler_output for batch in batches])
        return vectors[order.argsort().to(vectors.device)]

    def _embed_images(self, split: RetrievalSplit) -> torch.Tensor:
        batches = self._batches(split.image_keys, self.data_collator.gather_images, "Vectors of images")
        return torch.cat([self.model.get_image_features(**batch).pooler_output for batch in batches])

    def _image_states(self, split: RetrievalSplit) -> tuple[torch.Tensor, torch.Tensor]:
        """X_v of all images `(images, N, D)` and their mask `(images, N)`, in the memory of the host."""
        # An image is read beside a text: its first caption, of which nothing is kept.
        rows = [(split.tokens[text], keys) for text, keys in zip(split.first_texts(), split.image_keys, strict=True)]
        states: list[torch.Tensor] = []
        masks: list[torch.Tensor] = []
        for batch in self._batches(rows, self.data_collator.pair, "Reading images"):
            outputs = self.model.base_model(**batch)
            states.extend(outputs.visual_hidden_state.cpu())
            masks.extend(outputs.visual_mask.cpu())
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(states, batch_first=True), pad(masks, batch_first=True)

    def _score_pairs(self, split: RetrievalSplit, pairs: torch.Tensor) -> torch.Tensor:
        """Matching scores `(pairs,)` of texts and images `(pairs, 2)`, which are in the order of the texts."""
        states, masks = self._image_states(split)
        order = self._by_length(split)
        ends = torch.searchsorted(pairs[:, 0].contiguous(), torch.arange(len(split.texts)), right=True)
        counts = torch.bincount(pairs[:, 0], minlength=len(split.texts))
        scores = torch.empty(len(pairs))
        model, size = self.model, self.args.eval_batch_size
        tokens = [split.tokens[place] for place in order.tolist()]
        batches = self._batches(tokens, self.data_collator.pad_captions, "Matching scores")
        for places, batch in zip(order.split(size), batches, strict=True):
            mask = batch["attention_mask"].bool()
            text = model.base_model(**batch).text_hidden_state
            # Every text once through its encoder, then beside each of its images.
            local = torch.arange(len(places)).repeat_interleave(counts[places])
            spans = zip(ends[places].tolist(), counts[places].tolist(), strict=True)
            wanted = torch.cat([torch.arange(end - count, end) for end, count in spans])
            for part, rows in zip(wanted.split(16 * size), local.split(16 * size), strict=True):
                rows, images = rows.to(text.device), pairs[part, 1]
                fused, _ = model.base_model.fuse(
                    text[rows],
                    mask[rows],
                    states[images].to(text.device),
                    masks[images].to(text.device),
                    output_alignment=False,
                )
                output = VTFusionModelOutput(last_hidden_state=fused["last_hidden_state"])
                scores[part] = model.match(output, mask[rows]).float().cpu()
        return scores


def write_retrieval(folder: str | os.PathLike, split: RetrievalSplit, ranks: Mapping[str, Ranks]) -> str:
    """
    Writes `test_report.txt`, and `test_predictions.jsonl` with the row of the image and the ranks (from 1 on) of each
    caption.

    Returns:
        `str`: the report.
    """
    report = recall_report({name: each.scores() for name, each in ranks.items()})
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_whole(Path(folder, "test_report.txt"), report + "\n")
    lines = []
    for place, (text, image) in enumerate(zip(split.texts, split.image_of_text.tolist(), strict=True)):
        record = {"text": text, "image_row": split.image_rows[image]}
        for name, each in ranks.items():
            record["rank" if name == "vectors" else f"rank_{name}"] = int(each.texts[place]) + 1
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_whole(Path(folder, "test_predictions.jsonl"), "".join(lines))
    return report
