"""The products of a BAGEL model's passes, for ``costs``: FLOPs of layers, ends and the vision tower by formula.

2 d k + 2 d q + 3 d f products a token and layer, and 4 q rows keys for attention: d the width, q and k the widths of
all query and key heads, f that of the MLP.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from srum_ds.models.bagel.config import BagelConfig
from srum_ds.models.bagel.latents import TimestepEmbedder


@dataclass(frozen=True)
class Shape:
    """The products of a BAGEL model, from its configuration."""

    config: BagelConfig

    @cached_property
    def queries(self) -> int:
        """Width q of all query heads together."""
        return self.config.llm.num_attention_heads * self.config.llm.head_size

    @cached_property
    def keys(self) -> int:
        """Width k of all key heads together, and of all value heads."""
        return self.config.llm.num_key_value_heads * self.config.llm.head_size

    @property
    def layers(self) -> int:
        return self.config.llm.num_hidden_layers

    @property
    def width(self) -> int:
        return self.config.llm.hidden_size

    @property
    def inner(self) -> int:
        """Width f of the MLP."""
        return self.config.llm.intermediate_size

    @cached_property
    def key_products(self) -> int:
        """Products a token of a layer's keys and values."""
        return 2 * self.width * self.keys

    @cached_property
    def query_products(self) -> int:
        """Products a token of a layer's queries."""
        return self.width * self.queries

    @cached_property
    def output_products(self) -> int:
        """Products a token of what follows attention in a layer: its output projection and the MLP."""
        return self.queries * self.width + 3 * self.width * self.inner

    @cached_property
    def layer_products(self) -> int:
        """Products a token of a layer: P / L."""
        return self.key_products + self.query_products + self.output_products

    def attention(self, rows: float, keys: float) -> float:
        """FLOPs of one layer's attention of ``rows`` queries to ``keys`` keys each."""
        return 4.0 * self.queries * rows * keys

    def blocks_for(self, tokens: int, keys: int, rows: int) -> float:
        """FLOPs of all layers for ``tokens`` new tokens that attend to ``keys`` keys, themselves included.

        Of the last layer the output of ``rows`` tokens alone is wanted (``MoTModel``).
        """
        above = self.layers - 1
        last = 2.0 * self.key_products * tokens + 2.0 * (self.query_products + self.output_products) * rows
        whole = above * (2.0 * self.layer_products * tokens + self.attention(tokens, keys))
        return whole + last + self.attention(rows, keys)

    def head(self, rows: int) -> float:
        """FLOPs of the vocabulary's logits."""
        return 2.0 * self.width * self.config.llm.vocab_size * rows

    def tower(self, patches: int) -> float:
        """FLOPs of the vision tower and its connector for one image."""
        vit = self.config.vit
        h = vit.hidden_size
        layer = 2.0 * (4 * h * h + 2 * h * vit.intermediate_size) * patches + 4.0 * h * patches**2
        ends = vit.num_channels * vit.patch_size**2 * h + h * self.width + self.width**2
        return vit.kept_layers * layer + 2.0 * ends * patches

    def latent_ends(self, tokens: int) -> float:
        """FLOPs of ``vae2llm`` or of ``llm2vae``."""
        return 2.0 * self.config.token_channels * self.width * tokens

    @cached_property
    def time_ends(self) -> tuple[float, float]:
        """FLOPs of the time embedder's two layers for one image."""
        return 2.0 * TimestepEmbedder.frequencies * self.width, 2.0 * self.width**2

    def picture_blocks(self, tokens: int, context: int) -> float:
        """FLOPs of all layers for a noised image after ``context`` tokens; of its start and end, two tokens more, the
        last layer makes keys and values alone.
        """
        keys = tokens + 2 + context
        last = 2.0 * (self.layer_products * tokens + self.key_products * 2) + self.attention(tokens, keys)
        above = 2.0 * self.layer_products * (tokens + 2) + self.attention(tokens + 2, keys)
        return (self.layers - 1) * above + last

    def velocity(self, tokens: int, context: int) -> float:
        """FLOPs of one noised image's velocity after ``context`` tokens, without its time's embedding."""
        return self.picture_blocks(tokens, context) + 2 * self.latent_ends(tokens)
