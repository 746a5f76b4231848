"""Settings that people can read: every one says what it is for, in commands, on the page and for editors."""

from __future__ import annotations

from pathlib import Path

import pytest

from srum_ds.commands.main import main
from srum_ds.common.errors import UserError
from srum_ds.config import config_schema, flat_config, known_keys, load_config
from srum_ds.config.descriptions import descriptions, related
from srum_ds.config.explain import commented, settings_page
from srum_ds.config.messages import _ELSEWHERE
from srum_ds.config.tree import Config
from tests.support.paths import RECIPE, ROOT


def test_every_setting_has_a_description_of_its_own() -> None:
    told = descriptions()
    assert list(told) == list(known_keys())
    assert [key for key, text in told.items() if len(text) < 10] == []
    assert len(set(told.values())) == len(told)
    # Comments over several lines, without one line of another setting.
    assert told["rollout.weights"] == (
        "Which weights draw: the slow average of the trained ones, the trained ones, the untrained ones."
    )
    assert told["regions.pad"].startswith("Margin added") and told["limits.save"].startswith("Seconds of a checkpoint")


def test_the_schema_says_type_range_default_and_use_of_every_key() -> None:
    schema = config_schema()
    sections = {name: schema["$defs"][value["$ref"].rpartition("/")[2]] for name, value in sections_of(schema).items()}
    found = {f"{name}.{key}": said for name, section in sections.items() for key, said in section["properties"].items()}
    assert list(found) == list(known_keys())
    assert all(said["description"] == descriptions()[key] for key, said in found.items())
    for key, default in flat_config(Config()).items():
        assert found[key]["default"] == (list(default) if isinstance(default, tuple) else default)
    assert (found["train.ema_decay"]["minimum"], found["train.ema_decay"]["exclusiveMaximum"]) == (0, 1)
    assert found["train.mode"]["enum"] == ["online", "offline", "rounds", "ahead"]
    assert sections["watch"]["description"].startswith("Signs of a model")


def sections_of(schema: dict[str, dict[str, dict[str, str]]]) -> dict[str, dict[str, str]]:
    return {name: value for name, value in schema["properties"].items() if "$ref" in value}


def test_a_commented_recipe_is_the_same_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["judge.scale=[1,2]", "objective.options={margin: 0.5}", "lora.targets=['*.q_proj']"]
    cfg = load_config(RECIPE, words)
    (tmp_path / "all.yaml").write_text(commented(cfg))
    assert load_config(tmp_path / "all.yaml") == cfg
    assert main(["config", "show", "tiny", "--comments", "train.steps=7"]) == 0
    shown = capsys.readouterr().out
    assert "  # Optimiser steps of the whole run.\n  steps: 7\n" in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_a_key_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "explain", "train.schedule"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("train.schedule\n  After the warm-up: the same rate, or half a cosine")
    for line in ("takes: one of constant, cosine", "default: constant", "changes: not once a run has begun"):
        assert line in said
    assert main(["config", "explain", "train.lr"]) == 0
    said = capsys.readouterr().out
    assert "takes: a number of at least 0\n" in said and "bagel_paper.yaml 2.0e-05" in said and "lora.yaml" in said
    assert main(["config", "explain", "objective.options.margin"]) == 0
    assert capsys.readouterr().out.startswith("objective.options\n")
    assert "train.rounds" in related("train.mode") and "rollout.pool" in related("rollout.pool_timesteps")


def test_a_section_is_listed_and_an_unknown_key_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "explain", "lora"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("lora\n") and all(f"{key}=" in said for key in known_keys() if key.startswith("lora."))
    for wrong, near in (("train.step", "train.steps"), ("rolout", "rollout"), ("warmup_steps", "train.warmup_steps")):
        assert main(["config", "explain", wrong]) == 2
        assert f"unknown key '{wrong}'. The nearest is '{near}'" in capsys.readouterr().err


def test_the_page_is_what_the_command_prints() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    assert page == settings_page(), "write it anew: srum-ds config page > docs/settings.md"
    assert all(f"| `{key}`" in page for key in known_keys())


@pytest.mark.parametrize(
    ("elsewhere", "here"),
    [("train.learning_rate", "train.lr"), ("train.batch_size", "rollout.prompts_per_step"), ("TRAIN.LR", "train.lr")],
)
def test_what_other_trainers_call_a_setting_is_found(
    elsewhere: str, here: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "explain", elsewhere]) == 2
    assert f"The nearest is '{here}'" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"unknown key '{elsewhere}'.* nearest known key is '{here}'"):
        load_config(RECIPE, [f"{elsewhere}=1"])


def test_names_from_elsewhere_are_of_settings_that_there_are() -> None:
    assert set(_ELSEWHERE.values()) <= set(known_keys())
    assert not set(_ELSEWHERE) & {key.split(".")[1] for key in known_keys()}
