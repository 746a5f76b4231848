"""Keys and values that later tokens see, in the forms that Show-o's passes need.

All take the place of a ``transformers.Cache`` in the library's attention, which calls ``update`` alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 64
"""The room for new tokens grows by so many."""


class Prefix:
    """What has been read: keys and values [B, heads, P, D] of every layer. A pass sees it and leaves it as it is."""

    def __init__(self, keys_L: list[Tensor], values_L: list[Tensor]) -> None:
        self.keys_L = keys_L
        self.values_L = values_L

    def update(self, key: Tensor, value: Tensor, layer: int, **_: Any) -> tuple[Tensor, Tensor]:
        """Keys and values that a pass attends to in a layer: what was read, and its own."""
        return torch.cat([self.keys_L[layer], key], dim=2), torch.cat([self.values_L[layer], value], dim=2)

    def take(self, rows: Tensor) -> Prefix:
        """The same for chosen rows (int64), which may come several times."""
        keys_L = [keys.index_select(0, rows) for keys in self.keys_L]
        return Prefix(keys_L, [values.index_select(0, rows) for values in self.values_L])


class Reading:
    """Takes down what a pass reads, behind a prefix if there is one."""

    def __init__(self, before: Prefix | None = None) -> None:
        self.before = before
        self.read = Prefix([], [])
        """What has been read after the pass, the prefix included."""

    def update(self, key: Tensor, value: Tensor, layer: int, **_: Any) -> tuple[Tensor, Tensor]:
        """Keys and values that the pass attends to in a layer."""
        if self.before is not None:
            key, value = self.before.update(key, value, layer)
        self.read.keys_L.append(key)
        self.read.values_L.append(value)
        return key, value


class Room:
    """A prefix that texts are written behind, one token of each at a time, in place."""

    def __init__(self, prefix: Prefix) -> None:
        """The prefix itself stays as it is: the first token already takes new room."""
        self.keys_L = list(prefix.keys_L)
        self.values_L = list(prefix.values_L)
        self.column = prefix.keys_L[0].shape[2]

    def update(self, key: Tensor, value: Tensor, layer: int, **_: Any) -> tuple[Tensor, Tensor]:
        """Writes one token's keys and values behind the others; all up to and with them."""
        if self.column == self.keys_L[layer].shape[2]:
            self.keys_L[layer] = _widened(self.keys_L[layer])
            self.values_L[layer] = _widened(self.values_L[layer])
        keys, values = self.keys_L[layer], self.values_L[layer]
        keys[:, :, self.column] = key[:, :, 0]
        values[:, :, self.column] = value[:, :, 0]
        return keys[:, :, : self.column + 1], values[:, :, : self.column + 1]

    def written(self) -> None:
        """All layers have written their token: the next one stands behind it."""
        self.column += 1


def _widened(x: Tensor) -> Tensor:
    wider = x.new_zeros(*x.shape[:2], x.shape[2] + BLOCK, x.shape[3])
    wider[:, :, : x.shape[2]] = x
    return wider
