"""AdamW, averages and copy in one pass over a rank's flat buffer."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from srum_ds.kernels.triton.tiles import TILE, warps


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
    """See ``srum_ds.kernels.adamw.adamw_step``; all buffers are contiguous."""
    beta_1, beta_2 = betas
    buffers = [average_E for average_E, _ in averages] + [weight_E, weight_E]
    decays = [decay for _, decay in averages] + [0.0, 0.0]
    elements = weight_E.numel()
    if not elements:
        return
    _step[(triton.cdiv(elements, TILE),)](
        weight_E,
        gradient_E,
        first_E,
        second_E,
        buffers[0],
        buffers[1],
        weight_E if copy_E is None else copy_E,
        elements,
        1.0 - float(lr) * weight_decay,
        float(lr) / (1.0 - beta_1**step),
        1.0 / (1.0 - beta_2**step),
        float(beta_1),
        1.0 - beta_1,
        float(beta_2),
        1.0 - beta_2,
        float(eps),
        float(decays[0]),
        1.0 - decays[0],
        float(decays[1]),
        1.0 - decays[1],
        BLOCK=TILE,
        AVERAGES=len(averages),
        HAS_COPY=copy_E is not None,
        num_warps=warps(2 * TILE),
    )


@triton.jit(do_not_specialize=["kept", "rate", "second_scale"])
def _step(
    weight_ptr,
    gradient_ptr,
    first_ptr,
    second_ptr,
    average_0_ptr,
    average_1_ptr,
    copy_ptr,
    elements,
    kept,
    rate,
    second_scale,
    beta_1,
    rest_1,
    beta_2,
    rest_2,
    eps,
    decay_0,
    rest_of_0,
    decay_1,
    rest_of_1,
    BLOCK: tl.constexpr,
    AVERAGES: tl.constexpr,
    HAS_COPY: tl.constexpr,
):
    kept = tl.cast(kept, tl.float32)
    rate = tl.cast(rate, tl.float32)
    second_scale = tl.cast(second_scale, tl.float32)
    beta_1 = tl.cast(beta_1, tl.float32)
    rest_1 = tl.cast(rest_1, tl.float32)
    beta_2 = tl.cast(beta_2, tl.float32)
    rest_2 = tl.cast(rest_2, tl.float32)
    eps = tl.cast(eps, tl.float32)
    decay_0 = tl.cast(decay_0, tl.float32)
    rest_of_0 = tl.cast(rest_of_0, tl.float32)
    decay_1 = tl.cast(decay_1, tl.float32)
    rest_of_1 = tl.cast(rest_of_1, tl.float32)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    gradient = tl.load(gradient_ptr + at, mask=inside, other=0.0).to(tl.float32)
    first = beta_1 * tl.load(first_ptr + at, mask=inside, other=0.0) + rest_1 * gradient
    second = beta_2 * tl.load(second_ptr + at, mask=inside, other=0.0) + rest_2 * gradient * gradient
    tl.store(first_ptr + at, first, mask=inside)
    tl.store(second_ptr + at, second, mask=inside)
    weight = kept * tl.load(weight_ptr + at, mask=inside, other=0.0)
    weight -= rate * first / (tl.sqrt(second * second_scale) + eps)
    tl.store(weight_ptr + at, weight, mask=inside)
    if AVERAGES > 0:
        average = decay_0 * tl.load(average_0_ptr + at, mask=inside, other=0.0) + rest_of_0 * weight
        tl.store(average_0_ptr + at, average, mask=inside)
    if AVERAGES > 1:
        average = decay_1 * tl.load(average_1_ptr + at, mask=inside, other=0.0) + rest_of_1 * weight
        tl.store(average_1_ptr + at, average, mask=inside)
    if HAS_COPY:
        tl.store(copy_ptr + at, weight.to(copy_ptr.dtype.element_ty), mask=inside)
