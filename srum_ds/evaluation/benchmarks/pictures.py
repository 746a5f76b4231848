"""Pictures that canaries are asked about: drawn here, so that what they show is known. PNG bytes, always the same."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

SIDE = 336


def red_circle() -> bytes:
    """One large red circle on white: a picture that clearly shows what it is asked about."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    margin = SIDE // 5
    ImageDraw.Draw(image).ellipse((margin, margin, SIDE - margin, SIDE - margin), fill=(220, 20, 20))
    return _png(image)


def blank() -> bytes:
    """Nothing but grey."""
    return _png(Image.new("RGB", (SIDE, SIDE), (128, 128, 128)))


def checkerboard() -> bytes:
    """Something else: squares in two blues, no circle and nothing red."""
    rows, columns = np.indices((SIDE, SIDE)) // (SIDE // 8)
    dark = ((rows + columns) % 2 == 0)[..., None]
    return _png(Image.fromarray(np.where(dark, (20, 40, 120), (150, 190, 230)).astype(np.uint8)))


def shuffled() -> bytes:
    """The pixels of ``red_circle`` in disorder: its colours without its content, what a judge that is blind sees."""
    with Image.open(io.BytesIO(red_circle())) as image:
        pixels = np.asarray(image).reshape(-1, 3)
    # The raw stream of a PCG64, which numpy keeps the same between versions.
    order = np.argsort(np.random.PCG64(14).random_raw(len(pixels)), kind="stable")
    return _png(Image.fromarray(np.ascontiguousarray(pixels[order].reshape(SIDE, SIDE, 3))))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
