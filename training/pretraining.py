"""Pretraining on images with captions: each loss by itself, in training and in evaluation."""

import os
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput

from ..modeling_vtfusion import VTFusionForPreTraining
from ..processing_vtfusion import VTFusionProcessor
from .arguments import ModelArguments, PretrainingArguments
from .captions import CaptionCollator, CaptionStream
from .loading import checkpoint_head, load_model
from .trainer import VTFusionTrainer

LOSSES = ("fusion_loss", "text_loss", "matching_loss", "contrastive_loss")


class _EpochCallback(TrainerCallback):
    """Tells the collator which epoch it is."""

    def __init__(self, collator: CaptionCollator):
        self.collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.collator.epoch = int(state.epoch or 0)


class ImageTextTrainer(VTFusionTrainer):
    """
    [`VTFusionTrainer`] that logs each loss beside their sum, in training and in evaluation, and draws the same captions,
    masks and hard negatives at every evaluation. Its collator is a [`CaptionCollator`].

    Raises:
        `ValueError`: `dataloader_persistent_workers` is on.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args.dataloader_persistent_workers:
            # They keep the collator of the first epoch. One epoch shared with them would not do: an evaluation amid an
            # epoch has one of its own, while they prepare batches of the training.
            raise ValueError(
                "`dataloader_persistent_workers` must be False: workers that live on would draw the captions and masks of "
                "the first epoch again in every epoch."
            )
        self._totals = self._no_losses()
        self.add_callback(_EpochCallback(self.data_collator))

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        stream = self.train_dataset
        if isinstance(resume_from_checkpoint, str) and isinstance(stream, CaptionStream):
            steps = TrainerState.load_from_json(os.path.join(resume_from_checkpoint, "trainer_state.json")).global_step
            batches = steps * self.args.gradient_accumulation_steps
            stream.skip(batches, self.args.train_batch_size * self.args.world_size)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _no_losses(self) -> torch.Tensor:
        # of each loss the sum and the number; where it is computed, so that no step waits for the device
        return torch.zeros(len(LOSSES), 2, device=self.args.device)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        weight, scale = inputs["input_ids"].shape[0], 1
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # The losses of all processes are the sum of what each gives by its share.
            scale = self.args.world_size
        if model.training:
            weight = 1
            if num_items_in_batch is not None:
                # as those of a step are of its batches
                scale *= self.current_gradient_accumulation_steps
        for place, name in enumerate(LOSSES):
            value = outputs.get(name)
            if value is not None:
                value = value.detach().float().mean()
                self._totals[place] += torch.stack([value * scale * weight, torch.full_like(value, weight)])
        return (loss, outputs) if return_outputs else loss

    def _mean_losses(self, prefix: str = "") -> dict[str, float]:
        totals = self.accelerator.reduce(self._totals, reduction="sum").tolist()
        self._totals = self._no_losses()
        return {f"{prefix}{name}": total / count for name, (total, count) in zip(LOSSES, totals, strict=True) if count}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self._mean_losses()}
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        epoch, totals = self.data_collator.epoch, self._totals
        self.data_collator.epoch, self._totals = 0, self._no_losses()
        with torch.random.fork_rng():
            torch.manual_seed(self.args.seed)
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        output.metrics.update(self._mean_losses(f"{metric_key_prefix}_"))
        self.data_collator.epoch, self._totals = epoch, totals
        return output


def load_pretraining_model(args: ModelArguments) -> tuple[VTFusionForPreTraining, VTFusionProcessor]:
    """
    A model for pretraining and its processor. If it was not pretrained before, `contrastive_loss_weight` is 1 unless
    given, since matching needs it; of two new encoders joined the word embeddings are the output matrix too.
    """
    settings: dict[str, Any] = {}
    head = checkpoint_head(args)
    if args.contrastive_loss_weight is None and head != VTFusionForPreTraining.__name__:
        settings["contrastive_loss_weight"] = 1.0
    if head is None:
        settings["tie_word_embeddings"] = True
    return load_model(VTFusionForPreTraining, args, **settings)


def masked_part(model: VTFusionForPreTraining, args: PretrainingArguments) -> float:
    """`mlm_probability`, or 0 where no loss of words is wanted."""
    wanted = model.config.fusion_loss_weight > 0 or model.config.text_loss_weight > 0
    return args.mlm_probability if wanted else 0.0
