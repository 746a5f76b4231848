"""`srum-ds eval understanding` with the tiny model that the package ships, and what it refuses."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from srum_ds.commands.understanding import understanding
from srum_ds.common.errors import UserError
from srum_ds.evaluation.canary import plain_png
from tests.support.paths import MODEL
from tests.support.tiny_models import write_tiny_bagel


def test_the_embedded_worlds_questions_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    understanding(MODEL, questions="shapes", out=out, pictures=12, device="cpu")
    result = json.loads((out / "understanding.json").read_text())
    assert (result["kind"], result["n"], result["readout"]) == ("shapes", 144, "logprob")
    overall = result["models"]["model"]["overall"]
    # The shipped model was taught these questions: chance is below 0.5.
    assert overall["mean"] > 80 and overall["n"] == 144 and overall["failures"] == 0 and overall["stderr"] > 0
    assert set(result["models"]["model"]["by_category"]) == {"match", "exist", "where", "direction"}
    assert "| **overall** |" in capsys.readouterr().out

    untaught = write_tiny_bagel(tmp_path / "untaught")
    understanding(MODEL, against=untaught, questions="shapes", out=out, pictures=4, limit=8, device="cpu")
    result = json.loads((out / "understanding.json").read_text())
    assert list(result["models"]) == ["before", "after"] and result["n"] == 8
    told = result["difference"]["overall"]
    assert told["n"] + told["unpaired"] == 8
    assert result["models"]["before"]["sha256"] != result["models"]["after"]["sha256"]
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and all(row["after"]["said"] for row in rows)
    assert "difference" in (out / "understanding.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"questions": "some.jsonl"}, "say of which kind some.jsonl is: mme, mmmu, mmbench, shapes"),
        ({"questions": "some.jsonl", "kind": "vqa"}, "--kind 'vqa'"),
        ({"questions": "shapes", "circular": True}, "--circular is for --kind mmbench"),
        ({"questions": "shapes", "limit": 0}, "--limit"),
        ({"questions": "none.tsv"}, "none.tsv: cannot be read"),
        ({"questions": "shapes", "readout": "guess", "pictures": 1}, "--readout 'guess'"),
    ],
)
def test_wrong_words_are_named(tmp_path: Path, words: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        understanding(MODEL, out=tmp_path, device="cpu", **words)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_model_that_answers_nothing_ends_in_an_error_after_everything_is_written(tmp_path: Path) -> None:
    png = base64.b64encode(plain_png((255, 0, 0), (32, 32))).decode()
    path = tmp_path / "mini.tsv"
    # The shipped model says yes and no, never a letter.
    path.write_text(f"index\tquestion\tA\tB\tanswer\timage\n1\tWhat colour is it?\tred\tblue\tA\t{png}\n")
    with pytest.raises(UserError, match=r"no usable answer to any of 1 questions; .*answers.jsonl says why"):
        understanding(MODEL, questions=str(path), out=tmp_path, device="cpu")
    result = json.loads((tmp_path / "understanding.json").read_text())
    assert (result["models"]["model"]["overall"]["n"], result["models"]["model"]["overall"]["failures"]) == (0, 1)


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UserError, match="the run has not finished"):
        understanding(tmp_path, questions="shapes", out=tmp_path / "out")
