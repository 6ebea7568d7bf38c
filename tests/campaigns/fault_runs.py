"""
The runs of `faults.py`: commands as forks or new processes, the tiny world in which they train, and what two of them are
compared by.
"""

import dataclasses
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import HfArgumentParser

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
STEPS, SAVE_STEPS = 24, 5  # of 6 steps an epoch: most checkpoints lie amid one
TRAINING = ("losses", "evaluations", "scores", "predictions", "weights")


@dataclass
class FaultArguments:
    output_dir: str = field(default="outputs/faults", metadata={"help": "Where the runs and faults.json go."})
    kills: int = field(default=200, metadata={"help": "SIGKILLs of trainings, half of them at chosen moments."})
    repeats: int = field(default=3, metadata={"help": "How often each fault of another kind happens."})
    fresh_share: float = field(default=0.03, metadata={"help": "Share of the runs that are new processes."})
    seed: int = field(default=0, metadata={"help": "Of all moments and places."})

    def __post_init__(self) -> None:
        if self.kills < 1 or self.repeats < 1:
            raise ValueError("`kills` and `repeats` must be at least 1.")


@dataclass
class Run:
    """A command that runs in a process group of its own."""

    pid: int
    log: Path
    code: int | None = None
    used: float = 0.0  # seconds of CPU, when it has ended
    imports: float = 0.0  # seconds of CPU until there is something to lose

    def poll(self) -> int | None:
        """The exit code, negative for a signal; `None` while it runs."""
        if self.code is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.code, self.used = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        return self.code

    def cpu(self) -> float:
        """Seconds of CPU until now: moments by this clock are the same on a busy machine."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return self.used
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait(self, seconds: float = 1800.0) -> int:
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"no end after {seconds:.0f} s: {self.log}")
            time.sleep(0.005)
        return int(self.code or 0)

    def kill(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        while self.poll() is None:
            time.sleep(0.001)

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def own_lock_of_bars() -> None:
    """
    Gives the progress bars of this process a lock of its own. The default one is shared with all forks, and a run that
    is killed while it holds it would stop the campaign; and in a fork it may be held by a thread that is not there.
    """
    tqdm.set_lock(threading.RLock())


def start(call: Callable[[], Any], log: Path) -> Run:
    """A fork of this process, in which nothing has run yet that forks badly."""
    log.parent.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid:
        with_group(pid)
        return Run(pid, log)
    code = 1
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        import torch

        own_lock_of_bars()
        torch.set_num_threads(1)
        call()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def with_group(pid: int) -> None:
    """Waits until the process has its own group, so that its group can be killed."""
    while os.getpgid(pid) != pid:
        time.sleep(0.0005)


def start_fresh(script: str, command: list[str], log: Path) -> Run:
    """A new process, as users start it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPTS / script), *command], stdout=file, stderr=file, start_new_session=True
        )
    return Run(process.pid, log)


def run_script(script: str, command: list[str]) -> None:
    """A script in this process."""
    module = importlib.import_module(f"vtfusion.scripts.{script.removesuffix('.py')}")
    arguments = importlib.import_module("vtfusion.training.arguments")
    if script == "run_ner.py":
        kinds: tuple = (arguments.ModelArguments, arguments.TokenDataArguments, arguments.VTFusionTrainingArguments)
        call = module.run
    elif script == "run_ner_no_trainer.py":
        kinds, call = (arguments.ModelArguments, arguments.TokenDataArguments, module.LoopArguments), module.main
    else:
        kinds, call = (arguments.TokenSourceArguments, module.PairingArguments), module.main
    assert all(dataclasses.is_dataclass(kind) for kind in kinds)
    call(*HfArgumentParser(kinds).parse_args_into_dataclasses(command))


class Campaign:
    """The tiny world, what the undisturbed runs gave, and what was found."""

    def __init__(self, args: FaultArguments):
        self.args = args
        self.random = random.Random(args.seed)
        self.folder = Path(args.output_dir).resolve()
        self.world = self.folder / "world"
        self.rows: dict[str, dict[str, Any]] = {}
        self.expected: dict[str, dict[str, Any]] = {}
        self.cpu: dict[str, float] = {}  # seconds of an undisturbed run that is a fork
        self.imports: dict[str, float] = {}  # what a new process needs besides
        self.number = 0

    def command(self, script: str, output: Path, **flags: Any) -> list[str]:
        given: dict[str, Any] = {"output_dir": output}
        if script == "pair_images.py":
            given |= {"train_file": self.world / "train.jsonl", "image_bank": self.world / "bank"}
            given |= {"strategy": "random", "contact_sheet_rows": 0}
        else:
            given |= {
                "dataset_name": self.world / "data",
                "text_model": self.world / "text",
                "vision_model": self.world / "vision",
                "feature_cache_dir": output / "features",
                "fusion_hidden_size": 16,
                "image_dropout": 0.2,
                "per_device_train_batch_size": 8,
                "learning_rate": 1e-3,
                "num_train_epochs": STEPS // 6 if script == "run_ner.py" else 2,
            }
        if script == "run_ner.py":
            for name in ("eval", "save"):
                given |= {f"{name}_strategy": "steps", f"{name}_steps": SAVE_STEPS}
            given |= {"save_total_limit": 2, "logging_steps": 1, "use_cpu": True, "resume_from_checkpoint": True}
            given |= {"metric_for_best_model": "loss"}  # of a late checkpoint, on which all steps have a say
        given |= flags
        return [word for name, value in given.items() for word in (f"--{name}", str(value))]

    def start(self, script: str, output: Path, fresh: bool | None = None, **flags: Any) -> Run:
        command = self.command(script, output, **flags)
        log = output.with_name(f"{output.name}.log")
        if self.random.random() < self.args.fresh_share if fresh is None else fresh:
            run = start_fresh(script, command, log)
            run.imports = self.imports.get(script, 0.0)
            return run
        return start(lambda: run_script(script, command), log)

    def finish(self, script: str, output: Path, **flags: Any) -> Run:
        """Lets a run end as it should."""
        run = self.start(script, output, **flags)
        if run.wait() != 0:
            raise RuntimeError(f"{script} ended with {run.code}:\n{run.said()[-2000:]}")
        return run

    def new_output(self, kind: str) -> Path:
        self.number += 1
        return self.folder / "runs" / f"{self.number:04d}-{kind.replace(' ', '-')[:40]}"

    def count(self, kind: str, lost: str | None = None, **more: int) -> None:
        row = self.rows.setdefault(kind, {"faults": 0, "survived": 0, "lost": []})
        row["faults"] += more.get("faults", 1)
        row["survived"] += more.get("faults", 1) if lost is None else 0
        if lost is not None:
            row["lost"].append(lost)
            print(f"LOST ({kind}): {lost}", flush=True)

    def judge(
        self, kind: str, script: str, output: Path, faults: int = 1, said: str | None = None, **flags: Any
    ) -> None:
        """Lets the run end, and compares; `said` must stand in what it prints."""
        before = output.with_name(f"{output.name}.log")
        skip = before.stat().st_size if before.exists() else 0
        try:
            self.finish(script, output, **flags)
            lost = differences(self.expected[script], read_run(output))
            if lost is None and said is not None and said not in before.read_text(errors="replace")[skip:]:
                lost = f"nothing was said about {said}"
        except (RuntimeError, TimeoutError, OSError, ValueError, KeyError) as error:
            lost = str(error)
        self.count(kind, None if lost is None else f"{output.name}: {lost}", faults=faults)
        if lost is None:
            shutil.rmtree(output)
            before.unlink(missing_ok=True)


def build_world(folder: Path) -> None:
    """Data, encoders, and texts and pictures to pair."""
    import numpy as np
    import PIL.Image

    from vtfusion.training.sample_data import build_sample_dataset, build_tiny_encoders

    dataset = build_sample_dataset(num_train=48, num_validation=16, num_test=16, image_size=32)
    build_tiny_encoders(folder, dataset, image_size=32)
    dataset.save_to_disk(str(folder / "data"))
    (folder / "bank").mkdir()
    generator = np.random.default_rng(0)
    with open(folder / "bank" / "metadata.jsonl", "w", encoding="utf-8") as file:
        for number in range(8):
            pixels = generator.integers(0, 256, (96, 96, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(folder / "bank" / f"{number}.png")
            file.write(json.dumps({"image": f"{number}.png", "name": f"Name{number}"}) + "\n")
    with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
        for row in range(3000):
            file.write(json.dumps({"tokens": ["Mirano", "spoke", str(row)], "ner_tags": ["B-PER", "O", "O"]}) + "\n")


def read_run(output: Path) -> dict[str, Any]:
    """What two trainings are compared by."""
    results = json.loads((output / "results.json").read_text())
    state = output / "trainer_state.json"
    history = json.loads(state.read_text())["log_history"] if state.is_file() else []
    slow = ("runtime", "per_second")
    return {
        "losses": [entry for entry in history if "loss" in entry],
        "evaluations": [
            {name: value for name, value in entry.items() if not name.endswith(slow)}
            for entry in history
            if "eval_loss" in entry
        ],
        "scores": {split: results[split] for split in ("validation", "test")},
        "predictions": (output / "test_predictions.jsonl").read_text(),
        "weights": [path.read_bytes() for path in sorted(output.glob(f"checkpoint-{STEPS}/*.safetensors"))]
        + [(output / "model.safetensors").read_bytes()],
    }


def differences(expected: dict[str, Any], found: dict[str, Any]) -> str | None:
    """Which parts of two of [`read_run`] differ, if any."""
    different = [name for name in TRAINING if expected[name] != found[name]]
    return f"other {', '.join(different)}" if different else None


def find_half_files(output: Path) -> str | None:
    """A file under its own name that is not whole, in a folder that was just left by a killed run."""
    from vtfusion.training.files import MANIFEST, UNFINISHED, find_damage

    for path in output.glob("*"):
        if path.is_dir():
            if path.name.startswith("checkpoint-") and (path / MANIFEST).is_file():
                kept = json.loads((path / MANIFEST).read_text())["files"]
                # one that was being removed has fewer files, and no other ones
                there = [name for name in kept if (path / name).is_file()]
                if len(there) == len(kept) and (damage := find_damage(path)):
                    return damage
        elif path.name.startswith(UNFINISHED):
            continue
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            content = path.read_bytes()
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            end = max(each["data_offsets"][1] for name, each in header.items() if name != "__metadata__")
            if len(content) != 8 + int.from_bytes(content[:8], "little") + end:
                return f"{path} is cut"
    for part in output.glob("features/*/part-*"):
        if damage := find_damage(part):
            return damage
    return None
