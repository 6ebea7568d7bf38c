"""`Trainer` with a learning rate of its own for the fusion part, and evaluation in the order of the data."""

from typing import Any

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer

_ENCODERS = ("text_model.", "vision_model.")


class VTFusionTrainer(Trainer):
    """
    [`Trainer`] for VTFusion models; takes [`VTFusionTrainingArguments`].

    The encoders learn at `learning_rate`, all that is new (fusion layers, head) at `fusion_learning_rate`.
    """

    optimizer: torch.optim.Optimizer | None

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is not None or self.args.fusion_learning_rate is None:
            return super().create_optimizer() if model is None else super().create_optimizer(model)
        model = self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                is_new = not any(f".{part}" in f".{name}" for part in _ENCODERS)
                groups.setdefault((is_new, name in decayed), []).append(parameter)
        optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = optimizer_class(
            [
                {
                    "params": parameters,
                    "weight_decay": self.args.weight_decay if decay else 0.0,
                    "lr": self.args.fusion_learning_rate if is_new else self.args.learning_rate,
                }
                for (is_new, decay), parameters in groups.items()
            ],
            **kwargs,
        )
        return self.optimizer

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler | None:
        # Grouping by length would shuffle the windows, and words could not be put back into their texts.
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None
