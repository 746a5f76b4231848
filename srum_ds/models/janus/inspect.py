"""What a checkpoint folder holds, from its configuration alone: no weights, no memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from srum_ds.models import lora
from srum_ds.models.janus.config import read_config
from srum_ds.models.janus.modes import GENERATION_PARTS, lora_targets, trained
from srum_ds.models.janus.weights import build

VISION_PARTS = ("model.vision_model.", "model.aligner.")


def part_of(name: str) -> str:
    """``understanding``, ``generation`` or ``vision``: the part that a parameter of the module belongs to."""
    if name.startswith(VISION_PARTS):
        return "vision"
    return "generation" if name.startswith(GENERATION_PARTS) else "understanding"


def inspect_folder(path: Path | str, lora_rank: int = lora.DEFAULT_RANK) -> dict[str, Any]:
    """Counts parameters of a Janus folder from its configuration.

    Returns ``keys`` and ``parameters`` (the VQ excluded), ``picture`` (pixels and codes along a side, and how many
    codes there are), ``parts`` (understanding, generation, vision, vq) and ``trainable`` (parameters by mode;
    ``lora``'s for its default targets at rank ``lora_rank``). UserError as ``read_config``.
    """
    settings = read_config(Path(path))
    module, vq, _ = build(Path(path), settings)
    counts = {name: parameter.numel() for name, parameter in module.named_parameters()}
    parts = dict.fromkeys(("understanding", "generation", "vision"), 0)
    for name, count in counts.items():
        parts[part_of(name)] += count
    parts["vq"] = sum(parameter.numel() for parameter in vq.parameters())
    trainable = {mode: sum(counts[name] for name in trained(mode, counts)) for mode in ("generation", "transformer")}
    trainable["lora"] = lora.adapter_size(module, lora_targets(module), lora_rank)
    return {
        "keys": len(counts),
        "parameters": sum(counts.values()),
        "picture": {"pixels": settings.side, "codes": settings.per_side, "codebook": settings.codes},
        "parts": parts,
        "trainable": trainable,
    }


def inspection_text(facts: dict[str, Any]) -> str:
    """The facts of ``inspect_folder`` as a few aligned lines."""
    rows = [("keys", facts["keys"]), ("parameters", facts["parameters"])]
    rows += [(f"  {part}", count) for part, count in facts["parts"].items() if part != "vq"]
    rows.append(("vq", facts["parts"]["vq"]))
    rows += [(f"trains in mode {mode}", count) for mode, count in facts["trainable"].items()]
    lines = [f"{name:<28}{count:>18,}" for name, count in rows]
    picture = facts["picture"]
    sides = f"{picture['pixels']} x {picture['pixels']} pixels, {picture['codes']} x {picture['codes']} codes"
    return "\n".join([*lines, f"draws {sides} of {picture['codebook']:,}"])
