"""`Trainer`: which run it describes, what it refuses, and how its prompts come into the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import srum_ds
from srum_ds import Trainer
from srum_ds.api.prompts import SHARDS, TEXTS, GivenPrompts
from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.config.loading import plain_config
from srum_ds.prompts.prompt_set import prompt_folder
from srum_ds.prompts.reader import PromptReader
from srum_ds.types import Prompt
from tests.support.paths import RECIPE

ONE = ["deepspeed.ranks=1"]


def importable(images: Any, prompts: Any) -> list[float]:
    return [0.0] * len(prompts)


def test_names_are_imported_when_they_are_asked_for() -> None:
    assert set(srum_ds.__all__) <= set(dir(srum_ds)) and srum_ds.Trainer is Trainer
    with pytest.raises(AttributeError, match="no attribute 'Trainor'"):
        srum_ds.Trainor  # noqa: B018


@pytest.mark.parametrize(
    "config",
    [
        "tiny",
        RECIPE,
        {"base": "tiny"},
        load_config(RECIPE),
        {"base": RECIPE, "train": {"lr": 0.1}},
    ],
    ids=["name", "path", "dict", "Config", "sections"],
)
def test_a_config_is_a_recipe_by_name_its_content_or_itself(config: Any) -> None:
    expected = plain_config(load_config(RECIPE, ["train.steps=3", "train.lr=0.002", *ONE]))
    assert plain_config(Trainer(config, {"train.steps": 3, "train": {"lr": 0.002}}).config) == expected
    assert plain_config(Trainer(config, ["train.steps=3", "train.lr=0.002"]).config) == expected


def test_settings_of_python_are_checked_as_a_recipe_s() -> None:
    tuples = Trainer({"base": "tiny", "rollout.image_size": (32, 32), "run": {"dir": Path("runs/x")}}).config
    assert tuples.rollout.image_size == (32, 32) and tuples.run.dir == "runs/x"
    for config, overrides, said in (
        ("tniy", (), "no recipe at tniy"),
        (3, (), "config is int; expected a recipe's name or path"),
        ({"trian": {}}, (), "unknown key 'trian' in the settings given"),
        ("tiny", {"train.steps": "many"}, r"train\.steps=many in the settings given is not allowed"),
        ("tiny", "train.steps=3", "expected a dict, or a list of texts"),
    ):
        with pytest.raises(UserError, match=said):
            Trainer(config, overrides)  # type: ignore[arg-type]


def test_a_reward_has_all_of_every_score() -> None:
    def local(images: Any, prompts: Any) -> list[float]:
        return [0.0] * len(prompts)

    assert Trainer(reward=importable).config.judge.external == f"{__name__}:importable"
    found = Trainer(reward=local).config.judge
    assert (found.external, found.external_weight) == ("python:local", 1.0)
    assert Trainer(reward="judge.py:mine").config.judge.external == "judge.py:mine"
    with pytest.raises(
        UserError, match="reward=local is a function that only this process has, and ranks=2 start others"
    ):
        Trainer(reward=local, ranks=2)
    assert Trainer(reward=importable, ranks=2).config.deepspeed.ranks == 2
    with pytest.raises(UserError, match="divisible by the 3 ranks"):
        Trainer(ranks=3)
    with pytest.raises(UserError, match=r"callbacks: 'print' cannot be called"):
        Trainer(callbacks=["print"])  # type: ignore[list-item]


def texts(cfg: Any, split: str) -> set[str]:
    with PromptReader(prompt_folder(cfg), split) as reader:
        return {prompt.text for prompt in reader}


def test_prompts_are_written_into_the_run_s_folder(tmp_path: Path) -> None:
    given = ["a red circle", "a blue square", "ein grünes Dreieck"]
    own = tmp_path / "texts"
    trainer = Trainer("tiny", {"run.dir": own}, prompts=given)
    trainer._write_prompts()
    assert texts(trainer.config, "train") | texts(trainer.config, "test") == set(given)
    assert (own / TEXTS).read_text().count("\n") == 3

    objects = [Prompt(f"p{n}", f"prompt {n}", phrases=("a circle",), meta={"counts": [2]}) for n in range(3)]
    trainer = Trainer("tiny", {"run.dir": tmp_path / "objects"}, prompts=objects)
    trainer._write_prompts()
    assert trainer.config.data.shards == str(tmp_path / "objects" / SHARDS)
    with PromptReader(prompt_folder(trainer.config), "train") as reader:
        assert {(p.id, p.meta["counts"][0], p.phrases) for p in reader} < {(p.id, 2, ("a circle",)) for p in objects}
    assert Trainer("tiny", prompts="https://host/x.txt").config.data.prompts == "https://host/x.txt"


@pytest.mark.parametrize("kind", [str, lambda text: Prompt(text.replace(" ", "_"), text)], ids=["texts", "objects"])
def test_a_run_keeps_the_prompts_it_began_with(tmp_path: Path, kind: Any) -> None:
    first, second = [kind("a circle"), kind("a square")], [kind("a circle"), kind("a cross")]
    GivenPrompts(tuple(first)).write(tmp_path, 0.5)
    # Nothing has begun: a call that failed binds nobody.
    settings = GivenPrompts(tuple(second)).settings(tmp_path)
    GivenPrompts(tuple(second)).write(tmp_path, 0.5)
    cfg = Trainer("tiny", {"run.dir": tmp_path, "data.train_share": 0.5, **settings}).config
    assert texts(cfg, "train") | texts(cfg, "test") == {"a circle", "a cross"}
    (tmp_path / "metrics.jsonl").touch()
    GivenPrompts(tuple(second)).write(tmp_path, 0.5)
    with pytest.raises(UserError, match="holds a run that began with other prompts"):
        GivenPrompts(tuple(first)).write(tmp_path, 0.5)
    assert texts(cfg, "train") | texts(cfg, "test") == {"a circle", "a cross"}


def test_prompts_that_cannot_be_are_refused() -> None:
    for prompts, said in (
        ([], "prompts is empty"),
        (["a circle", " "], r"prompts\[1\] is empty"),
        (["a circle", 3], "prompts holds int, str; expected either texts"),
        ([Prompt("a", "x"), Prompt("a", "y")], "two Prompt objects have the id 'a'"),
        (3, "prompts is int; expected texts"),
    ):
        with pytest.raises(UserError, match=said):
            Trainer("tiny", prompts=prompts)  # type: ignore[arg-type]


def test_torch_is_not_imported_by_the_package_itself() -> None:
    """What `import srum_ds` runs is its __init__ alone, which imports nothing slow."""
    source = Path(str(srum_ds.__file__)).read_text()
    imported = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert imported == [
        "from __future__ import annotations",
        "import importlib",
        "from typing import TYPE_CHECKING, Any",
    ]
