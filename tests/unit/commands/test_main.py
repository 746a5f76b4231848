"""The console script's commands without a process: help, files, exit statuses."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import yaml
from PIL import Image

from srum_ds import __version__
from srum_ds.commands.main import main
from srum_ds.common.errors import UserError, guarded
from srum_ds.config import load_config
from srum_ds.evaluation.evaluate import evaluation_request
from tests.support.paths import MODEL


def test_the_home_folder_is_meant_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = ["generate", f"--model={MODEL}", "--out=~/a", "--prompt=~/x", "--steps=1"]
    assert main(words) == 0
    [picture] = (tmp_path / "a").glob("*.png")
    assert Image.open(picture).info["srum-ds:prompt"] == "~/x", "what is no path stays as it was written"
    assert main(["shards", "write", "shapes", "--out=~/s", "--sizes.train=12"]) == 0
    assert (tmp_path / "s/index.json").exists() and not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["train"],
        ["export"],
        ["eval"],
        ["eval", "draw"],
        ["eval", "score"],
        ["ablate"],
        ["compare"],
        ["calibrate"],
        ["rollout"],
        ["rescore"],
        ["check-adapter"],
        ["generate"],
        ["ask"],
        ["inspect"],
        ["shards"],
        ["shards", "write"],
        ["shards", "check"],
        ["config"],
        ["config", "show"],
        ["config", "schema"],
        ["config", "explain"],
        ["config", "page"],
        ["completion"],
    ],
)
def test_every_command_has_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--help"]) == 0
    assert "Usage: srum-ds " + " ".join(words) in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0)


def test_config_show_prints_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", "show", "launch/recipes/tiny.yaml", "train.steps=3"]) == 0
    path = tmp_path / "shown.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_config(path) == load_config("launch/recipes/tiny.yaml", ["train.steps=3"])


def test_config_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["base"]["type"] == "string"


def test_shards_write_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "shards")
    words = ["shards", "write", "shapes", "--out", out, "--sizes.train", "12", "--sizes.test", "6"]
    assert main(words) == 0
    assert main(["shards", "check", out]) == 0
    shown = capsys.readouterr().out
    assert "train" in shown and "12" in shown
    assert main(words) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
    next((tmp_path / "shards").glob("train*.tar")).unlink()
    assert main(["shards", "check", out]) == 2
    assert "missing" in capsys.readouterr().err


def test_a_model_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert main(["generate", "--model", nowhere, "--prompt", "x", "--out", str(tmp_path)]) == 2
    assert nowhere in capsys.readouterr().err


def test_eval_knows_the_run_by_folder_or_by_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"run:\n  dir: {tmp_path}/run\n")
    with pytest.raises(UserError, match="holds no run"):
        evaluation_request([], recipe)
    for name in ("run", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("")
    run_dir = tmp_path / "run"
    assert evaluation_request([str(run_dir)], None) == (run_dir, [])
    assert evaluation_request([str(run_dir), "eval.prompts=6"], None) == (
        run_dir,
        ["eval.prompts=6"],
    )
    assert evaluation_request(["train.steps=2"], recipe) == (run_dir, [])
    words = [f"run.dir={tmp_path}/other", "eval.seed=2"]
    assert evaluation_request(words, recipe) == (tmp_path / "other", ["eval.seed=2"])
    with pytest.raises(UserError, match="keeps its settings"):
        evaluation_request([str(run_dir), "train.steps=2"], None)
    with pytest.raises(UserError, match="give one of them"):
        evaluation_request([str(run_dir)], recipe)
    with pytest.raises(UserError, match=r"eval\.prompts"):
        evaluation_request([str(run_dir), "eval.prompt=6"], None)


def test_saved_configuration_is_plain_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["judge"]["answers"] == ["yes", "no"]
    assert shown["train"]["lr"] == 0.0005


def test_a_disk_that_does_not_answer_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise OSError(errno.ESTALE, "Stale file handle", "/models/vocab.json")

    assert guarded(work) == 2
    assert capsys.readouterr().err.splitlines() == [
        "srum-ds: /models/vocab.json: Stale file handle. Look at that file and its disk, then try again."
    ]
    with pytest.raises(OSError, match="no file"):
        guarded(lambda: (_ for _ in ()).throw(OSError("no file at all")))


def test_a_closed_or_full_stdout_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert guarded(lambda: 0) == 0
    monkeypatch.setattr("sys.stdout", open("/dev/full", "w"))
    assert guarded(lambda: print("much", flush=True)) == 2
    said = "srum-ds: what it prints could not be written (No space left on device).\n"
    assert capsys.readouterr().err == said
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail() -> None:
        raise full

    monkeypatch.setattr("sys.stdout", open(os.devnull, "w"))
    with pytest.raises(OSError, match="No space left"):
        guarded(fail)
