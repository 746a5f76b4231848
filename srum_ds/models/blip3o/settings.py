"""The samplers' settings: nothing heavy is imported here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from srum_ds.common.errors import UserError

TIME_SCALE = 1000.0
"""What the transformer is given of time 1, which is noise alone."""


@dataclass(frozen=True)
class Blip3oSampling:
    """Settings of both samplers; the defaults are the released code's: 30 steps, guidance 3; 50 steps, guidance 3.

    ``num_timesteps`` counts time points of the features, 0 included, so there is one step fewer; ``decoder_timesteps``
    those of the decoder that turns them into pixels. ``text_scale`` is guidance of the features against no condition,
    at 1 there is none. ``decoder_scale`` is guidance of the decoder against the features of the empty text, up to 1
    there is none.

    UserError, naming the setting, for a value out of its range.
    """

    num_timesteps: int = 31
    text_scale: float = 3.0
    decoder_timesteps: int = 51
    decoder_scale: float = 3.0

    def __post_init__(self) -> None:
        for name in ("num_timesteps", "decoder_timesteps"):
            if getattr(self, name) < 2:
                raise UserError(f"the sampler's {name} is {getattr(self, name)}, expected at least 2")
        for name in ("text_scale", "decoder_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"the sampler's {name} is {getattr(self, name)}, expected a number from 0")

    @property
    def steps(self) -> int:
        """How often the features are moved."""
        return self.num_timesteps - 1

    @property
    def decoder_steps(self) -> int:
        """How often the decoder's latents are moved."""
        return self.decoder_timesteps - 1
