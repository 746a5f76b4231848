"""The watch: what rings, when, what it says; a real run that feeds back its own errors is ended, and what is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from srum_ds.common.errors import UserError
from srum_ds.config.schema import WatchConfig as Settings
from srum_ds.evaluation.checkers import load_checker
from srum_ds.monitoring.health import Alarm, Watch, stopping
from srum_ds.worlds.shapes.world import enumerate_prompts

SETTINGS = Settings(patience=3, first_steps=2, smoothing=1, reward_smoothing=4, max_reward_drop=0.15)


def healthy(step: int, **changes: float) -> dict[str, Any]:
    record = {
        "step": step + 1,
        "latent_std": 1.0,
        "group_diversity": 1.2,
        "grad_norm": 0.1,
        "reward_global": 0.0,
        "reward_std_zero_share": 0.1,
    }
    return record | changes


def ring(watch: Watch, records: list[dict[str, Any]]) -> list[tuple[int, Alarm]]:
    return [(record["step"] - 1, alarm) for record in records for alarm in watch.see(record)[1]]


def test_a_healthy_run_rings_nothing() -> None:
    assert ring(Watch(SETTINGS), [healthy(step, latent_std=1.0 + 0.02 * (step % 2)) for step in range(50)]) == []


def test_shrinking_latents_ring_once_after_the_patience_and_name_the_last_healthy_step() -> None:
    # 1, 0.98, 0.96, 0.94 ...: the first two average 0.99, and 0.94 is the first below 0.95 * 0.99 = 0.9405.
    records = [healthy(step, latent_std=1.0 - 0.02 * step) for step in range(12)]
    found = ring(Watch(SETTINGS), records)
    assert [(step, alarm.signal) for step, alarm in found] == [(5, "latent_std_ratio")]
    alarm = found[0][1]
    # Steps 3, 4 and 5 (from 0) are out, so that the first three are healthy.
    assert alarm.healthy_until == 3 and alarm.stops
    assert "below 0.95 for 3 steps up to step 6" in alarm.text
    figures, _ = Watch(SETTINGS).see(records[0])
    assert figures["latent_std_ratio"] == 1.0


def test_a_single_outlier_rings_nothing() -> None:
    records = [healthy(step, latent_std=0.5 if step % 3 == 2 else 1.0) for step in range(30)]
    assert ring(Watch(SETTINGS), records) == []


def test_what_depends_on_the_prompts_of_a_step_is_averaged_over_several() -> None:
    noisy = [healthy(step, latent_std=(0.9, 1.08, 1.02)[step % 3]) for step in range(30)]
    smooth = replace(SETTINGS, smoothing=3, first_steps=3, patience=1)
    assert ring(Watch(smooth), noisy) == []
    assert ring(Watch(replace(smooth, smoothing=1)), noisy) != []
    # A fall from step 10 on shows in the mean of three at once; none of the three at step 8 has fallen.
    fallen = noisy[:9] + [healthy(step, latent_std=0.7) for step in range(9, 20)]
    ((step, alarm), *_) = ring(Watch(smooth), fallen)
    assert (step, alarm.healthy_until) == (9, 7)


@pytest.mark.parametrize(
    "signal, change, stops",
    [
        ("latent_std_ratio", {"latent_std": 1.2}, True),
        ("diversity_ratio", {"group_diversity": 0.8}, True),
        ("grad_growth", {"grad_norm": 0.9}, True),
        ("reward_std_zero_share", {"reward_std_zero_share": 1.0}, False),
    ],
)
def test_each_sign_out_of_its_range_rings(signal: str, change: dict[str, float], stops: bool) -> None:
    records = [healthy(step) for step in range(6)] + [healthy(step, **change) for step in range(6, 20)]
    found = [alarm for _, alarm in ring(Watch(SETTINGS), records)]
    assert [(alarm.signal, alarm.stops) for alarm in found] == [(signal, stops)]
    assert (stopping(found, replace(SETTINGS, stop=True)) is not None) == stops
    assert stopping(found, SETTINGS) is None


def test_a_reward_past_its_best_rings_and_names_the_best_step() -> None:
    rewards = [0.0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0]
    found = ring(Watch(SETTINGS), [healthy(step, reward_global=r) for step, r in enumerate(rewards)])
    # Means of four: best (0.3 + 0.4 + 0.4 + 0.2) / 4 = 0.325 and (0.2 + 0.3 + 0.4 + 0.4) / 4 = 0.325 at step 6
    # from 1; 0.15, 0.05, 0.0 at steps 9, 10, 11 are more than 0.15 below it.
    assert [(step, alarm.signal, alarm.healthy_until) for step, alarm in found] == [(10, "reward_drop", 6)]


def test_a_reward_that_rises_while_diversity_falls_is_called_gamed() -> None:
    records = [healthy(step, reward_global=0.05 * step, group_diversity=1.2 * 0.9**step) for step in range(10)]
    (first, *_) = [alarm for _, alarm in ring(Watch(SETTINGS), records)]
    assert first.signal == "diversity_ratio" and "gamed" in first.text
    fallen = [healthy(step, reward_global=-0.05 * step, latent_std=0.9**step) for step in range(10)]
    assert all("gamed" not in alarm.text for _, alarm in ring(Watch(SETTINGS), fallen))


def test_the_truth_never_decides() -> None:
    records = [healthy(step) | {"checker_exact": 1.0 - 0.1 * step} for step in range(10)]
    assert ring(Watch(SETTINGS), records) == []


def test_a_resumed_watch_goes_on_where_it_was() -> None:
    records = [healthy(step, latent_std=1.0 - 0.02 * step, reward_global=0.1 * (step % 3)) for step in range(12)]
    whole = ring(Watch(SETTINGS), records)
    for cut in range(len(records)):
        before = Watch(SETTINGS)
        found = ring(before, records[:cut])
        after = Watch(SETTINGS, json.loads(json.dumps(before.state(), allow_nan=False)))
        assert found + ring(after, records[cut:]) == whole


def test_what_is_not_known_is_passed_over() -> None:
    watch = Watch(SETTINGS)
    for step in range(10):
        unknown = {"reward_global": float("nan"), "group_diversity": float("nan")}
        figures, alarms = watch.see({"step": step + 1, "latent_std": 1.0} | unknown)
        assert figures == {"latent_std_ratio": 1.0} and alarms == []


def test_checkers_by_name() -> None:
    prompt = next(enumerate_prompts("color", "train"))
    with pytest.raises(UserError, match="watch.checker=pixels: .*use one of shapes"):
        load_checker("pixels")
    blank = torch.zeros(1, 3, 64, 64)
    assert load_checker("shapes")([prompt.to_prompt("a")], blank) == [False]
