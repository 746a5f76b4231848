"""The fused optimizer step against its formula, and against torch's fused AdamW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srum_ds.kernels.adamw import adamw_step
from tests.gpu.check.measuring import Where

SETTINGS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.01}
DECAYS = (0.5, 0.95)
WITHIN = 1e-6
EXAMPLE = 1_000_000


@dataclass
class Buffers:
    """A rank's flat buffers: weights, gradient, both moments, two averages, the copy in bf16."""

    weight_E: Tensor
    gradient_E: Tensor
    first_E: Tensor
    second_E: Tensor
    averages: list[tuple[Tensor, float]]
    copy_E: Tensor

    def in_double(self) -> Buffers:
        averages = [(x.double(), decay) for x, decay in self.averages]
        wide = (x.double() for x in (self.weight_E, self.gradient_E, self.first_E, self.second_E, self.copy_E))
        weight, gradient, first, second, copy = wide
        return Buffers(weight, gradient, first, second, averages, copy)

    def step(self, function: Any, everything: bool = True) -> None:
        """One step, with averages and copy or without."""
        more = {"averages": self.averages, "copy_E": self.copy_E} if everything else {}
        function(self.weight_E, self.gradient_E, self.first_E, self.second_E, 2, **SETTINGS, **more)


def optimizer_figures(elements: int, where: Where) -> dict[str, Any]:
    """Error of a step on some elements, and milliseconds of a step on so many. AssertionError where it is wrong."""
    from srum_ds.kernels.triton.adamw import adamw_step as fused

    some = _buffers(min(elements, EXAMPLE), where)
    exact = some.in_double()
    some.step(fused)
    exact.step(adamw_step)
    pairs = [(some.weight_E, exact.weight_E), (some.first_E, exact.first_E), (some.second_E, exact.second_E)]
    pairs += [(one[0], other[0]) for one, other in zip(some.averages, exact.averages, strict=True)]
    off = max(float((one.double() - other).abs().max() / other.abs().max()) for one, other in pairs)
    if not off <= WITHIN:
        raise AssertionError(f"adamw_step is off by {off:.1e} of the largest")
    same = torch.equal(some.copy_E.float(), some.weight_E.to(torch.bfloat16).float())
    found = {"elements": elements, "off": off, "copy_is_the_rounded_weight": same}
    whole = _buffers(elements, where)
    found["fused_ms"] = where.milliseconds(lambda: whole.step(fused, everything=False))
    found["fused_with_averages_and_copy_ms"] = where.milliseconds(lambda: whole.step(fused))
    found["eager_with_averages_and_copy_ms"] = where.milliseconds(lambda: whole.step(adamw_step))
    parameter = torch.nn.Parameter(whole.weight_E)
    parameter.grad = whole.gradient_E
    torch_adamw = torch.optim.AdamW([parameter], fused=True, **SETTINGS)
    found["torch_fused_ms"] = where.milliseconds(torch_adamw.step)

    @torch.no_grad()
    def torch_and_the_rest() -> None:
        torch_adamw.step()
        for average_E, decay in whole.averages:
            average_E.lerp_(parameter, 1 - decay)
        whole.copy_E.copy_(parameter)

    found["torch_fused_with_averages_and_copy_ms"] = where.milliseconds(torch_and_the_rest)
    return found


def _buffers(elements: int, where: Where) -> Buffers:
    generator = torch.Generator(where.device).manual_seed(5)

    def numbers() -> Tensor:
        return torch.randn(elements, device=where.device, generator=generator)

    weight = numbers()
    averages = [(weight + 0.01 * numbers(), decay) for decay in DECAYS]
    return Buffers(weight, numbers(), 0.1 * numbers(), numbers().square(), averages, weight.to(torch.bfloat16))
