"""Only whole checkpoints are taken and kept, and a training goes on from each to what it would have come to anyway."""

import json
import os
import resource
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback, default_data_collator, set_seed
from transformers.utils import logging

from heads import make_head
from tiny import tiny_inputs
from vtfusion.training import checkpoints
from vtfusion.training.arguments import VTFusionTrainingArguments
from vtfusion.training.checkpoints import last_whole_checkpoint
from vtfusion.training.files import MANIFEST, UNFINISHED
from vtfusion.training.fine_tuning import train_model
from vtfusion.training.trainer import VTFusionTrainer

STEPS = 8  # two epochs of four


class At(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


def train(folder, *callbacks, scores=None, **settings):
    """Losses and evaluations by step, and the weights of the last checkpoint and of the saved model."""
    set_seed(0)
    inputs = {**tiny_inputs("precomputed", batch_size=8), "labels": torch.arange(56).reshape(8, 7) % 3}
    rows = [{name: value[row] for name, value in inputs.items()} for row in range(8)]
    given = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "use_cpu": True}
    given |= {"logging_steps": 1, "save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    given |= {"metric_for_best_model": "loss", "save_total_limit": 2, "disable_tqdm": True}
    args = VTFusionTrainingArguments(output_dir=str(folder), **{**given, **settings})
    stopping = [EarlyStoppingCallback(args.early_stopping_patience)] if args.early_stopping_patience else []
    trainer = VTFusionTrainer(
        model=make_head("token", "bert", "precomputed", hidden_dropout=0.2),
        args=args,
        data_collator=default_data_collator,
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=None if scores is None else lambda _: {"f1": scores.pop(0)},
        callbacks=[*callbacks, *stopping],
    )
    train_model(trainer)
    history = [
        {name: value for name, value in entry.items() if not name.endswith(("runtime", "per_second"))}
        for entry in trainer.state.log_history
        if "loss" in entry or "eval_loss" in entry
    ]
    return history, load_file(folder / "model.safetensors")


def assert_same(found, expected):
    assert found[0] == expected[0]
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train(tmp_path_factory.mktemp("undisturbed"))


class Killed(BaseException):
    pass


def kill():
    raise Killed


def killed_after(folder, step, **settings):
    with pytest.raises(Killed):
        train(folder, At(step, kill), **settings)


# amid the first epoch, and amid the second, whose order of the texts must be the same
@pytest.mark.parametrize("step", [3, 6])
@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_a_training_that_goes_on_amid_an_epoch_reads_what_it_would_have_read(tmp_path, step, strategy):
    name = "train_sampling_strategy"
    if name not in VTFusionTrainingArguments.__dataclass_fields__:
        pytest.skip(f"this transformers has no --{name}")
    expected = train(tmp_path / "whole", **{name: strategy})
    killed_after(tmp_path / "run", step + 1, **{name: strategy})
    assert last_whole_checkpoint(tmp_path / "run").endswith(f"-{step}")
    assert_same(train(tmp_path / "run", resume_from_checkpoint="True", **{name: strategy}), expected)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", MANIFEST]
)
@pytest.mark.parametrize("way", ["missing", "cut", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, undisturbed, caplog, monkeypatch, name, way):
    killed_after(tmp_path, 7)
    path = tmp_path / "checkpoint-6" / name
    content = path.read_bytes()
    middle = len(content) // 2
    path.unlink()
    if way == "cut":
        path.write_bytes(content[:middle])
    elif way == "flipped":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 128]) + content[middle + 1 :])
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    monkeypatch.setattr(checkpoints.logger, "propagate", True)
    with caplog.at_level("WARNING"):
        found = last_whole_checkpoint(tmp_path)
    assert found == str(tmp_path / "checkpoint-3") and "checkpoint-6" in caplog.text and "is not taken" in caplog.text
    with pytest.raises(ValueError, match=r"checkpoint-6.* cannot be gone on from"):
        train(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert_same(train(tmp_path, resume_from_checkpoint="True"), undisturbed)


def test_a_checkpoint_is_not_taken_without_the_best_one_that_it_needs(tmp_path):
    killed_after(tmp_path, 7, learning_rate=0.0)  # nothing becomes better than the first
    assert json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())["best_global_step"] == 3
    assert last_whole_checkpoint(tmp_path).endswith("-6")
    (tmp_path / "checkpoint-3" / "model.safetensors").write_bytes(b"")
    assert last_whole_checkpoint(tmp_path) is None


def test_the_best_checkpoint_is_found_where_the_folder_was_moved_to(tmp_path):
    best = {"metric_for_best_model": "f1"}
    expected = train(tmp_path / "before", scores=[0.9, 0.1, 0.1], **best)
    shutil.move(tmp_path / "before", tmp_path / "after")
    (tmp_path / "after" / "model.safetensors").unlink()  # as if it was killed when it saved the model
    found = train(tmp_path / "after", scores=[], resume_from_checkpoint="True", **best)
    assert_same(found, expected)
    of_best = load_file(tmp_path / "after" / "checkpoint-3" / "model.safetensors")
    torch.testing.assert_close(found[1], of_best, rtol=0, atol=0)


def test_the_last_checkpoint_stays_until_the_next_is_whole(tmp_path, monkeypatch):
    settings = {"save_total_limit": 1, "load_best_model_at_end": False, "metric_for_best_model": None}
    expected = train(tmp_path / "whole", **settings)
    seal = checkpoints.seal

    def killed_in_the_second(folder):
        if folder.name == "checkpoint-6":
            raise Killed
        seal(folder)

    monkeypatch.setattr(checkpoints, "seal", killed_in_the_second)
    with pytest.raises(Killed):
        train(tmp_path / "run", **settings)
    monkeypatch.undo()
    assert (tmp_path / "run" / "checkpoint-6" / "trainer_state.json").is_file()
    assert last_whole_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-3")
    assert_same(train(tmp_path / "run", resume_from_checkpoint="True", **settings), expected)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-8"]


def test_only_the_best_checkpoint_stays_beside_the_model_where_one_is_wanted(tmp_path):
    train(tmp_path, save_total_limit=1, scores=[0.9, 0.1, 0.1], metric_for_best_model="f1")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


def test_as_many_checkpoints_stay_as_are_wanted(tmp_path):
    train(tmp_path, save_steps=1, eval_steps=1, save_total_limit=3, learning_rate=0.0)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (1, 7, 8)}


@pytest.mark.parametrize("step", [2, 4, 6, 7])  # amid an epoch, at its end, where a checkpoint is due, and after it
def test_sigterm_saves_a_checkpoint_and_ends_with_its_code(tmp_path, undisturbed, step):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        train(tmp_path, At(step, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert end.value.code == 143 and signal.getsignal(signal.SIGTERM) == handler
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{step}")
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(train(tmp_path, resume_from_checkpoint="True"), undisturbed)


@pytest.mark.parametrize("step", [2, 4, 7])
def test_sigterm_keeps_the_evaluations_of_epochs(tmp_path, step):
    by_epoch = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    expected = train(tmp_path / "whole", **by_epoch)
    assert sum("eval_loss" in entry for entry in expected[0]) == 2
    with pytest.raises(SystemExit):
        train(tmp_path / "run", At(step, lambda: os.kill(os.getpid(), signal.SIGTERM)), **by_epoch)
    assert_same(train(tmp_path / "run", resume_from_checkpoint="True", **by_epoch), expected)


@pytest.mark.parametrize("step", [4, 6])
def test_early_stopping_goes_on_counting(tmp_path, step):
    settings = {"save_steps": 1, "eval_steps": 1, "metric_for_best_model": "f1", "early_stopping_patience": 4}
    scores = [0.1, 0.9, *[0.5] * 6]
    expected = train(tmp_path / "whole", scores=list(scores), **settings)
    assert max(entry["step"] for entry in expected[0]) == 6
    if step == 6:  # killed when it had stopped, while the model was saved
        shutil.copytree(tmp_path / "whole", tmp_path / "run")
        shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "run" / "checkpoint-2", dirs_exist_ok=True)
    else:
        killed_after(tmp_path / "run", step + 1, scores=list(scores), **settings)
    found = train(tmp_path / "run", scores=scores[step:], resume_from_checkpoint="True", **settings)
    assert_same(found, expected)


def test_logged_means_are_the_same_after_a_kill(tmp_path):
    expected = train(tmp_path / "whole", logging_steps=4)
    killed_after(tmp_path / "run", 5, logging_steps=4)
    assert_same(train(tmp_path / "run", logging_steps=4, resume_from_checkpoint="True"), expected)


@pytest.mark.parametrize("step", [3, None])
def test_what_cannot_be_written_is_named_and_the_training_goes_on(tmp_path, undisturbed, step):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))

    settings = {} if step else {"save_strategy": "no", "load_best_model_at_end": False}
    named = f"checkpoint-{step} cannot be written" if step else "The model cannot be written into"
    try:
        with pytest.raises(OSError, match=named) as error:
            train(tmp_path, At(step or STEPS, fill_the_disk), **settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path) in str(error.value) and not (tmp_path / "model.safetensors").exists()
    assert last_whole_checkpoint(tmp_path) is None
    assert_same(train(tmp_path, resume_from_checkpoint="True"), undisturbed)
    assert not (tmp_path / UNFINISHED).exists()


def test_a_killed_save_leaves_the_old_model_and_no_results(tmp_path, monkeypatch):
    train(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "results.json").write_text("{}")
    save = VTFusionTrainer.save_model

    def killed_amid(self, output_dir=None, **kwargs):
        save(self, output_dir, **kwargs)
        if UNFINISHED in output_dir:
            raise Killed

    monkeypatch.setattr(VTFusionTrainer, "save_model", killed_amid)
    with pytest.raises(Killed):
        train(tmp_path, learning_rate=0.1)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not (tmp_path / "results.json").exists()
