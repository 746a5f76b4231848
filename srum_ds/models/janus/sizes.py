"""Which size of images a Janus folder draws, told by its configuration alone: nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path

from srum_ds.common.model_files import configuration, whole_number

# What the library has where config.json does not say it.
IMAGE, PATCH, LEVELS = 384, 16, 5


def refuses_size(folder: Path, height: int, width: int) -> str:
    """Why an image of this size in pixels is not drawn, as ``JanusSettings.grid`` says it; empty where it is."""
    values = configuration(folder / "config.json")
    vision, vq = values.get("vision_config"), values.get("vq_config")
    levels = vq.get("channel_multiplier") if isinstance(vq, dict) else None
    halvings = (len(levels) if isinstance(levels, list) else LEVELS) - 1
    patches = whole_number(vision, "image_size", IMAGE) // whole_number(vision, "patch_size", PATCH)
    side = patches * 2**halvings
    return "" if (height, width) == (side, side) else f"this model draws {side} x {side} pixels alone"
