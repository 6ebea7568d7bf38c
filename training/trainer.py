"""`Trainer` with a learning rate of its own for the fusion part, whole checkpoints, and evaluation in order."""

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from .checkpoints import CheckpointCallback
from .collator import FusionCollator
from .files import find_damage
from .publishing import upload_model

_ENCODERS = ("text_model.", "vision_model.")


def parameter_groups(
    model: torch.nn.Module, learning_rate: float, fusion_learning_rate: float, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """
    What an optimizer takes: the trained parameters by learning rate and weight decay.

    Args:
        model (`torch.nn.Module`): a VTFusion model.
        learning_rate (`float`): of the encoders.
        fusion_learning_rate (`float`): of all that is new, the fusion layers and the head.
        weight_decay (`float`, *optional*, defaults to 0.0): of matrices; biases, norms and scales have none.
    """
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_encoder = any(f".{part}" in f".{name}" for part in _ENCODERS)
            rate = learning_rate if is_encoder else fusion_learning_rate
            groups.setdefault((rate, weight_decay if parameter.dim() > 1 else 0.0), []).append(parameter)
    return [{"params": each, "lr": rate, "weight_decay": decay} for (rate, decay), each in groups.items()]


def sharded_classes(model: PreTrainedModel) -> list[str]:
    """
    Names of the module classes that FSDP2 shards one by one: those that the model's parts must not split, without what
    holds the input embeddings. Accelerate shards these by themselves, and fails where they are sharded already (in
    BertEmbeddings, for one).

    Args:
        model (`PreTrainedModel`): the model.
    """
    embeddings = model.get_input_embeddings()
    there = {type(module).__name__ for module in model.modules() if embeddings not in module.children()}
    around = {type(module).__name__ for module in model.modules() if embeddings in module.children()}
    return sorted((set(model._no_split_modules or ()) & there) - around)


class _OrderCallback(TrainerCallback):
    """
    Gives each epoch an order of its own that only the seed decides. By length, `Trainer` draws it from the global state,
    which a training that goes on amid an epoch no longer has.
    """

    def __init__(self, order: torch.Generator):
        self.order = order

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        seed = args.seed if args.data_seed is None else args.data_seed
        # one number of both, so that the second epoch of one seed is not the first of the next
        mixed = np.random.SeedSequence([seed, int(state.epoch or 0)]).generate_state(1, np.uint64)
        self.order.manual_seed(int(mixed[0]))


class VTFusionTrainer(Trainer):
    """
    [`Trainer`] for VTFusion models; takes [`VTFusionTrainingArguments`].

    The encoders learn at `learning_rate`, all that is new (fusion layers, head) at `fusion_learning_rate`. Checkpoints
    are sealed, see [`CheckpointCallback`].
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        is_fsdp2 = getattr(plugin, "fsdp_version", 1) == 2
        if plugin is not None and is_fsdp2 and plugin.transformer_cls_names_to_wrap is None:
            plugin.transformer_cls_names_to_wrap = sharded_classes(self.model)
        if isinstance(self.data_collator, FusionCollator):
            self.data_collator.always_images = self.is_fsdp_enabled or self.is_deepspeed_enabled
        self._checkpoints = CheckpointCallback()
        self._order = torch.Generator()
        self.add_callback(self._checkpoints)
        self.add_callback(_OrderCallback(self._order))

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """
        [`Trainer.train`].

        Raises:
            `OSError`: naming the checkpoint that could not be written.
            `SystemExit`: with 143 (128 + SIGTERM), after a SIGTERM and the checkpoint that follows it.
        """
        # Trainer would remove the last checkpoint before the new one is whole.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        self._checkpoints.limit = limit
        try:
            with self._checkpoints.listening(self.args):
                output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except (OSError, RuntimeError, SafetensorError) as error:
            folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
            if not folder.is_dir() or find_damage(folder) is None:
                raise
            free = shutil.disk_usage(folder).free
            raise OSError(
                f"{folder} cannot be written: {error} ({free / 2**20:,.0f} MiB are free). Free some space, and go on "
                "with --resume_from_checkpoint True from the last whole checkpoint."
            ) from error
        finally:
            self.args.save_total_limit = limit
        if self._checkpoints.terminated:
            raise SystemExit(128 + signal.SIGTERM)
        return output

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is not None or self.args.fusion_learning_rate is None:
            return super().create_optimizer() if model is None else super().create_optimizer(model)
        model = self.model if model is None else model
        optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
        groups = parameter_groups(
            model, self.args.learning_rate, self.args.fusion_learning_rate, self.args.weight_decay
        )
        self.optimizer = optimizer_class(groups, **kwargs)
        return self.optimizer

    @contextmanager
    def whole_model(self) -> Iterator[Any]:
        """
        The model for evaluation, with all of its weights in each process, also where FSDP2 shares them: for tests that
        call it otherwise than through its forward pass, or more often in one process than in another.
        """
        model = self.model.eval()
        shared: list[Any] = []
        if self.is_fsdp_enabled:
            from torch.distributed.fsdp import FSDPModule

            shared = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for module in shared:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield model
        finally:
            for module in shared:
                module.set_reshard_after_forward(
                    self.accelerator.state.fsdp_plugin.reshard_after_forward, recurse=False
                )
                module.reshard()

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> Any:
        """
        Uploads the model with its code, the processor and the card in `output_dir`, and nothing else of it: neither
        predictions, which hold the data's texts, nor arguments and states, which hold paths.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`): the message.
            blocking (`bool`, *optional*, defaults to `True`): whether to return only when it is done.
            token (`str`, *optional*, defaults to `hub_token`): who uploads.
            revision (`str`, *optional*, defaults to `hub_revision`): the branch.
            private (`bool`, *optional*, defaults to `hub_private_repo`): whether a new repository is private.

        Returns:
            What [`upload_model`] returns in the main process, else `None`.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        folder = tempfile.TemporaryDirectory()
        self.save_model(folder.name, _internal_call=True)
        if not self.is_world_process_zero():
            return None
        return upload_model(
            folder,
            Path(self.args.output_dir, "README.md"),
            self.hub_model_id,
            commit_message,
            token or self.args.hub_token,
            revision or self.args.hub_revision,
            blocking,
        )

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler | None:
        sampler = super()._get_train_sampler(*args, **kwargs)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.generator = self._order
            # of all processes together, so that their number does not change the order
            sampler.batch_size *= self.args.world_size
        return sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler | None:
        # Grouping by length would shuffle the windows, and words could not be put back into their texts.
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None
