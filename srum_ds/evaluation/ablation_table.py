"""Makes one table of the outcomes of many runs: JSON, Markdown and a plot. ``ablation`` calls it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from srum_ds.common.files import write_atomic
from srum_ds.evaluation.report import without_nan
from srum_ds.evaluation.statistics import Estimate, estimate, paired_difference

JSON_NAME = "ablation.json"
MARKDOWN_NAME = "ablation.md"
PLOT_NAME = "ablation.png"
HEADINGS = ("recipe", "seeds", "exact success", "against the base", "against the first", "images", "seconds")


@dataclass(frozen=True)
class RunOutcome:
    """One evaluated run.

    base, trained: 1 where a prompt's image is exact, else 0; the same prompts and seeds in all runs.
    images: images drawn to train on. seconds: spent in training steps. stopped_by_watch: whether
    the watch ended the run early.
    """

    recipe: str
    seed: int
    base: Sequence[int]
    trained: Sequence[int]
    images: int
    seconds: float
    stopped_by_watch: bool = False


def build_table(
    outcomes: Sequence[RunOutcome],
    best_of_8: Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    failed: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of ``ablation.json``; rows in the order in which the recipes first occur.

    {"base": {"mean", "stderr", "n"}, "best_of_8": likewise or None, "rows": [{"recipe", "seeds", "mean",
    "stderr", "images", "seconds", "per_seed", "difference", "gap_closed", "against_first", ...}]}.

    A row's ``stderr`` is over seeds (None for one seed), the base's and best_of_8's over prompts. Both
    kinds stand beside each difference: ``stderr_seeds`` over seeds, and ``stderr_prompts`` over prompts,
    the seeds' outcomes of a prompt averaged first and the difference paired by prompt. ``z`` is the
    difference over the larger of the two. ``against_first`` is the first row's mean minus this row's, over
    the seeds both have. ``images`` and ``seconds`` are of one run, the mean over seeds.

    best_of_8: outcome of each prompt when the base draws 8 images and its own judge picks one.
    Raises ValueError where runs disagree about the base: they were not measured alike.
    """
    if not outcomes:
        return {"base": None, "best_of_8": None, "rows": [], "failed": list(failed), "settings": dict(settings or {})}
    base = list(outcomes[0].base)
    if any(list(outcome.base) != base for outcome in outcomes):
        raise ValueError("the runs were not compared with the same images of the base")
    rows: dict[str, list[RunOutcome]] = {}
    for outcome in outcomes:
        rows.setdefault(outcome.recipe, []).append(outcome)
    gap = estimate(best_of_8).mean - estimate(base).mean if best_of_8 is not None else math.nan
    first = next(iter(rows.values()))
    table = {
        "base": _plain(estimate(base)),
        "best_of_8": None if best_of_8 is None else _plain(estimate(best_of_8)),
        "rows": [_row(name, runs, first, gap) for name, runs in rows.items()],
        "failed": list(failed),
        "settings": dict(settings or {}),
    }
    return dict(without_nan(table))


def _row(name: str, runs: Sequence[RunOutcome], first: Sequence[RunOutcome], gap: float) -> dict[str, Any]:
    means = [float(np.mean(run.trained)) for run in runs]
    over_seeds = estimate(means)
    delta = {run.seed: np.subtract(run.trained, run.base) for run in runs}
    difference = _difference(delta)
    row: dict[str, Any] = {
        "recipe": name,
        "seeds": [run.seed for run in runs],
        "mean": over_seeds.mean,
        "stderr": over_seeds.stderr,
        "images": round(float(np.mean([run.images for run in runs]))),
        "seconds": round(float(np.mean([run.seconds for run in runs])), 1),
        "per_seed": means,
        "difference": difference,
        "gap_closed": difference["mean"] / gap if gap > 0 else math.nan,
        "stopped_by_watch": [run.seed for run in runs if run.stopped_by_watch],
    }
    theirs = {run.seed: run.trained for run in first}
    if first is not runs:
        common = {run.seed: np.subtract(theirs[run.seed], run.trained) for run in runs if run.seed in theirs}
        row["against_first"] = _difference(common) if common else None
    return row


def _difference(by_seed: Mapping[int, np.ndarray]) -> dict[str, Any]:
    """Mean of per-prompt differences with both kinds of standard error."""
    values_SP = np.stack(list(by_seed.values())).astype(float)
    seeds: Estimate = estimate(values_SP.mean(axis=1))
    prompts = paired_difference(np.zeros(values_SP.shape[1]), values_SP.mean(axis=0))
    larger = max(e.stderr for e in (seeds, prompts) if not math.isnan(e.stderr)) if values_SP.size > 1 else math.nan
    z = Estimate(seeds.mean, larger, seeds.n).z
    return {
        "mean": seeds.mean,
        "stderr_seeds": seeds.stderr,
        "stderr_prompts": prompts.stderr,
        "z": z,
        "seeds": list(by_seed),
    }


def write_table(folder: Path, table: Mapping[str, Any], command: str = "") -> None:
    """Writes ``ablation.json``, ``ablation.md`` and ``ablation.png`` into the folder, each in one step."""
    write_atomic(folder / JSON_NAME, json.dumps(table, indent=2, allow_nan=False) + "\n")
    write_atomic(folder / MARKDOWN_NAME, markdown(table, command))
    if table["rows"]:
        write_atomic(folder / PLOT_NAME, plot(table))


def cells(table: Mapping[str, Any]) -> list[list[str]]:
    """Rows of text under ``HEADINGS``: the base, best of 8, then each recipe."""
    found = []
    for key, name in (("base", "base"), ("best_of_8", "base, best of 8 by its own judge")):
        if table[key]:
            found.append([name, "", _pm(table[key]["mean"], table[key]["stderr"]), "", "", "", ""])
    for row in table["rows"]:
        note = f" (stopped by the watch: {row['stopped_by_watch']})" if row["stopped_by_watch"] else ""
        found.append(
            [
                row["recipe"] + note,
                str(len(row["seeds"])),
                _pm(row["mean"], row["stderr"]),
                _both(row["difference"]),
                _both(row.get("against_first")),
                f"{row['images']:,}",
                f"{row['seconds']:,.0f}",
            ]
        )
    return found


def screen_table(table: Mapping[str, Any]) -> Table:
    """The table for a terminal."""
    shown = Table(title="exact success of trained models")
    for number, heading in enumerate(HEADINGS):
        shown.add_column(heading, justify="left" if number == 0 else "right")
    for row in cells(table):
        # As texts: rich would read a list among a recipe's settings, lora.targets=[q_proj], as markup.
        shown.add_row(*map(Text, row))
    return shown


def markdown(table: Mapping[str, Any], command: str = "") -> str:
    """The table as Markdown, with how to read it and what one needs to repeat it."""
    lines = ["# Ablation", ""]
    if command:
        lines += ["```", command, "```", ""]
    lines += ["| " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * (len(HEADINGS) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in cells(table)]
    lines += [
        "",
        "Exact success: the share of held-out prompts whose image shows exactly what was asked for, as judged "
        "from pixels by a checker without any learned part. ± of a recipe is one standard error over its seeds, of "
        "the base and its best of 8 over prompts. A difference has two: over seeds, then over prompts (paired: the "
        'same prompt, the same seed). "Against the first" is the first recipe minus this one, seed by seed. Images '
        "and seconds are of one run: images drawn to train on, and time spent in training steps.",
    ]
    if table["failed"]:
        lines += ["", "Without a result: " + "; ".join(table["failed"]) + "."]
    if table["settings"]:
        lines += ["", "| setting | value |", "|---|---|"]
        lines += [f"| {key} | `{value}` |" for key, value in table["settings"].items()]
    return "\n".join(lines) + "\n"


def plot(table: Mapping[str, Any]) -> bytes:
    """PNG: each recipe's mean and standard error over seeds, its seeds as dots, base and best of 8 as lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(table["rows"])
    figure = Figure(figsize=(8, 1.4 + 0.45 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, name, colour in (("base", "base", "0.35"), ("best_of_8", "best of 8, picked by its own judge", "C2")):
        if table[key]:
            mean, stderr = table[key]["mean"], table[key]["stderr"] or 0.0
            axes.axvline(mean, color=colour, label=name)
            axes.axvspan(mean - stderr, mean + stderr, color=colour, alpha=0.15, linewidth=0)
    for place, row in enumerate(rows):
        axes.errorbar(row["mean"], place, xerr=row["stderr"] or 0.0, fmt="o", color="C0", capsize=4)
        axes.plot(row["per_seed"], [place + 0.22] * len(row["per_seed"]), ".", color="C0", alpha=0.5)
    axes.set_yticks(range(len(rows)), [row["recipe"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("exact success on held-out prompts (bar: standard error over seeds)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.6 / (1 + 0.45 * len(rows))), ncols=2, frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def _plain(value: Estimate) -> dict[str, Any]:
    return {"mean": value.mean, "stderr": value.stderr, "n": value.n}


def _pm(mean: float, stderr: float | None) -> str:
    return f"{mean:.3f}" if stderr is None else f"{mean:.3f} ± {stderr:.3f}"


def _both(difference: Mapping[str, Any] | None) -> str:
    if not difference:
        return ""
    errors = [difference["stderr_seeds"], difference["stderr_prompts"]]
    return f"{difference['mean']:+.3f} ± " + " / ".join("?" if error is None else f"{error:.3f}" for error in errors)
