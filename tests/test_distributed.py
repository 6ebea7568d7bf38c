"""Two processes on CPUs give what one gives: losses at the same global batch, scores and predictions of every row."""

import itertools
import json
import shutil
from pathlib import Path

import PIL.Image
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from running import FSDP, HALF, LAUNCH, SCRIPTS, losses, no_dropout, run_script, write_colours
from running import run_on_sample as run
from vtfusion.training.arguments import CaptionDataArguments
from vtfusion.training.captions import open_caption_streams

CONFIGS = sorted((SCRIPTS / "accelerate_configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def start(sample, tmp_path_factory) -> str:
    return str(no_dropout(sample, tmp_path_factory.mktemp("start")))


def predictions(folder: Path) -> list:
    return [json.loads(line) for line in (folder / "test_predictions.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("order", ["sequential", "random", "group_by_length"])
def test_two_processes_give_what_one_gives(sample, start, tmp_path, order, kind):
    options = ("--model_name_or_path", start, "--train_sampling_strategy", order, "--num_train_epochs", "2")
    one = run(sample, tmp_path / "one", *options)
    two = run(sample, tmp_path / "two", *options, *HALF, launcher=LAUNCH if kind == "ddp" else FSDP)
    assert len(losses(tmp_path / "one")) == 12
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-3)
    for split in ("validation", "test"):
        for condition, scores in one[split].items():
            assert two[split][condition] == pytest.approx(scores, abs=1e-6), (split, condition)
    # 24 texts, in their order: none dropped where two processes share 3 batches of 8, none doubled
    assert len(predictions(tmp_path / "one")) == 24
    assert predictions(tmp_path / "two") == predictions(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [LAUNCH, FSDP], ids=["ddp", "fsdp2"])
def test_losses_are_those_of_all_processes(sample, tmp_path, launcher):
    for part in ("text", "vision"):
        shutil.copytree(sample / part, tmp_path / part)
    for split, count in (("train", 32), ("valid", 12), ("test", 12)):
        rows = [{"text": f"Mirano spoke about {row} things .", "image": f"{split}-{row}.png"} for row in range(count)]
        for row, record in enumerate(rows):
            PIL.Image.new("RGB", (32, 32), (8 * row, 90, 200)).save(tmp_path / record["image"])
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in rows))
    # what compares the pairs of a process has fewer to compare there
    options = ["--contrastive_loss_weight", "0", "--matching_loss_weight", "0"]
    options += ["--logging_steps", "1", "--per_device_train_batch_size", "8", "--per_device_eval_batch_size", "12"]
    half = (*HALF, "--per_device_eval_batch_size", "6")
    two = run_script("run_pretraining.py", tmp_path, tmp_path / "two", *options, *half, launcher=launcher)
    trained = ("--model_name_or_path", str(tmp_path / "two"))
    assert len(losses(tmp_path / "two")) == 4
    # the masks are drawn anew, of 60 words
    one = run_script("run_pretraining.py", tmp_path, tmp_path / "one", *options, *trained, splits=("test",))
    for name in ("loss", "fusion_loss", "text_loss"):
        assert two["test"][name] == pytest.approx(one["test"][name], rel=0.2), name


@pytest.mark.slow
def test_a_process_whose_batch_has_no_picture_keeps_step(sample, start, tmp_path):
    options = ("--model_name_or_path", start, "--train_sampling_strategy", "sequential", "--ddp_backend", "gloo")
    options += ("--per_device_train_batch_size", "1", "--per_device_eval_batch_size", "1")
    ddp = run(sample, tmp_path / "ddp", *options, launcher=LAUNCH)
    fsdp = run(sample, tmp_path / "fsdp2", *options, launcher=FSDP)
    assert len(losses(tmp_path / "ddp")) == 24
    assert losses(tmp_path / "fsdp2") == pytest.approx(losses(tmp_path / "ddp"), abs=1e-3)
    assert fsdp["test"]["true"] == pytest.approx(ddp["test"]["true"], abs=1e-6)


@pytest.mark.slow
def test_a_shared_vision_encoder_needs_an_image_in_every_row(sample, tmp_path):
    with pytest.raises(AssertionError, match=r"texts in train have no image.*multi_gpu\.yaml"):
        run(sample, tmp_path, "--freeze_vision", "False", *HALF, launcher=FSDP)


@pytest.mark.slow
def test_weights_that_processes_share_find_as_whole_ones(tmp_path):
    write_colours(tmp_path, train=16, valid=12, test=12)
    text = ("--text_column", "text")
    run_script("run_retrieval.py", tmp_path, tmp_path / "shared", *text, *HALF, launcher=FSDP)
    trained = ("--model_name_or_path", str(tmp_path / "shared"))
    run_script("run_retrieval.py", tmp_path, tmp_path / "whole", *text, *trained, splits=("test",))
    assert predictions(tmp_path / "shared") == predictions(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_train_on_a_stream(tmp_path):
    write_colours(tmp_path, train=32, valid=12, test=12)
    results = run_script(
        "run_pretraining.py", tmp_path, tmp_path / "out", "--streaming", "True", "--max_steps", "4", "--save_steps", "4",
        "--logging_steps", "1", "--text_column", "text", *HALF, launcher=LAUNCH,
    )  # fmt: skip
    assert len(losses(tmp_path / "out")) == 4
    assert results["test"]["loss"] > 0


@pytest.mark.parametrize("shuffled", [1, 5])
def test_processes_share_the_rows_of_a_stream(tmp_path, shuffled):
    with open(tmp_path / "rows.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": f"row {row}", "image": None}) + "\n" for row in range(16))
    source = CaptionDataArguments(train_file=str(tmp_path / "rows.jsonl"))

    def read(num_processes: int, batches: int) -> list[list[list[str]]]:
        loaders = []
        for process in range(num_processes):
            stream = open_caption_streams(source, shuffled, 0)["train"]
            loader = DataLoader(stream, batch_size=8 // num_processes, collate_fn=lambda rows: rows)
            prepared = prepare_data_loader(
                loader, num_processes=num_processes, process_index=process, dispatch_batches=False
            )
            loaders.append([row["captions"][0] for batch in itertools.islice(prepared, batches) for row in batch])
        return loaders

    (alone,) = read(1, 2)
    first, second = read(2, 2)
    assert sorted(alone) == sorted(f"row {row}" for row in range(16))
    assert first[:4] + second[:4] + first[4:] + second[4:] == alone


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_are_those_of_accelerate(path):
    config = load_config_from_file(str(path))
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (
        config.num_processes == written["num_processes"]
        and config.distributed_type.value == written["distributed_type"]
    )
