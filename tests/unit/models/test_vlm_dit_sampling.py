"""Guidance and Euler updates of pipelines by values worked out by hand, and the sampler's settings."""

from __future__ import annotations

import pytest
import torch

from srum_ds.common.errors import UserError
from srum_ds.models.vlm_dit.model import as_bytes, as_texts
from srum_ds.models.vlm_dit.sampling import GUIDES, PipelineSampling, euler

CONDITIONAL = torch.tensor([[[3.0, 4.0], [0.0, 1.0]]])
EMPTY = torch.tensor([[[0.0, 4.0], [0.0, 2.0]]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # e + 3 (c - e), of lengths sqrt(97) and 1; those of c are 5 and 1.
        ("plain", [[9.0, 4.0], [0.0, -1.0]]),
        ("rescaled", [[9 * 5 / 97**0.5, 4 * 5 / 97**0.5], [0.0, -1.0]]),
        ("shortened", [[9 * 5 / 97**0.5, 4 * 5 / 97**0.5], [0.0, -1.0]]),
    ],
)
def test_guidance_by_hand(name: str, expected: list[list[float]]) -> None:
    torch.testing.assert_close(GUIDES[name](CONDITIONAL, EMPTY, 3.0), torch.tensor([expected]))


def test_only_one_guidance_lengthens_a_token() -> None:
    # e + 0.5 (c - e) = (1.5, 4), shorter than c.
    found = {name: guide(CONDITIONAL, EMPTY, 0.5)[0, 0] for name, guide in GUIDES.items()}
    torch.testing.assert_close(found["shortened"], found["plain"])
    torch.testing.assert_close(found["rescaled"].norm(), torch.tensor(5.0))


def test_euler_by_hand() -> None:
    seen: list[float] = []

    def velocity(x_BTC: torch.Tensor, sigma: float) -> torch.Tensor:
        seen.append(sigma)
        return x_BTC * sigma

    found = euler(velocity, torch.full((1, 1, 1), 2.0), torch.tensor([1.0, 0.5, 0.0]))
    # 2 - 0.5 * 2 = 1, then 1 - 0.5 * 0.5.
    assert seen == [1.0, 0.5] and float(found) == 0.75


def test_settings_out_of_their_range_are_named() -> None:
    assert PipelineSampling(3, 1.0).steps == 2
    assert not PipelineSampling(3, 1.0).guided and PipelineSampling(3, 1.5).guided
    for given, words in (({"num_timesteps": 1}, "num_timesteps is 1"), ({"text_scale": -1.0}, "text_scale is -1")):
        with pytest.raises(UserError, match=words):
            PipelineSampling(**given)
    with pytest.raises(UserError, match="text_scale"):
        PipelineSampling(text_scale=float("nan"))


def test_texts_travel_as_bytes() -> None:
    texts = ["", "a star", "ein großer 猫"]
    utf8_NL, length_N = as_bytes(texts)
    assert utf8_NL.dtype == torch.uint8 and length_N.tolist() == [0, 6, 15]
    assert as_texts(utf8_NL, length_N) == texts
    assert as_texts(*as_bytes([""])) == [""]
