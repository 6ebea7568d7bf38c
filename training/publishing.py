"""What of a trained model goes to the Hub: its weights, code, configuration, processor and card, and nothing else."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, create_repo, upload_folder
from transformers import AutoConfig

from .. import modeling_vtfusion
from ..processing_vtfusion import VTFusionProcessor
from .model_card import name_repository


def upload_model(
    folder: tempfile.TemporaryDirectory,
    card: Path,
    repo_id: str,
    message: str | None = None,
    token: str | None = None,
    revision: str | None = None,
    blocking: bool = True,
) -> Any:
    """
    Uploads a folder into which a model and its processor were just saved, and removes it.

    Args:
        folder (`tempfile.TemporaryDirectory`): what is uploaded, but for what `Trainer` puts there for itself.
        card (`Path`): the card, taken along if it exists.
        repo_id (`str`): where to.
        message (`str`, *optional*): of the commit.
        token (`str`, *optional*): who uploads; by default who is logged in.
        revision (`str`, *optional*): the branch.
        blocking (`bool`, *optional*, defaults to `True`): whether to return only when it is done.

    Returns:
        `huggingface_hub.CommitInfo`, or a future of it.
    """
    if card.is_file():
        target = Path(folder.name, "README.md")
        shutil.copy(card, target)
        name_repository(target, repo_id)
    upload: Any = upload_folder(
        repo_id=repo_id,
        folder_path=folder.name,
        commit_message=message,
        token=token,
        revision=revision,
        ignore_patterns=["training_args.bin"],
        run_as_future=not blocking,
    )
    if blocking:
        folder.cleanup()
    else:
        upload.add_done_callback(lambda _: folder.cleanup())
    return upload


def publish(
    model: str | os.PathLike,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Upload model",
) -> CommitInfo:
    """
    Uploads a trained model from its folder, of which predictions, reports and checkpoints stay here.

    Args:
        model (`str` or `os.PathLike`): folder of a model with its processor and card.
        repo_id (`str`): where to; made if it is not there.
        private (`bool`, *optional*): whether a new repository is private.
        token (`str`, *optional*): who uploads; by default who is logged in.
        revision (`str`, *optional*): the branch.
        message (`str`, *optional*, defaults to `"Upload model"`): of the commit.

    Returns:
        `huggingface_hub.CommitInfo`

    Raises:
        `FileNotFoundError`: The folder or its card is not there.
        `ValueError`: It holds no model of ours.
    """
    card = Path(model, "README.md")
    if not card.is_file():
        raise FileNotFoundError(
            f"{card} is not there: a model goes to the Hub with its card. Write one, or train again."
        )
    folder = tempfile.TemporaryDirectory()
    save_model_files(model, folder.name)
    repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    return upload_model(folder, card, repo_id, message, token, revision)


def save_model_files(model: str | os.PathLike, folder: str | os.PathLike) -> None:
    """
    Saves weights, code, configuration and processor of a trained model, and nothing else that lies in its folder.

    Args:
        model (`str` or `os.PathLike`): folder of a model with its processor.
        folder (`str` or `os.PathLike`): where to.

    Raises:
        `ValueError`: It is no model of ours.
    """
    architecture = (AutoConfig.from_pretrained(model).architectures or ["?"])[0]
    head = getattr(modeling_vtfusion, architecture, None)
    if head is None:
        raise ValueError(f"{model} is a {architecture}, which is no model of VTFusion.")
    head.from_pretrained(model).save_pretrained(folder)
    VTFusionProcessor.from_pretrained(model).save_pretrained(folder)
