"""PNG bytes and pixels."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor

_WHITE = (255, 255, 255)


def decode_png(data: bytes) -> Image.Image:
    """The picture in RGB, transparent pixels on white. ValueError for bytes that are no picture."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if "A" in image.getbands() or "transparency" in image.info:
                layered = image.convert("RGBA")
                page = Image.new("RGB", image.size, _WHITE)
                page.paste(layered, mask=layered.getchannel("A"))
                return page
            return image.convert("RGB")
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"the picture cannot be read ({error})") from None


def encode_png(image_CHW: Tensor) -> bytes:
    """A picture, float [3, H, W] in [0, 1], as an 8-bit PNG file."""
    pixels_HWC = (image_CHW.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(pixels_HWC.cpu().numpy()).save(stream, format="PNG")
    return stream.getvalue()
