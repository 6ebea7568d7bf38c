"""What the benchmarks run: models of BERT's proportions with random weights, inputs for them, and a step of each kind."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, MobileNetV2Config, PreTrainedTokenizerBase, ViTImageProcessor

from vtfusion import VTFusionConfig, VTFusionForTokenClassification, VTFusionProcessor


def bert_sizes(hidden_size: int, num_layers: int, head_size: int = 32) -> dict[str, int]:
    """The sizes of a transformer, with a feed-forward of four times its width."""
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": max(1, hidden_size // head_size),
        "intermediate_size": 4 * hidden_size,
    }


MINILM = bert_sizes(hidden_size=384, num_layers=6)


def make_tagger(
    tokenizer: PreTrainedTokenizerBase, names: Sequence[str], image_size: int, sizes: Mapping[str, int]
) -> tuple[VTFusionForTokenClassification, VTFusionProcessor]:
    """
    A model for entities with random weights, of a BERT and MobileNetV2, and its processor.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): whose words the BERT reads.
        names (`Sequence[str]`): the labels.
        image_size (`int`): pixels of a picture's side.
        sizes (`Mapping[str, int]`): of the BERT, see [`bert_sizes`].
    """
    config = VTFusionConfig(
        BertConfig(vocab_size=len(tokenizer), **sizes),
        MobileNetV2Config(image_size=image_size),
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    side = {"height": image_size, "width": image_size}
    processor = VTFusionProcessor(image_processor=ViTImageProcessor(size=side), tokenizer=tokenizer)
    return VTFusionForTokenClassification(config), processor


def wake_fusion(model: Any) -> None:
    """Gives a new model an output of fusion other than zero, as after a training: products with zeros might be cheaper."""
    torch.nn.init.normal_(model.base_model.fusion.output.weight, std=0.02)


# ---------------------------------------------------------------------------------------------------------- inputs


def random_words(rows: int, length: int, num_labels: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Texts without padding, and a label for each of their tokens."""
    return {
        "input_ids": torch.randint(1000, 20000, (rows, length), generator=generator),
        "attention_mask": torch.ones(rows, length, dtype=torch.long),
        "labels": torch.randint(num_labels, (rows, length), generator=generator),
    }


def random_boxes(*shape: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Boxes of the shape `(*shape, 4)`, their first corner above and left of the second."""
    return torch.rand(*shape, 2, 2, generator=generator).sort(dim=-2).values.flatten(-2)


# ----------------------------------------------------------------------------------------------------------- steps


def make_training_step(model: Any) -> Callable[..., None]:
    """
    A training step of a model that returns a loss: forward, backward, clipping and AdamW, as `Trainer` does them. It takes
    a batch, and `bf16=True` to run the forward pass under autocast.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)

    def step(batch: Mapping[str, Any], bf16: bool = False) -> None:
        model.train()
        with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, enabled=bf16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def infer(model: Any, batch: Mapping[str, Any]) -> None:
    """A forward pass as in use: without labels and gradients."""
    with torch.inference_mode():
        model.eval()(**{name: value for name, value in batch.items() if name != "labels"})


def count_flops(action: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products and convolutions in an action."""
    # The counter knows no fused attention on CPUs; written out, it is two products, of the same operations.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()
