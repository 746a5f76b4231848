"""What a design says of its conformance sets, a case as a runner sees it, and its images."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Outputs = dict[str, Tensor]

OPEN = ":open"
"""Behind an output's name: where (bool) float32 leaves open which of two neighbouring levels an 8-bit number is."""

ROOM = 0.005
"""How near to the boundary of two levels, in levels, a number lies that float32 may put on either side."""


@dataclass(frozen=True)
class Case:
    """One case as a runner sees it.

    ``inputs`` holds the input tensors of the whole set (``case/name``), ``wanted`` the shape that the
    set declares for each output of this case, ``settings`` its entry in cases.json.
    """

    name: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    wanted: Mapping[str, tuple[int, ...]]

    def input(self, name: str) -> Tensor:
        return self.inputs[f"{self.name}/{name}"]


@dataclass(frozen=True)
class ConformanceDesign:
    """How the sets of one design are opened and run.

    matches: whether a set's ``checkpoint`` folder is of this design. load: (checkpoint folder, the set's settings) ->
    the model, through the design's public loader. inputs: names of the input tensors (a regular expression) by kind of
    case; every other tensor is an output, which no runner sees. runners: by kind of case, what computes its outputs by
    name. problems: (model, settings) -> what the tokenizer makes otherwise than the set says, in words. exact: names
    of outputs (a regular expression) that must be equal to the bit. loose: largest difference of an output by
    ``case/name`` where it is not the usual one. settings: cases of cases.json that only hold settings.
    given: names (a regular expression for ``case/name``) of inputs that the sets list among the outputs; a runner
    proves them by what they lead to.
    """

    name: str
    matches: Callable[[Path], bool]
    load: Callable[[Path, Mapping[str, Any]], Any]
    inputs: Mapping[str, str]
    runners: Mapping[str, Callable[[Any, Case], Outputs]]
    problems: Callable[[Any, Mapping[str, Any]], list[str]]
    exact: str = r"(?!)"
    loose: Mapping[str, float] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    given: str = r"(?!)"

    def kind_of(self, case: str) -> str | None:
        """The kind of a case by its name: ``t2i_batch_global`` is of kind ``t2i``."""
        fitting = [kind for kind in self.inputs if case == kind or case.startswith(kind + "_")]
        return max(fitting, key=len, default=None)

    def is_input(self, key: str) -> bool:
        """Whether the tensor ``case/name`` is given to the model; of an unknown case none is."""
        case, _, name = key.partition("/")
        kind = self.kind_of(case)
        return kind is not None and re.fullmatch(self.inputs[kind], name) is not None


def open_levels(exact: Tensor, boundary: float) -> Tensor:
    """Where numbers in levels (0 to 255) lie next to a boundary: at ``boundary`` behind each whole number.

    boundary: 0 where levels are made by truncation, 0.5 by rounding.
    """
    beyond = exact - boundary
    return (beyond - beyond.round()).abs() < ROOM


def picture(image_HWC: Tensor) -> Tensor:
    """A uint8 picture [H, W, 3] as floats [3, H, W] in [0, 1]."""
    return image_HWC.permute(2, 0, 1).float() / 255


def as_uint8(image_CHW: Tensor) -> Tensor:
    """The 8-bit picture [H, W, 3] of floats in [0, 1] that are multiples of 1/255."""
    return (image_CHW * 255).round().to(torch.uint8).permute(1, 2, 0)


def released_regions(records: Sequence[Mapping[str, Any]]) -> tuple[list[list[int]], list[float]]:
    """Boxes in whole pixels and scores of one picture's records, read as the release reads them."""
    boxes: list[list[int]] = []
    scores: list[float] = []
    for record in records:
        box = record.get("bbox") or []
        if record.get("object") == "global_layout_reward" or len(box) != 4:
            continue
        boxes.append([int(float(edge)) for edge in box])
        scores.append(float(record.get("score") or 0.0))
    return boxes, scores
