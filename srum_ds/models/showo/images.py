"""Pictures as Show-o's picture tokenizer takes them: short side resized, the centre cut out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def squared(image: Tensor, side: int) -> Tensor:
    """A picture [3, H, W] in [0, 1] as [3, side, side] in [-1, 1] (float32, CPU).

    The short side is resized to ``side`` (bicubic, 8 bits), and the centre is cut out: what lies outside of it is not
    seen. Source: the transform of Show-o's training code.
    """
    pixels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    height, width = pixels.shape[:2]
    short = min(height, width)
    size = (int(side * width / short), int(side * height / short))
    if size != (width, height):
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    cut = pixels[top : top + side, left : left + side].copy()
    return (torch.from_numpy(cut).permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def squares(images: Sequence[Tensor], side: int) -> Tensor:
    """``squared`` of each: [N, 3, side, side]."""
    return torch.stack([squared(image, side) for image in images])


def quantise(pixels: Tensor) -> Tensor:
    """What the decoder gives, about [-1, 1], as pictures in [0, 1]: multiples of 1/255, truncated as released."""
    return (((pixels.float() + 1) / 2).clamp(0, 1) * 255).floor() / 255
