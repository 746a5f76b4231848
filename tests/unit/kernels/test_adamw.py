"""One step of AdamW with averages and copy: the plain form against torch's, the fused form against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from srum_ds.kernels.adamw import adamw_step
from srum_ds.kernels.triton.adamw import adamw_step as fused_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SETTINGS: dict[str, Any] = {"lr": 0.03, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def randn(seed: int, size: int = 2111) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def test_the_plain_form_is_torchs() -> None:
    parameter = torch.nn.Parameter(randn(0))
    optimiser = torch.optim.AdamW([parameter], **SETTINGS)
    weight, first, second = randn(0), torch.zeros_like(parameter.data), torch.zeros_like(parameter.data)
    for step in range(1, 4):
        parameter.grad = randn(step)
        optimiser.step()
        adamw_step(weight, randn(step), first, second, step, **SETTINGS)
    torch.testing.assert_close(weight, parameter.data, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("averages", [0, 1, 2])
def test_the_fused_form_is_the_formula(averages: int, dtype: torch.dtype) -> None:
    decays = (0.5, 0.9)[:averages]
    ours = [randn(0), randn(1) / 10, randn(2).square() / 10, *[randn(3 + i) for i in range(averages)]]
    exact = [x.double() for x in ours]
    gradient = randn(9).to(dtype)
    copy = torch.zeros(2111, dtype=torch.bfloat16, device=DEVICE) if averages else None
    kept = [list(zip(buffers[3:], decays, strict=True)) for buffers in (ours, exact)]
    fused_step(ours[0], gradient, ours[1], ours[2], 5, averages=kept[0], copy_E=copy, **SETTINGS)
    adamw_step(exact[0], gradient.double(), exact[1], exact[2], 5, averages=kept[1], **SETTINGS)
    for one, other in zip(ours, exact, strict=True):
        assert float((one - other).abs().max()) <= 1e-6 * float(other.abs().max())
    if copy is not None:
        # At most one unit in the last place off; the interpreter cuts off.
        assert float(((copy - ours[0]).abs() / ours[0].abs()).max()) <= 2.0**-7
