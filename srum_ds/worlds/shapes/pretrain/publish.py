"""From pretraining's state to a checkpoint folder in the released BAGEL layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from srum_ds.models.bagel.config import read_config
from srum_ds.models.bagel.latents import Autoencoder
from srum_ds.models.bagel.weights import save_autoencoder
from srum_ds.worlds.shapes.pretrain import drawing, umm
from srum_ds.worlds.shapes.pretrain.stage import averaged_weights

FILES = (
    "config.json",
    "llm_config.json",
    "vit_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
)


def publish(work: Path, out: Path) -> None:
    """Writes the averaged weights (bfloat16, as released) and the autoencoder (float32) into ``out``."""
    weights = averaged_weights(work, umm.NAME) | averaged_weights(work, drawing.NAME)
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(work / "model" / name, out / name)
    averaged = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    save_file(averaged, out / "ema.safetensors", metadata={"format": "pt"})
    autoencoder = Autoencoder(read_config(out).vae)
    autoencoder.kl.load_state_dict(load_file(work / "vae.safetensors"))
    save_autoencoder(autoencoder, out / "ae.safetensors")
