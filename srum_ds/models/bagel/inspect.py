"""What a checkpoint folder holds, from its configuration files alone: no weights, no memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from srum_ds.models import lora
from srum_ds.models.bagel.config import SpecialTokens, read_config
from srum_ds.models.bagel.latents import Autoencoder
from srum_ds.models.bagel.model import Bagel
from srum_ds.models.bagel.modes import lora_targets, trained, trains_in

VISION_PARTS = ("vit_model.", "connector.", "vit_pos_embed.")


def part_of(name: str) -> str:
    """``understanding``, ``generation`` or ``vision``: the part a parameter of the model belongs to.

    vision: the tower, its connector and positions. generation: what only latent tokens use, their fixed
    position table included. understanding: the rest.
    """
    if name.startswith(VISION_PARTS):
        return "vision"
    if trains_in("generation", name) or name.startswith("latent_pos_embed."):
        return "generation"
    return "understanding"


def inspect_folder(path: Path | str, lora_rank: int = lora.DEFAULT_RANK) -> dict[str, Any]:
    """Counts keys and parameters of a BAGEL folder from its configuration files.

    Returns ``keys`` and ``parameters`` (autoencoder excluded), ``parameters_moe_gen`` (names containing
    ``moe_gen``), ``parts`` (understanding, generation, vision, vae) and ``trainable`` (parameters by mode;
    ``lora``'s for its default targets at rank ``lora_rank``).
    UserError as ``read_config``.
    """
    config = read_config(Path(path))
    with torch.device("meta"):
        module = Bagel(config, SpecialTokens())
        autoencoder = Autoencoder(config.vae)
    counts = {name: tensor.numel() for name, tensor in module.state_dict().items()}
    parts = dict.fromkeys(("understanding", "generation", "vision"), 0)
    for name, count in counts.items():
        parts[part_of(name)] += count
    parts["vae"] = sum(parameter.numel() for parameter in autoencoder.parameters())
    trainable = {mode: sum(counts[name] for name in trained(mode, counts)) for mode in ("generation", "transformer")}
    trainable["lora"] = lora.adapter_size(module, lora_targets(module), lora_rank)
    return {
        "keys": len(counts),
        "parameters": sum(counts.values()),
        "parameters_moe_gen": sum(count for name, count in counts.items() if "moe_gen" in name),
        "parts": parts,
        "trainable": trainable,
    }


def inspection_text(facts: dict[str, Any]) -> str:
    """The facts of ``inspect_folder`` as a few aligned lines."""
    rows = [
        ("keys", facts["keys"]),
        ("parameters", facts["parameters"]),
        ("  named moe_gen", facts["parameters_moe_gen"]),
    ]
    rows += [(f"  {part}", count) for part, count in facts["parts"].items() if part != "vae"]
    rows.append(("autoencoder", facts["parts"]["vae"]))
    rows += [(f"trains in mode {mode}", count) for mode, count in facts["trainable"].items()]
    return "\n".join(f"{name:<28}{count:>18,}" for name, count in rows)
