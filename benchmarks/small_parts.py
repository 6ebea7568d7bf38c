#!/usr/bin/env python
"""
Small models with random weights, for training from nothing on easy-VQA: a Llama of four layers (`text`) and a BERT of two
(`encoder`), whose tokenizer knows the words of the training file, and a ResNet for 64-pixel images (`vision`).

python benchmarks/small_parts.py --train_file outputs/easy-vqa/train.jsonl --output_dir outputs/easy-vqa/parts
"""

from dataclasses import dataclass, field
from pathlib import Path

from json_lines import read_json_lines
from transformers import HfArgumentParser


@dataclass
class SmallPartsArguments:
    train_file: str = field(metadata={"help": "JSON lines with `question` and `answer`."})
    output_dir: str = field(
        default="outputs/easy-vqa/parts", metadata={"help": "Where `text`, `encoder` and `vision` go."}
    )
    seed: int = field(default=0, metadata={"help": "Of the weights."})


def main(args: SmallPartsArguments) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import (
        BertConfig,
        BertModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        ResNetConfig,
        ResNetModel,
        ViTImageProcessor,
        set_seed,
    )

    set_seed(args.seed)
    output, special = Path(args.output_dir), ["<pad>", "<unk>", "<s>", "</s>"]
    splitter = pre_tokenizers.Whitespace()
    texts = {text for row in read_json_lines(args.train_file) for text in (row["question"], row["answer"])}
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text.lower())})
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), splitter
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    for part in ("text", "encoder"):
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(output / part)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(output / "text")
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, pad_token_id=0, **sizes)
    cnn = ResNetConfig(embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic")
    ResNetModel(cnn).save_pretrained(output / "vision")
    # after the others, whose random numbers stay what they were
    BertModel(bert, add_pooling_layer=False).save_pretrained(output / "encoder")
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(output / "vision")
    print(f"Saved text, encoder ({len(vocabulary)} words) and vision in {output}")


if __name__ == "__main__":
    main(*HfArgumentParser(SmallPartsArguments).parse_args_into_dataclasses())
