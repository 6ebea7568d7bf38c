"""Two processes on CPUs give what one gives: losses at the same global batch, scores and predictions of every row."""

import itertools
import json
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from running import SCRIPTS, losses, no_dropout, run_script, write_colours
from running import run_on_sample as run
from vtfusion.training.arguments import CaptionDataArguments
from vtfusion.training.captions import open_caption_streams

CONFIGS = sorted((SCRIPTS / "accelerate_configs").glob("*.yaml"))
LAUNCH = (
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
)  # fmt: skip
FSDP = (
    *LAUNCH[:3], "--config_file", str(SCRIPTS / "accelerate_configs" / "fsdp2.yaml"), "--num_processes", "2",
    "--mixed_precision", "no", "--main_process_port", "0", str(Path(__file__).with_name("fsdp_on_cpu.py")),
)  # fmt: skip
HALF = ("--per_device_train_batch_size", "4", "--ddp_backend", "gloo")


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
