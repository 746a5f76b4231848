"""A run's TensorBoard: a first page that says whether it works, the settings, what came of it, the evaluation."""

from __future__ import annotations

import re
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from srum_ds.evaluation.report import Measured, build_result, write_result
from srum_ds.monitoring.records import TENSORBOARD
from srum_ds.monitoring.tensorboard import LAYOUT, TensorBoard
from srum_ds.monitoring.writer import Monitor

RECORD = {
    "loss": 0.5,
    "reward_global": -0.25,
    "reward_local": 0.1,
    "reward_std_zero_share": 0.0,
    "diversity_ratio": 1.0,
    "latent_std_ratio": 1.0,
    "grad_norm": 0.4,
    "parse_failed_share": 0.0,
    "masked": 0,
    "pictures_not_finite": 0,
    "learning_rate": 5e-4,
    "tokens": 64,
    "speed_images_per_second": 28.0,
    "time_train": 1.5,
    "memory_peak_bytes": 1,
    "judge_own": 0.1,
}
LOOK = {"prompts": 4, "reward": 0.3, "reward_se": 0.1, "difference": 0.2, "difference_se": 0.05}


def written(run_dir: Path) -> EventAccumulator:
    with Monitor(run_dir, progress=False) as monitor:
        monitor.truncate(0)
        monitor.begin({"train.lr": 5e-4, "judge.answers": ["yes", "no"], "run.dir": "runs/a|b"})
        monitor.held_out({**LOOK, "step": 0, "checker_exact": 0.5})
        for step in (1, 2):
            monitor.step({**RECORD, "step": step})
        monitor.held_out({**LOOK, "step": 2, "checker_exact": 0.5, "judges": {"http": 0.2}})
        monitor.result({"train.lr": 5e-4, "judge.answers": ["yes", "no"]}, {"held_out/difference": 0.2})
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return events


def test_every_chart_of_the_page_shows_something(tmp_path: Path) -> None:
    events = written(tmp_path)
    tags = events.Tags()["scalars"]
    for charts in LAYOUT.values():
        for title, (kind, shown) in charts.items():
            for tag in shown:
                assert any(re.match(tag, known) for known in tags), f"{title}: {tag}"
                # A margin's tags are names, not patterns.
                assert kind == "Multiline" or tag in tags
    layout = layout_pb2.Layout()
    layout.ParseFromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert layout.category[0].title == "1. Is it working?"
    first = [chart.title.split(":")[0] for chart in layout.category[0].chart]
    assert first[0].startswith("Reward") and any("Failures" in title for title in first) and len(first) == 6


def test_rewards_stand_beside_the_bases_and_looks_have_their_error(tmp_path: Path) -> None:
    events = written(tmp_path)
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    assert [event.value for event in events.Scalars("reward/global_base")] == [-0.25, -0.25]
    looks = [(event.step, round(event.value, 3)) for event in events.Scalars("held_out/difference_low")]
    assert looks == [(0, 0.15), (2, 0.15)]
    assert [event.step for event in events.Scalars("held_out/judge_http")] == [2]


def test_settings_and_evaluation_can_be_read_there(tmp_path: Path) -> None:
    written(tmp_path)
    result = build_result(["color"] * 4, Measured([0, 0, 1, 0]), Measured([1, 0, 1, 1]), seed=1, seconds=1.0)
    write_result(tmp_path, result)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    texts = {
        tag: events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()
        for tag in ("configuration", "evaluation")
    }
    assert "| `train.lr` | `0.0005` |" in texts["configuration"] and "runs/a\\|b" in texts["configuration"]
    assert "Base against trained" in texts["evaluation"]
    assert [(e.step, e.value) for e in events.Scalars("evaluation/difference")] == [(2, 0.5)]


def test_a_run_without_tensorboard_gets_none_by_its_evaluation(tmp_path: Path) -> None:
    write_result(tmp_path, build_result(["color"] * 2, Measured([0, 1]), Measured([1, 1]), seed=1, seconds=1.0))
    assert not (tmp_path / "tensorboard").exists()


def test_files_are_read_in_the_order_of_their_making(tmp_path: Path) -> None:
    # Their names sort by the second; two of one second sort by letters, a process' tenth before its ninth.
    for step in (1, 2, 3):
        board = TensorBoard(tmp_path)
        board.step(step, {"loss": 0.5}, {})
        board.close()
    seconds = sorted(path.name.split(".")[3] for path in (tmp_path / TENSORBOARD).iterdir())
    assert len(set(seconds)) == 3
