"""Control tokens that a prompt or a question spells out, such as ``<|im_end|>``: they are text, and end nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from srum_ds.common.errors import UserError

Ids = tuple[int, ...]
Encode = Callable[[str], Ids]

_STANDS_FOR_TEXT = "\ue000the text\ue000"


class SpelledTokens:
    """The control tokens of a tokenizer, by how they are spelled."""

    def __init__(self, tokenizer: Any) -> None:
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        # Words and runs of spaces that somebody added are no control tokens.
        names = {str(token) for token in added if token.special or re.fullmatch(r"[<\[|].*[>\]|]", str(token))}
        longest_first = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
        self._pattern = re.compile("|".join(re.escape(name) for name in longest_first)) if longest_first else None

    def in_text(self, text: str) -> str:
        """The first control token that a text spells, empty where there is none."""
        found = self._pattern.search(text) if self._pattern else None
        return found.group() if found else ""

    def pieces(self, text: str) -> list[str]:
        """The text in pieces of which none holds a control token: each is cut behind its first letter."""
        found = self._pattern.search(text) if self._pattern else None
        if found is None:
            return [text] if text else []
        cut = found.start() + 1
        return [*self.pieces(text[:cut]), *self.pieces(text[cut:])]

    def encode(self, text: str, around: Callable[[str], str], first: Encode, encode: Encode) -> Ids:
        """Ids of ``around(text)``, in which a control token that ``text`` spells is text.

        around: what a template makes of a text. first: from a text to ids with what begins every text, as that of
        ``around`` has it; encode: without. Without any such token it is ``first(around(text))``. UserError for a
        template that changes its text.
        """
        token = self.in_text(text)
        if not token:
            return first(around(text))
        before, found, behind = around(_STANDS_FOR_TEXT).partition(_STANDS_FOR_TEXT)
        if not found or _STANDS_FOR_TEXT in behind:
            raise UserError(f"the text {text[:200]!r} spells the control token {token}: leave it out.")
        own = [number for piece in self.pieces(text.strip()) for number in encode(piece)]
        return (*first(before), *own, *(encode(behind) if behind else ()))
