"""The sampler's settings: nothing heavy is imported here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from srum_ds.common.errors import UserError


@dataclass(frozen=True)
class CodeSampling:
    """Settings of the sampler of codes (defaults: the release's).

    guidance: scale s of u + s (c - u), between logits without and with the prompt; 1 switches it off. temperature: what
    guided logits are divided by; 0 takes the likeliest code.

    UserError, naming the setting, for a value out of its range.
    """

    guidance: float = 5.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("guidance", self.guidance), ("temperature", self.temperature)):
            if not 0 <= value < math.inf:
                raise UserError(f"the sampler's {name} is {value}, expected a number from 0")

    @property
    def guided(self) -> bool:
        """Whether a second pass, without the prompt, takes part."""
        return self.guidance != 1
