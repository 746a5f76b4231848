"""The settings of the sampler of flows: nothing heavy is imported here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from srum_ds.common.errors import UserError

RENORMS = ("global", "channel", "text_channel")


@dataclass(frozen=True)
class FlowSampling:
    """Settings of the flow-matching sampler (BAGEL's names and defaults).

    ``num_timesteps`` counts time points, so there are ``num_timesteps - 1`` Euler updates.
    Guidance applies where ``interval[0] < t <= interval[1]``; scale 1 switches it off.
    ``renorm_scope`` is ``sample`` (an image never depends on its batch) or ``batch`` (as released).

    UserError, naming the setting, for a value out of its range.
    """

    num_timesteps: int = 50
    timestep_shift: float = 3.0
    text_scale: float = 4.0
    image_scale: float = 1.0
    interval: tuple[float, float] = (0.4, 1.0)
    renorm: str = "global"
    renorm_min: float = 0.0
    renorm_scope: str = "sample"

    def __post_init__(self) -> None:
        low, high = self.interval
        wrong = {
            f"num_timesteps is {self.num_timesteps}, expected at least 2": self.num_timesteps < 2,
            f"text_scale is {self.text_scale}, expected a number from 0": not 0 <= self.text_scale < math.inf,
            f"image_scale is {self.image_scale}, expected a number from 0": not 0 <= self.image_scale < math.inf,
            f"timestep_shift is {self.timestep_shift}, expected a number above 0": not 0
            < self.timestep_shift
            < math.inf,
            f"interval is {list(self.interval)}, expected two numbers with 0 <= first <= second <= 1": not (
                0 <= low <= high <= 1
            ),
            f"renorm_min is {self.renorm_min}, expected a share in [0, 1]": not 0 <= self.renorm_min <= 1,
            f"renorm is {self.renorm!r}, expected one of {', '.join(RENORMS)}": self.renorm not in RENORMS,
            f"renorm_scope is {self.renorm_scope!r}, expected sample or batch": (
                self.renorm_scope not in ("sample", "batch")
            ),
        }
        for message, is_wrong in wrong.items():
            if is_wrong:
                raise UserError(f"the sampler's {message}")
