"""Prompts with images: what the language model reads, which token sees which image, chats, and the stock pipeline."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor, pipeline

from chatting import CHAT, make_model, make_processor
from tokenizers_for_tests import TOKENIZERS
from vtfusion import VTFusionProcessor
from vtfusion.prompts_vtfusion import chat_template_with_images, take_image_tokens, visible_images

PICTURE = Image.new("RGB", (40, 30), "red")


def seen(processor: VTFusionProcessor, batch: Any, row: int = 0) -> list[tuple[str, list[int]]]:
    """Each token as text, with what it sees."""
    ids, mask = np.asarray(batch["input_ids"][row]), np.asarray(batch["cross_attention_mask"][row])
    return [(processor.tokenizer.decode([i]), m.tolist()) for i, m in zip(ids, mask, strict=True)]


@pytest.mark.parametrize(
    ("text", "clean", "places"),
    [
        ("<image> what is this?", "what is this?", [0]),
        ("see <image> here", "see here", [4]),
        ("<image>\n<image>\nwhich is older?", "which is older?", [0, 0]),
        ("first <image> second <image> end", "first second end", [6, 13]),
        ("what is this? <image>", "what is this? ", [12]),
        ("<image>", "", [0]),
        ("none", "none", []),
        ("Compare this<image> with that<image> now", "Compare this with that now", [12, 22]),
        ("see<image> <image> here", "see here", [3, 3]),
        ("look here:<image>\nwhat is it?", "look here:\nwhat is it?", [10]),
        ("one\n<image>\ntwo", "one\ntwo", [4]),
        ("one\r\n<image>\r\ntwo", "one\r\ntwo", [5]),
        ("user: <image>\nassistant:", "user: \nassistant:", [6]),
    ],
)
def test_image_tokens_are_taken_out(text: str, clean: str, places: list[int]) -> None:
    assert take_image_tokens(text, "<image>") == (clean, places)


def test_who_sees_which_image_by_hand() -> None:
    # begin token, "first", " second", " end", end token; images before "second" and before "end"
    ends = [0, 5, 12, 16, 0]
    assert visible_images(ends, [6, 13], "latest").tolist() == [[0, 0], [0, 0], [1, 0], [0, 1], [0, 1]]
    assert visible_images(ends, [6, 13], "all").tolist() == [[0, 0], [0, 0], [1, 0], [1, 1], [1, 1]]
    # two in one place belong together
    assert visible_images(ends, [0, 0, 13], "latest").tolist()[2:4] == [[1, 1, 0], [0, 0, 1]]
    assert visible_images(ends, [], "latest").shape == (5, 0)


@pytest.mark.parametrize("tokenizer", ["gpt-neox", "llama", "roberta"])
def test_the_language_model_reads_the_text_as_without_images(tokenizer: str) -> None:
    processor = make_processor(tokenizer)
    batch = processor(text=["the quick <image> fox", "lazy dog"], images=[PICTURE, None], return_tensors="pt")
    plain = processor.tokenizer(["the quick fox", "lazy dog"], padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], plain["input_ids"])
    assert torch.equal(batch["attention_mask"], plain["attention_mask"])
    assert batch["image_mask"].tolist() == [[1], [0]]
    by_token = [(text.strip(), mask) for text, mask in seen(processor, batch)]
    before = "".join(text for text, mask in by_token if mask == [0])
    after = "".join(text for text, mask in by_token if mask == [1])
    assert "quick" in before and after.replace("</s>", "").replace("<|endoftext|>", "") == "fox"
    assert not batch["cross_attention_mask"][1].any()


def test_images_without_a_token_stand_before_the_text() -> None:
    processor = make_processor()
    batch = processor(text="lazy dog", images=[PICTURE, PICTURE], return_tensors="pt")
    assert batch["cross_attention_mask"].all() and batch["pixel_values"].shape[:2] == (1, 2)


@pytest.mark.parametrize("scope", ["latest", "all"])
def test_a_token_sees_the_latest_image_or_all_before_it(scope: str) -> None:
    processor = make_processor(image_scope=scope)
    batch = processor(text="<image>the <image>fox", images=[PICTURE, PICTURE], return_tensors="pt")
    by_token = [mask for text, mask in seen(processor, batch) if text.strip() in ("the", "fox")]
    assert by_token == [[1, 0], [0, 1] if scope == "latest" else [1, 1]]


def test_a_response_is_learned_and_its_prompt_is_not() -> None:
    processor = make_processor()
    batch = processor(text=["<image>the quick", "the"], images=[PICTURE, None], response=[" fox", " lazy dog"])
    for row, response in enumerate((" fox", " lazy dog")):
        labels = [label for label in batch["labels"][row] if label != -100]
        assert processor.tokenizer.decode(labels[:-1]) == response
        assert labels[-1] == processor.tokenizer.eos_token_id
    assert all(mask == [1] for _, mask in seen(processor, batch)[: len(batch["labels"][0]) - 3])


def test_an_image_at_the_end_is_seen_where_the_answer_is_read_in_training_as_in_use() -> None:
    processor = make_processor()
    prompt = processor(text="the quick:<image>", images=PICTURE, return_tensors="pt")
    learned = processor(text="the quick:<image>", images=PICTURE, response=" fox", return_tensors="pt")
    length = prompt["input_ids"].shape[1]
    assert prompt["cross_attention_mask"][0, -1].all() and not prompt["cross_attention_mask"][0, 0].any()
    assert torch.equal(learned["cross_attention_mask"][:, :length], prompt["cross_attention_mask"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": ["a", "<image><image>b"], "images": [None, PICTURE]}, r"row 1, field `text`: there are 2 times"),
        ({"text": [["a", "b"]]}, r"row 0, field `text`: expected a string"),
        ({"text": "a", "word_labels": [[1]]}, r"\['word_labels'\] cannot be used with `image_token`"),
        ({"text": "a", "text_pair": "b"}, r"\['text_pair'\] cannot be used with `image_token`"),
        ({"text": "a", "pair_first": True}, r"\['pair_first'\] cannot be used with `image_token`"),
        ({"text": ["a"], "is_split_into_words": True}, r"\['is_split_into_words'\] cannot be used with"),
        ({"text": ["a", "b"], "response": ["c"]}, r"`response`: there are 1 rows for 2"),
        ({"text": ""}, r"row 0, field `text`: there are no tokens"),
        ({"text": "the " * 80}, r"row 0, field `text`: \d+ tokens are more than the 64"),
    ],
)
def test_bad_prompts_name_row_and_field(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_processor(window_length=64)(**arguments)


def test_no_prompts_and_no_end_of_text_are_refused() -> None:
    with pytest.raises(ValueError, match="field `text`: there are no texts"):
        make_processor()(text=[])
    processor = make_processor("bert")
    assert processor.tokenizer.eos_token_id is None
    with pytest.raises(ValueError, match="no end-of-text token"):
        processor(text="the", response="fox")


def test_prompts_are_cut_where_that_is_asked_for() -> None:
    processor = make_processor(window_length=8)
    batch = processor(text="the " * 20, truncation=True, max_length=5)
    assert [len(ids) for ids in batch["input_ids"]] == [5]
    assert processor.encode_prompts(["the " * 20], [0], truncation=True, max_length=9)["attention_mask"] == [[1] * 9]
    longer = processor(text="the " * 20, truncation=True, max_length=10)  # who cuts says where
    assert [len(ids) for ids in longer["input_ids"]] == [10]
    window = processor(text="the " * 20, truncation=True)
    assert [len(ids) for ids in window["input_ids"]] == [8]
    for options, most in (({}, 8), ({"max_length": 5}, 5), ({"max_length": 10, "truncation": False}, 10)):
        for padding in ({}, {"padding": "max_length"}):
            with pytest.raises(ValueError, match=rf"more than the {most} that the model reads"):
                processor(text="the " * 20, **options, **padding)
    processor.tokenizer.init_kwargs |= {"max_length": 5, "truncation": True}  # as some tokenizers are saved
    assert [len(ids) for ids in processor(text="the " * 6)["input_ids"]] == [7]
    assert len(processor.encode_prompts(["the"] * 2, [0, 0])["input_ids"]) == 2
    with pytest.raises(ValueError):
        processor.encode_prompts(["the", "fox"], [0])


@pytest.mark.parametrize("tokenizer", ["gpt-neox", "llama", "roberta"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_end_is_learned_only_behind_the_end_of_a_response(tokenizer: str, side: str) -> None:
    processor = make_processor(tokenizer)
    processor.tokenizer.truncation_side = side
    prompt, response, end = "the quick:", " brown fox jumps over", processor.tokenizer.eos_token_id
    (whole,), (learned,) = (processor(text=prompt, response=response)[name] for name in ("input_ids", "labels"))
    given = sum(label == -100 for label in learned)
    for length in range(4, len(whole) + 2):
        cut = processor(text=prompt, response=response, truncation=True, max_length=length)
        (ids,), (labels,) = cut["input_ids"], cut["labels"]
        assert len(ids) <= length and len(labels) == len(ids)
        if length >= len(whole):
            assert (ids, labels) == (whole, learned)
        elif side == "left":
            assert ids[-2:] == whole[-2:] and labels[-1] == end
        else:
            kept = [label for label in labels if label != -100]
            assert kept == learned[given : given + len(kept)] and end not in kept
            assert len(kept) >= length - given - 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_are_padded_as_asked_for_and_what_they_see_with_them(side: str) -> None:
    processor = make_processor(window_length=12)
    arguments = {"text": ["<image>the fox", "<image> <image>fox"], "images": [PICTURE, [PICTURE, PICTURE]]}
    bare = processor(**arguments, padding=False)
    lengths = [len(ids) for ids in bare["input_ids"]]
    for options, length in (
        ({}, max(lengths)),
        ({"padding": "max_length"}, 12),
        ({"padding": "max_length", "max_length": 9}, 9),
        ({"pad_to_multiple_of": 16}, 16),
    ):
        batch = processor(**arguments, padding_side=side, return_tensors="pt", **options)
        assert batch["input_ids"].shape == (2, length) and batch["cross_attention_mask"].shape == (2, length, 2)
        for row, count in enumerate(lengths):
            real = slice(length - count, length) if side == "left" else slice(0, count)
            assert batch["attention_mask"][row].nonzero().flatten().tolist() == list(range(length))[real]
            assert batch["input_ids"][row, real].tolist() == bare["input_ids"][row]
            assert batch["cross_attention_mask"][row, real].tolist() == bare["cross_attention_mask"][row]
            assert batch["cross_attention_mask"][row].sum() == np.sum(bare["cross_attention_mask"][row])


def test_images_of_prompts_take_the_arguments_of_the_image_processor(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "red.png")
    path = str(tmp_path / "red.png")
    raw = {"do_rescale": False, "do_normalize": False}
    batch = make_processor()(text=["a", "<image>b"], images=[None, path], allow_paths=True, return_tensors="pt", **raw)
    assert batch["pixel_values"][1, 0, :, 0, 0].tolist() == [255, 0, 0] and not batch["pixel_values"][0].any()
    assert batch.row_of_window == [0, 1] and [row.text for row in batch.rows] == ["a", "<image>b"]
    with pytest.raises(ValueError, match=r"row 1, field `images`: .*allow_paths"):
        make_processor()(text=["a", "<image>b"], images=[None, path])


def test_prompts_come_as_arrays_too() -> None:
    processor = make_processor()
    arguments = {"text": ["<image>the quick", "fox"], "images": [PICTURE, None]}
    tensors = processor(**arguments, return_tensors="pt")
    arrays = processor(**arguments, return_tensors="np")
    assert set(arrays) == set(tensors) and "pixel_values" in arrays
    for name, value in arrays.items():
        assert isinstance(value, np.ndarray)
        np.testing.assert_array_equal(value, tensors[name].numpy())


def test_a_begin_token_in_the_text_is_not_added_again() -> None:
    processor = make_processor("llama")
    begin, end = processor.tokenizer.bos_token, processor.tokenizer.eos_token_id
    texts = [f"{begin}the fox", "the fox", f"<image>{begin}the fox", "", f"{begin}the"]
    written = [text.replace("<image>", "") for text in texts]
    batch = processor.encode_prompts(texts, [0, 0, 1, 0, 0], [" dog"] * 5)
    for text, ids in zip(written, batch["input_ids"], strict=True):
        expected = processor.tokenizer(f"{text} dog", add_special_tokens=not text.startswith(begin))["input_ids"]
        assert ids == [*expected, end]
    firsts = [ids[:2].count(processor.tokenizer.bos_token_id) for ids in batch["input_ids"]]
    assert firsts == [1] * 5
    bare = processor.encode_prompts(texts[:2], [0, 0], [" dog"] * 2, add_special_tokens=False)["input_ids"]
    assert bare == [batch["input_ids"][0], batch["input_ids"][1][1:]]


def test_a_response_needs_an_image_token() -> None:
    processor = VTFusionProcessor(None, TOKENIZERS["gpt-neox"]())
    with pytest.raises(ValueError, match="no `image_token`"):
        processor(text="a", response="b")
    with pytest.raises(ValueError, match="no `image_token`"):
        processor.encode_prompts(["a"], [0])


# --------------------------------------------------------------------------------------------------------------- chats


def conversation() -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "fox"}]},
        {"role": "user", "content": [{"type": "text", "text": "sure?"}]},
    ]


def chat_processor() -> VTFusionProcessor:
    tokenizer = TOKENIZERS["gpt-neox"]()
    tokenizer.chat_template = CHAT
    return VTFusionProcessor(ViTImageProcessor(size={"height": 32, "width": 32}), tokenizer, image_token="<image>")


def test_a_chat_with_images_is_the_language_models_chat() -> None:
    processor = chat_processor()
    text = processor.apply_chat_template(conversation(), add_generation_prompt=True)
    assert text == "user: <image>what?\nassistant: fox\nuser: sure?\nassistant:"
    batch = processor.apply_chat_template(
        conversation(), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert processor.tokenizer.decode(batch["input_ids"][0]) == text.replace("<image>", "")
    assert batch["pixel_values"].shape[:2] == (1, 1)
    assert batch["cross_attention_mask"][0, -1].all() and not batch["cross_attention_mask"][0, 0].any()


@pytest.mark.parametrize("parts", [("the fox", PICTURE), ("the", PICTURE, " fox", PICTURE), (PICTURE,)])
def test_images_take_nothing_from_a_chat(parts: tuple[Any, ...]) -> None:
    def chat(*parts: Any) -> str:
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
            for part in parts
        ]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "ok"}]
        batch = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
        return processor.tokenizer.decode(batch["input_ids"][0])

    processor = chat_processor()
    assert chat(*parts) == chat(*(part for part in parts if isinstance(part, str)))


def test_the_template_is_made_once_and_saved(tmp_path: Path) -> None:
    processor = chat_processor()
    assert processor.chat_template == chat_template_with_images(processor.chat_template, "<image>")
    processor.save_pretrained(tmp_path)
    loaded = VTFusionProcessor.from_pretrained(tmp_path)
    assert loaded.image_token == "<image>" and loaded.chat_template == processor.chat_template
    assert loaded.apply_chat_template(conversation()) == processor.apply_chat_template(conversation())


# ---------------------------------------------------------------------------------------------------- stock pipeline


def test_the_stock_pipeline_generates() -> None:
    processor = chat_processor()
    model = make_model(len(processor.tokenizer))
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    inputs = processor(text="<image>the fox", images=PICTURE, return_tensors="pt")
    new = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
    generate = {"max_new_tokens": 4, "min_new_tokens": 4}
    result = pipe(images=PICTURE, text="<image>the fox", generate_kwargs=generate, return_full_text=False)
    assert result[0]["generated_text"] == processor.tokenizer.decode(new, skip_special_tokens=True)
    chat = pipe(text=conversation(), generate_kwargs=generate)
    assert chat[0]["generated_text"][-1]["role"] == "assistant"


REMOTE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
folder, image = sys.argv[1:]
result = {}
for auto_class in (AutoModelForImageTextToText, AutoModelForCausalLM):
    model, report = auto_class.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(text="<image>the fox", images=image, allow_paths=True, return_tensors="pt")
    text = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4)
    assert "vtfusion" not in sys.modules and not report["missing_keys"], report
    model.save_pretrained(sys.argv[1] + "-again")
    again = auto_class.from_pretrained(sys.argv[1] + "-again", trust_remote_code=True)
    assert torch.equal(again.generate(**inputs, max_new_tokens=4, min_new_tokens=4), text)
    result[auto_class.__name__] = text.tolist()
print(json.dumps(result))
"""


def test_a_folder_generates_where_vtfusion_is_not_importable(tmp_path: Path) -> None:
    processor = make_processor()
    model = make_model(len(processor.tokenizer))
    folder, image = tmp_path / "model", tmp_path / "image.png"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    PICTURE.save(image)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", REMOTE, str(folder), str(image)]
    process = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert process.returncode == 0, process.stderr[-3000:]
    inputs = processor(text="<image>the fox", images=PICTURE, return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4).tolist()
    result = json.loads(process.stdout.splitlines()[-1])
    assert result == {"AutoModelForImageTextToText": expected, "AutoModelForCausalLM": expected}
