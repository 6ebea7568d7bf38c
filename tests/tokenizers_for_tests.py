"""Tiny fast tokenizers of every kind, made on the spot: nothing to download, and the real classes where they matter."""

import json
from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizerFast,
    DebertaV2TokenizerFast,
    DistilBertTokenizerFast,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "John Smith lives in New York and works for Acme Corporation",
    "lower newer older upper string word words wording reworded",
    "it isn't (really) Paris, is it? 10,000 reasons: yes!",
]
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]


def _trained(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer


def _word_pieces() -> dict[str, int]:
    words = ["the", "fox", "john", "smith", "paris", "lower", "new", "york", *LETTERS, *"0123456789.,!?():'"]
    pieces = [f"##{letter}" for letter in LETTERS] + [f"##{digit}" for digit in "0123456789"] + ["##er", "##ing"]
    return {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *pieces])}


def bert() -> PreTrainedTokenizerBase:
    """WordPiece, `[CLS] … [SEP]`; what is not Latin is `[UNK]`, and control characters vanish."""
    return BertTokenizerFast(vocab=_word_pieces(), do_lower_case=True)


def distilbert() -> PreTrainedTokenizerBase:
    """As BERT, without token type ids."""
    return DistilBertTokenizerFast(vocab=_word_pieces(), do_lower_case=True)


def _byte_level(add_prefix_space: bool, trim_offsets: bool, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    return _trained(tokenizer, trainer)


def roberta() -> PreTrainedTokenizerBase:
    """Byte-level BPE with trimmed offsets, `<s> … </s>`, and two separators between a pair."""
    tokenizer = _byte_level(False, True, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    special = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", mask_token="<mask>", **special
    )


def modernbert() -> PreTrainedTokenizerBase:
    """Byte-level BPE whose offsets include the space before a word, `[CLS] … [SEP]`."""
    tokenizer = _byte_level(False, False, ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="[CLS] $A [SEP]",
                pair="[CLS] $A [SEP] $B [SEP]",
                special_tokens=[("[CLS]", 0), ("[SEP]", 1)],
            ),
        ]
    )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)


def deberta_v2() -> PreTrainedTokenizerBase:
    """Unigram over ▁-marked words, with a normalizer."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="[UNK]", show_progress=False)
    vocab = json.loads(_trained(tokenizer, trainer).to_str())["model"]["vocab"]
    return DebertaV2TokenizerFast(vocab=[(token, score) for token, score in vocab])


def llama() -> PreTrainedTokenizerBase:
    """BPE over the whole text with ▁ for spaces: no pre-tokenizer, so a token may cover several words. Pads left."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False
    )
    _trained(tokenizer, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        padding_side="left",
    )


def gpt_neox() -> PreTrainedTokenizerBase:
    """Byte-level BPE without any special tokens around the text, as for RWKV and Mamba."""
    tokenizer = _byte_level(False, False, ["<|endoftext|>"])
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end, pad_token=end
    )


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "bert": bert,
    "distilbert": distilbert,
    "roberta": roberta,
    "modernbert": modernbert,
    "deberta-v2": deberta_v2,
    "llama": llama,
    "gpt-neox": gpt_neox,
}
