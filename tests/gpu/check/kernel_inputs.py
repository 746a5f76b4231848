"""The arguments of each fused operation at the sizes that BAGEL has at 1024 px, and the fewest bytes it could move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srum_ds.kernels.rotary import rotary_factors
from tests.gpu.check.measuring import Where


@dataclass(frozen=True)
class Sizes:
    """Two images of latent tokens with a start and an end token each; widths of the language model."""

    images: int
    tokens: int
    width: int
    inner: int
    heads: int
    head: int
    channels: int
    elements: int

    @property
    def rows(self) -> int:
        return self.images * self.tokens


def sizes(where: Where) -> Sizes:
    """BAGEL's; elements: of an optimizer's sub-group (ds_configs/zero3_large.json)."""
    if where.rehearse:
        return Sizes(2, 8, 64, 96, 4, 16, 8, 3000)
    return Sizes(2, 4096, 3584, 18944, 28, 128, 64, 200_000_000)


Maker = Callable[[Sizes, torch.dtype, torch.Generator], list[Any]]


def _leaf(dtype: torch.dtype, generator: torch.Generator, *shape: int) -> Tensor:
    return _constant(dtype, generator, *shape).requires_grad_()


def _constant(dtype: torch.dtype, generator: torch.Generator, *shape: int) -> Tensor:
    """Normally distributed, of values that bfloat16 holds."""
    x = torch.randn(*shape, device=generator.device, generator=generator)
    return x.to(torch.bfloat16).to(dtype)


def _rms_norm(s: Sizes, dtype: torch.dtype, g: torch.Generator) -> list[Any]:
    return [_leaf(dtype, g, s.rows, s.width), _leaf(dtype, g, s.width), 1e-6]


def _add_rms_norm(s: Sizes, dtype: torch.dtype, g: torch.Generator) -> list[Any]:
    stream, change = (_leaf(dtype, g, s.rows, s.width) for _ in range(2))
    return [stream, change, _leaf(dtype, g, s.width), 1e-6]


def _qk_norm_rotary(s: Sizes, dtype: torch.dtype, g: torch.Generator) -> list[Any]:
    """Queries: of the images' start and end tokens, and of their latent tokens, image by image on the grid."""
    places = s.images * (s.tokens + 2)
    grid = torch.arange(places, device=g.device).view(s.images, s.tokens + 2)
    wraps, latents = grid[:, [0, -1]], grid[:, 1:-1]
    slot_N = torch.cat([wraps.reshape(-1), latents.reshape(-1)])
    position_P = torch.arange(places, device=g.device) % (s.tokens + 2)
    cos_P1D, sin_P1D = (x.to(dtype) for x in rotary_factors(position_P, s.head, 1e6))
    groups = [_leaf(dtype, g, rows, s.heads, s.head) for rows in (2 * s.images, s.rows)]
    weights = [_leaf(dtype, g, s.head) for _ in range(2)]
    return [*groups, *weights, 1e-6, cos_P1D, sin_P1D, slot_N, places]


def _swiglu(s: Sizes, dtype: torch.dtype, g: torch.Generator) -> list[Any]:
    return [_leaf(dtype, g, s.rows, s.inner) for _ in range(2)]


def _velocity_loss(s: Sizes, dtype: torch.dtype, g: torch.Generator) -> list[Any]:
    """As objective nft has it: two mixtures and the constraint."""
    shape = s.images, s.tokens, s.channels
    prediction, old, reference = (_constant(dtype, g, *shape) for _ in range(3))
    target = _constant(torch.float32, g, *shape)
    coefficient = _constant(torch.float32, g, 2, *shape[:2]).abs()
    counts = _constant(torch.float32, g, *shape[:2]) > -1
    return [prediction.requires_grad_(), target, (0.5, -0.5), coefficient, old, reference, 0.3, counts]


INPUTS: dict[str, Maker] = {
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "qk_norm_rotary": _qk_norm_rotary,
    "swiglu": _swiglu,
    "velocity_loss": _velocity_loss,
}


def least_bytes(inputs: list[Any], outputs: tuple[Tensor, ...]) -> int:
    """Every tensor of a forward pass read or written once."""
    tensors = [x for x in inputs if isinstance(x, Tensor)] + list(outputs)
    return sum(x.numel() * x.element_size() for x in tensors)
