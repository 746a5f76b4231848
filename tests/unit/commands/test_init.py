"""`srum-ds init` writes a recipe that loads, and recipes of the package go by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from srum_ds.commands.main import main
from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.config.reading import find_recipe


@pytest.mark.parametrize("base", ["tiny", "bagel", "launch/recipes/janus_pro.yaml"])
def test_it_loads_and_is_its_base_but_for_the_folder(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "two words.yaml", "--base", base]) == 0
    made, expected = load_config("two words.yaml"), load_config(base)
    assert made.run.dir == "runs/two words"
    assert (made.model, made.objective, made.data) == (expected.model, expected.objective, expected.data)


def test_it_leaves_a_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: tiny\n")
    assert main(["init", str(mine)]) == 2
    assert "there already" in capsys.readouterr().err
    assert mine.read_text() == "base: tiny\n"
    assert main(["init", str(tmp_path / "new.yaml"), "--base", "tinny"]) == 2
    assert main(["init", str(tmp_path / "new.json")]) == 2
    assert not (tmp_path / "new.yaml").exists()


def test_a_name_is_a_recipe_unless_a_file_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert find_recipe("tiny").name == "tiny.yaml"
    assert load_config("tiny") == load_config("launch/recipes/tiny.yaml")
    (tmp_path / "sft").write_text("base: tiny\nrun:\n  seed: 5\n")
    assert load_config("sft").run.seed == 5
    (tmp_path / "own.yaml").write_text("base: weighted\n")
    assert load_config("own.yaml") == load_config("weighted")
    with pytest.raises(UserError, match=r"no recipe at tinny: .*or the name of .*tiny"):
        load_config("tinny")
