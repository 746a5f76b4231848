"""What a checkpoint folder holds, from its configuration files alone: no weights, no memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from srum_ds.models import lora
from srum_ds.models.blip3o.config import read_config
from srum_ds.models.blip3o.decoder import read_decoder
from srum_ds.models.blip3o.model import Blip3o
from srum_ds.models.blip3o.modes import lora_targets, trained
from srum_ds.models.library import meta_module


def inspect_folder(path: Path | str, lora_rank: int = lora.DEFAULT_RANK) -> dict[str, Any]:
    """Counts parameters of a BLIP3-o folder from its configuration files.

    Returns ``keys`` and ``parameters`` (decoder excluded), ``parts`` (transformer with its projection, queries, text
    model, vision tower, decoder), ``features`` (rows, columns and numbers of a cell) and ``trainable`` (parameters by
    mode; ``lora``'s for its default targets at rank ``lora_rank``). UserError as ``read_config`` and ``read_decoder``.
    """
    config = read_config(Path(path))
    decoder = read_decoder(config.decoder_folder, config.denoiser.in_channels)
    module = meta_module(lambda: Blip3o(config))
    counts = {name: parameter.numel() for name, parameter in module.named_parameters()}
    seen = _count(module.vlm.model.visual)
    parts = {
        "transformer": _count(module.dit),
        "queries": _count(module.queries),
        "text model": _count(module.vlm) - seen,
        "vision tower": seen,
        "decoder": _count(meta_module(decoder.build_unet)) + _count(meta_module(decoder.build_vae)),
    }
    return {
        "keys": len(counts),
        "parameters": sum(counts.values()),
        "parts": parts,
        "features": [config.denoiser.input_size, config.denoiser.input_size, config.denoiser.in_channels],
        "trainable": {
            "generation": sum(counts[name] for name in trained("generation", counts)),
            "lora": lora.adapter_size(module, lora_targets(module), lora_rank),
        },
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def inspection_text(facts: dict[str, Any]) -> str:
    """The facts of ``inspect_folder`` as a few aligned lines."""
    rows = [("keys", facts["keys"]), ("parameters", facts["parameters"])]
    rows += [(f"  {part}", count) for part, count in facts["parts"].items() if part != "decoder"]
    rows.append(("decoder", facts["parts"]["decoder"]))
    rows += [(f"trains in mode {mode}", count) for mode, count in facts["trainable"].items()]
    shape = " x ".join(str(number) for number in facts["features"])
    return "\n".join([f"{'features':<28}{shape:>18}", *(f"{name:<28}{count:>18,}" for name, count in rows)])
