"""What the documents show holds: code runs, commands name real flags, links lead somewhere."""

import importlib
import inspect
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    BertModel,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetForImageClassification,
    TrainingArguments,
    ViTImageProcessor,
)
from typer.testing import CliRunner

from tiny import TEXT, VISION, randomize_fusion, tiny_config
from tokenizers_for_tests import TOKENIZERS
from vtfusion import VTFusionForTokenClassification, VTFusionProcessor
from vtfusion.app import cli

ROOT = Path(__file__).resolve().parents[1]
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


class Parsed(Exception):
    """The command was understood; the script need not run."""


@pytest.fixture
def a_folder_with_models(tmp_path, monkeypatch):
    """What the documents speak of: the quickstart's model, and encoders under the names that the Hub has them by."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = VTFusionForTokenClassification(tiny_config("bert", "resnet"))
    randomize_fusion(model)
    processor = VTFusionProcessor(ViTImageProcessor(size={"height": 32, "width": 32}), TOKENIZERS["bert"]())
    for part in (model, processor):
        part.save_pretrained("outputs/quickstart/model")
    ResNetForImageClassification(VISION["resnet"]()).save_pretrained("microsoft/resnet-50")
    BertModel(TEXT["bert"]()).save_pretrained("google-bert/bert-base-cased")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained("microsoft/resnet-50")
    tokenizer = TOKENIZERS["gpt-neox"]()
    decoder = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=4,
        num_attention_heads=4,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    for part in (LlamaForCausalLM(decoder), tokenizer):
        part.save_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
    return tmp_path


@pytest.mark.parametrize(("document", "language", "code"), [block for block in BLOCKS if block.values[1] == "python"])
def test_python_blocks_run(document, language, code, a_folder_with_models):
    # a block may go on from those before it
    names: dict[str, object] = {"__name__": "__main__"}
    for block in BLOCKS:
        if block.values[0] == document and block.values[1] == "python":
            exec(compile(block.values[2], f"{document.name}", "exec"), names)
            if block.values[2] == code:
                break


def commands(document, code):
    """The commands of a shell block, without comments, with the variables that the document sets filled in."""
    code = re.sub(r"\\\n", " ", code)
    text = document.read_text(encoding="utf-8")
    variables = dict(re.findall(r'^(\w+)="(.*?)"$', text, re.MULTILINE | re.DOTALL))
    code = re.sub(r'^\w+=".*?"$', "", code, flags=re.MULTILINE | re.DOTALL)
    for line in code.splitlines():
        for name, value in variables.items():
            line = line.replace(f"${name}", " ".join(value.split()))
        line = line.split("  #")[0].strip()
        if line and not line.startswith("#"):
            yield line


SHELL = [block for block in BLOCKS if block.values[1] in ("bash", "sh")]


@pytest.mark.parametrize(("document", "language", "code"), SHELL)
def test_commands_name_real_scripts_and_flags(document, language, code, monkeypatch):
    def parse_only(self, args=None, **kwargs):
        words = [word for word in sys.argv[1:] if word not in ("…", "...")]
        if "--train_sampling_strategy" in words and not hasattr(TrainingArguments, "train_sampling_strategy"):
            pytest.skip("this transformers has no --train_sampling_strategy")
        # what a document leaves out is no mistake
        required = [action for action in self._actions if action.required]
        for action in required:
            action.required = False
        _, unknown = self.parse_known_args(words)
        assert not unknown, f"{document.name}: unknown {unknown} in {sys.argv}"
        raise Parsed

    monkeypatch.setattr(HfArgumentParser, "parse_args_into_dataclasses", parse_only)
    for line in commands(document, code):
        words = [word for word in shlex.split(line) if "=" not in word or word.startswith("-")]
        names = [index for index, word in enumerate(words) if word.endswith(".py")]
        if words and words[0].endswith("vtfusion"):
            if words[1] in ("predict", "export", "push", "demo", "space"):
                assert CliRunner().invoke(cli.app, [words[1], "--help"]).exit_code == 0
                options = CliRunner().invoke(cli.app, [words[1], "--help"]).output
                assert all(word in options for word in words if word.startswith("--")), line
                continue
            script = (
                f"run_{words[2]}"
                if words[1] in ("train", "evaluate")
                else {"pair": "pair_images", "gates": "gate_report"}[words[1]]
            )
            path, arguments = ROOT / "scripts" / f"{script}.py", words[3 if words[1] in ("train", "evaluate") else 2 :]
        elif names:
            path, arguments = ROOT / words[names[0]], words[names[0] + 1 :]
        elif words and words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), line
            continue
        else:
            continue
        assert path.is_file(), f"{document.name}: {line}"
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        monkeypatch.syspath_prepend(str(path.parent))
        with pytest.raises(Parsed):
            runpy.run_path(str(path), run_name="__main__")


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
    assert "<strong>spans</strong> (<code>list[tuple[int, int]]</code>):" in page


def test_a_reference_to_nothing_stops_the_build(monkeypatch):
    monkeypatch.setattr(VTFusionProcessor, "__doc__", "A processor. See [`VTFusionModel`] and [`VTFusionMadel`].")
    with pytest.raises(ValueError, match=r"VTFusionProcessor: \[`VTFusionMadel`\] is nothing"):
        runpy.run_path(str(REFERENCE))["load"]()
