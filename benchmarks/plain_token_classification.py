#!/usr/bin/env python
"""
The rival at home: `AutoModelForTokenClassification` in a plain `Trainer`, without a line of VTFusion, to set beside
`scripts/run_ner.py` and its text-only twin. Give it the same settings.

python benchmarks/plain_token_classification.py --dataset_folder outputs/conll-paired --text_model outputs/parts/minilm \
    --learning_rate 1.5e-4 --warmup_steps 0.1 --num_train_epochs 3 --per_device_train_batch_size 32 \
    --per_device_eval_batch_size 64 --train_sampling_strategy group_by_length --eval_strategy epoch \
    --save_strategy epoch --save_total_limit 1 --load_best_model_at_end --metric_for_best_model f1 \
    --report_to none --seed 0 --output_dir outputs/conll-plain

Texts longer than the encoder are cut, as everywhere where there are no windows. Prints strict entity F1, the time of
training and the peak memory, and writes them to `results.json` in `output_dir`.
"""

import json
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser, TrainingArguments


@dataclass
class PlainArguments:
    text_model: str = field(metadata={"help": "Text encoder: a folder or a Hub id."})
    dataset_folder: str = field(metadata={"help": "Saved by `save_to_disk`, with `tokens` and `ner_tags`."})


def main(args: PlainArguments, training_args: TrainingArguments) -> None:
    import numpy as np
    from datasets import load_from_disk
    from seqeval.metrics import f1_score
    from seqeval.scheme import IOB2
    from transformers import (
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        Trainer,
        set_seed,
    )

    set_seed(training_args.seed)
    data = load_from_disk(args.dataset_folder).select_columns(["tokens", "ner_tags"])
    names = data["train"].features["ner_tags"].feature.names
    tokenizer = AutoTokenizer.from_pretrained(args.text_model)
    model = AutoModelForTokenClassification.from_pretrained(
        args.text_model, id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)}
    )

    def encode(batch: dict[str, list]) -> Any:
        encoding = tokenizer(batch["tokens"], is_split_into_words=True, truncation=True)
        encoding["labels"] = [
            [
                -100 if word is None or word == previous else tags[word]
                for previous, word in zip([None, *words], words, strict=False)
            ]
            for words, tags in ((encoding.word_ids(row), tags) for row, tags in enumerate(batch["ner_tags"]))
        ]
        return encoding

    def compute_f1(prediction: Any) -> dict[str, float]:
        chosen = prediction.predictions.argmax(-1)
        keep = [np.flatnonzero(row != -100) for row in prediction.label_ids]
        true = [[names[tag] for tag in row[k]] for row, k in zip(prediction.label_ids, keep, strict=True)]
        guess = [[names[tag] for tag in row[k]] for row, k in zip(chosen, keep, strict=True)]
        return {"f1": f1_score(true, guess, mode="strict", scheme=IOB2)}

    encoded = data.map(encode, batched=True, remove_columns=["tokens", "ner_tags"], load_from_cache_file=False)
    trainer = Trainer(
        model=model,
        args=training_args,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        compute_metrics=compute_f1,
        processing_class=tokenizer,
    )
    started = time.perf_counter()
    trainer.train()
    results: dict[str, Any] = {"train_seconds": round(time.perf_counter() - started, 1)}
    for split in ("validation", "test"):
        results[split] = {"f1": trainer.evaluate(encoded[split], metric_key_prefix=split)[f"{split}_f1"]}
        print(f"{split} F1 {100 * results[split]['f1']:.2f}")
    results["peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    results["seed"] = training_args.seed
    print(f"training {results['train_seconds']} s, peak memory {results['peak_memory_mb']} MB")
    Path(training_args.output_dir, "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*HfArgumentParser((PlainArguments, TrainingArguments)).parse_args_into_dataclasses())
