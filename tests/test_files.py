"""Files and folders that are whole or told from whole ones, and folders with one writer."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from vtfusion.training.files import (
    MANIFEST,
    UNFINISHED,
    claim_folder,
    find_damage,
    release_folder,
    replaced_whole,
    seal,
    sealed_at,
    sealed_files,
    write_whole,
)


@pytest.fixture
def sealed(tmp_path):
    folder = tmp_path / "sealed"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.bin").write_bytes(bytes(range(256)) * 4)
    (folder / "inner" / "b.txt").write_text("words")
    seal(folder)
    return folder


@pytest.mark.parametrize("name", ["a.bin", "inner/b.txt", MANIFEST])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: None,
        lambda content: b"",
        lambda content: content[:-2],
        lambda content: content + b"\0",
        lambda content: bytes([content[0] ^ 1]) + content[1:],
        lambda content: content[: len(content) // 2] + b"\xff" + content[len(content) // 2 + 1 :],
    ],
    ids=["missing", "empty", "cut", "longer", "first flipped", "middle flipped"],
)
def test_a_change_of_any_file_is_named(sealed, name, damage):
    assert find_damage(sealed) is None and sealed_at(sealed) > 0
    content = damage((sealed / name).read_bytes())
    (sealed / name).unlink()
    if content is not None:
        (sealed / name).write_bytes(content)
    found = find_damage(sealed)
    assert str(sealed if name == MANIFEST and content is None else sealed / name) in found


def test_a_later_seal_is_later(sealed, tmp_path):
    before = sealed_at(sealed)
    seal(sealed)
    assert sealed_at(sealed) > before
    assert sealed_at(tmp_path) == 0 and "was not written to its end" in find_damage(tmp_path)


def test_a_text_that_cannot_be_written_leaves_the_old_one_and_is_named(tmp_path):
    path = tmp_path / "results.json"
    write_whole(path, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"results\.json"):
            write_whole(path, "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_new_files_come_at_once_and_the_one_that_counts_last(tmp_path, monkeypatch):
    for name in ("config.json", "model.bin"):
        (tmp_path / name).write_text("old")
    with pytest.raises(KeyboardInterrupt), replaced_whole(tmp_path, "config.json") as folder:
        (folder / "model.bin").write_text("half")
        raise KeyboardInterrupt
    assert {(tmp_path / name).read_text() for name in ("config.json", "model.bin")} == {"old"}

    seen = []
    replace = Path.replace

    def watch(self, target):
        seen.append((self.name, (tmp_path / "config.json").exists()))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watch)
    with replaced_whole(tmp_path, "config.json") as folder:
        for name in ("config.json", "model.bin"):
            (folder / name).write_text("new")
    assert seen == [("model.bin", False), ("config.json", False)]
    assert {(tmp_path / name).read_text() for name in ("config.json", "model.bin")} == {"new"}
    assert not (tmp_path / UNFINISHED).exists()


def test_a_folder_has_one_writer_until_it_is_released(tmp_path):
    program = "import sys; from vtfusion.training.files import claim_folder; claim_folder(sys.argv[1], patience=0.1)"
    command = [sys.executable, "-c", program, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def claim_in_another_process():
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    claim_folder(tmp_path)
    claim_folder(tmp_path)  # its own folder
    refused = claim_in_another_process()
    release_folder(tmp_path)
    assert refused.returncode == 1 and "OSError: Another run is writing into" in refused.stderr
    assert claim_in_another_process().returncode == 0  # and it ended without a release
    claim_folder(tmp_path, patience=0.1)
    release_folder(tmp_path)


def test_a_manifest_says_what_was_there(sealed):
    files = json.loads((sealed / MANIFEST).read_text())["files"]
    assert {name: each["size"] for name, each in files.items()} == {"a.bin": 1024, "inner/b.txt": 5}
    assert sealed_files(sealed) == {"a.bin", "inner/b.txt"}
    assert sealed_files(sealed / "inner") == set()
