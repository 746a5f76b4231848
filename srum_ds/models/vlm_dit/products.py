"""FLOPs of Qwen-Image's layers and of its Qwen2.5-VL's, from their configurations: products and attention alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

DROPPED = 34
"""Tokens of the template that the text encoder reads and the transformer is not given."""


@dataclass(frozen=True)
class DitShape:
    """The transformer: ``config`` is the library's. A product of weight [out, in] costs 2 out in FLOPs a row."""

    config: Any

    @cached_property
    def width(self) -> int:
        return int(self.config.num_attention_heads * self.config.attention_head_dim)

    @property
    def layers(self) -> int:
        return int(self.config.num_layers)

    @cached_property
    def block(self) -> float:
        """One token's products in a block, of either stream: q, k, v, the output and the MLP."""
        return 2.0 * 12 * self.width**2

    @cached_property
    def modulation(self) -> float:
        """What a block makes of the time, for both streams of one image."""
        return 2.0 * 12 * self.width**2

    @cached_property
    def time(self) -> tuple[float, float, float]:
        """Of one image: both layers of the time's embedding, and the last modulation."""
        return 2.0 * 256 * self.width, 2.0 * self.width**2, 2.0 * 2 * self.width**2

    @cached_property
    def entries(self) -> tuple[float, float, float]:
        """A token's way in and out: an image's in, a text's in, an image's out."""
        channels = self.config.in_channels
        out = self.config.patch_size**2 * (self.config.out_channels or channels)
        return 2.0 * channels * self.width, 2.0 * self.config.joint_attention_dim * self.width, 2.0 * out * self.width

    def attention(self, tokens: int, text: int) -> float:
        """One block's attention among an image's tokens and its text's."""
        return 4.0 * self.width * (tokens + text) ** 2

    def blocks(self, tokens: int, text: int) -> float:
        """All blocks, for one image."""
        return self.layers * (self.block * (tokens + text) + self.modulation + self.attention(tokens, text))

    def velocity(self, tokens: int, text: int) -> float:
        """A pass over one image of ``tokens`` with ``text`` embeddings."""
        into, told, out = self.entries
        return self.blocks(tokens, text) + sum(self.time) + (into + out) * tokens + told * text

    def backward(self, tokens: int, text: int, trained: bool) -> float:
        """The gradient of ``velocity``: of all weights that it reaches, or of none but an adapter's on attention.

        A product costs once for its input and once for its weight, attention twice. Of the last block's text what
        follows its keys and values is idle, and nothing goes back into the latents, the embeddings or the time.
        """
        width, (into, told, out), (first, second, last) = self.width, self.entries, self.time
        square = 2.0 * width**2
        idle = (1 + 8) * square * text
        products = self.layers * self.block * (tokens + text)
        attention = 2 * self.layers * self.attention(tokens, text)
        if trained:
            time = self.layers * self.modulation + second + last
            # The text's half of the last modulation scales what is idle, too, but it is one product.
            return 2 * (products - idle + time + out * tokens) + attention + first + into * tokens + told * text
        before = 3 * square * (tokens + text)
        return products - idle - before + out * tokens + attention


@dataclass(frozen=True)
class VlmShape:
    """The language model and the vision tower of a Qwen2.5-VL; ``config`` is the library's."""

    config: Any

    @cached_property
    def layers(self) -> int:
        return int(self.config.text_config.num_hidden_layers)

    @cached_property
    def keys(self) -> int:
        """Numbers of a token's keys in a layer."""
        text = self.config.text_config
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return int(text.num_key_value_heads * head)

    @cached_property
    def layer(self) -> float:
        """One token's products in a layer of the language model."""
        width, inner = int(self.config.text_config.hidden_size), int(self.config.text_config.intermediate_size)
        return 2.0 * width * (2 * width + 2 * self.keys + 3 * inner)

    @cached_property
    def head(self) -> float:
        """One token's logits."""
        text = self.config.text_config
        return 2.0 * int(text.hidden_size) * int(text.vocab_size)

    def read(self, rows: int, columns: float) -> float:
        """``rows`` tokens that see ``columns`` of them, through all layers."""
        attention = 4.0 * int(self.config.text_config.hidden_size) * rows * columns
        return self.layers * (self.layer * rows + attention)

    def tower(self, rows: int, columns: int) -> float:
        """An image of so many patches through the vision tower."""
        vision, patches = self.config.vision_config, rows * columns
        width, merge = vision.hidden_size, vision.spatial_merge_size
        layer = 2.0 * width * (4 * width + 3 * vision.intermediate_size)
        patch = 2.0 * width * vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        merged = width * merge**2
        merger = 2.0 * merged * (merged + vision.out_hidden_size) * patches / merge**2
        whole = len(set(vision.fullatt_block_indexes) & set(range(vision.depth)))
        windowed = sum(count**2 for count in self._windows(rows, columns))
        attention = 4.0 * width * (whole * patches**2 + (vision.depth - whole) * windowed)
        return float(patches * (patch + vision.depth * layer) + merger + attention)

    def _windows(self, rows: int, columns: int) -> list[int]:
        """Patches of each window, whose side is ``window_size`` pixels."""
        vision = self.config.vision_config
        side = vision.window_size // vision.spatial_merge_size // vision.patch_size * vision.spatial_merge_size
        heights = [min(side, rows - start * side) for start in range(ceil(rows / side))]
        widths = [min(side, columns - start * side) for start in range(ceil(columns / side))]
        return [height * width for height in heights for width in widths]
