"""Writes answers token by token, in a loop of its own: nothing communicates, and ranks may write unequally many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from srum_ds.common import seeds as randomness
from srum_ds.common.errors import UserError
from srum_ds.models.qwen_vl.reading import Context, VLReader

LOOK_EVERY = 16
"""After how many tokens it is looked whether all texts have ended: the only time that the device is waited for."""

Choose = Callable[[Tensor], Tensor]
"""Logits [Q, V] -> the next token of each text, int64 [Q]."""


@torch.no_grad()
def write(
    reader: VLReader,
    hidden_QD: Tensor,
    context: Context,
    max_new_tokens: int,
    ends: Sequence[int],
    choose: Choose,
) -> Tensor:
    """Tokens [Q, T] (int64, CPU) that follow a context whose last hidden states are ``hidden_QD``; T >= 1.

    It stops by ``max_new_tokens``, or when all texts have one of ``ends``. What follows a text's end means nothing. A
    text depends neither on its batch nor on when others end.
    """
    tokens: list[Tensor] = []
    ended_Q = torch.zeros(len(hidden_QD), dtype=torch.bool, device=hidden_QD.device)
    end_E = torch.tensor(list(ends), device=hidden_QD.device)
    one_Q1 = torch.ones(len(hidden_QD), 1, dtype=torch.int64, device=hidden_QD.device)
    for step in range(1, max_new_tokens + 1):
        token_Q = choose(reader.logits(hidden_QD))
        tokens.append(token_Q)
        ended_Q = ended_Q | torch.isin(token_Q, end_E)
        if step == max_new_tokens or (step % LOOK_EVERY == 0 and bool(ended_Q.all())):
            break
        hidden_Q1D, context = reader.append_padded(token_Q[:, None], one_Q1, context)
        hidden_QD = hidden_Q1D[:, -1]
    return torch.stack(tokens, dim=1).cpu()


def up_to_end(tokens_QT: Tensor, ends: Sequence[int], with_end: bool = False) -> list[list[int]]:
    """The tokens of each text before its end; ``with_end``: and the one that ends it, of a text that has ended."""
    found = []
    for row in tokens_QT.tolist():
        own = list(takewhile(lambda token: token not in ends, row))
        found.append(row[: len(own) + 1] if with_end else own)
    return found


def chooser(temperature: float, seeds: Sequence[int] | None, count: int) -> Choose:
    """The likeliest token (temperature 0), or one drawn from softmax(logits / temperature), each text by its own seed.

    Drawn by inversion in double precision: one uniform number per token and text, from each text's generator on the
    CPU. UserError for a temperature below 0, ValueError where sampling has not one seed per text.
    """
    if temperature < 0:
        raise UserError(f"temperature is {temperature}; it must be 0 (greedy) or above.")
    if temperature == 0:
        return lambda logits_QV: logits_QV.argmax(dim=-1)
    if seeds is None or len(seeds) != count:
        raise ValueError(f"sampling {count} answers needs as many seeds")
    generators = [randomness.generator("answer", seed) for seed in seeds]

    def drawn(logits_QV: Tensor) -> Tensor:
        uniform_Q1 = torch.stack([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
        share_QV = (logits_QV.double() / temperature).softmax(dim=-1).cumsum(dim=-1)
        number_Q1 = torch.searchsorted(share_QV, uniform_Q1.to(share_QV.device) * share_QV[:, -1:], right=True)
        return number_Q1[:, 0].clamp(max=logits_QV.shape[-1] - 1)

    return drawn
