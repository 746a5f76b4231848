"""Checkpoint folders of a model with a LoRA adapter: the merged weights, and the adapter alone beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from srum_ds.models import lora
from srum_ds.models.library.files import open_weights, write_safetensors
from srum_ds.models.library.folder import FolderWeights, Streamed

LORA_FOLDER = "lora"


def _same(name: str) -> str:
    return name


def export_adapted(
    weights: FolderWeights,
    target: Path,
    binding: lora.Binding,
    tensors: Streamed,
    dtype: torch.dtype | None = None,
    library_name: Callable[[str], str] = _same,
) -> None:
    """Writes a checkpoint folder with an adapter merged into its weights, and the adapter beside it.

    tensors: (name, tensor) of the adapter's parameters, A before B, module by module in the binding's
    order; they are streamed to peft's ``lora/adapter_model.safetensors`` (float32), from which the
    merged weights W + scale * B A are then made one at a time, in float32, stored in ``dtype`` (None: as
    the source stores W). library_name: from a name of the module to that in the library's own model, which is what
    peft's files name.
    """
    folder = target / LORA_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    modules = tuple(library_name(module) for module in binding.modules)
    named = lora.Binding(binding.rank, binding.alpha, modules, binding.parameters)
    lora.write_adapter_config(named, folder)
    path = folder / "adapter_model.safetensors"
    keyed = ((lora.adapter_key(library_name(name)), tensor) for name, tensor in tensors)
    write_safetensors(path, _adapter_shapes(weights, binding, modules), keyed)
    names = [f"{module}.weight" for module in binding.modules]
    weights.export(target, names, _merged(weights, path, binding, modules), dtype)


def _adapter_shapes(
    weights: FolderWeights, binding: lora.Binding, modules: Iterable[str]
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for module, stored_as in zip(binding.modules, modules, strict=True):
        out_features, in_features = weights.shape(f"{module}.weight")
        down, up = lora.adapter_keys(stored_as)
        shapes[down] = (torch.float32, (binding.rank, in_features))
        shapes[up] = (torch.float32, (out_features, binding.rank))
    return shapes


def _merged(
    weights: FolderWeights, adapter: Path, binding: lora.Binding, modules: Iterable[str]
) -> Iterator[tuple[str, Tensor]]:
    with open_weights(adapter) as parts:
        for module, stored_as in zip(binding.modules, modules, strict=True):
            name = f"{module}.weight"
            down, up = lora.adapter_keys(stored_as)
            yield (
                name,
                lora.merged(weights.tensor(name), parts.get_tensor(down), parts.get_tensor(up), binding.scale),
            )
