#!/usr/bin/env python
"""
Builds the API reference: static pages, one for each module, from the docstrings of the installed package.

python docs/build_reference.py outputs/docs

pdoc makes the pages. Here is chosen what they show, and each [`Name`] in a docstring becomes a link; one that names
nothing is an error.
"""

import argparse
import dataclasses
import importlib
import pkgutil
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pdoc
import transformers
from pdoc.doc import Class, Doc, Function, Module, Variable

import vtfusion

REFERENCE = re.compile(r"\[`~?([\w.]+)`\]")
# what pdoc writes, and how it reads better
SHORTER = {
    r"(#([\w.]+)\">)vtfusion\.[\w.]+(?=</a>)": r"\1\2",  # a link's text without the module that it leads to
    r"\*&lt;class &#x27;(<a .*?</a>)&#x27;&gt;": r"Unpack[\1]",
    r"<strong>([\w, ]+) (\(.+?\):)</strong>": r"<strong>\1</strong> \2",  # the name of an argument, without its type
}


def is_described(doc: Doc) -> bool:
    """Not so a variable without a docstring: what matters of it is in that of its class."""
    return bool(doc.docstring) or not isinstance(doc, Variable)


def choose_members(cls: Class) -> None:
    """What is ours in a class: what it defines, has from mixins and classes not shown, or says about its arguments."""
    if typing.is_typeddict(cls.obj):
        cls.members = {}  # described in its docstring; transformers' annotations cannot be read outside of it
    fields = dataclasses.fields(cls.obj) if dataclasses.is_dataclass(cls.obj) else ()
    help_texts = {field.name: field.metadata.get("help", "") for field in fields}
    for name, doc in list(cls.members.items()):
        module, qualname = doc.taken_from
        if isinstance(doc, Variable) and not isinstance(vars(cls.obj).get(name), property):
            doc.docstring = help_texts.get(name, "")  # what pdoc found may be another library's
        if not module.startswith("vtfusion.") or not is_described(doc):
            del cls.members[name]
        elif qualname.startswith("_") or qualname.partition(".")[0].endswith("Mixin"):
            doc.taken_from = doc.modulename, doc.qualname
    if any(base.__name__.startswith("_") for base in cls.obj.__bases__):
        base = next(base for base in cls.obj.__mro__[1:] if not base.__name__.startswith("_"))
        cls.bases = [(base.__module__, base.__qualname__, base.__qualname__)]


def members(module: Module) -> Iterator[Doc]:
    """A module, its names and those in its classes."""
    yield module
    for doc in module.own_members:
        yield doc
        if isinstance(doc, Class):
            yield from doc.own_members


def resolve(name: str, place: str, shown: set[str]) -> str:
    """The whole path of a name: the nearest to the place where it stands, else the only one, else transformers'."""
    parts = place.split(".")
    nearest = (".".join([*parts[:end], name]) for end in range(len(parts), -1, -1))
    found = [path for path in nearest if path in shown][:1]
    found = found or [path for path in sorted(shown) if path.endswith(f".{name}")]
    if not found and hasattr(transformers, name.removeprefix("transformers.").partition(".")[0]):
        return name
    if len(found) != 1:
        raise ValueError(f"{place}: [`{name}`] is {' or '.join(found) or 'nothing that there is'}.")
    return found[0]


def overview(names: Mapping[str, str | None]) -> str:
    """A list of names, each with the first sentence of its docstring."""
    sentences = {
        name: re.split(r"(?<=\.)\s|\n\n", (text or "").strip(), maxsplit=1)[0] for name, text in names.items()
    }
    return "\n".join(f"- [`{name}`]: {' '.join(sentence.split())}" for name, sentence in sentences.items())


def load() -> dict[str, Module]:
    """The package and its modules by their names. Scripts are left out: `--help` tells about them."""
    names = [name for _, name, _ in pkgutil.walk_packages(vtfusion.__path__, "vtfusion.")]
    modules = {}
    for name in ["vtfusion", *(name for name in names if not name.startswith("vtfusion.scripts"))]:
        # `__all__` is what `transformers` looks through, and leaves out what a reader may want to see
        seen = ModuleType(name)
        vars(seen).update(
            {key: value for key, value in vars(importlib.import_module(name)).items() if key != "__all__"}
        )
        modules[name] = module = Module(seen)
        module.members = {name: doc for name, doc in module.members.items() if name[0] != "_" and is_described(doc)}
        for cls in module.classes:
            choose_members(cls)

    root = modules["vtfusion"]
    root.submodules = [module for name, module in modules.items() if name.count(".") == 1]
    public = [getattr(vtfusion, name) for name in vtfusion.__all__]
    classes = overview({f"{cls.__module__}.{cls.__name__}": cls.__doc__ for cls in public})
    root.docstring += f"\n\n## Public names\n\n`from vtfusion import …`\n\n{classes}"
    for module in modules.values():
        if module.submodules:
            pages = overview({page.fullname: page.docstring for page in module.submodules})
            module.docstring += f"\n\n## Modules\n\n{pages}"

    shown = {doc.fullname for module in modules.values() for doc in members(module)}
    for doc in [doc for module in modules.values() for doc in members(module)]:
        if isinstance(doc, Class | Function) and not doc.obj.__doc__:
            doc.docstring = ""  # inherited from another library, which has its own pages
        links = {name: resolve(name, doc.fullname, shown) for name in REFERENCE.findall(doc.docstring)}
        doc.docstring = REFERENCE.sub(lambda match, links=links: f"`{links[match[1]]}`", doc.docstring)
        if doc.name == "__call__":
            doc.docstring += "\n<!-- @public -->"
    return modules


def build(folder: Path) -> None:
    """Writes the pages."""
    modules = load()
    pdoc.render.configure(docformat="google", show_source=False, footer_text=f"vtfusion {vtfusion.__version__}")
    for name, module in modules.items():
        page = folder / f"{name.replace('.', '/')}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        text = pdoc.render.html_module(module, modules)
        for long, short in SHORTER.items():
            text = re.sub(long, short, text)
        page.write_text(text, encoding="utf-8")
    (folder / "index.html").write_text(pdoc.render.html_index(modules), encoding="utf-8")
    (folder / "search.js").write_text(pdoc.render.search_index(modules), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Builds the API reference.")
    parser.add_argument("folder", type=Path, help="Where the pages are written.")
    build(parser.parse_args().folder)
