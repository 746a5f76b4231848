"""Each thing that a user can get wrong at the start of a run: one line, that says what and the cure, and status 2."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from srum_ds.commands.main import main
from srum_ds.monitoring import run_folder
from tests.support.paths import ROOT
from tests.support.wrong_inputs import WRONG_INPUTS, WrongInput, run_dir


@pytest.mark.parametrize("wrong", WRONG_INPUTS, ids=lambda wrong: wrong.name)
def test_one_line_says_what_is_wrong_and_what_to_do(
    wrong: WrongInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    words = wrong.make(tmp_path)
    with run_folder.locked(run_dir(tmp_path)) if wrong.locks else nullcontext():
        status = main(["train", *words])
    said = capsys.readouterr()
    assert status == 2, said
    lines = said.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("srum-ds: ")
    for name in (*wrong.names, wrong.remedy):
        assert name in lines[0], (name, lines[0])
    assert said.out == ""


def test_the_table_in_the_docs_has_each_of_them() -> None:
    page = (ROOT / "docs" / "preflight.md").read_text()
    assert len(WRONG_INPUTS) >= 20
    missing = [wrong.name for wrong in WRONG_INPUTS if f"| {wrong.name} | `{wrong.typed}` |" not in page]
    assert not missing
