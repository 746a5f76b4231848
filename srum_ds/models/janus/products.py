"""The products of a Janus model's passes, for ``costs``: FLOPs of layers, ends and the vision tower by formula.

2 d k + 2 d q + 3 d f products a token and layer, and 4 q rows keys for attention: d the width, q and k the widths of
all query and key heads, f that of the MLP.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from srum_ds.models.janus.config import JanusSettings


@dataclass(frozen=True)
class Shape:
    """The products of a Janus model, from its configuration."""

    settings: JanusSettings

    @property
    def _text(self) -> Any:
        return self.settings.library.text_config

    @cached_property
    def queries(self) -> int:
        """Width q of all query heads together."""
        return int(self._text.num_attention_heads * self._text.head_dim)

    @cached_property
    def keys(self) -> int:
        """Width k of all key heads together, and of all value heads."""
        return int(self._text.num_key_value_heads * self._text.head_dim)

    @property
    def layers(self) -> int:
        return int(self._text.num_hidden_layers)

    @property
    def width(self) -> int:
        return int(self._text.hidden_size)

    @property
    def inner(self) -> int:
        """Width f of the MLP."""
        return int(self._text.intermediate_size)

    @property
    def vocabulary(self) -> int:
        return int(self._text.vocab_size)

    @cached_property
    def input_products(self) -> int:
        """Products a token of a layer's queries, keys and values."""
        return self.width * (self.queries + 2 * self.keys)

    @cached_property
    def layer_products(self) -> int:
        """Products a token of a layer."""
        return self.input_products + self.queries * self.width + 3 * self.width * self.inner

    def attention(self, rows: float, keys: float) -> float:
        """FLOPs of one layer's attention of ``rows`` queries to ``keys`` keys each."""
        return 4.0 * self.queries * rows * keys

    def blocks(self, tokens: float, keys: float) -> float:
        """FLOPs of all layers for ``tokens`` tokens, each of which is compared with ``keys`` keys."""
        return self.layers * (2.0 * self.layer_products * tokens + self.attention(tokens, keys))

    def text_head(self, rows: int) -> float:
        """FLOPs of the vocabulary's logits."""
        return 2.0 * self.width * self.vocabulary * rows

    @cached_property
    def code_head(self) -> tuple[float, float]:
        """FLOPs a code of the generation head's two layers; the second makes the logits of all codes."""
        vq = self.settings.library.vq_config
        return 2.0 * vq.image_token_embed_dim * vq.projection_dim, 2.0 * vq.projection_dim * vq.num_embeddings

    @cached_property
    def code_input(self) -> float:
        """FLOPs of a code on its way into the language model."""
        vq = self.settings.library.vq_config
        flops: float = 2.0 * vq.projection_dim * (vq.embed_dim + (vq.num_hidden_layers - 1) * vq.projection_dim)
        return flops

    def tower(self) -> float:
        """FLOPs of the vision tower and its aligner for one picture."""
        vision, patches = self.settings.library.vision_config, self.settings.tokens
        h, out = vision.hidden_size, vision.projection_dim
        layer = 2.0 * (4 * h * h + 2 * h * int(h * vision.mlp_ratio)) * patches + 4.0 * h * patches**2
        ends = vision.num_channels * vision.patch_size**2 * h + h * out + (vision.depth - 1) * out**2
        return float(vision.num_hidden_layers * layer + 2.0 * ends * patches)
