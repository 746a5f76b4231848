"""Randomness by identity: a seed, and the numbers drawn from it, are a function of names and numbers.

Nothing here depends on a batch, a rank or the order of calls, so a prompt's numbers are the same
whoever draws it and whenever.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Part = int | str
Key = tuple[Part, ...]
"""Parts that seed what is random about one image; a family that draws several kinds of numbers appends to it."""


def derive(*parts: Part) -> int:
    """A seed in [0, 2**63) for a sequence of names and numbers.

    The parts are hashed (SHA-256) as a JSON list, so that ("ab", "c") and ("a", "bc"), or 1 and
    "1", give different seeds. Raises TypeError for a part that is neither int nor str.
    """
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, int | str):
            raise TypeError(f"a seed is made of ints and strings, not of {type(part).__name__} {part!r}")
    text = json.dumps(parts, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: Part) -> torch.Generator:
    """A CPU generator seeded by ``derive(*parts)``."""
    return torch.Generator().manual_seed(derive(*parts))


def normal(shape: Sequence[int], *parts: Part, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal numbers (float32) of ``shape``, drawn on the CPU and moved to ``device``.

    Drawn for one item at a time (no batch dimension in ``shape``), it is the same in any batch.
    """
    return torch.randn(tuple(shape), generator=generator(*parts), dtype=torch.float32).to(device)


def uniform(shape: Sequence[int], *parts: Part, device: torch.device | str = "cpu") -> Tensor:
    """Uniform numbers in [0, 1) (float32) of ``shape``, drawn on the CPU and moved to ``device``."""
    return torch.rand(tuple(shape), generator=generator(*parts), dtype=torch.float32).to(device)


@dataclass(frozen=True)
class SampleKeys:
    """The seed parts of N images in one step of a run: run seed, step, and each image's (prompt name, sample).

    ``keys.of("rollout")`` seeds how they are drawn; for their training views a family names purposes of its own.
    """

    seed: int
    step: int
    names: tuple[tuple[str, int], ...]

    def of(self, purpose: str) -> list[Key]:
        """The parts of each image for one purpose."""
        return [(self.seed, purpose, self.step, name, sample) for name, sample in self.names]
