"""The doctor on two ranks: one report, by the first of them, with what only ranks together can measure."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.ranks import start_ranks


def test_two_ranks_measure_how_they_talk(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    ranks = start_ranks(2, ["--folder", str(tmp_path), "--out", str(report)], "srum_ds/commands/doctor.py")
    statuses = ranks.wait(timeout=120)
    facts = json.loads(report.read_text())
    assert list(statuses) == [0 if facts["ok"] else 1, 0], ranks.printed[-3000:]
    assert facts["ranks"] == 2
    parts = {one["part"]: one for one in facts["findings"]}
    assert parts["ranks"]["state"] == "ok" and parts["ranks"]["text"].startswith("2 on 1 node(s)")
    assert parts["clocks"]["figures"]["seconds"] < 1
    for part in ("all-reduce", "all-gather"):
        # Shared memory of one machine: whatever else runs here.
        assert 1e6 < parts[part]["figures"]["bus_bytes_per_second"] < 1e12
    assert ranks.printed.count("error(s),") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
