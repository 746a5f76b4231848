"""LoRA on BAGEL: where an adapter may bind, and checkpoint folders of an adapted model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from srum_ds.models import lora
from srum_ds.models.bagel.modes import trains_in
from srum_ds.models.bagel.weights import export_folder, open_weights, weight_files, write_safetensors

DEFAULT_TARGETS = (
    "q_proj_moe_gen",
    "k_proj_moe_gen",
    "v_proj_moe_gen",
    "o_proj_moe_gen",
    "mlp_moe_gen.gate_proj",
    "mlp_moe_gen.up_proj",
    "mlp_moe_gen.down_proj",
)
"""All projections of the generation experts."""

LORA_FOLDER = "lora"


def adaptable(module: nn.Module) -> list[str]:
    """Names of the modules an adapter may bind to: linear layers that mode ``transformer`` trains."""
    linear = (name for name, layer in module.named_modules() if isinstance(layer, nn.Linear))
    return [name for name in linear if trains_in("transformer", f"{name}.weight")]


def lora_targets(module: nn.Module, targets: Sequence[str] = ()) -> tuple[str, ...]:
    """Full names of the modules that ``targets`` mean; without any, of ``DEFAULT_TARGETS``."""
    return lora.match_targets(adaptable(module), targets or DEFAULT_TARGETS)


def export_adapted(
    source: Path,
    target: Path,
    binding: lora.Binding,
    tensors: Iterable[tuple[str, Tensor | None]],
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a BAGEL folder with an adapter merged into ``source``'s weights, and the adapter beside it.

    tensors: (name, tensor) of the adapter's parameters, A before B, module by module in the binding's
    order; they are streamed to peft's ``lora/adapter_model.safetensors`` (float32), from which the
    merged weights W + scale * B A are then made one at a time, in float32, stored in ``dtype`` (None: as
    the source stores W).
    """
    folder = target / LORA_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    lora.write_adapter_config(binding, folder)
    path = folder / "adapter_model.safetensors"
    named = ((lora.adapter_key(name), tensor) for name, tensor in tensors)
    write_safetensors(path, _adapter_shapes(source, binding), named)
    names = [f"{module}.weight" for module in binding.modules]
    export_folder(source, target, names, _merged(source, path, binding), dtype)


def _adapter_shapes(source: Path, binding: lora.Binding) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    files = weight_files(source)
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for module in binding.modules:
        weight = f"{module}.weight"
        with open_weights(files[weight]) as handle:
            out_features, in_features = handle.get_slice(weight).get_shape()
        down, up = lora.adapter_keys(module)
        shapes[down] = (torch.float32, (binding.rank, in_features))
        shapes[up] = (torch.float32, (out_features, binding.rank))
    return shapes


def _merged(source: Path, adapter: Path, binding: lora.Binding) -> Iterator[tuple[str, Tensor]]:
    files = weight_files(source)
    with open_weights(adapter) as parts:
        for module in binding.modules:
            name = f"{module}.weight"
            down, up = lora.adapter_keys(module)
            with open_weights(files[name]) as handle:
                weight = handle.get_tensor(name)
            yield name, lora.merged(weight, parts.get_tensor(down), parts.get_tensor(up), binding.scale)
