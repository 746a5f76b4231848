"""Makes ``emulated`` a device type of this process, through torch's hook for backends written in Python.

The hook is private and young: ``torch.utils.backend_registration._setup_privateuseone_for_python_backend`` is in
torch 2.11 and 2.13. If a later one has it no longer, this file is what has to change.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from tests.support.emulated import attention
from tests.support.emulated.counts import report
from tests.support.emulated.dispatch import DEFINED, WHOLE, CurrentDevice, run
from tests.support.emulated.tensor import NAME, on_operation

aten = torch.ops.aten
_libraries: list[torch.library.Library] = []


class _Device:
    """``torch.emulated.device(index)``: inside, another device is the current one."""

    def __init__(self, index: int | torch.device) -> None:
        self.index = _number(index)

    def __enter__(self) -> None:
        self.before, CurrentDevice.index = CurrentDevice.index, self.index

    def __exit__(self, *_: object) -> None:
        CurrentDevice.index = self.before


class DeviceModule:
    """``torch.emulated``: what torch, checkpointing and autocast ask of a device's module."""

    device = _Device

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return CurrentDevice.count

    def current_device(self) -> int:
        return CurrentDevice.index

    def set_device(self, device: int | torch.device) -> None:
        CurrentDevice.index = _number(device)

    def synchronize(self, device: object = None) -> None:
        """Waits for a device, which is counted."""
        report(CurrentDevice.index, synced=True)

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Its random numbers are the CPU's."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        torch.set_rng_state(state)


def _number(device: int | torch.device) -> int:
    index = device if isinstance(device, int) else device.index or 0
    if not 0 <= index < CurrentDevice.count:
        raise RuntimeError(f"{NAME}:{index} is none of {CurrentDevice.count} devices")
    return index


def register() -> None:
    """Makes ``emulated`` a device type of this process, which stays; calling it again does nothing."""
    if _libraries:
        return
    on_operation(run)
    _setup_privateuseone_for_python_backend(NAME, backend_module=DeviceModule())
    library = torch.library.Library("aten", "IMPL")
    for name, factory in _factories():
        library.impl(name, factory, "PrivateUse1")
    # What constructors call below the Python dispatcher: torch.tensor(..., device="emulated").
    library.impl("_copy_from", partial(_call, aten._copy_from.default), "PrivateUse1")
    for operation, whole in WHOLE.items():
        library.impl(operation.name().removeprefix("aten::"), whole, "AutogradPrivateUse1")
    _libraries.append(library)
    # Importing it defines the operations.
    importlib.import_module("torch.nn.attention.varlen")
    DEFINED[torch.ops.torch_attn._varlen_attn.default] = attention.varlen
    DEFINED[torch.ops.torch_attn._varlen_attn_backward.default] = attention.varlen_backward


def _call(operation: Any, *args: Any, **kwargs: Any) -> Any:
    return run(operation, args, kwargs)


def _factories() -> Iterator[tuple[str, Callable[..., Any]]]:
    """All operations without a tensor among their arguments that name a device, by name."""
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith("aten::"):
            continue
        short = name.removeprefix("aten::")
        packet, _, overload = short.partition(".")
        try:
            operation = getattr(getattr(aten, packet), overload or "default")
        except (AttributeError, RuntimeError):
            continue
        arguments = operation._schema.arguments
        if any("Tensor" in str(each.type) for each in arguments) or all(each.name != "device" for each in arguments):
            continue
        if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd"):
            yield short, partial(_call, operation)


@contextmanager
def emulation() -> Iterator[None]:
    """Inside, ``emulated`` is a device, and the first of its devices the current one.

    Backward passes run in the caller's thread there, so that what they launch is counted at the caller's line.
    """
    register()
    before, CurrentDevice.index = CurrentDevice.index, 0
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        CurrentDevice.index = before
