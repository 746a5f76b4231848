"""Models of a library without memory, and giving them memory and values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from srum_ds.common.errors import UserError
from srum_ds.common.finite import refuse_not_finite
from srum_ds.models.library.files import some

Built = TypeVar("Built", bound=nn.Module)


def meta_module(build: Callable[[], Built]) -> Built:
    """What ``build`` makes, with its parameters on the meta device and its buffers real; shared parameters stay shared.

    Libraries keep buffers that no file holds, such as the frequencies of rotary positions: on the meta device they
    would come back as uninitialised memory. transformers ties weights when it loads, not when it builds, so it is done
    here.
    """
    with init_empty_weights(include_buffers=False):
        module = build()
    for part in module.modules():
        tie = getattr(part, "tie_weights", None)
        if callable(tie):
            tie()
    return module.requires_grad_(False)


@torch.no_grad()
def fill(
    module: nn.Module,
    stored: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Gives a module of ``meta_module`` its memory on a device, and the values of (name, tensor) pairs.

    Parameters of floating point get ``dtype``; buffers keep their own, as a library's ``from_pretrained`` does.
    Parameters that two modules share stay one. Names that the module lacks are passed over. UserError for a parameter
    that no pair filled, and for one of another shape or with numbers that are not finite.
    """
    copies: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if id(parameter) not in copies:
                kind = dtype if parameter.is_floating_point() else parameter.dtype
                empty = torch.empty(parameter.shape, dtype=kind, device=device)
                copies[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            setattr(owner, name, copies[id(parameter)])
        for name, buffer in list(owner.named_buffers(recurse=False)):
            owner._buffers[name] = torch.empty_like(buffer, device=device) if buffer.is_meta else buffer.to(device)
    wanted: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    wanted |= dict(module.named_buffers())
    empty_ids = {id(parameter) for parameter in copies.values()}
    for name, tensor in stored:
        if name not in wanted:
            continue
        if wanted[name].shape != tensor.shape:
            raise UserError(f"{name} is stored as {list(tensor.shape)}, expected {list(wanted[name].shape)}")
        refuse_not_finite(tensor, name, stored)
        wanted[name].copy_(tensor)
        empty_ids.discard(id(wanted[name]))
    unfilled = [name for name, parameter in module.named_parameters() if id(parameter) in empty_ids]
    if unfilled:
        raise UserError(f"no stored tensor fills {len(unfilled)} of the model's parameters: {some(unfilled)}")
