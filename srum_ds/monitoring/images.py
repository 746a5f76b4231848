"""Draws boxes coloured by score, and grids of captioned images. The writer and the evaluation call it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from srum_ds.types import Regions

PAGE = (255, 255, 255)
INK = (20, 20, 20)
FAILED = (160, 160, 160)
RED = (225, 45, 45)
AMBER = (235, 190, 40)
GREEN = (40, 185, 75)
MARGIN = 8
# Small images are enlarged by a whole factor until they are at least this wide.
MIN_SIDE = 192
MIN_SIDE_BOXES = 256
# Room beside an image for its tick or cross: on the image it would hide an object.
MARK_STRIP = 28

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Shown:
    """An image [3, H, W] (float in [0, 1] or uint8), and what to draw on it.

    boxes: x0, y0, x1, y1 in [0, 1] each; scores: one a box, NaN where the judge failed. mark: a
    tick (True) or a cross (False) beside it.
    """

    image_CHW: Tensor
    boxes: Sequence[Sequence[float]] = ()
    scores: Sequence[float] = ()
    mark: bool | None = None


def score_colour(score: float) -> Colour:
    """Red at -1, amber at 0, green at +1, mixed between; grey for NaN. Beyond the scale: its ends."""
    if math.isnan(score):
        return FAILED
    score = max(-1.0, min(1.0, score))
    end = GREEN if score > 0 else RED
    share = abs(score)
    mixed = [round(a + (b - a) * share) for a, b in zip(AMBER, end, strict=True)]
    return mixed[0], mixed[1], mixed[2]


def to_uint8(images: Tensor) -> Tensor:
    """Images of floats in [0, 1] as uint8, rounded; values outside are clipped, NaN is black."""
    if images.dtype == torch.uint8:
        return images
    return (images.detach().float().nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def to_pil(image_CHW: Tensor, scale: int = 1) -> Image.Image:
    """An image [3, H, W] as an RGB image, each pixel ``scale`` x ``scale`` large."""
    array = to_uint8(image_CHW).permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(array)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def boxes_by_picture(
    regions: Regions, local_R: Tensor, count: int
) -> tuple[list[list[list[float]]], list[list[float]]]:
    """(boxes, scores) for each of ``count`` images, from regions and their scores over all images."""
    boxes: list[list[list[float]]] = [[] for _ in range(count)]
    scores: list[list[float]] = [[] for _ in range(count)]
    for owner, box, score in zip(regions.owner_R.tolist(), regions.boxes_R4.tolist(), local_R.tolist(), strict=True):
        boxes[owner].append(box)
        scores[owner].append(score)
    return boxes, scores


def annotated(shown: Shown, min_side: int = MIN_SIDE_BOXES) -> Image.Image:
    """The image, enlarged where small, with boxes in their score's colour, score numbers and mark."""
    if len(shown.boxes) != len(shown.scores):
        raise ValueError(f"{len(shown.boxes)} boxes but {len(shown.scores)} scores")
    picture = to_pil(shown.image_CHW, max(1, math.ceil(min_side / shown.image_CHW.shape[-1])))
    draw = ImageDraw.Draw(picture)
    for box, score in zip(shown.boxes, shown.scores, strict=True):
        draw.rectangle(_pixels(box, picture.size), outline=score_colour(score), width=2)
    # After all boxes, so that no box crosses a number.
    for box, score in zip(shown.boxes, shown.scores, strict=True):
        _draw_score(draw, picture.size, _pixels(box, picture.size), score)
    if shown.mark is None:
        return picture
    page = Image.new("RGB", (picture.width + MARK_STRIP, picture.height), PAGE)
    page.paste(picture, (0, 0))
    _draw_mark(ImageDraw.Draw(page), (picture.width + 4, 2), shown.mark)
    return page


def grid(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int = 4) -> Image.Image:
    """Images of one size in rows of ``columns``, each above its caption (wrapped to its width)."""
    if not pictures or len(pictures) != len(captions):
        raise ValueError(f"{len(pictures)} pictures but {len(captions)} captions")
    font = _font(14)
    width = max(picture.width for picture in pictures)
    columns = min(columns, len(pictures))
    wrapped = [wrap(caption, font, width) for caption in captions]
    rows = [range(start, min(start + columns, len(pictures))) for start in range(0, len(pictures), columns)]
    heights = []
    for row in rows:
        lines = max(len(wrapped[i]) for i in row)
        heights.append(max(pictures[i].height for i in row) + lines * _line(font) + 2 * MARGIN)
    page = Image.new("RGB", (columns * (width + MARGIN) + MARGIN, sum(heights) + MARGIN), PAGE)
    draw = ImageDraw.Draw(page)
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left = MARGIN + column * (width + MARGIN)
            page.paste(pictures[i], (left, top))
            _write(draw, (left, top + pictures[i].height + 4), wrapped[i], font)
        top += height
    return page


def comparison(
    rows: Sequence[tuple[str, Sequence[Shown]]], headings: Sequence[str], text_width: int = 190
) -> Image.Image:
    """Rows of a text and one image a column, under the columns' headings."""
    font = _font(15)
    drawn = [(wrap(text, font, text_width), [annotated(shown, MIN_SIDE) for shown in cells]) for text, cells in rows]
    if not drawn or any(len(cells) != len(headings) for _, cells in drawn):
        raise ValueError("each row needs one picture for each heading")
    cell_width = max(cell.width for _, cells in drawn for cell in cells)
    heights = [max(len(lines) * _line(font), *(cell.height for cell in cells)) for lines, cells in drawn]
    head = _line(font) + 2 * MARGIN
    left_of = [2 * MARGIN + text_width + column * (cell_width + MARGIN) for column in range(len(headings))]
    size = (left_of[-1] + cell_width + MARGIN, head + sum(heights) + MARGIN * len(heights))
    page = Image.new("RGB", size, PAGE)
    draw = ImageDraw.Draw(page)
    for left, heading in zip(left_of, headings, strict=True):
        _write(draw, (left, MARGIN), [heading], font)
    top = head
    for (lines, cells), height in zip(drawn, heights, strict=True):
        middle = top + (height - len(lines) * _line(font)) // 2
        _write(draw, (MARGIN, middle), lines, font)
        for left, cell in zip(left_of, cells, strict=True):
            page.paste(cell, (left, top))
        top += height + MARGIN
    return page


def beside(pages: Sequence[Image.Image]) -> Image.Image:
    """Pages next to each other, top edges in line."""
    page = Image.new("RGB", (sum(p.width for p in pages), max(p.height for p in pages)), PAGE)
    left = 0
    for part in pages:
        page.paste(part, (left, 0))
        left += part.width
    return page


def to_array(picture: Image.Image) -> np.ndarray:
    """An image as uint8 [H, W, 3], as TensorBoard takes it."""
    return np.asarray(picture.convert("RGB"))


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines of at most ``width`` pixels, broken between words and, where a word is too long, inside."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _line(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    top_bottom = font.getbbox("Agj|")
    return math.ceil(top_bottom[3]) + 3


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    for number, line in enumerate(lines):
        draw.text((place[0], place[1] + number * _line(font)), line, fill=INK, font=font)


def _pixels(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """First and last column and row of a box."""
    x0, y0 = round(box[0] * size[0]), round(box[1] * size[1])
    x1, y1 = round(box[2] * size[0]) - 1, round(box[3] * size[1]) - 1
    return x0, y0, max(x0, x1), max(y0, y1)


def _draw_score(draw: ImageDraw.ImageDraw, size: tuple[int, int], box: tuple[int, int, int, int], score: float) -> None:
    font = _font(13)
    label = "?" if math.isnan(score) else f"{score:+.2f}"
    right, bottom = font.getbbox(label)[2:]
    width, height = math.ceil(right) + 5, math.ceil(bottom) + 3
    x = max(0, min(box[0], size[0] - width))
    # Above the box where there is room, otherwise below it, otherwise inside.
    y = box[1]
    if box[1] >= height:
        y = box[1] - height
    elif box[3] + 1 + height <= size[1]:
        y = box[3] + 1
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=score_colour(score))
    draw.text((x + 3, y), label, fill=(0, 0, 0), font=font)


def _draw_mark(draw: ImageDraw.ImageDraw, place: tuple[int, int], good: bool) -> None:
    # Drawn by hand: the built-in font has neither a tick nor a heavy cross.
    side = 20
    left, top = place
    draw.ellipse((left, top, left + side, top + side), fill=GREEN if good else RED)
    if good:
        points = [(left + 5, top + 11), (left + 9, top + 15), (left + 15, top + 6)]
        draw.line(points, fill=PAGE, width=3, joint="curve")
    else:
        draw.line((left + 6, top + 6, left + 14, top + 14), fill=PAGE, width=3)
        draw.line((left + 14, top + 6, left + 6, top + 14), fill=PAGE, width=3)
