"""Which code runs an operation: its reference, or the fused kernel that stands in for it.

An operation is written once as plain PyTorch and marked ``@fusable``. Callers call that; where a fused kernel is
active and takes the tensors at hand, it runs instead. ``selfcheck.start_kernels`` decides which are active, once a
process. Nothing is active until then, and never on a CPU but in tests.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

DTYPES = (torch.float32, torch.bfloat16)
"""What fused kernels take; they are checked in these."""

REFERENCES: dict[str, Callable[..., Any]] = {}
"""Every operation that is marked, by name."""

_active: dict[str, Callable[..., Any]] = {}
_device = torch.device("cpu")


def fusable(reference: Callable[P, R]) -> Callable[P, R]:
    """Marks an operation that a fused kernel of the same name and parameters may stand in for.

    Its first argument is a tensor, whose device and dtype decide.
    """
    name = reference.__name__
    REFERENCES[name] = reference

    @functools.wraps(reference)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        fused = _active.get(name)
        if fused is None or not _takes(args[0]):
            return reference(*args, **kwargs)
        done: R = fused(*args, **kwargs)
        return done

    return run


def is_fused(name: str, x: Tensor) -> bool:
    """Whether the operation of this name would run fused on x."""
    return name in _active and _takes(x)


def activate(kernels: Mapping[str, Callable[..., Any]], device: torch.device) -> None:
    """From now on these, and no others, stand in for their references on tensors of this device, such as cuda:0."""
    global _device
    _active.clear()
    _active.update(kernels)
    _device = device


@contextmanager
def active(kernels: Mapping[str, Callable[..., Any]], device: torch.device) -> Iterator[None]:
    """``activate`` for a while."""
    before, where = dict(_active), _device
    activate(kernels, device)
    try:
        yield
    finally:
        activate(before, where)


def _takes(x: Any) -> bool:
    return isinstance(x, Tensor) and x.device == _device and x.dtype in DTYPES
