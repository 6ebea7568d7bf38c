"""Images with captions: recall by hand and by a loop, batches, streams, both scripts from files to results."""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import BertConfig, BertModel, HfArgumentParser, ResNetConfig, ResNetModel, ViTImageProcessor

from running import SCRIPTS
from tiny import randomize_fusion
from tokenizers_for_tests import bert, llama
from vtfusion import (
    VTFusionConfig,
    VTFusionForImageTextRetrieval,
    VTFusionForPreTraining,
    VTFusionForTokenClassification,
    VTFusionProcessor,
)
from vtfusion.training.arguments import (
    CaptionDataArguments,
    ModelArguments,
    PretrainingArguments,
    VTFusionTrainingArguments,
    random_order,
)
from vtfusion.training.captions import (
    CaptionCollator,
    check_streaming,
    encode_captions,
    group_by_image,
    load_captioned_images,
    open_caption_streams,
)
from vtfusion.training.image_text_retrieval import (
    RetrievalSplit,
    RetrievalTrainer,
    best_ranks,
    recall_report,
    recall_scores,
    rerank,
    search,
)
from vtfusion.training.images import ImageStore
from vtfusion.training.loading import load_model
from vtfusion.training.pretraining import load_pretraining_model

WORDS = ("fox", "john", "paris", "york")


# ------------------------------------------------------------------------------------------------------------- recall


def test_recall_by_hand():
    # Two images; captions 0 and 1 are of image 0, caption 2 of image 1.
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.28, 0.96]])
    owners = torch.tensor([0, 0, 1])
    text_ranks, best = search(texts, images, owners, torch.arange(2), top_k=1)
    # caption 1 lies nearer to image 1
    assert text_ranks.tolist() == [0, 1, 0] and best.tolist() == [[0], [1], [1]]
    image_ranks, best = search(images, texts, torch.arange(2), owners, top_k=2)
    assert image_ranks.tolist() == [0, 0] and best.tolist() == [[0, 1], [2, 1]]
    scores = recall_scores(text_ranks, image_ranks)
    assert scores["text_to_image_recall@1"] == pytest.approx(2 / 3) and scores["image_to_text_recall@1"] == 1
    assert scores["text_to_image_recall@5"] == scores["image_to_text_recall@10"] == 1
    assert scores["recall_mean"] == pytest.approx((2 / 3 + 5) / 6)
    assert "66.67" in recall_report({"vectors": scores})


def ranks_by_loop(queries: np.ndarray, candidates: np.ndarray, groups: np.ndarray, others: np.ndarray) -> list[int]:
    ranks = []
    for query, group in zip(queries, groups, strict=True):
        scores = [float(query @ candidate) for candidate in candidates]
        # best first, and of equal ones the wrong one first
        order = sorted(range(len(scores)), key=lambda place: (-scores[place], others[place] == group))
        ranks.append(next(rank for rank, place in enumerate(order) if others[place] == group))
    return ranks


@pytest.mark.parametrize("chunk_size", [3, 1024])
def test_ranks_are_those_of_a_loop(chunk_size):
    rng = np.random.default_rng(0)
    # whole numbers: many scores are equal, in any order of adding up
    texts, images = rng.integers(-2, 3, (40, 4)), rng.integers(-2, 3, (9, 4))
    owners = np.concatenate([np.arange(9), rng.integers(0, 9, 31)])
    for queries, candidates, groups, others in (
        (texts, images, owners, np.arange(9)),
        (images, texts, np.arange(9), owners),
    ):
        tensors = [torch.as_tensor(each) for each in (queries, candidates, groups, others)]
        ranks, places = search(*tensors, top_k=4, chunk_size=chunk_size)
        assert ranks.tolist() == ranks_by_loop(queries, candidates, groups, others)
        scores = queries @ candidates.T
        found = np.take_along_axis(scores, places.numpy(), axis=1)
        assert (found == -np.sort(-scores, axis=1)[:, :4]).all()


def test_nothing_is_found_by_scores_that_say_nothing():
    relevant = torch.eye(3, dtype=torch.bool)
    assert best_ranks(torch.zeros(3, 3), relevant).tolist() == [2, 2, 2]
    assert best_ranks(torch.full((3, 3), math.nan), relevant).tolist() == [2, 2, 2]
    assert best_ranks(torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.bool)).tolist() == [3]


def test_rerank_by_hand():
    groups, others = torch.tensor([0, 1, 2]), torch.arange(4)
    ranks, places = torch.tensor([1, 0, 3]), torch.tensor([[3, 0], [1, 2], [0, 1]])
    scores = torch.tensor([[0.1, 0.9], [0.2, 0.7], [0.5, 0.4]])
    # moved up, moved down, and not among the best: stays where it was
    assert rerank(ranks, places, scores, groups, others).tolist() == [0, 1, 3]


# ------------------------------------------------------------------------------------------------------ rows, batches


def picture(folder: Path, name: str, colour: tuple[int, int, int]) -> str:
    PIL.Image.new("RGB", (32, 32), colour).save(folder / name)
    return name


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def make_processor(**kwargs: Any) -> VTFusionProcessor:
    return VTFusionProcessor(ViTImageProcessor(size={"height": 32, "width": 32}), bert(), **kwargs)


def test_rows_of_an_image_are_put_together(tmp_path):
    red, blue = picture(tmp_path, "red.png", (200, 0, 0)), picture(tmp_path, "blue.png", (0, 0, 200))
    copy = picture(tmp_path, "copy.png", (200, 0, 0))
    rows = [(["a fox", "the fox"], red), (["paris"], blue), (["john smith"], copy), (["york"], None), (["new"], None)]
    file = write_lines(tmp_path / "rows.jsonl", [{"captions": texts, "image": image} for texts, image in rows])
    dataset = load_captioned_images(CaptionDataArguments(train_file=file))["train"]
    assert dataset["captions"][:] == [texts for texts, _ in rows]
    images = group_by_image(dataset["captions"], ImageStore().add_split("train", dataset))
    assert images["texts"][:] == [["a fox", "the fox", "john smith"], ["paris"], ["york"], ["new"]]
    assert images["row"][:] == [0, 1, 3, 4]
    assert [keys is None for keys in images["image_keys"]] == [False, False, True, True]
    limited = load_captioned_images(CaptionDataArguments(train_file=file, max_train_samples=2))["train"]
    assert limited["captions"][:] == [["a fox", "the fox"], ["paris"]]


def test_captions_are_tokenized_as_by_the_tokenizer_and_cut():
    texts = [["the fox", "the new fox lower york paris"], ["john"]]
    images = group_by_image(texts, [["a"], ["b"]])
    encoded = encode_captions(images, make_processor(window_length=5, window_stride=0))
    expected = [bert()(each, truncation=True, max_length=5)["input_ids"] for each in texts]
    assert encoded["captions"][:] == expected
    assert encoded["num_cut"][:] == [1, 0]
    split = RetrievalSplit.from_dataset(encoded)
    assert split.image_of_text.tolist() == [0, 0, 1] and split.first_texts().tolist() == [0, 2]
    assert split.tokens == [*expected[0], *expected[1]]


def caption_rows(number: int) -> list[dict[str, Any]]:
    tokens = bert()(["the fox lower york"] * 3)["input_ids"]
    return [
        {"captions": [[*ids[:-1], 7 + place, 3] for place, ids in enumerate(tokens)], "image_keys": None, "row": row}
        for row in range(number)
    ]


def test_draws_depend_on_seed_epoch_and_rows_alone():
    def draw(seed: int, epoch: int, numbers: slice = slice(None)) -> torch.Tensor:
        torch.manual_seed(0 if epoch else 1)  # nothing else is to matter
        collator = CaptionCollator(make_processor(), ImageStore(), mlm_probability=0.15, seed=seed, epoch=epoch)
        batch = collator(caption_rows(64)[numbers])
        return torch.stack([batch["input_ids"], batch["labels"]])

    first = draw(0, 0)
    assert torch.equal(first, draw(0, 0))
    assert not torch.equal(first, draw(0, 1)) and not torch.equal(first, draw(1, 0))
    assert not torch.equal(draw(0, 0, slice(32)), draw(0, 0, slice(32, None)))


def test_masks_hide_words_and_nothing_else():
    processor = make_processor()
    collator = CaptionCollator(processor, ImageStore(), mlm_probability=0.5)
    rows = caption_rows(200)
    batch = collator(rows)
    hidden = batch["labels"] != -100
    special = torch.isin(batch["labels"], torch.tensor(processor.tokenizer.all_special_ids))
    assert not special[hidden].any()
    original = torch.where(hidden, batch["labels"], batch["input_ids"])
    counts = [sum(ids == caption for ids in original.tolist()) for caption in rows[0]["captions"]]
    assert sum(counts) == 200 and min(counts) > 40  # each caption is drawn about as often
    words = ~torch.isin(original, torch.tensor(processor.tokenizer.all_special_ids))
    assert hidden.sum().item() / words.sum().item() == pytest.approx(0.5, abs=0.06)
    masked = (batch["input_ids"] == processor.tokenizer.mask_token_id)[hidden].float().mean()
    assert masked.item() == pytest.approx(0.8, abs=0.06)


def test_a_tokenizer_without_mask_token_names_the_fix():
    processor = VTFusionProcessor(ViTImageProcessor(size={"height": 32, "width": 32}), llama())
    with pytest.raises(ValueError, match="--fusion_loss_weight 0 --text_loss_weight 0"):
        CaptionCollator(processor, ImageStore(), mlm_probability=0.15)
    batch = CaptionCollator(processor, ImageStore(), mlm_probability=0.0)(
        [{"captions": [[5, 6, 7]], "image_keys": None, "row": 0}, {"captions": [[5]], "image_keys": None, "row": 1}]
    )
    # a label for each row, so that its share of a step is right
    assert (batch["labels"] != -100).sum(dim=1).tolist() == [1, 1]


def test_retrieval_batches_ask_for_the_loss():
    batch = CaptionCollator(make_processor(), ImageStore())(caption_rows(2))
    assert batch["return_loss"] is True and "labels" not in batch


# ------------------------------------------------------------------------------------------------------------ streams


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    """Tiny encoders, and pictures whose colour is told by their two captions."""
    folder = tmp_path_factory.mktemp("captions")
    tokenizer = bert()
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 37}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **size)).save_pretrained(
        folder / "text"
    )
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder / "text")
    vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(vision).save_pretrained(folder / "vision")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "vision")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("valid", 8), ("test", 8)):
        rows = []
        for number in range(count):
            kind = number % len(WORDS)
            colour = np.array([40 + 50 * kind, 240 - 50 * kind, 40]) + rng.integers(-20, 20, 3)
            name = picture(folder, f"{split}{number}.png", tuple(int(each) for each in colour.clip(0, 255)))
            word = WORDS[kind]
            rows.append({"captions": [f"the {word} {number}", f"new {word} is lower {number}"], "image": name})
        write_lines(folder / f"{split}.jsonl", rows)
    return folder


def files(sample: Path, *names: str) -> dict[str, str]:
    given = {"train": "train_file", "valid": "validation_file", "test": "test_file"}
    return {given[name]: str(sample / f"{name}.jsonl") for name in names}


def test_a_stream_is_shuffled_by_blocks_without_an_end(sample):
    stream = open_caption_streams(CaptionDataArguments(**files(sample, "train")), 10, seed=3)["train"]
    lines = [json.loads(line)["captions"] for line in (sample / "train.jsonl").read_text().splitlines()]
    rows = iter(stream)
    epochs = [[next(rows)["captions"] for _ in lines] for _ in range(2)]
    for epoch in epochs:
        assert epoch != lines and sorted(epoch) == sorted(lines)
        # what comes first is of the first block
        assert sorted(epoch[:10]) == sorted(lines[:10])
    assert epochs[0] != epochs[1]


def test_a_stream_goes_on_after_what_was_had(sample):
    source = CaptionDataArguments(**files(sample, "train"))
    rows = iter(open_caption_streams(source, 10)["train"])
    expected = [next(rows) for _ in range(40)]
    stream = open_caption_streams(source, 10)["train"]
    stream.skip(num_batches=9, batch_size=3)
    rows = iter(stream)
    found = [next(rows) for _ in range(40)]
    assert found[:27] == [None] * 27 and found[27:] == expected[27:]
    # what is skipped costs nothing
    assert CaptionCollator(make_processor(), ImageStore())(found[:3]) == {}


def test_streamed_rows_are_those_of_the_files(sample, tmp_path):
    arguments = CaptionDataArguments(**files(sample, "valid"), max_eval_samples=5)
    rows = list(open_caption_streams(arguments)["validation"])
    dataset = load_captioned_images(arguments)["validation"]
    assert [row["captions"] for row in rows] == dataset["captions"][:] and len(rows) == 5
    processor, store = make_processor(), ImageStore()
    keys = store.add_split("validation", dataset)
    streamed = CaptionCollator(processor, store, mlm_probability=0.15)(rows)
    encoded = encode_captions(group_by_image(dataset["captions"], keys), processor)
    read = CaptionCollator(processor, store, mlm_probability=0.15)(list(encoded))
    assert streamed.keys() == read.keys()
    for name, value in read.items():
        assert torch.equal(streamed[name], value), name
    # a saved data set holds the bytes of its images
    load_captioned_images(arguments)["validation"].save_to_disk(tmp_path / "saved")
    saved = list(open_caption_streams(CaptionDataArguments(validation_file=str(tmp_path / "saved")))["validation"])
    again = CaptionCollator(processor, store, mlm_probability=0.15)(saved)
    assert torch.equal(again["pixel_values"], read["pixel_values"])


def test_a_broken_image_of_a_stream(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    fine = picture(tmp_path, "fine.png", (1, 2, 3))
    rows = [{"text": "a", "image": "broken.png"}, {"text": "b", "image": fine}, {"text": "c", "image": "gone.png"}]
    source = CaptionDataArguments(validation_file=write_lines(tmp_path / "rows.jsonl", rows))
    read = list(open_caption_streams(source)["validation"])
    with pytest.raises(ValueError, match=r"row 0, field `image`.*skip_image"):
        CaptionCollator(make_processor(), ImageStore())(read)
    collator = CaptionCollator(make_processor(), ImageStore(), on_bad_image="skip_image")
    assert collator(read)["image_mask"].tolist() == [[0], [1], [0]]
    assert collator.bad_images == 2


def test_errors_of_streams_name_the_fix(sample, tmp_path):
    streams = open_caption_streams(CaptionDataArguments(**files(sample, "train")))
    arguments = {"output_dir": str(tmp_path), "use_cpu": True}
    with pytest.raises(ValueError, match="max_steps"):
        check_streaming(streams, VTFusionTrainingArguments(**arguments))
    with pytest.raises(ValueError, match="dataloader_num_workers"):
        check_streaming(streams, VTFusionTrainingArguments(**arguments, max_steps=3, dataloader_num_workers=2))
    training_args = VTFusionTrainingArguments(**arguments, max_steps=3, save_steps=2)
    check_streaming(streams, training_args)
    assert (training_args.eval_strategy, training_args.eval_steps, training_args.save_strategy) == (
        "steps",
        2,
        "steps",
    )
    with pytest.raises(ValueError, match="image_column"):
        open_caption_streams(CaptionDataArguments(train_file=write_lines(tmp_path / "a.jsonl", [{"text": "a"}])))
    with pytest.raises(ValueError, match=r"row 1, field `text`: expected a caption"):
        rows = [{"text": "a", "image": None}, {"text": " ", "image": None}]
        list(open_caption_streams(CaptionDataArguments(test_file=write_lines(tmp_path / "b.jsonl", rows)))["test"])


# -------------------------------------------------------------------------------------------------------- pretraining


def script(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def encoders(sample: Path, **kwargs: Any) -> ModelArguments:
    return ModelArguments(
        text_model=str(sample / "text"),
        vision_model=str(sample / "vision"),
        fusion_hidden_size=16,
        num_fusion_heads=2,
        **kwargs,
    )


def pretrain(
    sample: Path, output: Path, model: ModelArguments, streaming: bool = False, **kwargs: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The results and the log."""
    results = script("run_pretraining").run(
        model,
        CaptionDataArguments(**files(sample, "train", "valid"), feature_cache_dir=str(sample / "features")),
        PretrainingArguments(streaming=streaming, shuffle_buffer_size=10),
        VTFusionTrainingArguments(
            **{
                "output_dir": str(output),
                "use_cpu": True,
                "disable_tqdm": True,
                "learning_rate": 1e-3,
                "logging_steps": 1,
                "metric_for_best_model": "loss",
                **random_order(),
                **kwargs,
            }
        ),
    )
    return results, json.loads((output / "trainer_state.json").read_text())["log_history"]


def test_workers_that_live_on_are_refused(sample, tmp_path):
    """They would have the collator of the first epoch for ever."""
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    with pytest.raises(ValueError, match="`dataloader_persistent_workers` must be False"):
        pretrain(sample, tmp_path, encoders(sample), num_train_epochs=1, **workers)


def test_workers_draw_what_the_main_process_draws(sample, tmp_path):
    logs = [
        pretrain(sample, tmp_path / str(count), encoders(sample), num_train_epochs=2, dataloader_num_workers=count)[1]
        for count in (0, 1)
    ]
    without, within = ([entry["loss"] for entry in log if "loss" in entry] for log in logs)
    assert without == pytest.approx(within, rel=1e-4)


def test_pretraining_logs_each_loss_and_goes_on_as_every_head(sample, tmp_path):
    results, log = pretrain(
        sample, tmp_path, encoders(sample), num_train_epochs=2, gradient_accumulation_steps=2, learning_rate=0.0
    )
    weights = {"fusion_loss": 1.0, "text_loss": 0.5, "matching_loss": 1.0, "contrastive_loss": 1.0}
    trained = [entry for entry in log if "loss" in entry]
    evaluated = [entry for entry in log if "eval_loss" in entry]
    for prefix, entries in (("", trained), ("eval_", evaluated)):
        for entry in entries:
            parts = sum(weight * entry[prefix + name] for name, weight in weights.items())
            assert parts == pytest.approx(entry[f"{prefix}loss"], rel=1e-3)
    # nothing was learned, so the same draws give the same losses
    first, second = ({name: entry[f"eval_{name}"] for name in (*weights, "loss")} for entry in evaluated)
    assert first == second == pytest.approx(results["validation"])
    model = VTFusionForPreTraining.from_pretrained(tmp_path)
    assert model.config.contrastive_loss_weight == 1 and model.config.vision_loss_weight == 0
    assert model.lm_head.decoder.weight is model.get_input_embeddings().weight

    # Fine-tuning begins with the loss weights of a new model, or with those that are asked for.
    tagger, _ = load_model(VTFusionForTokenClassification, ModelArguments(str(tmp_path)), ["O", "B-X"])
    new = VTFusionConfig()
    for name in ("fusion", "text", "vision", "contrastive", "matching"):
        assert getattr(tagger.config, f"{name}_loss_weight") == getattr(new, f"{name}_loss_weight")
    assert tagger.vtfusion.fusion_layers[-1].has_image_side
    for name, value in model.vtfusion.state_dict().items():
        if name != "contrastive_log_scale":
            assert torch.equal(tagger.vtfusion.state_dict()[name], value), name
    batch = {"input_ids": torch.tensor([[2, 5, 3]]), "labels": torch.tensor([[-100, 1, -100]])}
    outputs = tagger(**batch, pixel_values=torch.rand(1, 3, 32, 32))
    assert math.isfinite(outputs.vision_loss.item()) and outputs.contrastive_loss is None
    for asked, has_image_side in ((0.0, False), (0.3, True)):
        given = ModelArguments(str(tmp_path), vision_loss_weight=asked)
        other, _ = load_model(VTFusionForTokenClassification, given, ["O", "B-X"])
        assert other.config.vision_loss_weight == asked
        assert other.vtfusion.fusion_layers[-1].has_image_side is has_image_side
    searcher, _ = load_model(VTFusionForImageTextRetrieval, ModelArguments(str(tmp_path)))
    assert torch.equal(searcher.matching_head.score.weight, model.matching_head.score.weight)


def test_a_checkpoint_that_goes_on_keeps_its_weights(sample, tmp_path):
    model, processor = load_pretraining_model(encoders(sample, contrastive_loss_weight=0.5, text_loss_weight=0.0))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, _ = load_pretraining_model(ModelArguments(str(tmp_path)))
    assert again.config.contrastive_loss_weight == 0.5 and again.config.text_loss_weight == 0
    # a head that was trained on labels keeps what it was given
    tagger, _ = load_model(VTFusionForTokenClassification, encoders(sample, vision_loss_weight=0.3), ["O", "B-X"])
    tagger.save_pretrained(tmp_path)
    assert (
        load_model(VTFusionForTokenClassification, ModelArguments(str(tmp_path)))[0].config.vision_loss_weight == 0.3
    )
    assert load_pretraining_model(ModelArguments(str(tmp_path)))[0].config.contrastive_loss_weight == 1


@pytest.mark.parametrize("off", ["fusion", "text", "matching", "contrastive"])
def test_each_loss_can_be_turned_off(sample, tmp_path, off):
    weights = {f"{off}_loss_weight": 0.0}
    if off == "contrastive":
        weights["matching_loss_weight"] = 0.0
    results, _ = pretrain(sample, tmp_path, encoders(sample, **weights), max_steps=1)
    gone = {name.removesuffix("_weight") for name in weights}
    left = {"fusion_loss", "text_loss", "matching_loss", "contrastive_loss"} - gone
    assert set(results["validation"]) == {"loss", *left}


def test_share_of_accumulated_batches_without_words(sample, tmp_path):
    """Without losses of words the others are means over the batches of a step."""
    weights = {"fusion_loss_weight": 0.0, "text_loss_weight": 0.0, "matching_loss_weight": 0.0}
    losses = []
    for accumulation in (1, 2):
        settings = {"max_steps": 4 // accumulation, "gradient_accumulation_steps": accumulation, "learning_rate": 0.0}
        arguments = encoders(sample, **weights, fusion_dropout=0.0)
        output = tmp_path / str(accumulation)
        _, log = pretrain(sample, output, arguments, per_device_train_batch_size=6, **settings)
        losses.append([entry["loss"] for entry in log if "loss" in entry])
    # the dropout of the text encoder remains
    assert np.mean(losses[0]) == pytest.approx(np.mean(losses[1]), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [True, False], ids=["stream", "files"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(sample, tmp_path, streaming, workers):
    settings = {
        "max_steps": 7,
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "save_steps": 2,
        "eval_steps": 1,
        "save_total_limit": None,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": workers,
        "load_best_model_at_end": False,
    }
    whole, log = pretrain(sample, tmp_path / "whole", encoders(sample), streaming, **settings)
    for step in (2, 4):
        checkpoint = str(tmp_path / "whole" / f"checkpoint-{step}")
        output = tmp_path / f"resumed-{step}"
        settings["resume_from_checkpoint"] = checkpoint
        resumed, log_of_resumed = pretrain(sample, output, encoders(sample), streaming, **settings)
        assert resumed["validation"] == whole["validation"]

        def losses(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
            timed = ("runtime", "second", "flos", "train_loss")
            return [
                {name: value for name, value in entry.items() if not any(part in name for part in timed)}
                for entry in entries
                if "train_loss" not in entry
            ]

        assert losses(log_of_resumed) == losses(log)
        models = [VTFusionForPreTraining.from_pretrained(path).state_dict() for path in (tmp_path / "whole", output)]
        assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


# ---------------------------------------------------------------------------------------------------------- retrieval


def make_split(sample: Path, processor: VTFusionProcessor) -> tuple[RetrievalSplit, ImageStore]:
    dataset = load_captioned_images(CaptionDataArguments(**files(sample, "test")))["test"]
    store = ImageStore()
    keys = store.add_split("test", dataset)
    return RetrievalSplit.from_dataset(encode_captions(group_by_image(dataset["captions"], keys), processor)), store


def test_ranks_are_those_of_one_pair_at_a_time(sample, tmp_path):
    model, processor = load_model(VTFusionForImageTextRetrieval, encoders(sample))
    randomize_fusion(model)
    torch.nn.init.normal_(model.matching_head.score.weight, std=1.0)
    split, store = make_split(sample, processor)
    arguments = VTFusionTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, per_device_eval_batch_size=3, load_best_model_at_end=False
    )
    trainer = RetrievalTrainer(model, arguments, data_collator=CaptionCollator(processor, store), eval_dataset=split)
    found = trainer.retrieve(split, top_k=3)

    texts, owners = split.texts, split.image_of_text.numpy()
    images = [store.load(keys[0]) for keys in split.image_keys]
    cosines, sums = np.zeros((len(texts), len(images))), np.zeros((len(texts), len(images)))
    model.eval()
    with torch.no_grad():
        for row, text in enumerate(texts):
            for column, image in enumerate(images):
                outputs = model(**processor(text=text, images=image, return_tensors="pt"))
                cosines[row, column] = (outputs.text_embeds @ outputs.image_embeds.T).item()
                sums[row, column] = (outputs.logits_per_text + outputs.matching_logits).item()

    def ranks(scores: np.ndarray, again: np.ndarray, relevant: np.ndarray, top_k: int) -> list[int]:
        order = np.argsort(-scores)
        best = order[:top_k][np.argsort(-again[order[:top_k]])]
        return next(rank for rank, place in enumerate([*best, *order[top_k:]]) if relevant[place])

    own = owners[:, None] == np.arange(len(images))[None]
    for name, top_k in (("vectors", 0), ("reranked", 3)):
        expected = [ranks(*each, top_k) for each in zip(cosines, sums, own, strict=True)]
        assert found[name].texts.tolist() == expected
        expected = [ranks(*each, top_k) for each in zip(cosines.T, sums.T, own.T, strict=True)]
        assert found[name].images.tolist() == expected
    assert found["vectors"].images.tolist() != found["reranked"].images.tolist()


def run_script(name: str, sample: Path, output: Path, *extra: str) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPTS / name), "--output_dir", str(output), "--use_cpu", "True"]
    for argument, file in files(sample, "train", "valid", "test").items():
        command += [f"--{argument}", file]
    command += ["--learning_rate", "1e-3", "--feature_cache_dir", str(sample / "features")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *extra], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {**json.loads((output / "results.json").read_text(encoding="utf-8")), "stdout": done.stdout}


def test_pretraining_then_retrieval_by_their_scripts(sample, tmp_path):
    parts = ["--text_model", str(sample / "text"), "--vision_model", str(sample / "vision")]
    size = ["--fusion_hidden_size", "16", "--num_train_epochs", "1", "--max_length", "6", "--window_stride", "0"]
    results = run_script("run_pretraining.py", sample, tmp_path / "first", *parts, *size)
    assert "train: 48 captions of 24 different images; 24 longer than 6 tokens and cut" in results["stdout"]
    assert {"loss", "fusion_loss", "matching_loss"} < set(results["test"])

    start = ["--model_name_or_path", str(tmp_path / "first"), "--num_train_epochs", "8", "--use_lora", "True"]
    options = ["--rerank_top_k", "4", "--per_device_train_batch_size", "4", "--freeze_vision", "False"]
    results = run_script("run_retrieval.py", sample, tmp_path / "second", *start, *options)
    assert set(results["test"]) == {"vectors", "reranked", "captions", "images"}
    records = [json.loads(line) for line in (tmp_path / "second/test_predictions.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (sample / "test.jsonl").read_text().splitlines()]
    assert [(record["text"], record["image_row"]) for record in records] == [
        (caption, number) for number, row in enumerate(rows) for caption in row["captions"]
    ]
    for way, name in (("vectors", "rank"), ("reranked", "rank_reranked")):
        share = np.mean([record[name] <= 1 for record in records])
        assert results["test"][way]["text_to_image_recall@1"] == pytest.approx(share)
    assert (tmp_path / "second/test_report.txt").read_text().strip() in results["stdout"]
    # half the images have the right colour
    assert results["test"]["vectors"]["text_to_image_recall@5"] > 5 / 8


def test_what_makes_no_sense_is_not_offered():
    names = {field.name for field in dataclasses.fields(CaptionDataArguments) if field.init}
    assert "text_only" not in names and "image_conditions" not in names
    parser = HfArgumentParser(CaptionDataArguments)
    with pytest.raises(SystemExit):
        parser.parse_args(["--text_only", "True"])
