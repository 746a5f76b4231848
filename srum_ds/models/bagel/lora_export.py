"""Checkpoint folders of a model with a LoRA adapter: the merged weights, and the adapter alone beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from srum_ds.models import lora
from srum_ds.models.bagel.weights import export_folder, open_weights, weight_files, write_safetensors

LORA_FOLDER = "lora"


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
