"""BAGEL checkpoint folders: strict loading, and export in the very same layout."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor, nn

from srum_ds.common.errors import UserError
from srum_ds.common.finite import Stored, refuse_not_finite
from srum_ds.models.bagel.latents import Autoencoder
from srum_ds.models.library.files import open_weights, some, write_safetensors
from srum_ds.models.library.folder import FolderWeights, Part

WEIGHT_FILES = ("ema.safetensors", "model.safetensors")
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
)
CONFIG_FILES = ("config.json", "llm_config.json", "vit_config.json", "generation_config.json")


def folder_weights(folder: Path) -> FolderWeights:
    """The folder's tensors, whose keys are the module's names. UserError where it holds none."""
    part = Part(files=WEIGHT_FILES, exported="ema.safetensors")
    return FolderWeights(Path(folder), (part,), copied=(*CONFIG_FILES, *TOKENIZER_FILES, "ae.safetensors"))


def check_weights(module: nn.Module, folder: Path) -> None:
    """Every key of the module must be in the folder with its shape, and no other; see ``FolderWeights.check``."""
    folder_weights(folder).check(module, "llm_config.json, vit_config.json and config.json belong")


def stored_weights(folder: Path) -> Stored:
    """Yields (key, tensor) for every tensor of the folder, memory-mapped, in its stored dtype, one at a time."""
    return folder_weights(folder).stored()


@torch.no_grad()
def fill(module: nn.Module, stored: Iterable[tuple[str, Tensor]]) -> None:
    """Copies stored tensors into the module's of the same names, in the module's dtype. UserError where not finite."""
    wanted: dict[str, Tensor] = dict(module.named_parameters())
    wanted |= dict(module.named_buffers())
    for key, tensor in stored:
        if key in wanted:
            refuse_not_finite(tensor, key, stored)
            wanted[key].copy_(tensor)


def load_autoencoder(autoencoder: Autoencoder, path: Path) -> None:
    """Loads ``ae.safetensors`` (FLUX's key names) into the diffusers module, strictly."""
    levels = len(autoencoder.config.ch_mult)
    wanted = {_flux_name(name, levels) for name in autoencoder.kl.state_dict()}
    with open_weights(path) as handle:
        stored = {key: handle.get_tensor(key) for key in handle.keys()}
    # Not looked at for numbers that are not finite: it only makes pictures, and those are looked at wherever some are
    # made, since finite weights may make them too, in bfloat16.
    if stored.keys() != wanted:
        raise UserError(
            f"{path} does not fit config.json's vae_config. "
            f"missing: {some(sorted(wanted - stored.keys()))}; "
            f"unexpected: {some(sorted(stored.keys() - wanted))}."
        )
    config = {"down_block_types": autoencoder.kl.config.down_block_types}
    config["up_block_types"] = autoencoder.kl.config.up_block_types
    converted = convert_ldm_vae_checkpoint(stored, config)
    misshapen = [
        f"{_flux_name(name, levels)} is {list(converted[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in autoencoder.kl.state_dict().items()
        if converted[name].shape != tensor.shape
    ]
    if misshapen:
        raise UserError(f"{path} does not fit config.json's vae_config. misshapen: {some(sorted(misshapen))}.")
    autoencoder.kl.load_state_dict(converted)


_TO_FLUX = (
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0", "mid.attn_1"),
    ("attn_1.group_norm", "attn_1.norm"),
    ("attn_1.to_q", "attn_1.q"),
    ("attn_1.to_k", "attn_1.k"),
    ("attn_1.to_v", "attn_1.v"),
    ("attn_1.to_out.0", "attn_1.proj_out"),
    ("down_blocks.", "down."),
    (".resnets.", ".block."),
    (".downsamplers.0.", ".downsample."),
    (".upsamplers.0.", ".upsample."),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
)


def _flux_name(name: str, levels: int) -> str:
    """FLUX's name of a key of diffusers' AutoencoderKL; FLUX counts the decoder's levels from the image."""
    for ours, theirs in _TO_FLUX:
        name = name.replace(ours, theirs)
    parts = name.split(".")
    if parts[1] == "up_blocks":
        parts[1:3] = ["up", str(levels - 1 - int(parts[2]))]
    return ".".join(parts)


def save_autoencoder(autoencoder: Autoencoder, path: Path) -> None:
    """Writes ``ae.safetensors`` in FLUX's key names and shapes, in the weights' own dtype.

    ``load_autoencoder`` reads it back bit for bit. UserError when the file cannot be written.
    """
    levels = len(autoencoder.config.ch_mult)
    stored: dict[str, Tensor] = {}
    for name, tensor in autoencoder.kl.state_dict().items():
        key = _flux_name(name, levels)
        # FLUX's attention projections are 1 x 1 convolutions.
        is_projection = ".attn_1." in key and tensor.ndim == 2
        stored[key] = tensor[:, :, None, None] if is_projection else tensor
    shapes = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in sorted(stored.items())}
    write_safetensors(Path(path), shapes, ((key, stored[key]) for key in shapes))
