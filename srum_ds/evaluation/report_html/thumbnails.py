"""Small pictures inside the page, as many as fit a number of bytes, and the boxes that stand on them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from srum_ds.common.errors import UserError
from srum_ds.common.image_files import open_picture

SIDE = 384
"""Longest side of an embedded picture, in pixels. Smaller ones are embedded as they are."""

TINY = 160
"""Pictures up to this wide are shown with sharp pixels: they were drawn that small."""

BUDGET = 12 * 1024 * 1024
"""Bytes of all pictures of a page, as they stand in it."""

COLOURS = 6


class Thumbnails:
    """Embeds pictures until the budget is spent, and remembers how many it had to leave out or could not read.

    side: longest side of an embedded picture in pixels.
    """

    def __init__(self, budget: int = BUDGET, side: int = SIDE) -> None:
        self._left = budget
        self._side = side
        self._made: dict[Path, dict[str, Any] | None] = {}
        self.left_out = 0
        self.unreadable = 0

    @property
    def shown(self) -> int:
        """How many different pictures are embedded."""
        return sum(found is not None for found in self._made.values())

    def of(self, path: Path | None) -> dict[str, Any] | None:
        """{"src": a data URI, "width", "height", "tiny"}, or None where there is no such picture or no room for it."""
        if path is None:
            return None
        if path not in self._made:
            self._made[path] = self._make(path)
        return self._made[path]

    def _make(self, path: Path) -> dict[str, Any] | None:
        try:
            picture = open_picture(path)
        except UserError:
            self.unreadable += 1
            return None
        tiny = picture.width <= TINY
        picture.thumbnail((self._side, self._side), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        if tiny:
            picture.save(stream, "PNG", optimize=True)
        else:
            picture.save(stream, "JPEG", quality=82, optimize=True, progressive=True)
        kind = "png" if tiny else "jpeg"
        source = f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
        if len(source) > self._left:
            self.left_out += 1
            return None
        self._left -= len(source)
        return {"src": source, "width": picture.width, "height": picture.height, "tiny": tiny}


def overlay(boxes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Boxes in hundredths of the picture, with a colour's number, a label and a score, for the page to draw."""
    drawn = []
    for position, box in enumerate(boxes):
        x0, y0, x1, y1 = (min(1.0, max(0.0, float(end))) * 100 for end in box["box"])
        drawn.append(
            {
                "x": round(x0, 2),
                "y": round(y0, 2),
                "width": round(max(0.0, x1 - x0), 2),
                "height": round(max(0.0, y1 - y0), 2),
                "colour": position % COLOURS + 1,
                "label": str(box.get("label", "")),
                "score": "" if box.get("score") is None else f"{float(box['score']):.2f}",
            }
        )
    return drawn
