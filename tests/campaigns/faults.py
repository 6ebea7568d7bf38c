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
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Before anything of Hugging Face is imported, and inherited by every run.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="vtfusion-faults-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

from fault_files import damage_caches, damage_checkpoints, fill_disks
from fault_runs import (
    SAVE_STEPS,
    STEPS,
    Campaign,
    FaultArguments,
    Run,
    build_world,
    differences,
    find_half_files,
    own_lock_of_bars,
    read_run,
    run_script,
    start,
)
from transformers import HfArgumentParser
from transformers.utils import logging

# ------------------------------------------------------------------------------------------------------------- kills


def unsealed(output: Path, pattern: str) -> list[Path]:
    """Files of checkpoints that are not whole yet."""
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
    """The files that tell a moment, as they are now."""
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
    """Each training is killed several times before it may end."""
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


# ------------------------------------------------------------------------------------------- other processes, signals


def kill_loaders(campaign: Campaign) -> None:
    """The process that loads batches is killed."""
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
    """Two runs at once, with one feature cache, and with one output folder."""
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
    """A SIGTERM saves a checkpoint and ends with 143."""
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


# ------------------------------------------------------------------------------------------------------ the campaign


def table(rows: dict[str, dict[str, Any]]) -> str:
    """What was survived, as Markdown."""
    lines = ["| fault | times | survived |", "| --- | --- | --- |"]
    for kind, row in rows.items():
        lines.append(f"| {kind} | {row['faults']} | {row.get('skipped') or row['survived']} |")
    return "\n".join(lines)


def run_undisturbed(campaign: Campaign) -> None:
    """What the others are compared with, and how long it takes."""
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


def write_report(campaign: Campaign, seconds: float) -> int:
    """Prints the table and writes `faults.json`; the exit code."""
    from vtfusion.training.versions import package_versions

    rows = campaign.rows
    lost = sum(len(row["lost"]) for row in rows.values())
    kills = sum(row["faults"] for kind, row in rows.items() if "SIGKILL" in kind)
    aimed = sum(row["faults"] for kind, row in rows.items() if "SIGKILL, " in kind)
    report = {
        "arguments": asdict(campaign.args),
        "seconds": round(seconds),
        "kills": kills,
        "kills_while_writing": aimed,
        "lost": lost,
        "faults": rows,
        "versions": package_versions(),
    }
    (campaign.folder / "faults.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(rows)}\n")
    print(
        f"{kills} SIGKILLs, {aimed} of them at chosen moments; {lost} lost; {seconds / 60:.0f} min, seed {campaign.args.seed}"
    )
    return 1 if lost else 0


def main(args: FaultArguments) -> int:
    own_lock_of_bars()  # before the first bar: classes of bars keep the lock that they found
    # All that is imported here is not imported again by each run; nothing is computed, so that no thread is started.
    import torch

    import vtfusion
    import vtfusion.scripts.pair_images
    import vtfusion.scripts.run_ner
    import vtfusion.scripts.run_ner_no_trainer  # noqa: F401
    from vtfusion.training import fine_tuning, images, loading, token_classification, token_data, versions  # noqa: F401

    torch.set_num_threads(1)
    campaign = Campaign(args)
    if campaign.folder.exists() and any(campaign.folder.iterdir()):
        raise ValueError(f"{campaign.folder} is not empty: give another `output_dir`.")
    campaign.world.mkdir(parents=True)
    started = time.monotonic()
    if start(lambda: build_world(campaign.world), campaign.folder / "world.log").wait() != 0:
        raise RuntimeError((campaign.folder / "world.log").read_text())

    run_undisturbed(campaign)
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

    return write_report(campaign, time.monotonic() - started)


if __name__ == "__main__":
    try:
        sys.exit(main(HfArgumentParser(FaultArguments).parse_args_into_dataclasses()[0]))
    finally:
        shutil.rmtree(os.environ["HF_HOME"])
