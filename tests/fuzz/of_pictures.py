"""Targets: pictures of every format, detections, labelled images in tars."""

from __future__ import annotations

import io
import json
import math
import tarfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from srum_ds.common.errors import UserError
from srum_ds.common.image_files import decode_picture, plain_png, read_image_bytes
from srum_ds.evaluation.benchmarks.geneval import GRADING
from srum_ds.evaluation.benchmarks.masks import decode_mask
from srum_ds.evaluation.detection_store import DetectionStore
from srum_ds.evaluation.detectors.files import read_detections, write_detections
from srum_ds.evaluation.labels import read_labels
from srum_ds.types import Prompt
from tests.fuzz.inputs import Maker
from tests.fuzz.target import Target, write

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM")
MODES = ("RGB", "L", "P", "RGBA", "1", "I;16", "LA", "CMYK", "animated", "turned")


@cache
def picture(form: str, mode: str) -> bytes:
    """The bytes of a picture of 12 x 9 pixels; where a format has no such mode, in RGB."""
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    out = io.BytesIO()
    options: dict[str, Any] = {}
    if mode == "animated" and form in ("GIF", "WEBP", "TIFF", "PNG"):
        options = {"save_all": True, "append_images": [pixels.rotate(180)]}
    elif mode == "turned" and form in ("JPEG", "PNG", "WEBP", "TIFF"):
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif}
    elif mode == "I;16":
        pixels = Image.fromarray(rng.integers(0, 65536, (9, 12), dtype=np.uint16))
    elif mode not in ("animated", "turned"):
        pixels = pixels.convert(mode)
    try:
        pixels.save(out, format=form, **options)
    except (OSError, ValueError):
        return picture(form, "RGB")
    return out.getvalue()


def small_png() -> bytes:
    """A whole PNG."""
    return picture("PNG", "RGB")


def make_picture(make: Maker) -> bytes:
    """A picture's file, damaged."""
    return make.damaged(picture(make.pick(FORMATS), make.pick(MODES)))


def check_picture(data: bytes, folder: Path) -> None:
    """A picture is RGB of at least one pixel, finite and in [0, 1], and the same the second time."""
    image = decode_picture(data, "here")
    assert image.mode == "RGB" and min(image.size) >= 1
    pixels = read_image_bytes(data, "here")
    assert tuple(pixels.shape) == (3, image.height, image.width) and pixels.dtype == torch.float32
    assert bool((pixels >= 0).all()) and bool((pixels <= 1).all())
    assert image.tobytes() == decode_picture(data, "here").tobytes()
    assert plain_png(data) in (True, False)


_OBJECT = {
    "label": "dog",
    "score": 0.93,
    "box": [0.1, 0.2, 0.5, 0.9],
    "color": "red",
    "mask": {"size": [9, 12], "counts": [8, 100]},
}
_WHOLE = {"images/a.png": [_OBJECT, {"label": "cat", "score": 0.4, "box": [0.5, 0, 1, 1]}], "images/b.png": []}
_LINE = {"picture": "images/a.png", "detections": [{**_OBJECT, "box": [10, 20, 50, 90]}], "size": [100, 100]}
_RECORD = {
    "tag": "position",
    "include": [
        {"class": "dog", "count": 1, "color": "red"},
        {"class": "cat", "count": 1, "position": ["right of", 0]},
    ],
}
_PROMPT = Prompt("a", "a cat right of a red dog", "position", (), _RECORD)


def make_detections(make: Maker) -> str | bytes:
    """A file of detections, as an object or as lines."""
    if make.chance(0.5):
        text = make.json(make.changed(_WHOLE))
    else:
        text = make.lines([make.changed(_LINE, keep=0.3), *([{**_LINE, "picture": "b"}] if make.chance(0.3) else [])])
    return make.damaged(text.encode("utf-8", "surrogatepass")) if make.chance(0.1) else text


def check_detections(data: str | bytes, folder: Path) -> None:
    """Scores and boxes are shares, what is written reads back, and each picture has a grade of 0 or 1."""
    found = read_detections(write(folder / "detections.json", data))
    for name, objects in found.by_picture.items():
        for one in objects:
            assert 0 <= one.score <= 1 and all(math.isfinite(side) and 0 <= side <= 1 for side in one.box), one
            assert one.box[0] < one.box[2] and one.box[1] < one.box[3], one
            if one.mask is not None:
                with suppress(UserError):
                    assert decode_mask(one.mask, 9, 12).shape == (9, 12)
        assert GRADING.grade(_PROMPT, objects, torch.zeros(3, 9, 12)).value in (0.0, 1.0), name
    found.refuse(["images/a.png", "images/b.png", "c/a.png"], ["dog", "cat"])
    assert found.strangers([]) == list(found.by_picture)
    write_detections(folder / "again.jsonl", found.by_picture.items())
    assert read_detections(folder / "again.jsonl").by_picture == found.by_picture


class _Detector:
    name = "none"

    def detect(self, images: Any, classes: Any) -> list[list[Any]]:
        """Finds nothing."""
        return [[] for _ in images]


_KEPT = {"key": "k" * 64, "detections": [{**_OBJECT}, {**_OBJECT, "mask": None, "color": ""}]}


def check_kept(data: str, folder: Path) -> None:
    """A store of detections holds what was found, or is refused."""
    path = write(folder / "kept.jsonl", data)
    store = DetectionStore(path, _Detector())
    for objects in store.found.values():
        for one in objects:
            assert isinstance(one.label, str) and 0 <= one.score <= 1, one
            assert len(one.box) == 4 and all(math.isfinite(side) for side in one.box), one


_LABEL = {"prompt": "a dog", "score": 0.7, "regions": [{"box": [0.1, 0.1, 0.5, 0.9], "phrase": "a dog", "score": 0.2}]}


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    """A tar of members by name."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def make_labels(make: Maker) -> bytes:
    """A tar of labelled images: members renamed, left out, twice, damaged, or the tar itself damaged."""
    members = []
    for key in ("a", "sub/b.v1")[: make.below(2) + 1]:
        text = make.json(make.changed(_LABEL, keep=0.6))
        name = make.pick((*[key] * 16, "", ".", "x" * 120, "ü", "a/../b"))
        members.append((f"{name}.json", text.encode("utf-8", "surrogatepass")))
        image = small_png() if make.chance(0.8) else make_picture(make)
        members.append((f"{key}.{make.pick((*['png'] * 12, 'jpg', 'PNG', 'seg.png', 'txt'))}", image))
    if make.chance(0.1):
        members.append(make.pick(members))
    tar = tar_of(members)
    return make.damaged(tar) if make.chance(0.3) else tar


def check_labels(tar: bytes, folder: Path) -> None:
    """Labels are finite, one for each image and region; boxes lie in their image; texts can be written."""
    found = read_labels(write(folder / "labels.tar", tar), 0.5)
    count = len(found.prompts)
    assert count == len(found.images) == len(found.good_N) == len(found.grade_N) and count > 0
    assert bool(np.isfinite(found.grade_N).all())
    for prompt in found.prompts:
        assert (
            prompt.text.strip() and json.dumps([prompt.id, prompt.text, *prompt.phrases], ensure_ascii=False).encode()
        )
    for one in found.asked:
        assert 0 <= one.image < count and math.isfinite(one.grade), one
        assert 0 <= one.box[0] < one.box[2] <= 1 and 0 <= one.box[1] < one.box[3] <= 1, one


TARGETS = (
    # A few bytes may name a hundred million pixels, which are read as fast as they can be.
    Target("pictures", make_picture, check_picture, 7, 80, seconds=60.0),
    Target(
        "detections",
        make_detections,
        check_detections,
        4,
        100,
        known=("[" * 100_000, json.dumps({**_LINE, "size": [1, 10**400]}), json.dumps({**_LINE, "picture": "\ud800"})),
    ),
    Target(
        "detection_store",
        lambda make: make.lines([make.changed(_KEPT, keep=0.3) for _ in range(make.below(2) + 1)]),
        check_kept,
        2,
        known=(
            "null\n",
            "[]]\n",
            '{"key": "k"}\n',
            "[" * 100_000 + "\n",
            '{"key": "k", "detections": [{"box": [1]}]}\n',
        ),
    ),
    Target(
        "labels",
        make_labels,
        check_labels,
        3,
        80,
        known=tuple(
            tar_of([("a.json", text.encode()), ("a.png", small_png())])
            for text in ("[" * 100_000, json.dumps({**_LABEL, "score": 10**400}))
        ),
    ),
)
