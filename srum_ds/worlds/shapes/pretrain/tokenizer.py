"""A byte-level BPE in Qwen2's form whose merges make every word of the world one token."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel

from srum_ds.models.bagel.tokenizer import BagelTokenizer
from srum_ds.worlds.shapes.vocabulary import CELLS, DIRECTION_OF, NUMBERS, WORDS

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
SPACE = "Ġ"
VOCAB_MULTIPLE = 8
INITIAL = ("a", "does", "is", "where", "which", "yes", "no", *NUMBERS, *DIRECTION_OF.values(), *CELLS)
"""Words that a text can begin with: they need a token without the leading space too."""


def build_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token ids and merges: every word joined letter by letter, inside a text first, then at its start."""
    tokens = sorted(ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for word in [SPACE + w for w in WORDS if w != "?"] + list(INITIAL):
        joined = word[0]
        for letter in word[1:]:
            if (joined, letter) not in merges:
                merges.append((joined, letter))
            joined += letter
            if joined not in tokens:
                tokens.append(joined)
    return {token: index for index, token in enumerate(tokens)}, merges


def write_tokenizer(folder: Path) -> int:
    """Writes vocab.json, merges.txt and tokenizer_config.json; returns the vocabulary's size.

    Raises ValueError if a word would not be one token.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = build_vocabulary()
    first_special = len(vocabulary)
    size = -(-(first_special + len(SPECIAL)) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    added = {
        str(first_special + i): {
            "content": name,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for i, name in enumerate(SPECIAL)
    }
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "errors": "replace",
        "model_max_length": 32768,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer = BagelTokenizer(folder, size)
    for text in [*INITIAL, "?", *(" " + word for word in WORDS if word != "?")]:
        if len(tokenizer.encode(text)) != 1:
            raise ValueError(f"{text!r} is {tokenizer.encode(text)}, expected one token")
    return size
