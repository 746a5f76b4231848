"""GenEval: whether a detector finds the objects that a prompt asks for, in their number, colour and place.

The rules are those of ``evaluation/evaluate_images.py`` of github.com/djghosh13/geneval (MIT; arXiv 2310.11513). Two
parts of the original are exchangeable here: the detector (it used Mask2Former with a Swin-S backbone trained on COCO)
and what reads colours (it used CLIP ViT-L/14 on crops); figures are comparable with published ones where both are
those. What the two in use are is part of the results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.evaluation.benchmarks.colors import COLORS, pixel_color
from srum_ds.evaluation.benchmarks.protocol import Benchmark, Detection, Grade, Published, equal_shares
from srum_ds.prompts.importers import read_geneval
from srum_ds.types import Prompt

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")

THRESHOLD = 0.3
"""Confidence above which a detection counts."""

COUNTING_THRESHOLD = 0.9
"""The same for prompts with the tag ``counting``."""

MAX_OBJECTS = 16
"""Detections of one class that are looked at, the most confident ones."""

POSITION_THRESHOLD = 0.1
"""Share of both objects' sizes that their centres must be apart."""

Box = tuple[float, float, float, float]
ColorReader = Callable[[Tensor, Detection], str]
"""From a picture [3, H, W] in [0, 1] and one of its objects to one of ``COLORS``."""


def relations(first: Box, second: Box) -> set[str]:
    """Which of ``RELATIONS`` the first box (x0, y0, x1, y1 in pixels) has to the second, perhaps none or two.

    The offset o of the centres is shortened by 0.1 x (both sizes), each axis down to 0 at most; what remains, divided
    by the length of o, must exceed 0.5 on an axis.
    """
    offset = [(first[i] + first[i + 2] - second[i] - second[i + 2]) / 2 for i in (0, 1)]
    sizes = [abs(first[i + 2] - first[i]) + abs(second[i + 2] - second[i]) for i in (0, 1)]
    left = [
        math.copysign(max(abs(o) - POSITION_THRESHOLD * size, 0.0), o) for o, size in zip(offset, sizes, strict=True)
    ]
    if all(abs(rest) < 1e-3 for rest in left):
        return set()
    dx, dy = (rest / math.hypot(*offset) for rest in left)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, true in holds.items() if true}


def counted(detections: Sequence[Detection], tag: str) -> dict[str, list[Detection]]:
    """The detections that count, by class, the most confident first, at most ``MAX_OBJECTS`` of each."""
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda one: -one.score):
        mates = found.setdefault(detection.label, [])
        if detection.score > threshold and len(mates) < MAX_OBJECTS:
            mates.append(detection)
    return found


class GenEval:
    """Grades a picture 1 or 0. color: reads an object's colour where the detections do not say it."""

    def __init__(self, color: ColorReader = pixel_color) -> None:
        self.color = color

    def classes(self, prompts: Sequence[Prompt]) -> list[str]:
        """Every class that the prompts include or exclude, in the order in which they first occur."""
        wanted = [item for prompt in prompts for item in (*_items(prompt, "include"), *_items(prompt, "exclude"))]
        return list(dict.fromkeys(str(item["class"]) for item in wanted))

    def grade(self, prompt: Prompt, detections: Sequence[Detection], image_CHW: Tensor) -> Grade:
        """1 where everything asked for is there and nothing excluded is, else 0, with the reasons as words.

        Only the most confident objects of a class are looked at: as many as are asked for. UserError for a prompt
        that is no record of GenEval.
        """
        height, width = image_CHW.shape[-2:]
        found = counted(detections, str(prompt.meta.get("tag", prompt.category)))
        reasons: list[str] = []
        groups: list[list[Detection] | None] = []
        for item in _items(prompt, "include"):
            name, count = str(item["class"]), int(item["count"])
            objects = found.get(name, [])[:count]
            why = self._lacks(name, count, objects, item.get("color"), image_CHW)
            if not why and item.get("position"):
                relation, place = item["position"]
                why = _misplaced(name, str(relation), objects, groups[int(place)], (width, height))
            groups.append(None if why else objects)
            reasons += [why] if why else []
        for item in _items(prompt, "exclude"):
            name, count = str(item["class"]), int(item["count"])
            there = len(found.get(name, []))
            if there >= count:
                reasons.append(f"expected {name} < {count}, found {there}")
        return Grade(0.0 if reasons else 1.0, words="; ".join(reasons) or "everything asked for was found")

    def _lacks(self, name: str, count: int, objects: Sequence[Detection], color: str | None, image_CHW: Tensor) -> str:
        if len(objects) < count:
            return f"expected {name} >= {count}, found {len(objects)}"
        if not color:
            return ""
        seen = [one.color.strip().casefold() or self.color(image_CHW, one) for one in objects]
        if seen.count(color) >= count:
            return ""
        return f"expected {color} {name} >= {count}, found {', '.join(seen)}"


def _misplaced(
    name: str,
    relation: str,
    objects: Sequence[Detection],
    targets: Sequence[Detection] | None,
    size: tuple[int, int],
) -> str:
    if targets is None:
        return f"no target for {name} to be {relation}"
    for one in objects:
        for target in targets:
            true = relations(_pixels(one.box, size), _pixels(target.box, size))
            if relation not in true:
                return f"expected {name} {relation} target, found {' and '.join(sorted(true)) or 'neither side'}"
    return ""


def _pixels(box: Box, size: tuple[int, int]) -> Box:
    width, height = size
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def _items(prompt: Prompt, key: str) -> list[Mapping[str, Any]]:
    # "exclude" is absent where there is none, and null after a round through a table library.
    items = prompt.meta.get(key) or []
    if key == "include" and not items:
        raise UserError(f"prompt {prompt.id!r}: no record of GenEval (its meta has no 'include')")
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise UserError(f"prompt {prompt.id!r}: {key} is {items!r}, expected a list of objects")
    for number, item in enumerate(items):
        position = item.get("position")
        if not {"class", "count"} <= set(item) or (position and not _fits(position, number)):
            raise UserError(
                f"prompt {prompt.id!r}: {key} item {number} is {dict(item)!r}; expected class, count, perhaps color, "
                f"and position as [relation, place of an earlier item] with a relation of {', '.join(RELATIONS)}"
            )
        if item.get("color") and item["color"] not in COLORS:
            raise UserError(f"prompt {prompt.id!r}: colour {item['color']!r} is none of {', '.join(COLORS)}")
    return list(items)


def _fits(position: Any, number: int) -> bool:
    if not isinstance(position, Sequence) or len(position) != 2 or position[0] not in RELATIONS:
        return False
    return type(position[1]) is int and 0 <= position[1] < number


def read(source: Path | None) -> list[Prompt]:
    """The prompts of ``evaluation_metadata.jsonl`` or its folder. UserError without one: none are bundled."""
    if source is None:
        raise UserError(
            "--prompts is missing: GenEval's prompts are prompts/evaluation_metadata.jsonl of "
            "https://github.com/djghosh13/geneval (MIT); give that file or its folder"
        )
    prompts = read_geneval(source)["test"]
    GRADING.classes(prompts)
    return prompts


def _row(model: str, source: str, overall: float, *by_tag: float) -> Published:
    order = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
    return Published(model, {**dict(zip(order, by_tag, strict=True)), "overall": overall}, source)


_README = "github.com/djghosh13/geneval README, Mask2Former and CLIP"
_BAGEL = "arXiv 2505.14683, table of GenEval; read from tables of later papers that repeat it"

PUBLISHED = (
    _row("Stable Diffusion v1.5", _README, 0.43, 0.97, 0.38, 0.35, 0.76, 0.04, 0.06),
    _row("Stable Diffusion v2.1", _README, 0.50, 0.98, 0.51, 0.44, 0.85, 0.07, 0.17),
    _row("Stable Diffusion XL", _README, 0.55, 0.98, 0.74, 0.39, 0.85, 0.15, 0.23),
    _row("IF-XL", _README, 0.61, 0.97, 0.74, 0.66, 0.81, 0.13, 0.35),
    _row("BAGEL", _BAGEL, 0.82, 0.99, 0.94, 0.81, 0.88, 0.64, 0.63),
    _row("BAGEL (rewritten prompts)", _BAGEL, 0.88, 0.98, 0.95, 0.84, 0.95, 0.78, 0.77),
)

GRADING = GenEval()

BENCHMARK = Benchmark(
    name="geneval",
    version="1",
    read=read,
    grading=GRADING,
    figures=equal_shares,
    samples=4,
    published=PUBLISHED,
    notice="GenEval's prompts: MIT, Dhruba Ghosh et al., https://github.com/djghosh13/geneval",
)
