"""
Generation from pictures and text: prompts with responses, their collator, generated text and its scores.

Needs sacreBLEU, the optional extra `generation`.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict, Features, List, Value
from transformers.utils import logging

from ..generation_vtfusion import VTFusionForConditionalGeneration
from ..processing_vtfusion import VTFusionProcessor
from .arguments import GenerationArguments, GenerationDataArguments, GenerationModelArguments
from .collator import FusionCollator
from .columns import find_column, find_columns, join_columns, map_columns, parse_cell
from .fine_tuning import limit_rows, read_records
from .images import RowKeys
from .loading import load_model
from .messages import at, shorten
from .sources import load_sources
from .squad_f1 import normalized_words
from .trainer import VTFusionTrainer
from .windows import map_to_windows

try:
    from sacrebleu.metrics import BLEU
except ImportError as error:
    raise ImportError("Generated text is scored by sacreBLEU: pip install sacrebleu") from error

logger = logging.get_logger(__name__)

_PROMPT_COLUMNS = ("prompt", "question", "instruction", "query")
_RESPONSE_COLUMNS = (
    "response",
    "answer",
    "answers",
    "caption",
    "captions",
    "sentence",
    "sentences",
    "completion",
    "text",
)
_NGRAMS = 4  # the orders of sacreBLEU


# ---------------------------------------------------------------------------------------------------------------- data


def load_generation_dataset(data_args: GenerationDataArguments) -> DatasetDict:
    """
    All splits that the arguments name, cut to `max_train_samples` and `max_eval_samples`: `prompt`, `responses`
    (`List(Value("string"))`, what may be generated), `messages` (a conversation as JSON instead of a prompt, `""` where
    there is none) and `images`.

    Raises:
        `ValueError`: A column or a row is not as described; file, row and field are named.
    """
    wanted = data_args.source()
    named = {name: wanted.pop(name) for name in ("prompt_column", "response_column", "messages_column")}
    image_column = wanted.pop("image_column")
    sources = load_sources(**wanted)
    texts: dict[str, Dataset] = {}
    used: dict[str, set[str]] = {}
    features = Features({"prompt": Value("string"), "responses": List(Value("string")), "messages": Value("string")})
    for split, source in sources.items():
        messages = find_column("messages_column", named["messages_column"], ("messages",), source, needed=False)
        prompt = response = None
        if messages is None:
            prompt = find_column("prompt_column", named["prompt_column"], _PROMPT_COLUMNS, source, needed=False)
            (response,) = find_columns(source, {"response_column": (named["response_column"], _RESPONSE_COLUMNS)})
        elif named["prompt_column"] or named["response_column"]:
            raise ValueError(
                f"{source.where}: `messages_column` holds both prompt and response; give nothing beside it."
            )
        columns = [name for name in (messages, prompt, response) if name is not None]
        used[split] = set(columns)
        texts[split] = map_columns(
            source,
            columns,
            read_prompts,
            features,
            desc="Reading prompts",
            messages_column=messages,
            prompt_column=prompt,
            response_column=response,
        )
    return limit_rows(join_columns(sources, texts, used, image_column), data_args)


def read_prompts(
    batch: dict[str, list],
    indices: list[int],
    messages_column: str | None,
    prompt_column: str | None,
    response_column: str | None,
    where: str,
    version: int,
) -> dict[str, list]:
    """A batch of rows as `prompt`, `responses` and `messages`; see [`load_generation_dataset`]."""
    result: dict[str, list] = {"prompt": [], "responses": [], "messages": []}
    for index, row in enumerate(indices):
        if messages_column is not None:
            conversation = parse_cell(batch[messages_column][index], ("[{",))
            place = at(where, row, messages_column)
            valid = isinstance(conversation, list) and all(
                isinstance(message, dict) and {"role", "content"} <= message.keys() for message in conversation
            )
            if not valid or len(conversation) < 2 or conversation[-1]["role"] != "assistant":
                raise ValueError(
                    f"{place}: expected messages with `role` and `content`, the last of the assistant; got "
                    f"{shorten(conversation)}."
                )
            if not isinstance(conversation[-1]["content"], str):
                raise ValueError(
                    f"{place}: the assistant's last message must be text, got {shorten(conversation[-1])}."
                )
            result["prompt"].append("")
            result["responses"].append([conversation[-1]["content"]])
            result["messages"].append(json.dumps(conversation[:-1], ensure_ascii=False))
            continue
        prompt = "" if prompt_column is None else batch[prompt_column][index]
        if not isinstance(prompt, str):
            raise ValueError(f"{at(where, row, prompt_column)}: expected text, got {shorten(prompt)}.")
        value = parse_cell(batch[response_column][index])  # type: ignore[index]
        responses = value if isinstance(value, list) else [value]
        if not responses or not all(isinstance(text, str) and text.strip() for text in responses):
            raise ValueError(
                f"{at(where, row, response_column)}: expected text or a list of texts, got {shorten(value)}."
            )
        result["prompt"].append(prompt)
        result["responses"].append(responses)
        result["messages"].append("")
    return result


def write_prompt(row: Mapping[str, Any], processor: VTFusionProcessor, template: str) -> str:
    """What the language model reads before the response, from a row of [`load_generation_dataset`]."""
    if row["messages"]:
        return processor.apply_chat_template(json.loads(row["messages"]), add_generation_prompt=True)
    return template.replace("{prompt}", row["prompt"])


def join_response(prompt: str, response: str, is_chat: bool) -> str:
    """A response as it stands behind its prompt: a space between, where none is and no chat template says otherwise."""
    return response if is_chat or not prompt or prompt[-1].isspace() else f" {response}"


def encode_prompts(
    dataset: Dataset,
    processor: VTFusionProcessor,
    image_keys: Sequence[RowKeys],
    template: str,
    num_proc: int | None = None,
) -> Dataset:
    """
    Tokenizes prompts with their responses, each response of a row by itself.

    Args:
        dataset (`datasets.Dataset`): of [`load_generation_dataset`].
        processor ([`VTFusionProcessor`]): with an `image_token`.
        image_keys (`Sequence[list[str] | None]`): for each row the keys of its images in an [`ImageStore`].
        template (`str`): the prompt, with `{prompt}` where the row's own stands.
        num_proc (`int`, *optional*): processes to use.

    Returns:
        `datasets.Dataset`: `input_ids`, `attention_mask`, `labels`, `visible_images`, `row`, `length` and `image_keys`.
    """
    counted = dataset.select_columns(["prompt", "responses", "messages"]).add_column(
        "num_images", [len(keys or []) for keys in image_keys]
    )

    def encode(batch: dict[str, list]) -> dict[str, list]:
        texts, counts, responses, rows = [], [], [], []
        for row in range(len(batch["prompt"])):
            one = {name: values[row] for name, values in batch.items()}
            prompt = write_prompt(one, processor, template)
            for response in one["responses"]:
                texts.append(prompt)
                counts.append(one["num_images"])
                responses.append(join_response(prompt, response, bool(one["messages"])))
                rows.append(row)
        return {**processor.encode_prompts(texts, counts, responses), "row": rows}

    return map_to_windows(counted, encode, image_keys, num_proc)


@dataclass
class PromptCollator(FusionCollator):
    """Makes a batch of prompts with responses: padded on the right, with their images or the cached features of these."""

    def pad(self, windows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        names = ("input_ids", "attention_mask", "visible_images", "labels")
        prompts = {name: [window[name] for window in windows] for name in names}
        padded = self.processor.pad_prompts(prompts, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of)
        return {name: torch.tensor(values) for name, values in padded.items()}


# --------------------------------------------------------------------------------------------------------------- model


def load_generation_model(
    args: GenerationModelArguments, generation_args: GenerationArguments
) -> tuple[VTFusionForConditionalGeneration, VTFusionProcessor]:
    """
    The generation model and its processor: a checkpoint, or a language model and a vision encoder joined. A new model
    has L_v off unless `vision_loss_weight` is given, which costs a prediction over the vocabulary per image position.
    """
    settings: dict[str, Any] = {}
    if args.model_name_or_path is None and args.vision_loss_weight is None:
        settings["vision_loss_weight"] = 0.0
    model, processor = load_model(
        VTFusionForConditionalGeneration, args, processor_settings={"image_token": "<image>"}, **settings
    )
    if processor.image_token is None:
        raise ValueError(f"{args.model_name_or_path} is no generation model: its processor has no `image_token`.")
    if generation_args.image_scope is not None:
        processor.image_scope = generation_args.image_scope
    # prompts end where generation begins
    processor.tokenizer.padding_side = "left"
    return model, processor


# ---------------------------------------------------------------------------------------------------------- prediction


class Generator:
    """
    What a model says of the rows of a split: generated text, and the log-likelihood of the true responses.

    Args:
        trainer ([`VTFusionTrainer`]): its model, device and batch size.
        processor ([`VTFusionProcessor`]): with an `image_token`.
        collator ([`PromptCollator`]): gathers the images.
        dataset (`datasets.Dataset`): of [`load_generation_dataset`].
        template (`str`): the prompt.
        args ([`GenerationArguments`]): `max_new_tokens` and `num_beams`.
    """

    def __init__(
        self,
        trainer: VTFusionTrainer,
        processor: VTFusionProcessor,
        collator: PromptCollator,
        dataset: Dataset,
        template: str,
        args: GenerationArguments,
    ):
        self.trainer, self.processor, self.collator, self.args = trainer, processor, collator, args
        self.rows: list[dict[str, Any]] = list(dataset.select_columns(["prompt", "responses", "messages"]))
        self.prompts = [write_prompt(row, processor, template) for row in self.rows]

    def __call__(self, windows: Dataset) -> list[dict[str, Any]]:
        """
        Predictions under the images that the windows have, a `dict` for each row: `text`, `log_likelihood` (the sum over
        the tokens of all true responses) and `tokens` (their number).
        """
        keys: dict[int, RowKeys] = dict(zip(windows["row"], windows["image_keys"], strict=True))
        args = self.trainer.args
        mine = range(args.process_index, len(self.rows), args.world_size)
        with self.trainer.whole_model() as model:
            found = [item for batch in self._batches(mine) for item in self._predict(model, batch, keys)]
        everything = gather_object([found]) if args.world_size > 1 else [found]
        by_row = {row: result for part in everything for row, result in part}
        return [by_row[row] for row in range(len(self.rows))]

    def _batches(self, rows: Sequence[int]) -> Iterator[list[int]]:
        size = self.trainer.args.eval_batch_size
        # texts of one length in a batch: less padding
        ordered = sorted(rows, key=lambda row: len(self.prompts[row]))
        for start in logging.tqdm(range(0, len(ordered), size), desc="Generating"):
            yield ordered[start : start + size]

    @torch.no_grad()
    def _predict(self, model: Any, rows: list[int], keys: Mapping[int, RowKeys]) -> list[tuple[int, dict[str, Any]]]:
        device = self.trainer.args.device
        counts = [len(keys[row] or []) for row in rows]
        images = {
            name: value.to(device) for name, value in self.collator.gather_images([keys[r] for r in rows]).items()
        }
        states = model.compute_image_key_values(**images) if images else {}
        prompts = self.processor.encode_prompts([self.prompts[row] for row in rows], counts)
        inputs = {n: torch.tensor(v, device=device) for n, v in self.processor.pad_prompts(prompts).items()}
        # of the class: what Trainer puts around that of the model shares out FSDP2's weights again behind each call
        text = type(model).generate(
            model,
            **inputs,
            **states,
            max_new_tokens=self.args.max_new_tokens,
            num_beams=self.args.num_beams,
            do_sample=False,
            pad_token_id=self.processor.tokenizer.pad_token_id,
            # the whole model is here, and another process may have fewer batches
            synced_gpus=False if self.trainer.is_fsdp_enabled else None,
        )
        new = text[:, inputs["input_ids"].shape[1] :]
        generated = self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)

        pairs = [(place, response) for place, row in enumerate(rows) for response in self.rows[row]["responses"]]
        learned = self.processor.encode_prompts(
            [self.prompts[rows[place]] for place, _ in pairs],
            [counts[place] for place, _ in pairs],
            [join_response(self.prompts[rows[p]], r, bool(self.rows[rows[p]]["messages"])) for p, r in pairs],
        )
        padded = self.processor.pad_prompts(learned, padding_side="right")
        tensors = {name: torch.tensor(values, device=device) for name, values in padded.items()}
        labels = tensors.pop("labels")[:, 1:]
        place_of = torch.tensor([place for place, _ in pairs], device=device)
        logits = model(**tensors, **{name: value[place_of] for name, value in states.items()}).logits[:, :-1]
        losses = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=-100, reduction="none").sum(1)
        likelihood = torch.zeros(len(rows), device=device, dtype=losses.dtype).index_add(0, place_of, -losses)
        tokens = torch.zeros_like(likelihood).index_add(0, place_of, (labels != -100).sum(1).to(losses.dtype))
        return [
            (row, {"text": generated[place].strip(), "log_likelihood": value, "tokens": round(count)})
            for place, (row, value, count) in enumerate(zip(rows, likelihood.tolist(), tokens.tolist(), strict=True))
        ]


# -------------------------------------------------------------------------------------------------------------- scores


def count_matches(predictions: Sequence[Mapping[str, Any]], references: Sequence[Sequence[str]]) -> np.ndarray:
    """
    What all scores are made from, as counts that can be added up over examples.

    Args:
        predictions (`Sequence[dict]`): `text`, `log_likelihood` and `tokens` of each example, by [`Generator`].
        references (`Sequence[list[str]]`): its true responses.

    Returns:
        `np.ndarray` of shape `(examples, 14)`: log-likelihood, its tokens, exact matches, one, the matching and the
        generated n-grams of each order up to four (sacreBLEU's), generated and true length.
    """
    bleu = BLEU(effective_order=True)
    counts = np.zeros((len(predictions), 6 + 2 * _NGRAMS))
    for place, (prediction, true) in enumerate(zip(predictions, references, strict=True)):
        words = normalized_words(prediction["text"])
        exact = any(words == normalized_words(text) for text in true)
        found = bleu.sentence_score(prediction["text"], list(true))
        counts[place] = [
            prediction["log_likelihood"],
            prediction["tokens"],
            exact,
            1,
            *found.counts,
            *found.totals,
            found.sys_len,
            found.ref_len,
        ]
    return counts


def generation_scores(totals: np.ndarray) -> dict[str, np.ndarray]:
    """
    Scores `(n,)` from sums `(n, 14)` of [`count_matches`]: `log_likelihood` (mean of a token, in nats), `exact_match` (case,
    punctuation and articles do not count) and `bleu` (of the corpus, from 0 to 1).
    """
    return {
        "log_likelihood": totals[:, 0] / totals[:, 1],
        "exact_match": totals[:, 2] / totals[:, 3],
        "bleu": np.array(
            [
                BLEU.compute_bleu(
                    correct=list(row[4 : 4 + _NGRAMS]),
                    total=list(row[4 + _NGRAMS : 4 + 2 * _NGRAMS]),
                    sys_len=int(row[-2]),
                    ref_len=int(row[-1]),
                ).score
                / 100
                for row in totals
            ]
        ),
    }


class ResponseEvaluator:
    """
    Judges generated text and the likelihood of the true one; an [`Evaluator`].

    Args:
        dataset (`datasets.Dataset`): of [`load_generation_dataset`].
        prompts (`Sequence[str]`): what the model read before each response.
        metric (`str`): the score that sums it up: `log_likelihood`, `exact_match` or `bleu`.
    """

    field = "generated"
    labelled = True
    metrics = ()  # nothing is generated while it trains

    def __init__(self, dataset: Dataset, prompts: Sequence[str], metric: str):
        self.references: list[list[str]] = list(dataset["responses"])
        self.prompts, self.metric = list(prompts), metric

    def answers(self, predictions: Any) -> Sequence[Any]:
        """The predictions themselves."""
        return predictions

    def score(self, answers: Sequence[Any]) -> dict[str, float | int]:
        """`log_likelihood`, `perplexity`, `exact_match`, `bleu` and the number of rows."""
        totals = count_matches(answers, self.references).sum(axis=0, keepdims=True)
        scores = {name: float(value[0]) for name, value in generation_scores(totals).items()}
        return {**scores, "perplexity": math.exp(-scores["log_likelihood"]), "support": len(self.references)}

    def report(self, scores: Mapping[str, float | int]) -> str:
        """The scores in words."""
        return (
            f"perplexity {scores['perplexity']:.3f}, exact match {100 * scores['exact_match']:.2f}, BLEU "
            f"{100 * scores['bleu']:.2f} on {scores['support']:,} rows"
        )

    def records(self, predictions: Any, image_keys: Sequence[RowKeys]) -> list[dict[str, Any]]:
        """For each row its prompt, its true responses and what was generated."""
        return [
            {
                "row": row,
                "prompt": self.prompts[row],
                "num_images": len(image_keys[row] or []),
                "responses": self.references[row],
                self.field: prediction,
            }
            for row, prediction in enumerate(predictions)
        ]


def read_generation_counts(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """
    Reads the `test_predictions.jsonl` of a run as counts that can be resampled: for each image condition an array of
    [`count_matches`].

    Args:
        folder (`str` or `os.PathLike`): the run's `output_dir`.
    """
    records, fields = read_records(folder, ResponseEvaluator.field)
    references = [record["responses"] for record in records]
    return {
        condition: count_matches([record[field] for record in records], references)
        for condition, field in fields.items()
    }
