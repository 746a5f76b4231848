"""The three forms of `srum-ds eval`: which words mean what, and what is refused before anything is loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from srum_ds.commands.main import main
from srum_ds.evaluation.draw_request import DrawOptions, PromptChoice
from srum_ds.evaluation.score_request import JudgeChoice, ScoreRequest
from tests.support.paths import MODEL


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stands in for the scoring, which says what it was asked for."""
    module = ModuleType("srum_ds.evaluation.score")
    module.asked = []  # type: ignore[attr-defined]
    module.score_folder = module.asked.append  # type: ignore[attr-defined]
    module.compare_folders = lambda *folders: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "srum_ds.evaluation.score", module)
    return module


def test_a_run_is_evaluated_as_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []

    def evaluate_run(*words: Any, **more: Any) -> dict[str, Any]:
        assert more == {"model": None, "out": tmp_path}
        seen.append(words)
        return {}

    monkeypatch.setattr("srum_ds.evaluation.evaluate.evaluate_run", evaluate_run)
    (tmp_path / "config.yaml").write_text("")
    assert main(["eval", str(tmp_path), "eval.prompts=3"]) == 0
    assert main(["eval", str(tmp_path), "--no-cache", "--processes", "1"]) == 0
    assert seen == [(tmp_path, ["eval.prompts=3"], None, True), (tmp_path, [], 1, False)]
    # Another rank leaves it to rank 0.
    monkeypatch.setenv("RANK", "1")
    assert main(["eval", str(tmp_path)]) == 0 and len(seen) == 2


def test_drawing_gets_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("srum_ds.evaluation.draw_request.draw_request", lambda *words: seen.append(words))
    monkeypatch.setattr("srum_ds.evaluation.draw_folder.draw_folders", lambda plan, processes: plan())
    words = "eval draw M a=1 --benchmark compbench --out D --limit 5 --size 32 64 --seed 2 --categories color shape b=2"
    assert main(words.split()) == 0
    choice = PromptChoice("compbench", None, 5, ("color", "shape"))
    options = DrawOptions(("a=1", "b=2"), seed=2, size=(32, 64))
    assert seen == [(Path("M"), False, choice, options, Path("D"))]


def test_scoring_gets_its_words(score: Any) -> None:
    words = "eval score D --benchmark shapes --judge checker --failures zero --srum-compat --retries 0 --limit 3"
    assert main([*words.split(), "--replies", "a.jsonl", "b.jsonl"]) == 0
    judge = JudgeChoice("checker", replies=(Path("a.jsonl"), Path("b.jsonl")), retries=0)
    assert score.asked == [ScoreRequest(Path("D"), PromptChoice("shapes", None, 3), judge, "zero", True)]


def test_a_benchmark_that_looks_itself_needs_no_judge(score: Any) -> None:
    assert main(["eval", "score", "D", "--benchmark", "shapes"]) == 0
    assert score.asked[0].judge.kind == "checker"


def test_a_bare_model_is_drawn_and_scored_in_one_command(score: Any, tmp_path: Path) -> None:
    words = ["eval", str(MODEL), "num_timesteps=2", "--benchmark", "shapes", "--limit", "2", "--processes", "1"]
    assert main([*words, "--out", str(tmp_path / "d")]) == 0
    assert score.asked == [ScoreRequest(tmp_path / "d", PromptChoice("shapes", None, 2), JudgeChoice("checker"))]
    assert len(list((tmp_path / "d" / "images").glob("*.png"))) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("compbench --judge http", "needs the server's address"),
        ("compbench --judge http --judge-url host:8000", "host:8000: is no address"),
        ("compbench --judge checker", "compbench cannot be checked from pixels"),
        ("geneval", "give either --detector FOLDER"),
        ("shapes --judge self", "shapes asks no judge"),
        ("shapes --srum-compat", "say nothing of shapes"),
        ("compbench --judge self --srum-compat --failures zero", "leave --failures zero out"),
    ],
)
def test_what_could_not_be_scored_is_not_drawn(
    words: str, said: str, score: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "mine.jsonl"
    prompts.write_text('{"schema": 1, "id": "a", "text": "a red circle"}\n')
    out = ["--prompts", str(prompts), "--out", str(tmp_path / "d")]
    assert main(["eval", str(MODEL), "--benchmark", *words.split(), *out]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "d").exists() and score.asked == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("eval draw --benchmark shapes --out D", "expected one folder of a run or of a model"),
        ("eval draw A B --benchmark shapes --out D", "found A B"),
        ("eval draw A --benchmark shapes --out D --processes 0", "--processes 0"),
        ("eval draw A --benchmark shapes --out D --size big", "--size 'big'"),
        ("eval draw A --out D", "--benchmark"),
        ("eval score D --benchmark shapes --judge oracle", "--judge=oracle"),
        ("eval score D --benchmark shapes --failures drop", "--failures"),
        ("eval runs/none --limit 3", "name it by --benchmark"),
        ("eval runs/none --benchmark shapes", "holds no run"),
    ],
)
def test_wrong_words(words: str, said: str, score: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    printed = capsys.readouterr()
    assert said in " ".join((printed.out + printed.err).replace("│", " ").split())
