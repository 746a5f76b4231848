"""BAGEL's image transform: bicubic resize within limits, sides in multiples of a stride."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from srum_ds.models.bagel.configuration import ImageTransform


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


def resize(image: Image.Image, transform: ImageTransform) -> Image.Image:
    """The resized picture (uint8, RGB)."""
    size = target_size(image.width, image.height, transform)
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def to_tensor(image: Image.Image) -> Tensor:
    """Float32 [3, H, W] in [-1, 1]."""
    return to_tensors([image])[0]


def to_tensors(images: Sequence[Image.Image]) -> Tensor:
    """Float32 [N, 3, H, W] in [-1, 1] of pictures of one size."""
    pixels_NHWC = np.stack([np.asarray(image, dtype=np.uint8) for image in images])
    return (torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def quantise(image: Tensor) -> Tensor:
    """Pictures in [0, 1] as 8-bit files hold them: multiples of 1/255, truncated as released."""
    return (image.float().clamp(0, 1) * 255).floor() / 255


def to_pil(image_CHW: Tensor) -> Image.Image:
    """A PIL image from floats in [0, 1], rounded to 8 bits."""
    return to_pils([image_CHW])[0]


def to_pils(images: Sequence[Tensor]) -> list[Image.Image]:
    """PIL images from floats [3, H, W] in [0, 1], rounded to 8 bits; neighbours of one size are rounded at once."""
    pictures: list[Image.Image] = []
    for _, same in groupby(images, key=lambda image: image.shape):
        images_NCHW = torch.stack(list(same)).detach().float().clamp(0, 1)
        pixels_NHWC = (images_NCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        pictures.extend(Image.fromarray(pixels_HWC) for pixels_HWC in pixels_NHWC)
    return pictures
