"""Models that no rank can hold: built on the meta device, then loaded straight into ZeRO-3 shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from srum_ds.common import ranks
from srum_ds.common.errors import UserError
from srum_ds.common.finite import refuse_not_finite
from srum_ds.engine.base import DTYPES
from srum_ds.engine.config import frozen_config
from srum_ds.engine.distributed import compute_device, deepspeed, start_distributed

Loader = Callable[[nn.Module, Iterable[tuple[str, Tensor]]], None]


def shard_loader(ds_config: Mapping[str, Any], precision: str) -> Loader | None:
    """Under ZeRO-3, what gives a module on the meta device its shards and their values; else None.

    See ``load_into_shards``. precision: ``fp32`` or ``bf16``, as the engine will compute.
    """
    if ds_config["zero_optimization"]["stage"] != 3:
        return None
    return partial(load_into_shards, ds_config=ds_config, precision=precision)


@torch.no_grad()
def load_into_shards(
    module: nn.Module,
    stored: Iterable[tuple[str, Tensor]],
    ds_config: Mapping[str, Any],
    precision: str,
) -> None:
    """Partitions a module on the meta device and copies each rank's own part of every stored tensor.

    All ranks call it. One parameter at a time exists whole, and empty, so a rank never holds more than
    its shards and the largest parameter. A parameter that two modules share is partitioned once and stays shared;
    buffers that have values keep them, such as those that a library computes and stores in no file. stored: (name,
    tensor) pairs, names that the module lacks are passed over; of memory-mapped tensors only this rank's part is read.
    Values are rounded to the precision; ``Engine.create`` takes the stored ones again for its masters.

    Raises UserError, on every rank alike, for a parameter or a buffer without a value that no pair filled, and for a
    tensor of another shape or with numbers that are not finite.
    """
    start_distributed()
    unfilled = _build_in_shards(module, frozen_config(ds_config, precision), DTYPES[precision])
    parameters: dict[str, Any] = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers())
    broken: list[UserError] = []

    def look(part: Tensor, name: str) -> None:
        # Ranks see different parts: whether any is broken is said by all of them, below.
        try:
            refuse_not_finite(part, name, stored)
        except UserError as error:
            broken.append(error)

    for name, tensor in stored:
        if name in parameters:
            _check_shape(name, tensor, parameters[name].ds_shape)
            start, numel = held_part(parameters[name])
            shard = parameters[name].ds_tensor
            part = tensor.reshape(-1)[start : start + numel]
            look(part, name)
            shard[:numel].copy_(part)
            shard[numel:].zero_()
            unfilled.discard(id(parameters[name]))
        elif name in buffers:
            _check_shape(name, tensor, buffers[name].shape)
            look(tensor, name)
            buffers[name].copy_(tensor)
            unfilled.discard(id(buffers[name]))
    ranks.run_on_all_ranks(lambda: _raise_first(broken))
    lacking = [name for name, tensor in (*module.named_parameters(), *buffers.items()) if id(tensor) in unfilled]
    if lacking:
        shown = ", ".join(lacking[:8]) + (f" and {len(lacking) - 8} more" if len(lacking) > 8 else "")
        raise UserError(
            f"no stored tensor fills {len(lacking)} tensors of the model: {shown}. Its weights are not whole, or the "
            "file calls them otherwise than the module does."
        )


def _raise_first(errors: Sequence[UserError]) -> None:
    if errors:
        raise errors[0]


def _check_shape(name: str, tensor: Tensor, expected: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(expected):
        raise UserError(f"{name} is stored as {list(tensor.shape)}, expected {list(expected)}.")


def _build_in_shards(module: nn.Module, config: Mapping[str, Any], dtype: torch.dtype) -> set[int]:
    """Partitions the parameters, gives buffers on the meta device memory; returns the ids of all that has no value."""
    # zero.Init as a context would run every constructor at full size; the module is there already, so
    # its parameters are converted one by one, by the Init of a parameter made for that.
    anchor: Any = nn.Linear(1, 1, bias=False)
    deepspeed.zero.Init(module=anchor, config_dict_or_path=dict(config))
    device = compute_device()
    shards: dict[int, nn.Parameter] = {}
    unfilled: set[int] = set()
    # Ids count for as long as what they are of is alive.
    whole: list[nn.Parameter] = list(module.parameters())
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if id(parameter) not in shards:
                values = torch.empty(parameter.shape, dtype=dtype, device=device)
                sharded = nn.Parameter(values, requires_grad=parameter.requires_grad)
                del values
                anchor.weight.convert_to_zero_parameters(param_list=[sharded])
                shards[id(parameter)] = sharded
                unfilled.add(id(sharded))
            setattr(owner, name, shards[id(parameter)])
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(owner, name, torch.empty_like(buffer, device=device))
                unfilled.add(id(getattr(owner, name)))
            else:
                setattr(owner, name, buffer.to(device))
    del whole
    return unfilled


def held_part(parameter: Any) -> tuple[int, int]:
    """(start, numel) of what this rank holds of a sharded parameter's flattened elements, padding apart."""
    length = parameter.ds_tensor.ds_numel
    start = min(length * dist.get_rank(group=parameter.ds_process_group), parameter.ds_numel)
    return start, min(length, parameter.ds_numel - start)
