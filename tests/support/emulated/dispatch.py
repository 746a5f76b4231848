"""Computes one operation of the emulated device on the CPU, and reports what an accelerator would have done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.support.emulated import attention
from tests.support.emulated.counts import current_line, report, report_download, report_upload, size_of
from tests.support.emulated.rules import INDEXING, device_of, kernel_of, kind_of, waits
from tests.support.emulated.tensor import NAME, EmulatedTensor, host_of, wrapped

aten = torch.ops.aten
CPU = torch.device("cpu")


class CurrentDevice:
    """The device that tensors land on where none is named by its number."""

    count = 4
    index = 0


DEFINED: dict[Any, Callable[..., Any]] = {
    aten._scaled_dot_product_fused_attention_overrideable.default: attention.sdpa,
    aten._scaled_dot_product_fused_attention_overrideable_backward.default: attention.sdpa_backward,
}
"""Kernels that the CPU has not; ``device.register`` adds those of torch that are defined when they are imported."""

WHOLE: dict[Any, Callable[..., Any]] = {
    aten.scaled_dot_product_attention.default: attention.scaled_dot_product_attention,
    aten.rms_norm.default: attention.rms_norm,
}
"""Operations that torch would take apart for a device that it does not know."""


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation. Raises RuntimeError where its operands lie on several devices."""
    if kind_of(func).composite:
        whole = WHOLE.get(func)
        return whole(*args, **kwargs) if whole else func.decompose(*args, **kwargs)
    tensors = _tensors(args, kwargs)
    index = device_of(func, tensors, args)
    asked = kwargs.get("device")
    if asked is not None:
        asked = torch.device(asked)
    packet = func.overloadpacket
    if packet is aten.copy_ or packet is aten._copy_from:
        return _copy(func, args, kwargs)
    if packet is aten._to_copy and asked is not None and asked.type == "cpu" and index is not None:
        report_download(args[0].host, blocking=not kwargs.get("non_blocking"))
        return func(args[0].host, **{**kwargs, "non_blocking": False})
    if packet is aten._local_scalar_dense:
        report_download(args[0].host)
        return func(args[0].host)
    target = index if asked is None else _index_of(asked)
    if packet in INDEXING and index is not None:
        _upload_indices(args[1])
    result = _on_host(func, args, kwargs, asked)
    # Made on the host from what lies on the device (new_zeros(..., device="cpu")): nothing ran there.
    if target is None:
        return result
    report(target, kernel_of(func, _tensors(result)), waits(func, args))
    return _returned(func, args, kwargs, result, target)


def _on_host(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], asked: torch.device | None) -> Any:
    """The operation's result in CPU tensors."""
    host_kwargs = {name: host_of(value) for name, value in kwargs.items()}
    if asked is not None and asked.type == NAME:
        host_kwargs["device"] = CPU
    if host_kwargs.get("pin_memory"):
        host_kwargs["pin_memory"] = False
    defined = DEFINED.get(func)
    return (defined or func)(*host_of(args), **host_kwargs)


def _returned(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, index: int) -> Any:
    """The result on the device; what was written in place is the argument itself."""
    kind = kind_of(func)
    if not kind.in_place:
        return wrapped(result, index)
    results = result if isinstance(result, (list, tuple)) else (result,)
    found = []
    for each, owner in zip(results, kind.written, strict=True):
        if owner is None:
            found.append(wrapped(each, index))
            continue
        written = kwargs.get(owner) if isinstance(owner, str) else args[owner]
        if isinstance(written, EmulatedTensor) and written.host.shape != written.shape:
            raise NotImplementedError(f"{func} changes a shape in place, which the emulated device does not follow")
        found.append(written)
    return tuple(found) if isinstance(result, (list, tuple)) else found[0]


def _copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``copy_(target, source)``, and ``_copy_from(source, target)``, between any devices."""
    flipped = func.overloadpacket is aten._copy_from
    target, source = (args[1], args[0]) if flipped else (args[0], args[1])
    blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    to, of = isinstance(target, EmulatedTensor), isinstance(source, EmulatedTensor)
    if target.numel() == 0:
        return target
    if to and not of:
        report_upload(size_of(source), blocking)
        report(target.number)
    elif of and not to:
        report_download(source.host, blocking)
    elif to:
        report(target.number, "copy_")
    aten.copy_.default(host_of(target), host_of(source))
    return target


def _upload_indices(indices: Sequence[Any]) -> None:
    """Indices on the host are copied over."""
    for each in indices:
        if isinstance(each, Tensor) and not isinstance(each, EmulatedTensor):
            report_upload(size_of(each), blocking=True)


def _index_of(device: torch.device) -> int | None:
    """The number of an emulated device, by default of the current one; None for any other device."""
    if device.type != NAME:
        return None
    index = CurrentDevice.index if device.index is None else device.index
    if not 0 <= index < CurrentDevice.count:
        raise RuntimeError(f"{NAME}:{index} is none of {CurrentDevice.count} devices (at {current_line()})")
    return index


def _tensors(*trees: Any) -> list[Tensor]:
    """All tensors in arguments or results."""
    found: list[Tensor] = []
    for tree in trees:
        if isinstance(tree, Tensor):
            found.append(tree)
        elif isinstance(tree, (list, tuple)):
            found.extend(_tensors(*tree))
        elif isinstance(tree, dict):
            found.extend(_tensors(*tree.values()))
    return found
