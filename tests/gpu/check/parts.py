"""The parts of the GPU check, the least certain first, each with the time that it may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TOTAL_SECONDS = 530.0
"""Of all parts together. The last ones get what is left of it."""


@dataclass(frozen=True)
class Part:
    """target: module:function, called with (figures, where). seconds: after so many it is ended."""

    name: str
    target: str
    seconds: float


PARTS = (
    Part("machine", "tests.gpu.check.part_machine:run", 45),
    Part("training", "tests.gpu.check.part_training:run", 90),
    Part("kernels", "tests.gpu.check.part_kernels:run", 110),
    Part("layers", "tests.gpu.check.part_layers:run", 70),
    Part("decoding", "tests.gpu.check.part_decoding:run", 60),
    Part("whole", "tests.gpu.check.part_whole:run", 90),
    Part("compile", "tests.gpu.check.part_compile:run", 170),
    Part("designs", "tests.gpu.check.part_designs:run", 110),
    Part("tests", "tests.gpu.check.part_tests:run", 120),
)


def chosen(parts: Sequence[Part], names: str | None) -> list[Part]:
    """The parts of these names (commas between them) in their own order; all without. ValueError for an unknown one."""
    if names is None:
        return list(parts)
    asked = [name.strip() for name in names.split(",")]
    known = [part.name for part in parts]
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ValueError(f"--only {names}: {', '.join(unknown)} is no part; expected some of {', '.join(known)}")
    return [part for part in parts if part.name in asked]
