"""Keeps what a detector found, a line of JSON a picture, so that a killed scoring looks at no picture twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes
from srum_ds.common.texts import is_number, parse_json
from srum_ds.evaluation.benchmarks import Detection
from srum_ds.evaluation.detectors import Detector


class DetectionStore:
    """What one detector finds in pictures, in memory and in the file at ``path``.

    Lines of another detector, of other classes or of other pictures stay in the file and are not used; a last line
    that a killed process left unfinished is cut off.
    """

    def __init__(self, path: Path, detector: Detector) -> None:
        self.path = path
        self.detector = detector
        self.found: dict[str, list[Detection]] = {}
        if path.exists():
            data = file_bytes(path)
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                path.write_bytes(whole)
            for line in whole.split(b"\n"):
                if line:
                    self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            record = parse_json(line)
            self.found[str(record["key"])] = [detection_from_json(one) for one in record["detections"]]
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{self.path}: a line is not what a scoring keeps ({error!r}); remove the file to look anew"
            ) from error

    def detections(self, picture: Path, image_CHW: Tensor, classes: Sequence[str]) -> Sequence[Detection]:
        """The objects of these classes in a picture's file, of the pixels given; looked for where it is not known."""
        digest = hashlib.sha256(file_bytes(picture))
        digest.update(json.dumps([self.detector.name, list(classes)]).encode())
        key = digest.hexdigest()
        if key not in self.found:
            (self.found[key],) = self.detector.detect([image_CHW], classes)
            objects = [detection_to_json(one) for one in self.found[key]]
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"key": key, "detections": objects}) + "\n")
        return self.found[key]


def detection_to_json(one: Detection) -> dict[str, Any]:
    """A detection as a line of the store has it."""
    return {"label": one.label, "score": one.score, "box": list(one.box), "mask": one.mask, "color": one.color}


def detection_from_json(record: Mapping[str, Any]) -> Detection:
    """What ``detection_to_json`` gave. ValueError, LookupError or TypeError for anything else."""
    x0, y0, x1, y1 = record["box"]
    score, label, mask, color = record["score"], record["label"], record["mask"], record["color"]
    fits = isinstance(label, str) and isinstance(color, str) and (mask is None or isinstance(mask, dict))
    if not fits or not all(is_number(number) for number in (score, x0, y0, x1, y1)) or not 0 <= score <= 1:
        raise ValueError(f"no detection: {str(record)[:200]}")
    return Detection(label, score, (x0, y0, x1, y1), mask, color)
