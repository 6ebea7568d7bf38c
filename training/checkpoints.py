"""Checkpoints that are taken only whole, kept until a newer one is whole, and saved when a run is told to end."""

import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from .files import find_damage, seal, sealed_at

logger = logging.get_logger(__name__)


class CheckpointCallback(TrainerCallback):
    """
    Seals each checkpoint of [`VTFusionTrainer`] when all of it is on the disk, and only then removes older ones. In its
    block `listening`, a SIGTERM saves a checkpoint after the step that is under way (after the evaluation, at the end of
    an epoch) and ends the training.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self.terminated = False  # a signal came
        self.stopped = False  # the checkpoint that it asked for is saved
        self._stops = False

    @contextmanager
    def listening(self, args: TrainingArguments) -> Iterator[None]:
        """Where SIGTERM is a request. Several processes would hear it at different steps, so only one listens."""
        self.terminated = self.stopped = self._stops = False
        if args.world_size > 1 or threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL

        def request(number: int, frame: Any) -> None:
            self.terminated = True
            signal.signal(signal.SIGTERM, previous)  # a second one ends the run at once

        signal.signal(signal.SIGTERM, request)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        best = state.best_model_checkpoint
        if state.best_global_step and (best is None or not Path(best).is_dir()):
            moved = Path(args.output_dir, f"checkpoint-{state.best_global_step}")
            state.best_model_checkpoint = str(moved) if moved.is_dir() else None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        ends_epoch = float(state.epoch or 0).is_integer()
        self._stops = self.terminated and not ends_epoch and not control.should_training_stop
        control.should_save |= self._stops
        # the mean loss since the last log is in no checkpoint
        control.should_log |= control.should_save

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stopped:  # amid the epoch: what comes at its end is for the run that goes on
            control.should_log = control.should_evaluate = control.should_save = False
            return
        self._stops = self.terminated
        control.should_save |= self._stops
        control.should_log |= control.should_save

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.world_size > 1 and args.distributed_state is not None:
            args.distributed_state.wait_for_everyone()
        if args.should_save:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            seal(folder)
            remove_surplus(folder, state.best_model_checkpoint, self.limit)
        if self._stops:
            control.should_training_stop = self.stopped = True
            logger.warning("SIGTERM: saved checkpoint-%d; the training ends.", state.global_step)


def remove_surplus(newest: Path, best: str | None, limit: int | None) -> None:
    """
    Removes checkpoints beside the newest one and the best, those that were saved last staying longest.

    Args:
        newest (`Path`): the checkpoint saved last.
        best (`str`, *optional*): the best one.
        limit (`int`, *optional*): how many stay; all by default.
    """
    if limit is None or limit <= 0:
        return
    kept = {newest.name} if best is None else {newest.name, Path(best).name}
    others = [path for path in _checkpoints(newest.parent) if path.name not in kept]
    others.sort(key=sealed_at, reverse=True)
    for path in others[max(limit - len(kept), 0) :]:
        shutil.rmtree(path)


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """
    The checkpoint to go on from: of those that are whole, with the best one that they name, the one saved last. A
    warning names what is passed over.
    """
    found = _checkpoints(output_dir)
    for path in found:
        if not sealed_at(path):
            logger.warning("%s; it is not taken.", find_damage(path))
    for path in sorted(filter(sealed_at, found), key=sealed_at, reverse=True):
        damage = find_checkpoint_damage(path)
        if damage is None:
            return str(path)
        logger.warning("%s; %s is not taken.", damage, path.name)
    return None


def find_checkpoint_damage(checkpoint: str | Path) -> str | None:
    """What a checkpoint lacks, or the best one that it names and that is loaded at the end; `None` where all is whole."""
    damage = find_damage(checkpoint)
    best = None if damage else read_state(checkpoint).best_model_checkpoint
    if best is None or Path(best).name == Path(checkpoint).name:
        return damage
    return find_damage(Path(checkpoint).with_name(Path(best).name))


def read_state(checkpoint: str | Path) -> TrainerState:
    """The state of the training in a whole checkpoint."""
    return TrainerState.load_from_json(str(Path(checkpoint, "trainer_state.json")))


def stopped_early(checkpoint: str | Path) -> bool:
    """Whether `early_stopping_patience` had ended the training when the checkpoint was saved."""
    state = read_state(checkpoint)
    control = state.stateful_callbacks.get("TrainerControl", {}).get("args", {})
    return state.global_step < state.max_steps and control.get("should_training_stop", False)


def _checkpoints(output_dir: str | Path) -> list[Path]:
    return [
        path
        for path in sorted(Path(output_dir).glob("checkpoint-*"))
        if path.is_dir() and path.name.removeprefix("checkpoint-").isdigit()
    ]
