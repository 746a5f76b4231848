"""The one reader of pictures: orientation, depth, transparency, several frames, damage, and whom a message names."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.image_files import decode_picture, plain_png, read_image, read_image_bytes
from srum_ds.evaluation.grading import png_bytes
from srum_ds.evaluation.report_html.thumbnails import Thumbnails
from srum_ds.evaluation.understanding.items import Item
from srum_ds.judges.pictures import decode_png

UPRIGHT = np.zeros((6, 4, 3), np.uint8)
UPRIGHT[0, 0] = (250, 0, 0)
UPRIGHT[0, 3] = (0, 250, 0)
UPRIGHT[5, 0] = (0, 0, 250)
# EXIF's number -> how a camera that writes it stores the upright picture.
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def turned(number: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    lossless = {"lossless": True} if kind == "WEBP" else {}
    return encoded(Image.fromarray(np.ascontiguousarray(STORED[number])), kind, exif=exif, **lossless)


def as_bytes(image_CHW: Tensor) -> np.ndarray:
    return (image_CHW * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("number", STORED)
def test_a_picture_stands_as_its_orientation_says(number: int, kind: str) -> None:
    assert np.array_equal(as_bytes(read_image_bytes(turned(number, kind), "a")), UPRIGHT)


def test_every_reader_sees_the_picture_standing(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), (200, 0, 0)).save(path, exif=exif)
    data = path.read_bytes()
    item = Item("k", "?", ("yes", "no"), "yes", data)
    shown = Thumbnails().of(path)
    assert tuple(read_image(path).shape) == tuple(item.pixels().shape) == (3, 40, 20)
    assert decode_png(data).size == decode_png(png_bytes(path)).size == (20, 40)
    assert shown is not None and (shown["width"], shown["height"]) == (20, 40)


def test_notes_that_are_damaged_leave_the_pixels() -> None:
    picture = Image.fromarray(UPRIGHT)
    for broken in (
        b"Exif\x00\x00II*\x00\xff\xff\xff\xff",
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12",
        b"x",
    ):
        assert np.array_equal(np.asarray(decode_picture(encoded(picture, exif=broken), "a")), UPRIGHT)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_several_frames_are_refused_by_name(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="sample 17: holds 2 pictures"):
        read_image_bytes(data, "sample 17")


def test_a_phones_photo_with_a_preview_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), "red"), Image.new("RGB", (4, 4), "blue")]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert tuple(read_image_bytes(data, "a").shape) == (3, 8, 8)


def test_wide_numbers_keep_their_high_byte_or_are_refused() -> None:
    wide = Image.fromarray(np.full((4, 4), 0x8040, dtype=np.uint16))
    assert as_bytes(read_image_bytes(encoded(wide), "a")).max() == 0x80
    assert as_bytes(read_image_bytes(encoded(wide, transparency=0x8040), "a")).min() == 255
    assert as_bytes(read_image_bytes(encoded(wide, "TIFF"), "a")).max() == 0x80
    for numbers in (np.full((4, 4), 70000, dtype=np.int32), np.full((4, 4), 0.5, dtype=np.float32)):
        with pytest.raises(UserError, match="sample 17: its pixels are .* of no known range"):
            read_image_bytes(encoded(Image.fromarray(numbers), "TIFF"), "sample 17")


@pytest.mark.parametrize(
    "data", [b"", b"<html>404</html>", encoded(Image.fromarray(UPRIGHT))[:45], b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_picture_is_named_by_its_sample(data: bytes) -> None:
    with pytest.raises(UserError, match="sample 17: ") as caught:
        read_image_bytes(data, "sample 17")
    assert "BytesIO" not in str(caught.value)


# Pillow itself refuses the first; a few bytes may claim the second, which would take 2 GB and more.
@pytest.mark.parametrize("side", [60000, 10000])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_unpacked(side: int) -> None:
    header = encoded(Image.new("1", (8, 8)))
    size = b"IHDR" + side.to_bytes(4, "big") * 2 + header[24:29]
    claimed = header[:12] + size + zlib.crc32(size).to_bytes(4, "big") + header[33:]
    with pytest.raises(UserError, match="sample 17: too large an image"):
        read_image_bytes(claimed, "sample 17")


def test_a_judge_is_sent_bytes_that_everybody_reads_alike(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(UPRIGHT)))
    assert png_bytes(path) == path.read_bytes()
    clear = Image.fromarray(UPRIGHT).convert("RGBA")
    clear.putalpha(0)
    wide = Image.fromarray(np.full((4, 4), 0x8040, dtype=np.uint16))
    for data in (turned(6), encoded(clear), encoded(wide), encoded(Image.fromarray(UPRIGHT), "WEBP")):
        path.write_bytes(data)
        sent = png_bytes(path)
        assert not plain_png(data) and plain_png(sent)
        assert np.array_equal(np.asarray(decode_png(sent)), np.asarray(decode_picture(data, "a")))


def test_a_program_that_draws_is_not_run() -> None:
    """Pillow would hand it to Ghostscript, where there is one."""
    with pytest.raises(UserError, match="a.eps: EPS is no picture but a program"):
        read_image_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "a.eps")
