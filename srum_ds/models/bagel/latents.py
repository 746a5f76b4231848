"""Latent tokens: patches of the autoencoder's latent, their positions, and the time embedding."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from srum_ds.models.bagel.config import AutoencoderConfig


def patchify_latent(latent_BCHW: Tensor, patch: int) -> Tensor:
    """Tokens [B, (H/p)(W/p), p*p*C], row-major; inside a token (row, column, channel), channel fastest."""
    b, c, h, w = latent_BCHW.shape
    x = latent_BCHW.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify_latent(tokens_BTC: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """The inverse of ``patchify_latent``: [B, C, h*p, w*p] for a grid of h x w tokens."""
    h, w = grid
    channels = tokens_BTC.shape[-1] // patch**2
    x = tokens_BTC.reshape(-1, h, w, patch, patch, channels)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, h * patch, w * patch)


def sincos_table(side: int, width: int) -> Tensor:
    """Fixed 2-D table [side * side, width]: first half from the column, second half from the row.

    Each half is width/4 sines then width/4 cosines, frequency k being 10000^(-k / (width/4))
    (the table of MAE, arXiv 2111.06377).
    """
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    place = torch.arange(side, dtype=torch.float64)
    angle = place[:, None] * frequency[None, :]
    half = torch.cat([angle.sin(), angle.cos()], dim=1)
    columns = half.repeat(side, 1)
    rows = half.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=1).float()


class PositionTable(nn.Module):
    """A stored, fixed position table, indexed by ``row * side + column``."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(side * side, width), requires_grad=False)

    def forward(self, index_N: Tensor) -> Tensor:
        return self.pos_embed[index_N]


class TimestepEmbedder(nn.Module):
    """t in [0, 1] -> hidden: 128 cosines then 128 sines of t * 10000^(-k/128), then an MLP."""

    frequencies = 256

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(self.frequencies, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, t_N: Tensor, dtype: torch.dtype) -> Tensor:
        """Embeddings [N, hidden] in ``dtype``; the sinusoid itself is computed in float32."""
        half = self.frequencies // 2
        index = torch.arange(half, dtype=torch.float32, device=t_N.device)
        frequency = torch.exp(-math.log(10000.0) * index / half)
        angle = t_N.float()[:, None] * frequency[None, :]
        embedded_ND: Tensor = self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1).to(dtype))
        return embedded_ND


PIXELS_AT_ONCE = 2**19
"""Pixels that the autoencoder works on at once, at least an image: two images of 512 x 512, or 128 of 64 x 64. Decoding
one of 1024 x 1024 takes 2.6 GB in bfloat16 on an H100, its maps of 256 channels 0.5 GB each."""


class Autoencoder(nn.Module):
    """The FLUX autoencoder through diffusers; latents carry ``scale * (z - shift)``.

    It takes and gives float32, and works on as many images at once as have ``PIXELS_AT_ONCE``, at least one.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.kl: Any = build_kl(config)  # diffusers' modules are untyped

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.kl.dtype
        return dtype

    def compute_in(self, dtype: torch.dtype) -> None:
        """On an accelerator it computes in ``dtype`` from now on; on a CPU, where nothing is gained, as it did."""
        if self.kl.device.type != "cpu" and self.dtype != dtype:
            self.kl.to(dtype)

    def moments(self, image_BCHW: Tensor) -> Tensor:
        """Mean and log-variance [B, 2C, H/8, W/8] of the posterior; image in [-1, 1]."""
        at_once = images_at_once(image_BCHW.shape[-2] * image_BCHW.shape[-1])
        parts = (self.kl.encode(part.to(self.dtype)).latent_dist.parameters for part in image_BCHW.split(at_once))
        return torch.cat([part.float() for part in parts])

    def encode(self, image_BCHW: Tensor, eps_BCHW: Tensor | None = None) -> Tensor:
        """Scaled latent of an image in [-1, 1]: the posterior's mean, or a sample with noise ``eps``."""
        mean, logvar = self.moments(image_BCHW).chunk(2, dim=1)
        if eps_BCHW is not None:
            mean = mean + torch.exp(0.5 * logvar.clamp(-30.0, 20.0)) * eps_BCHW
        return self.config.scale_factor * (mean - self.config.shift_factor)

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Image, about [-1, 1], not clamped, from a scaled latent."""
        z_BCHW = latent_BCHW / self.config.scale_factor + self.config.shift_factor
        at_once = images_at_once(z_BCHW.shape[-2] * z_BCHW.shape[-1] * self.config.downsample**2)
        parts = (self.kl.decode(part.to(self.dtype)).sample for part in z_BCHW.split(at_once))
        return torch.cat([part.float() for part in parts])


def images_at_once(pixels: int) -> int:
    """Images of so many pixels each that the autoencoder works on at once."""
    return max(1, PIXELS_AT_ONCE // pixels)


def build_kl(config: AutoencoderConfig) -> Any:
    """The diffusers module for an autoencoder in FLUX's own configuration names."""
    channels = [config.ch * m for m in config.ch_mult]
    kl: Any = AutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.out_ch,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=config.num_res_blocks,
        latent_channels=config.z_channels,
        norm_num_groups=config.norm_num_groups,
        sample_size=config.resolution,
        scaling_factor=config.scale_factor,
        shift_factor=config.shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    if config.ch_mult[0] != 1:
        _widen_first_block(kl, config)
    return kl


def _widen_first_block(kl: Any, config: AutoencoderConfig) -> None:
    """FLUX's encoder enters its first block with ``ch`` channels whatever ``ch_mult[0]`` is.

    diffusers enters it with ``ch * ch_mult[0]``, which is the same in the released model only.
    """
    wide = config.ch * config.ch_mult[0]
    kl.encoder.conv_in = nn.Conv2d(config.in_channels, config.ch, kernel_size=3, padding=1)
    no_time: Any = None
    kl.encoder.down_blocks[0].resnets[0] = ResnetBlock2D(
        in_channels=config.ch,
        out_channels=wide,
        temb_channels=no_time,
        groups=config.norm_num_groups,
        eps=1e-6,
    )
