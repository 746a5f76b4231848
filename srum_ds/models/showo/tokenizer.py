"""Show-o's ids: those of its language model's tokenizer, ten special tokens, the codes and the mask."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers import AutoTokenizer

from srum_ds.common.errors import UserError
from srum_ds.models.library.spelled_tokens import SpelledTokens
from srum_ds.models.showo.config import ShowoConfig

PAD = "[PAD]"
ADDED = (
    "<|soi|>",
    "<|eoi|>",
    "<|sov|>",
    "<|eov|>",
    "<|t2i|>",
    "<|mmu|>",
    "<|t2v|>",
    "<|v2v|>",
    "<|lvg|>",
)
"""The special tokens behind padding, in the order in which the release adds them."""


@dataclass(frozen=True)
class Vocabulary:
    """Ids that stand for no text. bos, eos: around a text (one and the same in the release). codes: their number."""

    pad: int
    bos: int
    eos: int
    t2i: int
    mmu: int
    soi: int
    eoi: int
    first_code: int
    codes: int
    mask: int


class ShowoTokenizer:
    """Text to ids and back."""

    def __init__(self, config: ShowoConfig) -> None:
        folder = config.llm_folder
        try:
            self._inner: Any = AutoTokenizer.from_pretrained(str(folder), padding_side="left", local_files_only=True)
        except Exception as error:
            # The library raises whatever its parsers do.
            raise UserError(
                f"the tokenizer's files in {folder} cannot be read ({error}); copy them from the release."
            ) from error
        if self._inner.bos_token_id is None or self._inner.eos_token_id is None:
            raise UserError(f"the tokenizer in {folder} has no bos or no eos token: copy the release's own there.")
        self._inner.add_special_tokens({"pad_token": PAD})
        self._inner.add_tokens(list(ADDED))
        self._spelled = SpelledTokens(self._inner)
        known = self._inner.get_vocab()
        self.special: dict[str, int] = {name: known[name] for name in ADDED}
        ids = self.special
        first = config.first_code
        self.vocabulary = Vocabulary(
            pad=int(self._inner.pad_token_id),
            bos=int(self._inner.bos_token_id),
            eos=int(self._inner.eos_token_id),
            t2i=ids["<|t2i|>"],
            mmu=ids["<|mmu|>"],
            soi=ids["<|soi|>"],
            eoi=ids["<|eoi|>"],
            first_code=first,
            codes=config.facts.codebook_size,
            mask=config.mask_id,
        )
        largest = max(known.values())
        if largest >= first:
            raise UserError(
                f"the tokenizer in {folder} with Show-o's special tokens reaches id {largest}, but config.json says "
                f"llm_vocab_size {config.facts.llm_vocab_size}, so that codes begin at {first}: the two do not belong "
                "together. Copy the tokenizer's files that the model was trained with."
            )
        # The same questions come again for thousands of pictures.
        self._ids = lru_cache(maxsize=65536)(self._encode)

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone."""
        return list(self._ids(text))

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(number for piece in self._spelled.pieces(text) for number in self._inner(piece)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        """Text of ids; special tokens are left out."""
        # Codes and the mask are no tokens of the text tokenizer.
        known = [token for token in ids if token < self.vocabulary.first_code]
        return str(self._inner.decode(known, skip_special_tokens=True))
