"""Fuzzing: every target on a few inputs, and on those that escaped once; readers' times at two lengths."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srum_ds.common.errors import UserError
from tests.fuzz.__main__ import main
from tests.fuzz.campaign import run
from tests.fuzz.growth import READERS, Growth, growths, of_files, seconds_of
from tests.fuzz.inputs import Maker
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

SEEDS = st.integers(min_value=0, max_value=2**64 - 1)
# The same inputs each time, and nothing kept of them.
QUIET: dict[str, Any] = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
}


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_refusals_escapes(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    outcomes = set()

    def check(seed: int) -> None:
        outcomes.add(target.accepts(target.make(Maker(random.Random(seed))), tmp_path))

    given(SEEDS)(settings(max_examples=target.examples, **QUIET)(check))()
    assert outcomes


@pytest.mark.parametrize(("name", "number"), [(name, n) for name in TARGETS for n in range(len(TARGETS[name].known))])
def test_what_escaped_once_is_refused_or_read(name: str, number: int, tmp_path: Path) -> None:
    TARGETS[name].accepts(TARGETS[name].known[number], tmp_path)


@pytest.mark.parametrize("name", ["score", "regions", "boxes", "phrases", "objects"])
def test_any_text_is_read(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    further = {"regions": (2,), "boxes": ((48, 64), "pixels"), "phrases": ("a red dog",)}.get(name)

    def check(text: str) -> None:
        assert target.accepts(text if further is None else (text, *further), tmp_path)

    given(st.text())(settings(max_examples=60, **QUIET)(check))()


@pytest.mark.parametrize("name", [*READERS, "read_records", "read_detections", "read_store"])
def test_time_grows_with_the_length_alone(name: str, tmp_path: Path) -> None:
    slow = [growth for growth in growths(500, name, {**READERS, **of_files(tmp_path)}[name]) if not growth.is_linear]
    assert not slow


def test_the_big_run_finds_an_escape_and_makes_it_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(case: int, folder: Path) -> None:
        if case % 7 == 0:
            raise UserError("sevens are refused")
        if case % 10 == 9:
            raise KeyError(case)

    monkeypatch.setitem(TARGETS, "planted", Target("planted", lambda make: make.below(1000), check))
    first = run(["planted"], 300, 1, 1)["planted"]
    assert first.inputs == 301 and 0 < first.read < 301
    ((escape, (count, shown)),) = first.escapes.items()
    assert escape.startswith("KeyError at ") and count > 10 and "KeyError" in shown
    assert run(["planted"], 300, 1, 1)["planted"].escapes == first.escapes
    file = tmp_path / "fuzz.json"
    assert main(["--inputs", "300", "--only", "planted", "--json", str(file)]) == 1
    assert f"{count} escapes" in capsys.readouterr().out and file.exists()


def test_a_reader_of_quadratic_time_is_told() -> None:
    def quadratic(text: str) -> None:
        for n in range(len(text)):
            text[n:].count("\x00")

    assert not Growth("planted", "a", 3000, *(seconds_of(quadratic, "a" * n) for n in (3000, 24000))).is_linear
