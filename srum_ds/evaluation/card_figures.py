"""What was measured of exported weights, for their model card: tables with standard errors, and a picture.

A figure is shown only where the weights that it was measured on are the exported ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from srum_ds.common.errors import UserError
from srum_ds.common.files import GENERATION, file_bytes, write_atomic
from srum_ds.common.texts import parse_json
from srum_ds.evaluation.compare import COMPARISON
from srum_ds.evaluation.gallery import benchmark_gallery, picture_of, save_gallery
from srum_ds.evaluation.model_card import CARD, EVALUATIONS, GALLERY, GRID, RESULT, TRAINED, with_measured
from srum_ds.evaluation.report import table_rows, verdict
from srum_ds.evaluation.result_tables import judge_line, with_error
from srum_ds.evaluation.results import OVERALL, read_results
from srum_ds.evaluation.scored import RESULTS

_HEADINGS = ("category", "n", "base", "trained", "difference")


def refresh_card(folder: Path, results: Path, sha256: str) -> bool:
    """Puts what was measured of an exported model into its card, and its pictures beside it; whether it did.

    folder: the model's. results: where its evaluation lies, a run's folder. sha256: of the model's weights. A folder
    without a card, or with one whose marks somebody has taken out, stays.
    """
    path = folder / CARD
    try:
        text = file_bytes(path).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    found = measured(folder, results, sha256)
    changed = with_measured(text, found) if found else None
    if changed is None:
        return False
    write_atomic(path, changed)
    return True


def measured(folder: Path, run_dir: Path, sha256: str) -> str:
    """What was measured of these weights, as Markdown, its gallery written beside the card; empty for nothing."""
    parts: list[str] = []
    result = _result(run_dir, sha256)
    grid: Image.Image | None = None
    if result is not None:
        parts.append(_held_out(result) + _drawn_otherwise(folder, result["settings"]))
        grid = picture_of(run_dir / GRID)
    benchmarks = list(_benchmarks(folder, run_dir, sha256))
    if benchmarks:
        parts.append(_benchmark_table([row for row, _ in benchmarks]))
        grid = grid or benchmark_gallery(benchmarks[0][1])
    if not parts:
        return ""
    if grid is not None:
        save_gallery(folder / GALLERY, grid)
        said = "Base and trained model on the same prompts and seeds: each category's first, whatever they look like."
        parts.insert(0, f"![base beside trained]({GALLERY})\n\n{said}")
    return "\n\n".join(parts)


# ---- figures


def _result(run_dir: Path, sha256: str) -> Mapping[str, Any] | None:
    """``result.json`` where it is of these weights."""
    try:
        found = parse_json(file_bytes(run_dir / RESULT))
        return found if found["settings"]["trained_sha256"] == sha256 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _held_out(result: Mapping[str, Any]) -> str:
    lines = [f"{verdict(result).capitalize()}.", "", "| " + " | ".join(_HEADINGS) + " |", "|---|---:|---:|---:|---:|"]
    for row in table_rows(result):
        cells = [f"**{cell}**" for cell in row] if row[0] == OVERALL else row
        lines.append("| " + " | ".join(cells) + " |")
    split, checker = result["settings"].get("split", ""), result["settings"].get("benchmark", "shapes")
    lines += [
        "",
        f"Share of images that show exactly what was asked for, by the checker `{checker}`, which reads pixels; split "
        f"`{split}`, seed {result['seed']}. ± is one standard error over prompts; the difference is paired.",
    ]
    return "\n".join(lines)


def _benchmarks(folder: Path, run_dir: Path, sha256: str) -> Iterator[tuple[list[str], Path]]:
    """(a row of the table, the folder) of each benchmark whose trained side are these weights."""
    for path in sorted((run_dir / EVALUATIONS).glob(f"*/{TRAINED}/{RESULTS}")):
        scored = path.parent.parent
        try:
            trained = read_results(scored / TRAINED)
            compared = parse_json(file_bytes(scored / COMPARISON))
            overall = compared["figures"][OVERALL]
            if (trained["drawn"] or {}).get("weights_sha256") != sha256:
                continue
            full = compared["full"]
            base, own = (with_error(mean, full) for mean in overall["means"])
            difference = with_error(overall["differences"][0], full, True)
            part = "" if trained["complete"] else " (a part of it)"
            name, judge = f"{trained['benchmark']}{part}", judge_line(trained["judge"])
            judge += "; it failed its canary: do not believe it" if trained["canary"]["passed"] is False else ""
            name += " *" if _drawn_otherwise(folder, trained["drawn"]["sampling"]) else ""
            row = [name, str(overall["n"]), base, own, difference, judge]
        except (OSError, UserError, ValueError, KeyError, TypeError, IndexError):
            # An evaluation that was not finished, or whose base was not drawn, compares nothing.
            continue
        yield row, scored


def _benchmark_table(rows: list[list[str]]) -> str:
    headings = ("benchmark", "n", "base", "trained", "difference", "judge")
    lines = ["| " + " | ".join(headings) + " |", "|---|---:|---:|---:|---:|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    said = "± is one standard error, clustered by prompt; differences are paired."
    if any(row[0].endswith(" *") for row in rows):
        said += f" * drawn with other settings than {GENERATION} has."
    return "\n".join([*lines, "", said])


def _drawn_otherwise(folder: Path, sampling: Mapping[str, Any]) -> str:
    """A sentence naming the sampler's settings of an evaluation that are not those that the export says; or nothing."""
    try:
        own = parse_json(file_bytes(folder / GENERATION))["sampling"]
        other = [f"{name} {sampling[name]}" for name in own if name in sampling and sampling[name] != own[name]]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" It was drawn with other settings than {GENERATION} has: {', '.join(other)}." if other else ""
