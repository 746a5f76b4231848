"""The steps of a run's records, counted from 1; those of former versions too, which counted from 0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from srum_ds.common.errors import UserError
from srum_ds.monitoring.records import cut, read_held_out, read_metrics
from srum_ds.monitoring.writer import Monitor


def written(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_steps_of_a_former_run_are_read_from_1_and_those_of_today_as_they_are(tmp_path: Path) -> None:
    former = written(tmp_path / "former.jsonl", [{"step": step, "loss": 0.5} for step in range(3)])
    today = written(tmp_path / "today.jsonl", [{"step": step, "loss": 0.5} for step in range(1, 4)])
    assert [line["step"] for line in read_metrics(former)] == [1, 2, 3]
    assert read_metrics(former) == read_metrics(today)
    # Reading changes nothing on the disk.
    assert steps(former) == [0, 1, 2]


def test_a_former_run_that_is_taken_up_gets_todays_numbers_once(tmp_path: Path) -> None:
    written(tmp_path / "metrics.jsonl", [{"step": step, "loss": 0.25, "time_train": 2.0} for step in range(6)])
    failures = written(tmp_path / "judge_failures.jsonl", [{"step": 0, "reply": "?"}, {"step": 5, "reply": "!"}])
    monitor = Monitor(tmp_path, tensorboard=False, progress=False)
    # Its checkpoint after step 4 is what it goes on from.
    monitor.truncate(4)
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3, 4]
    assert steps(failures) == [1, 6]
    assert monitor.pace.elapsed == 8.0
    monitor.step({"step": 5, "loss": 0.25})
    monitor.truncate(4)
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3, 4]
    assert steps(failures) == [1, 6]


def test_looks_after_the_step_that_a_run_goes_on_from_are_forgotten(tmp_path: Path) -> None:
    path = written(tmp_path / "held_out.jsonl", [{"step": step, "reward": 0.1} for step in (0, 20, 40)])
    with open(path, "a") as stream:
        stream.write('{"step": 60, "rew')
    assert [look["step"] for look in read_held_out(tmp_path)] == [0, 20, 40]
    assert [look["step"] for look in cut(path, 20)] == [0, 20]
    assert steps(path) == [0, 20]
    assert cut(tmp_path / "none.jsonl", 20) == []


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnot a record\n')
    with pytest.raises(UserError, match="metrics.jsonl: holds a line that is no record"):
        read_metrics(tmp_path / "metrics.jsonl")
