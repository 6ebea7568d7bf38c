"""Tiny random configurations of every kind of encoder, for tests: no weights to download, milliseconds to run."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import (
    AutoModel,
    BertConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    DebertaV2Config,
    DetrConfig,
    Dinov2Config,
    DistilBertConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MobileNetV2Config,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
    ResNetConfig,
    RobertaConfig,
    RwkvConfig,
    SiglipVisionConfig,
    SmolLM3Config,
    SwinConfig,
    T5Config,
    ViTConfig,
)

from tokenizers_for_tests import TOKENIZERS
from vtfusion import VTFusionConfig

VOCAB, HIDDEN, IMAGE, LENGTH = 99, 32, 32, 7
_LAYERS = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

TEXT: dict[str, Callable[[], PreTrainedConfig]] = {
    "bert": lambda: BertConfig(vocab_size=VOCAB, max_position_embeddings=64, **_LAYERS),
    "roberta": lambda: RobertaConfig(vocab_size=VOCAB, max_position_embeddings=66, **_TOKENS, **_LAYERS),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCAB, dim=HIDDEN, n_layers=2, n_heads=4, hidden_dim=37, max_position_embeddings=64
    ),
    "deberta-v2": lambda: DebertaV2Config(
        vocab_size=VOCAB,
        max_position_embeddings=64,
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["p2c", "c2p"],
        **_LAYERS,
    ),
    "modernbert": lambda: ModernBertConfig(
        vocab_size=VOCAB, max_position_embeddings=64, cls_token_id=1, sep_token_id=2, **_TOKENS, **_LAYERS
    ),
    "llama": lambda: LlamaConfig(vocab_size=VOCAB, max_position_embeddings=64, **_TOKENS, **_LAYERS),
    "mamba": lambda: MambaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=2, state_size=4, time_step_rank=4, **_TOKENS
    ),
    "rwkv": lambda: RwkvConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, attention_hidden_size=HIDDEN, num_hidden_layers=2, **_TOKENS
    ),
    "t5": lambda: T5Config(vocab_size=VOCAB, d_model=HIDDEN, d_kv=8, d_ff=37, num_layers=2, num_heads=4),
}

_PATCHES = {"image_size": IMAGE, "patch_size": 8}
_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}

VISION: dict[str, Callable[[], PreTrainedConfig]] = {
    "vit": lambda: ViTConfig(**_PATCHES, **_LAYERS),
    "clip": lambda: CLIPVisionConfig(**_PATCHES, **_LAYERS),
    "siglip": lambda: SiglipVisionConfig(**_PATCHES, **_LAYERS),
    "dinov2": lambda: Dinov2Config(**_PATCHES, mlp_ratio=2, **{**_LAYERS, "intermediate_size": None}),
    "swin": lambda: SwinConfig(
        image_size=IMAGE, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
    ),
    "resnet": lambda: ResNetConfig(**_RESNET),
    "convnext": lambda: ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "mobilenet_v2": lambda: MobileNetV2Config(depth_multiplier=0.25, image_size=IMAGE, output_stride=8),
    "detr": lambda: DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=ResNetConfig(**_RESNET, out_features=["stage2"]),
        d_model=HIDDEN,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=37,
        decoder_ffn_dim=37,
        num_queries=5,
    ),
}


def text_model(kind: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A text encoder of `TEXT` that reads with the tokenizer of its kind."""
    config, tokenizer = TEXT[kind](), TOKENIZERS[kind]()
    config.vocab_size = len(tokenizer)
    return AutoModel.from_config(config).eval(), tokenizer


def tiny_config(text: str = "bert", vision: str = "resnet", **kwargs: object) -> VTFusionConfig:
    """`vision="precomputed"` gives a model without a vision encoder."""
    parts = {"visual_hidden_size": 12} if vision == "precomputed" else {"vision_config": VISION[vision]()}
    defaults = {"fusion_hidden_size": 16, "num_fusion_heads": 2, "num_labels": 3}
    return VTFusionConfig(text_config=TEXT[text](), **{**parts, **defaults, **kwargs})


def tiny_inputs(
    vision: str = "resnet", batch_size: int = 2, length: int = LENGTH, seed: int = 0, texts: tuple[int, ...] = ()
) -> dict[str, torch.Tensor]:
    """
    Token ids with padding on the right in the last row, and one image (or 5 precomputed regions) for each row. `texts` is
    the shape between rows and tokens, where a row has several texts.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, *texts, length)
    inputs = {
        "input_ids": torch.randint(3, VOCAB, shape, generator=generator),
        "attention_mask": torch.ones(shape, dtype=torch.long),
    }
    inputs["attention_mask"][-1, ..., -2:] = 0
    inputs["input_ids"][-1, ..., -2:] = 0
    if vision == "precomputed":
        corners = torch.rand(batch_size, 5, 2, 2, generator=generator).sort(dim=2).values
        inputs["visual_embeds"] = torch.randn(batch_size, 5, 12, generator=generator)
        inputs["visual_boxes"] = corners.flatten(2)
    else:
        inputs["pixel_values"] = torch.randn(batch_size, 1, 3, IMAGE, IMAGE, generator=generator)
    return inputs


def text_of(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of the inputs without their images and labels."""
    return {name: value for name, value in inputs.items() if name in ("input_ids", "attention_mask")}


def run(model: torch.nn.Module, **inputs: Any) -> Any:
    """What a model returns, without gradients."""
    with torch.no_grad():
        return model(**inputs)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the gradients, of the parameters that have one."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def randomize_fusion(model: torch.nn.Module, std: float = 0.2) -> None:
    """Gives W_o values, as after training: a new model's fused branch adds nothing, so it would hide every mistake."""
    output = model.base_model.fusion.output
    with torch.no_grad():
        output.weight.normal_(std=std)
        output.bias.normal_(std=std)


_DECODER = {
    **_LAYERS,
    **_TOKENS,
    "vocab_size": VOCAB,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

LANGUAGE_MODELS: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": lambda: GPT2Config(vocab_size=VOCAB, n_embd=HIDDEN, n_layer=3, n_head=4, n_positions=64, **_TOKENS),
    "llama": lambda: LlamaConfig(**_DECODER),
    # SmolLM2 is a Llama that shares its embeddings with its head
    "smollm": lambda: LlamaConfig(tie_word_embeddings=True, **_DECODER),
    "smollm3": lambda: SmolLM3Config(**_DECODER),
    "qwen2": lambda: Qwen2Config(**_DECODER),
    "qwen3": lambda: Qwen3Config(head_dim=8, **_DECODER),
    "gemma": lambda: GemmaConfig(head_dim=8, **_DECODER),
    "gemma2": lambda: Gemma2Config(head_dim=8, sliding_window=16, **_DECODER),
    "mistral": lambda: MistralConfig(head_dim=8, **_DECODER),
}
