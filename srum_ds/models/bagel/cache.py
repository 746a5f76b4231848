"""What has been read: keys and values that later passes go on from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from srum_ds.models.bagel.config import LanguageConfig


@dataclass(frozen=True)
class Cache:
    """Keys and values of everything read so far, one tensor per layer.

    keys_L, values_L: [B, KV, P, head]; valid_BP: bool, which places hold a token (the others are
    padding); position_B: int64, the rotary position of the next segment.
    """

    keys_L: tuple[Tensor, ...]
    values_L: tuple[Tensor, ...]
    valid_BP: Tensor
    position_B: Tensor

    @property
    def batch(self) -> int:
        return int(self.valid_BP.shape[0])

    def take(self, index: Tensor) -> Cache:
        """The cache of the samples in ``index`` (int64 [B']), which may repeat."""
        return Cache(
            tuple(k.index_select(0, index) for k in self.keys_L),
            tuple(v.index_select(0, index) for v in self.values_L),
            self.valid_BP.index_select(0, index),
            self.position_B.index_select(0, index),
        )


def stack_caches(caches: list[Cache]) -> Cache:
    """Joins caches along the batch, padding to the longest."""
    longest = max(int(c.valid_BP.shape[1]) for c in caches)

    def widen(x: Tensor, dim: int) -> Tensor:
        missing = longest - x.shape[dim]
        if missing == 0:
            return x
        shape = list(x.shape)
        shape[dim] = missing
        return torch.cat([x, x.new_zeros(shape)], dim=dim)

    layers = range(len(caches[0].keys_L))
    return Cache(
        tuple(torch.cat([widen(c.keys_L[i], 2) for c in caches]) for i in layers),
        tuple(torch.cat([widen(c.values_L[i], 2) for c in caches]) for i in layers),
        torch.cat([widen(c.valid_BP, 1) for c in caches]),
        torch.cat([c.position_B for c in caches]),
    )


def empty_cache(config: LanguageConfig, batch: int, dtype: torch.dtype, device: torch.device) -> Cache:
    """A cache that holds nothing, for ``batch`` samples."""
    shape = (batch, config.num_key_value_heads, 0, config.head_size)
    layers = range(config.num_hidden_layers)
    return Cache(
        tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in layers),
        tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in layers),
        torch.zeros(batch, 0, dtype=torch.bool, device=device),
        torch.zeros(batch, dtype=torch.int64, device=device),
    )
