"""A tiny language model that sees images, and a processor for it."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, ViTImageProcessor

from tiny import LANGUAGE_MODELS, VISION
from tokenizers_for_tests import TOKENIZERS
from vtfusion import VTFusionForConditionalGeneration, VTFusionProcessor

# a chat template: the role before each message
CHAT = "{%- for message in messages -%}{{ message['role'] + ': ' + message['content'] + '\n' }}{%- endfor -%}{%- if add_generation_prompt -%}assistant:{%- endif -%}"


def make_processor(tokenizer: str = "gpt-neox", **settings: Any) -> VTFusionProcessor:
    """Reads `<image>` in a prompt."""
    image_processor = ViTImageProcessor(size={"height": 32, "width": 32})
    return VTFusionProcessor(image_processor, TOKENIZERS[tokenizer](), image_token="<image>", **settings)


def make_model(vocab_size: int) -> VTFusionForConditionalGeneration:
    """With output projections as after training."""
    torch.manual_seed(0)
    config = LANGUAGE_MODELS["llama"]()
    config.vocab_size, config.max_position_embeddings = vocab_size, 256
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    model = VTFusionForConditionalGeneration.from_vision_text_pretrained(
        AutoModel.from_config(VISION["resnet"]()),
        AutoModelForCausalLM.from_config(config),
        fusion_hidden_size=16,
        num_fusion_heads=2,
        cross_attention_every=2,
    )
    for block in model.cross_attention_layers:
        nn.init.normal_(block.fusion.output.weight, std=0.3)
    return model
