"""One step of AdamW over a flat buffer, with the averages of the weights and their copy to compute with.

Nothing uses it yet: whether the fused form is worth having beside ``torch.optim.AdamW(fused=True)`` is to be measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_AVERAGES = 2


@torch.no_grad()
def adamw_step(
    weight_E: Tensor,
    gradient_E: Tensor,
    first_E: Tensor,
    second_E: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    averages: Sequence[tuple[Tensor, float]] = (),
    copy_E: Tensor | None = None,
) -> None:
    """Updates weights, moments, averages and copy in place.

    p <- (1 - lr wd) p - lr m' / (sqrt(v') + eps) with m' = m / (1 - b1^t) and v' = v / (1 - b2^t); then
    a <- d a + (1 - d) p for each average a of decay d. Source: AdamW, arXiv 1711.05101.

    Args:
        weight_E: p, float32; E counts elements.
        gradient_E: of any float dtype.
        first_E, second_E: m and v, float32, zeros before the first step.
        step: t, from 1.
        averages: at most ``MAX_AVERAGES`` float32 buffers with their decays in [0, 1].
        copy_E: where the new weights go in another dtype, such as bfloat16; None: nowhere.
    """
    beta_1, beta_2 = betas
    gradient_E = gradient_E.to(weight_E.dtype)
    first_E.mul_(beta_1).add_(gradient_E, alpha=1 - beta_1)
    second_E.mul_(beta_2).addcmul_(gradient_E, gradient_E, value=1 - beta_2)
    denominator_E = (second_E / (1 - beta_2**step)).sqrt_().add_(eps)
    weight_E.mul_(1 - lr * weight_decay).addcdiv_(first_E, denominator_E, value=-lr / (1 - beta_1**step))
    for average_E, decay in averages:
        average_E.mul_(decay).add_(weight_E, alpha=1 - decay)
    if copy_E is not None:
        copy_E.copy_(weight_E)
