"""BAGEL's tokenizer: Qwen2's byte-level BPE with the two special tokens for images."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2Tokenizer

from srum_ds.common.errors import UserError
from srum_ds.models.bagel.config import SpecialTokens


class BagelTokenizer:
    """Text to ids and back, without templates or role strings."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        for name in ("vocab.json", "merges.txt"):
            if not (Path(folder) / name).exists() and not (Path(folder) / "tokenizer.json").exists():
                raise UserError(f"{folder}/{name} is missing: copy the tokenizer's files from the release.")
        try:
            self._inner = Qwen2Tokenizer.from_pretrained(str(folder), local_files_only=True)
            known = self._inner.get_vocab()
        except Exception as error:
            # The library raises whatever its parsers do.
            raise UserError(
                f"the tokenizer's files in {folder} cannot be read ({error}); copy them from the release."
            ) from error
        wanted = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
        missing = [name for name in wanted if name not in known]
        if missing:
            raise UserError(f"the tokenizer in {folder} lacks {', '.join(missing)}: copy BAGEL's own there.")
        # The same questions come again for thousands of images.
        self._ids = lru_cache(maxsize=65536)(self._encode)
        self.special = SpecialTokens(*(known[name] for name in wanted))
        largest = max(known.values())
        if largest >= vocab_size:
            raise UserError(
                f"the tokenizer in {folder} knows id {largest}, but llm_config.json says vocab_size "
                f"{vocab_size}; the tokenizer and the weights do not belong together. Copy the tokenizer's files "
                "that came with these weights."
            )

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone."""
        return list(self._ids(text))

    def _encode(self, text: str) -> tuple[int, ...]:
        # A control token that is spelled out in a text is text: it must not end a prompt or a question.
        return tuple(self._inner.encode(text, add_special_tokens=False, split_special_tokens=True))

    def decode(self, ids: list[int]) -> str:
        """Text of ids; special tokens are left out."""
        return str(self._inner.decode(ids, skip_special_tokens=True))

    def segment(self, text: str) -> Tensor:
        """[bos] ids [eos] as int64."""
        return self.wrap(self.encode(text))

    def wrap(self, ids: list[int]) -> Tensor:
        """[bos] ids [eos] as int64."""
        return torch.tensor([self.special.bos, *ids, self.special.eos])
