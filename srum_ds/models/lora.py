"""LoRA (arXiv 2106.09685) on a model's linear layers, through the library peft.

An adapted weight acts as W + alpha / rank * B A, with A [rank, in] random and B [out, rank] zero at the
start, so an untrained adapter changes nothing. Inject after the base weights are loaded: the wrapped
layer's own parameters are then called ``<module>.base_layer.*``. Layers may be partitioned already
(``deepspeed.zero.Init``): sizes come from the layer, and the adapter's tensors are whole until the
engine partitions them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from srum_ds.common import seeds
from srum_ds.common.errors import UserError
from srum_ds.common.files import write_atomic
from srum_ds.models.lora_names import ADAPTER as ADAPTER
from srum_ds.models.lora_names import PARTS
from srum_ds.models.lora_names import is_adapter as is_adapter
from srum_ds.models.lora_names import match_targets as match_targets

if TYPE_CHECKING:
    from peft import LoraConfig

DEFAULT_RANK = 16
"""The rank that the configuration has where none is set."""

_KEY_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Binding:
    """What an adapter is bound to: full names of the modules, in the model's order, and its size."""

    rank: int
    alpha: float
    modules: tuple[str, ...]
    parameters: int

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


def adapter_size(module: nn.Module, names: Sequence[str], rank: int) -> int:
    """Parameters of an adapter of this rank on the linear layers called ``names``.

    UserError for a rank above the smaller side of every one of them: the layers themselves have no higher one.
    """
    layers = [_linear(module, name) for name in names]
    largest = max((min(layer.in_features, layer.out_features) for layer in layers), default=rank)
    if rank > largest:
        raise UserError(
            f"lora.rank={rank}: no layer that is adapted has a rank above {largest} (lora.targets), so that more would "
            f"only take memory; set lora.rank={largest} or less"
        )
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)


def _linear(module: nn.Module, name: str) -> nn.Linear:
    layer = module.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"{name} is no linear layer")
    return layer


def inject(module: nn.Module, names: Sequence[str], rank: int, alpha: float, seed: int) -> Binding:
    """Wraps the linear layers called ``names`` in place; returns what the adapter is bound to.

    A is uniform in +-1 / sqrt(in), as peft and the paper's code draw it, by (seed, module's name): the
    same on every rank, whatever else is adapted. The tensors are float32 whatever the layers' precision. UserError as
    ``adapter_size``.
    """
    from peft import inject_adapter_in_model

    bases = {name: _linear(module, name) for name in names}
    size = adapter_size(module, names, rank)
    inject_adapter_in_model(_config(names, rank, alpha), module, ADAPTER)
    layers = dict(_layers(module))
    if layers.keys() != bases.keys():
        raise RuntimeError(f"peft wrapped {sorted(layers)[:3]}... ({len(layers)}), asked for {len(names)} modules")
    for name, layer in layers.items():
        base = bases[name]
        device = base.weight.device
        down = _initial_down((rank, base.in_features), seed, name).to(device)
        up = torch.zeros(base.out_features, rank, dtype=torch.float32, device=device)
        layer.lora_A[ADAPTER].weight = nn.Parameter(down)
        layer.lora_B[ADAPTER].weight = nn.Parameter(up)
        layer.eval()
    return Binding(rank, alpha, tuple(names), size)


def _config(names: Sequence[str], rank: int, alpha: float) -> LoraConfig:
    # peft takes seconds to import: only where an adapter is wanted.
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=list(names),
        lora_dropout=0.0,
        bias="none",
    )


def _initial_down(shape: tuple[int, int], seed: int, name: str) -> Tensor:
    return (2 * seeds.uniform(shape, seed, "lora", name) - 1) / math.sqrt(shape[1])


def _layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers that peft has wrapped."""
    for name, layer in module.named_modules():
        if hasattr(layer, "lora_A"):
            yield name, layer


@contextmanager
def switched_off(module: nn.Module) -> Iterator[None]:
    """Lets every adapted layer inside act as its base layer alone, bit for bit.

    Only flags on the layers change, so it may be used where nothing may communicate. Which parameters
    require a gradient is afterwards as it was.
    """
    layers = [layer for _, layer in _layers(module)]
    flags = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


# ---- files


def adapter_key(name: str) -> str:
    """The key in peft's ``adapter_model.safetensors`` of an adapter's parameter."""
    return _KEY_PREFIX + name.replace(f".{ADAPTER}.", ".")


def adapter_keys(module_name: str) -> tuple[str, str]:
    """The keys of A and B of an adapted module in peft's file."""
    down, up = (adapter_key(f"{module_name}.{part}.{ADAPTER}.weight") for part in PARTS)
    return down, up


def write_adapter_config(binding: Binding, folder: Path) -> None:
    """Writes peft's ``adapter_config.json``. UserError where the folder cannot be written."""
    config = _config(binding.modules, binding.rank, binding.alpha)
    config.inference_mode = True
    values = config.to_dict() | {"target_modules": sorted(binding.modules)}
    write_atomic(folder / "adapter_config.json", json.dumps(values, indent=2, sort_keys=True) + "\n")


def merged(weight: Tensor, down_RI: Tensor, up_OR: Tensor, scale: float) -> Tensor:
    """W + scale * B A [out, in], float32."""
    return weight.float() + scale * (up_OR.float() @ down_RI.float())
