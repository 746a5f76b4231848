"""What a terminal shows of a run in a line, and what stands in a log: where it is, how long it takes, if it works."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from srum_ds.monitoring.pace import Pace, duration
from srum_ds.monitoring.status import Figures, Status, read_status, status_line, write_status
from srum_ds.monitoring.writer import Monitor

FIGURES = {"reward": (0.412, 0.231), "local": (0.301, 0.199), "held-out": (0.351, 0.212)}
RUNS = Status(37, 120, "", None, 192.0, 28.14, FIGURES)


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def record(step: int, reward: float = -0.25) -> dict:
    return {"step": step, "loss": 0.5, "reward_global": reward, "time_train": 1.5}


def test_at_80_columns_everything_that_counts_is_there() -> None:
    line = status_line(RUNS, "rollout", 1.0, 80)
    assert line == "37/120 drawing ETA 3:12 28.1 img/s reward +.41 held-out +.35 (base +.23 +.21)"
    # A run of many steps, slow ones, at its end.
    long = Status(11_037, 12_000, "", None, 180_000.0, 1.236, FIGURES)
    line = status_line(long, "judge", 75.0, 80)
    assert len(line) < 80
    assert all(part in line for part in ("11037/12000", "judging 1:15", "ETA 2d02h", "reward +.41", "held-out +.35"))


def test_a_wide_terminal_shows_all_figures_with_the_bases() -> None:
    assert status_line(RUNS, "train", 1.0, 160) == (
        "step 37/120  training  ETA 3:12  28.1 images/s  reward +0.412 (base +0.231)  "
        "local +0.301 (base +0.199)  held-out +0.351 (base +0.212)"
    )


def test_at_120_columns_the_regions_are_there_too() -> None:
    assert status_line(RUNS, "train", 1.0, 120) == (
        "step 37/120  training  ETA 3:12  28.1 img/s  reward +.41 (base +.23)  "
        "local +.30 (base +.20)  held-out +.35 (base +.21)"
    )


@pytest.mark.parametrize("width", [10, 24, 40, 60, 80, 100, 120, 200])
def test_no_line_is_as_wide_as_the_terminal(width: int) -> None:
    for status in (RUNS, Status(), Status(0, 120, "drawing the base's held-out images", 0.5)):
        assert len(status_line(status, "watch", 3700.0, width)) < width


def test_long_work_says_how_far_it_is() -> None:
    status = Status(40, 120, "drawing held-out images", 0.5, 60.0, 28.0, {})
    assert "drawing held-out images 50% 0:12" in status_line(status, "watch", 12.0, 80)
    assert status_line(Status(0, 120), "init", 61.0, 80) == "step 0/120  loading 1:01"


def test_time_left_is_that_of_the_newest_steps_without_the_first_one() -> None:
    clock = Clock()
    pace = Pace(64, 100, clock=clock)
    pace.begin()
    assert pace.eta(0) is None
    clock.now += 50
    pace.step()
    assert pace.eta(1) == 99 * 50
    for _ in range(4):
        clock.now += 2
        pace.step()
    assert pace.eta(5) == 95 * 2 and pace.images_per_second == 32
    assert pace.elapsed == 58
    resumed = Pace(64, 100, elapsed=58.0, clock=clock)
    resumed.begin()
    clock.now += 3
    resumed.step()
    assert resumed.elapsed == 61
    assert [duration(s) for s in (7, 754, 11_100, 187_200)] == ["0:07", "12:34", "3h05m", "2d04h"]


def test_rewards_are_means_of_ten_steps_beside_what_the_base_got() -> None:
    figures = Figures()
    for step in range(1, 31):
        figures.see({"step": step, "reward_global": step / 100, "reward_local": None})
    mean, base = figures.means()["reward"]
    assert mean == pytest.approx(0.255) and base == 0.01
    assert "local" not in figures.means()
    figures.look({"step": 20, "reward": 0.3, "difference": 0.125})
    assert figures.means()["held-out"] == (0.3, pytest.approx(0.175))
    # Offline the first step's images are those of whoever drew them.
    offline = Figures(from_base=False)
    offline.see({"step": 1, "reward_global": 0.5})
    assert offline.means() == {"reward": (0.5, None)}


def test_the_status_file_gives_back_what_was_written_and_nothing_for_anything_else(tmp_path: Path) -> None:
    write_status(tmp_path, RUNS)
    found = read_status(tmp_path)
    assert found is not None and found.time > 0
    assert status_line(found, "train", 0.0, 80) == status_line(RUNS, "train", 0.0, 80)
    for text in ("", "[]", '{"figures": 3}', '{"step": 1, "unknown": 2, "figures": {}}'):
        (tmp_path / "status.json").write_text(text)
        assert read_status(tmp_path) is None


def test_off_a_terminal_every_step_of_the_first_minute_has_a_line_then_there_is_one_a_minute(tmp_path: Path) -> None:
    clock = Clock()
    written = io.StringIO()
    with Monitor(
        tmp_path, tensorboard=False, total_steps=90, console=Console(file=written), images=64, clock=clock
    ) as monitor:
        monitor.pace.begin()
        for step in range(1, 91):
            clock.now += 4
            monitor.pace.step()
            monitor.step(record(step))
    lines = written.getvalue().splitlines()
    assert lines[0] == "step 1/90  ETA 5:56  16 images/s  reward -0.250 (base -0.250)  loss 0.5000  1.5 s"
    # Four seconds a step: every one of the first minute, then one a minute.
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [*range(1, 16), 30, 45, 60, 75, 90]
    assert lines[-1].split()[3] == "0:00"
    # The log says the same.
    assert [line[9:] for line in (tmp_path / "run.log").read_text().splitlines()] == lines


def test_on_a_terminal_messages_stand_above_one_line_that_is_drawn_anew(tmp_path: Path) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=80)
    with Monitor(tmp_path, tensorboard=False, total_steps=3, console=console) as monitor:
        for step in range(1, 4):
            monitor.step(record(step))
        monitor.message("saved a checkpoint")
    text = written.getvalue()
    assert "\r\x1b[2Ksaved a checkpoint\n" in text
    assert "step 3/3" in text.rpartition("\n")[2]
    # At the end the line is taken away, and nothing but messages has gone on to a line of its own.
    assert text.endswith("\r\x1b[2K") and text.count("\n") == 1
    assert "saved a checkpoint" in (tmp_path / "run.log").read_text()


def test_a_reader_that_went_away_ends_nothing(tmp_path: Path) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with Monitor(tmp_path, tensorboard=False, total_steps=3, console=Console(file=Gone())) as monitor:
        monitor.step(record(1))
        monitor.message("still here")
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 1
    assert "still here" in (tmp_path / "run.log").read_text()
