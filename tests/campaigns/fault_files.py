"""Faults of files: checkpoints and feature caches that are damaged, disks that are full."""

import hashlib
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fault_runs import SAVE_STEPS, Campaign, differences, read_run, run_script, start
from transformers.utils import logging


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
    """A damage without its place."""
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
    """Gives a file another content, or removes it."""
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def gather_features(world: Path, cache_dir: Path, answer: Path) -> None:
    """A hash of all features as a training gets them."""
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
    """Each file of a feature cache is damaged, and the features must be computed anew."""
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
    """
    Runs on disks and with file sizes that end somewhere within what an undisturbed run writes, `size` bytes in all and
    `largest` in a file.
    """
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
