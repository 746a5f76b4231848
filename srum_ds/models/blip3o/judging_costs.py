"""What judging with a Qwen2.5-VL costs: FLOPs and bytes of its passes, by its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from srum_ds.models.costs import Device
from srum_ds.models.qwen_vl.chat import Chat
from srum_ds.models.qwen_vl.pictures import PictureReader
from srum_ds.models.vlm_dit.products import VlmShape

CHARACTERS_A_TOKEN = 4
"""Where no tokenizer is at hand: English text in Qwen2's vocabulary."""

BEFORE_IMAGE, BEHIND_IMAGE = 15, 6
"""Tokens of the released template before an image, and behind it beside the question."""


class JudgingCosts:
    """The part of ``ModelCosts`` that is about judging; see there. Without ``chat`` texts are taken by their length."""

    def __init__(self, config: Any, pictures: PictureReader, chat: Chat | None) -> None:
        self.vlm = VlmShape(config)
        self.pictures = pictures
        self.chat = chat

    def text_tokens(self, text: str) -> int:
        """Tokens of a text."""
        if self.chat is None:
            return -(-len(text) // CHARACTERS_A_TOKEN)
        return len(self.chat.encode(text))

    def patches(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Patches (rows, columns) that the vision tower reads of an image of this size."""
        processor = self.pictures.processor
        factor = processor.patch_size * processor.merge_size
        size = processor.size
        height, width = smart_resize(*size_hw, factor, size["shortest_edge"], size["longest_edge"])
        return height // processor.patch_size, width // processor.patch_size

    def _placeholders(self, size_hw: tuple[int, int]) -> int:
        rows, columns = self.patches(size_hw)
        return rows * columns // self.pictures.merge**2

    def _asked(self, question: str) -> tuple[int, int]:
        """Tokens before an image's placeholders and behind them."""
        if self.chat is None:
            return BEFORE_IMAGE, BEHIND_IMAGE + self.text_tokens(question)
        opening = self.chat.opening(question)
        return len(opening.before), len(opening.after)

    def answer_flops(self, size_hw: tuple[int, int], questions: Sequence[str]) -> float:
        """See ``ModelCosts``."""
        return self._judged(size_hw, [self._asked(question) for question in questions], [1] * len(questions))

    def text_flops(self, size_hw: tuple[int, int], questions: Sequence[str], texts: Sequence[str]) -> float:
        """See ``ModelCosts``."""
        written = [self.text_tokens(text) for text in texts]
        asked = [self._asked(question) for question in questions]
        longer = [(before, behind + length) for (before, behind), length in zip(asked, written, strict=True)]
        return self._judged(size_hw, longer, [length + 1 for length in written])

    def write_flops(self, size_hw: tuple[int, int], question: str, new_tokens: int) -> float:
        """See ``ModelCosts``."""
        before, behind = self._asked(question)
        steps = max(0, new_tokens - 1)
        columns = before + self._placeholders(size_hw) + behind + (steps + 1) / 2
        first = self._judged(size_hw, [(before, behind)], [1])
        return first + steps * (self.vlm.read(1, columns) + self.vlm.head)

    def _judged(self, size_hw: tuple[int, int], asked: Sequence[tuple[int, int]], counts: Sequence[int]) -> float:
        """One image and what follows it, padded to the longest; of text n ``counts[n]`` tokens have their logits."""
        if not asked:
            return 0.0
        seen = asked[0][0] + self._placeholders(size_hw)
        longest = max(behind for _, behind in asked)
        read = self.vlm.read(seen, seen) + len(asked) * self.vlm.read(longest, seen + longest)
        return self.vlm.tower(*self.patches(size_hw)) + read + sum(counts) * self.vlm.head

    def cache_bytes(self, tokens: int, device: Device) -> int:
        """See ``ModelCosts``."""
        return 2 * self.vlm.layers * self.vlm.keys * tokens * device.element

    def judge_bytes(
        self, images: int, size_hw: tuple[int, int], text_tokens: int, written: int, device: Device
    ) -> Mapping[str, int]:
        """See ``ModelCosts``."""
        text, vision = self.vlm.config.text_config, self.vlm.config.vision_config
        patch_rows, patch_columns = self.patches(size_hw)
        tower = images * patch_rows * patch_columns * (4 * vision.hidden_size + 2 * vision.intermediate_size)
        rows = images * (BEFORE_IMAGE + self._placeholders(size_hw) + text_tokens)
        layer = rows * (4 * text.hidden_size + 2 * text.intermediate_size)
        cache = self.cache_bytes(rows + images * written, device)
        held = max(tower, layer) * device.element + images * text.vocab_size * 8
        return {"KV cache": cache, "activations": held}
