"""Shows a calibration as Markdown and as a reliability plot. ``calibration`` and the command call it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

LEVELS = ("global", "local")


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of ``calibration.md`` from the content of ``calibration.json``."""
    source = result["source"]
    told = ", ".join(f"{key} {value}" for key, value in source.items() if key not in ("labels", "model_sha256"))
    lines = [
        "# Calibration of the judge",
        "",
        f"Labels: {source['labels']} ({told}).",
        "",
        "| readout | level | n | good | failed | AUC | Spearman | accuracy at 0 | calibration error |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["readouts"].items():
        for level in LEVELS:
            if level in row:
                lines.append(_level_row(name, level, row[level]))
    lines += [
        "",
        "| readout | seconds per image | seconds per crop | seconds per judged image | of the processor | global with "
        "local: Spearman | same sign |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["readouts"].items():
        agreement = row.get("agreement", {})
        cells = [
            f"`{name}`",
            _text(row["seconds_a_picture"], 4),
            _text(row.get("seconds_a_crop"), 4),
            _text(row["seconds_a_judged_picture"], 4),
            _text(row["cpu_seconds_a_judged_picture"], 4),
            _text(agreement.get("spearman")),
            _text(agreement.get("same_sign")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "± is one standard error from a bootstrap over images. Failed replies are left out of all figures but their "
        "own. Calibration error: mean distance between (score + 1) / 2 and the share of good ones, over ten bins. A "
        "crop is asked about several phrases. An image counts locally as the mean over its regions of the best score "
        "for any of the prompt's phrases.",
        "",
    ]
    for name, row in result["readouts"].items():
        for level in LEVELS:
            if level in row and row[level]["failed_replies"]:
                lines += [f"`{name}`, {level}, most frequent unusable replies:", "", "```"]
                lines += [*row[level]["failed_replies"], "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def plot(result: Mapping[str, Any], stream: BinaryIO) -> None:
    """Reliability diagrams as PNG: a column for each readout, a row for each level."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    readouts = result["readouts"]
    figure = Figure(figsize=(3.2 * len(readouts), 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(LEVELS), len(readouts), squeeze=False, sharex=True, sharey=True)
    for column, (name, row) in enumerate(readouts.items()):
        for line, level in enumerate(LEVELS):
            axis = axes[line][column]
            axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
            bins = row.get(level, {}).get("reliability", [])
            most = max((b["n"] for b in bins), default=1)
            axis.bar(
                [(b["low"] + b["high"]) / 2 for b in bins],
                [b["n"] / most * 0.25 for b in bins],
                width=0.08,
                color="0.85",
            )
            axis.plot([b["said"] for b in bins], [b["good"] for b in bins], marker="o", markersize=4)
            found = row.get(level, {}).get("auc")
            axis.set_title(f"{name}\n{level}, AUC {_text(found)}", fontsize=8)
            axis.set_xlim(0, 1)
            axis.set_ylim(0, 1.02)
            if column == 0:
                axis.set_ylabel("share that is good")
        axes[-1][column].set_xlabel("(score + 1) / 2")
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": ""})


def _level_row(name: str, level: str, row: Mapping[str, Any]) -> str:
    error = "" if row["auc_stderr"] is None else f" ± {row['auc_stderr']:.3f}"
    cells = [
        f"`{name}`",
        level,
        str(row["n"]),
        _text(row["good"]),
        _text(row["failed"]),
        _text(row["auc"]) + (error if row["auc"] is not None else ""),
        _text(row["spearman"]),
        _text(row["accuracy"]),
        _text(row["ece"]),
    ]
    return f"| {' | '.join(cells)} |"


def _text(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
