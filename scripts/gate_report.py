#!/usr/bin/env python
"""
Which words used the picture? Tests a trained model on a data set with its images and without, and reports how far each
word's gate was open and what the picture changed, by entity type and by word, with examples to look at.

python scripts/gate_report.py --model_name_or_path outputs/ner --test_file test.jsonl --output_dir outputs/ner-gates

Writes `gate_report.md`, `gate_report.html` (one file, with heat maps), `gate_by_type.csv` and `gate_by_word.csv` to
`output_dir`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtfusion.training.arguments import GateDataArguments, ScriptArgumentParser, VTFusionTrainingArguments

if TYPE_CHECKING:
    import PIL.Image

    from vtfusion import VTFusionForTokenClassification, VTFusionProcessor


@dataclass
class GateArguments:
    model_name_or_path: str = field(metadata={"help": "A trained VTFusion model: a folder or a Hub id."})
    model_revision: str = field(default="main", metadata={"help": "Its branch, tag or commit."})
    split: str = field(default="test", metadata={"help": "Which split to report on."})
    min_count: int = field(default=5, metadata={"help": "A word must occur so often to be listed."})
    num_examples: int = field(default=12, metadata={"help": "Texts drawn on the page."})
    output_dir: str = field(default="outputs/gates", metadata={"help": "Where everything is written."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Windows in a batch."})
    use_cpu: bool = field(default=False, metadata={"help": "Leave an accelerator alone."})


def main(args: GateArguments, data_args: GateDataArguments) -> Any:
    from vtfusion import VTFusionForTokenClassification, VTFusionProcessor
    from vtfusion.app.gate_page import gate_page
    from vtfusion.training.collator import FusionCollator
    from vtfusion.training.gate_report import choose_examples, summarize_usage, word_usage
    from vtfusion.training.images import apply_condition, prepare_images
    from vtfusion.training.token_classification import WordEvaluator, encode_windows, load_splits
    from vtfusion.training.trainer import VTFusionTrainer
    from vtfusion.training.windows import with_image_keys

    training_args = VTFusionTrainingArguments(
        output_dir=args.output_dir, per_device_eval_batch_size=args.per_device_eval_batch_size, use_cpu=args.use_cpu
    )
    model = VTFusionForTokenClassification.from_pretrained(args.model_name_or_path, revision=args.model_revision)
    data_args.labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
    dataset = load_splits(data_args)
    if args.split not in dataset:
        raise ValueError(f"There is no split {args.split!r}. There are: {', '.join(dataset)}.")
    rows = dataset[args.split]
    processor = VTFusionProcessor.from_pretrained(args.model_name_or_path, revision=args.model_revision)
    processor.decoding = data_args.decoding or processor.decoding
    model.freeze_vision_encoder()  # nothing is trained, so features can come from the cache

    only = type(dataset)({args.split: rows})
    image_keys, store, cache = prepare_images(only, model, processor, data_args, training_args)
    keys = image_keys[args.split]
    windows = encode_windows(rows, processor, keys, data_args.num_proc).sort("length", reverse=True)
    evaluator = WordEvaluator(rows, windows, processor)
    trainer = VTFusionTrainer(
        model=model, args=training_args, data_collator=FusionCollator(processor, store, cache), eval_dataset=windows
    )
    predictions = {
        condition: trainer.predict(with_image_keys(windows, apply_condition(keys, condition))).predictions
        for condition in ("true", "none")
    }
    usage = word_usage(evaluator, predictions["true"], predictions["none"], keys)
    report = summarize_usage(usage, args.min_count)
    report.save(args.output_dir)
    print(f"\n{report.to_markdown()}")

    examples = []
    for row in choose_examples(usage, args.num_examples):
        images = [store.load(key) for key in keys[row] or []]
        figure = draw_example(model, processor, rows[row]["tokens"], images, f"{args.split}, row {row}")
        examples.append({"figure": figure, "usage": usage[usage["row"] == row]})
    page = Path(args.output_dir, "gate_report.html")
    page.write_text(
        gate_page(f"Which words used the picture? {Path(args.model_name_or_path).name}", report, examples),
        encoding="utf-8",
    )
    print(f"Page: {page}")
    return report


def draw_example(
    model: "VTFusionForTokenClassification",
    processor: "VTFusionProcessor",
    tokens: list[str],
    images: list[Any],
    title: str,
) -> "PIL.Image.Image":
    """A text with its entities, gates, pictures and heat maps."""
    import io

    import PIL.Image

    from vtfusion.app.plotting import plot_entities
    from vtfusion.training.gate_report import look_into

    entities, heatmaps, gates = look_into(model, processor, tokens, images)
    figure = plot_entities(tokens, entities, images, heatmaps, gates, title=title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    return PIL.Image.open(buffer)


if __name__ == "__main__":
    main(*ScriptArgumentParser((GateArguments, GateDataArguments)).parse_args_into_dataclasses())
