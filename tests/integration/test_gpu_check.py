"""`make gpu-check` rehearsed on the CPU: what becomes of its parts, and what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.check import __main__ as command
from tests.gpu.check.driver import run_parts
from tests.gpu.check.measuring import Figures, Where
from tests.gpu.check.parts import PARTS, TOTAL_SECONDS, Part, chosen
from tests.gpu.check.recording import RECORD, merged
from tests.support.launching import environment
from tests.support.paths import ROOT

HERE = "tests.integration.test_gpu_check"


def well(figures: Figures, where: Where) -> None:
    """A part that ends well."""
    figures["on"] = where.device.type


def failing(figures: Figures, where: Where) -> None:
    """A part with a figure before its error."""
    figures["before"] = 1
    raise RuntimeError("out of luck")


def endless(figures: Figures, where: Where) -> None:
    """A part that never ends, nor does what it started."""
    figures["before"] = 2
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    figures["started"] = process.pid
    time.sleep(600)


def aborted(figures: Figures, where: Where) -> None:
    """A part whose process dies, as one does on a device's error."""
    os.abort()


@pytest.mark.slow
def test_parts_go_on_whatever_becomes_of_the_others(tmp_path: Path) -> None:
    parts = [
        Part("failing", f"{HERE}:failing", 60),
        Part("endless", f"{HERE}:endless", 15),
        Part("aborted", f"{HERE}:aborted", 60),
        Part("well", f"{HERE}:well", 60),
    ]
    lines = {line["part"]: line for line in run_parts(parts, tmp_path, rehearse=True, total_seconds=200)}
    assert [line["ok"] for line in lines.values()] == [False, False, False, True]
    assert lines["failing"]["figures"] == {"before": 1}
    assert lines["failing"]["error"][-1] == "RuntimeError: out of luck"
    assert lines["endless"]["error"][0] == "ended after 15 seconds, its limit"
    assert lines["endless"]["figures"]["before"] == 2
    assert 14 < lines["endless"]["seconds"] < 25
    assert not is_running(lines["endless"]["figures"]["started"])
    assert lines["aborted"]["error"][0] == "exit status -6"
    assert lines["well"]["figures"] == {"on": "cpu"}
    assert all(line["rehearsal"] for line in lines.values())
    assert [json.loads(line) for line in (tmp_path / "parts.jsonl").read_text().splitlines()] == list(lines.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "parts.jsonl"]


def is_running(pid: int) -> bool:
    """Whether this process is there and is not merely waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_there_is_no_time_for_is_not_begun(tmp_path: Path) -> None:
    (line,) = run_parts([Part("well", f"{HERE}:well", 60)], tmp_path, rehearse=True, total_seconds=1)
    assert not line["ok"] and "not begun" in line["error"][0] and line["figures"] == {}


def test_a_rehearsal_is_marked_and_recorded_nowhere_else(tmp_path: Path) -> None:
    before = RECORD.read_bytes() if RECORD.exists() else None
    out, record = tmp_path / "out", tmp_path / "gpu.json"
    assert command.main(["--rehearse", "--out", str(out), "--only", "machine"], record=record) == 0
    found = json.loads((out / "gpu.json").read_text())
    assert found["rehearsal"] is True
    assert found["parts"]["machine"]["ok"] and found["versions"]["torch"]
    assert not record.exists()
    assert (RECORD.read_bytes() if RECORD.exists() else None) == before


@pytest.mark.slow
def test_the_kernels_part_checks_and_times_every_kernel(tmp_path: Path) -> None:
    """The cheapest of the parts that compute much: it shows that a part's script runs."""
    (part,) = chosen(PARTS, "kernels")
    (line,) = run_parts([part], tmp_path, rehearse=True, total_seconds=200, patience=2)
    assert line["ok"], line
    assert line["figures"]["self_check"]["broken"] == {}
    timed = {name.removeprefix("times_") for name in line["figures"] if name.startswith("times_")}
    assert timed == {"rms_norm", "add_rms_norm", "qk_norm_rotary", "swiglu", "velocity_loss"}
    assert line["figures"]["adamw_step"]["off"] < 1e-6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "gpu.json"
    assert command.main(["--out", str(tmp_path / "out")], record=record) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_script_asks_for_wheels_where_there_is_no_environment(tmp_path: Path) -> None:
    """Of a tree of its own, so that this one's environment and wheels do not matter."""
    script = tmp_path / "tests" / "gpu" / "check.sh"
    script.parent.mkdir(parents=True)
    script.write_text((ROOT / "tests/gpu/check.sh").read_text())
    done = subprocess.run(["bash", str(script), "--out", "x"], env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert "make gpu-wheels" in done.stderr


def test_a_run_replaces_the_parts_that_it_ran() -> None:
    def line(part: str, ok: bool, **figures: Any) -> dict[str, Any]:
        return {"part": part, "seconds": 1.0, "ok": ok, "device": "a GPU", "figures": figures}

    first = merged({}, [line("machine", True, versions={"torch": "1"}), line("layers", True, ms=3)], "a", False, False)
    second = merged(first, [line("layers", False, ms=2)], "b", True, False)
    assert second["commit"] == "b" and second["versions"] == {"torch": "1"} and second["device"] == "a GPU"
    assert second["parts"]["machine"]["commit"] == "a" and second["parts"]["machine"]["ok"]
    assert second["parts"]["layers"]["commit"] == "b" and second["parts"]["layers"]["figures"] == {"ms": 2}
    assert "rehearsal" not in second


def test_parts_are_chosen_by_name_and_end_within_nine_minutes(tmp_path: Path) -> None:
    assert [part.name for part in chosen(PARTS, "kernels,machine")] == ["machine", "kernels"]
    with pytest.raises(ValueError, match="kernel is no part"):
        chosen(PARTS, "kernel")
    assert TOTAL_SECONDS < 540
    assert all(part.seconds < TOTAL_SECONDS / 3 for part in PARTS)
