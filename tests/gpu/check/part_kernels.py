"""Every fused kernel: the self-check, its error at BAGEL's sizes, and its time against eager and compiled PyTorch.

Errors are shares of the largest value, against the formula in float64. The worst of values and gradients counts; that
of the plain operations in the same dtype stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from srum_ds.kernels.dispatch import DTYPES, REFERENCES
from srum_ds.kernels.selfcheck import MODULES, TOLERANCE, check_kernels, load_kernel
from tests.gpu.check.kernel_inputs import INPUTS, Sizes, least_bytes, sizes
from tests.gpu.check.measuring import Figures, Where
from tests.gpu.check.optimizer_step import optimizer_figures

Function = Callable[..., Any]


def run(figures: Figures, where: Where) -> None:
    size = sizes(where)
    checked = check_kernels(where.device)
    figures["self_check"] = {"works": sorted(checked.works), "broken": checked.broken}
    wrong = dict(checked.broken)
    kernels: dict[str, Function] = {}
    for name in MODULES:
        try:
            kernels[name] = load_kernel(name)
            found = _errors(name, kernels[name], size, where)
        except Exception as error:  # One that does not compile must not hide the others.
            wrong[name] = _problem(error)
            continue
        figures[f"errors_{name}"] = found
        for dtype in DTYPES:
            share = found[_said(dtype)]["fused"]
            if not share <= TOLERANCE[dtype]:
                wrong[name] = f"{_said(dtype)} at full size is off by {share:.1e} of the largest"
    times: dict[str, dict[str, Any]] = {}
    for name in MODULES.keys() - wrong.keys():
        try:
            times[name] = _times(name, kernels[name], size, where)
        except Exception as error:
            wrong[name] = _problem(error)
            continue
        figures[f"times_{name}"] = times[name]
    try:
        figures["adamw_step"] = optimizer_figures(size.elements, where)
    except Exception as error:
        wrong["adamw_step"] = _problem(error)
    # Last, since a compiler's time is not known.
    for name in sorted(times):
        figures[f"times_{name}"] = times[name] | _compiled_times(name, size, where)
    if wrong:
        raise AssertionError(f"kernels that do not do what their formulas do: {wrong}")


def _problem(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:600]


# ---- errors


def _errors(name: str, fused: Function, size: Sizes, where: Where) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for dtype in DTYPES:
        args = _inputs(name, size, dtype, where)
        exact = _both_ways(REFERENCES[name], [_widened(x) for x in args], where)
        ours = _off(_both_ways(fused, args, where), exact)
        plain = _off(_both_ways(REFERENCES[name], args, where), exact)
        found[_said(dtype)] = {"fused": ours, "plain": plain}
    return found


def _off(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest difference of any tensor, as a share of that tensor's largest number."""
    worst = 0.0
    for one, other in zip(found, exact, strict=True):
        share = float((one.double() - other).abs().max() / other.abs().max().clamp(min=1e-30))
        # Not max(): a NaN must not be lost.
        worst = share if not share <= worst else worst
    return worst


def _both_ways(function: Function, args: Sequence[Any], where: Where) -> list[Tensor]:
    """Outputs, and gradients of all inputs that want one."""
    leaves = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
    outputs = _tuple(function(*args))
    return [*(x.detach() for x in outputs), *torch.autograd.grad(outputs, leaves, _pull(outputs, where))]


def _pull(outputs: Sequence[Tensor], where: Where) -> list[Tensor]:
    generator = torch.Generator(where.device).manual_seed(7)
    made = [torch.randn(x.shape, device=where.device, generator=generator) for x in outputs]
    return [y.to(torch.bfloat16).to(x.dtype) for x, y in zip(outputs, made, strict=True)]


def _widened(x: Any) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return x.detach().double().requires_grad_(x.requires_grad)


# ---- times


def _times(name: str, fused: Function, size: Sizes, where: Where) -> dict[str, Any]:
    """Of bf16, in milliseconds: without gradients as in drawing, forward with backward, and the host's part of that."""
    args = _inputs(name, size, torch.bfloat16, where)
    moved = least_bytes(args, _tuple(fused(*args)))
    found: dict[str, Any] = {"least_mb": round(moved / 1e6, 1)}
    for what, function in (("fused", fused), ("eager", REFERENCES[name])):
        found |= _timed(what, function, args, where)
    ms = found["fused_forward_ms"]
    return found | {"fused_gb_per_second": round(moved / ms / 1e6, 1)}


def _compiled_times(name: str, size: Sizes, where: Where) -> dict[str, Any]:
    """Of the reference through torch.compile; in a rehearsal through its front half alone."""
    torch._dynamo.reset()
    args = _inputs(name, size, torch.bfloat16, where)
    backend = "aot_eager" if where.rehearse else "inductor"
    try:
        compiled = torch.compile(REFERENCES[name], dynamic=False, backend=backend)
        return _timed("compiled", compiled, args, where)
    except Exception as error:
        return {"compiled_problem": _problem(error)}


def _timed(what: str, function: Function, args: Sequence[Any], where: Where) -> dict[str, float]:
    leaves = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
    pulled = _pull(_tuple(function(*args)), where)

    def forward() -> None:
        with torch.no_grad():
            function(*args)

    def both() -> None:
        torch.autograd.grad(_tuple(function(*args)), leaves, pulled)

    # Some write into an argument where there is no gradient; so that numbers stay ordinary, they do so last.
    with_backward = where.milliseconds(both, cold=True)
    host = where.host_milliseconds(both)
    return {
        f"{what}_forward_ms": where.milliseconds(forward, cold=True),
        f"{what}_both_ms": with_backward,
        f"{what}_both_host_ms": host,
    }


def _inputs(name: str, size: Sizes, dtype: torch.dtype, where: Where) -> list[Any]:
    return INPUTS[name](size, dtype, torch.Generator(where.device).manual_seed(3))


def _tuple(x: Any) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)


def _said(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
