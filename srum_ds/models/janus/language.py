"""Passes through the language model's layers, with keys and values kept where something goes on from them.

The layers are the library's own; what it does around them (masks, caches, positions) is done here once for a pass
instead of once for every code. Sequences are padded on the right, so that a causal pass needs no mask: nothing sees
what stands behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaModel

from srum_ds.models.library.caches import with_cache

BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""What may serve on an accelerator: cuDNN's kernel makes a plan for every new number of keys."""


def backends(device: torch.device) -> AbstractContextManager[None]:
    """Inside, ``BACKENDS`` alone serve; a CPU chooses as it does."""
    return nullcontext() if device.type == "cpu" else sdpa_kernel(BACKENDS)


def run_layers(
    language: LlamaModel,
    x_BSD: Tensor,
    position_BS: Tensor,
    mask_B1SS: Tensor | None = None,
    kept: KeysValues | None = None,
    checkpointing: bool = False,
) -> Tensor:
    """Normed hidden states [B, S, D] of a pass over whole sequences.

    position_BS: int64, or [1, S] where they are the same in every row. mask_B1SS: additive, 0 or -inf, of x's dtype;
    None: each token sees those before it and itself. kept: receives every layer's keys and values. checkpointing: each
    layer keeps its input alone for the backward pass.
    """
    turn = language.rotary_emb(x_BSD, position_ids=position_BS)
    with backends(x_BSD.device):
        for layer in language.layers:
            options: dict[str, Any] = {"attention_mask": mask_B1SS, "position_embeddings": turn, **with_cache(kept)}
            if checkpointing and torch.is_grad_enabled():
                # Nothing in a layer is random.
                x_BSD = checkpoint(layer, x_BSD, use_reentrant=False, preserve_rng_state=False, **options)
            else:
                x_BSD = layer(x_BSD, **options)
    hidden_BSD: Tensor = language.norm(x_BSD)
    return hidden_BSD


class KeysValues:
    """Keys and values [B, heads, S, D] of every layer, as a pass leaves them behind."""

    def __init__(self) -> None:
        self.keys_L: list[Tensor] = []
        self.values_L: list[Tensor] = []

    def update(self, keys: Tensor, values: Tensor, layer: int, **_: Any) -> tuple[Tensor, Tensor]:
        """What the library's attention calls: takes the pass's keys and values in, and gives what it attends to."""
        assert layer == len(self.keys_L)
        self.keys_L.append(keys)
        self.values_L.append(values)
        return keys, values


class Writer:
    """Sequences that go on after what a pass has read: each call appends one token to each of them.

    Keys and values have a fixed width and are written in place. Weights are whole on this rank, nothing has a gradient.
    """

    def __init__(self, language: LlamaModel, kept: KeysValues, places: Sequence[Places], room: int) -> None:
        """kept: what was read. places: where in it each sequence stands. room: most tokens that will be appended."""
        device, dtype = kept.keys_L[0].device, kept.keys_L[0].dtype
        self.language = language
        self.column = max(len(columns) for _, columns in places)
        row_B = torch.tensor([row for row, _ in places], device=device)
        length_B = torch.tensor([len(columns) for _, columns in places])
        column_BS = torch.zeros(len(places), self.column, dtype=torch.int64)
        for number, (_, columns) in enumerate(places):
            column_BS[number, : len(columns)] = torch.tensor(columns)
        width = self.column + room
        column_BS = column_BS.to(device)
        self.keys_L = [_widened(keys, row_B, column_BS, width) for keys in kept.keys_L]
        self.values_L = [_widened(values, row_B, column_BS, width) for values in kept.values_L]
        # What is padded and what is still to come is not seen.
        seen_BW = torch.arange(width) < length_B[:, None]
        self.mask_B11W = torch.zeros(len(places), 1, 1, width, dtype=dtype, device=device)
        self.mask_B11W.masked_fill_(~seen_BW.to(device)[:, None, None], float("-inf"))
        self.padded = bool((length_B < self.column).any())
        self.on_cpu = device.type == "cpu"
        position_BR = (length_B[:, None] + torch.arange(room)).to(device)
        self.cos_BRD, self.sin_BRD = language.rotary_emb(self.keys_L[0], position_ids=position_BR)
        self.written = 0

    def update(self, keys: Tensor, values: Tensor, layer: int, **_: Any) -> tuple[Tensor, Tensor]:
        """What the library's attention calls: writes one column, and gives what is attended to."""
        self.keys_L[layer][:, :, self.column] = keys[:, :, 0]
        self.values_L[layer][:, :, self.column] = values[:, :, 0]
        # A GPU gets one shape for all tokens, a CPU only what has been written.
        seen = slice(0, self.column + 1) if self.on_cpu else slice(None)
        return self.keys_L[layer][:, :, seen], self.values_L[layer][:, :, seen]

    @torch.no_grad()
    def __call__(self, x_BD: Tensor) -> Tensor:
        """Appends one embedded token to each sequence: its normed hidden states [B, D]."""
        turn = tuple(part[:, self.written, None] for part in (self.cos_BRD, self.sin_BRD))
        self.mask_B11W[..., self.column] = 0
        mask: Tensor | None = self.mask_B11W
        if self.on_cpu:
            mask = self.mask_B11W[..., : self.column + 1] if self.padded else None
        x_B1D = x_BD[:, None]
        kept = with_cache(self)
        with backends(x_BD.device):
            for layer in self.language.layers:
                x_B1D = layer(x_B1D, attention_mask=mask, position_embeddings=turn, **kept)
        self.column += 1
        self.written += 1
        hidden_BD: Tensor = self.language.norm(x_B1D[:, 0])
        return hidden_BD


Places = tuple[int, Sequence[int]]
"""Where a sequence stands in what a pass has read: its row, and the column of each of its tokens."""


def _widened(kept: Tensor, row_B: Tensor, column_BS: Tensor, width: int) -> Tensor:
    """Keys or values of some sequences, [B, heads, width, D], zeros where nothing has been written yet.

    Zeros: what is masked has no weight, but a NaN times nothing would still be one.
    """
    _, heads, _, size = kept.shape
    wide = kept.new_zeros(len(row_B), heads, width, size)
    wide[:, :, : column_BS.shape[1]] = kept[row_B[:, None], :, column_BS].transpose(1, 2)
    return wide
