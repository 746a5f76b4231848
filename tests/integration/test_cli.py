"""The console script as a user meets it: help, messages, exit statuses, files."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import srum_ds.commands.launcher as launcher
from srum_ds import __version__
from srum_ds.commands.main import main
from srum_ds.common.errors import UserError, guarded
from srum_ds.config import Config, load_config
from srum_ds.evaluation.evaluate import evaluation_request

COMMANDS = ("train", "eval", "ablate", "calibrate", "rollout", "rescore", "generate", "ask", "inspect", "check-adapter")
COMMANDS += ("shards", "config")
SLOW_IMPORTS = ("torch", "deepspeed", "transformers", "diffusers", "scipy", "omegaconf")


def run(*words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import sys; from srum_ds.commands.main import main; sys.exit(main())", *words],
        capture_output=True,
        text=True,
        **settings,
    )


def test_help_lists_the_commands_and_imports_nothing_slow() -> None:
    code = (
        "import sys\nfrom srum_ds.commands.main import main\nstatus = main(['--help'])\n"
        f"slow = [name for name in {SLOW_IMPORTS!r} if name in sys.modules]\n"
        "sys.exit(f'imported {slow}' if slow else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert command in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["train"],
        ["eval"],
        ["ablate"],
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
    ],
)
def test_every_command_has_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--help"]) == 0
    assert "Usage: srum-ds " + " ".join(words) in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_users_error_is_a_message_and_status_2() -> None:
    done = run("config", "show", "launch/recipes/tiny.yaml", "train.stepz=3")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("srum-ds: unknown key 'train.stepz' on the command line.")
    assert "'train.steps'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["trian"], ["train", "--fast"], ["ask", "--model", "x"], ["shards", "check"]])
def test_wrong_arguments_are_status_2(words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0)


def test_config_show_prints_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", "show", "launch/recipes/tiny.yaml", "train.steps=3"]) == 0
    path = tmp_path / "shown.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_config(path) == load_config("launch/recipes/tiny.yaml", ["train.steps=3"])


@pytest.mark.parametrize("command", ["show", "schema"])
def test_output_into_a_closed_pipe_is_no_error(command: str) -> None:
    # One fits the output buffer, so that the pipe breaks at the end; the other does not.
    code = f"import sys; from srum_ds.commands.main import main; sys.exit(main(['config', '{command}']))"
    line = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == ""


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


def test_train_starts_the_launcher_with_what_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_clone(tmp_path, monkeypatch)
    settings = ["train.steps=3", "train.betas=[0.9, 0.95]"]
    assert main(["train", "launch/recipes/tiny.yaml", *settings, "--dry-run"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[0] == str(Path(sys.executable).with_name("deepspeed"))
    assert words[words.index("--num_gpus") + 1] == "2"
    assert 1024 <= int(words[words.index("--master_port") + 1]) <= 65535
    assert words[-4:] == ["launch/train.sh", "launch/recipes/tiny.yaml", *settings]


def test_launcher_flags_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_clone(tmp_path, monkeypatch)
    assert main(["train", "--launcher-args=--include=localhost:0,1 --master_port 29511", "--dry-run"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert "--num_gpus" not in words
    assert words.count("--master_port") == 1
    assert words[words.index("--master_port") + 1] == "29511"


def test_train_refuses_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_clone(tmp_path, monkeypatch)
    assert main(["train", "deepspeed.ranks=3", "--dry-run"]) == 2
    assert "not divisible by the 3 ranks" in capsys.readouterr().err
    assert main(["train", "deepspeed.config=nowhere.json", "--dry-run"]) == 2
    assert "deepspeed.config=nowhere.json" in capsys.readouterr().err


def prepare_clone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with the files the launcher wants to see (recipes come from the repository)."""
    for name in ("launch/train.sh", "ds_configs/cpu.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    monkeypatch.chdir(folder)


def test_environment_of_the_ranks() -> None:
    cores = len(os.sched_getaffinity(0))
    made = launcher.build_environment({"PATH": "/bin"}, ranks=cores, cuda=False)
    assert made["OMP_NUM_THREADS"] == "1"
    assert made["DS_ACCELERATOR"] == "cpu"
    assert "DS_ACCELERATOR" not in launcher.build_environment({}, ranks=1, cuda=True)
    if sys.prefix != sys.base_prefix:
        assert made["TORCH_EXTENSIONS_DIR"] == str(Path(sys.prefix) / "torch_extensions")
        own = str(Path(sys.executable).parent)
        assert made["PATH"].split(os.pathsep) == [own, "/bin"]
        # A system's ninja of another version would compile DeepSpeed's op again in every other process.
        made = launcher.build_environment({"PATH": f"/bin{os.pathsep}{own}"}, ranks=1, cuda=False)
        assert made["PATH"].split(os.pathsep) == [own, "/bin"]
    mine = {"OMP_NUM_THREADS": "5", "DS_ACCELERATOR": "xpu", "TORCH_EXTENSIONS_DIR": "/x"}
    assert mine.items() <= launcher.build_environment(mine, ranks=2, cuda=False).items()


# Stands for `deepspeed`: front end -> per-node launcher -> rank, each waiting for the next. The rank
# takes SIGTERM as a request to save and end well, as the training loop does.
RANK = """
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1], "saved").write_text("")
    sys.exit(int(sys.argv[2]))
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "started").write_text("")
time.sleep(60)
"""
NEXT = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c'] + sys.argv[1:]))"


@pytest.mark.parametrize("status", [0, 3])
def test_sigterm_reaches_the_ranks_and_their_status_comes_back(tmp_path: Path, status: int) -> None:
    command = [sys.executable, "-c", NEXT, NEXT, RANK, str(tmp_path), str(status)]
    code = (
        "import os, sys; from srum_ds.commands.launcher import run_command; "
        f"sys.exit(run_command({command!r}, os.environ))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        for _ in range(300):
            if (tmp_path / "started").exists():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == status
    finally:
        process.kill()
    assert (tmp_path / "saved").exists()


def test_status_of_a_launcher_that_a_signal_ended() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert launcher.run_command([sys.executable, "-c", code], os.environ) == 128 + signal.SIGKILL


def test_no_launcher_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match="make setup"):
        launcher.build_command(Config(), "r.yaml")


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "has_cuda", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"no C\+\+ compiler"):
        launcher.build_communication_op()


def test_no_python_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launcher, "has_cuda", lambda: False)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match="python3-dev"):
        launcher.build_communication_op()


def test_saved_configuration_is_plain_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["judge"]["answers"] == ["yes", "no"]
    assert shown["train"]["lr"] == 0.0005
