"""Whom a job waits for, by what its ranks say of themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from srum_ds.common import heartbeats
from srum_ds.common.heartbeats import Heartbeat, blame
from srum_ds.common.phases import Phases, limit


def word(rank: int, phase: str = "train", step: int = 4, entered: int = 3, beats: int = 9) -> Heartbeat:
    return Heartbeat(rank, 100 + rank, "node", phase, step, entered, seconds=70.0, beats=beats, time=0.0)


def later(words: dict[int, Heartbeat], *silent: int) -> dict[int, Heartbeat]:
    return {r: w if r in silent else replace(w, beats=w.beats + 3) for r, w in words.items()}


def test_a_rank_that_has_ended_is_named_first() -> None:
    words = {0: word(0), 1: word(1), 2: replace(word(2, "judge", entered=2), status=0)}
    cause = blame(0, words, later(words, 1, 2), gone=[2])
    assert cause is not None and not cause.lives
    assert "rank 2" in cause.text and "status 0" in cause.text and "phase judge of step 4" in cause.text


def test_a_rank_that_gives_no_sign() -> None:
    words = {0: word(0), 1: word(1)}
    cause = blame(0, words, later(words, 1), gone=[])
    assert cause is not None and not cause.lives
    assert "rank 1 (process 101 on node) has stopped in phase train of step 4" in cause.text


def test_a_rank_behind_has_limits_of_its_own() -> None:
    words = {0: word(0), 1: word(1, "judge", entered=2), 2: word(2, "rollout", entered=1)}
    cause = blame(0, words, later(words), gone=[])
    assert cause is not None and cause.lives
    assert "rank 2" in cause.text


def test_nobody_is_behind() -> None:
    words = {0: word(0), 1: word(1)}
    assert blame(0, words, later(words), gone=[]) is None
    assert blame(0, {}, {}, gone=[]) is None


def test_words_on_disk(tmp_path: Path) -> None:
    heartbeats.write(tmp_path, word(1))
    (tmp_path / "rank_2.json").write_text("{")
    (tmp_path / "rank_3.json").write_text('{"rank": 3}')
    assert heartbeats.read(tmp_path) == {1: word(1)}


def test_a_folder_that_was_taken_away_is_not_made_again(tmp_path: Path) -> None:
    heartbeats.write(tmp_path / "gone", word(0))
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    "longest, own, expected", [(None, None, 1800.0), (5.0, None, 65.0), (5.0, 20.0, 20.0), (None, 20.0, 20.0)]
)
def test_limit_of_a_phase(longest: float | None, own: float | None, expected: float) -> None:
    assert limit(longest, own, grace=60.0, first=1800.0) == expected


def test_longest_of_each_phase() -> None:
    now = [0.0]
    phases = Phases(lambda: now[0])
    for phase, step, seconds in (("data", 1, 3.0), ("train", None, 5.0), ("data", 2, 1.0), ("train", None, 2.0)):
        phases.enter(phase, step)
        now[0] += seconds
    assert phases.longest == {"init": 0.0, "data": 3.0, "train": 5.0}
    assert (phases.stand.phase, phases.stand.step, phases.stand.entered) == ("train", 2, 1)


def test_code_of_the_users_own_is_named() -> None:
    words = {0: word(0), 1: replace(word(1, "judge", entered=2), code="judge.external=judge.py:score")}
    cause = blame(0, words, later(words, 1), gone=[])
    assert cause is not None
    assert "has stopped in phase judge of step 4, in judge.external=judge.py:score: it no longer" in cause.text
