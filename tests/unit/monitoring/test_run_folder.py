"""One writer a folder, and no run continued under other settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.monitoring import run_folder
from tests.support.paths import RECIPE

METRICS = "metrics.jsonl"


def test_same_settings_go_on_and_free_ones_may_change(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_folder.prepare(run, load_config(RECIPE, ["train.steps=7"]))
    (run / METRICS).touch()
    before = (run / "config.yaml").read_bytes()
    run_folder.prepare(run, load_config(RECIPE, ["train.steps=7", "log.progress=false", "eval.prompts=10"]))
    assert (run / "config.yaml").read_bytes() == before


def test_changed_settings_are_named(tmp_path: Path) -> None:
    run_folder.prepare(tmp_path, load_config(RECIPE, ["train.steps=7"]))
    (tmp_path / METRICS).touch()
    with pytest.raises(UserError, match=r"train\.steps was 7 and is now 8") as caught:
        run_folder.prepare(tmp_path, load_config(RECIPE, ["train.steps=8", "objective.beta=0.5"]))
    assert "objective.beta was 1.0 and is now 0.5" in str(caught.value)
    assert "run.dir" in str(caught.value)


def test_a_wrong_setting_can_be_put_right_before_anything_is_trained(tmp_path: Path) -> None:
    run_folder.prepare(tmp_path, load_config(RECIPE, ["model.path=/nowhere"]))
    run_folder.prepare(tmp_path, load_config(RECIPE))
    assert "nowhere" not in (tmp_path / "config.yaml").read_text()


def test_which_weights_are_exported_is_no_free_setting(tmp_path: Path) -> None:
    run_folder.prepare(tmp_path, load_config(RECIPE))
    (tmp_path / METRICS).touch()
    with pytest.raises(UserError, match=r"eval\.weights was 'ema' and is now 'live'"):
        run_folder.prepare(tmp_path, load_config(RECIPE, ["eval.weights=live"]))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("mine")
    with pytest.raises(UserError, match="run.dir"):
        run_folder.prepare(tmp_path, load_config(RECIPE))
    assert (tmp_path / "metrics.jsonl").read_text() == "mine"
