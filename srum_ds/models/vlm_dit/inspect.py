"""What a pipeline's folder holds, from its configuration files alone: no weights, no memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from srum_ds.models import lora
from srum_ds.models.library import meta_module
from srum_ds.models.vlm_dit.config import read_folder
from srum_ds.models.vlm_dit.modes import lora_targets, trained
from srum_ds.models.vlm_dit.parts import build_autoencoder, build_encoder, build_transformer


def inspect_folder(path: Path | str, lora_rank: int = lora.DEFAULT_RANK) -> dict[str, Any]:
    """Counts parameters of a pipeline's folder from its configuration files.

    Returns ``pipeline`` (its class), ``keys`` and ``parameters`` (autoencoder excluded), ``parts`` (transformer, text
    model, vision tower, vae) and ``trainable`` (parameters by mode; ``lora``'s for its default targets at rank
    ``lora_rank``). UserError as ``read_folder``.
    """
    folder = read_folder(Path(path))
    encoder = meta_module(lambda: build_encoder(folder))
    whole = nn.ModuleDict({"transformer": meta_module(lambda: build_transformer(folder)), "text_encoder": encoder})
    autoencoder = meta_module(lambda: build_autoencoder(folder))
    counts = {name: parameter.numel() for name, parameter in whole.named_parameters()}
    seen = sum(parameter.numel() for parameter in encoder.model.visual.parameters())
    parts = {
        "transformer": sum(count for name, count in counts.items() if name.startswith("transformer.")),
        "text model": sum(count for name, count in counts.items() if name.startswith("text_encoder.")) - seen,
        "vision tower": seen,
        "vae": sum(parameter.numel() for parameter in autoencoder.parameters()),
    }
    unreached = folder.pipeline.unreached
    adapter = lora.adapter_size(whole, lora_targets(whole, (), unreached), lora_rank)
    return {
        "pipeline": folder.name,
        "keys": len(counts),
        "parameters": sum(counts.values()),
        "parts": parts,
        "trainable": {
            "generation": sum(counts[name] for name in trained("generation", counts, unreached)),
            "lora": adapter,
        },
    }


def inspection_text(facts: dict[str, Any]) -> str:
    """The facts of ``inspect_folder`` as a few aligned lines."""
    rows = [("keys", facts["keys"]), ("parameters", facts["parameters"])]
    rows += [(f"  {part}", count) for part, count in facts["parts"].items() if part != "vae"]
    rows.append(("autoencoder", facts["parts"]["vae"]))
    rows += [(f"trains in mode {mode}", count) for mode, count in facts["trainable"].items()]
    lines = [f"{name:<28}{count:>18,}" for name, count in rows]
    return "\n".join([f"{'pipeline':<28}{facts['pipeline']:>18}", *lines])
