"""
The demo of a model as a Hugging Face Space: a folder that runs with `python app.py`, here as there.

It holds the code of this package, so that a Space needs no release of it, and a model from a folder too; a model from
the Hub is fetched when the Space starts.
"""

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitInfo, create_repo, metadata_save, upload_folder
from packaging.requirements import Requirement
from packaging.version import Version

from ..training.files import UNFINISHED, find_damage, replaced_whole, seal, sealed_files
from ..training.publishing import save_model_files
from .demo import name_model
from .demo_examples import DemoExample

_APP = '''"""The demo of a VTFusion model. Its code lies in vtfusion/; what that needs stands in requirements.txt."""

from pathlib import Path

from vtfusion.app.demo import run_demo

here = Path(__file__).parent
run_demo({model}, title={title!r}, examples=here / "examples", revision={revision!r}, host=None)
'''
_PACKAGES = (".", "training", "app")
_CODE, _MODEL, _EXAMPLES = "vtfusion", "model", "examples"


def write_space(
    model: str, folder: str | Path, examples: Sequence[DemoExample], title: str | None = None, revision: str = "main"
) -> Path:
    """
    Writes the folder of a Space, which is built aside first. What is replaced there is what was written there, and only
    where nobody has changed it; other files stay.

    Args:
        model (`str`): a trained model: a folder, which is taken along, or a Hub id.
        folder (`str` or `Path`): where to; made if it is not there, else it must be empty or an earlier Space of ours.
        examples (`Sequence[DemoExample]`): texts to try, see [`~app.demo_examples.find_examples`].
        title (`str`, *optional*): of the page, by default the name of the model.
        revision (`str`, *optional*, defaults to `"main"`): branch, tag or commit of a model from the Hub.

    Returns:
        `Path`: the folder.

    Raises:
        `FileExistsError`: The folder holds something else, or an earlier Space that somebody has changed.
        `ValueError`: The model lies in the folder, or is no model of ours.
    """
    folder = Path(folder)
    is_folder = Path(model).is_dir()
    if is_folder and Path(model).resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"The model {model} lies in {folder}, which the Space is written into. Give another --output."
        )
    earlier = _find_earlier_space(folder)
    with replaced_whole(folder, "app.py") as unfinished:
        _build_space(model, is_folder, unfinished, examples, title or name_model(model), revision)
        seal(unfinished)
    for name in sorted(earlier - sealed_files(folder)):
        path = folder / name
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    return folder


def _find_earlier_space(folder: Path) -> set[str]:
    """The files of an earlier Space, none of which is anybody else's work."""
    if not folder.is_dir() or all(path.name == UNFINISHED for path in folder.iterdir()):
        return set()
    earlier = sealed_files(folder)  # checkpoints are sealed too
    if not {"app.py", f"{_CODE}/app/demo.py"} <= earlier:
        raise FileExistsError(f"{folder} holds something else than a Space of ours. Give another --output.")
    others = (
        path
        for part in (_CODE, _MODEL, _EXAMPLES)
        for path in sorted((folder / part).rglob("*"))
        if path.is_file() and path.parent.name != "__pycache__" and path.relative_to(folder).as_posix() not in earlier
    )
    change = find_damage(folder) or next((f"{path} was not written by `vtfusion space`" for path in others), None)
    if change is not None:
        raise FileExistsError(
            f"{change}, so the Space in {folder} is not replaced. Give another --output, or save what is yours and delete "
            "the folder."
        )
    return earlier


def _build_space(
    model: str, is_folder: bool, folder: Path, examples: Sequence[DemoExample], title: str, revision: str
) -> None:
    package = Path(__file__).parents[1]
    for part in _PACKAGES:
        (folder / _CODE / part).mkdir(parents=True, exist_ok=True)
        for file in sorted((package / part).glob("*.py")):
            shutil.copy(file, folder / _CODE / part)
    if is_folder:
        save_model_files(model, folder / _MODEL)
    _write_examples(examples, folder / _EXAMPLES)
    source = f'str(here / "{_MODEL}")' if is_folder else repr(model)
    (folder / "app.py").write_text(_APP.format(model=source, title=title, revision=revision), encoding="utf-8")
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements()), encoding="utf-8")
    card = folder / "README.md"
    card.write_text(f"# {title}\n\nThe demo of a VTFusion model: `python app.py`.\n", encoding="utf-8")
    metadata = {
        "title": title,
        "sdk": "gradio",
        "sdk_version": importlib.metadata.version("gradio"),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "app_file": "app.py",
        "tags": ["vtfusion"],
    }
    metadata_save(card, metadata if is_folder else {**metadata, "models": [model]})


def requirements() -> list[str]:
    """What the package and its demo need, pinned to what is installed here; Gradio comes with the Space itself."""
    lines = []
    for line in importlib.metadata.requires("vtfusion") or []:
        wanted = Requirement(line)
        if wanted.name != "gradio" and (wanted.marker is None or wanted.marker.evaluate({"extra": "demo"})):
            lines.append(f"{wanted.name}=={Version(importlib.metadata.version(wanted.name)).public}")
    return sorted(lines)


def push_space(folder: str | Path, repo_id: str, private: bool | None = None) -> CommitInfo:
    """
    Uploads the folder of a Space.

    Args:
        folder (`str` or `Path`): of [`write_space`].
        repo_id (`str`): where to, such as `name/my-demo`; made if it is not there.
        private (`bool`, *optional*): whether a new Space is private.

    Returns:
        `huggingface_hub.CommitInfo`
    """
    repo_id = create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True).repo_id
    return upload_folder(
        repo_id=repo_id,
        repo_type="space",
        folder_path=folder,
        commit_message="Upload demo",
        ignore_patterns=["**/__pycache__/**"],
    )


def _write_examples(examples: Sequence[DemoExample], folder: Path) -> None:
    folder.mkdir()
    with open(folder / "metadata.jsonl", "w", encoding="utf-8") as file:
        for place, example in enumerate(examples, 1):
            names = [f"{place}-{number}.png" for number in range(1, len(example.pictures) + 1)]
            for picture, name in zip(example.pictures, names, strict=True):
                picture.save(folder / name)
            file.write(json.dumps({"text": example.text, "images": names}, ensure_ascii=False) + "\n")


__all__ = ["push_space", "requirements", "write_space"]
