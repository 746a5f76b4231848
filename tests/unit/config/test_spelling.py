"""Numbers are what they look like, and text stays as it was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.config.spelling import as_written
from tests.support.paths import RECIPE


@pytest.mark.parametrize(("said", "steps"), [("010", 10), ("0x10", 16), ("1_000", 1000)])
def test_a_leading_zero_makes_no_number_octal(said: str, steps: int) -> None:
    assert load_config(RECIPE, [f"train.steps={said}"]).train.steps == steps


@pytest.mark.parametrize("setting", ["train.steps=1:30", "train.lr=190:20:30.15"])
def test_a_time_is_no_number(setting: str) -> None:
    with pytest.raises(UserError, match="expected a"):
        load_config(RECIPE, [setting])


def test_text_in_a_recipe_stays_as_written(tmp_path: Path) -> None:
    recipe = tmp_path / "a.yaml"
    recipe.write_text(
        f"base: {RECIPE}\ntrain: {{steps: 012, lr: 1e-5}}\n"
        "run:\n  dir: 2024_01 # a month\njudge:\n  answers: [010, 1e3]\n"
    )
    cfg = load_config(recipe, [])
    assert (cfg.train.steps, cfg.train.lr) == (12, 1e-5)
    assert (cfg.run.dir, cfg.judge.answers) == ("2024_01", ("010", "1e3"))


def test_words_on_the_command_line_too() -> None:
    assert load_config(RECIPE, ["judge.answers=[1:30, 010]"]).judge.answers == ("1:30", "010")


def test_what_two_aliases_lead_to_is_quoted_once() -> None:
    assert as_written("a: &x [010, é, 010]\nb: *x\n", lambda _: False) == 'a: &x ["010", é, "010"]\nb: *x\n'
