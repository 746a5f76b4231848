"""Words that YAML takes for something else, and input that other exceptions than UserError came of."""

from __future__ import annotations

from pathlib import Path

import pytest

from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.prompts.shards import prompt_to_json
from srum_ds.rewards.templates import Template
from srum_ds.types import Prompt


@pytest.mark.parametrize(
    "text",
    [
        'judge:\n  answers: [yes, "no"]\n',
        "judge:\n  answers: [good, no]\n",
        "judge:\n  scale: [bad, off, good]\n",
        "run:\n  dir: no\n",
    ],
)
def test_a_truth_value_where_text_belongs_is_refused(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    with pytest.raises(UserError, match="put the words in quotes"):
        load_config(recipe)


def test_words_in_quotes_are_text(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text('judge:\n  answers: ["yes", "no"]\nrun:\n  dir: "no"\n')
    cfg = load_config(recipe)
    assert cfg.judge.answers == ("yes", "no") and cfg.run.dir == "no"


@pytest.mark.parametrize("overrides", [["train.lr=" + "1" * 5000], ["run={"], ["train.lr=" + "[" * 3000]])
def test_settings_that_cannot_be_read_are_refused(tmp_path: Path, overrides: list[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("train:\n  steps: 2\n")
    with pytest.raises(UserError):
        load_config(recipe, overrides)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_names_that_no_file_can_have_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="no recipe"):
        load_config(name)


@pytest.mark.parametrize(
    "text",
    [
        "{{ prompt|xmlattr }}",
        "{{ prompt.encode('x') }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ prompt|truncate(-5) }}",
    ],
)
def test_a_template_that_fails_is_named(text: str) -> None:
    with pytest.raises(UserError, match="judge template mine cannot be rendered"):
        Template(text, "mine", "0" * 64).render(prompt="x")


@pytest.mark.parametrize("prompt", [Prompt("p1", "a", meta={"x": float("nan")}), Prompt("p1", "a \ud83d")])
def test_a_prompt_that_json_cannot_say_is_named(prompt: Prompt) -> None:
    with pytest.raises(UserError, match="p1"):
        prompt_to_json(prompt)
