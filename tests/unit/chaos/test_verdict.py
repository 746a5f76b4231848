"""What the campaign of faults calls a failure: each way in which a job can go wrong is seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.verdict import FAILED, HUNG, REFUSED, SAME, STOPPED, Attempt, Expected, judge, steps_lost

KILLED = Attempt((-9,), 3.0, "out/run starts: 6 steps on 1 rank(s), fp32\n", done=3, finished=False)
GOES_ON = Attempt((0,), 9.0, "out/run goes on after step 3: 6 steps on 1 rank(s), fp32\n", done=6, finished=True)
REFUSES = Attempt((2,), 1.0, "srum-ds: out/shards/index.json is no JSON; write the shards anew.\n", 0, False)
MENDED = replace(GOES_ON, undone=True, text="out/run starts: 6 steps on 1 rank(s), fp32\n")
KILL = Expected((-9,))
DAMAGE = Expected((2,), (r"index\.json",))


def test_the_same_weights_after_a_kill() -> None:
    assert judge(KILL, [KILLED, GOES_ON], equal=True).outcome == SAME


def test_a_clear_refusal_and_the_same_weights_once_it_is_undone() -> None:
    assert judge(DAMAGE, [REFUSES, MENDED], equal=True).outcome == REFUSED


def test_a_pause_must_not_end_a_job() -> None:
    asleep = Expected(at_once=True, lost=0)
    assert judge(asleep, [replace(GOES_ON, text="")], equal=True).outcome == SAME
    stopped = replace(KILLED, statuses=(STOPPED,))
    assert any("nothing was lost" in why for why in judge(asleep, [stopped, GOES_ON], equal=True).why)


@pytest.mark.parametrize(
    "expected, first, last, equal, why",
    [
        (KILL, replace(KILLED, statuses=(None,)), GOES_ON, True, "hangs"),
        (KILL, replace(KILLED, statuses=(-9, None)), GOES_ON, True, "hangs"),
        (KILL, replace(KILLED, left=2), GOES_ON, True, "2 of its processes outlived it"),
        (KILL, replace(KILLED, text="x\nTraceback (most recent call last):\n"), GOES_ON, True, "a traceback"),
        (KILL, replace(KILLED, text="[rank1]: Traceback (most recent call last):\n"), GOES_ON, True, "a traceback"),
        (KILL, KILLED, GOES_ON, False, "other weights than the reference"),
        (KILL, KILLED, replace(GOES_ON, text="out/run goes on after step 1: 6\n"), True, "2 steps lost"),
        (KILL, KILLED, replace(GOES_ON, text="out/run starts: 6 steps\n"), True, "3 steps lost"),
        (KILL, replace(KILLED, statuses=(0,)), GOES_ON, True, "status 0 where nothing is finished"),
        (KILL, replace(KILLED, statuses=(3,)), GOES_ON, True, "status 3, expected"),
        (KILL, KILLED, replace(GOES_ON, statuses=(1,)), True, "the run does not end"),
        (KILL, KILLED, replace(GOES_ON, statuses=(1,)), True, "without a message"),
        (Expected((HUNG,)), replace(KILLED, statuses=(HUNG,)), GOES_ON, True, "without a message"),
        (DAMAGE, replace(REFUSES, text="srum-ds: something is wrong\n"), MENDED, True, "the message names none"),
        (DAMAGE, replace(REFUSES, text="index.json\n"), MENDED, True, "without a message"),
        (DAMAGE, replace(REFUSES, altered=("metrics.jsonl",)), MENDED, True, "changed metrics.jsonl"),
        (DAMAGE, REFUSES, replace(REFUSES, undone=True), True, "although the damage was undone"),
        (DAMAGE, replace(GOES_ON, text="out/run starts: 6\n"), None, False, "other weights than the reference"),
    ],
)
def test_whatever_else_is_a_failure(
    expected: Expected, first: Attempt, last: Attempt | None, equal: bool, why: str
) -> None:
    verdict = judge(expected, [first] if last is None else [first, last], equal)
    assert verdict.outcome == FAILED
    assert any(why in text for text in verdict.why), verdict.why


def test_lost_steps_are_counted_over_all_calls() -> None:
    again = replace(GOES_ON, text="out/run goes on after step 2: 6 steps\n")
    silent = replace(KILLED, text="", done=3)
    assert steps_lost([KILLED, silent, again]) == 1
    assert steps_lost([KILLED, replace(KILLED, text="", done=5), again]) == 3
    assert steps_lost([]) == 0
