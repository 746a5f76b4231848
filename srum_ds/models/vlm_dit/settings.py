"""The sampler's settings: nothing heavy is imported here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from srum_ds.common.errors import UserError


@dataclass(frozen=True)
class PipelineSampling:
    """Settings of a pipeline's sampler; the defaults are Qwen-Image's: 50 steps, guidance 4.

    ``num_timesteps`` counts time points, 0 included, so there is one step fewer. ``text_scale`` is classifier-free
    guidance against the empty prompt; up to 1 there is none. The noise levels are the pipeline's own.

    UserError, naming the setting, for a value out of its range.
    """

    num_timesteps: int = 51
    text_scale: float = 4.0

    def __post_init__(self) -> None:
        if self.num_timesteps < 2:
            raise UserError(f"the sampler's num_timesteps is {self.num_timesteps}, expected at least 2")
        if not 0 <= self.text_scale < math.inf:
            raise UserError(f"the sampler's text_scale is {self.text_scale}, expected a number from 0")

    @property
    def steps(self) -> int:
        """How often the denoiser runs with the prompt."""
        return self.num_timesteps - 1

    @property
    def guided(self) -> bool:
        """Whether the empty prompt is looked at, too."""
        return self.text_scale > 1
