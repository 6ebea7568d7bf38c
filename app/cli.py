"""The `vtfusion` command: a door to the scripts, and to a trained model."""

import runpy
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

app = typer.Typer(
    name="vtfusion",
    help="Texts with pictures: train a model, see whether the picture helped, use it, publish it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# Everything behind the task is the script's, its --help too.
_TO_SCRIPT = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


class Task(StrEnum):
    """What can be trained."""

    ner = "ner"
    classification = "classification"
    qa = "qa"
    vqa = "vqa"
    retrieval = "retrieval"
    pretraining = "pretraining"
    generation = "generation"


class OnBadImage(StrEnum):
    """What an unreadable image does."""

    error = "error"
    skip_image = "skip_image"


def run_script(command: str, script: str, arguments: list[str]) -> None:
    """Runs `scripts/{script}.py` as if it had been called as `command`."""
    sys.argv = [command, *arguments]
    runpy.run_module(f"vtfusion.scripts.{script}", run_name="__main__")


def fail(message: str) -> NoReturn:
    """Ends with what is wrong with the command, and the exit code of a wrong command."""
    typer.echo(message, err=True)
    raise typer.Exit(2)


def run_task(command: str, context: typer.Context, task: str | None) -> None:
    """The script of a task; without one, the help of the command."""
    if task is None or task == "--help":
        typer.echo(context.get_help())
        raise typer.Exit(0 if task else 2)
    if task not in list(Task):
        fail(f"There is no task {task!r}. There are: {', '.join(Task)}.")
    run_script(f"vtfusion {command} {task}", f"run_{task}", context.args)


TaskArgument = Annotated[str | None, typer.Argument(metavar="TASK", help=f"One of: {', '.join(Task)}.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A trained model: a folder or a Hub id.")]
TitleOption = Annotated[str | None, typer.Option(help="What the page is called; by default the model's name.")]
ExamplesOption = Annotated[
    Path | None,
    typer.Option(
        help="Texts to try, of which the first four are taken: files as for `predict`. By default the folder examples "
        "of the model, else drawn ones."
    ),
]


@app.command(context_settings=_TO_SCRIPT)
def train(context: typer.Context, task: TaskArgument = None) -> None:
    """
    Train and test a model.

    `vtfusion train ner --text_model … --vision_model … --train_file … --output_dir …`

    What a task takes: `vtfusion train ner --help`. With `--image_ablation --seeds 0 1 2` it is a study of whether the
    picture helped.
    """
    run_task("train", context, task)


@app.command(context_settings=_TO_SCRIPT)
def evaluate(context: typer.Context, task: TaskArgument = None) -> None:
    """
    Test a trained model.

    `vtfusion evaluate ner --model_name_or_path outputs/ner --test_file test.jsonl`

    With `--image_conditions true shuffled blank none` also with other images and none.
    """
    # The parsers of the scripts take dashes for underscores, and a flag's first letters for all of it.
    given = [word.split("=")[0].replace("-", "_") for word in context.args if word.startswith("--") and word != "--"]
    for flag in ("train_file", "dataset_name"):
        if any(f"__{flag}".startswith(word) for word in given):
            fail(f"--{flag} would train. Give the data to test on as --test_file, or use `vtfusion train`.")
    run_task("evaluate", context, task)


@app.command(context_settings=_TO_SCRIPT)
def pair(context: typer.Context) -> None:
    """
    Give each text of a text-only data set a picture.

    `vtfusion pair --train_file train.txt --image_bank bank --output_dir paired`

    By names found in the words, by captions, or from a list; labels are never read. All flags: `vtfusion pair --help`.
    """
    run_script("vtfusion pair", "pair_images", context.args)


@app.command(context_settings=_TO_SCRIPT)
def gates(context: typer.Context) -> None:
    """
    Show which words used the picture.

    `vtfusion gates --model_name_or_path outputs/ner --test_file test.jsonl`

    Tables by entity type and word, and a page with heat maps. All flags: `vtfusion gates --help`.
    """
    run_script("vtfusion gates", "gate_report", context.args)


@app.command()
def predict(
    model: ModelArgument,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="JSONL, CSV, TSV, parquet, text with a text in each line, or a folder with metadata.jsonl.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="The file of JSON lines to write.")] = Path("predictions.jsonl"),
    text_column: Annotated[str | None, typer.Option(help="Column of the text or the words.")] = None,
    text_pair_column: Annotated[str | None, typer.Option(help="Column of a second text, if there is one.")] = None,
    question_column: Annotated[str | None, typer.Option(help="Column of the question.")] = None,
    context_column: Annotated[str | None, typer.Option(help="Column of the text that holds the answer.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of the image or images.")] = None,
    image_folder: Annotated[Path | None, typer.Option(help="What relative image paths start from.")] = None,
    allow_outside_paths: Annotated[
        bool, typer.Option("--allow-outside-paths", help="Open images outside of the file's folder too.")
    ] = False,
    on_bad_image: Annotated[OnBadImage, typer.Option(help="What an unreadable image does.")] = OnBadImage.error,
    # as DataArguments.max_images, whose file takes seconds to import
    max_images: Annotated[int, typer.Option(min=1, help="Images of a text beyond this number are left out.")] = 4,
    handle_impossible_answer: Annotated[
        bool, typer.Option("--handle-impossible-answer", help="A question may have no answer in its text.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts in a batch.")] = 16,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit of the model.")] = "main",
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0; by default what there is.")] = None,
) -> None:
    """
    Use a trained model on a file.

    Writes entities, classes or answers as JSON lines: `vtfusion predict outputs/ner posts.jsonl --output out.jsonl`
    """
    from ..training.prediction import load_examples, load_pipeline, predict_file

    pipe = load_pipeline(model, revision, device)
    columns = {
        "text": text_column,
        "text_pair": text_pair_column,
        "question": question_column,
        "context": context_column,
    }
    rows = load_examples(file, pipe, columns, image_column, image_folder, allow_outside_paths)
    options = {"handle_impossible_answer": True} if handle_impossible_answer else {}
    count = predict_file(pipe, rows, output, batch_size, on_bad_image, max_images, **options)
    typer.echo(f"{count:,} predictions: {output}")


@app.command()
def export(
    model: ModelArgument,
    output: Annotated[Path, typer.Option(help="The folder to write, new or empty.")],
    tolerance: Annotated[float, typer.Option(min=0, help="How far a logit may be from PyTorch's.")] = 1e-4,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit of the model.")] = "main",
) -> None:
    """
    Write a trained model as ONNX, for onnxruntime.

    `vtfusion export outputs/ner --output outputs/ner-onnx` writes model.onnx, the processor and config.json, after
    comparing with PyTorch.
    """
    from .export import export_model

    difference = export_model(model, output, revision, tolerance)
    typer.echo(f"{output / 'model.onnx'}: at most {difference:.1e} from PyTorch")


@app.command()
def push(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a trained model with its card.")],
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="Where to, such as name/ner-with-pictures.")],
    private: Annotated[bool | None, typer.Option(help="Whether a new repository is private.")] = None,
    revision: Annotated[str | None, typer.Option(help="The branch.")] = None,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Upload model",
) -> None:
    """
    Publish a trained model on the Hub.

    Uploads weights, code, processor and card, and nothing else of the folder. Log in first: `hf auth login`.
    """
    from ..training.publishing import publish

    commit = publish(model, repository, private, revision=revision, message=message)
    typer.echo(commit.commit_url)


@app.command()
def demo(
    model: ModelArgument,
    title: TitleOption = None,
    examples: ExamplesOption = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="By default the first that is free from 7860 on.")] = None,
    share: Annotated[bool, typer.Option("--share", help="Open it to the world through Gradio's tunnel.")] = False,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit of the model.")] = "main",
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0; by default what there is.")] = None,
) -> None:
    """
    Try a trained model in the browser.

    `vtfusion demo outputs/ner` opens a page with a text, pictures, and the result with and without them.
    """
    from .demo import run_demo

    run_demo(model, title, examples, revision, device, host, port, share)


@app.command()
def space(
    model: ModelArgument,
    output: Annotated[Path, typer.Option(help="The folder to write.")] = Path("outputs/space"),
    push: Annotated[str | None, typer.Option(help="Upload it to the Hub, such as name/my-demo.")] = None,
    private: Annotated[bool | None, typer.Option(help="Whether a new Space is private.")] = None,
    title: TitleOption = None,
    examples: ExamplesOption = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit of a model on the Hub.")] = "main",
) -> None:
    """
    Make the demo of a model a Hugging Face Space.

    `vtfusion space outputs/ner --push your-name/ner-demo` writes a folder that runs with `python app.py`, and uploads
    it. Log in first: `hf auth login`.
    """
    from .demo_answer import load_demo_pipeline
    from .demo_examples import find_examples
    from .space import push_space, write_space

    pipe = load_demo_pipeline(model, revision, "cpu")  # a model that has no demo is refused here, not by the Space
    typer.echo(write_space(model, output, find_examples(model, pipe, examples), title, revision))
    if push is not None:
        typer.echo(push_space(output, push, private).commit_url)


def main() -> None:
    """The entry point: what goes wrong with data or models is told in a line and ends with exit code 1."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:  # an extra that is not installed says so
        typer.echo(f"vtfusion: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
