"""Rates of a step, and the table of a run's use of its devices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from srum_ds.evaluation.report import show_result
from srum_ds.monitoring.usage import peak_memory, rates, read_metrics, usage_rates, usage_rows, usage_table

STEP = {
    "time_data": 1.0,
    "time_rollout": 4.0,
    "time_judge": 2.0,
    "time_train": 3.0,
    "flops_rollout": 8e12,
    "flops_judge": 1e12,
    "flops_train": 3e12,
}


def test_rates_by_hand() -> None:
    found = rates(STEP, ranks=2, peak=1e12, images=40, tokens=500)
    assert found == {
        "speed_images_per_second_per_gpu": 2.0,
        "speed_tokens_per_second": 50.0,
        "speed_mfu_rollout": 1.0,
        "speed_mfu_judge": 0.25,
        "speed_mfu_train": 0.5,
        # 12 TFLOP in 10 s on two devices.
        "speed_mfu": 0.6,
    }


def test_without_a_peak_there_is_no_mfu() -> None:
    found = rates(STEP, ranks=2, peak=None, images=40, tokens=500)
    assert found.keys() == {"speed_images_per_second_per_gpu", "speed_tokens_per_second"}
    assert rates({"time_data": 0.0}, 1, 1e12, 1, 1) == {}
    # A phase in which nothing is done has none either.
    idle = rates(STEP | {"flops_judge": 0.0}, 2, 1e12, 40, 500)
    assert "speed_mfu_judge" not in idle and idle["speed_mfu"] == pytest.approx(0.55)


def lines() -> list[dict[str, float]]:
    moved = {"bytes_gathered": 2e9, "bytes_reduced": 1e9}
    one = STEP | rates(STEP, 2, 1e12, 40, 500) | moved | {"memory_peak_bytes": 3e9}
    slow = STEP | {"time_train": 13.0}
    two = slow | rates(slow, 2, 1e12, 40, 500) | moved | {"memory_peak_bytes": 4e9}
    return [one, two]


def test_the_table_weighs_steps_by_their_seconds() -> None:
    rows = {row[0]: row[1:] for row in usage_rows(lines())}
    assert list(rows) == ["data", "rollout", "judge", "train", "step"]
    assert rows["rollout"] == ["4.00", "27%", "8", "100.0%"]
    # 6 TFLOP in 16 s on two devices, each of 1 TFLOP/s; not the mean of 50 % and 12 %.
    assert rows["train"] == ["8.00", "53%", "3", "18.8%"]
    assert rows["step"] == ["15.00", "100%", "12", "40.0%"]
    assert rows["data"][2:] == ["", ""]
    said = usage_rates(lines())
    assert "at most 4.00 GB a rank" in said and "2 GB gathered and 1 GB reduced" in said


def test_runs_that_counted_nothing_have_no_table(tmp_path: Path) -> None:
    assert usage_table([{"time_train": 1.0, "step": 0}]) is None and usage_table([]) is None
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_finished_run_shows_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines()) + '{"torn')
    console = Console(width=200, record=True)
    show_result(tmp_path, console, "srum-ds eval runs/a --benchmark own")
    said = console.export_text()
    assert "use of the devices over 2 steps" in said and "40.0%" in said
    assert "is finished; `srum-ds eval runs/a --benchmark own` measures it." in said
    show_result(tmp_path, console)
    assert console.export_text().endswith("is finished.\n"), "nobody is sent to an evaluation that cannot be"


def test_a_process_holds_memory() -> None:
    assert peak_memory(torch.device("cpu")) > 10_000_000
