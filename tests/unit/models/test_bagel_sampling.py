"""Guidance and its three renormalisations, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from srum_ds.models.bagel.sampling import euler, guide, guided_at
from srum_ds.models.flow import FlowSampling

# Two pictures of one token of two channels. Without text 0, so that scale 2 doubles the conditional velocity.
CONDITIONAL = torch.tensor([[[3.0, 4.0]], [[0.0, 12.0]]])
NO_TEXT = torch.zeros(2, 1, 2)
NO_IMAGE = torch.tensor([[[6.0, 8.0]], [[5.0, 0.0]]])


def guided(no_image: Tensor | None = None, **changes: object) -> Tensor:
    settings: dict[str, object] = {"text_scale": 2.0, "image_scale": 1.0, "renorm": "global", "renorm_min": 0.0}
    return guide(CONDITIONAL, NO_TEXT, no_image, **{**settings, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("renorm", ["global", "channel", "text_channel"])
def test_a_doubled_velocity_is_scaled_back_to_its_length(renorm: str) -> None:
    torch.testing.assert_close(guided(renorm=renorm), CONDITIONAL)


def test_renorm_min_bounds_the_scaling() -> None:
    torch.testing.assert_close(guided(renorm_min=0.75), CONDITIONAL * 2 * 0.75)
    torch.testing.assert_close(guided(renorm_min=1.0), CONDITIONAL * 2)


def test_velocities_are_never_made_longer() -> None:
    torch.testing.assert_close(guided(text_scale=1.5, renorm_min=0.0), CONDITIONAL)
    shorter = guide(
        CONDITIONAL, CONDITIONAL * 3, None, text_scale=1.5, image_scale=1.0, renorm="channel", renorm_min=0.0
    )
    # 3 c + 1.5 (c - 3 c) = 0: nothing to scale up.
    torch.testing.assert_close(shorter, torch.zeros(2, 1, 2))


def test_the_norm_is_a_pictures_own_or_the_batchs_as_released() -> None:
    """g = i + 3 (2c - i) = 6c - 2i: (6, 8) and (-10, 72), against c of norms 5 and 12."""
    g = torch.tensor([[[6.0, 8.0]], [[-10.0, 72.0]]])
    own = torch.stack([g[0] * 5 / 10, g[1] * 12 / (100 + 72**2) ** 0.5])
    torch.testing.assert_close(guided(NO_IMAGE, image_scale=3.0), own)
    batch = g * (13 / (6**2 + 8**2 + 10**2 + 72**2) ** 0.5)
    torch.testing.assert_close(guided(NO_IMAGE, image_scale=3.0, scope="batch"), batch)


def test_text_channel_scales_before_the_picture_guides() -> None:
    """The text step gives c back, then i + 3 (c - i) = 3c - 2i stays as it is."""
    expected = 3 * CONDITIONAL - 2 * NO_IMAGE
    torch.testing.assert_close(guided(NO_IMAGE, image_scale=3.0, renorm="text_channel"), expected)


def test_channel_scales_token_by_token() -> None:
    conditional = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    no_text = torch.tensor([[[0.0, 0.0], [0.0, 4.0]]])
    found = guide(conditional, no_text, None, text_scale=4.0, image_scale=1.0, renorm="channel", renorm_min=0.0)
    # 4 (1, 0) is scaled by 1/4; (0, 4) + 4 (0, -2) = (0, -4) by 2/4.
    torch.testing.assert_close(found, torch.tensor([[[1.0, 0.0], [0.0, -2.0]]]))


def test_a_picture_guides_above_scale_1_only() -> None:
    for scale in (0.0, 0.5, 1.0):
        torch.testing.assert_close(guided(NO_IMAGE, image_scale=scale), CONDITIONAL)


def test_no_text_scale_no_guidance() -> None:
    """As released: a text scale of 1 or less switches guidance off, whatever the picture's scale."""
    for scale in (0.0, 1.0):
        assert not guided_at(0.7, FlowSampling(text_scale=scale, image_scale=3.0))
    assert guided_at(0.7, FlowSampling(text_scale=1.1))
    assert not guided_at(0.4, FlowSampling(interval=(0.4, 1.0))) and guided_at(1.0, FlowSampling(interval=(0.4, 1.0)))


def test_euler_steps_follow_the_time_points() -> None:
    """Shift 3 over three points: 1, 3/4, 0; with v = x the factors are 3/4 and 1/4."""
    seen: list[tuple[float, bool]] = []

    def velocity(x: Tensor, t: float, is_guided: bool) -> Tensor:
        seen.append((t, is_guided))
        return x

    x, velocities = euler(velocity, torch.ones(1, 1, 1), FlowSampling(3, 3.0, interval=(0.75, 1.0)))
    assert seen == [(1.0, True), (0.75, False)]
    assert [v.item() for v in velocities] == pytest.approx([1.0, 0.75])
    assert x.item() == pytest.approx(0.75 * 0.25)
