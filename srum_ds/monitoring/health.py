"""The watch over a run: warns when label-free metrics leave their range while the self-reward looks fine.

A model that is rewarded by its own judgement may learn to please the judge, or feed back its own errors,
while the reward looks fine. The watch compares label-free figures with what they were in the run's first
steps, warns, and can end the run (``watch.stop``). A checker that knows the truth may report beside it
(``watch.checker``); it is never asked whether to stop. docs/watch.md says what is healthy.

Everything decided here is decided on figures that all ranks share, and so by all ranks alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from srum_ds.config.schema import WatchConfig as Settings

# What is compared with the first steps.
COMPARED = ("latent_std", "group_diversity", "grad_norm", "reward_global")


@dataclass(frozen=True)
class Alarm:
    """A figure that has been out of its range for ``watch.patience`` steps.

    signal: its name. text: one line for the user. healthy_until: the last step, counted from 1, before
    it left its range. stops: whether it may end a run.
    """

    signal: str
    text: str
    healthy_until: int
    stops: bool


class Watch:
    """Sees the record of every step in order; its ``state`` goes into checkpoints.

    settings: the recipe's ``watch.*``. state: what ``state()`` gave at the step the run goes on from.
    """

    def __init__(self, settings: Settings, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self.settings = settings
        self._first: dict[str, list[float]] = {k: list(v) for k, v in state.get("first", {}).items()}
        self._recent: dict[str, list[float]] = {k: list(v) for k, v in state.get("recent", {}).items()}
        self._out: dict[str, int] = dict(state.get("out", {}))
        self._best_reward = float(state.get("best_reward", -math.inf))
        self._best_step = int(state.get("best_step", 0))

    def state(self) -> dict[str, Any]:
        """JSON-able: what is remembered of the steps so far."""
        return {
            "first": self._first,
            "recent": self._recent,
            "out": self._out,
            # JSON knows no infinity.
            "best_reward": self._best_reward if math.isfinite(self._best_reward) else -1e9,
            "best_step": self._best_step,
        }

    def see(self, record: Mapping[str, float]) -> tuple[dict[str, float], list[Alarm]]:
        """Takes in a step's figures; returns ratios to add to them, and the alarms that begin with this step.

        record: ``step`` (from 1) and, where known, ``latent_std``, ``group_diversity``, ``grad_norm``,
        ``reward_global``, ``reward_std_zero_share``. One that is absent or not finite is passed over.
        """
        s = self.settings
        step = int(record["step"]) - 1
        known = {k: float(record[k]) for k in (*COMPARED, "reward_std_zero_share") if _finite(record.get(k))}
        for key in COMPARED:
            if key in known and len(self._first.setdefault(key, [])) < s.first_steps:
                self._first[key].append(known[key])
        for key in known:
            window = s.reward_smoothing if key == "reward_global" else s.smoothing
            self._recent[key] = [*self._recent.get(key, []), known[key]][-window:]
        recent = {key: fmean(self._recent[key]) for key in known}
        figures = {}
        ranges = []
        for key, name, low, high in (
            ("latent_std", "latent_std_ratio", s.min_std_ratio, s.max_std_ratio),
            ("group_diversity", "diversity_ratio", s.min_diversity_ratio, math.inf),
            ("grad_norm", "grad_growth", 0.0, s.max_grad_growth),
        ):
            if key in known:
                figures[name] = recent[key] / max(fmean(self._first[key]), 1e-12)
                if len(self._first[key]) == s.first_steps:
                    ranges.append((name, figures[name], low, high, step, True))
        if "reward_std_zero_share" in known:
            ranges.append(
                ("reward_std_zero_share", recent["reward_std_zero_share"], 0.0, s.max_zero_share, step, False)
            )
        enough = min(s.first_steps, s.reward_smoothing)
        if "reward_global" in known and len(self._recent["reward_global"]) >= enough:
            smooth = recent["reward_global"]
            if smooth > self._best_reward:
                self._best_reward, self._best_step = smooth, step + 1
            figures["reward_drop"] = self._best_reward - smooth
            ranges.append(("reward_drop", figures["reward_drop"], 0.0, s.max_reward_drop, self._best_step, True))
        alarms = [alarm for entry in ranges if (alarm := self._judge(*entry, now=step)) is not None]
        return figures, alarms

    def _judge(
        self, name: str, value: float, low: float, high: float, healthy: int, stops: bool, *, now: int
    ) -> Alarm | None:
        """An alarm when the value has just been out of its range for so many steps."""
        inside = low <= value <= high
        self._out[name] = 0 if inside else self._out.get(name, 0) + 1
        if self._out[name] != self.settings.patience:
            return None
        side = f"below {low:g}" if value < low else f"above {high:g}"
        if name != "reward_drop":
            # Neither that step nor any that was averaged with it was out.
            healthy = now + 1 - self.settings.patience - (self.settings.smoothing - 1)
        text = f"watch: {name} is {value:.3f}, {side} for {self.settings.patience} steps up to step {now + 1}"
        return Alarm(name, f"{text}; {self._reward_says()}", max(0, healthy), stops)

    def _reward_says(self) -> str:
        """What the self-reward did meanwhile: risen, it is being gamed."""
        first, recent = (source.get("reward_global", []) for source in (self._first, self._recent))
        if not first or not recent:
            return "the self-reward is not known"
        before, after = fmean(first), fmean(recent)
        if after > before:
            return f"the self-reward rose meanwhile, {before:+.3f} to {after:+.3f}: it may be gamed"
        return f"the self-reward went {before:+.3f} to {after:+.3f}"


def stopping(alarms: Sequence[Alarm], settings: Settings) -> Alarm | None:
    """The alarm that ends the run, the one healthy for the shortest time first; None while it goes on."""
    ending = [alarm for alarm in alarms if alarm.stops]
    return min(ending, key=lambda alarm: alarm.healthy_until) if settings.stop and ending else None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
