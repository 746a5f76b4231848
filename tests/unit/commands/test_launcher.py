"""The launcher: what it would start, with which environment, and what it refuses."""

from __future__ import annotations

import os
import shlex
import sys
import sysconfig
from pathlib import Path

import pytest

import srum_ds.commands.launcher as launcher
from srum_ds.commands.main import main
from srum_ds.common.errors import UserError
from srum_ds.config import Config


def test_train_starts_the_launcher_with_what_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_clone(tmp_path, monkeypatch)
    settings = ["train.steps=3", "train.betas=[0.9, 0.95]"]
    assert main(["train", "launch/recipes/tiny.yaml", *settings, "--dry-run"]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[0])
    assert words[0] == str(Path(sys.executable).with_name("deepspeed"))
    assert words[words.index("--num_gpus") + 1] == "2"
    assert 1024 <= int(words[words.index("--master_port") + 1]) <= 65535
    assert words[-4:] == ["launch/train.sh", "launch/recipes/tiny.yaml", *settings]


def test_launcher_flags_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_clone(tmp_path, monkeypatch)
    assert main(["train", "--launcher-args=--include=localhost:0,1 --master_port 29511", "--dry-run"]) == 0
    command, plan = capsys.readouterr().out.splitlines()
    assert "no plan without --num_gpus" in plan
    words = shlex.split(command)
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
        (folder / name).write_text('{"zero_optimization": {"stage": 3}}')
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
