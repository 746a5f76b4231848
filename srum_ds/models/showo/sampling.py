"""Show-o's sampler as pure functions: masked codes become known step by step (MaskGIT, arXiv 2202.04200).

Everything is as released (arXiv 2408.12528): guidance is (1 + g) c - g u over the codes alone; the temperature of the
noise that chooses what stays masked is multiplied by (1 - share of steps done) at every step, so that it compounds;
at least one code stays masked after every step, the last one too, and the codes of the last draw are returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srum_ds.common import seeds
from srum_ds.common.seeds import Key
from srum_ds.models.showo.settings import MaskedSampling as MaskedSampling

MASKED = -1
"""Stands for a code that is not known."""

Logits = Callable[[Tensor], Tensor]
"""Codes [N, T], ``MASKED`` where unknown -> guided logits [N, T, V] over the codes."""


@dataclass(frozen=True)
class SamplerStep:
    """One step: what was known before it (``MASKED`` elsewhere), and the guided probabilities of all codes."""

    seen_NT: Tensor
    probability_NTV: Tensor


def noise(keys: Sequence[Key], steps: int, tokens: int) -> Tensor:
    """Uniform numbers [N, 2, steps, T] (float32, CPU) of the pictures that ``keys`` seed: of codes, of what stays."""
    return torch.stack([seeds.uniform((2, steps, tokens), *key) for key in keys])


def share_masked(time: Tensor) -> Tensor:
    """The share of codes that are masked at a time in [0, 1]: cos(time pi / 2)."""
    return torch.cos(time * math.pi * 0.5)


def staying_masked(step: int, steps: int, tokens: int) -> int:
    """How many codes shall stay masked after step ``step`` (from 0): floor(T cos((step + 1) / steps pi / 2)).

    In float32 as released, where a cosine of pi / 2 is below 0 and gives -1; ``hidden_again`` has the limits.
    """
    done = torch.tensor((step + 1) / steps)
    return int((tokens * share_masked(done)).floor())


def masked_in_training(time: Tensor, tokens: int) -> Tensor:
    """How many of ``tokens`` codes a training view at a time in [0, 1] masks: round(T cos(time pi / 2)), at least 1."""
    return (tokens * share_masked(time)).round().clamp(min=1).long()


def code_of(probability_TV: Tensor, uniform_T: Tensor) -> Tensor:
    """The code (int64) at which the sum of probabilities [..., V] passes a uniform number [...] in [0, 1)."""
    passed = probability_TV.double().cumsum(dim=-1) <= uniform_T.double()[..., None]
    return passed.sum(dim=-1).clamp(max=probability_TV.shape[-1] - 1)


def hidden_again(chance_NT: Tensor, unknown_NT: Tensor, uniform_NT: Tensor, temperature: float, count: int) -> Tensor:
    """Which codes [N, T] (bool) stay masked: those of lowest log p + temperature * Gumbel noise.

    chance_NT: probability of the drawn codes. unknown_NT: bool, masked before; what was known stays so. uniform_NT: in
    [0, 1), for noise -log(-log(u)). count: how many, but at least 1 and at most one fewer than were masked.
    """
    known = torch.finfo(chance_NT.dtype).max
    confidence_NT = torch.where(unknown_NT, chance_NT, known).clamp(min=1e-20).log()
    confidence_NT = confidence_NT + temperature * gumbel(uniform_NT.to(chance_NT.dtype))
    count_N1 = (unknown_NT.sum(dim=1, keepdim=True) - 1).clamp(max=count).clamp(min=1)
    # A picture of one code has nothing above the limit.
    count_N1 = count_N1.clamp(max=chance_NT.shape[1] - 1)
    limit_N1 = confidence_NT.sort(dim=1).values.gather(1, count_N1)
    return confidence_NT < limit_N1


def gumbel(uniform: Tensor) -> Tensor:
    """-log(-log(u)), with both logarithms' arguments at least 1e-20."""
    return -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """(1 + g) c - g u, in float32."""
    return (1 + guidance) * conditional.float() - guidance * unconditional.float()


@torch.no_grad()
def unmask(
    logits_of: Logits, uniform_N2ST: Tensor, sampling: MaskedSampling, trace: list[SamplerStep] | None = None
) -> Tensor:
    """Draws codes [N, T] (int64), all of them masked at first, in ``sampling.steps`` steps.

    uniform_N2ST: uniform numbers of codes and of what stays masked (``noise``), where the logits are. trace: receives
    one entry for each step.
    """
    count, _, steps, tokens = uniform_N2ST.shape
    seen_NT = torch.full((count, tokens), MASKED, dtype=torch.int64, device=uniform_N2ST.device)
    drawn_NT = seen_NT
    temperature = sampling.temperature
    for step in range(steps):
        probability_NTV = logits_of(seen_NT).float().softmax(dim=-1)
        if trace is not None:
            trace.append(SamplerStep(seen_NT, probability_NTV))
        unknown_NT = seen_NT == MASKED
        # One picture at a time: the sums are in double precision.
        chosen = [code_of(p_TV, u_T) for p_TV, u_T in zip(probability_NTV, uniform_N2ST[:, 0, step], strict=True)]
        drawn_NT = torch.where(unknown_NT, torch.stack(chosen), seen_NT)
        chance_NT = probability_NTV.gather(2, drawn_NT[..., None])[..., 0]
        temperature *= 1.0 - (step + 1) / steps
        still = staying_masked(step, steps, tokens)
        hidden_NT = hidden_again(chance_NT, unknown_NT, uniform_N2ST[:, 1, step], temperature, still)
        seen_NT = torch.where(hidden_NT, MASKED, drawn_NT)
    return drawn_NT
