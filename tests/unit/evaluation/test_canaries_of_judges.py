"""Canaries of the benchmarks that ask a judge: pictures that show what they say, and replies told apart."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from srum_ds.evaluation.benchmarks import load_benchmark
from srum_ds.judges.protocol import Reply

LOW_AND_HIGH = {
    "compbench": ('{"score": 5, "explanation": "no"}', '{"score": 95, "explanation": "yes"}'),
    "reasonbench": ('{"reason": ["no", "no"], "score": [0, 0]}', '{"reason": ["yes", "yes"], "score": [1, 1]}'),
    "wise": (
        '{"consistency": 0, "realism": 2, "aesthetic_quality": 2}',
        '{"consistency": 2, "realism": 0, "aesthetic_quality": 0}',
    ),
    "wise_verified": ('{"score": 0}', '{"score": 1}'),
}


def _pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.mode == "RGB" and min(image.size) >= 224
        return np.asarray(image).astype(int)


def _redness(pixels: np.ndarray) -> np.ndarray:
    return (pixels[..., 0] > 150) & (pixels[..., 1] < 100) & (pixels[..., 2] < 100)


@pytest.mark.parametrize("name", LOW_AND_HIGH)
def test_a_judge_that_sees_passes_and_one_that_does_not_fails(name: str) -> None:
    canaries = load_benchmark(name).canaries()
    low, high = (Reply(("a description", text)) for text in LOW_AND_HIGH[name])
    assert len(canaries) == 4 and len({canary.what for canary in canaries}) == 4
    *refused, shown = canaries
    for canary in refused:
        assert canary.good(low) and not canary.good(high)
    assert shown.good(high) and not shown.good(low)
    for broken in (Reply(error="timed out"), Reply(("", "prose")), Reply(("", "{}"))):
        assert not any(canary.good(broken) for canary in canaries)
    assert len({canary.question.sha256() for canary in canaries}) == 1


def test_the_pictures_are_what_the_cases_say() -> None:
    canaries = load_benchmark("compbench").canaries()
    for name in LOW_AND_HIGH:
        assert [canary.picture for canary in load_benchmark(name).canaries()] == [one.picture for one in canaries]
    blank, other, blind, shown = (canary.picture() for canary in canaries)
    assert len(np.unique(_pixels(blank).reshape(-1, 3), axis=0)) == 1
    assert not _redness(_pixels(other)).any() and len(np.unique(_pixels(other).reshape(-1, 3), axis=0)) == 2
    red = _redness(_pixels(shown))
    rows, columns = np.nonzero(red)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    # A filled ellipse of equal axes covers pi / 4 of its box, and its middle is that of the picture.
    assert abs(height - width) <= 1 and red.sum() == pytest.approx(np.pi / 4 * height * width, rel=0.02)
    assert abs(rows.mean() - red.shape[0] / 2) < 2 and abs(columns.mean() - red.shape[1] / 2) < 2
    assert np.array_equal(np.sort(_pixels(blind), axis=None), np.sort(_pixels(shown), axis=None))
    # In disorder: red is as frequent in each quarter.
    quarter = _redness(_pixels(blind))[: red.shape[0] // 2, : red.shape[1] // 2]
    assert quarter.mean() == pytest.approx(red.mean(), abs=0.02)
    assert [canary.picture() for canary in canaries] == [blank, other, blind, shown]
