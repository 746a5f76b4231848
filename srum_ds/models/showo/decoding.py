"""Writes answers token by token behind pictures and questions that have been read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor

from srum_ds.common import seeds as randomness
from srum_ds.common.errors import UserError
from srum_ds.models.showo.cache import Room
from srum_ds.models.showo.reader import Reader
from srum_ds.models.showo.sampling import code_of

LOOK_EVERY = 16
"""After how many tokens it is looked whether all texts have ended: the only time that the device is waited for."""


class Chooser:
    """The next token of each text: the likeliest, or drawn at a temperature, each text by its own seed.

    UserError for a temperature below 0, ValueError where sampling has not one seed per text.
    """

    def __init__(self, count: int, temperature: float = 0.0, seeds: Sequence[int] | None = None) -> None:
        if temperature < 0:
            raise UserError(f"temperature is {temperature}; it must be 0 (greedy) or above.")
        if seeds is not None and len(seeds) != count:
            raise ValueError(f"{count} answers need as many seeds, got {len(seeds)}")
        if temperature > 0 and seeds is None:
            raise ValueError(f"sampling {count} answers needs as many seeds")
        self.temperature = temperature
        self.generators = [randomness.generator("answer", seed) for seed in seeds or ()]

    def __call__(self, logits_QV: Tensor) -> Tensor:
        """Tokens [Q] (int64) of logits, by inversion in double precision where they are drawn."""
        if self.temperature == 0:
            return logits_QV.argmax(dim=-1)
        uniform_Q = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in self.generators])
        return code_of((logits_QV.double() / self.temperature).softmax(dim=-1), uniform_Q.to(logits_QV.device))


@torch.no_grad()
def write(
    reader: Reader,
    logits_QV: Tensor,
    room: Room,
    seen_QK: Tensor,
    position_Q: Tensor,
    max_new_tokens: int,
    choose: Chooser,
    to_the_end: bool = False,
) -> Tensor:
    """Continues texts until each has ended, or by ``max_new_tokens`` tokens: tokens [Q, N], int64, on the CPU.

    logits_QV: of each text's first token. room: what stands before them. seen_QK: which of it each text sees.
    position_Q: where each text's first token stands. to_the_end: all ``max_new_tokens`` tokens, ends or not. What
    follows a text's end means nothing (``texts``).
    """
    module = reader.module
    end = reader.tokenizer.vocabulary.eos
    ended_Q = torch.zeros(len(logits_QV), dtype=torch.bool)
    chunks: list[Tensor] = []
    tokens: list[Tensor] = []
    for step in range(max_new_tokens):
        token_Q = choose(logits_QV)
        tokens.append(token_Q)
        last = step + 1 == max_new_tokens
        if last or len(tokens) == LOOK_EVERY:
            chunks.append(torch.stack(tokens, dim=1).cpu())
            tokens.clear()
            ended_Q |= (chunks[-1] == end).any(dim=1)
        if last or (bool(ended_Q.all()) and not to_the_end):
            break
        seen_QK = torch.cat([seen_QK, seen_QK.new_ones(len(seen_QK), 1)], dim=1)
        position_Q1 = position_Q[:, None] + step
        hidden_Q1D = module.hidden(token_Q[:, None], seen_QK[:, None], position_Q1, room)
        room.written()
        logits_QV = module.logits(hidden_Q1D[:, 0])
    return torch.cat(chunks, dim=1) if chunks else torch.zeros(len(logits_QV), 0, dtype=torch.int64)


def texts(reader: Reader, tokens_QN: Tensor) -> list[str]:
    """The texts of written tokens, each up to its end."""
    end = reader.tokenizer.vocabulary.eos
    decode = reader.tokenizer.decode
    return [decode(list(takewhile(lambda token: token != end, row))) for row in tokens_QN.tolist()]
