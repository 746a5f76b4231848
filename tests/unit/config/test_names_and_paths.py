"""Settings that name files, templates or code: resolved once, and known or pointing at something."""

from __future__ import annotations

from pathlib import Path

import pytest

from srum_ds.common.errors import UserError
from srum_ds.config import diff_configs, load_config, plain_config, save_config
from tests.support.paths import RECIPE, ROOT


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("run:\n  dir: somewhere\ntrain:\n  steps: 7\n  betas: [0.8, 0.9]\n")
    return path


def test_the_home_folder_is_meant_for_outputs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = load_config(RECIPE, ["run.dir=~/runs/x", "model.path=~nobody_of_this_name/m"])
    assert cfg.run.dir == f"{tmp_path}/runs/x"
    assert cfg.written("run.dir") == "~/runs/x"
    assert cfg.model.path == "~nobody_of_this_name/m", "its reader says that there is no such folder"
    assert load_config(RECIPE, ["run.dir=a~b"]).run.dir == "a~b"


def test_paths_are_resolved_once_and_stay_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = load_config("launch/recipes/tiny.yaml", ["judge.external=mine:score", "judge.local_template=own.jinja"])
    assert cfg.model.path == str(ROOT / "srum_ds/assets/tiny_bagel")
    assert cfg.deepspeed.config == str(ROOT / "ds_configs/cpu.json")
    # What is not there stays as it is, for its reader to complain about.
    assert (cfg.judge.external, cfg.judge.local_template) == ("mine:score", "own.jinja")
    assert cfg.written("model.path") == plain_config(cfg)["model"]["path"] == "srum_ds/assets/tiny_bagel"
    save_config(cfg, tmp_path / "again.yaml")
    monkeypatch.chdir(ROOT)
    assert diff_configs(cfg, load_config(tmp_path / "again.yaml"), ignore=["model.path", "data", "deepspeed"]) == []


def test_templates_of_the_package_go_by_their_names_also_in_older_recipes() -> None:
    old = load_config("launch/recipes/tiny.yaml", ["judge.global_template=srum_ds/rewards/prompts/shapes_global.jinja"])
    assert old.judge.global_template == "shapes_global"
    assert diff_configs(old, load_config("launch/recipes/tiny.yaml")) == []
    # A run begun before designs were detected says its own.
    assert diff_configs(load_config("launch/recipes/tiny.yaml", ["model.kind=bagel"]), old) == []


def test_options_hold_what_only_the_chosen_code_knows(recipe: Path) -> None:
    cfg = load_config(recipe, ["objective.options.margin=0.5", "rollout.sampler={temperature: 1.0}"])
    assert cfg.objective.options == {"margin": 0.5} and cfg.rollout.sampler == {"temperature": 1.0}
    with pytest.raises(UserError, match="unknown key 'objective.option.margin'"):
        load_config(recipe, ["objective.option.margin=0.5"])


def test_a_name_of_code_is_known_or_points_at_code(recipe: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text("from srum_ds.objectives.losses import SFT\n")
    assert load_config(recipe, [f"objective.name={own}:SFT"]).objective.name == f"{own}:SFT"
    for word, said in (
        ("objective.name=ntf", "one of nft, weighted"),
        (f"objective.name={own}:NONE", "has no 'NONE'"),
        (f"judge.readout={tmp_path}/none.py:read", "cannot be imported .*no file"),
        ("regions.kind=no_such_module:find", "cannot be imported"),
        ("model.kind=bagle", "one of auto, bagel"),
    ):
        with pytest.raises(UserError, match=said):
            load_config(recipe, [word])


def test_what_a_design_cannot_train_is_told_before_anything_is_loaded(recipe: Path) -> None:
    said = r"model\.trains=generationn is not allowed; expected one of generation, transformer, lora"
    with pytest.raises(UserError, match=said):
        load_config(recipe, ["model.trains=generationn"])
    # A folder that is not there yet says nothing of its design.
    load_config(recipe, ["model.trains=other", "model.path=not/there"])


def test_runs_with_the_former_bound_resume() -> None:
    recipe = "launch/recipes/tiny.yaml"
    former = load_config(recipe, ["objective.bound=2.0"])
    assert diff_configs(former, load_config(recipe)) == []
    assert diff_configs(load_config(recipe), former) == [("objective.bound", None, 2.0)]
    assert diff_configs(load_config(recipe, ["objective.bound=1.5"]), load_config(recipe)) != []
