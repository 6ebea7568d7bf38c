#!/usr/bin/env python
"""
Gives each text of a data set the pictures of an image bank whose names are among its words, and saves the result for
`--dataset_name` of the task scripts. Only words are read, never labels.

python scripts/pair_images.py \
    --train_file conll2003/train.txt --validation_file conll2003/valid.txt --test_file conll2003/test.txt \
    --image_bank entity-image-bank --output_dir outputs/conll2003-paired

An image bank is a folder with `metadata.jsonl`, a row for each picture: `image`, `name`, and, as you like, `aliases` (a
list) and `kind`.
"""

from dataclasses import dataclass, field

from transformers import HfArgumentParser


@dataclass
class PairingArguments:
    image_bank: str = field(metadata={"help": "Folder with pictures and metadata.jsonl."})
    output_dir: str = field(metadata={"help": "Where the paired data set is saved."})
    dataset_name: str | None = field(default=None, metadata={"help": "A data set on the Hub, or a saved folder."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_file: str | None = field(default=None, metadata={"help": "CoNLL columns, .jsonl, .csv or .parquet."})
    validation_file: str | None = field(default=None, metadata={"help": "As `train_file`."})
    test_file: str | None = field(default=None, metadata={"help": "As `train_file`."})
    max_images: int = field(default=1, metadata={"help": "At most so many pictures for a text."})
    kinds: list[str] | None = field(
        default=None, metadata={"help": "Kinds of pictures to use, the most wanted first. By default all."}
    )


def main(args: PairingArguments) -> None:
    from datasets import DatasetDict

    from vtfusion.training.data import load_token_classification_dataset
    from vtfusion.training.pairing import ImageBank, pair_dataset

    dataset = load_token_classification_dataset(
        dataset_name=args.dataset_name,
        dataset_config_name=args.dataset_config_name,
        train_file=args.train_file,
        validation_file=args.validation_file,
        test_file=args.test_file,
    )
    bank = ImageBank.from_folder(args.image_bank)
    paired = DatasetDict()
    for split, rows in dataset.items():
        paired[split] = pair_dataset(rows, bank, args.max_images, args.kinds)
        count = sum(1 for ids in paired[split]["image_ids"] if ids)
        print(f"{split}: {count:,} of {len(rows):,} texts have a picture ({count / max(len(rows), 1):.1%})")
    paired.save_to_disk(args.output_dir)
    print(f"Saved to {args.output_dir}")


if __name__ == "__main__":
    main(HfArgumentParser(PairingArguments).parse_args_into_dataclasses()[0])
