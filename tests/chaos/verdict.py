"""What became of a fault: the same weights, a clear refusal, or a failure of the project, and why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

SAME, REFUSED, FAILED = "same", "refused", "FAIL"
WRONG_INPUT, STOPPED, HUNG = 2, 75, 77
_TRACEBACK = re.compile(r"^[^\n]*Traceback \(most recent call last\)", re.MULTILINE)
_SAYS = re.compile(r"^srum-ds: (.+)$", re.MULTILINE)
_STARTS = re.compile(r"goes on after step (\d+):|/run (starts):")


@dataclass(frozen=True)
class Attempt:
    """One call of the command, to its end.

    statuses: of what was started; None where it still ran at its limit. done: steps in the run's record afterwards.
    finished: whether the result stood there afterwards. left: processes that outlived it. altered: what changed in the
    run's folder of what a refusal must leave alone. undone: whether the damage had been put right before.
    """

    statuses: tuple[int | None, ...]
    seconds: float
    text: str
    done: int
    finished: bool
    left: int = 0
    altered: tuple[str, ...] = ()
    undone: bool = False

    @property
    def ended_well(self) -> bool:
        """Whether all of it ended with status 0."""
        return all(status == 0 for status in self.statuses)

    @property
    def refused(self) -> bool:
        """Whether it refused to work: each status that says something is 2."""
        return WRONG_INPUT in self.statuses

    @property
    def began_at(self) -> int | None:
        """The steps that stood when it began; None where it did not come so far as to say it."""
        found = _STARTS.search(self.text)
        return None if found is None else int(found[1] or 0)

    @property
    def messages(self) -> list[str]:
        """The paragraphs that it said."""
        return _SAYS.findall(self.text)


@dataclass(frozen=True)
class Expected:
    """What a kind of fault may end in.

    statuses: of the call that the fault hits, beside 0 and, where something was killed, that signal. named: patterns of
    which a refusal's message holds one. at_once: the call that the fault hits must end with 0. lost: steps that may be
    done again.
    """

    statuses: tuple[int, ...] = ()
    named: tuple[str, ...] = ()
    at_once: bool = False
    lost: int = 1
    silent: bool = field(default=False)


@dataclass(frozen=True)
class Verdict:
    """How a fault ended: ``SAME``, ``REFUSED`` or ``FAILED``; why, where it failed; steps that were done again."""

    outcome: str
    why: tuple[str, ...] = ()
    steps_lost: int = 0


def judge(expected: Expected, attempts: Sequence[Attempt], equal: bool) -> Verdict:
    """Judges the calls of a fault, the first of which it hits. equal: whether the end equals the reference."""
    problems: list[str] = []
    for number, attempt in enumerate(attempts):
        problems += [f"call {number + 1}: {text}" for text in _problems(expected, attempt, first=number == 0)]
    lost = steps_lost(attempts)
    if lost > expected.lost:
        problems.append(f"{lost} steps lost, at most {expected.lost} may be")
    if not attempts or not attempts[-1].ended_well:
        problems.append(
            f"the run does not end: {len(attempts)} calls, the last with {attempts[-1:] and attempts[-1].statuses}"
        )
    elif not equal:
        problems.append("status 0, but other weights than the reference")
    refused = any(attempt.refused for attempt in attempts)
    outcome = FAILED if problems else REFUSED if refused else SAME
    return Verdict(outcome, tuple(problems), lost)


def steps_lost(attempts: Sequence[Attempt]) -> int:
    """The most steps that a call had to do again which one before it had done."""
    most, done = 0, None
    for attempt in attempts:
        if done is not None and attempt.began_at is not None:
            most = max(most, done - attempt.began_at)
        done = attempt.done
    return most


def _problems(expected: Expected, attempt: Attempt, first: bool) -> list[str]:
    found: list[str] = []
    if None in attempt.statuses:
        found.append(f"hangs: it was ended after {attempt.seconds:.0f} s, its limit")
    elif attempt.left:
        found.append(f"{attempt.left} of its processes outlived it to the limit")
    if _TRACEBACK.search(attempt.text):
        found.append("a traceback on the terminal")
    if attempt.ended_well and not attempt.finished:
        found.append("status 0 where nothing is finished")
    statuses = [status for status in attempt.statuses if status is not None]
    allowed = {0, *expected.statuses} if first else {0, WRONG_INPUT}
    strange = sorted(set(statuses) - allowed)
    if strange:
        found.append(f"status {', '.join(map(str, strange))}, expected {sorted(allowed)}")
    if first and expected.at_once and not attempt.ended_well:
        found.append(f"ended with {statuses}, though nothing was lost")
    if any(status in (1, WRONG_INPUT, HUNG) for status in statuses) and not attempt.messages:
        found.append(f"status {statuses} without a message")
    if attempt.refused:
        if attempt.undone:
            found.append("refused although the damage was undone")
        if attempt.altered:
            found.append(f"refused, yet changed {', '.join(attempt.altered[:4])}")
        said = " ".join(attempt.messages)
        if expected.named and not any(re.search(pattern, said) for pattern in expected.named):
            found.append(f"the message names none of {list(expected.named)}: {said[:300]}")
    return found
