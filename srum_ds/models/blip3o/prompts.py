"""Prompts as token ids: the released code's chat form around a caption, and the token that the queries follow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.models.blip3o.config import IMAGE_START, Blip3oConfig
from srum_ds.models.library.spelled_tokens import SpelledTokens
from srum_ds.types import Prompt

BEFORE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nPlease generate image based on the following caption: "
)
BEHIND = "<|im_end|>\n<|im_start|>assistant\n"
"""Around the caption: the released code's ``conv_templates['qwen']`` and the request of its inference script."""

Ids = tuple[int, ...]


class PromptWriter:
    """Writes the ids that stand before the queries. UserError where the tokenizer has no token to begin a picture."""

    def __init__(self, tokenizer: Any, config: Blip3oConfig) -> None:
        self.tokenizer = tokenizer
        self.longest = int(config.vlm.text_config.max_position_embeddings) - config.n_query
        self.start = _image_start(tokenizer, config)
        self.spelled = SpelledTokens(tokenizer)
        # The same prompts come again, step after step.
        self.ids = lru_cache(maxsize=65536)(self._ids)

    def _ids(self, text: str) -> Ids:
        return (*self.spelled.encode(text, _around, self._plain, self._plain), self.start)

    def _plain(self, text: str) -> Ids:
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    @property
    def empty(self) -> Ids:
        """What the released pipeline reads for the empty text: no chat form, the token before the queries alone."""
        return (self.start,)

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[Ids]:
        """The ids of each prompt. UserError, naming the prompt, for one that is empty or too long."""
        found = []
        for prompt in prompts:
            if not prompt.text.strip():
                raise UserError(f"prompt {prompt.id!r} is empty; give it a text.")
            ids = self.ids(prompt.text)
            if len(ids) > self.longest:
                raise UserError(
                    f"prompt {prompt.id!r} is too long: {len(ids)} tokens with what stands around it, of which "
                    f"{self.longest} fit before the queries (max_position_embeddings of config.json). Shorten it."
                )
            found.append(ids)
        return found


def _around(text: str) -> str:
    return f"{BEFORE}{text}{BEHIND}"


def _image_start(tokenizer: Any, config: Blip3oConfig) -> int:
    path, rows = config.folder / "config.json", int(config.vlm.text_config.vocab_size)
    start = config.image_start
    if start is None:
        start = tokenizer.get_vocab().get(IMAGE_START)
    if start is None:
        raise UserError(
            f"the tokenizer in {config.folder} does not know {IMAGE_START}, the token before the queries: copy the "
            f"tokenizer's files from the release, or write image_start_token_id into {path} (151665 in the released "
            "code)."
        )
    if start >= rows:
        raise UserError(
            f"{path}: vocab_size is {rows}, but the token before the queries is {start}; the tokenizer and the weights "
            "do not belong together. Copy the tokenizer's files that came with these weights."
        )
    return int(start)
