"""Makes ``result.json``, ``eval.md`` and a table on the screen of the outcomes of two models.

``evaluate`` calls it, and a training run that is finished shows its result by it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from srum_ds.common.files import write_atomic
from srum_ds.common.texts import parse_json
from srum_ds.evaluation.statistics import (
    Estimate,
    auc,
    by_category,
    estimate,
    paired_difference,
    paired_interval,
)
from srum_ds.monitoring.records import METRICS, TENSORBOARD, read_metrics
from srum_ds.monitoring.usage import usage_table

RESULT = "result.json"
MARKDOWN = "eval.md"
SIDES = ("base", "trained")


@dataclass(frozen=True)
class Measured:
    """What was measured of one model's images, one entry per prompt.

    exact: 1 where an image shows exactly what was asked for, else 0. partial: credit in [0, 1].
    self_reward: the model's own global score in [-1, 1], NaN where its answer failed.
    """

    exact: Sequence[float]
    partial: Sequence[float] | None = None
    self_reward: Sequence[float] | None = None


def build_result(
    categories: Sequence[str],
    base: Measured,
    trained: Measured,
    seed: int,
    seconds: float,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of ``result.json``.

    {"base": {"overall", "stderr", "n", "by_category": {category: {"mean", "stderr", "n"}}, ...},
    "trained": likewise, "difference": {"mean", "stderr", "n", "ci95", "by_category", ...}, "seed",
    "seconds", "settings"}. ``overall`` is the share of exact images over all prompts. A side also
    has "partial", "self_reward" (with "failed", the answers left out) and "judge_auc" where known; an
    undefined figure (the error of one measurement) is None.
    """
    difference: dict[str, Any] = _plain(paired_difference(base.exact, trained.exact))
    difference["ci95"] = list(paired_interval(base.exact, trained.exact))
    deltas = [t - b for b, t in zip(base.exact, trained.exact, strict=True)]
    difference["by_category"] = _plain_table(categories, deltas)
    if base.partial is not None and trained.partial is not None:
        difference["partial"] = _plain(paired_difference(base.partial, trained.partial))
    result = {
        "base": _side(categories, base),
        "trained": _side(categories, trained),
        "difference": difference,
        "seed": seed,
        "seconds": round(seconds, 1),
        "settings": dict(settings or {}),
    }
    return dict(without_nan(result))


def write_result(run_dir: Path, result: Mapping[str, Any]) -> None:
    """Writes ``result.json`` and ``eval.md`` into the run's folder, each in one step; its TensorBoard gets both too."""
    text = markdown(result)
    write_atomic(run_dir / MARKDOWN, text)
    write_atomic(run_dir / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
    if (run_dir / TENSORBOARD).is_dir():
        # Its import takes a second, which only runs that have one are to wait for.
        from srum_ds.monitoring.tensorboard import add_evaluation

        figures = {side: result[side]["overall"] for side in SIDES} | {"difference": result["difference"]["mean"]}
        add_evaluation(run_dir, text, figures, len(read_metrics(run_dir / METRICS)))


def show_result(run_dir: Path, console: Console, measured_by: str | None = None) -> None:
    """Prints how a finished run used its devices, and its result, or how to get it.

    measured_by: the command that measures the run; None where there is none.
    """
    used = usage_table(read_metrics(run_dir / METRICS))
    if used is not None:
        console.print(used)
    path = run_dir / RESULT
    if not path.exists():
        how = "." if measured_by is None else f"; `{measured_by}` measures it."
        console.print(f"{run_dir} is finished{how}", soft_wrap=True, highlight=False, markup=False)
        return
    result = parse_json(path.read_text())
    console.print(result_table(result))
    console.print(verdict(result), soft_wrap=True, highlight=False)


def verdict(result: Mapping[str, Any]) -> str:
    """One line: both shares, the difference, and how many standard errors it is."""
    difference = Estimate(result["difference"]["mean"], _number(result["difference"]["stderr"]), 0)
    base, trained = (result[side]["overall"] for side in SIDES)
    z = difference.z
    if math.isnan(z) or abs(z) < 2:
        word = "no difference established"
    else:
        word = "better" if z > 0 else "worse"
    size = "" if math.isnan(z) else f" ({z:+.1f} standard errors)"
    return (
        f"trained {trained:.3f} against base {base:.3f} exact success on {result['base']['n']} prompts: "
        f"{difference.mean:+.3f}{size}: {word}"
    )


def table_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Rows of (what, n, base, trained, difference): each category, overall, then what else is known."""
    rows = []
    for category, base in result["base"]["by_category"].items():
        trained = result["trained"]["by_category"][category]
        difference = result["difference"]["by_category"][category]
        rows.append([category, str(base["n"]), _pm(base), _pm(trained), _pm(difference, signed=True)])
    sides = [{"mean": result[side]["overall"], "stderr": result[side]["stderr"]} for side in SIDES]
    n, delta = str(result["base"]["n"]), _pm(result["difference"], signed=True)
    rows.append(["overall", n, *map(_pm, sides), delta])
    for key, name in (("partial", "partial credit"), ("self_reward", "self-reward")):
        if all(result[side].get(key) for side in SIDES):
            base, trained = (result[side][key] for side in SIDES)
            paired = result["difference"].get(key)
            last = _pm(paired, signed=True) if paired else f"{trained['mean'] - base['mean']:+.3f}"
            counts = dict.fromkeys((str(base["n"]), str(trained["n"])))
            rows.append([name, " / ".join(counts), _pm(base), _pm(trained), last])
    if all(result[side].get("judge_auc") is not None for side in SIDES):
        aucs = [result[side]["judge_auc"] for side in SIDES]
        rows.append(["judge AUC", n, *(f"{value:.3f}" for value in aucs), f"{aucs[1] - aucs[0]:+.3f}"])
    return rows


def result_table(result: Mapping[str, Any]) -> Table:
    """The table for a terminal."""
    table = Table(title="exact success, base against trained (± standard error)")
    for position, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="left" if position == 0 else "right", no_wrap=True)
    categories = len(result["base"]["by_category"])
    for number, row in enumerate(table_rows(result)):
        style = "bold" if number == categories else ""
        table.add_row(*map(Text, row), end_section=number == categories - 1, style=style)
    return table


def markdown(result: Mapping[str, Any]) -> str:
    """The table as Markdown, with what one needs to repeat it."""
    lines = ["# Base against trained", "", verdict(result) + ".", ""]
    lines += ["| " + " | ".join(_HEADINGS) + " |", "|---|" + "---:|" * (len(_HEADINGS) - 1)]
    for row in table_rows(result):
        cells = [f"**{cell}**" for cell in row] if row[0] == "overall" else row
        lines.append("| " + " | ".join(cells) + " |")
    low, high = result["difference"]["ci95"]
    lines += [
        "",
        "Exact success: the image shows exactly the objects asked for, in the relation asked for, as "
        "judged from pixels by a checker without any learned part. ± is one standard error; the difference "
        "is paired (the same prompt, the same seed). "
        f"Its 95 % interval (bootstrap, BCa) is {low:+.3f} to {high:+.3f}.",
        "",
        f"Seed {result['seed']}, {result['seconds']:.0f} s.",
    ]
    if result["settings"]:
        lines += ["", "| setting | value |", "|---|---|"]
        lines += [f"| {key} | `{value}` |" for key, value in result["settings"].items()]
    return "\n".join(lines) + "\n"


_HEADINGS = ("category", "n", "base", "trained", "difference")


def _side(categories: Sequence[str], measured: Measured) -> dict[str, Any]:
    overall = estimate(measured.exact)
    side: dict[str, Any] = {
        "overall": overall.mean,
        "stderr": overall.stderr,
        "n": overall.n,
        "by_category": _plain_table(categories, measured.exact),
    }
    if measured.partial is not None:
        side["partial"] = _plain(estimate(measured.partial))
    if measured.self_reward is not None:
        answered = [score for score in measured.self_reward if not math.isnan(score)]
        failed = len(measured.self_reward) - len(answered)
        side["self_reward"] = {**_plain(estimate(answered)), "failed": failed} if answered else None
        side["judge_auc"] = auc(measured.self_reward, [value == 1 for value in measured.exact])
    return side


def _plain(value: Estimate) -> dict[str, Any]:
    return {"mean": value.mean, "stderr": value.stderr, "n": value.n}


def _plain_table(categories: Sequence[str], values: Sequence[float]) -> dict[str, Any]:
    return {str(name): _plain(value) for name, value in by_category(categories, values).items()}


def _pm(value: Mapping[str, Any], signed: bool = False) -> str:
    mean = f"{value['mean']:+.3f}" if signed else f"{value['mean']:.3f}"
    stderr = _number(value["stderr"])
    return mean if math.isnan(stderr) else f"{mean} ± {stderr:.3f}"


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def without_nan(value: Any) -> Any:
    """JSON knows no NaN: an undefined figure is null."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
