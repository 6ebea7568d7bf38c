#!/usr/bin/env python
"""
Serving: texts a second through the pipeline, and one batch through PyTorch as it is, `torch.compile`, onnxruntime on the exported
file, and the same with 8-bit weights.

python benchmarks/serving.py
python benchmarks/serving.py --model_name_or_path outputs/quickstart/model

What is timed is a MiniLM (6 layers, 384 wide) with MobileNetV2 and random weights. The pipeline reads texts of one
to twenty sentences of the synthetic sample set: one by one, in batches as they come and in batches of about one length, each with
a picture of its own or all with the same one, which the pipeline encodes once.

A backend's logits are compared with those of PyTorch: the largest difference, and the share of tokens with the same label. 8-bit
is onnxruntime's dynamic quantisation of the linear layers. With a trained model of the synthetic sample set (`make quickstart`)
there is also the F1 that each gives that model on a test split. `compile` needs a C++ compiler, `onnx` and `int8` the extra `onnx`.
"""

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from measuring import MB, Results, RoundsArguments, compare, parse, quiet, take_turns, timed
from models import bert_sizes, make_tagger, wake_fusion
from PIL import Image

QUICK = {
    "backends": ["onnx", "int8"],
    "num_texts": 4,
    "batch_size": 2,
    "length": 16,
    "image_size": 32,
    "hidden_size": 32,
    "num_layers": 1,
    "repeats": 2,
    "num_test": 24,
}


@dataclass
class ServingArguments(RoundsArguments):
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A model trained on the synthetic sample set, for F1."}
    )
    backends: list[str] = field(
        default_factory=lambda: ["compile", "onnx", "int8"],
        metadata={"help": "Beside PyTorch as it is.", "choices": ["compile", "onnx", "int8"]},
    )
    hidden_size: int = field(default=384, metadata={"help": "Width of the text encoder."})
    num_layers: int = field(default=6, metadata={"help": "Its layers."})
    image_size: int = field(default=224, metadata={"help": "Pixels of a picture's side."})
    num_texts: int = field(default=64, metadata={"help": "Texts through the pipeline."})
    batch_size: int = field(default=16, metadata={"help": "Texts in a batch."})
    length: int = field(default=64, metadata={"help": "Tokens of a text in the batch for the backends."})
    num_test: int = field(default=400, metadata={"help": "Rows for F1."})


def save_random_model(folder: Path, sample: Any, args: ServingArguments) -> Path:
    """A model with random weights and its processor, saved as after a training."""
    from transformers import AutoTokenizer

    from vtfusion.training.sample_data import build_tiny_encoders

    text, _ = build_tiny_encoders(folder / "encoders", sample, args.seed)
    tokenizer = AutoTokenizer.from_pretrained(text, model_max_length=512)
    names = sample["test"].features["ner_tags"].feature.names
    torch.manual_seed(args.seed)
    model, processor = make_tagger(tokenizer, names, args.image_size, bert_sizes(args.hidden_size, args.num_layers))
    wake_fusion(model)
    for part in (model, processor):
        part.save_pretrained(folder / "model")
    return folder / "model"


def load(source: str) -> tuple[Any, Any]:
    """A saved model, ready for use, and its processor."""
    from vtfusion import VTFusionForTokenClassification, VTFusionProcessor

    return VTFusionForTokenClassification.from_pretrained(source).eval(), VTFusionProcessor.from_pretrained(source)


# -------------------------------------------------------------------------------------------------------- pipeline


def make_examples(sample: Any, args: ServingArguments) -> list[dict[str, Any]]:
    """Texts of one to twenty sentences with a picture."""
    rng = random.Random(args.seed)
    rows = [row for row in sample["test"] if row["images"]]
    return [
        {
            "tokens": [word for row in rng.choices(rows, k=rng.randint(1, 20)) for word in row["tokens"]],
            "image": rng.choice(rows)["images"][0],
        }
        for _ in range(args.num_texts)
    ]


def measure_pipeline(results: Results, model: Any, processor: Any, sample: Any, args: ServingArguments) -> None:
    """Texts in batches of several kinds, with pictures of their own, one for all, and none."""
    from transformers import pipeline

    pipe = pipeline("multimodal-token-classification", model=model, processor=processor, device="cpu")
    examples = make_examples(sample, args)
    by_length = sorted(examples, key=lambda example: len(example["tokens"]))
    picture = examples[0]["image"]
    shared = [{**example, "image": picture} for example in by_length]

    no_region = {"return_regions": False}
    first = f"batches of {args.batch_size} by length"
    actions: dict[str, Callable[[], Any]] = {
        first: partial(pipe, by_length, batch_size=args.batch_size, **no_region),
        f"batches of {args.batch_size} as they come": partial(pipe, examples, batch_size=args.batch_size, **no_region),
        "one by one": partial(pipe, examples, batch_size=1, **no_region),
        "by length, with `image_region`": partial(pipe, by_length, batch_size=args.batch_size),
        "by length, one picture for all": partial(pipe, shared, batch_size=args.batch_size, **no_region),
        "by length, no picture": partial(
            pipe, [{"tokens": example["tokens"]} for example in by_length], batch_size=args.batch_size, **no_region
        ),
    }
    times = take_turns({name: timed(action) for name, action in actions.items()}, args.repeats)
    lines = []
    for name, compared in compare(times, first).items():
        results.rows.append({"kind": "pipeline", "contender": name, **asdict(compared)})
        lines.append((name, f"{len(examples) / compared.seconds:.1f}", f"{compared.ratio:.2f}", compared.spread))
    results.add_table(
        f"The pipeline: {len(examples)} texts of 1 to 20 sentences, ratios of times",
        ("texts", "texts/s", "ratio", "quartiles"),
        lines,
    )


# -------------------------------------------------------------------------------------------------------- backends

Backend = Callable[[Mapping[str, Any]], tuple[Any, Any]]


def torch_backend(model: Any) -> Backend:
    """A model of PyTorch, compiled or as it is."""

    def run(inputs: Mapping[str, Any]) -> tuple[Any, Any]:
        with torch.no_grad():
            outputs = model(**inputs)
        return outputs.logits, outputs.fusion_gate

    return run


def onnx_backend(file: Path) -> Backend:
    """An exported file, on as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Mapping[str, Any]) -> tuple[Any, Any]:
        found = session.run(["logits", "fusion_gate"], {name: inputs[name].numpy() for name in names})
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])

    return run


def make_backends(model: Any, source: str, folder: Path, names: Sequence[str]) -> dict[str, tuple[Backend, float]]:
    """What runs the model, each with the seconds that it took to get ready."""
    backends: dict[str, tuple[Backend, float]] = {"eager": (torch_backend(model), 0.0)}
    if "compile" in names:
        if shutil.which("c++") is None and shutil.which("g++") is None:
            raise SystemExit("`compile` needs a C++ compiler (g++), and there is none: give --backends without it.")
        # the seconds are those of the first call, see `measure_backends`
        backends["compile"] = (torch_backend(torch.compile(model)), 0.0)
    if {"onnx", "int8"} & {*names}:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        from vtfusion.app.export import export_model

        started = time.perf_counter()
        export_model(source, folder / "onnx")
        exported = time.perf_counter() - started
        if "onnx" in names:
            backends["onnx"] = (onnx_backend(folder / "onnx" / "model.onnx"), exported)
        if "int8" in names:
            started = time.perf_counter()
            quantize_dynamic(
                folder / "onnx" / "model.onnx",
                folder / "int8.onnx",
                # convolutions with 8-bit weights are not in onnxruntime for CPUs
                op_types_to_quantize=["MatMul", "Gemm"],
                weight_type=QuantType.QInt8,
            )
            exported += time.perf_counter() - started
            backends["int8"] = (onnx_backend(folder / "int8.onnx"), exported)
    return backends


def image_size(processor: Any) -> Sequence[int]:
    """Height and width of what a processor makes of an image."""
    grey = Image.new("RGB", (64, 64), "grey")
    return processor.encode_images([grey])["pixel_values"].shape[-2:]


def file_mb(folder: Path, backend: str) -> float:
    """Size of an exported file with the weights beside it."""
    pattern = {"onnx": "onnx/model.onnx*", "int8": "int8.onnx*"}[backend]
    return sum(file.stat().st_size for file in folder.glob(pattern)) / MB


def measure_backends(
    results: Results,
    backends: Mapping[str, tuple[Backend, float]],
    processor: Any,
    vocabulary: int,
    folder: Path,
    args: ServingArguments,
) -> None:
    """Speed of each backend on one batch, how near its logits are to PyTorch's, and how large its file is."""
    torch.manual_seed(args.seed)
    size = image_size(processor)
    rows, length = args.batch_size, args.length
    inputs = {
        "input_ids": torch.randint(vocabulary, (rows, length)),
        "attention_mask": torch.ones(rows, length, dtype=torch.long),
        "token_type_ids": torch.zeros(rows, length, dtype=torch.long),
        "pixel_values": torch.randn(rows, 1, 3, *size),
        "image_mask": torch.ones(rows, 1, dtype=torch.long),
    }
    expected = backends["eager"][0](inputs)[0]
    found, ready = {}, {}
    for name, (run, seconds) in backends.items():
        started = time.perf_counter()
        found[name] = run(inputs)[0]
        ready[name] = seconds + (time.perf_counter() - started if name == "compile" else 0.0)
    times = take_turns({name: timed(partial(run, inputs)) for name, (run, _) in backends.items()}, args.repeats)
    lines = []
    for name, compared in compare(times, "eager").items():
        difference = (found[name] - expected).abs().max().item()
        equal = (found[name].argmax(-1) == expected.argmax(-1)).float().mean().item()
        size_mb = file_mb(folder, name) if name in ("onnx", "int8") else None
        results.rows.append(
            {
                "kind": "backend",
                "contender": name,
                **asdict(compared),
                "logit_difference": difference,
                "equal_labels": equal,
                "ready_seconds": ready[name],
                "file_mb": size_mb,
            }
        )
        line = (name, f"{rows / compared.seconds:.1f}", f"{compared.ratio:.2f}", compared.spread, f"{difference:.1e}")
        lines.append((*line, f"{equal:.1%}", "–" if size_mb is None else f"{size_mb:.0f}", f"{ready[name]:.0f}"))
    results.add_table(
        f"One batch of {rows} texts of {length} tokens with a picture, ratios of times; logits up to "
        f"{expected.abs().max().item():.2f}",
        (
            "backend",
            "texts/s",
            "ratio",
            "quartiles",
            "largest difference of a logit",
            "same label",
            "file, MB",
            "to get ready, s",
        ),
        lines,
    )


def batches_of(rows: Any, processor: Any, batch_size: int) -> Iterator[Any]:
    """Batches with pixels in each, since the exported file asks for them; where there is no image, none counts."""
    size = image_size(processor)
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        images = part["images"] if any(part["images"]) else None
        batch = processor(text=part["tokens"], images=images, return_tensors="pt")
        if images is None:
            count = len(batch["input_ids"])
            batch["pixel_values"] = torch.zeros(count, 1, 3, *size)
            batch["image_mask"] = torch.zeros(count, 1, dtype=torch.long)
        yield batch


def measure_f1(
    results: Results,
    backends: Mapping[str, tuple[Backend, float]],
    processor: Any,
    id2label: dict[int, str],
    rows: Any,
    batch_size: int,
) -> None:
    """Strict entity F1 of each backend on the synthetic test rows."""
    from vtfusion.training.metrics import compute_entity_metrics

    names = rows.features["ner_tags"].feature.names
    references = [[names[tag] for tag in tags] for tags in rows["ner_tags"]]
    tags: dict[str, list[list[str]]] = {name: [] for name in backends}
    for batch in batches_of(rows, processor, batch_size):
        for name, (run, _) in backends.items():
            logits, gates = run(batch)
            outputs = SimpleNamespace(logits=logits, fusion_gate=gates)
            tags[name] += processor.predict_word_labels(outputs, batch, id2label)
    lines = []
    for name, predicted in tags.items():
        f1 = compute_entity_metrics(predicted, references)["f1"]
        pairs = list(zip(chain(*predicted), chain(*tags["eager"]), strict=True))
        equal = sum(mine == theirs for mine, theirs in pairs) / len(pairs)
        results.rows.append({"kind": "f1", "contender": name, "f1": f1, "equal_labels": equal})
        lines.append((name, f"{100 * f1:.2f}", f"{equal:.2%}"))
    results.add_table(
        f"Strict entity F1 on {len(rows)} rows of the synthetic sample set",
        ("backend", "F1", "words with the same label"),
        lines,
    )


def main(args: ServingArguments) -> None:
    from vtfusion.training.sample_data import build_sample_dataset

    quiet()
    results = Results("serving", "How fast does it serve, and by what?", args)
    sample = build_sample_dataset(args.seed, num_train=24, num_validation=0, num_test=args.num_test)
    with tempfile.TemporaryDirectory() as name:
        source = str(save_random_model(Path(name), sample, args))
        model, processor = load(source)
        measure_pipeline(results, model, processor, sample, args)
        backends = make_backends(model, source, Path(name), args.backends)
        measure_backends(results, backends, processor, model.config.text_config.vocab_size, Path(name), args)
    if args.model_name_or_path is not None:
        with tempfile.TemporaryDirectory() as name:
            model, processor = load(args.model_name_or_path)
            # compiled for every length and number of pictures it would take minutes, and it gives what eager gives
            names = [backend for backend in args.backends if backend != "compile"]
            backends = make_backends(model, args.model_name_or_path, Path(name), names)
            measure_f1(results, backends, processor, model.config.id2label, sample["test"], args.batch_size)
    results.save()


if __name__ == "__main__":
    main(parse(ServingArguments, QUICK))
