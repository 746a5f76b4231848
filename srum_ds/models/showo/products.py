"""The products of Show-o's language model, for ``costs``: FLOPs and bytes of its passes by formula.

2 d q + 2 d k + 2 d f products a token and layer, and 4 q rows keys for attention: d the width, q and k the widths of
all query and key heads, f that of the MLP.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PhiConfig


@dataclass(frozen=True)
class Shape:
    """The sizes of a language model that its work follows from; codes: ids that drawing asks for."""

    layers: int
    width: int
    inner: int
    queries: int
    keys: int
    vocabulary: int
    codes: int

    @classmethod
    def of(cls, phi: PhiConfig, codes: int) -> Shape:
        """From the library's configuration."""
        head = phi.hidden_size // phi.num_attention_heads
        return cls(
            layers=phi.num_hidden_layers,
            width=phi.hidden_size,
            inner=phi.intermediate_size,
            queries=phi.hidden_size,
            keys=head * int(phi.num_key_value_heads or phi.num_attention_heads),
            vocabulary=phi.vocab_size,
            codes=codes,
        )

    @property
    def before(self) -> int:
        """Products a token of what reads a layer's input: queries, keys, values, and the MLP's first layer."""
        return self.width * (self.queries + 2 * self.keys + self.inner)

    @property
    def after(self) -> int:
        """Products a token of what writes a layer's output."""
        return self.width * (self.queries + self.inner)

    @property
    def layer_products(self) -> int:
        """Products a token of a layer."""
        return self.before + self.after

    def attention(self, rows: float, keys: float) -> float:
        """FLOPs of one layer's attention of ``rows`` queries to ``keys`` keys each."""
        return 4.0 * self.queries * rows * keys

    def blocks(self, rows: float, keys: float) -> float:
        """FLOPs of all layers for ``rows`` tokens that attend to ``keys`` keys, themselves included."""
        return self.layers * (2.0 * self.layer_products * rows + self.attention(rows, keys))

    def head(self, rows: float, ids: int) -> float:
        """FLOPs of the logits of ``ids`` ids."""
        return 2.0 * self.width * ids * rows

    @property
    def kept(self) -> int:
        """Numbers that autograd keeps of a token in a layer.

        Its input and normed stream; q projected, rotated, attended and as the output projection takes it; keys
        projected; keys and values as attention takes them, repeated for all heads; five arrays of the MLP, whose
        activation is the library's formula.
        """
        return 2 * self.width + 6 * self.queries + self.keys + 5 * self.inner

    def pass_numbers(self, rows: int, keys: int) -> int:
        """Numbers alive in a pass without gradient: the stream, attention of one layer, and its MLP's arrays."""
        attention = 4 * self.queries * rows + 2 * (self.queries + self.keys) * keys
        return int(3 * self.width * rows + max(attention, 3 * self.inner * rows))
