"""The four cases that every benchmark with a judge is tried on first, whatever it asks about them."""

from __future__ import annotations

from collections.abc import Callable

from srum_ds.evaluation.benchmarks.pictures import blank, checkerboard, red_circle, shuffled
from srum_ds.evaluation.benchmarks.protocol import Canary
from srum_ds.judges.protocol import Question, Reply

SHOWN = "a red circle on a white background"
"""What the picture of the case that must be right shows, in words."""


def four_cases(
    question: Question, must: str, low: Callable[[Reply], bool], high: Callable[[Reply], bool]
) -> list[Canary]:
    """The cases of one question about ``SHOWN``: three pictures that do not show it, and one that does.

    must: how the case that must be right ends, such as "must score above 60"; the others say the opposite by
    themselves. low and high: whether a reply says no and yes; both are False for a reply that cannot be read.
    """
    return [
        Canary(f"a blank picture asked about {SHOWN!r} must be refused", question, blank, low),
        Canary(f"a blue checkerboard asked about {SHOWN!r} must be refused", question, checkerboard, low),
        Canary(
            f"blind control: the pixels of {SHOWN!r} in disorder (its colours, not its content) must be refused",
            question,
            shuffled,
            low,
        ),
        Canary(f"a drawing of {SHOWN!r} asked about the same {must}", question, red_circle, high),
    ]
