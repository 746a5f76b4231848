"""MAGVITv2 as Show-o uses it: pictures to codes and back, by the signs of a few channels. It never trains.

Source of the design: arXiv 2310.05737 (a lookup-free quantiser); the layers are those of Show-o's release.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srum_ds.models.showo.config import MagvitConfig

PIXELS_AT_ONCE = 2**20
"""Pixels that are worked on at once: four pictures of 512 x 512."""


def codes_of(latent_NCHW: Tensor) -> Tensor:
    """Codes [N, H W] (int64, row-major) of latents: bit i, most significant first, says whether channel i is > 0."""
    bits_NCT = (latent_NCHW.flatten(2) > 0).long()
    channels = bits_NCT.shape[1]
    weights_C = 2 ** torch.arange(channels - 1, -1, -1, device=latent_NCHW.device)
    return (bits_NCT * weights_C[:, None]).sum(dim=1)


def signs_of(codes_NT: Tensor, channels: int, grid: tuple[int, int]) -> Tensor:
    """The signs [N, C, H, W] (float32, +-1) that codes stand for: the other way of ``codes_of``."""
    shifts_C = torch.arange(channels - 1, -1, -1, device=codes_NT.device)
    bits_NCT = (codes_NT[:, None, :] >> shifts_C[:, None]) & 1
    return (2.0 * bits_NCT - 1.0).reshape(len(codes_NT), channels, *grid)


class Magvit(nn.Module):
    """Encoder, quantiser and decoder; float32 in and out, ``PIXELS_AT_ONCE`` at a time. Names are the release's."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)

    def latents(self, pixels_NCHW: Tensor) -> Tensor:
        """What is quantised [N, bits, H', W'] of pictures [N, 3, H, W] in [-1, 1], before it is."""
        at_once = max(1, PIXELS_AT_ONCE // (pixels_NCHW.shape[-2] * pixels_NCHW.shape[-1]))
        return torch.cat([self.encoder(part) for part in pixels_NCHW.split(at_once)])

    def encode(self, pixels_NCHW: Tensor) -> Tensor:
        """Codes [N, T] (int64, row-major) of pictures [N, 3, H, W] in [-1, 1]."""
        return codes_of(self.latents(pixels_NCHW))

    def decode(self, codes_NT: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pictures [N, 3, H, W], about [-1, 1], not clamped, of codes."""
        signs_NCHW = signs_of(codes_NT, self.config.z_channels, grid)
        at_once = max(1, PIXELS_AT_ONCE // (grid[0] * grid[1] * self.config.downsample**2))
        return torch.cat([self.decoder(part) for part in signs_NCHW.split(at_once)])


def _swish(x: Tensor) -> Tensor:
    """x sigmoid(x), rounded as the release has it: pixels are truncated to 8 bits, so that a last bit can be a level.

    ``F.silu`` and the fused attention round otherwise.
    """
    return x * torch.sigmoid(x)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), _conv(inputs, outputs)
        self.norm2, self.conv2 = _norm(outputs), _conv(outputs, outputs)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv1(_swish(self.norm1(x)))
        h = self.conv2(_swish(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class _Attention(nn.Module):
    """Every place of a feature map attends to all of them; one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, kernel_size=1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q_NCT, k_NCT, v_NCT = (part(normed).flatten(2) for part in (self.q, self.k, self.v))
        share_NTT = (torch.bmm(q_NCT.transpose(1, 2), k_NCT) * q_NCT.shape[1] ** -0.5).softmax(dim=2)
        added: Tensor = self.proj_out(torch.bmm(v_NCT, share_NTT.transpose(1, 2)).reshape(x.shape))
        return x + added


class _Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = _Residual(channels, channels)
        self.attn_1 = _Attention(channels)
        self.block_2 = _Residual(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class _Level(nn.Module):
    """Residual blocks at one resolution, and the convolution that leads to the next."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.block = nn.ModuleList(_Residual(widths[number], widths[number + 1]) for number in range(blocks))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for leads_on in (self.downsample, self.upsample):
            if leads_on is not None:
                x = leads_on(x)
        return x


class _Halve(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return halved


class _Double(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled


class _Encoder(nn.Module):
    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        widths = [config.ch, *(config.ch * mult for mult in config.encoder_ch_mult)]
        blocks = config.encoder_num_res_blocks
        self.conv_in = _conv(3, config.ch)
        self.down = nn.ModuleList(_Level(widths[i], widths[i + 1], blocks[i]) for i in range(len(blocks)))
        for number, level in enumerate(self.down[:-1]):
            level.downsample = _Halve(widths[number + 1])
        self.mid = _Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = _conv(widths[-1], config.z_channels)
        self.quant_conv = nn.Conv2d(config.z_channels, config.z_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        latent: Tensor = self.quant_conv(self.conv_out(_swish(self.norm_out(self.mid(x)))))
        return latent


class _Decoder(nn.Module):
    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.decoder_ch_mult]
        blocks = config.decoder_num_res_blocks
        entering = [*widths[1:], widths[-1]]
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, kernel_size=1)
        self.conv_in = _conv(config.z_channels, widths[-1])
        self.mid = _Middle(widths[-1])
        self.up = nn.ModuleList(_Level(entering[i], widths[i], blocks[i]) for i in range(len(blocks)))
        for number, level in enumerate(self.up):
            if number > 0:
                level.upsample = _Double(widths[number])
        self.norm_out = _norm(widths[0])
        self.conv_out = _conv(widths[0], 3)

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.mid(self.conv_in(self.post_quant_conv(z)))
        for level in reversed(self.up):
            x = level(x)
        picture: Tensor = self.conv_out(_swish(self.norm_out(x)))
        return picture
