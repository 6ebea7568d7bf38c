"""Low-rank adapters for the text encoder (LoRA, 2106.09685), through PEFT."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_peft_available


def add_lora(text_model: PreTrainedModel, rank: int = 16, alpha: int = 32, dropout: float = 0.0) -> None:
    """
    Puts adapters beside all linear layers of a text encoder, in place, and freezes the rest of it.

    Args:
        text_model (`PreTrainedModel`): the encoder.
        rank (`int`, *optional*, defaults to 16): rank r of the update.
        alpha (`int`, *optional*, defaults to 32): the update is scaled by alpha / r.
        dropout (`float`, *optional*, defaults to 0.0): dropout before the adapters.
    """
    if not is_peft_available():
        raise ImportError("LoRA needs PEFT: pip install peft")
    from peft import LoraConfig, get_peft_model

    get_peft_model(text_model, LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear"))


def merge_lora(model: nn.Module) -> None:
    """Adds what adapters learned to the weights, in place, and removes them. A model without adapters stays as it is."""
    if not is_peft_available():
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapters: list[tuple[str, Any]] = [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    for name, adapter in adapters:
        adapter.merge()
        model.set_submodule(name, adapter.get_base_layer())
    for module in model.modules():
        if hasattr(module, "peft_config"):
            # what PEFT left on the encoder
            del module.peft_config
