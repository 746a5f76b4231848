"""The doctor on one process: what it says of a machine that is well, and of what is wrong with one."""

from __future__ import annotations

import ast
import json
import os
import re
import socket
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from srum_ds.commands.doctor import SICK
from srum_ds.commands.main import main
from srum_ds.preflight import Finding, State, machine
from srum_ds.preflight.libraries import alone, look_at_accelerators, look_at_imports
from tests.support.paths import ROOT


def states(findings: Any) -> dict[str, State]:
    return {finding.part: finding.state for finding in findings}


def test_the_report_of_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--folder", str(tmp_path), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert status == (0 if facts["ok"] else SICK)
    parts = {one["part"]: one for one in facts["findings"]}
    wanted = "python versions combinations imports accelerators compiler memory cores disk ports caches"
    assert {*wanted.split(), "all-reduce", "all-gather", "clocks", "ranks"} <= parts.keys()
    assert parts["all-reduce"]["state"] == "not checked" and "--ranks 2" in parts["all-reduce"]["text"]
    assert parts["disk"]["figures"]["write_bytes_per_second"] > 0
    assert "torch" in parts["versions"]["text"]
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_status_1_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = machine.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert main(["doctor", "--folder", str(tmp_path)]) == SICK
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("error")]
    assert re.fullmatch(r"[1-9]\d* error\(s\), \d+ warning\(s\)", lines[-1])


def test_wrong_input_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--ranks", "0"]) == 2
    assert "--ranks 0" in capsys.readouterr().err


def test_what_a_package_lacks_is_told_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"srum-ds": "1.0", "torch": "2.13.0", "triton": "3.6.0"}
    needs = {"srum-ds": ["torch>=2.20", "absent>=1", "extra>=1; extra == 'docs'"], "torch": ["triton==3.7.1"]}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(machine.metadata, "version", version)
    monkeypatch.setattr(machine.metadata, "requires", lambda name: needs.get(name))
    told = [finding for finding in machine.look_at_versions() if finding.part == "combinations"]
    assert [finding.state for finding in told] == [State.ERROR, State.ERROR, State.WARNING]
    assert "pip install 'torch>=2.20'" in told[0].text
    assert "is not installed" in told[1].text
    assert "torch needs triton==3.7.1, which is 3.6.0" in told[2].text


def test_no_compiler_is_an_error_without_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert states(machine.look_at_builds(gpu=False))["compiler"] == State.ERROR
    assert states(machine.look_at_builds(gpu=True))["compiler"] == State.WARNING


def test_an_op_that_is_not_built_is_odd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert states(machine.look_at_builds(gpu=False))["op builds"] == State.WARNING
    (tmp_path / "op").mkdir()
    (tmp_path / "op" / f"{machine.OP}.so").write_text("")
    assert states(machine.look_at_builds(gpu=False))["op builds"] == State.OK


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (256, 4096))
    usage = machine.shutil.disk_usage("/")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage._replace(free=100 << 20))
    monkeypatch.setattr(machine, "cgroup_memory", lambda: (2 << 30, (2 << 30) - 1000))
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.5)
    found = states(machine.look_at_limits(ranks=2, gpu=False))
    assert found == {
        "open files": State.WARNING,
        "/dev/shm": State.ERROR,
        "memory": State.WARNING,
        "cores": State.WARNING,
    }
    # On GPUs ranks need none of it.
    assert states(machine.look_at_limits(ranks=2, gpu=True))["/dev/shm"] == State.WARNING


def test_buffers_that_killed_jobs_left_are_named_and_those_in_use_are_not(tmp_path: Path) -> None:
    shared, processes = tmp_path / "shm", tmp_path / "proc"
    names = [
        f"deepspeed_allreduce_buffer_{user}_127.0.0.1_{port}_0" for user, port in ((os.getuid(), 1), (os.getuid(), 2))
    ]
    others = f"deepspeed_allreduce_buffer_{os.getuid() + 1}_127.0.0.1_3_0"
    for folder in (shared, processes / "77", processes / "self"):
        folder.mkdir(parents=True)
    for name in (*names, others):
        (shared / name).write_bytes(b"12")
    (processes / "77" / "maps").write_text(f"7f00-7f01 rw-s 00000000 00:19 5   {shared / names[1]}\n")
    assert machine.left_buffers(shared, processes) == [shared / names[0]]
    (shared / names[0]).unlink()
    assert machine.left_buffers(shared, processes) == []


def test_limits_of_a_cgroup_are_read(tmp_path: Path) -> None:
    assert machine.cgroup_memory(tmp_path) == (None, 0)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    assert machine.cgroup_memory(tmp_path) == (None, 5)
    (tmp_path / "memory.max").write_text("1000\n")
    assert machine.cgroup_memory(tmp_path) == (1000, 5)
    quota = tmp_path / "cpu.max"
    assert machine.cpu_quota(quota) is None
    quota.write_text("max 100000\n")
    assert machine.cpu_quota(quota) is None
    quota.write_text("150000 100000\n")
    assert machine.cpu_quota(quota) == 1.5


def test_a_port_that_is_taken_is_odd(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        monkeypatch.setattr(machine, "DEFAULT_PORT", holder.getsockname()[1])
        assert states(machine.look_at_network())["ports"] == State.WARNING


def test_a_cache_that_cannot_be_written_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file" / "hub"))
    told = [finding for finding in machine.look_at_caches() if finding.state == State.ERROR]
    assert len(told) == 1 and "HF_HOME" in told[0].text


def test_what_was_not_looked_at_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("srum_ds.preflight.libraries._devices", list)
    assert [finding.state for finding in look_at_accelerators()] == [State.NOT_CHECKED]
    monkeypatch.setattr("srum_ds.preflight.libraries._devices", lambda: ["nvidia0"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [finding.state for finding in look_at_accelerators()] == [State.ERROR]
    assert {finding.state for finding in alone()} == {State.NOT_CHECKED}


def test_a_library_that_cannot_be_imported_is_an_error_and_the_rest_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All are there already, whatever tests ran before: what needs torch itself is not imported anew without it.
    list(look_at_imports())
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    told = [finding for finding in look_at_imports() if finding.state == State.ERROR]
    assert [finding.text.split()[0] for finding in told] == ["torch", "diffusers"]
    assert all("make setup" in finding.text for finding in told)
    assert [finding.state for finding in look_at_accelerators()] == [State.NOT_CHECKED]


def test_a_line_hides_secrets_and_json_keeps_figures() -> None:
    finding = Finding("disk", State.OK, "fine").with_figures({"free_bytes": 1.0})
    assert finding.as_json() == {"part": "disk", "state": "ok", "text": "fine", "figures": {"free_bytes": 1.0}}
    assert finding.line.split() == ["ok", "disk", "fine"]


def test_every_exit_status_of_the_code_stands_on_its_page() -> None:
    page = (ROOT / "docs" / "exit_codes.md").read_text()
    statuses = dict(_statuses())
    assert {"WRONG_INPUT", "STOPPED", "STOPPED_BY_WATCH", "HUNG"} <= statuses.keys()
    for name, status in statuses.items():
        assert re.search(rf"^\| {status} \| `{name}` \|", page, re.MULTILINE), f"{name}={status} is not listed"


def _statuses() -> list[tuple[str, int]]:
    """(name, value) of every constant of the package whose docstring says that it is an exit status."""
    found = []
    for path in sorted((ROOT / "srum_ds").rglob("*.py")):
        text = path.read_text()
        if "Exit status" not in text:
            continue
        body = ast.parse(text).body
        for node, following in zip(body, body[1:], strict=False):
            said = (
                following.value.value
                if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                else ""
            )
            if isinstance(node, ast.Assign) and isinstance(said, str) and said.startswith("Exit status"):
                value = node.value
                assert isinstance(value, ast.Constant) and isinstance(value.value, int)
                found += [(target.id, value.value) for target in node.targets if isinstance(target, ast.Name)]
    return found
