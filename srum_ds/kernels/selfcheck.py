"""Whether each fused kernel works on this machine: it is run once on a small input against its reference.

A kernel that does not compile, or whose values or gradients differ, is left out with the reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from srum_ds.kernels import norm, qk, swiglu, velocity
from srum_ds.kernels.dispatch import DTYPES, REFERENCES
from srum_ds.kernels.rotary import rotary_factors

MODULES = {
    norm.rms_norm.__name__: "norm",
    norm.add_rms_norm.__name__: "norm",
    qk.qk_norm_rotary.__name__: "qk",
    swiglu.swiglu.__name__: "swiglu",
    velocity.velocity_loss.__name__: "velocity",
}
"""The fused operations, and the module of ``srum_ds.kernels.triton`` that each is in."""

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-6}
"""How far a value may be from the reference in float64, as a share of the largest one."""

Kernels = Mapping[str, Callable[..., Any]]


def obstacle(device: torch.device) -> str | None:
    """Why no fused kernel can run on this device at all; None where they can."""
    if device.type != "cuda":
        return f"the device is {device.type}, not cuda"
    if find_spec("triton") is None:
        return "triton is not installed (pip install 'srum-ds[fused]')"
    return None


@dataclass(frozen=True)
class Checked:
    """The kernels that work, and why each of the others does not."""

    works: dict[str, Callable[..., Any]]
    broken: dict[str, str]


def check_kernels(device: torch.device, kernels: Kernels | None = None) -> Checked:
    """Runs each kernel of ``kernels`` (None: all there are) on the device and compares it with its reference."""
    works: dict[str, Callable[..., Any]] = {}
    broken: dict[str, str] = {}
    for name in MODULES if kernels is None else kernels:
        try:
            fused = load_kernel(name) if kernels is None else kernels[name]
            why = difference(name, fused, device)
        except Exception as error:  # Whatever a compiler may raise: the reference runs instead.
            said = str(error).strip() or "no message"
            why = f"{type(error).__name__}: {said.splitlines()[0]}"
        if why is None:
            works[name] = fused
        else:
            broken[name] = why
    return Checked(works, broken)


def difference(name: str, fused: Callable[..., Any], device: torch.device) -> str | None:
    """How a kernel differs from its reference in float64, in words; None where it does not."""
    for dtype in DTYPES:
        args = EXAMPLES[name](dtype, device)
        wide = [_widened(x) for x in args]
        ours, exact = run_both_ways(fused, args), run_both_ways(REFERENCES[name], wide)
        with torch.no_grad():
            again = _tuple(fused(*[x.detach().clone() if isinstance(x, Tensor) else x for x in args]))
        parts = (
            ("value", ours[0], exact[0]),
            ("gradient", ours[1], exact[1]),
            ("value without gradients", again, exact[0]),
        )
        for what, some, others in parts:
            for one, other in zip(some, others, strict=True):
                share = float((one.double() - other).abs().max() / other.abs().max().clamp(min=1e-30))
                if not share <= TOLERANCE[dtype]:
                    return f"a {what} in {str(dtype).removeprefix('torch.')} is off by {share:.1e} of the largest"
    return None


def load_kernel(name: str) -> Callable[..., Any]:
    """The fused kernel of this name; imports triton."""
    module = importlib.import_module(f"srum_ds.kernels.triton.{MODULES[name]}")
    fused: Callable[..., Any] = getattr(module, name)
    return fused


def run_both_ways(function: Callable[..., Any], args: Sequence[Any]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Outputs, and the gradients of all inputs that want one."""
    leaves = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
    outputs = _tuple(function(*args))
    back = [_numbers(tuple(x.shape), 50 + i, x.dtype, x.device) for i, x in enumerate(outputs)]
    return tuple(x.detach() for x in outputs), torch.autograd.grad(outputs, leaves, back)


def _tuple(x: Any) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)


def _widened(x: Any) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return x.detach().double().requires_grad_(x.requires_grad)


# ---- small inputs: few rows of the widths that BAGEL has, since a kernel is compiled for each width


def _numbers(shape: tuple[int, ...], seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Normally distributed, the same on all devices, and of values that bfloat16 holds."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(torch.bfloat16).to(device, dtype)


def _leaf(shape: tuple[int, ...], seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _numbers(shape, seed, dtype, device).requires_grad_()


def _for_rms_norm(dtype: torch.dtype, device: torch.device) -> list[Any]:
    return [_leaf((5, 3584), 1, dtype, device), _leaf((3584,), 2, dtype, device), 1e-6]


def _for_add_rms_norm(dtype: torch.dtype, device: torch.device) -> list[Any]:
    x_ND, weight_D, eps = _for_rms_norm(dtype, device)
    return [x_ND, _leaf((5, 3584), 3, dtype, device), weight_D, eps]


def _for_qk_norm_rotary(dtype: torch.dtype, device: torch.device) -> list[Any]:
    cos_P1D, sin_P1D = (x.to(dtype) for x in rotary_factors(3 * torch.arange(9, device=device), 128, 1e6))
    groups = [_leaf((5, 7, 128), 1, dtype, device), _leaf((3, 7, 128), 2, dtype, device)]
    weights = [_leaf((128,), seed, dtype, device) for seed in (3, 4)]
    slot_N = torch.tensor([4, 0, 8, 1, 6, 3, 2, 7], device=device)
    return [*groups, *weights, 1e-6, cos_P1D, sin_P1D, slot_N, 9]


def _for_swiglu(dtype: torch.dtype, device: torch.device) -> list[Any]:
    return [_leaf((5, 1001), seed, dtype, device) for seed in (1, 2)]


def _for_velocity_loss(dtype: torch.dtype, device: torch.device) -> list[Any]:
    prediction, old, reference = (_numbers((3, 7, 64), seed, dtype, device) for seed in (1, 2, 3))
    target = _numbers((3, 7, 64), 4, torch.float32, device)
    coefficient = _numbers((2, 3, 7), 5, torch.float32, device).abs()
    counts = _numbers((3, 7), 6, torch.float32, device) > -1
    return [prediction.requires_grad_(), target, (0.5, -0.5), coefficient, old, reference, 0.3, counts]


EXAMPLES: dict[str, Callable[[torch.dtype, torch.device], list[Any]]] = {
    "rms_norm": _for_rms_norm,
    "add_rms_norm": _for_add_rms_norm,
    "qk_norm_rotary": _for_qk_norm_rotary,
    "swiglu": _for_swiglu,
    "velocity_loss": _for_velocity_loss,
}
