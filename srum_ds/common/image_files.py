"""Image files: any that Pillow opens as floats in RGB, and PNG files that say how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.files import replacing

READABLE = "Give a PNG, JPEG or other image file."
WHITE = (255, 255, 255)


def read_image(path: Path) -> Tensor:
    """An image file as float32 [3, H, W] in [0, 1].

    Transparent pixels stand on white, as the released code has it; palettes and grey become RGB, 16 bits per
    channel become 8. UserError when the file is missing, damaged, no image or of unbounded values.
    """
    try:
        with Image.open(path) as image:
            image.load()
            pixels = np.asarray(_to_rgb(image, path), dtype=np.float32) / 255.0
    except FileNotFoundError:
        raise UserError(f"{path}: no such image. {READABLE}") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: this is no image that can be read. {READABLE}") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: too large an image ({error}). Scale it down.") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        # Pillow's decoders raise what suits them.
        raise UserError(f"{path}: cannot be read as an image ({error}). {READABLE}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        # 16 bits per pixel; Pillow's own conversion clips them at 255.
        wide = np.asarray(image, dtype=np.int64)
        return Image.fromarray((wide.clip(0, 65535) // 256).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UserError(f"{path}: its pixels are floating-point numbers of no known range. Save it with 8 bits.")
    if "A" in image.getbands() or "transparency" in image.info:
        layered = image.convert("RGBA")
        page = Image.new("RGB", image.size, WHITE)
        page.paste(layered, mask=layered.getchannel("A"))
        return page
    return image.convert("RGB")


def write_image(path: Path, image_CHW: Tensor, about: Mapping[str, Any]) -> None:
    """Writes an image in [0, 1] as an 8-bit PNG with a text chunk ``srum-ds:NAME`` for each entry of ``about``.

    UserError when the file cannot be written.
    """
    chunks = PngImagePlugin.PngInfo()
    for name, value in about.items():
        chunks.add_itxt(f"srum-ds:{name}", str(value))
    pixels = (image_CHW.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    with replacing(path) as stream:
        Image.fromarray(pixels).save(stream, format="PNG", pnginfo=chunks)
