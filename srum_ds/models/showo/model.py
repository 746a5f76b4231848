"""Show-o's module: transformers' ``PhiForCausalLM`` under the checkpoint's names, and the pass that trains.

The picture tokenizer stands outside of it: it never trains.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PhiConfig, PhiForCausalLM

from srum_ds.kernels.cross_entropy import linear_cross_entropy
from srum_ds.models.library.caches import with_cache
from srum_ds.models.showo import attention
from srum_ds.models.showo.cache import Prefix, Reading, Room
from srum_ds.models.showo.layout import AROUND, drawing_mask
from srum_ds.models.showo.tokenizer import Vocabulary


class Head(nn.Module):
    """The language model's head, of which a pass may ask for some ids, or for log p of given ones, alone.

    Its weights are read in its own forward only, where ZeRO-3 has gathered them.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, width))
        self.bias = nn.Parameter(torch.empty(size))

    def forward(self, hidden: Tensor, first: int = 0, count: int | None = None, target: Tensor | None = None) -> Tensor:
        """Logits [..., count] of the ids ``first``, ``first`` + 1, ... (all without ``count``), in the head's dtype.

        With ``target`` (int64 [...], from 0 at ``first``; -1 for none): log softmax(logits)[target] [...] in float32
        (0 for none) instead, with the logits of a few hundred rows at a time.
        """
        stop = None if count is None else first + count
        weight, bias = self.weight[first:stop], self.bias[first:stop]
        # As rows: a slice of a batch would take a path of other roundings than the one sequence of a batch of one.
        hidden_ND = hidden.reshape(-1, hidden.shape[-1])
        if target is None:
            return F.linear(hidden_ND, weight, bias).view(*hidden.shape[:-1], len(bias))
        return -linear_cross_entropy(hidden_ND, weight, target.reshape(-1), bias).view(target.shape)


class Showo(nn.Module):
    """The language model, which reads and draws pictures as codes among its ids."""

    def __init__(self, config: PhiConfig, vocabulary: Vocabulary, codes: int) -> None:
        """codes: T, of a picture."""
        super().__init__()
        self.vocabulary = vocabulary
        self.codes = codes
        config._attn_implementation = attention.NAME
        self.showo: Any = PhiForCausalLM(config)  # transformers' modules are untyped
        self.showo.lm_head = Head(config.hidden_size, config.vocab_size)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.showo.model.embed_tokens.weight.device
        return device

    def enable_checkpointing(self, enabled: bool = True) -> None:
        """Recomputes each block in backward instead of keeping its activations."""
        for layer in self.showo.model.layers:
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
            layer.gradient_checkpointing = enabled
            # transformers asks for it; there is no dropout that it could switch on.
            layer.training = enabled

    def hidden(
        self,
        ids_BL: Tensor,
        seen_BLK: Tensor,
        position_BL: Tensor | None = None,
        cache: Prefix | Reading | Room | None = None,
    ) -> Tensor:
        """Normed hidden states [B, L, D]; the last K - L columns' ids are ids_BL, those before stand in ``cache``.

        seen_BLK: bool, which keys each row sees ([B, 1, K]: all rows the same). position_BL: int64, from 0 without.
        """
        if position_BL is None:
            position_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device)[None]
        hidden_BLD: Tensor = self.showo.model(
            input_ids=ids_BL,
            attention_mask=seen_BLK[:, None],
            position_ids=position_BL,
            use_cache=False,
            **with_cache(cache),
        ).last_hidden_state
        return hidden_BLD

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary] in float32."""
        logits: Tensor = self.showo.lm_head(hidden).float()
        return logits

    # ---- drawing sequences: [pad ...] <t2i> bos text eos <soi> codes <eoi>

    def forward(self, ids_BL: Tensor, code_BT: Tensor, whole: bool = False) -> Tensor:
        """log p [B, T] (float32) of each picture's codes at their own places, given what the sequence shows.

        The pass that trains. ids_BL: int64, drawing sequences with masked codes. code_BT: int64 codes; -1 for none,
        whose log p is 0. whole: among the whole vocabulary, which is what Show-o was trained with, instead of among the
        codes, which is what it draws with.
        """
        vocabulary = self.vocabulary
        code_BT = code_BT.to(self.device)
        hidden_BTD = self._drawing(ids_BL)[:, -self.codes - 1 : -1]
        if whole:
            target_BT = torch.where(code_BT < 0, -1, code_BT + vocabulary.first_code)
            logp_BT: Tensor = self.showo.lm_head(hidden_BTD, target=target_BT)
        else:
            logp_BT = self.showo.lm_head(hidden_BTD, vocabulary.first_code, vocabulary.codes, code_BT)
        return logp_BT

    def picture_logits(self, ids_BL: Tensor) -> Tensor:
        """Logits [B, T + 2, vocabulary] (float32) from ``<soi>`` to ``<eoi>`` of drawing sequences."""
        return self.logits(self._drawing(ids_BL)[:, -self.codes - AROUND :])

    def _drawing(self, ids_BL: Tensor) -> Tensor:
        """Hidden states of whole drawing sequences, without the columns that are padding in all of them."""
        pad_BL = ids_BL == self.vocabulary.pad
        # Rows are padded on the left, and a shift of all positions changes nothing.
        start = int(pad_BL.all(dim=0).sum())
        ids_BL, pad_BL = ids_BL[:, start:].to(self.device), pad_BL[:, start:].to(self.device)
        return self.hidden(ids_BL, drawing_mask(pad_BL, self.codes + AROUND))

    def read_prompts(self, ids_BP: Tensor) -> Prefix:
        """Keys and values of ``[pad ...] <t2i> bos text eos``, which no code changes: read once, seen by every step."""
        ids_BP = ids_BP.to(self.device)
        reading = Reading()
        self.hidden(ids_BP, drawing_mask(ids_BP == self.vocabulary.pad, 0), cache=reading)
        return reading.read

    def code_logits(self, picture_BS: Tensor, prompt: Prefix, pad_BP: Tensor) -> Tensor:
        """Logits [B, T, codes] (float32) of every code of ``<soi>`` codes ``<eoi>`` behind prompts that were read."""
        rows, length = picture_BS.shape
        seen_B1K = torch.cat([~pad_BP, pad_BP.new_ones(rows, length)], dim=1)[:, None]
        position_1S = torch.arange(pad_BP.shape[1], pad_BP.shape[1] + length, device=self.device)[None]
        hidden_BSD = self.hidden(picture_BS, seen_B1K, position_1S, prompt)
        vocabulary = self.vocabulary
        logits: Tensor = self.showo.lm_head(hidden_BSD[:, 1:-1], vocabulary.first_code, vocabulary.codes)
        return logits.float()
