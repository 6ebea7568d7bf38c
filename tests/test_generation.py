"""Prompts with responses: reading, collating, generating and scoring, and the script from end to end."""

import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sacrebleu.metrics import BLEU
from transformers import AutoModelForCausalLM, ResNetModel, ViTImageProcessor

from chatting import CHAT, make_model, make_processor
from running import FSDP, HALF, run_script
from tiny import LANGUAGE_MODELS, VISION
from tokenizers_for_tests import TOKENIZERS
from vtfusion import VTFusionForConditionalGeneration, VTFusionProcessor
from vtfusion.training.arguments import GenerationArguments, GenerationDataArguments, GenerationModelArguments
from vtfusion.training.generation import (
    Generator,
    PromptCollator,
    ResponseEvaluator,
    count_matches,
    encode_prompts,
    generation_scores,
    join_response,
    load_generation_dataset,
    load_generation_model,
    write_prompt,
)
from vtfusion.training.images import ImageStore

TEXTS = [
    {"prompt": "the quick", "response": "brown fox"},
    {"prompt": "the lazy", "response": "dog"},
    {"prompt": "john", "response": "lives in new york"},
]


def write_rows(folder: Path, rows: list[dict[str, Any]], name: str = "train.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(folder: Path, rows: list[dict[str, Any]], **arguments: Any) -> list[dict[str, Any]]:
    dataset = load_generation_dataset(GenerationDataArguments(train_file=write_rows(folder, rows), **arguments))
    return list(dataset["train"].select_columns(["prompt", "responses", "messages"]))


# ---------------------------------------------------------------------------------------------------------------- data


def test_captions_questions_and_instructions_are_read(tmp_path: Path) -> None:
    captions = load(tmp_path, [{"captions": ["a dog", "an animal"]}])
    assert captions == [{"prompt": "", "responses": ["a dog", "an animal"], "messages": ""}]
    questions = load(tmp_path, [{"question": "who?", "answer": "Ada"}])
    assert questions == [{"prompt": "who?", "responses": ["Ada"], "messages": ""}]
    named = load(tmp_path, [{"a": "x", "b": "y"}], prompt_column="a", response_column="b")
    assert named == [{"prompt": "x", "responses": ["y"], "messages": ""}]


def test_a_conversation_is_written_by_the_chat_template(tmp_path: Path) -> None:
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "what?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}]
    with pytest.raises(ValueError, match=r"row 0, field `messages`: the assistant's last message must be text"):
        load(tmp_path, [{"messages": json.dumps(messages)}])
    messages[1]["content"] = "a fox"  # type: ignore[typeddict-item]
    (row,) = load(tmp_path, [{"messages": json.dumps(messages)}])
    processor = make_processor(chat_template=CHAT)
    assert write_prompt(row, processor, "{prompt}") == "user: <image>what?\nassistant:"
    assert row["responses"] == ["a fox"] and join_response("assistant:", "a fox", True) == "a fox"


def test_a_chat_is_learned_as_it_is_served(tmp_path: Path) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "the fox"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "a dog"}]
    path = write_rows(tmp_path, [{"messages": json.dumps(messages)}])
    dataset = load_generation_dataset(GenerationDataArguments(train_file=path))["train"]
    processor = make_processor("llama", chat_template="{{ bos_token }}" + CHAT)
    (learned,) = encode_prompts(dataset, processor, [["one"]], "{prompt}")["input_ids"]
    content[0]["image"] = Image.new("RGB", (40, 40))  # type: ignore[assignment]
    served = processor.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=True, return_dict=True)[
        "input_ids"
    ][0]
    assert learned[: len(served)] == served and served.count(processor.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "response": " "}, r"row 0, field `response`: expected text or a list of texts"),
        ({"prompt": 3, "response": "b"}, r"row 0, field `prompt`: expected text"),
        ({"messages": json.dumps([{"role": "user", "content": "a"}])}, r"row 0, field `messages`: expected messages"),
        ({"x": "a"}, "say with `response_column`"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, [row])


def test_every_response_is_learned_behind_its_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": "the quick", "response": ["brown fox", "dog"]}, {"prompt": "john", "response": ["smith"]}]
    dataset = load_generation_dataset(GenerationDataArguments(train_file=write_rows(tmp_path, rows)))["train"]
    processor = make_processor()
    windows = encode_prompts(dataset, processor, [["one"], None], "see {prompt}:")
    assert windows["row"] == [0, 0, 1]
    decode = processor.tokenizer.decode
    assert [decode(ids, skip_special_tokens=True) for ids in windows["input_ids"]] == [
        "see the quick: brown fox",
        "see the quick: dog",
        "see john: smith",
    ]
    learned = [[label for label in labels if label != -100] for labels in windows["labels"]]
    assert [decode(ids, skip_special_tokens=True) for ids in learned] == [" brown fox", " dog", " smith"]
    batch = PromptCollator(processor, ImageStore()).pad([windows[index] for index in range(3)])
    assert batch["cross_attention_mask"].shape == (*batch["input_ids"].shape, 1)
    assert batch["cross_attention_mask"][2].sum() == 0 and (batch["attention_mask"][:, 0] == 1).all()


# ---------------------------------------------------------------------------------------------------- prediction, scores


def test_generated_text_and_likelihood_are_those_of_each_row_alone(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": row["prompt"], "response": [row["response"]], "image": str(tmp_path / f"{index}.png")}
        for index, row in enumerate(TEXTS)
    ]
    for index, row in enumerate(rows):
        Image.new("RGB", (40, 40), ["red", "green", "blue"][index]).save(row["image"])
    del rows[1]["image"]
    rows[2]["response"].append("smith")
    dataset = load_generation_dataset(GenerationDataArguments(train_file=write_rows(tmp_path, rows)))["train"]
    processor = make_processor("llama")
    model = make_model(len(processor.tokenizer))
    store = ImageStore()
    keys = store.add_split("train", dataset, 4)
    collator = PromptCollator(processor, store)
    args = SimpleNamespace(process_index=0, world_size=1, eval_batch_size=3, device=torch.device("cpu"))
    trainer: Any = SimpleNamespace(args=args, whole_model=lambda: nullcontext(model), is_fsdp_enabled=False)
    settings = GenerationArguments(max_new_tokens=3)
    generator = Generator(trainer, processor, collator, dataset, "{prompt}", settings)
    found = generator(encode_prompts(dataset, processor, keys, "{prompt}"))
    for row, result, key in zip(dataset, found, keys, strict=True):
        image = None if key is None else store.load(key[0])
        inputs = processor(text=row["prompt"], images=image, return_tensors="pt")
        text = model.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0)
        new = text[0, inputs["input_ids"].shape[1] :]
        assert result["text"] == processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        total, tokens = 0.0, 0
        for response in row["responses"]:
            learned = processor(text=row["prompt"], images=image, response=f" {response}", return_tensors="pt")
            labels = learned.pop("labels")
            log_probs = model(**learned).logits.log_softmax(-1)[0]
            for place in range(1, labels.shape[1]):
                if labels[0, place] != -100:
                    total, tokens = total + log_probs[place - 1, labels[0, place]].item(), tokens + 1
        assert result["log_likelihood"] == pytest.approx(total, abs=1e-3) and result["tokens"] == tokens


def test_scores_by_hand_and_by_sacrebleu() -> None:
    texts = ["the red fox runs over the hill", "Two!", "a dog on the old road"]
    references = [["the red fox runs over a hill"], ["two", "three"], ["a dog on the new road", "a dog on a road"]]
    predictions = [
        {"text": text, "log_likelihood": value, "tokens": count}
        for text, value, count in zip(texts, (-4.0, -1.0, -3.0), (4, 2, 2), strict=True)
    ]
    scores = {
        name: value[0]
        for name, value in generation_scores(count_matches(predictions, references).sum(0)[None]).items()
    }
    # articles and punctuation do not count: the first two are exact
    assert scores["log_likelihood"] == -1.0 and scores["exact_match"] == pytest.approx(2 / 3)
    transposed = [[row[0] for row in references], [row[1] if len(row) > 1 else None for row in references]]
    assert scores["bleu"] == pytest.approx(BLEU().corpus_score(texts, transposed).score / 100)
    evaluator = ResponseEvaluator({"responses": references}, ["p"] * 3, "exact_match")  # type: ignore[arg-type]
    assert evaluator.score(predictions)["perplexity"] == pytest.approx(math.e)
    assert np.isfinite(list(scores.values())).all()


def test_a_language_model_is_frozen_unless_told_otherwise() -> None:
    assert GenerationModelArguments().freeze_text
    assert not GenerationModelArguments(use_lora=True).freeze_text
    assert not GenerationModelArguments(freeze_text=False).freeze_text
    with pytest.raises(ValueError, match="`use_lora` trains adapters"):
        GenerationModelArguments(use_lora=True, freeze_text=True)


@pytest.mark.parametrize("asked", [None, "all"])
def test_a_trained_model_keeps_what_its_text_sees_unless_told_otherwise(tmp_path: Path, asked: str | None) -> None:
    processor = make_processor("llama")
    for part in (make_model(len(processor.tokenizer)), processor):
        part.save_pretrained(tmp_path)
    arguments = GenerationModelArguments(model_name_or_path=str(tmp_path))
    loaded = load_generation_model(arguments, GenerationArguments(image_scope=asked))[1]
    assert loaded.image_scope == (asked or "latest")


# ------------------------------------------------------------------------------------------------------------ the script


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    tokenizer = TOKENIZERS["llama"]()
    config = LANGUAGE_MODELS["llama"]()
    config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id = len(tokenizer), 1, 2, 2
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    ResNetModel(VISION["resnet"]()).save_pretrained(folder / "vision")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "vision")
    for colour in ("red", "green"):
        Image.new("RGB", (40, 40), colour).save(folder / f"{colour}.png")
    rows = [{**row, "image": ("red.png", "green.png", None)[index]} for index, row in enumerate(TEXTS)]
    for split in ("train", "valid", "test"):
        write_rows(folder, rows, f"{split}.jsonl")
    return folder


FLAGS = ("--num_fusion_heads", "2", "--cross_attention_every", "2", "--max_new_tokens", "4")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--use_lora", "True"), ("--freeze_vision", "False")])
def test_the_script_trains_tests_and_saves(sample: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    results = run_script("run_generation.py", sample, tmp_path, *FLAGS, *flags)
    assert results["test"].keys() == {"true", "none"} and results["test"]["true"]["support"] == 3
    assert "perplexity" in results["stdout"]
    lines = (tmp_path / "test_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == [row["prompt"] for row in TEXTS]
    model, report = VTFusionForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    processor = VTFusionProcessor.from_pretrained(tmp_path)
    inputs = processor(text="the quick", images=str(sample / "red.png"), allow_paths=True, return_tensors="pt")
    text = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    generated = processor.tokenizer.decode(text, skip_special_tokens=True).strip()
    assert generated == json.loads(lines[0])["generated"]["text"]
    page = (tmp_path / "test_samples.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 2 and page.count('class="missing"') == 1
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: image-text-to-text" in card and "AutoModelForImageTextToText" in card


@pytest.mark.slow
def test_weights_that_processes_share_generate_as_whole_ones(sample: Path, tmp_path: Path) -> None:
    one_by_one = ("--per_device_eval_batch_size", "1")  # of three rows one process has one more than the other
    run_script("run_generation.py", sample, tmp_path / "shared", *FLAGS, *one_by_one, *HALF, launcher=FSDP)
    trained = ("--model_name_or_path", str(tmp_path / "shared"), "--max_new_tokens", "4")
    run_script("run_generation.py", sample, tmp_path / "whole", *one_by_one, *trained, splits=("test",))
    shared, whole = (
        [
            json.loads(line)["generated"]
            for line in (tmp_path / name / "test_predictions.jsonl").read_text().splitlines()
        ]
        for name in ("shared", "whole")
    )
    assert [row["text"] for row in shared] == [row["text"] for row in whole]
    for one, other in zip(shared, whole, strict=True):
        assert one["log_likelihood"] == pytest.approx(other["log_likelihood"], abs=1e-4)


@pytest.mark.slow
def test_the_script_answers_whether_the_image_helped(sample: Path, tmp_path: Path) -> None:
    report = run_script("run_generation.py", sample, tmp_path, *FLAGS, "--image_ablation", "--seeds", "0")
    assert report["metric"] == "log_likelihood"
