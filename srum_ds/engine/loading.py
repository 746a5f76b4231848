"""Models that no rank can hold: built on the meta device, then loaded straight into ZeRO-3 shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

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
    its shards and the largest parameter. stored: (name, tensor) pairs, names that the module lacks are
    passed over; of memory-mapped tensors only this rank's part is read. Values are rounded to the
    precision; ``Engine.create`` takes the stored ones again for its masters.
    """
    start_distributed()
    _build_in_shards(module, frozen_config(ds_config, precision), DTYPES[precision])
    parameters: dict[str, Any] = dict(module.named_parameters())
    buffers = dict(module.named_buffers())
    for name, tensor in stored:
        if name in parameters:
            start, numel = held_part(parameters[name])
            shard = parameters[name].ds_tensor
            shard[:numel].copy_(tensor.reshape(-1)[start : start + numel])
            shard[numel:].zero_()
        elif name in buffers:
            buffers[name].copy_(tensor)


def _build_in_shards(module: nn.Module, config: Mapping[str, Any], dtype: torch.dtype) -> None:
    # zero.Init as a context would run every constructor at full size; the module is there already, so
    # its parameters are converted one by one, by the Init of a parameter made for that.
    anchor: Any = nn.Linear(1, 1, bias=False)
    deepspeed.zero.Init(module=anchor, config_dict_or_path=dict(config))
    device = compute_device()
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            values = torch.empty(parameter.shape, dtype=dtype, device=device)
            sharded = nn.Parameter(values, requires_grad=parameter.requires_grad)
            del values
            anchor.weight.convert_to_zero_parameters(param_list=[sharded])
            setattr(owner, name, sharded)
        for name, buffer in list(owner.named_buffers(recurse=False)):
            setattr(owner, name, torch.empty_like(buffer, device=device))


def held_part(parameter: Any) -> tuple[int, int]:
    """(start, numel) of what this rank holds of a sharded parameter's flattened elements, padding apart."""
    length = parameter.ds_tensor.ds_numel
    start = min(length * dist.get_rank(group=parameter.ds_process_group), parameter.ds_numel)
    return start, min(length, parameter.ds_numel - start)
