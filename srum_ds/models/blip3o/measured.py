"""What a pass through a module on the meta device costs, with its gradient: nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from srum_ds.models.costs import measured_on_meta

FLOAT32 = 4


@dataclass(frozen=True)
class Pass:
    """FLOPs of a pass and of its gradient, and numbers: the most that are alive in it, and what autograd keeps."""

    forward: float
    backward: float = 0.0
    alive: int = 0
    kept: int = 0


def without_gradient(work: Callable[[], Tensor]) -> Pass:
    """A pass without gradient."""
    with sdpa_kernel(SDPBackend.MATH):
        flops, held = measured_on_meta(work)
    return Pass(flops, alive=held // FLOAT32)


def with_gradient(work: Callable[[], Tensor], module: nn.Module) -> Pass:
    """A pass of float32 with the gradient of what of ``module`` requires one, whose own numbers are not counted."""
    own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    saved: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            # Held, so that no other one takes its place.
            saved[storage._cdata] = (storage.nbytes(), tensor.detach())
        return tensor

    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            result = work()
        forward = float(counter.get_total_flops())
        kept = sum(size for size, _ in saved.values()) // FLOAT32
        with FlopCounterMode(display=False) as counter:
            result.sum().backward()
        backward = float(counter.get_total_flops())
    module.zero_grad()
    return Pass(forward, backward, kept=kept)
