"""Examples in the docstrings of the Hub files run as they stand, by themselves, and show what they say."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

import vtfusion

ROOT = Path(__file__).resolve().parents[1]
MODULES = [importlib.import_module(f"vtfusion.{path.stem}") for path in sorted(ROOT.glob("*_vtfusion.py"))]


class FencedParser(doctest.DocTestParser):
    """The fence behind an example is no part of what it prints."""

    def parse(self, string, name="<string>"):
        return super().parse(re.sub(r"^\s*```.*$", "", string, flags=re.MULTILINE), name)


FINDER = doctest.DocTestFinder(parser=FencedParser())
EXAMPLES = {test.name: test for module in MODULES for test in FINDER.find(module, globs={}) if test.examples}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name):
    out = []
    assert doctest.DocTestRunner().run(EXAMPLES[name], out=out.append).failed == 0, "".join(out)


def test_every_public_class_and_every_file_has_an_example():
    shown = {name.removeprefix("vtfusion.") for name in EXAMPLES}
    # what only its children can run, and what is built by its method
    own = {getattr(vtfusion, name) for name in vtfusion.__all__} - {vtfusion.VTFusionPipeline}
    places = {f"{cls.__module__}.{cls.__name__}".removeprefix("vtfusion.") for cls in own}
    parent = "base_vtfusion.VTFusionPreTrainedModel"
    assert places - shown == {parent} and f"{parent}.from_vision_text_pretrained" in shown
    assert {place.partition(".")[0] for place in shown} == {module.__name__.rpartition(".")[2] for module in MODULES}


def test_an_example_that_shows_something_else_fails():
    text = "Example:\n\n```python\n>>> 1 + 1\n3\n```\n"
    test = FencedParser().get_doctest(text, {}, "wrong", None, 0)
    assert [example.want for example in test.examples] == ["3\n"]
    assert doctest.DocTestRunner().run(test, out=lambda line: None).failed == 1
