"""Proposals by the understanding branch itself: it is asked for boxes and writes them as JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.config import Config
from srum_ds.models.protocol import Judge
from srum_ds.rewards.regions.boxes import Candidates, candidates_of
from srum_ds.rewards.replies import after_thinking, in_ascii
from srum_ds.rewards.templates import Template, load_template
from srum_ds.types import Prompt

Convention = Literal["qwen2.5-vl", "qwen3-vl", "pixels"]
CONVENTIONS: tuple[str, ...] = get_args(Convention)
# The side that Qwen2.5-VL's images are rounded to: 2 x 2 patches of 14 pixels.
QWEN25_UNIT = 28
QWEN25_SQUARES = (4, 16384)
_KEYS = ("bbox_2d", "bbox", "box_2d", "box")
# A list of objects of lists is 3 deep; a model that is stuck writes thousands.
_DEPTH = 8
_SIGNS = re.compile(r"\\.|[\[\]{}\"\n]")
_OPENING = {"]": "[", "}": "{"}


@dataclass(frozen=True)
class Found:
    """Boxes x0, y0, x1, y1 as shares of the image's sides, and how many entries were no box.

    ``readable``: the reply held a list, if perhaps an empty one: [] says that nothing is there.
    """

    boxes: tuple[tuple[float, float, float, float], ...]
    labels: tuple[str, ...]
    broken: int
    readable: bool


def seen_size(size_hw: tuple[int, int], convention: str) -> tuple[float, float]:
    """(height, width) that a convention's coordinates count to, for an image of ``size_hw`` pixels.

    ``qwen2.5-vl``: pixels of the image as the model sees it, each side rounded to the nearest multiple of
    28 within the released processor's budget of 4 to 16384 such squares.
    ``qwen3-vl``: 0 to 1000 whatever the size. ``pixels``: of the image as it is.
    """
    if convention == "qwen3-vl":
        return 1000.0, 1000.0
    if convention == "pixels":
        return float(size_hw[0]), float(size_hw[1])
    if convention != "qwen2.5-vl":
        raise UserError(f"regions.ground_convention is {convention!r}, expected one of {', '.join(CONVENTIONS)}")
    height, width = (max(1, round(side / QWEN25_UNIT)) for side in size_hw)
    least, most = QWEN25_SQUARES
    if not least <= height * width <= most:
        budget = least if height * width < least else most
        scale = math.sqrt(budget * QWEN25_UNIT**2 / (size_hw[0] * size_hw[1])) / QWEN25_UNIT
        to_whole = math.ceil if budget == least else math.floor
        height, width = (max(1, to_whole(side * scale)) for side in size_hw)
    return float(height * QWEN25_UNIT), float(width * QWEN25_UNIT)


def parse_boxes(reply: str, size_hw: tuple[int, int], convention: str) -> Found:
    """Reads boxes out of a written reply.

    What follows the thinking counts; a reply still thinking has none. Expected is a JSON list of
    objects with ``bbox_2d`` (or ``bbox``, ``box_2d``, ``box``): [x0, y0, x1, y1] and, if it likes, ``label``;
    a list of bare quadruples, one object alone, several lists, prose around it and code fences do as well. Of
    a truncated reply the entries whose coordinates are whole are read. Swapped corners are put right, parts outside the
    image are cut off, and a box that is empty then, that lies outside, or that is not four finite
    numbers counts as broken.

    Args:
        reply: the judge's text.
        size_hw: height and width of the image in pixels.
        convention: see ``seen_size``.
    """
    height, width = seen_size(size_hw, convention)
    text = after_thinking(reply)
    if text is None:
        return Found((), (), 0, False)
    entries, readable = _entries(in_ascii(text))
    boxes, labels, broken = [], [], 0
    for numbers, label in entries:
        box = _normalised(numbers, height, width)
        if box is None:
            broken += 1
        else:
            boxes.append(box)
            labels.append(label)
    return Found(tuple(boxes), tuple(labels), broken, readable)


def _entries(text: str) -> tuple[list[tuple[Any, str]], bool]:
    """(coordinates as written, label) of every entry, and whether there was a list or object at all."""
    decoder = json.JSONDecoder()
    entries: list[tuple[Any, str]] = []
    readable = False
    position = 0
    for start in _closed_brackets(text):
        if start < position:
            continue
        try:
            value, position = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            # Not JSON: step inside.
            continue
        found = _of_value(value)
        # An empty list says that there is nothing; other brackets without boxes are prose.
        readable = readable or bool(found) or value == []
        entries.extend(found)
    return entries, readable


def _closed_brackets(text: str) -> list[int]:
    """Where brackets open that close again and hold at most ``_DEPTH`` brackets in one another, in order.

    One that is cut off is left out, what is whole inside it is not. Brackets in strings are none. Every bracket that
    is given ends, and each character stands in few of them, so that reading them all takes time linear in the text.
    """
    found: list[int] = []
    # Where a bracket opens, its kind, and how deep it goes.
    stack: list[list[Any]] = []
    still_open = {"[": 0, "{": 0}
    in_string = False
    for sign in _SIGNS.finditer(text):
        mark = sign[0]
        if mark in ('"', "\n"):
            # A string of JSON ends with its line, and prose outside of brackets may quote as it likes.
            in_string = mark == '"' and not in_string and bool(stack)
        elif in_string or mark[0] == "\\":
            continue
        elif mark in still_open:
            stack.append([sign.start(), mark, 1])
            still_open[mark] += 1
        elif still_open[_OPENING[mark]]:
            while True:
                start, kind, depth = stack.pop()
                still_open[kind] -= 1
                if stack:
                    stack[-1][2] = max(stack[-1][2], depth + 1)
                if kind == _OPENING[mark]:
                    break
            if depth <= _DEPTH:
                found.append(start)
    return sorted(found)


def _of_value(value: Any) -> list[tuple[Any, str]]:
    """The entries of one JSON value: an object with a box, a quadruple, or a list of either."""
    if isinstance(value, dict):
        key = next((key for key in _KEYS if key in value), None)
        if key is None:
            return [entry for inner in value.values() if isinstance(inner, list) for entry in _of_value(inner)]
        return [(value[key], str(value.get("label", "")))]
    if isinstance(value, list):
        if value and all(isinstance(x, (int, float)) for x in value):
            # Four numbers are a box without a label; other lists of numbers are none.
            return [(value, "")] if len(value) == 4 else []
        return [entry for inner in value if isinstance(inner, (dict, list)) for entry in _of_value(inner)]
    return []


def _normalised(numbers: Any, height: float, width: float) -> tuple[float, float, float, float] | None:
    plain = isinstance(numbers, list) and len(numbers) == 4
    if not plain or not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in numbers):
        return None
    if not all(abs(x) < 1e9 for x in numbers):
        return None
    (x0, x1), (y0, y1) = sorted((numbers[0], numbers[2])), sorted((numbers[1], numbers[3]))
    box = tuple(
        min(max(edge / side, 0.0), 1.0) for edge, side in zip((x0, y0, x1, y1), (width, height) * 2, strict=True)
    )
    return (box[0], box[1], box[2], box[3]) if box[0] < box[2] and box[1] < box[3] else None


class Ground:
    """Asks the judge where the prompt's objects are: one question per image, ``max_new_tokens`` of reply.

    A reply without any list, or with nothing but broken boxes, is a failed one: the image has no
    regions then, and ``Regions.failed`` counts it.

    Args:
        template: question with ``prompt``; ``phrases`` (a list) may be used as well.
        convention: how the judge writes coordinates; see ``seen_size``.
        max_new_tokens: >= 1.
        batch: most images in one call.

    Raises:
        UserError: a template that does not use ``prompt`` or ``phrases``, or an unknown convention.
    """

    asks = True
    finds_objects = True

    def __init__(self, template: Template, convention: str, max_new_tokens: int, batch: int = 64) -> None:
        if not template.variables & {"prompt", "phrases"}:
            raise UserError(f"judge template {template.name} mentions neither {{{{ prompt }}}} nor {{{{ phrases }}}}")
        seen_size((QWEN25_UNIT, QWEN25_UNIT), convention)
        self.template = template
        self.convention = convention
        self.max_new_tokens = max_new_tokens
        self.batch = batch

    def __call__(self, images_NCHW: Tensor, prompts: Sequence[Prompt], judge: Judge) -> list[Candidates]:
        """See ``Proposer``. A box counts as large as it is."""
        size_hw = (images_NCHW.shape[-2], images_NCHW.shape[-1])
        replies: list[str] = []
        for start in range(0, len(prompts), self.batch):
            questions = [
                self.template.render(prompt=prompt.text, phrases=list(prompt.phrases))
                for prompt in prompts[start : start + self.batch]
            ]
            pictures = list(images_NCHW[start : start + self.batch])
            replies.extend(judge.answer(pictures, questions, self.max_new_tokens))
        return [_candidates(parse_boxes(reply, size_hw, self.convention)) for reply in replies]


def _candidates(found: Found) -> Candidates:
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in found.boxes]
    failed = not found.readable or (found.broken > 0 and not found.boxes)
    return candidates_of(found.boxes, areas, failed)


def ground_proposer(cfg: Config) -> Ground:
    """``regions.kind=ground``."""
    r = cfg.regions
    return Ground(load_template(r.ground_template), r.ground_convention, r.ground_tokens, cfg.judge.batch)
