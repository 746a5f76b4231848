"""``--json``: one object on stdout and nothing else there, whoever prints."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from srum_ds.commands import launcher
from srum_ds.commands.json_output import one_object
from srum_ds.commands.main import main
from srum_ds.common.errors import STOPPED
from srum_ds.evaluation import ablation, calibration, evaluate
from tests.support.runs import write_prompts


def printed(capfd: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The object on stdout, which must be all there is, and what stands on stderr."""
    out, err = capfd.readouterr()
    assert out.count("\n") == 1 and out.endswith("\n")
    found: dict[str, Any] = json.loads(out)
    return found, err


def test_shards_tell_what_they_hold(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "write", "shapes", f"--out={tmp_path}", "--sizes.train=12", "--json"]) == 0
    found, told = printed(capfd)
    assert found["command"] == "shards write" and found["splits"]["train"]["prompts"] == 12
    assert "categories" in told, "people read the table where it does not disturb"
    assert main(["shards", "check", str(tmp_path), "--json"]) == 0
    assert printed(capfd)[0]["splits"] == found["splits"]
    assert main(["shards", "show", str(tmp_path), "--count=2", "--json"]) == 0
    train = printed(capfd)[0]["splits"]["train"]
    assert train["prompts"] == 12 and [prompt["text"] != "" for prompt in train["first"]] == [True, True]
    assert main(["shards", "check", str(tmp_path / "none"), "--json"]) == 2
    assert capfd.readouterr().out == "", "an error is told on stderr alone"


def test_processes_that_are_started_disturb_it_as_little(capfd: pytest.CaptureFixture[str]) -> None:
    with one_object(True) as tell:
        print("of this process")
        os.write(1, b"of another\n")
        tell({"a": 1})
    found, told = printed(capfd)
    assert found == {"a": 1} and "of this process" in told and "of another" in told
    with pytest.raises(KeyError), one_object(True) as tell:
        tell({"a": 1})
        raise KeyError
    assert capfd.readouterr().out == ""
    os.write(1, b"afterwards\n")
    assert capfd.readouterr().out == "afterwards\n"


@pytest.mark.parametrize(("status", "ended"), [(0, "finished"), (STOPPED, "stopped"), (1, "failed")])
def test_train_tells_how_it_ended_and_where_everything_is(
    status: int, ended: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = write_prompts(tmp_path / "p", 8)
    run = tmp_path / "run"

    def ranks(*arguments: Any) -> int:
        print("step 1")
        lines = [{"step": k, "loss": float(k), "reward_global": None, "time_train": 1.5} for k in range(12)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn": ')
        (run / "checkpoints/step_000012").mkdir(parents=True)
        return status

    monkeypatch.setattr(launcher, "run_command", ranks)
    words = ["train", "tiny", f"run.dir={run}", f"data.shards={prompts}", "train.steps=20", "--json"]
    assert main(words) == status
    found, told = printed(capfd)
    assert "step 1" in told
    assert (found["status"], found["ended"], found["steps"]) == (status, ended, {"done": 12, "wanted": 20})
    assert found["first_steps"]["loss"] == 4.5 and found["last_steps"]["loss"] == 6.5 and found["seconds"] == 18.0
    assert found["last_steps"]["reward_global"] is None and found["last_step"]["step"] == 11
    assert found["paths"]["metrics"] == f"{run}/metrics.jsonl" and found["paths"]["export"] is None
    assert found["paths"]["checkpoint"] == f"{run}/checkpoints/step_000012"


def test_eval_ablate_and_calibrate_tell_their_results(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(value: Any) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            print("for people")
            return value

        return run

    (tmp_path / "config.yaml").write_text("run: {seed: 1}")
    monkeypatch.setattr(evaluate, "evaluate_run", said({"overall": {"n": 3}}))
    assert main(["eval", str(tmp_path), "--json"]) == 0
    found, told = printed(capfd)
    assert found["result"] == {"overall": {"n": 3}} and found["out"] == str(tmp_path) and "for people" in told

    rows = {"source": "drawn", "readouts": {}}
    monkeypatch.setattr(calibration, "calibrate", said(rows))
    monkeypatch.setattr("srum_ds.evaluation.calibration_report.markdown", lambda result: "a table\n")
    assert main(["calibrate", f"--out={tmp_path}", "--json"]) == 0
    assert printed(capfd)[0] == {"command": "calibrate", "out": str(tmp_path), "calibration": rows}

    (tmp_path / "ablation.json").write_text('{"rows": []}')
    monkeypatch.setattr(ablation, "ablate", said(1))
    assert main(["ablate", "tiny", f"--out={tmp_path}", "--json"]) == 1
    assert printed(capfd)[0] == {"command": "ablate", "status": 1, "out": str(tmp_path), "table": {"rows": []}}


def test_names_of_the_users_own_are_no_markup(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("text,category\na red circle,[/close]\na blue square,[red]cat[/red]\n")
    out = tmp_path / "[b]own[/b]"
    assert main(["shards", "write", "own", str(prompts), f"--out={out}"]) == 0
    said = capfd.readouterr().out
    assert "[/close] 1" in said and "[red]cat[/red] 1" in said


def test_a_dry_run_is_an_object_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny", f"run.dir={tmp_path}", "--dry-run", "--json"]) == 0
    found, told = printed(capfd)
    assert found["command"] == "train --dry-run" and found["ranks"] == 2 and "tiny" in found["launcher"]
    assert found["plan"] and found["plan"][0] in told
