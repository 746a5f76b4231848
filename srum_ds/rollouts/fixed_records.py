"""What was seen at each showing of the fixed prompts, kept beside the run's grids of samples and read again.

A showing after 20 steps is ``samples/fixed_000020.json`` with its pictures in the folder ``samples/fixed_000020``; the
record is written last, so that where it stands its pictures stand too. The report of a run reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes, replacing, write_atomic
from srum_ds.common.texts import is_number, parse_json
from srum_ds.monitoring.images import to_pil

FORMAT = 1
SAMPLES = "samples"
SIDE = 384
"""Longest side of a kept picture in pixels; larger ones are scaled down to it."""

LOSSLESS = 160
"""Pictures up to this side are kept as PNG: they were drawn that small."""

REWARD_MAP = "reward"
WEIGHTS_MAP = "weights"

_GRID = re.compile(r"fixed_(\d{6,})\.png")
_RECORD = re.compile(r"fixed_(\d{6,})\.json")


@dataclass(frozen=True)
class SeenBox:
    """A region: its box (x0, y0, x1, y1 in [0, 1]), its score in [-1, 1] (None: failed), its phrase and the reply."""

    box: tuple[float, ...]
    score: float | None
    phrase: str = ""
    reply: str = ""


@dataclass(frozen=True)
class SeenImage:
    """One image of a fixed prompt, and what the judge said of it.

    score: of the whole image in [-1, 1]; None where the judge failed. missing: the share of asked-for objects that no
    region shows. map: rows of the token grid, numbers as ``Showing.map_kind`` says; empty where there is none.
    """

    id: str
    text: str
    category: str = ""
    phrases: tuple[str, ...] = ()
    finite: bool = True
    score: float | None = None
    reply: str = ""
    missing: float | None = None
    boxes: tuple[SeenBox, ...] = ()
    map: tuple[tuple[float, ...], ...] = ()
    picture: str = ""


@dataclass(frozen=True)
class Showing:
    """The fixed prompts after ``step`` steps (0: the untrained model), drawn with the weights ``ema`` or ``live``.

    judge: how it was asked, as in a line of metrics. map_kind: ``reward`` (the reward at each token) or ``weights``
    (what the loss of each token is weighed by).
    """

    step: int
    weights: str
    seed: int
    judge: str
    map_kind: str
    images: tuple[SeenImage, ...]


@dataclass(frozen=True)
class Shown:
    """A showing in a run's folder. showing: None where there is a grid alone; problem: why the record is not read."""

    number: int
    grid: Path | None
    showing: Showing | None
    problem: str = ""


def write_showing(run_dir: Path, showing: Showing, images: Sequence[Tensor]) -> Path:
    """Writes the pictures ([3, H, W] each) and the record; returns the record's path. UserError where it cannot."""
    path = run_dir / SAMPLES / f"fixed_{showing.step:06d}.json"
    content = asdict(showing)
    for number, (image_CHW, record) in enumerate(zip(images, content["images"], strict=True)):
        record["picture"] = _write_picture(path.with_suffix(""), number, to_pil(image_CHW))
    write_atomic(path, json.dumps({"format": FORMAT, **content}, allow_nan=False, ensure_ascii=False) + "\n")
    return path


def _write_picture(folder: Path, number: int, picture: Image.Image) -> str:
    """Writes one picture and returns its path relative to ``samples``."""
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    small = max(picture.size) <= LOSSLESS
    path = folder / f"{number:02d}.{'png' if small else 'jpg'}"
    with replacing(path) as stream:
        if small:
            picture.save(stream, "PNG", optimize=True)
        else:
            picture.save(stream, "JPEG", quality=88, optimize=True)
    return f"{folder.name}/{path.name}"


def read_showing(path: Path) -> Showing:
    """A record. UserError naming the file for one that is damaged, cut short or of a later format."""
    try:
        content = parse_json(file_bytes(path))
        if content["format"] != FORMAT:
            raise UserError(
                f"{path}: a record of format {content['format']!r}, this version reads {FORMAT}: use the version of "
                "srum-ds that wrote it"
            )
        return _showing(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a record of the fixed prompts ({error}); remove it, and the report shows the grid beside it"
        ) from error


def _showing(content: Mapping[str, Any]) -> Showing:
    images = tuple(_image(record) for record in content["images"])
    texts = [content[key] for key in ("weights", "judge", "map_kind")]
    if type(content["step"]) is not int or not all(isinstance(text, str) for text in texts):
        raise ValueError("step, weights, judge or map_kind is of another type")
    return Showing(content["step"], texts[0], content["seed"], texts[1], texts[2], images)


def _image(record: Mapping[str, Any]) -> SeenImage:
    for key in ("id", "text", "category", "reply", "picture"):
        if not isinstance(record[key], str):
            raise ValueError(f"{key} is no text")
    return SeenImage(
        id=record["id"],
        text=record["text"],
        category=record["category"],
        phrases=tuple(str(phrase) for phrase in record["phrases"]),
        finite=bool(record["finite"]),
        score=_number(record["score"]),
        reply=record["reply"],
        missing=_number(record["missing"]),
        boxes=tuple(_box(box) for box in record["boxes"]),
        map=_map(record["map"]),
        picture=_inside(record["picture"]),
    )


def _box(box: Mapping[str, Any]) -> SeenBox:
    ends = tuple(box["box"])
    if len(ends) != 4 or not all(is_number(end) for end in ends):
        raise ValueError("a box is not of four numbers")
    return SeenBox(ends, _number(box["score"]), str(box["phrase"]), str(box["reply"]))


def _map(rows: Any) -> tuple[tuple[float, ...], ...]:
    found = tuple(tuple(row) for row in rows)
    if not all(is_number(value) for row in found for value in row) or len({len(row) for row in found}) > 1:
        raise ValueError("a map is no table of numbers")
    return found


def _number(value: Any) -> float | None:
    if value is not None and not is_number(value):
        raise ValueError(f"{value!r} is no number")
    return value


def _inside(name: str) -> str:
    """A picture's name, which must lie below ``samples``."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"the picture {name!r} lies outside the run's samples")
    return name


def read_showings(run_dir: Path) -> list[Shown]:
    """All showings of a run in order: those with a record, and former ones that have a grid alone."""
    folder = run_dir / SAMPLES
    grids = _numbered(folder, _GRID)
    records = _numbered(folder, _RECORD)
    shown = []
    for number in sorted({*grids, *records}):
        showing, problem = None, ""
        if number in records:
            try:
                showing = read_showing(records[number])
            except UserError as error:
                problem = str(error)
        shown.append(Shown(number, grids.get(number), showing, problem))
    return shown


def _numbered(folder: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    found = ((pattern.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match[1]): path for match, path in found if match is not None}
