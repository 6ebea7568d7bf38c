"""The card of a trained model: what it is, what it was made of, how good it is, and whether the picture helped."""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..configuration_vtfusion import VTFusionConfig
from .arguments import DataArguments, ModelArguments, RunArguments, VTFusionTrainingArguments
from .versions import package_versions

_ABLATION = "## Did the picture help?"
_NOT_STUDIED = (
    "Not studied. One training cannot tell: `--image_ablation --seeds 0 1 2` trains the model and its text-only twin "
    "with several seeds, tests them with true, shuffled, blank and no images, and says how sure the difference is."
)
# What a call of each pipeline looks like.
_CALLS = {
    "token-classification": '("Ada met Bob in Mirano", images="party.jpg", allow_paths=True)',
    "text-classification": '("What a day!", images="party.jpg", allow_paths=True)',
    "visual-question-answering": '(question="Who is this?", image="party.jpg", allow_paths=True)',
    "question-answering": '(question="Who came?", context="Ada met Bob.", image="party.jpg", allow_paths=True)',
}


class Score(NamedTuple):
    """
    One figure of a card.

    Attributes:
        split (`str`): such as `"test"`.
        setting (`str`): what it was tested with, such as `"true image"`; may be empty.
        metric (`str`): such as `"f1"`.
        value (`float`): from 0 to 1, but for losses.
    """

    split: str
    setting: str
    metric: str
    value: float


def is_in_nats(metric: str) -> bool:
    """Whether a score is a loss or a log-likelihood; all others are shares, which people read in points."""
    return "loss" in metric or metric == "log_likelihood"


def format_score(metric: str, value: float) -> str:
    """A score as people read it: a loss or a log-likelihood in nats, all others as a share of 100."""
    return f"{value:.4f}" if is_in_nats(metric) else f"{100 * value:.2f}"


def write_model_card(
    config: VTFusionConfig, results: Mapping[str, Any], scores: Sequence[Score], run_args: RunArguments
) -> ModelCard:
    """
    Writes `README.md` into `output_dir`.

    Args:
        config ([`VTFusionConfig`]): of the model.
        results (`Mapping[str, Any]`): what will stand in `results.json`.
        scores (`Sequence[Score]`): the figures to show.
        run_args ([`RunArguments`]): what the run was told.

    Returns:
        `huggingface_hub.ModelCard`
    """
    task, model_args, data_args, training_args = run_args
    encoders = describe_encoders(config, model_args)
    data_name, data_id = _data_name(data_args)
    name = (training_args.hub_model_id or os.path.basename(os.path.abspath(training_args.output_dir))).split("/")[-1]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        tags=["vtfusion", "multimodal"],
        base_model=[row["source"] for row in encoders if _is_hub_id(row["source"])] or None,
        datasets=data_id,
        license=training_args.license,
        language=training_args.language,
        metrics=list(dict.fromkeys(score.metric for score in scores)) or None,
        model_name=name,
        eval_results=_eval_results(scores, task, data_name) or None,
    )
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        f"A VTFusion model for {task.replace('-', ' ')} of texts with or without pictures: a text encoder and a vision "
        "encoder, joined by visual-text cross-attention. A text without a picture gets what the text encoder says, "
        "exactly.",
        _usage(name if training_args.hub_model_id is None else training_args.hub_model_id, task),
        "## Results\n\n" + _results(scores, results),
        f"{_ABLATION}\n\n{_NOT_STUDIED}",
        "## Encoders\n\n" + _table(encoders, ("part", "source", "architecture", "licence", "in training")),
        "## Training\n\n" + _training(config, results, data_name, training_args),
        "## Limits\n\n" + _limits(config, results, task),
    ]
    card = ModelCard("\n\n".join(sections) + "\n")
    card.save(Path(training_args.output_dir, "README.md"))
    return card


def add_ablation(path: str | os.PathLike, report: str) -> None:
    """
    Puts the verdict and the tables of a study into the card of a model that it trained.

    Args:
        path (`str` or `os.PathLike`): the card, as [`write_model_card`] wrote it.
        report (`str`): in Markdown without headings, see [`AblationReport.to_markdown`].
    """
    card = ModelCard.load(path)
    before, heading, after = card.text.partition(_ABLATION)
    if not heading:
        raise ValueError(f"{path} has no section {_ABLATION!r}: it is not a card that `write_model_card` wrote.")
    _, mark, rest = after.partition("\n## ")
    card.text = f"{before}{heading}\n\n{report.strip()}\n{mark}{rest}"
    card.save(path)


def name_repository(path: str | os.PathLike, repo_id: str) -> None:
    """Gives a card the name of the repository: its title, its metadata, and where it tells how to load the model."""
    card = ModelCard.load(path)
    name = repo_id.split("/")[-1]
    card.text = re.sub(r'(pipeline\(model=|from_pretrained\()"[^"]*"', rf'\g<1>"{repo_id}"', card.text)
    if card.data.model_name is not None:
        card.text = card.text.replace(f"# {card.data.model_name}\n", f"# {name}\n", 1)
        card.data.model_name = name
    card.save(path)


def describe_encoders(config: VTFusionConfig, model_args: ModelArguments) -> list[dict[str, str]]:
    """For each encoder its `part`, `source`, `architecture`, `licence` and whether it was trained (`in training`)."""
    rows = []
    for part, given, frozen in (
        ("text", model_args.text_model, model_args.freeze_text),
        ("vision", model_args.vision_model, model_args.freeze_vision),
    ):
        of_part = getattr(config, f"{part}_config")
        if of_part is None:
            continue
        source = of_part.name_or_path or "random weights"
        state = "frozen" if frozen else "low-rank adapters" if part == "text" and model_args.use_lora else "trained"
        rows.append(
            {
                "part": part,
                "source": source,
                "architecture": of_part.model_type,
                "licence": read_licence(given or source) or "not stated",
                "in training": state,
            }
        )
    return rows


def read_licence(source: str) -> str | None:
    """
    The licence in the card of a model.

    Args:
        source (`str`): a folder, or a Hub id, whose card is fetched if it can be.

    Returns:
        `str`, or `None` where there is no card, or none that can be had now.
    """
    if not os.path.isdir(source) and not _is_hub_id(source):
        return None
    try:
        return ModelCard.load(Path(source, "README.md") if os.path.isdir(source) else source).data.license
    except (OSError, ValueError):
        # no such file, no network, or a card without valid metadata
        return None


def _is_hub_id(source: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None and not os.path.isdir(source)


def _data_name(data_args: DataArguments) -> tuple[str, str | None]:
    """The name of the data for people, and its Hub id if it has one."""
    if data_args.dataset_name is not None and _is_hub_id(data_args.dataset_name):
        return data_args.dataset_name, data_args.dataset_name
    places = (data_args.dataset_name, data_args.train_file, data_args.test_file, data_args.validation_file)
    place = next(place for place in places if place is not None)
    return os.path.basename(os.path.abspath(place)), None


def _eval_results(scores: Sequence[Score], task: str, data_name: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=task,
            dataset_type=re.sub(r"[^\w/.-]+", "-", data_name),
            dataset_name=data_name,
            dataset_split=score.split,
            dataset_config=score.setting or None,
            metric_type=score.metric,
            metric_name=f"{score.metric}, {score.setting}" if score.setting else score.metric,
            metric_value=round(score.value, 4),
        )
        for score in scores
    ]


def _usage(model: str, task: str) -> str:
    call = _CALLS.get(task)
    if task == "image-text-to-text":
        loading = (
            "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
            f'model = AutoModelForImageTextToText.from_pretrained("{model}", trust_remote_code=True)\n'
            f'processor = AutoProcessor.from_pretrained("{model}", trust_remote_code=True)\n'
            'inputs = processor(text="<image>…", images="photo.jpg", allow_paths=True, return_tensors="pt")\n'
            "print(processor.decode(model.generate(**inputs, max_new_tokens=32)[0], skip_special_tokens=True))"
        )
    elif call is None:
        loading = (
            "from transformers import AutoModel, AutoProcessor\n\n"
            f'model = AutoModel.from_pretrained("{model}", trust_remote_code=True)\n'
            f'processor = AutoProcessor.from_pretrained("{model}", trust_remote_code=True)'
        )
    else:
        loading = (
            "from transformers import pipeline\n\n"
            f'pipe = pipeline(model="{model}", trust_remote_code=True)\n'
            f"pipe{call}"
        )
    return f"## Use\n\n```python\n{loading}\n```\n\nThe code comes with the model; read it before you trust it."


def _results(scores: Sequence[Score], results: Mapping[str, Any]) -> str:
    if not scores:
        return "Not tested."
    rows = [
        {
            "split": score.split,
            "with": score.setting,
            "metric": score.metric,
            "score": format_score(score.metric, score.value),
        }
        for score in scores
    ]
    texts = results.get("texts", {}).get("test")
    counted = "" if texts is None else f"\n\n{texts:,} texts in test, "
    counted += "" if texts is None else f"{results['test_texts_with_image']:,} of them with an image."
    return _table(rows, ("split", "with", "metric", "score")) + counted


def _training(
    config: VTFusionConfig, results: Mapping[str, Any], data_name: str, training_args: VTFusionTrainingArguments
) -> str:
    texts = ", ".join(f"{count:,} in {split}" for split, count in results.get("texts", {}).items())
    weights = ", ".join(
        f"{name} {getattr(config, f'{name}_loss_weight'):g}"
        for name in ("fusion", "text", "vision", "contrastive")
        if getattr(config, f"{name}_loss_weight") > 0
    )
    lines = [
        f"- Data: {data_name}" + (f" ({texts})." if texts else "."),
        f"- Losses by weight: {weights}.",
        f"- Seed {training_args.seed}"
        + (f"; {results['train_seconds']:,.0f} s." if "train_seconds" in results else "."),
        f"- Versions: {', '.join(f'{name} {version}' for name, version in package_versions().items())}.",
    ]
    return "\n".join(lines) + f"\n\n```bash\n{command_line(sys.argv)}\n```"


def command_line(arguments: Sequence[str]) -> str:
    """A command as it can be shown to others: without a token; of folders and files of this machine only the names."""
    program, *words = arguments
    program = f"python {os.path.basename(program)}" if program.endswith(".py") else program
    shown = []
    remaining = iter(words)
    for word in remaining:
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if _is_token(flag):
            if not equals:
                next(remaining, None)
            continue
        value = os.path.basename(os.path.normpath(value)) if _is_local(value) else value
        shown.append(f"{flag}{equals}{value}")
    return f"{program} {shlex.join(shown)}"


def _is_token(flag: str) -> bool:
    """Whether a flag is `--hub_token`, also with a dash or cut short as argparse allows."""
    return flag.startswith("--hub") and "hub_token".startswith(flag[2:].replace("-", "_"))


def _is_local(word: str) -> bool:
    return os.path.isabs(word) or os.path.exists(word) or word.startswith(("./", "../", "~"))


def _limits(config: VTFusionConfig, results: Mapping[str, Any], task: str) -> str:
    lines = [
        "- It was trained and tested on the data named above; on other texts, languages or kinds of pictures nobody has "
        "looked.",
        "- A gate that stands open is no proof that the picture was of use: compare with the result without it.",
    ]
    if task in ("token-classification", "text-classification"):
        names = [config.id2label[index] for index in range(config.num_labels)]
        listed = ", ".join(names[:50]) + (f" and {len(names) - 50} more" if len(names) > 50 else "")
        lines.insert(0, f"- It knows these labels and no others: {listed}.")
    if results.get("test_texts_with_image") == 0:
        lines.append("- No test text had an image.")
    return "\n".join(lines)


def _table(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row[column] for column in columns)} |" for row in rows)])
