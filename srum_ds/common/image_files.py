"""Image files: the one reader of every picture that comes from outside, and PNG files that say how they were made.

Whoever needs pixels of a file, of a tar's member, of a table's bytes or of a page's thumbnail comes here, so that one
picture looks the same to the generator, to every judge and in every report.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes, replacing

READABLE = "Give a PNG, JPEG or other image file."
WHITE = (255, 255, 255)
MOST_PIXELS = 8192 * 8192
"""Of an image that is read: its numbers as floats take 0.8 GB. A file of a few bytes may claim more."""
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

_ORIENTATION = 0x0112
# EXIF's number of how a picture was stored -> what makes it stand.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Formats whose numbers in Pillow's mode I are 16 bits wide. In others they have no known range.
_WIDE_FORMATS = ("PNG", "PPM")
# Pillow hands these to Ghostscript, or to the system.
_PROGRAMS = ("EPS", "WMF")
# A phone's photo with a preview behind it: what it shows is its first frame.
_PREVIEWED = "MPO"


def read_image(path: Path) -> Tensor:
    """An image file as float32 [3, H, W] in [0, 1], as ``open_picture`` reads it.

    UserError when the file is missing, damaged, no image, animated or of unbounded values.
    """
    return _floats(open_picture(path))


def read_image_bytes(data: bytes, where: str) -> Tensor:
    """The bytes of an image file as float32 [3, H, W] in [0, 1], as ``open_picture`` reads it.

    where: the sample, for the UserError.
    """
    return _floats(decode_picture(data, where))


def open_picture(path: Path) -> Image.Image:
    """An image file in RGB, standing as its EXIF orientation says.

    Transparent pixels stand on white, as the released code has it; palettes and grey become RGB, 16 bits per
    channel become 8. UserError when the file is missing, damaged, no image, animated or of unbounded values.
    """
    try:
        data = file_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such image. {READABLE}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error}). {READABLE}") from None
    return decode_picture(data, str(path))


def decode_picture(data: bytes, where: str) -> Image.Image:
    """The bytes of an image file in RGB, as ``open_picture`` reads it. where: the sample, for the UserError."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            frames = int(getattr(image, "n_frames", 1))
            if frames > 1 and image.format != _PREVIEWED:
                raise UserError(f"{where}: holds {frames} pictures (animated, or of several pages). Save one of them.")
            if image.width * image.height > MOST_PIXELS:
                size = f"{image.width} x {image.height} pixels, of at most {MOST_PIXELS:,}"
                raise UserError(f"{where}: too large an image ({size}). Scale it down.")
            if image.format in _PROGRAMS:
                raise UserError(f"{where}: {image.format} is no picture but a program that draws one. {READABLE}")
            image.load()
            turn = _TURNS.get(_orientation(image))
            upright = _to_rgb(image, where)
            return upright if turn is None else upright.transpose(turn)
    except UnidentifiedImageError:
        raise UserError(f"{where}: this is no image that can be read. {READABLE}") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"{where}: too large an image ({error}). Scale it down.") from None
    except (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, struct.error) as error:
        # Pillow's decoders raise what suits them.
        raise UserError(f"{where}: cannot be read as an image ({error}). {READABLE}") from None
    except (MemoryError, OverflowError) as error:
        raise UserError(f"{where}: too large an image ({error}). Scale it down.") from None


def plain_png(data: bytes) -> bool:
    """Whether any reader sees what ``decode_picture`` sees in these bytes, which it can read.

    That is a PNG of 8 bits a channel or fewer, without transparency, that stands as it is stored.
    """
    if not data.startswith(PNG_MAGIC):
        return False
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        opaque = image.mode in ("1", "L", "P", "RGB") and "transparency" not in image.info
        # The 25th byte is the header's bits a channel: Pillow opens 16-bit RGB as 8-bit RGB.
        return opaque and data[24] <= 8 and _TURNS.get(_orientation(image)) is None


def _orientation(image: Image.Image) -> int:
    """EXIF's number of how the picture is stored; 1, as it stands, where it says nothing that can be read."""
    try:
        said = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # Damaged notes beside the pixels raise whatever their parser does; the pixels are whole.
        return 1
    return said if isinstance(said, int) else 1


def _floats(picture: Image.Image) -> Tensor:
    pixels = np.array(picture, dtype=np.float32)
    pixels /= 255.0
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format in _WIDE_FORMATS)
    if wide:
        # 16 bits per pixel; Pillow's own conversion clips them at 255.
        numbers = np.asarray(image, dtype=np.int64).clip(0, 65535)
        grey = (numbers // 256).astype(np.uint8)
        clear = image.info.get("transparency")
        return Image.fromarray(np.where(numbers == clear, np.uint8(255), grey)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit numbers"
        raise UserError(f"{where}: its pixels are {kind} of no known range. Save it with 8 bits.")
    if "A" in image.getbands() or image.mode in ("La", "RGBa") or "transparency" in image.info:
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
