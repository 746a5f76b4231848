"""Metrics, TensorBoard, sample grids and progress of a run that is killed and goes on."""

from __future__ import annotations

import io
import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from srum_ds.common.environment import git_state, write_environment
from srum_ds.common.errors import UserError
from srum_ds.monitoring.images import (
    GREEN,
    RED,
    Shown,
    annotated,
    boxes_by_picture,
    comparison,
    grid,
    score_colour,
    wrap,
)
from srum_ds.monitoring.images import _font as font
from srum_ds.monitoring.records import metrics_before
from srum_ds.monitoring.writer import Monitor
from srum_ds.types import Regions


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def record(step: int, loss: float = 0.5) -> dict:
    return {"step": step, "loss": loss, "reward_global": -0.25, "time_train": 1.5}


def quiet() -> Console:
    return Console(file=io.StringIO())


def test_each_step_is_one_line_of_json_at_once(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "run", progress=False)
    monitor.step({"step": 0, "loss": torch.tensor(0.25), "grad_norm": np.float64(2.0), "note": "warm"})
    monitor.step({"step": 1, "loss": math.nan, "grad_norm": torch.tensor(math.inf)})
    # Not closed: what a kill now leaves must already be there.
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 0, "loss": 0.25, "grad_norm": 2.0, "note": "warm"},
        {"step": 1, "loss": None, "grad_norm": None},
    ]
    monitor.close()


def test_a_record_without_a_step_is_refused(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, tensorboard=False, progress=False)
    for step in (None, 1.0, True, "3"):
        with pytest.raises(ValueError, match="whole number as 'step'"):
            monitor.step({"step": step, "loss": 1.0})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_resume_leaves_every_step_once(tmp_path: Path) -> None:
    with Monitor(tmp_path, progress=False) as monitor:
        for step in range(1, 8):
            monitor.step(record(step, loss=1.0))
    with open(tmp_path / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 8, "lo')
    for _ in range(2):
        # Goes on from the checkpoint after step 4; the second time nothing new was saved meanwhile.
        with Monitor(tmp_path, progress=False) as monitor:
            monitor.truncate(4)
            assert steps_in(tmp_path) == [1, 2, 3, 4]
            for step in range(5, 10):
                monitor.step(record(step, loss=2.0))
    assert steps_in(tmp_path) == list(range(1, 10))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(step, 1.0 if step <= 4 else 2.0) for step in range(1, 10)]
    assert {"reward/global", "time/train"} <= set(events.Tags()["scalars"])


def test_truncating_to_the_start_and_before_anything_was_written(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, tensorboard=False, progress=False)
    monitor.truncate(0)
    assert not (tmp_path / "metrics.jsonl").exists()
    monitor.step(record(1))
    monitor.truncate(0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    monitor.step(record(1))
    monitor.close()
    assert steps_in(tmp_path) == [1]


def test_only_the_last_line_may_be_torn() -> None:
    good = b'{"step": 1}\n{"step": 2}\n'
    assert metrics_before(good + b'{"step": 3, "x', 9) == (good, False)
    assert metrics_before(good + b'{"step": 3}', 9) == (good, False)
    assert metrics_before(good, 1) == (b'{"step": 1}\n', False)
    assert metrics_before(b"", 1) == (b"", False)
    for bad in (b'{"st\n', b"[]\n", b'{"loss": 1}\n', b'{"step": "x"}\n', b"\n"):
        with pytest.raises(UserError, match=r"run/metrics.jsonl, line 2: not a step's record"):
            metrics_before(b'{"step": 1}\n' + bad + b'{"step": 2}\n', 9, Path("run/metrics.jsonl"))


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "run", rank=1)
    monitor.truncate(0)
    monitor.step(record(0))
    assert monitor.images("fixed", torch.zeros(1, 3, 8, 8), [[]], [[]], ["x"], 0) is None
    monitor.sync()
    monitor.message("hello")
    monitor.close()
    assert not (tmp_path / "run").exists()


def test_without_tensorboard_there_is_no_folder_of_it(tmp_path: Path) -> None:
    with Monitor(tmp_path, tensorboard=False, progress=False) as monitor:
        monitor.step(record(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_sample_grid_shows_boxes_in_their_scores_colour(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 64, 64)
    boxes: list = [torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.5, 0.75, 1.0, 1.0]]), []]
    with Monitor(tmp_path, progress=False) as monitor:
        path = monitor.images("fixed", images, boxes, [torch.tensor([1.0, -1.0]), []], ["good", "none"], 20)
    assert path == tmp_path / "samples" / "fixed_000020.png"
    picture = np.asarray(Image.open(path)).astype(int)
    # The first picture stands at the page's margin, each pixel four wide: 64 -> 256.
    left_edge = picture[8 + 70 : 8 + 120, 8 + 64]
    assert (left_edge == GREEN).all()
    right_edge = picture[8 + 200 : 8 + 250, 8 + 255]
    assert (right_edge == RED).all()
    assert (picture[8 + 96, 8 + 96] == 0).all()
    second = picture[8 : 8 + 256, 8 + 256 + 8 : 8 + 256 + 8 + 256]
    assert (second == 0).all()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (image,) = events.Images("samples/fixed")
    assert image.step == 20
    shown = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert (shown == picture).all()


def test_scores_run_from_red_over_amber_to_green() -> None:
    assert score_colour(-1) == score_colour(-7) == RED
    assert score_colour(1) == score_colour(7) == GREEN
    red, green, blue = score_colour(0.0)
    assert red > 200 and 150 < green < 220 and blue < 80
    assert len(set(score_colour(math.nan))) == 1


def test_regions_are_dealt_out_to_their_pictures() -> None:
    regions = Regions(torch.tensor([0, 2, 2]), torch.tensor([[0.0, 0, 1, 1], [0, 0, 0.5, 1], [0.5, 0, 1, 1]]))
    boxes, scores = boxes_by_picture(regions, torch.tensor([0.5, -1.0, 1.0]), 3)
    assert boxes == [[[0, 0, 1, 1]], [], [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]]
    assert scores == [[0.5], [], [-1.0, 1.0]]


def test_long_captions_are_wrapped_not_cut() -> None:
    text = "a striped red triangle above a solid blue square andaverylongwordthatnolinecanhold"
    lines = wrap(text, font(14), 120)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert len(lines) > 3
    assert all(font(14).getlength(line) <= 120 for line in lines)


def test_ticks_and_crosses_stand_beside_the_picture() -> None:
    white = torch.ones(3, 64, 64)
    for mark, colour in ((True, GREEN), (False, RED)):
        shown = annotated(Shown(white, mark=mark), 192)
        assert shown.size == (192 + 28, 192)
        pixels = np.asarray(shown)
        assert (pixels[:, :192] == 255).all()
        assert (pixels[:, 192:] == colour).all(axis=2).sum() > 100
    page = comparison([("text", [Shown(white, mark=True), Shown(white, mark=False)])], ["base", "trained"])
    assert page.width > 2 * 192 and page.height > 192


def test_grids_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="1 boxes but 0 scores"):
        annotated(Shown(torch.zeros(3, 8, 8), [[0, 0, 1, 1]], []))
    with pytest.raises(ValueError, match="0 captions"):
        grid([annotated(Shown(torch.zeros(3, 8, 8)))], [])
    with pytest.raises(ValueError, match="each heading"):
        comparison([("text", [Shown(torch.zeros(3, 8, 8))])], ["base", "trained"])


def test_environment_says_where_a_run_was_made(tmp_path: Path) -> None:
    write_environment(tmp_path, 2, sharded_share=0.5)
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found["world_size"] == 2 and found["sharded_share"] == 0.5
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["versions"]["deepspeed"] and found["versions"]["python"].startswith("3.")
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["memory_bytes"] > 2**28
    assert isinstance(found["hardware"]["cpu"], str) and found["hardware"]["cpu"]
    assert len(found["hardware"]["gpus"]) == torch.cuda.device_count()


def test_commit_is_the_clones_own(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert git_state(tmp_path) == (None, None)
    git("init", "-q")
    (tmp_path / "inside").mkdir()
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    assert git_state(tmp_path) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path) == (git("rev-parse", "HEAD"), True)
    assert git_state(tmp_path / "inside") == (None, None)
