"""Recipes and overrides become one checked configuration, or an error that says what to do."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from srum_ds.common.errors import UserError
from srum_ds.config import (
    ROOT,
    Config,
    check,
    check_world,
    config_schema,
    diff_configs,
    find_path,
    flat_config,
    known_keys,
    load_config,
    plain_config,
    save_config,
    split_arguments,
)

RECIPES = sorted((ROOT / "launch" / "recipes").glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("run:\n  dir: somewhere\ntrain:\n  steps: 7\n  betas: [0.8, 0.9]\n")
    return path


def test_defaults_then_recipe_then_command_line(recipe: Path) -> None:
    cfg = load_config(recipe, ["train.steps=9", "rollout.image_size=[32,48]", "eval.text_scale=3"])
    assert cfg.train.steps == 9
    assert cfg.train.betas == (0.8, 0.9)
    assert cfg.run.dir == "somewhere"
    assert cfg.rollout.image_size == (32, 48)
    assert cfg.eval.text_scale == 3.0
    assert isinstance(cfg.eval.text_scale, float)
    assert cfg.train.lr == Config().train.lr


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_loads(path: Path) -> None:
    cfg = load_config(path)
    check_world(cfg, cfg.deepspeed.ranks)


def test_the_shipped_default_spells_out_the_defaults() -> None:
    # Whoever reads only the recipe, or only the tree, must see the same run.
    assert diff_configs(Config(), load_config(ROOT / "launch/recipes/tiny.yaml")) == []


def test_fixed_interface_keys_exist() -> None:
    fixed = [
        "run.dir",
        "run.seed",
        "train.steps",
        "train.save_every",
        "train.precision",
        "deepspeed.config",
        "rollout.prompts_per_step",
        "rollout.images_per_prompt",
        "objective.name",
    ]
    assert set(fixed) <= set(known_keys())


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("train.stepz", "train.steps"),
        ("trian.steps", "train.steps"),
        ("steps", "train.steps"),
        ("lr", "train.lr"),
        ("optim.lr", "train.lr"),
        ("rollout.lr", "train.lr"),
        ("rollout.prompt_per_step", "rollout.prompts_per_step"),
        ("objective.nam", "objective.name"),
    ],
)
def test_unknown_key_names_the_nearest(recipe: Path, wrong: str, right: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(recipe, [f"{wrong}=3"])
    message = str(caught.value)
    assert f"'{wrong}'" in message
    assert "on the command line" in message
    assert right in message


def test_unknown_key_in_a_recipe_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text("train:\n  step: 3\n")
    with pytest.raises(UserError, match=r"unknown key 'train\.step' in .*typo\.yaml.*'train\.steps'"):
        load_config(path)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps=many", "a whole number of at least 1"),
        ("train.steps=2.5", "a whole number"),
        ("train.steps=true", "a whole number"),
        ("train.steps=0", "at least 1"),
        ("train.steps=", "a whole number"),
        ("train.steps=[1", "a whole number"),
        ("train.lr=-0.1", "at least 0"),
        ("train.lr=nan", "a number"),
        ("train.lr=inf", "at most 1e+30"),
        ("train.old_decay=1", "below 1"),
        ("train.betas=[0.9]", "a list of 2"),
        ("train.betas=[0.9,1.0]", "below 1"),
        ("train.betas=0.9", "a list of 2"),
        ("train.precision=fp16", "one of fp32, bf16"),
        ("objective.name=ntf", "one of nft, weighted, sft, signed, group"),
        ("lora.targets=q_proj", "a list: each a text"),
        ("log.progress=maybe", "true or false"),
        ("rollout.image_size=[64,wide]", "a whole number"),
        ("rollout.interval=[0.2,1.5]", "at most 1"),
        ("eval.text_scale=-1", "or null"),
        ("run.dir=", "not empty"),
        ("train=5", "it is a section"),
    ],
)
def test_wrong_value_says_what_is_expected(recipe: Path, override: str, expected: str) -> None:
    key, value = override.split("=")
    with pytest.raises(UserError) as caught:
        load_config(recipe, [override])
    message = str(caught.value)
    assert key in message
    assert expected in message
    assert "on the command line" in message


def test_every_number_refuses_nan(recipe: Path) -> None:
    numbers = [key for key, value in flat_config(Config()).items() if type(value) in (int, float)]
    assert len(numbers) > 30
    for key in numbers:
        with pytest.raises(UserError, match=key):
            load_config(recipe, [f"{key}=nan"])


def test_bare_yes_and_no_are_refused_rather_than_misread(recipe: Path) -> None:
    with pytest.raises(UserError, match="quotes"):
        load_config(recipe, ["judge.answers=[yes,no]"])
    assert load_config(recipe, ['judge.answers=["ja","nein"]']).judge.answers == ("ja", "nein")


@pytest.mark.parametrize("text", ["1e3", "007", "true", "a=b", "[x]", "null", "with space"])
def test_words_are_taken_as_typed(recipe: Path, text: str) -> None:
    assert load_config(recipe, [f"run.dir={text}"]).run.dir == text


def test_scientific_notation_is_a_number(tmp_path: Path) -> None:
    # Plain YAML 1.1 reads 5e-4 as a text.
    path = tmp_path / "a.yaml"
    path.write_text("train:\n  lr: 5e-4\n")
    assert load_config(path).train.lr == 0.0005
    assert load_config(path, ["train.lr=1e-5"]).train.lr == 1e-5


def test_section_at_once_on_the_command_line(recipe: Path) -> None:
    assert load_config(recipe, ["train={steps: 3, lr: 0.1}"]).train.lr == 0.1
    with pytest.raises(UserError, match=r"unknown key 'train\.stop'"):
        load_config(recipe, ["train={stop: 3}"])


@pytest.mark.parametrize("word", ["--fast", "train.steps", "=3"])
def test_word_that_is_no_setting(recipe: Path, word: str) -> None:
    with pytest.raises(UserError, match="key=value"):
        load_config(recipe, [word])


def test_recipes_build_on_others(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "base.yaml").write_text("train: {steps: 3, lr: 0.1}\nrun: {seed: 5}\n")
    (tmp_path / "below" / "top.yaml").write_text("base: ../base.yaml\ntrain: {steps: 4}\n")
    cfg = load_config(tmp_path / "below" / "top.yaml")
    assert (cfg.train.steps, cfg.train.lr, cfg.run.seed) == (4, 0.1, 5)


def test_recipe_that_builds_on_itself(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(UserError, match="back to itself"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: [", "line"),
        ("- a\n- b\n", "sections"),
        ("just words", "mine.yaml"),
        ("train: 5\n", "section"),
        ("base: 5\n", "base"),
        ("base: nowhere.yaml\n", "no recipe at"),
        ("train:\n  steps: 1\n  steps: 2\n", "mine.yaml"),
        ("train:\n  steps: ???\n", "has no value"),
        ("train:\n  steps: ${train.nothing}\n", "does not exist"),
        ("train:\n  steps: ${oc.env:SRUM_DS_NOT_SET}\n", "SRUM_DS_NOT_SET"),
        ("train:\n  steps: ${run.dir}\n", "does not resolve"),
    ],
)
def test_broken_recipe(recipe: Path, text: str, expected: str) -> None:
    recipe.write_text(text)
    with pytest.raises(UserError, match=expected):
        load_config(recipe)


def test_recipe_that_is_no_text(recipe: Path) -> None:
    recipe.write_bytes(b"\xff\xfe\x00train")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(recipe)


def test_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recipe at"):
        load_config(tmp_path / "none.yaml")


def test_empty_recipe_and_empty_sections_mean_the_defaults(recipe: Path) -> None:
    recipe.write_text("# nothing yet\n")
    assert load_config(recipe) == Config()
    recipe.write_text("train:\n  # steps: 3\nlog:\n")
    assert load_config(recipe) == Config()


def test_saved_copy_is_the_same_configuration(recipe: Path, tmp_path: Path) -> None:
    cfg = load_config(recipe, ["eval.seed=${train.steps}", "run.dir=a: b # c"])
    save_config(cfg, tmp_path / "run" / "config.yaml")
    again = load_config(tmp_path / "run" / "config.yaml")
    assert again == cfg
    assert diff_configs(cfg, again) == []
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["eval"]["seed"] == 7
    assert {f"{section}.{name}" for section in saved for name in saved[section]} == set(known_keys())


def test_secrets_are_resolved_for_the_run_and_never_written(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRUM_DS_SECRET", "hunter2")
    monkeypatch.setenv("SRUM_DS_STEPS", "11")
    recipe.write_text(
        "run: {dir: '${oc.env:SRUM_DS_SECRET}'}\n"
        "data: {shards: 'x/${run.dir}'}\n"
        "train: {steps: '${oc.env:SRUM_DS_STEPS}'}\n"
    )
    cfg = load_config(recipe)
    assert cfg.run.dir == "hunter2"
    assert cfg.data.shards == "x/hunter2"
    assert cfg.train.steps == 11
    save_config(cfg, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "hunter2" not in text
    assert "${oc.env:SRUM_DS_SECRET}" in text
    assert load_config(tmp_path / "config.yaml") == cfg
    # A value that the program chose anew is no secret and must not be written as the old expression.
    moved = replace(cfg, run=replace(cfg.run, dir="elsewhere"))
    assert plain_config(moved)["run"]["dir"] == "elsewhere"


def test_save_refuses_and_keeps_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(UserError, match="could not be written"):
        save_config(Config(), tmp_path / "config.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_what_is_no_setting_cannot_be_set(recipe: Path) -> None:
    # The field that remembers environment expressions is no key.
    with pytest.raises(UserError, match="unknown key 'expressions'"):
        load_config(recipe, ["expressions={}"])


def test_differences_name_keys_and_both_values(recipe: Path) -> None:
    old = load_config(recipe)
    new = load_config(recipe, ["train.steps=8", "run.dir=there", "eval.seed=1"])
    assert diff_configs(old, new) == [
        ("run.dir", "somewhere", "there"),
        ("train.steps", 7, 8),
        ("eval.seed", 1234, 1),
    ]
    assert diff_configs(old, new, ignore=["run.dir", "eval"]) == [("train.steps", 7, 8)]


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["rollout.micro_batch_prompts=3"], ["rollout.prompts_per_step=8", "rollout.micro_batch_prompts=3"]),
        (["rollout.interval=[0.5,0.5]"], ["rollout.interval", "rollout.text_scale=1"]),
        (["rollout.images_per_prompt=1"], ["objective.name=nft", "rollout.images_per_prompt=1"]),
        (["regions.kind=none"], ["reward.local_weight=0"]),
        (["regions.kind=grid", "regions.grid_side=3"], ["regions.grid_side=3", "regions.max_count=6"]),
        (["reward.global_weight=0", "reward.local_weight=0"], ["objective.name=sft"]),
        (['judge.answers=["a","a"]'], ["judge.answers"]),
    ],
)
def test_settings_that_contradict_each_other(recipe: Path, overrides: list[str], keys: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(recipe, overrides)
    for key in keys:
        assert key in str(caught.value)


def test_plain_fine_tuning_needs_neither_regions_nor_samples(recipe: Path) -> None:
    load_config(recipe, ["objective.name=sft", "regions.kind=none", "rollout.images_per_prompt=1"])


def test_check_also_covers_configurations_made_in_code() -> None:
    cfg = Config()
    with pytest.raises(UserError, match="train.steps=0"):
        check(replace(cfg, train=replace(cfg.train, steps=0)))


@pytest.mark.parametrize("world_size", [1, 2])
def test_prompts_that_come_out_even(world_size: int) -> None:
    check_world(Config(), world_size)


def test_prompts_that_do_not_come_out_even() -> None:
    with pytest.raises(UserError, match=r"prompts_per_step=8 is not divisible by the 3 ranks"):
        check_world(Config(), 3)
    with pytest.raises(UserError, match=r"set rollout\.micro_batch_prompts=2"):
        check_world(Config(), 4)


def test_arguments_of_a_command() -> None:
    assert split_arguments(["a.yaml", "train.steps=3"]) == (Path("a.yaml"), ["train.steps=3"])
    assert split_arguments(["train.steps=3"]) == (Path("launch/recipes/tiny.yaml"), ["train.steps=3"])
    assert split_arguments([])[1] == []
    with pytest.raises(UserError, match=r"'b\.yaml'"):
        split_arguments(["a.yaml", "b.yaml"])


def test_paths_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_path("srum_ds/types.py").samefile(ROOT / "srum_ds" / "types.py")
    assert load_config("launch/recipes/tiny.yaml").train.steps > 0
    (tmp_path / "srum_ds").mkdir()
    (tmp_path / "srum_ds" / "types.py").write_text("")
    assert find_path("srum_ds/types.py").resolve() == (tmp_path / "srum_ds" / "types.py").resolve()
    assert find_path("not/there") == Path("not/there")
    assert find_path(os.devnull) == Path(os.devnull)


def test_schema_knows_every_key_and_no_other() -> None:
    schema = config_schema()
    keys = set()
    for section, reference in schema["properties"].items():
        if section == "base":
            continue
        name = reference.get("$ref", "").rsplit("/", 1)[-1]
        assert schema["$defs"][name]["additionalProperties"] is False
        keys |= {f"{section}.{key}" for key in schema["$defs"][name]["properties"]}
    assert keys == set(known_keys())
