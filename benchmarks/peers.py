#!/usr/bin/env python
"""
VTFusion beside the models of transformers that read a text with a picture: examples a second in training and inference, peak
memory and parameters, random weights of one size.

python benchmarks/peers.py

How the sizes are matched. Every transformer is `hidden_size` wide, with heads of 64 and a feed-forward of four times the
width; a tower is `depth` layers deep, and the vocabulary is BERT's. What a family puts on top of its towers keeps the
published proportion:

- ViLT: one transformer over words and patches of 32 pixels, `depth` layers.
- VisualBERT: one transformer over words and CNN features, `depth` layers.
- LXMERT: two thirds of `depth` over the words and one third that reads both sides (so a word passes `depth` layers); as many
  layers over the features as read both (9, 5 and 5 in the paper).
- BridgeTower, FLAVA: `depth` layers over the words, `depth` over patches of 16 pixels, half of `depth` over both.
- VisionTextDualEncoder: BERT and a ViT on patches of 16 pixels, which meet in the contrastive loss only: it fuses nothing.
- VTFusion: BERT of `depth` layers and one fusion layer with the settings of a new model (256 wide, L_t and L_v on).

Features are those of a ResNet-50 (49 of a picture, 2,048 wide) or of MobileNetV2 (49, 1,280 wide). *Cached* means that they
are there already, as VTFusion's feature cache has them; *frozen* that the CNN runs in each step without gradient; *trained*
that its weights are trained too, as those of the peers are; *channels last* that they were put in the order in which a CPU
convolves fastest before (`vision_model.to(memory_format=torch.channels_last)`). VTFusion with MobileNetV2 has about as many
parameters as ViLT, with ResNet-50 as many as the models with two towers. A model learns to tag each word (cross-entropy of a
linear layer on the states of its words), but the dual encoder, which learns its contrastive loss.

The contenders take turns in each round. A training step is forward, backward, clipping and AdamW. Memory is the peak of a
process that does nothing else, less what the libraries need, after inference and after two training steps.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from measuring import (
    Results,
    RoundsArguments,
    compare,
    in_child,
    parse,
    peak_mb,
    resident_mb,
    take_turns,
    timed,
)
from models import bert_sizes, count_flops, infer, make_training_step, random_boxes, random_words, wake_fusion
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BridgeTowerConfig,
    BridgeTowerModel,
    FlavaConfig,
    FlavaModel,
    LxmertConfig,
    LxmertModel,
    MobileNetV2Config,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ViltConfig,
    ViltModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisualBertConfig,
    VisualBertModel,
    ViTConfig,
)
from transformers.modeling_outputs import TokenClassifierOutput

from vtfusion import VTFusionConfig, VTFusionForTokenClassification

NUM_LABELS = 9
RESNET, MOBILENET = "ResNet-50", "MobileNetV2"
QUICK = {"hidden_size": 64, "depth": 3, "batch_size": 2, "length": 8, "image_size": 64, "repeats": 2}


@dataclass
class SizeArguments(RoundsArguments):
    hidden_size: int = field(default=384, metadata={"help": "Width of every transformer."})
    depth: int = field(default=12, metadata={"help": "Layers of a tower."})
    batch_size: int = field(default=8, metadata={"help": "Texts with a picture in a batch."})
    length: int = field(default=64, metadata={"help": "Tokens of a text."})
    image_size: int = field(default=224, metadata={"help": "Pixels of a picture's side."})


@dataclass
class PeerArguments(SizeArguments):
    contenders: list[str] = field(
        default_factory=list, metadata={"help": "Only these, by the names in the table; all where none is named."}
    )


class WordTagger(nn.Module):
    """
    A model with a linear layer on the states of its words.

    Args:
        model (`PreTrainedModel`): what reads text and picture.
        words (`Callable`): from the model's output and the number of words to their states.
        hidden_size (`int`): width of the states.
        cnn (`nn.Module`, *optional*): a frozen encoder, whose features of `pixel_values` the model takes as
            `visual_embeds`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        words: Callable[[Any, int], torch.Tensor],
        hidden_size: int,
        cnn: nn.Module | None = None,
    ):
        super().__init__()
        self.model, self.words, self.cnn = model, words, cnn
        self.classifier = nn.Linear(hidden_size, NUM_LABELS)
        if cnn is not None:
            cnn.requires_grad_(False)

    def forward(self, labels: torch.Tensor | None = None, **inputs: Any) -> TokenClassifierOutput:
        if self.cnn is not None:
            with torch.no_grad():
                maps = self.cnn.eval()(pixel_values=inputs.pop("pixel_values")).last_hidden_state
            inputs["visual_embeds"] = maps.flatten(2).transpose(1, 2)
        logits = self.classifier(self.words(self.model(**inputs), inputs["input_ids"].shape[1]))
        loss = None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return TokenClassifierOutput(loss=loss, logits=logits)


class DualEncoder(nn.Module):
    """The dual encoder with its loss, where there are labels to say that it is trained."""

    def __init__(self, model: VisionTextDualEncoderModel):
        super().__init__()
        self.model = model

    def forward(self, labels: torch.Tensor | None = None, **inputs: Any) -> Any:
        return self.model(**inputs, return_loss=labels is not None)


def cnn_config(name: str) -> PreTrainedConfig:
    """The configuration of `RESNET` or `MOBILENET`."""
    return ResNetConfig() if name == RESNET else MobileNetV2Config()


def make_vtfusion(
    args: SizeArguments, cnn: str, cached: bool = False, frozen: bool = True, channels_last: bool = False
) -> nn.Module:
    width = 2048 if cnn == RESNET else 1280
    parts = {"visual_hidden_size": width} if cached else {"vision_config": cnn_config(cnn)}
    config = VTFusionConfig(BertConfig(**transformer(args)), num_labels=NUM_LABELS, **parts)
    model = VTFusionForTokenClassification(config)
    wake_fusion(model)
    if frozen and not cached:
        model.freeze_vision_encoder()
    if channels_last:
        model.vtfusion.vision_model.to(memory_format=torch.channels_last)
    return model


def transformer(args: SizeArguments) -> dict[str, int]:
    """What every transformer has."""
    return bert_sizes(args.hidden_size, args.depth, head_size=64)


def make_vilt(args: SizeArguments) -> nn.Module:
    config = ViltConfig(
        **transformer(args), max_position_embeddings=args.length, image_size=args.image_size, patch_size=32
    )
    return WordTagger(ViltModel(config), lambda outputs, n: outputs.last_hidden_state[:, :n], args.hidden_size)


def make_visual_bert(args: SizeArguments, cached: bool) -> nn.Module:
    model = VisualBertModel(VisualBertConfig(**transformer(args), visual_embedding_dim=2048))
    cnn = None if cached else AutoModel.from_config(cnn_config(RESNET))
    return WordTagger(model, lambda outputs, n: outputs.last_hidden_state[:, :n], args.hidden_size, cnn)


def make_lxmert(args: SizeArguments) -> nn.Module:
    both = args.depth // 3
    sizes = {name: value for name, value in transformer(args).items() if name != "num_hidden_layers"}
    model = LxmertModel(LxmertConfig(**sizes, l_layers=args.depth - both, x_layers=both, r_layers=both))
    return WordTagger(model, lambda outputs, n: outputs.language_output, args.hidden_size)


def make_bridgetower(args: SizeArguments) -> nn.Module:
    config = BridgeTowerConfig(
        **{**transformer(args), "num_hidden_layers": args.depth // 2},
        text_config={**transformer(args), "vocab_size": BertConfig().vocab_size},
        vision_config={
            "hidden_size": args.hidden_size,
            "num_hidden_layers": args.depth,
            "image_size": args.image_size,
            "patch_size": 16,
        },
    )
    return WordTagger(BridgeTowerModel(config), lambda outputs, n: outputs.text_features, args.hidden_size)


def make_flava(args: SizeArguments) -> nn.Module:
    config = FlavaConfig(
        text_config=transformer(args),
        image_config={**transformer(args), "image_size": args.image_size, "patch_size": 16},
        multimodal_config={**transformer(args), "num_hidden_layers": args.depth // 2},
        hidden_size=args.hidden_size,
        projection_dim=args.hidden_size,
    )
    model = FlavaModel(config)
    # its words come after the patches
    return WordTagger(model, lambda outputs, n: outputs.multimodal_embeddings[:, -n:], args.hidden_size)


def make_dual_encoder(args: SizeArguments) -> nn.Module:
    vision = ViTConfig(**transformer(args), image_size=args.image_size, patch_size=16)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision, BertConfig(**transformer(args)), projection_dim=args.hidden_size
    )
    return DualEncoder(VisionTextDualEncoderModel(config))


# What makes a model, and the inputs that it takes besides the words.
Contender = tuple[Callable[[SizeArguments], nn.Module], tuple[str, ...]]
# Ratios are to the first.
CONTENDERS: dict[str, Contender] = {
    "VTFusion, cached": (partial(make_vtfusion, cnn=RESNET, cached=True), ("visual_embeds", "visual_boxes")),
    "VTFusion, MobileNetV2 frozen": (partial(make_vtfusion, cnn=MOBILENET), ("pixel_values",)),
    "VTFusion, MobileNetV2 trained": (partial(make_vtfusion, cnn=MOBILENET, frozen=False), ("pixel_values",)),
    "VTFusion, MobileNetV2 trained, channels last": (
        partial(make_vtfusion, cnn=MOBILENET, frozen=False, channels_last=True),
        ("pixel_values",),
    ),
    "VTFusion, ResNet-50 frozen": (partial(make_vtfusion, cnn=RESNET), ("pixel_values",)),
    "VTFusion, ResNet-50 trained": (partial(make_vtfusion, cnn=RESNET, frozen=False), ("pixel_values",)),
    "VisualBERT, cached": (partial(make_visual_bert, cached=True), ("visual_embeds",)),
    "VisualBERT, ResNet-50 frozen": (partial(make_visual_bert, cached=False), ("pixel_values",)),
    "LXMERT, cached": (make_lxmert, ("visual_feats", "visual_pos")),
    "ViLT": (make_vilt, ("pixel_values",)),
    "BridgeTower": (make_bridgetower, ("pixel_values",)),
    "FLAVA": (make_flava, ("pixel_values",)),
    "VisionTextDualEncoder": (make_dual_encoder, ("pixel_values",)),
}


def make_inputs(args: SizeArguments) -> dict[str, torch.Tensor]:
    """All that any of them takes, of one batch."""
    generator = torch.Generator().manual_seed(args.seed)
    rows, cells = args.batch_size, (args.image_size // 32) ** 2
    features = torch.randn(rows, cells, 2048, generator=generator)
    boxes = random_boxes(rows, cells, generator=generator)
    return {
        **random_words(rows, args.length, NUM_LABELS, generator),
        "pixel_values": torch.randn(rows, 3, args.image_size, args.image_size, generator=generator),
        "visual_embeds": features,
        "visual_boxes": boxes,
        "visual_feats": features,
        "visual_pos": boxes,
    }


def make_contender(
    contender: Contender, args: SizeArguments, device: str = "cpu"
) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A model with random weights, and its batch."""
    torch.manual_seed(args.seed)
    make, names = contender
    inputs = make_inputs(args)
    batch = {key: inputs[key].to(device) for key in ("input_ids", "attention_mask", "labels", *names)}
    return make(args).to(device), batch


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def measure_memory(name: str, **sizes: Any) -> dict[str, float]:
    """Peak memory of a process over what it has without a model, after inference and after training."""
    libraries = resident_mb()
    model, batch = make_contender(CONTENDERS[name], SizeArguments(**sizes))
    for _ in range(2):
        infer(model, batch)
    inference = peak_mb()
    step = make_training_step(model)
    for _ in range(2):
        step(batch)
    return {"inference_mb": inference - libraries, "training_mb": peak_mb() - libraries}


def main(args: PeerArguments) -> None:
    results = Results("peers", "How fast is VTFusion beside other models that read a text with a picture?", args)
    names = args.contenders or list(CONTENDERS)
    made = {name: make_contender(CONTENDERS[name], args) for name in names}
    rows: dict[str, dict[str, Any]] = {
        name: {"contender": name, "parameters": count_parameters(model)} for name, (model, _) in made.items()
    }
    for mode in ("training", "inference"):
        actions: dict[str, Callable[[], Any]] = {}
        for name, (model, batch) in made.items():
            actions[name] = (
                partial(make_training_step(model), batch) if mode == "training" else partial(infer, model, batch)
            )
        flops = {name: count_flops(action) for name, action in actions.items()}
        times = take_turns({name: timed(action) for name, action in actions.items()}, args.repeats)
        for name, compared in compare(times, names[0]).items():
            found = {
                "examples_per_second": args.batch_size / compared.seconds,
                **asdict(compared),
                "flops": flops[name],
            }
            rows[name] |= {f"{mode}_{key}": value for key, value in found.items()}
    made.clear()
    sizes = {name: getattr(args, name) for name in ("hidden_size", "depth", "batch_size", "length", "image_size")}
    for name, row in rows.items():
        row |= in_child(__file__, "measure_memory", name=name, **sizes)
    results.rows = list(rows.values())
    results.add_table(
        f"Batches of {args.batch_size}, {args.length} tokens, a picture of {args.image_size} pixels; ratios are times over "
        f"those of {names[0]}, with quartiles",
        (
            "model",
            "million parameters",
            "training, examples/s",
            "ratio of times",
            "quartiles",
            "of operations",
            "inference, examples/s",
            "ratio of times",
            "quartiles",
            "of operations",
            "memory, training, MB",
            "inference, MB",
        ),
        [as_line(row, results.rows[0]) for row in results.rows],
    )
    results.save()


def as_line(row: dict[str, Any], base: dict[str, Any]) -> list[str]:
    """A contender in the table; its operations are over those of `base`."""
    line = [row["contender"], f"{row['parameters'] / 1e6:.1f}"]
    for mode in ("training", "inference"):
        line += [
            f"{row[f'{mode}_examples_per_second']:.1f}",
            f"{row[f'{mode}_ratio']:.2f}",
            f"{row[f'{mode}_ratio_low']:.2f} … {row[f'{mode}_ratio_high']:.2f}",
            f"{row[f'{mode}_flops'] / base[f'{mode}_flops']:.2f}",
        ]
    return [*line, f"{row['training_mb']:.0f}", f"{row['inference_mb']:.0f}"]


if __name__ == "__main__":
    main(parse(PeerArguments, QUICK))
