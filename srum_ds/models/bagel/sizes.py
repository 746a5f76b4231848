"""Which sizes of images a BAGEL folder draws, told by its configuration alone: nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path

from srum_ds.common.model_files import configuration, whole_number

# The released BAGEL-7B-MoT, whose config.json does not say them.
LATENT_PATCH, LATENT_SIDE, DOWNSAMPLE = 2, 64, 8


def refuses_size(folder: Path, height: int, width: int) -> str:
    """Why an image of this size in pixels is not drawn, as ``Reader.grid`` says it; empty where it is."""
    top = configuration(folder / "config.json")
    unit = whole_number(top, "latent_patch_size", LATENT_PATCH) * whole_number(
        top.get("vae_config"), "downsample", DOWNSAMPLE
    )
    side = whole_number(top, "max_latent_size", LATENT_SIDE)
    if height % unit or width % unit:
        return f"image sides must be multiples of {unit} pixels"
    if max(height, width) > side * unit:
        return f"max_latent_size {side} in config.json allows {side * unit} pixels a side"
    return ""
