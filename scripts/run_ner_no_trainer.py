#!/usr/bin/env python
"""
`run_ner.py` as a plain loop on Accelerate, for those who want to change what happens in a step: the same data, windows,
cached features and tests, and the files that `run_ner.py` writes.

python scripts/run_ner_no_trainer.py \
    --text_model google-bert/bert-base-cased --vision_model microsoft/resnet-50 \
    --train_file train.jsonl --validation_file valid.jsonl --test_file test.jsonl \
    --learning_rate 5e-5 --fusion_learning_rate 5e-4 --num_train_epochs 5 \
    --output_dir outputs/ner

`accelerate launch scripts/run_ner_no_trainer.py …` runs it on several devices or in mixed precision, as `accelerate
config` says. The weights of the epoch with the best validation F1 are tested and saved. What this page leaves out (going
on after a crash, early stopping, the Hub), `run_ner.py` has.
"""

from dataclasses import dataclass, field
from typing import Any

from vtfusion.training.arguments import (
    ModelArguments,
    RunArguments,
    ScriptArgumentParser,
    TokenDataArguments,
    VTFusionTrainingArguments,
)


@dataclass
class LoopArguments:
    output_dir: str = field(default="outputs/run", metadata={"help": "Where everything is written."})
    learning_rate: float = field(default=5e-5, metadata={"help": "Of the encoders."})
    fusion_learning_rate: float = field(default=5e-4, metadata={"help": "Of the fusion part and the head."})
    weight_decay: float = field(default=0.0, metadata={"help": "Of all matrices."})
    warmup_ratio: float = field(default=0.1, metadata={"help": "Part of the steps in which the rates rise."})
    num_train_epochs: int = field(default=3, metadata={"help": "How often each text is seen."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Windows in a step of a device."})
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Windows in a batch that is tested."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches in a step."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Longer gradients are cut to this length."})
    seed: int = field(default=42, metadata={"help": "Of new weights, dropout and the order of the batches."})


def main(model_args: ModelArguments, data_args: TokenDataArguments, args: LoopArguments) -> dict[str, Any]:
    import math
    import time

    import torch
    from accelerate import Accelerator
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import get_linear_schedule_with_warmup
    from transformers.utils import logging

    from vtfusion import VTFusionForTokenClassification
    from vtfusion.training.collator import FusionCollator
    from vtfusion.training.files import replaced_whole
    from vtfusion.training.fine_tuning import (
        named_writing,
        remove_results,
        start_run,
        test_conditions,
        write_card,
        write_results,
    )
    from vtfusion.training.images import prepare_images
    from vtfusion.training.loading import load_model
    from vtfusion.training.lora import merge_lora
    from vtfusion.training.token_classification import WordEvaluator, encode_windows, load_splits
    from vtfusion.training.trainer import parameter_groups
    from vtfusion.training.windows import by_length

    # What the shared functions ask: device, processes, seed and folder. It sets up the processes, so it comes first.
    training_args = VTFusionTrainingArguments(output_dir=args.output_dir, seed=args.seed)
    start_run(training_args)
    with training_args.main_process_first(desc="loading the data"):
        dataset = load_splits(data_args, model_args.model_name_or_path, model_args.model_revision)
    if "train" not in dataset:
        raise ValueError("There is no train split: give one, as with --train_file. `run_ner.py` tests alone.")
    label_names = next(iter(dataset.values())).features["ner_tags"].feature.names
    model, processor = load_model(VTFusionForTokenClassification, model_args, label_names)
    processor.decoding = data_args.decoding or processor.decoding
    image_keys, store, cache = prepare_images(dataset, model, processor, data_args, training_args)
    windows = by_length(
        {
            split: encode_windows(rows, processor, image_keys[split], data_args.num_proc)
            for split, rows in dataset.items()
        }
    )
    evaluators = {
        split: WordEvaluator(rows, windows[split], processor) for split, rows in dataset.items() if split != "train"
    }
    collator = FusionCollator(processor, store, cache)

    accelerator = Accelerator(gradient_accumulation_steps=args.gradient_accumulation_steps)
    generator = torch.Generator().manual_seed(args.seed)
    batches = DataLoader(
        windows["train"],  # type: ignore[arg-type]
        batch_size=args.per_device_train_batch_size,
        shuffle=True,
        generator=generator,
        collate_fn=collator,
    )
    optimizer = torch.optim.AdamW(
        parameter_groups(model, args.learning_rate, args.fusion_learning_rate, args.weight_decay)
    )
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    num_steps = math.ceil(len(batches) / args.gradient_accumulation_steps) * args.num_train_epochs
    # every process steps the schedule
    factor = accelerator.num_processes
    schedule = accelerator.prepare(
        get_linear_schedule_with_warmup(optimizer, round(args.warmup_ratio * num_steps) * factor, num_steps * factor)
    )

    @torch.no_grad()
    def predict(rows: Dataset) -> tuple[Any, Any]:
        model.eval()
        loader = accelerator.prepare(
            DataLoader(rows, batch_size=args.per_device_eval_batch_size, collate_fn=collator)  # type: ignore[arg-type]
        )
        logits, gates = [], []
        width = max(rows["length"])
        for batch in loader:
            batch.pop("labels")
            outputs = model(**batch)
            missing = width - outputs.logits.shape[1]
            padded = (
                torch.nn.functional.pad(outputs.logits.float(), (0, 0, 0, missing)),
                torch.nn.functional.pad(outputs.fusion_gate.float(), (0, missing)),
            )
            both = accelerator.gather_for_metrics(padded)
            logits.append(both[0].cpu())
            gates.append(both[1].cpu())
        return torch.cat(logits).numpy(), torch.cat(gates).numpy()

    best, weights = -1.0, None
    started = time.perf_counter()
    progress = logging.tqdm(total=num_steps, disable=not accelerator.is_main_process)
    for epoch in range(args.num_train_epochs):
        model.train()
        for batch in batches:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch).loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                    progress.update()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        if "validation" in windows:
            evaluator = evaluators["validation"]
            score = evaluator.score(evaluator.answers(predict(windows["validation"])))["f1"]
            accelerator.print(f"epoch {epoch + 1}: validation F1 {100 * score:.2f}")
            if score > best:
                best = score
                weights = {name: value.cpu().clone() for name, value in model.state_dict().items()}
    progress.close()
    results: dict[str, Any] = {"train_seconds": round(time.perf_counter() - started, 1)}
    if weights is not None:
        model.load_state_dict(weights)
    trained = accelerator.unwrap_model(model)
    merge_lora(trained)
    if accelerator.is_main_process:
        remove_results(training_args)
        with named_writing(args.output_dir), replaced_whole(args.output_dir, "config.json") as folder:
            trained.save_pretrained(folder)
            processor.save_pretrained(folder)
    run_args = RunArguments("token-classification", model_args, data_args, training_args)
    results |= test_conditions(predict, windows, evaluators, image_keys, run_args)
    write_card(trained.config, results, evaluators, run_args)
    write_results(results, training_args)
    return results


if __name__ == "__main__":
    main(*ScriptArgumentParser((ModelArguments, TokenDataArguments, LoopArguments)).parse_args_into_dataclasses())
