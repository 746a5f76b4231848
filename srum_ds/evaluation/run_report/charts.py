"""Curves of a run as inline SVG, in the page's colours: dots, running means, the base's value and ranges.

Every chart is drawn on ``WIDTH`` x ``HEIGHT`` units and scales with its column; what it shows is said in words too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from srum_ds.common.texts import is_number
from srum_ds.evaluation.run_report.facts import RunFacts, watch_settings

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 26
SMOOTHED = 10
"""Steps over which a running mean is taken, since a step's figures depend on its prompts."""

DOTS = 400
"""Most dots of a chart; of more steps, groups of neighbours are shown by their mean."""

TABLE_ROWS = 12

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A chart to be drawn.

    dots: (step, value), drawn small; line: whether a running mean goes through them, else they are joined. errors: a
    standard error for each dot, or none. base: the value of the untrained model, and what it is, for the legend. low,
    high: limits beyond which the watch gives an alarm.
    """

    title: str
    note: str
    dots: Points
    smooth: bool = True
    errors: Sequence[float] = ()
    base: float | None = None
    base_name: str = ""
    low: float | None = None
    high: float | None = None
    form: str = ".3f"
    marks: Sequence[int] = field(default=())


def charts_of(facts: RunFacts, alarm_steps: dict[str, list[int]]) -> tuple[list[Chart], list[Chart]]:
    """The charts that say whether it works, and the further ones. alarm_steps: the alarms of each signal."""
    first: list[Chart] = []
    held = [line for line in facts.held_out if "reward" in line]
    looks = facts.looks("reward")
    if looks:
        errors = [_error(line.get("reward_se")) for line in held if is_number(line["reward"])]
        base = next((value for step, value in looks if step == 0), None)
        note = "self-reward of the same prompts at each look; bars are one standard error over prompts"
        fitting = errors if len(errors) == len(looks) else []
        first.append(Chart("Held-out reward", note, looks, False, fitting, base, "base"))
    for name in sorted({name for line in held for name in _judges(line)}):
        found = [(line["step"], float(line["judges"][name])) for line in held if name in _judges(line)]
        base = next((value for step, value in found if step == 0), None)
        first.append(Chart(f"Held-out score by {name}", "mean over the same prompts", found, False, (), base, "base"))
    exact = facts.looks("checker_exact") or facts.values("checker_exact")
    if exact:
        base = next((value for step, value in exact if step == 0), None)
        note = "share of held-out images that show exactly what was asked for, by a checker"
        first.append(Chart("Exact images", note, exact, False, (), base, "base", form=".2f"))
    for key, title, what in (
        ("reward_global", "Reward of whole images", "mean score of a step's images"),
        ("reward_local", "Reward of regions", "mean score of a step's regions"),
    ):
        first += _metric(facts, key, title, f"{what}, in [-1, 1]; each step has other prompts", "base, in step 1")
    s = watch_settings(facts.config)
    further = [
        *_metric(facts, "loss", "Loss", "mean over the tokens that count"),
        *_metric(facts, "grad_norm", "Gradient norm", "before it is scaled down"),
        *_metric(facts, "learning_rate", "Learning rate", "of the step", form=".2g"),
        *_watched(facts, "latent_std_ratio", "Spread of tokens", (s.min_std_ratio, s.max_std_ratio), alarm_steps),
        *_watched(
            facts, "diversity_ratio", "Diversity of a prompt’s images", (s.min_diversity_ratio, None), alarm_steps
        ),
        *_watched(facts, "grad_growth", "Growth of the gradient", (None, s.max_grad_growth), alarm_steps),
        *_watched(facts, "reward_drop", "Fall from the best reward", (None, s.max_reward_drop), alarm_steps),
        *_watched(
            facts, "reward_std_zero_share", "Prompts without a difference", (None, s.max_zero_share), alarm_steps
        ),
        *_metric(facts, "parse_failed_share", "Unusable answers", "share of the judge’s answers", form=".2f"),
        *_metric(
            facts, "speed_images_per_second_per_gpu", "Images per second and rank", "drawn, judged and trained on"
        ),
    ]
    names = sorted({key for line in facts.metrics for key in line if key.startswith("judge_")})
    for name in names:
        further += _metric(facts, name, f"Judge outside: {name.removeprefix('judge_')}", "mean over a step’s images")
    return first, further


def _error(value: Any) -> float:
    return abs(float(value)) if is_number(value) else 0.0


def _judges(line: dict[str, Any]) -> dict[str, Any]:
    found = line.get("judges")
    return {k: v for k, v in found.items() if is_number(v)} if isinstance(found, dict) else {}


def _metric(facts: RunFacts, key: str, title: str, note: str, base_name: str = "", form: str = ".3f") -> list[Chart]:
    values = facts.values(key)
    if not values:
        return []
    base = values[0][1] if base_name and values[0][0] == 1 else None
    return [Chart(title, note, values, True, (), base, base_name, form=form)]


def _watched(
    facts: RunFacts, key: str, title: str, limits: tuple[float | None, float | None], alarms: dict[str, list[int]]
) -> list[Chart]:
    values = facts.values(key)
    if not values:
        return []
    note = "watched: " + " and ".join(
        f"{word} {limit:g}" for word, limit in zip(("not below", "not above"), limits, strict=True) if limit is not None
    )
    low, high = limits
    return [Chart(title, note, values, False, (), None, "", low, high, ".3f", tuple(alarms.get(key, ())))]


def drawn(chart: Chart) -> dict[str, Any]:
    """A chart for the template: coordinates in its units, ticks, texts and a small table of its numbers."""
    dots = grouped(chart.dots, DOTS)
    line = running_mean(dots, SMOOTHED) if chart.smooth else list(dots)
    errors = list(chart.errors) if len(chart.errors) == len(dots) else []
    values = [value for _, value in dots]
    spread = [end for v, e in zip(values, errors, strict=bool(errors)) for end in (v - e, v + e)]
    limits = [limit for limit in (chart.base, *_near((chart.low, chart.high), values)) if limit is not None]
    low, high = _range([*(spread or values), *limits])
    first, last = dots[0][0], dots[-1][0]
    last = last if last > first else first + 1

    def x(step: float) -> float:
        return round(LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    def inside(value: float | None) -> float | None:
        return y(value) if value is not None and low <= value <= high else None

    marks = [x(step) for step in chart.marks if first <= step <= last]
    bars = [
        {"x": x(step), "low": y(value - error), "high": y(value + error)}
        for (step, value), error in zip(dots, errors, strict=bool(errors))
    ]
    ticks = [{"y": y(tick), "text": f"{tick:.6g}"} for tick in ticks_of(low, high)]
    steps = [{"x": x(tick), "text": f"{tick:g}"} for tick in ticks_of(first, last, 4) if tick == int(tick)]
    return {
        "title": chart.title,
        "note": chart.note,
        "dots": [{"x": x(step), "y": y(value), "text": f"step {step:g}: {value:{chart.form}}"} for step, value in dots],
        "line": " ".join(f"{x(step)},{y(value)}" for step, value in line) if len(line) > 1 else "",
        "smooth": chart.smooth and len(dots) > 1,
        "bars": bars,
        "base": inside(chart.base),
        "base_text": "" if chart.base is None else f"{chart.base_name} {chart.base:{chart.form}}",
        "low": inside(chart.low),
        "high": inside(chart.high),
        "marks": marks,
        "ticks": ticks,
        "steps": steps,
        "words": _words(chart, line),
        "last": f"{line[-1][1]:{chart.form}}",
        "averaged": min(SMOOTHED, len(line)) if chart.smooth and len(line) > 1 else 0,
        "table": [
            {"step": f"{step:g}", "value": f"{value:{chart.form}}"} for step, value in grouped(chart.dots, TABLE_ROWS)
        ],
        "grouped": len(chart.dots) > TABLE_ROWS,
    }


def _words(chart: Chart, line: Points) -> str:
    """What the chart shows, for who cannot see it."""
    (first, before), (last, after) = line[0], line[-1]
    text = f"{chart.title}: {before:{chart.form}} at step {first:g}, {after:{chart.form}} at step {last:g}"
    return text if chart.base is None else f"{text}; {chart.base_name} {chart.base:{chart.form}}"


def _near(limits: Sequence[float | None], values: Sequence[float]) -> list[float]:
    """The limits that lie close enough to the values to be shown without squeezing them."""
    low, high = min(values), max(values)
    room = max(high - low, 0.1 * abs(high), 1e-9)
    return [limit for limit in limits if limit is not None and low - room <= limit <= high + room]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The scale: a little beyond the values, and never of no height."""
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 0.1
    return low - pad, high + pad


def ticks_of(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers between ``low`` and ``high``: about ``count``, 1, 2, 2.5 or 5 times a power of ten apart."""
    rough = (high - low) / count
    if not math.isfinite(rough) or rough <= 0:
        return []
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    start = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(start, math.floor(high / step + 1e-9) + 1)]


def grouped(points: Points, most: int) -> list[tuple[float, float]]:
    """At most ``most`` points: where there are more, neighbours by their means, the step being the last one's."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], fmean(value for _, value in part)) for part in parts]


def running_mean(points: Points, window: int) -> list[tuple[float, float]]:
    """Each point with the mean of itself and those before it, ``window`` at most."""
    found = []
    for end in range(1, len(points) + 1):
        found.append((points[end - 1][0], fmean(value for _, value in points[max(0, end - window) : end])))
    return found
