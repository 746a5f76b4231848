"""The sampler's settings: nothing heavy is imported here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from srum_ds.common.errors import UserError


@dataclass(frozen=True)
class MaskedSampling:
    """Settings of the sampler, by default those of Show-o's demonstration at 512 x 512 pixels.

    steps: passes through the model. guidance: g of (1 + g) c - g u; 0 switches it off. temperature: of the noise that
    chooses which codes stay masked, before the first step; codes themselves are always drawn at temperature 1.

    UserError, naming the setting, for a value out of its range.
    """

    steps: int = 50
    guidance: float = 5.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        wrong = {
            f"steps is {self.steps}, expected at least 1": self.steps < 1,
            f"guidance is {self.guidance}, expected a number from 0": not 0 <= self.guidance < math.inf,
            f"temperature is {self.temperature}, expected a number from 0": not 0 <= self.temperature < math.inf,
        }
        for message, is_wrong in wrong.items():
            if is_wrong:
                raise UserError(f"the sampler's {message}")
