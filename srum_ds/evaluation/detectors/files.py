"""Detections made elsewhere, as a file: ``srum-ds eval score --detections FILE``.

JSON, one object: {"images/ID_000.png": [OBJECT, ...], ...}; or JSON lines, one picture a line:
{"picture": "images/ID_000.png", "detections": [OBJECT, ...], "size": [WIDTH, HEIGHT]}, where ``size`` may be absent.

OBJECT: {"label": "dog", "score": 0.93, "box": [x0, y0, x1, y1], "color": "brown", "mask": {...}}. Boxes are shares of
the picture in [0, 1], or pixels on lines that give ``size``. ``color`` and ``mask`` (run lengths, ``benchmarks.masks``)
may be absent. An empty list says that nothing was found; a picture that is not named was never looked at, which is a
failure and not the same.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes, write_atomic
from srum_ds.common.texts import is_number, parse_json, require_encodable
from srum_ds.evaluation.benchmarks import Detection, Grade

_FORMS = 'an object {"images/ID_000.png": [...], ...}, or lines {"picture": "images/ID_000.png", "detections": [...]}'
_OBJECT = '{"label": text, "score": number in [0, 1], "box": [x0, y0, x1, y1]} and perhaps "color" and "mask"'


# How JSON spells half of a character that was cut in two.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class RecordedDetections:
    """Detections by picture. source: the file, for messages."""

    source: Path
    by_picture: Mapping[str, Sequence[Detection]]

    def of(self, picture: str) -> Sequence[Detection] | None:
        """What was found in a picture, by its path from the folder on or its file name; None: not looked at."""
        found = self.by_picture.get(picture)
        return self.by_picture.get(PurePosixPath(picture).name) if found is None else found

    def refuse(self, pictures: Sequence[str], classes: Sequence[str]) -> None:
        """UserError for what would grade pictures wrongly rather than not at all.

        That is a file name without a folder that several of the pictures have, and a label that is one of the prompts'
        classes but for its spelling, so that its objects would never be found.
        """
        named = Counter(PurePosixPath(picture).name for picture in pictures)
        for name in self.by_picture:
            if named[name] > 1 and name not in pictures:
                raise UserError(
                    f"{self.source}: {name!r} may be any of {named[name]} pictures of that name: name each by its path "
                    f"in the folder, such as {next(one for one in pictures if PurePosixPath(one).name == name)!r}"
                )
        wanted = {_plain(name): name for name in classes}
        for name, found in self.by_picture.items():
            for one in found:
                meant = wanted.get(_plain(one.label), one.label)
                if one.label != meant and one.label not in classes:
                    raise UserError(
                        f"{self.source}: {name!r} has the label {one.label!r}, which the prompts spell {meant!r}: it "
                        "would count as not found; spell labels as the prompts do"
                    )

    def strangers(self, pictures: Sequence[str]) -> list[str]:
        """The names in the file that are none of these pictures."""
        known = {*pictures, *(PurePosixPath(picture).name for picture in pictures)}
        return [name for name in self.by_picture if name not in known]

    def missing(self, picture: str) -> Grade:
        """The grade of a picture that nobody looked at: a failure that says so."""
        return Grade(None, failure=f"{self.source.name} has no entry for {picture}")


def read_detections(path: Path) -> RecordedDetections:
    """The detections of a JSON or JSONL file. UserError naming file, line (or picture) and object where malformed."""
    try:
        text = file_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    entries = _lines(text, path) if _is_lines(text) else _whole(text, path)
    found: dict[str, list[Detection]] = {}
    for where, picture, objects, size in entries:
        if picture in found:
            raise UserError(f"{where}: the picture {picture!r} occurs twice")
        if not isinstance(objects, list):
            raise UserError(f"{where}: the detections of {picture!r} are {type(objects).__name__}, expected a list")
        if _HALF.search(text):
            require_encodable(json.dumps([picture, objects], ensure_ascii=False), where)
        found[picture] = [_detection(one, f"{where}: object {n}", size) for n, one in enumerate(objects, 1)]
    if not found:
        raise UserError(f"{path}: names no pictures")
    return RecordedDetections(path, found)


def write_detections(path: Path, by_picture: Iterable[tuple[str, Sequence[Detection]]]) -> None:
    """Writes (picture, detections) pairs as JSON lines, in one step, so that nothing is detected twice."""
    lines = []
    for picture, detections in by_picture:
        objects = []
        for one in detections:
            record: dict[str, Any] = {"label": one.label, "score": one.score, "box": list(one.box)}
            if one.color:
                record["color"] = one.color
            if one.mask is not None:
                record["mask"] = dict(one.mask)
            objects.append(record)
        lines.append(json.dumps({"picture": picture, "detections": objects}, ensure_ascii=False))
    write_atomic(path, "".join(line + "\n" for line in lines))


class _Object(dict[str, Any]):
    """A JSON object; twice: the keys that occur more than once in it, of which a dictionary keeps the last."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.twice = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]


def _plain(label: str) -> str:
    return " ".join(label.casefold().replace("_", " ").replace("-", " ").split())


_Entry = tuple[str, str, Any, tuple[float, float] | None]


def _is_lines(text: str) -> bool:
    first = text.lstrip().split("\n", 1)[0]
    try:
        record = parse_json(first)
    except ValueError:
        # A first line that is no JSON by itself is the beginning of one object over several lines, or a broken line.
        return '"picture"' in first
    return isinstance(record, dict) and "picture" in record


def _lines(text: str, path: Path) -> Iterator[_Entry]:
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            record = parse_json(line)
        except ValueError as error:
            raise UserError(f"{where}: not valid JSON ({error})") from error
        if not isinstance(record, dict) or not isinstance(record.get("picture"), str) or "detections" not in record:
            raise UserError(f'{where}: expected {{"picture": name, "detections": [...]}}')
        yield where, record["picture"], record["detections"], _size(record.get("size"), where)


def _whole(text: str, path: Path) -> Iterator[_Entry]:
    try:
        record = parse_json(text, object_pairs_hook=_Object)
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); expected {_FORMS}") from error
    if not isinstance(record, _Object):
        raise UserError(f"{path}: is {type(record).__name__}, expected {_FORMS}")
    if record.twice:
        raise UserError(f"{path}: the picture {record.twice[0]!r} occurs twice")
    for picture, objects in record.items():
        yield f"{path}: {picture!r}", picture, objects, None


def _size(size: Any, where: str) -> tuple[float, float] | None:
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2 or not all(is_number(side) and side > 0 for side in size):
        raise UserError(f"{where}: size is {size!r}, expected [width, height] in pixels")
    return float(size[0]), float(size[1])


def _detection(record: Any, where: str, size: tuple[float, float] | None) -> Detection:
    if not isinstance(record, dict) or not isinstance(record.get("label"), str):
        raise UserError(f"{where}: expected {_OBJECT}")
    score: Any = record.get("score")
    box: Any = record.get("box")
    if not is_number(score) or not 0 <= score <= 1:
        raise UserError(f"{where}: score is {score!r}, expected a number in [0, 1]")
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(side) for side in box):
        raise UserError(f"{where}: box is {box!r}, expected [x0, y0, x1, y1]")
    width, height = size or (1.0, 1.0)
    x0, y0, x1, y1 = box[0] / width, box[1] / height, box[2] / width, box[3] / height
    if size is None and max(box) > 1.01:
        raise UserError(
            f"{where}: box {box} is not in [0, 1]; divide pixels by the picture's width and height, or write JSON "
            f'lines with "size": [width, height]'
        )
    if not (-0.01 <= x0 < x1 <= 1.01 and -0.01 <= y0 < y1 <= 1.01):
        raise UserError(f"{where}: box {box} has x0 >= x1 or y0 >= y1, or lies outside the picture")
    mask, color = record.get("mask"), record.get("color")
    if mask is not None and not isinstance(mask, dict):
        raise UserError(f'{where}: mask is {type(mask).__name__}, expected {{"size": [H, W], "counts": [...]}}')
    if color is not None and not isinstance(color, str):
        raise UserError(f"{where}: color is {color!r}, expected a name")
    inside = (max(x0, 0.0), max(y0, 0.0), min(x1, 1.0), min(y1, 1.0))
    return Detection(record["label"], float(score), inside, mask, color or "")
