"""Nothing is fetched that nobody asked for, nothing is unpickled, and the code that travels with a model does no more than it needs."""

import ast
import pickle
import runpy
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file

from running import SCRIPTS, write_colours
from tiny import tiny_config
from vtfusion import VTFusionForTokenClassification
from vtfusion.training.arguments import CaptionDataArguments
from vtfusion.training.captions import open_caption_streams
from vtfusion.training.metrics import load_entity_f1
from vtfusion.training.prediction import load_examples, load_pipeline, predict_file

ROOT = Path(__file__).resolve().parents[1]

# The network -----------------------------------------------------------------------------------------------------------

_attempts: list[list[str]] = []


def _hook(event, args):
    watched = event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto")
    # a path is the address of a process on this machine
    if (
        _attempts
        and watched
        and not (event in ("socket.connect", "socket.sendto") and isinstance(args[1], str | bytes))
    ):
        _attempts[-1].append(f"{event} {args}")
        raise OSError("there is no network in this test")


sys.addaudithook(_hook)  # cannot be taken away again, and does nothing outside of `network`


@contextmanager
def network(monkeypatch) -> Iterator[list[str]]:
    """The Hub's offline mode is off, every connection fails, and each attempt is noted, also one that is caught."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    _attempts.append([])
    try:
        yield _attempts[-1]
    finally:
        _attempts.pop()


def test_training_and_predicting_with_what_is_here_touch_no_network(tmp_path, monkeypatch):
    write_colours(tmp_path, train=8, valid=4, test=4)
    flags = {
        "--train_file": tmp_path / "train.jsonl",
        "--validation_file": tmp_path / "valid.jsonl",
        "--test_file": tmp_path / "test.jsonl",
        "--text_model": tmp_path / "text",
        "--vision_model": tmp_path / "vision",
        "--output_dir": tmp_path / "model",
        "--feature_cache_dir": tmp_path / "features",
        "--fusion_hidden_size": 16,
        "--num_train_epochs": 1,
        "--use_cpu": True,
    }
    script = SCRIPTS / "run_classification.py"
    monkeypatch.setattr(sys, "argv", [str(script), *(str(word) for flag in flags.items() for word in flag)])
    with network(monkeypatch) as attempts:
        runpy.run_path(str(script), run_name="__main__")
        pipe = load_pipeline(str(tmp_path / "model"), device="cpu")
        rows = load_examples(tmp_path / "test.jsonl", pipe)
        assert predict_file(pipe, rows, tmp_path / "predictions.jsonl") == 4
        (tmp_path / "lines.txt").write_text("a line\n", encoding="utf-8")
        load_examples(tmp_path / "lines.txt", pipe)
        captions = CaptionDataArguments(validation_file=str(tmp_path / "test.jsonl"))
        assert next(iter(open_caption_streams(captions)["validation"]))["images"]
        assert load_entity_f1().compute(predictions=[["B-X"]], references=[["B-X"]])
    assert attempts == []


def test_what_is_asked_for_would_be_noticed(monkeypatch):
    with network(monkeypatch) as attempts:
        with pytest.raises(Exception, match="no network in this test"):
            HfApi().model_info("someone/nothing")
        assert attempts
        before = len(attempts)
        with socket.socket() as client, pytest.raises(OSError, match="no network in this test"):
            client.connect(("127.0.0.1", 9))
        assert len(attempts) == before + 1


# The code that travels -------------------------------------------------------------------------------------------------

HUB_FILES = sorted(ROOT.glob("*_vtfusion.py"))
LIBRARIES = {"torch", "transformers", "numpy", "PIL", "tokenizers"}  # transformers needs the last three itself
PLAIN = {
    "collections",
    "contextvars",
    "copy",
    "dataclasses",
    "functools",
    "hashlib",
    "inspect",
    "math",
    "re",
    "typing",
}
# Only where images are opened, and there only when the caller has said that paths or URLs may be.
OUTWARD = {"images_vtfusion": {"io", "pathlib", "urllib"}, "processing_vtfusion": {"pathlib"}}

BUILTINS = {"open", "eval", "exec", "compile", "__import__", "input", "breakpoint", "globals", "vars", "setattr"}
ATTRIBUTES = {
    *("load", "loads", "save", "dump", "open", "urlopen", "urlretrieve", "hub", "load_library", "cpp_extension"),
    *("read_bytes", "read_text", "write_bytes", "write_text", "unlink", "mkdir", "rename", "iterdir", "glob"),
    *("fromfile", "tofile", "memmap", "loadtxt", "genfromtxt", "system", "popen", "import_module"),
}
USED = {"images_vtfusion": {"open", "load", "read_bytes", "urlopen"}}


def imports_of(tree: ast.AST) -> set[str]:
    """Top-level names of the modules that are imported, anywhere in the file."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(f".{node.module or ''}" if node.level else node.module.split(".")[0])
    return found


def outward(tree: ast.AST) -> set[str]:
    """Names of what reads, writes, fetches or runs something."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in BUILTINS:
            found.add(node.id)
        if isinstance(node, ast.Attribute) and (node.attr in ATTRIBUTES or node.attr == "__builtins__"):
            found.add(node.attr)
    return found


@pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: path.stem)
def test_code_of_a_saved_model_imports_and_calls_no_more_than_it_needs(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = imports_of(tree)
    own = {name for name in imported if name.startswith(".")}
    assert own <= {f".{other.stem}" for other in HUB_FILES}
    assert (imported - own) - LIBRARIES - PLAIN == OUTWARD.get(path.stem, set())
    assert outward(tree) == USED.get(path.stem, set())


def test_every_allowance_is_used():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in HUB_FILES]
    assert set().union(*map(imports_of, trees)) >= LIBRARIES | PLAIN


@pytest.mark.parametrize(
    ("code", "imported", "found"),
    [
        ("import os.path", {"os"}, set()),
        ("def f():\n    from subprocess import run", {"subprocess"}, set()),
        ("open('x').read()", set(), {"open"}),
        ("run = eval", set(), {"eval"}),
        ("model.eval()", set(), set()),
        ("torch.load(x)", set(), {"load"}),
    ],
)
def test_the_reader_of_code_sees_what_it_should(code, imported, found):
    assert (imports_of(ast.parse(code)), outward(ast.parse(code))) == (imported, found)


# Pickles ---------------------------------------------------------------------------------------------------------------

PICKLERS = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "_pickle"}
CODE = [path for folder in (".", "training", "app", "scripts", "benchmarks") for path in ROOT.glob(f"{folder}/*.py")]


def unsafe_loads(tree: ast.AST) -> list[str]:
    """Calls that would run what a file says."""
    found = sorted(imports_of(tree) & PICKLERS)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        call = ast.unparse(node.func)
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if call == "torch.load" and said.get("weights_only") != "True":
            found.append(call)
        if call.endswith((".read_pickle", "yaml.load", "yaml.unsafe_load")) or said.get("allow_pickle") == "True":
            found.append(call)
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled(path):
    assert unsafe_loads(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x, allow_pickle=True)",
        "pd.read_pickle(x)",
    ],
)
def test_what_unpickles_would_be_seen(code):
    assert unsafe_loads(ast.parse(code))


class Attack:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_weights_as_a_pickle_are_read_without_running_it(tmp_path):
    """Our own files are safetensors; of an old `pytorch_model.bin` transformers takes tensors and nothing else."""
    model = VTFusionForTokenClassification(tiny_config("bert", "resnet"))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file() and not list(tmp_path.glob("*.bin"))
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    loaded = VTFusionForTokenClassification.from_pretrained(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name

    touched = tmp_path / "touched"
    torch.save({**weights, "more": Attack(touched)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(pickle.UnpicklingError):
        VTFusionForTokenClassification.from_pretrained(tmp_path)
    assert not touched.exists()
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
    assert touched.exists()  # so the file was one to be afraid of
