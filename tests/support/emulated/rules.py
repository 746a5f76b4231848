"""What an accelerator makes of each operation: refuses it, waits for it, launches a kernel, or only looks on.

The rules are CUDA's, as torch 2.13 has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tests.support.emulated.counts import current_line
from tests.support.emulated.tensor import NAME, EmulatedTensor

aten = torch.ops.aten

COPIES = {aten.copy_, aten._copy_from, aten._to_copy}
"""Operations that go from one device to another."""

INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
"""Take indices on the host, too, and copy them over."""

WAITS = {
    aten.nonzero,
    aten.masked_select,
    aten._unique,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.unique_dim_consecutive,
    aten.bincount,
    aten.equal,
    aten.is_nonzero,
}
"""The host waits, since the size of the result depends on the numbers, or the result is a bool."""

NO_SCALARS = {
    aten.mm,
    aten.addmm,
    aten.bmm,
    aten.baddbmm,
    aten.convolution,
    aten.index_select,
    aten.gather,
    aten.scatter,
    aten.embedding,
    aten.index_copy,
    aten.index_add,
}
"""Take no number from the host as one of their tensors, not even a single one."""

WITHOUT_KERNEL = {
    aten.empty,
    aten.empty_strided,
    aten.empty_like,
    aten.new_empty,
    aten.new_empty_strided,
    aten.detach,
    aten.alias,
    aten.lift,
    aten.lift_fresh,
    aten._unsafe_view,
    aten._reshape_alias,
    aten.resize_,
    aten.set_,
    aten._local_scalar_dense,
}


@dataclass(frozen=True)
class Kind:
    """What is known of an operation. written: which argument each of its results is, None for a new one.

    composite: it is made of others, and comes here whole in inference mode alone.
    """

    view: bool
    written: tuple[int | str | None, ...]
    composite: bool

    @property
    def in_place(self) -> bool:
        return any(each is not None for each in self.written)


@lru_cache(maxsize=4096)
def kind_of(func: Any) -> Kind:
    """The ``Kind`` of an operation."""
    schema = func._schema
    owners: dict[str, int | str] = {}
    for number, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            for name in argument.alias_info.before_set:
                owners[name] = argument.name if argument.kwarg_only else number
    written: list[int | str | None] = []
    view = False
    for result in schema.returns:
        alias = result.alias_info
        owner = None
        if alias is not None and alias.is_write:
            owner = next((owners[name] for name in alias.before_set if name in owners), None)
        elif alias is not None:
            view = True
        written.append(owner)
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    return Kind(view, tuple(written), composite)


def device_of(func: Any, tensors: Sequence[Tensor], args: Sequence[Any]) -> int | None:
    """The index of the device that the operands lie on; None where all lie on the host.

    Raises RuntimeError where they lie on several, but for what CUDA takes from the host: single numbers of pointwise
    operations, and indices.
    """
    packet = func.overloadpacket
    emulated = [x for x in tensors if isinstance(x, EmulatedTensor)]
    if not emulated:
        return None
    index = emulated[0].number
    if packet in COPIES:
        return index
    if any(x.number != index for x in emulated):
        raise mixed(func, tensors)
    if len(emulated) == len(tensors):
        return index
    if packet in INDEXING:
        values = args[2:3]
        if any(isinstance(x, Tensor) and not isinstance(x, EmulatedTensor) and x.dim() for x in [args[0], *values]):
            raise mixed(func, tensors)
        if not isinstance(args[0], EmulatedTensor):
            raise mixed(func, tensors)
        return index
    if packet in NO_SCALARS or any(x.dim() for x in tensors if not isinstance(x, EmulatedTensor)):
        raise mixed(func, tensors)
    return index


def mixed(func: Any, tensors: Sequence[Tensor]) -> RuntimeError:
    """The error of operands on several devices."""
    where = ", ".join(f"{tuple(x.shape)} on {x.device}" for x in tensors)
    return RuntimeError(
        f"Expected all tensors to be on the same device, but {func} got {where} (at {current_line()}; {NAME})"
    )


def waits(func: Any, args: Sequence[Any]) -> bool:
    """Whether the host waits for the device before the operation returns."""
    packet = func.overloadpacket
    if packet in WAITS:
        return True
    if packet is aten.repeat_interleave:
        # With its size given, nobody has to ask the device.
        return func is aten.repeat_interleave.Tensor
    return packet in INDEXING and any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def kernel_of(func: Any, results: Sequence[Tensor]) -> str | None:
    """The name of the kernel that an operation launches; None for views, for memory alone and for empty results."""
    packet = func.overloadpacket
    if packet in WITHOUT_KERNEL or kind_of(func).view:
        return None
    if results and all(x.numel() == 0 for x in results):
        return None
    return str(packet).removeprefix("aten.")
