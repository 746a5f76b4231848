"""BAGEL's image transform: bicubic resize within limits, sides in multiples of a stride."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from srum_ds.models.bagel.config import ImageTransform

Pixels = npt.NDArray[np.uint8]


def target_size(width: int, height: int, transform: ImageTransform) -> tuple[int, int]:
    """(width, height) after the transform; each side is at least one stride."""

    def rounded(scale: float) -> tuple[int, int]:
        return _to_stride(width, scale, transform), _to_stride(height, scale, transform)

    scale = min(transform.max_image_size / max(width, height), 1.0)
    scale = max(scale, transform.min_image_size / min(width, height))
    new_width, new_height = rounded(scale)
    if new_width * new_height > transform.max_pixels:
        scale = transform.max_pixels / (new_width * new_height)
        new_width = _to_stride(new_width, scale, transform)
        new_height = _to_stride(new_height, scale, transform)
    if max(new_width, new_height) > transform.max_image_size:
        scale = transform.max_image_size / max(new_width, new_height)
        new_width = _to_stride(new_width, scale, transform)
        new_height = _to_stride(new_height, scale, transform)
    return new_width, new_height


def _to_stride(side: int, scale: float, transform: ImageTransform) -> int:
    stride = transform.image_stride
    return max(stride, int(round(round(side * scale) / stride) * stride))


def transformed(images: Sequence[Tensor], transform: ImageTransform) -> list[Pixels]:
    """Images [3, H, W] in [0, 1] after the transform: 8-bit [H', W', 3]; one that keeps its size is only rounded."""
    found: list[Pixels] = []
    for pixels_HWC in to_pixels(images):
        height, width, _ = pixels_HWC.shape
        size = target_size(width, height, transform)
        if size != (width, height):
            pixels_HWC = np.asarray(Image.fromarray(pixels_HWC).resize(size, Image.Resampling.BICUBIC))
        found.append(pixels_HWC)
    return found


def to_tensor(image: Image.Image) -> Tensor:
    """Float32 [3, H, W] in [-1, 1]."""
    return to_tensors([np.asarray(image)])[0]


def to_tensors(pixels: Sequence[Pixels]) -> Tensor:
    """Float32 [N, 3, H, W] in [-1, 1] of 8-bit images [H, W, 3] of one size."""
    return (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def quantise(image: Tensor) -> Tensor:
    """Images in [0, 1] as 8-bit files hold them: multiples of 1/255, truncated as released."""
    return (image.float().clamp(0, 1) * 255).floor() / 255


def to_pixels(images: Sequence[Tensor]) -> list[Pixels]:
    """Floats [3, H, W] in [0, 1] rounded to 8 bits, [H, W, 3]; neighbours of one size are rounded at once."""
    pixels: list[Pixels] = []
    for _, same in groupby(images, key=lambda image: image.shape):
        images_NCHW = torch.stack(list(same)).detach().float().clamp(0, 1)
        pixels.extend((images_NCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
    return pixels
