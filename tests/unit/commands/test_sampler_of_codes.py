"""The sampler's options of `srum-ds generate` for designs that draw codes."""

from __future__ import annotations

import pytest

from srum_ds.commands.sampler import sampling_settings
from srum_ds.common.errors import UserError
from srum_ds.models.janus import FAMILY as JANUS
from srum_ds.models.showo import FAMILY as SHOWO


def test_steps_and_guidance_are_what_the_design_calls_so() -> None:
    """Show-o's steps are steps; flow matching counts time points, one more."""
    masked = sampling_settings(SHOWO, {"--steps": 7, "--guidance": 2.5}, [], editing=False)
    assert (masked.steps, masked.guidance) == (7, 2.5)
    codes = sampling_settings(JANUS, {"--guidance": 3.0}, ["temperature=0.5"], editing=False)
    assert (codes.guidance, codes.temperature) == (3.0, 0.5)


def test_what_a_design_lacks_is_said() -> None:
    with pytest.raises(UserError, match="--steps sets num_timesteps, which the sampler of janus does not have"):
        sampling_settings(JANUS, {"--steps": 5}, [], editing=False)
    with pytest.raises(UserError, match="given twice"):
        sampling_settings(JANUS, {"--guidance": 3.0}, ["guidance=2"], editing=False)
    with pytest.raises(UserError, match="--guidance: "):
        sampling_settings(JANUS, {"--guidance": -1.0}, [], editing=False)
