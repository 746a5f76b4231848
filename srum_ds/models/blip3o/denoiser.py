"""The diffusion transformer that draws CLIP features, of diffusers' classes, and its checkpoint folder.

BLIP3-o's ``NextDiTCrossAttn`` is diffusers' ``LuminaNextDiT2DModel`` behind a projection of what conditions it; their
velocities are equal. ``load_denoiser`` opens a folder with this part alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import LuminaNextDiT2DModel
from diffusers.models.embeddings import PixArtAlphaTextProjection, get_2d_rotary_pos_embed_lumina
from torch import Tensor, nn

from srum_ds.common.errors import UserError
from srum_ds.models.blip3o.config_values import read_json
from srum_ds.models.library import FolderWeights, Part, fill, meta_module

_STRANGER = "a tensor of no transformer: "


@dataclass(frozen=True)
class DenoiserConfig:
    """Sizes of the transformer, by the names and with the defaults of the released ``NextDiTCrossAttnConfig``.

    A picture is ``input_size`` x ``input_size`` cells of ``in_channels`` numbers; ``latent_embedding_size`` is the
    width of what conditions it.
    """

    input_size: int = 8
    patch_size: int = 1
    in_channels: int = 1792
    dim: int = 1792
    n_layers: int = 24
    n_heads: int = 28
    n_kv_heads: int = 28
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    latent_embedding_size: int = 3584
    learn_sigma: bool = False
    qk_norm: bool = True

    @property
    def head_size(self) -> int:
        """Numbers of one head."""
        return self.dim // self.n_heads


def denoiser_config(values: Mapping[str, Any], where: str, **defaults: Any) -> DenoiserConfig:
    """The sizes among ``values``; what is absent is the release's, or that of ``defaults``. Other keys are passed over.

    UserError, naming ``where`` and the key, for a value of another type or one that no transformer has.
    """
    known = {field.name: values[field.name] for field in fields(DenoiserConfig) if field.name in values}
    given = {**defaults, **known}
    for name, value in given.items():
        if name in ("learn_sigma", "qk_norm"):
            fits, expected = isinstance(value, bool), "true or false"
        elif name in ("ffn_dim_multiplier", "norm_eps"):
            number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
            fits, expected = number or (value is None and name == "ffn_dim_multiplier"), "a number above 0"
        elif name == "n_kv_heads" and value is None:
            fits, expected = True, ""
        else:
            fits = isinstance(value, int) and not isinstance(value, bool) and value > 0
            expected = "a whole number above 0"
        if not fits:
            raise UserError(f"{where}: {name} is {value!r}, expected {expected}.")
    if given.get("n_kv_heads", 1) is None:
        given["n_kv_heads"] = given.get("n_heads", DenoiserConfig.n_heads)
    config = DenoiserConfig(**given)
    wrong = {
        f"n_heads is {config.n_heads}, of which dim {config.dim} is no multiple": config.dim % config.n_heads,
        f"dim / n_heads is {config.head_size}, expected a multiple of 4 for positions in two directions": (
            config.head_size % 4
        ),
        f"n_kv_heads is {config.n_kv_heads}, of which n_heads {config.n_heads} is no multiple": (
            config.n_heads % config.n_kv_heads
        ),
        f"patch_size is {config.patch_size}, of which input_size {config.input_size} is no multiple": (
            config.input_size % config.patch_size
        ),
        "learn_sigma is true, which the release does not know either": config.learn_sigma,
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise UserError(f"{where}: {message}.")
    return config


class Denoiser(nn.Module):
    """Velocities of noised CLIP features under the hidden states of a language model at its queries."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        self.caption_projection = PixArtAlphaTextProjection(config.latent_embedding_size, config.dim)
        transformer: Any = LuminaNextDiT2DModel(
            sample_size=config.input_size,
            patch_size=config.patch_size,
            in_channels=config.in_channels,
            hidden_size=config.dim,
            num_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_kv_heads=config.n_kv_heads,
            multiple_of=config.multiple_of,
            ffn_dim_multiplier=config.ffn_dim_multiplier,
            norm_eps=config.norm_eps,
            learn_sigma=False,
            qk_norm=config.qk_norm,
            cross_attention_dim=config.dim,
        )
        # The library never uses it, and no file holds it.
        del transformer.pad_token
        self.transformer: Any = transformer

    @property
    def blocks(self) -> list[nn.Module]:
        """Its repeated blocks."""
        return list(self.transformer.layers)

    def forward(self, x_BCHW: Tensor, timestep_B: Tensor, z_BQD: Tensor) -> Tensor:
        """Velocities noise - data [B, C, H, W] (float32) of maps x_t = (1 - s) data + s noise.

        timestep_B: 1000 s, in [0, 1000], of any dtype. z_BQD: the conditions; zeros stand for none. The weights' dtype
        is computed in. Source: BLIP3-o, arXiv 2505.09568, and its released code.
        """
        projected_BQD = self.caption_projection(z_BQD)
        rows, columns = x_BCHW.shape[-2:]
        velocity_BCHW: Tensor = self.transformer(
            hidden_states=x_BCHW.to(projected_BQD.dtype),
            timestep=timestep_B,
            encoder_hidden_states=projected_BQD,
            encoder_mask=torch.ones(projected_BQD.shape[:2], device=projected_BQD.device),
            image_rotary_emb=rotary_table(self.config.head_size, rows, columns),
            cross_attention_kwargs={},
            return_dict=False,
        )[0]
        return velocity_BCHW.float()


@lru_cache(maxsize=16)
def rotary_table(head_size: int, rows: int, columns: int) -> Tensor:
    """The library's rotations of a head's numbers by row and column: complex64 [rows, columns, head_size / 2]."""
    table: Tensor = get_2d_rotary_pos_embed_lumina(head_size, rows, columns)
    return table


def denoiser_name(key: str) -> str | None:
    """A parameter's name in ``Denoiser`` from its key in the release, ``model.*``; None for one that nothing reads.

    ``model.caption_projection.*`` stand beside the transformer here, all else is inside it.
    """
    if not key.startswith("model."):
        return _STRANGER + key
    inner = key.removeprefix("model.")
    if inner == "pad_token":
        return None
    return inner if inner.startswith("caption_projection.") else "transformer." + inner


def denoiser_key(name: str) -> str:
    """The key in the release of a parameter's or a module's name in ``Denoiser``; the inverse of ``denoiser_name``."""
    return "model." + name.removeprefix("transformer.")


def load_denoiser(
    folder: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Denoiser:
    """Loads a folder that holds the transformer alone: what ``NextDiTCrossAttn.save_pretrained`` writes, strictly.

    That is ``config.json`` with the names of ``DenoiserConfig`` and ``model.safetensors`` (or shards with an index)
    with keys ``model.*``. It is ready to compute, its parameters frozen. UserError naming the file or the keys.
    """
    folder = Path(folder)
    config = denoiser_config(read_json(folder / "config.json"), str(folder / "config.json"))
    denoiser = meta_module(lambda: Denoiser(config))
    weights = FolderWeights(folder, (Part(name_of=denoiser_name),))
    weights.check(denoiser)
    fill(denoiser, weights.stored(), dtype, device)
    return denoiser.eval().requires_grad_(False)
