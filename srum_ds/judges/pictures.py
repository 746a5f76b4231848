"""PNG bytes and pixels."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.image_files import decode_picture


def decode_png(data: bytes) -> Image.Image:
    """The picture in RGB, as ``decode_picture`` reads it. ValueError for bytes that are no picture."""
    try:
        return decode_picture(data, "the picture")
    except UserError as error:
        raise ValueError(f"the picture cannot be read ({error})") from None


def encode_png(image_CHW: Tensor) -> bytes:
    """A picture, float [3, H, W] in [0, 1], as an 8-bit PNG file."""
    pixels_HWC = (image_CHW.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(pixels_HWC.cpu().numpy()).save(stream, format="PNG")
    return stream.getvalue()
