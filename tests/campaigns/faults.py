#!/usr/bin/env python
"""
Do trainings survive what happens to them? One training is run undisturbed; then the same command is killed again and
again, at random moments and at chosen ones (while a checkpoint, the feature cache or the model is written), its files are
cut short, flipped and removed, its disk is full, its loader dies, it meets itself. Each time it is started again until it
ends, and must then have the same losses at every step, the same scores, predictions and weights, to the bit.

make faults ARGS="--kills 200"

Most runs are forks of a process that has imported everything, the others (`fresh_share`) new processes. Needs Linux, and
root for disks that are really full. Prints a table, writes `faults.json`, and ends with 1 if anything was lost.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Before anything of Hugging Face is imported, and inherited by every run.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="vtfusion-faults-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

from transformers import HfArgumentParser
from transformers.utils import logging

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


# --------------------------------------------------------------------------------------------------------- processes


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
    from tqdm import tqdm

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
        import traceback

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
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPTS / script), *command], stdout=file, stderr=file, start_new_session=True
        )
    return Run(process.pid, log)


def run_script(script: str, command: list[str]) -> None:
    import dataclasses
    import importlib

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


# ------------------------------------------------------------------------------------------------------------- world


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


# ------------------------------------------------------------------------------------------------------------- kills


def unsealed(output: Path, pattern: str) -> list[Path]:
    folders = [path for path in output.glob("checkpoint-*") if not (path / "manifest.json").is_file()]
    return [file for folder in folders for file in folder.glob(pattern)]


# A moment has come when one of these files is there that was not there before.
MOMENTS: dict[str, Callable[[Path], Iterable[Path]]] = {
    "feature cache": lambda output: output.glob("features/*/.unfinished*"),
    "checkpoint begun": lambda output: unsealed(output, "*"),
    "optimiser written": lambda output: unsealed(output, "optimizer.pt"),
    "state written": lambda output: unsealed(output, "trainer_state.json"),
    "final save": lambda output: output.glob(".unfinished"),
    "tests": lambda output: output.glob("validation_report.txt"),
}
# seconds within which it is killed then
SPREAD = {"feature cache": 0.03, "checkpoint begun": 0.05, "optimiser written": 0.01, "state written": 0.004}
SPREAD |= {"final save": 0.06, "tests": 0.1}


def signs(output: Path, moment: str) -> set[tuple[Path, int, int]]:
    found = set()
    for path in MOMENTS[moment](output):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        found.add((path, status.st_ino, status.st_mtime_ns))
    return found


def kill_at(run: Run, output: Path, moment: str | None, longest: float, rng: random.Random) -> str | None:
    """Kills at a moment, or after up to so many seconds of CPU; `None` if the run ended first."""
    old = set() if moment is None else signs(output, moment)
    end = run.imports + rng.uniform(0, longest)
    while run.poll() is None:
        if run.cpu() >= end if moment is None else signs(output, moment) - old:
            time.sleep(rng.uniform(0, 0.01 if moment is None else SPREAD[moment]))
            if run.poll() is not None:
                return None
            run.kill()
            return "SIGKILL at any time" if moment is None else f"SIGKILL, {moment}"
        time.sleep(0.002 if moment is None else 0.0005)
    return None


def kill_trainings(campaign: Campaign) -> None:
    rng, script = campaign.random, "run_ner.py"
    progress = logging.tqdm(total=campaign.args.kills, desc="Kills")
    killed = 0
    while killed < campaign.args.kills:
        output = campaign.new_output("killed")
        kinds: list[str] = []
        lost = None
        for place in range(min(rng.randint(3, 8), campaign.args.kills - killed)):
            moment = None if rng.random() < 0.5 else rng.choice(list(MOMENTS))
            if place == 0 and rng.random() < 0.5:
                moment = "feature cache"
            run = campaign.start(script, output)
            kind = kill_at(run, output, moment, campaign.cpu[script], rng)
            if kind is None:
                if run.code != 0:
                    lost = f"ended with {run.code}: {run.said()[-1500:]}"
                break
            kinds.append(kind)
            progress.update()
            lost = lost or find_half_files(output)
        if kinds == [] and lost is None:
            continue
        killed += len(kinds)
        if lost is not None:
            campaign.count(kinds[-1] if kinds else "a run that was not killed", f"{output.name}: {lost}")
            kinds = kinds[:-1]
        for kind in kinds[:-1]:
            campaign.count(kind)
        if kinds:
            campaign.judge(kinds[-1], script, output)
    progress.close()


def kill_plain_loops(campaign: Campaign, count: int) -> None:
    """It starts anew, and what it leaves is whole or not there."""
    script, rng = "run_ner_no_trainer.py", campaign.random
    for _ in logging.tqdm(range(count), desc="Plain loop"):
        output = campaign.new_output("plain-loop")
        run = campaign.start(script, output)
        moment = rng.choice([None, "feature cache", "final save"])
        kind = kill_at(run, output, moment, campaign.cpu[script], rng)
        if lost := find_half_files(output):
            campaign.count("plain loop: SIGKILL", lost)
        elif kind is not None:
            campaign.judge("plain loop: SIGKILL", script, output)


def kill_pairings(campaign: Campaign, count: int) -> None:
    """Over a data set of the same rows with other pictures: it is the old one, the new one, or refused."""
    script, rng, kind = "pair_images.py", campaign.random, "pair_images.py: SIGKILL"
    whole = {seed: load_pairs(campaign.expected[script][seed]) for seed in (0, 1)}
    for number in logging.tqdm(range(count), desc="Pairing"):
        output = campaign.new_output("pairing")
        old = number % 2 == 1
        if old:
            shutil.copytree(campaign.expected[script][0], output)
        run = campaign.start(script, output, seed=1)
        end = rng.uniform(0.3, 1.0) * campaign.cpu[script]
        while run.poll() is None and run.cpu() < end:
            if rng.random() < 0.01 and (output / ".unfinished" / "dataset" / "train").is_dir() and number % 4 < 2:
                break
            time.sleep(0.001)
        if run.poll() is not None:
            continue
        run.kill()
        found = load_pairs(output)
        if found not in (["refused"], whole[0] if old else ["refused"], whole[1]):
            campaign.count(kind, f"{output.name} holds something else")
            continue
        campaign.finish(script, output, seed=1)
        campaign.count(kind, None if load_pairs(output) == whole[1] else f"{output.name}: other pairs")


def load_pairs(output: Path) -> list[str]:
    """The pictures of each row as a loader of the task scripts gives them, in a process of its own."""
    answer = output.with_name(f"{output.name}.pairs")

    def load() -> None:
        from vtfusion.training.token_data import load_token_classification_dataset

        try:
            rows = load_token_classification_dataset(str(output), allow_outside_paths=True)["train"]
        except (ValueError, OSError) as error:
            print(error)
            answer.write_text(json.dumps(["refused"]))
        else:
            answer.write_text(json.dumps([str(ids) for ids in rows["image_ids"]]))

    start(load, answer.with_suffix(".log")).wait()
    return json.loads(answer.read_text())


# ------------------------------------------------------------------------------------------------------- damaged files


def damages(path: Path, rng: random.Random) -> Iterator[tuple[str, bytes | None]]:
    """What may become of a file: removed, cut at several places, one bit flipped at several places."""
    content = path.read_bytes()
    yield "missing", None
    for cut in sorted({0, len(content) // 2, rng.randrange(len(content)), len(content) - 1}):
        yield f"cut at {cut}", content[:cut]
    for place in sorted({0, len(content) // 2, rng.randrange(len(content)), len(content) - 1}):
        flipped = bytes([content[place] ^ (1 << rng.randrange(8))])
        yield f"flipped at {place}", content[:place] + flipped + content[place + 1 :]


def kind_of(damage: str) -> str:
    return damage.split(" at ")[0]


def damage_checkpoints(campaign: Campaign) -> None:
    """The newest of two checkpoints is damaged in each of its files."""
    from vtfusion.training.files import find_damage

    script, rng = "run_ner.py", campaign.random
    base = campaign.new_output("base")
    run = campaign.start(script, base)
    newest = base / f"checkpoint-{3 * SAVE_STEPS}"
    while not (newest / "manifest.json").is_file():
        if run.poll() is not None:
            raise RuntimeError(f"the run ended with {run.code}: {run.said()[-1000:]}")
        time.sleep(0.001)
    run.kill()
    names = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
    work = [
        (name, damage, content)
        for name in (*names, "config.json", "training_args.bin", "manifest.json")
        for damage, content in damages(newest / name, rng)
    ]
    for name, damage, content in logging.tqdm(work, desc="Checkpoints"):
        output = campaign.new_output("checkpoint")
        shutil.copytree(base, output)
        for state in output.glob("checkpoint-*/trainer_state.json"):
            assert str(base) in state.read_text()  # the best one is named by its path, and found by its name
        put(output / newest.name / name, content)
        said = newest.name if find_damage(output / newest.name) else None  # no harm: a line break at the end
        campaign.judge(f"checkpoint file {kind_of(damage)}", script, output, said=said)
    shutil.rmtree(base)
    base.with_name(f"{base.name}.log").unlink()


def put(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def gather_features(world: Path, cache_dir: Path, answer: Path) -> None:
    """A hash of all features as a training gets them."""
    import hashlib

    import torch

    from vtfusion import VTFusionForTokenClassification
    from vtfusion.training.arguments import ModelArguments
    from vtfusion.training.images import BLANK_KEY, FeatureCache, ImageStore
    from vtfusion.training.loading import load_model
    from vtfusion.training.token_data import load_token_classification_dataset

    torch.manual_seed(0)
    rows = load_token_classification_dataset(str(world / "data"))["train"]
    names = rows.features["ner_tags"].feature.names
    encoders = ModelArguments(text_model=str(world / "text"), vision_model=str(world / "vision"))
    model, processor = load_model(VTFusionForTokenClassification, encoders, names)
    store = ImageStore()
    keys = store.add_split("train", rows)
    cache = FeatureCache(model, processor, cache_dir)
    cache.add(store, [*store.keys(), BLANK_KEY], "error")
    digest = hashlib.sha256()
    for tensor in cache.gather(keys).values():
        digest.update(tensor.numpy().tobytes())
    answer.write_text(digest.hexdigest())


def damage_caches(campaign: Campaign) -> None:
    rng, base = campaign.random, campaign.new_output("features")

    def features(folder: Path) -> tuple[str, str]:
        answer = folder.with_suffix(".answer")
        answer.unlink(missing_ok=True)
        run = start(lambda: gather_features(campaign.world, folder, answer), folder.with_suffix(".log"))
        return (answer.read_text() if run.wait() == 0 else f"ended with {run.code}"), run.said()

    expected, _ = features(base)
    work = [
        (path.relative_to(base), damage, content)
        for path in sorted(base.glob("*/part-*/*"))
        for damage, content in damages(path, rng)
    ]
    for name, damage, content in logging.tqdm(work, desc="Feature cache"):
        output = campaign.new_output("cache")
        shutil.copytree(base, output)
        put(output / name, content)
        found, said = features(output)
        again, _ = features(output)
        lost = None
        if not found == again == expected:
            lost = f"{name} {damage}: {found} and then {again} instead of {expected}: {said[-500:]}"
        campaign.count(f"feature cache file {kind_of(damage)}", lost)
        shutil.rmtree(output)


# ---------------------------------------------------------------------------------------------------------- full disks


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A file system of its own on the folder, where this is allowed."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill_disks(campaign: Campaign, size: int, largest: int) -> None:
    rng, script = campaign.random, "run_ner.py"
    shares = [(place + rng.random()) / (4 * campaign.args.repeats) for place in range(4 * campaign.args.repeats)]
    for share in logging.tqdm(shares, desc="Full disks"):
        output = campaign.new_output("disk")
        with small_disk(output, 3 * size) as mounted:
            if not mounted:
                campaign.rows["full disk (tmpfs)"] = {"faults": 0, "survived": 0, "lost": [], "skipped": "needs root"}
                break
            ballast = output / "ballast"
            free = shutil.disk_usage(output).free
            with open(ballast, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, free - int(share * 0.9 * size))
            run = campaign.start(script, output)
            code = run.wait()
            lost = None if code == 0 or names_a_file(run.said(), output) else f"{output.name}: {run.said()[-700:]}"
            ballast.unlink()
            if lost is not None or code == 0:
                campaign.count("full disk (tmpfs)", lost or f"{output.name}: it was not full")
                continue
            campaign.finish(script, output)
            lost = differences(campaign.expected[script], read_run(output))
        campaign.count("full disk (tmpfs)", lost)
    for share in logging.tqdm(shares, desc="File size limits"):
        output = campaign.new_output("limit")
        command = campaign.command(script, output)
        limit = int(20_000 + share * 0.9 * (largest - 20_000))

        def limited(command: list[str] = command, limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            run_script(script, command)

        run = start(limited, output.with_name(f"{output.name}.log"))
        code = run.wait()
        if code == 0 or not names_a_file(run.said(), output):
            campaign.count("file too large (RLIMIT_FSIZE)", f"{output.name}: ended with {code}: {run.said()[-700:]}")
        else:
            campaign.judge("file too large (RLIMIT_FSIZE)", script, output)


def names_a_file(said: str, output: Path) -> bool:
    """Whether the error is one of writing and names a place in the folder."""
    last = [line for line in said.splitlines() if line.startswith("OSError")]
    return bool(last) and str(output) in last[-1]


# ------------------------------------------------------------------------------------------- other processes, signals


def kill_loaders(campaign: Campaign) -> None:
    script, kind = "run_ner.py", "dataloader worker killed"
    for _ in logging.tqdm(range(campaign.args.repeats), desc="Loaders"):
        output = campaign.new_output("loader")
        run = campaign.start(script, output, fresh=False, dataloader_num_workers=1)
        after = campaign.random.choice([0, SAVE_STEPS, 2 * SAVE_STEPS])
        while run.poll() is None:
            workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
            if workers and (after == 0 or (output / f"checkpoint-{after}" / "manifest.json").is_file()):
                try:
                    os.kill(int(workers[0]), signal.SIGKILL)
                except ProcessLookupError:
                    continue
                break
            time.sleep(0.002)
        try:
            if run.wait(600) == 0 or "DataLoader worker" not in run.said():
                campaign.count(kind, f"{output.name}: ended with {run.code}")
                continue
        except TimeoutError as error:
            campaign.count(kind, str(error))
            continue
        campaign.judge(kind, script, output, dataloader_num_workers=1)


def run_beside(campaign: Campaign) -> None:
    script, rng = "run_ner.py", campaign.random
    for _ in logging.tqdm(range(campaign.args.repeats), desc="Two runs"):
        outputs = [campaign.new_output("beside") for _ in range(2)]
        cache = outputs[0].with_suffix(".features")
        runs = [campaign.start(script, output, feature_cache_dir=cache) for output in outputs]
        for run, output in zip(runs, outputs, strict=True):
            if run.wait() != 0:
                campaign.count("two runs, one cache", f"{output.name}: ended with {run.code}: {run.said()[-700:]}")
            else:
                lost = differences(campaign.expected[script], read_run(output))
                campaign.count("two runs, one cache", lost)
        output = campaign.new_output("one-folder")
        first = campaign.start(script, output, fresh=False)
        while not (output / ".lock").exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.5))
        log = output.with_suffix(".second")
        command = campaign.command(script, output)
        codes = first, start(lambda command=command: run_script(script, command), log)  # type: ignore[misc]
        first.wait()
        second = codes[1].wait()
        lost = None
        if first.code != 0 or (second != 0 and "Another run is writing into" not in log.read_text()):
            lost = f"{output.name}: ended with {first.code} and {second}: {log.read_text()[-500:]}"
        campaign.count("two runs, one output folder", lost or differences(campaign.expected[script], read_run(output)))


def terminate(campaign: Campaign) -> None:
    script, kind, rng = "run_ner.py", "SIGTERM", campaign.random
    for _ in logging.tqdm(range(4 * campaign.args.repeats), desc="SIGTERM"):
        output = campaign.new_output("terminated")
        run = campaign.start(script, output)
        while not any(output.glob("checkpoint-*")) and run.poll() is None:
            time.sleep(0.001)
        end = run.cpu() + rng.uniform(0, 0.4) * campaign.cpu[script]
        while run.poll() is None and run.cpu() < end:
            time.sleep(0.002)
        if run.poll() is not None:
            continue
        os.killpg(run.pid, signal.SIGTERM)
        code = run.wait()
        if code == -signal.SIGTERM and (output / "model.safetensors").is_file():  # after the training
            campaign.judge("SIGTERM in the tests", script, output)
        elif code != 128 + signal.SIGTERM or "SIGTERM: saved checkpoint-" not in run.said():
            campaign.count(kind, f"{output.name}: ended with {code}: {run.said()[-500:]}")
        else:
            campaign.judge(kind, script, output)


# -------------------------------------------------------------------------------------------------------------- report


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| fault | times | survived |", "| --- | --- | --- |"]
    for kind, row in rows.items():
        lines.append(f"| {kind} | {row['faults']} | {row.get('skipped') or row['survived']} |")
    return "\n".join(lines)


def main(args: FaultArguments) -> int:
    own_lock_of_bars()  # before the first bar: classes of bars keep the lock that they found
    # All that is imported here is not imported again by each run; nothing is computed, so that no thread is started.
    import torch

    import vtfusion
    import vtfusion.scripts.pair_images
    import vtfusion.scripts.run_ner
    import vtfusion.scripts.run_ner_no_trainer  # noqa: F401
    from vtfusion.training import data, fine_tuning, images, loading, token_classification, versions  # noqa: F401

    torch.set_num_threads(1)
    campaign = Campaign(args)
    if campaign.folder.exists() and any(campaign.folder.iterdir()):
        raise ValueError(f"{campaign.folder} is not empty: give another `output_dir`.")
    campaign.world.mkdir(parents=True)
    started = time.monotonic()
    if start(lambda: build_world(campaign.world), campaign.folder / "world.log").wait() != 0:
        raise RuntimeError((campaign.folder / "world.log").read_text())

    for script in ("run_ner.py", "run_ner_no_trainer.py"):
        output = campaign.folder / f"undisturbed-{script.removesuffix('.py')}"
        fresh = campaign.finish(script, output, fresh=True)
        campaign.expected[script] = read_run(output)
        again = output.with_name(f"{output.name}-again")
        campaign.cpu[script] = campaign.finish(script, again, fresh=False).used
        campaign.imports[script] = fresh.used - campaign.cpu[script]
        campaign.count("none (a second run)", differences(campaign.expected[script], read_run(again)))
    steps = len(campaign.expected["run_ner.py"]["losses"])
    assert steps == STEPS, steps
    campaign.expected["pair_images.py"] = {}
    for seed in (0, 1):
        output = campaign.folder / f"undisturbed-pairs-{seed}"
        campaign.cpu["pair_images.py"] = campaign.finish("pair_images.py", output, fresh=False, seed=seed).used
        campaign.expected["pair_images.py"][seed] = output
    print(f"{STEPS} steps; seconds of CPU of an undisturbed run: {campaign.cpu}", flush=True)

    files = [path for path in (campaign.folder / "undisturbed-run_ner").rglob("*") if path.is_file()]
    sizes = [path.stat().st_size for path in files]
    some = max(args.kills // 10, 1)
    for part in (
        lambda: kill_trainings(campaign),
        lambda: kill_plain_loops(campaign, some),
        lambda: kill_pairings(campaign, some),
        lambda: terminate(campaign),
        lambda: run_beside(campaign),
        lambda: kill_loaders(campaign),
        lambda: damage_caches(campaign),
        lambda: fill_disks(campaign, sum(sizes), max(sizes)),
        lambda: damage_checkpoints(campaign),
    ):
        part()
        print(f"\n{table(campaign.rows)}\n", flush=True)

    rows = campaign.rows
    lost = sum(len(row["lost"]) for row in rows.values())
    kills = sum(row["faults"] for kind, row in rows.items() if "SIGKILL" in kind)
    aimed = sum(row["faults"] for kind, row in rows.items() if "SIGKILL, " in kind)
    seconds = time.monotonic() - started
    report = {
        "arguments": asdict(args),
        "seconds": round(seconds),
        "kills": kills,
        "kills_while_writing": aimed,
        "lost": lost,
        "faults": rows,
        "versions": versions.package_versions(),
    }
    (campaign.folder / "faults.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(rows)}\n")
    print(
        f"{kills} SIGKILLs, {aimed} of them at chosen moments; {lost} lost; {seconds / 60:.0f} min, seed {args.seed}"
    )
    return 1 if lost else 0


if __name__ == "__main__":
    try:
        sys.exit(main(HfArgumentParser(FaultArguments).parse_args_into_dataclasses()[0]))
    finally:
        shutil.rmtree(os.environ["HF_HOME"])
