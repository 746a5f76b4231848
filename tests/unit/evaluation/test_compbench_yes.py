"""CompBench's prompts by the probability of yes: worked out by hand."""

from __future__ import annotations

import math

import pytest

from srum_ds.evaluation.benchmarks import Asks, load_benchmark
from srum_ds.evaluation.benchmarks.compbench_yes import yes_share
from srum_ds.judges import Reply
from srum_ds.types import Prompt

PROMPT = Prompt("c-1", "A red cup on a table. ", "color")


def test_the_grade_is_the_share_of_yes_and_a_failure_is_no_number() -> None:
    grading = load_benchmark("compbench_yes").grading
    assert isinstance(grading, Asks)
    (question,) = grading.questions(PROMPT)
    assert question.turns == ("does the picture show A red cup on a table?",)
    assert question.answers == ("yes", "no")
    assert grading.grade(PROMPT, {"match": Reply(probabilities=(0.3, 0.1))}).value == pytest.approx(75.0)
    failed = grading.grade(PROMPT, {"match": Reply(error="hung up")})
    assert (failed.value, failed.failure) == (None, "hung up")


@pytest.mark.parametrize("probabilities", [(), (0.0, 0.0), (math.nan, 0.5), (0.5,), (-0.1, 0.5)])
def test_no_probabilities_are_no_grade(probabilities: tuple[float, ...]) -> None:
    assert yes_share(probabilities) is None
