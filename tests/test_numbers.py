"""
Numbers that hold: half precision without NaN, one row alone or among others, micro-batches and the batch that they make
up, and runs that repeat to the bit. For every head and the generation model.
"""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import HfArgumentParser, Trainer, TrainingArguments

from heads import HEADS, make_head
from running import SCRIPTS
from tiny import LANGUAGE_MODELS, LENGTH, VOCAB, tiny_inputs
from vtfusion import VTFusionConfig, VTFusionForConditionalGeneration
from vtfusion.scripts.run_ner import run
from vtfusion.training.arguments import ModelArguments, TokenDataArguments, VTFusionTrainingArguments
from vtfusion.training.sample_data import build_sample_dataset, build_tiny_encoders
from vtfusion.training.trainer import VTFusionTrainer

MODELS = [*HEADS, "generation"]
REGIONS = 5


def make_model(name: str, **settings: Any) -> Any:
    """In evaluation mode, with output projections as after training."""
    if name != "generation":
        return make_head(name, **settings)
    torch.manual_seed(0)
    fusion = {"fusion_hidden_size": 16, "num_fusion_heads": 2, "cross_attention_every": 2, "num_resampler_tokens": 2}
    config = VTFusionConfig(LANGUAGE_MODELS["gpt2"](), visual_hidden_size=12, **{**fusion, **settings})
    model = VTFusionForConditionalGeneration(config).eval()
    for block in model.cross_attention_layers:
        torch.nn.init.normal_(block.fusion.output.weight, std=0.3)
    return model


def inputs_for(name: str, rows: int) -> dict[str, torch.Tensor]:
    make = HEADS[name].inputs if name in HEADS else tiny_inputs
    return make("precomputed", batch_size=rows)


def labels_for(name: str, rows: int) -> dict[str, Any]:
    if name != "generation":
        return HEADS[name].labels(rows)
    words = torch.arange(rows * LENGTH).view(rows, LENGTH) % VOCAB
    words[-1, -2:] = -100
    return {"labels": words}


def row_of(inputs: dict[str, Any], rows: slice) -> dict[str, Any]:
    return {name: value[rows] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


def doubled(inputs: dict[str, Any]) -> dict[str, Any]:
    floats = {name: x.double() for name, x in inputs.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
    return {**inputs, **floats}


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


# ---------------------------------------------------------------------------------------------------- half precision


def usual(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    pass


def sharpest(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    """Temperatures whose inverse no number holds."""
    fill(model, "log_scale", 100.0)


def flattest(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    fill(model, "log_scale", -200.0)


def zero_vectors(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    """Cosines of nothing with nothing."""
    for part in ("query", "key"):
        fill(model, f"{part}.weight", 0.0)
        fill(model, f"{part}.bias", 0.0)


def no_word_and_no_image(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    """One row of each, and one of neither."""
    inputs["attention_mask"][0] = inputs["attention_mask"][2] = 0
    inputs["image_mask"] = torch.tensor([[1], [0], [0]])


def fill(model: torch.nn.Module, ending: str, value: float) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(ending) and "text_model" not in name:
                parameter.fill_(value)


# float16 holds the least
EXTREMES = [(torch.float16, each) for each in (usual, sharpest, flattest, zero_vectors, no_word_and_no_image)]


@pytest.mark.parametrize("autocast", [False, True], ids=["model", "autocast"])
@pytest.mark.parametrize(("dtype", "extreme"), [(torch.bfloat16, usual), (torch.bfloat16, sharpest), *EXTREMES])
@pytest.mark.parametrize("name", MODELS)
def test_half_precision_is_finite(
    name: str, dtype: torch.dtype, extreme: Callable[[torch.nn.Module, dict[str, torch.Tensor]], None], autocast: bool
) -> None:
    model = make_model(name, **({} if name == "generation" else {"contrastive_loss_weight": 0.1}))
    inputs = inputs_for(name, 3) | {"image_mask": torch.tensor([[1], [0], [1]])}
    extreme(model, inputs)
    inputs |= {**labels_for(name, 3), "output_fusion_attentions": True}
    if autocast:
        with torch.autocast("cpu", dtype=dtype):
            outputs = model.train()(**inputs)
    else:
        outputs = model.to(dtype).train()(**inputs)
    outputs.loss.backward()
    values = {field: x for field, x in outputs.items() if isinstance(x, torch.Tensor)} | gradients(model)
    assert [field for field, value in values.items() if not torch.isfinite(value).all()] == []


# ------------------------------------------------------------------------------------------- a row alone and among others


@pytest.mark.parametrize("name", MODELS)
def test_a_row_is_the_same_alone_without_masks_and_among_others(name: str) -> None:
    """Texts of unequal length with two pictures, a part of one, and none."""
    model = make_model(name).double()
    lengths = (LENGTH, 4, 6)
    batch = inputs_for(name, 3)
    for row, length in enumerate(lengths):
        batch["attention_mask"][row] = torch.arange(LENGTH) < length
    generator = torch.Generator().manual_seed(0)
    batch["visual_embeds"] = torch.randn(3, 2, REGIONS, 12, generator=generator)
    batch["visual_boxes"] = torch.rand(3, 2, REGIONS, 2, 2, generator=generator).sort(dim=3).values.flatten(3)
    if name != "generation":  # a resampler reads whole images
        batch["visual_mask"] = torch.ones(3, 2, REGIONS)
        batch["visual_mask"][1, 0, 3:] = 0
    batch["image_mask"] = torch.tensor([[1, 1], [1, 0], [0, 0]])
    batch = doubled(batch)
    images = (slice(0, 2), slice(0, 1), None)
    with torch.no_grad():
        together = model(**batch)
        for row, (length, there) in enumerate(zip(lengths, images, strict=True)):
            alone: dict[str, Any] = {"input_ids": batch["input_ids"][row : row + 1, ..., :length]}
            if there is not None:
                regions = 3 if row == 1 and name != "generation" else REGIONS
                for field in ("visual_embeds", "visual_boxes"):
                    alone[field] = batch[field][row : row + 1, there, :regions]
            single = model(**alone)
            for field in HEADS[name].predictions if name in HEADS else ("logits",):
                expected, result = single[field][0], together[field][row]
                if result.shape[:1] == (LENGTH,):
                    result = result[:length]
                torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9, msg=f"{field} of row {row}")


# ------------------------------------------------------------------------------------------------- micro-batches

ONLY = {
    "all": {},
    "fusion": {"text_loss_weight": 0.0, "vision_loss_weight": 0.0},
    "text": {"fusion_loss_weight": 0.0, "vision_loss_weight": 0.0},
    "vision": {"fusion_loss_weight": 0.0, "text_loss_weight": 0.0},
}
COUNTED: dict[str, tuple[str, dict[str, Any], torch.Tensor | None]] = {
    "token": ("token", {"class_weights": [1.0, 2.0, 0.5], "label_smoothing": 0.1}, None),
    "single": ("sequence", {}, torch.tensor([0, -100, 2, 1])),
    "several": ("sequence", {}, torch.tensor([[1.0, 0.0, 1.0], [0.0, -100.0, 1.0], [0.0, 0.5, 0.0], [1.0, 1.0, 1.0]])),
    "number": ("sequence", {"num_labels": 1}, torch.tensor([0.5, -1.0, 2.0, 3.0])),
    "vqa": ("vqa", {}, None),
    "mlm": ("mlm", {}, None),
    # what compares the rows of a micro-batch with each other has fewer of them there, and promises a share alone
    "pretraining": ("pretraining", {"matching_loss_weight": 0.0, "contrastive_loss_weight": 0.0}, None),
    "generation": ("generation", {}, None),
}


@pytest.mark.parametrize("only", ONLY)
@pytest.mark.parametrize("case", COUNTED)
def test_gradients_of_micro_batches_add_up_to_those_of_the_batch(case: str, only: str) -> None:
    """With the number of labels of the whole; one micro-batch has no image, another two rows of unequal length."""
    name, settings, labels = COUNTED[case]
    if only == "vision" and name in ("mlm", "pretraining"):
        pytest.skip("this head has no L_v")
    model = make_model(name, **settings, **ONLY[only]).double()
    labels = labels_for(name, 4)["labels"] if labels is None else labels
    inputs = tiny_inputs("precomputed", batch_size=4) | {"image_mask": torch.tensor([[1], [1], [0], [0]])}
    inputs["attention_mask"][1, 4:] = 0
    inputs = doubled(inputs | {"labels": labels})
    model(**inputs).loss.backward()
    expected = gradients(model)
    assert any(gradient.any() for gradient in expected.values())
    # the first token of a text is predicted by none
    counted = (labels[:, 1:] if name == "generation" else labels) != -100
    for rows in (slice(0, 1), slice(1, 3), slice(3, 4)):
        loss = model(**row_of(inputs, rows), num_items_in_batch=counted.sum()).loss
        if loss.requires_grad:
            loss.backward()
    result = gradients(model)
    for field in expected.keys() | result.keys():
        whole, summed = (each.get(field, torch.zeros((), dtype=torch.float64)) for each in (expected, result))
        torch.testing.assert_close(summed, whole.expand_as(summed), rtol=1e-8, atol=1e-11, msg=field)


class Rows(torch.utils.data.Dataset):
    """The rows of a batch, for `Trainer`."""

    def __init__(self, batch: dict[str, torch.Tensor]):
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["input_ids"])

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {name: value[row] for name, value in self.batch.items()}


@pytest.mark.parametrize("name", ["token", "qa", "generation"])
def test_trainer_learns_the_same_from_micro_batches(name: str, tmp_path: Path) -> None:
    """Two batches of four rows, whole or in twos; answers to questions are averaged, so their texts are of one length."""
    start = make_model(name).double()
    for module in start.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    inputs = tiny_inputs("precomputed", batch_size=8) | {"image_mask": torch.ones(8, 1)}
    if name == "qa":
        inputs["attention_mask"][:] = 1
    else:
        inputs["image_mask"][::3] = 0
    rows = Rows(doubled(inputs | labels_for(name, 8)))
    weights = []
    for size in (4, 2):
        model = copy.deepcopy(start)
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size,
            max_steps=2,
            learning_rate=0.1,
            optim="sgd",
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=rows).train()
        weights.append(model.state_dict())
    moved = [field for field, value in weights[0].items() if not torch.equal(value, start.state_dict()[field])]
    assert len(moved) > 10
    for field, value in weights[0].items():
        torch.testing.assert_close(weights[1][field], value, rtol=1e-6, atol=1e-9, msg=field)


# ------------------------------------------------------------------------------------------- runs that repeat to the bit


@pytest.fixture
def one_thread() -> Iterator[None]:
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    dataset = build_sample_dataset(num_train=24, num_validation=4, num_test=4, image_size=32)
    dataset.save_to_disk(str(folder / "data"))
    build_tiny_encoders(folder, dataset, image_size=32)
    return folder


def flags(sample: Path, output: Path, workers: int) -> list[str]:
    """Of run_ner.py, which draws in the order of rows, dropout, image dropout and new weights."""
    given = {
        "dataset_name": sample / "data",
        "text_model": sample / "text",
        "vision_model": sample / "vision",
        "output_dir": output,
        "fusion_hidden_size": 16,
        "image_dropout": 0.2,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "dataloader_num_workers": workers,
        "seed": 3,
        "use_cpu": True,
    }
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def train(sample: Path, output: Path, workers: int) -> None:
    parser = HfArgumentParser((ModelArguments, TokenDataArguments, VTFusionTrainingArguments))
    run(*parser.parse_args_into_dataclasses(flags(sample, output, workers)))


def losses(output: Path) -> list[float]:
    history = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.usefixtures("one_thread")
def test_a_run_repeats_to_the_bit_with_any_number_of_workers(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, batches = VTFusionTrainer.training_step, []

    def record(self: VTFusionTrainer, model: Any, inputs: dict[str, torch.Tensor], *args: Any) -> Any:
        batches[-1].append({name: value.clone() for name, value in inputs.items()})
        return step(self, model, inputs, *args)

    monkeypatch.setattr(VTFusionTrainer, "training_step", record)
    outputs = [tmp_path / str(workers) for workers in (0, 1, 2)]
    for workers, output in enumerate(outputs):
        batches.append([])
        train(sample, output, workers)
    first, *others = [load_file(output / "model.safetensors") for output in outputs]
    assert len(batches[0]) == 6 and len(losses(outputs[0])) == 4
    for output, weights, seen in zip(outputs[1:], others, batches[1:], strict=True):
        for one, other in zip(batches[0], seen, strict=True):
            assert one.keys() == other.keys() and all(torch.equal(one[field], other[field]) for field in one)
        assert losses(output) == losses(outputs[0])
        assert weights.keys() == first.keys()
        assert [field for field, value in weights.items() if not torch.equal(value, first[field])] == []


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_another_process_gives_the_same_weights(sample: Path, tmp_path: Path) -> None:
    """Strings hash otherwise there, so that sets have another order."""
    train(sample, tmp_path / "here", 0)
    for seed in ("1", "2"):
        command = [sys.executable, str(SCRIPTS / "run_ner.py"), *flags(sample, tmp_path / seed, 0)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": seed}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert losses(tmp_path / seed) == losses(tmp_path / "here")
        here, there = (load_file(folder / "model.safetensors") for folder in (tmp_path / "here", tmp_path / seed))
        assert [field for field, value in here.items() if not torch.equal(value, there[field])] == []
