"""Shows what ``srum-ds calibrate --localise`` measured as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WAYS = {
    "crops": "each region's own crop",
    "listed": "listed boxes, a question each",
    "written": "listed boxes, one written reply",
    "whole": "the whole picture",
}
DAMAGES = {
    "blur": "blurred",
    "paint": "painted over",
    "swap": "another region of the picture instead",
    "foreign": "a region of another picture instead",
    "grey": "control: the whole picture grey",
}


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of ``localise.md`` from the content of ``localise.json``."""
    pictures = result["pictures"]
    judge = result["judge"]
    lines = [
        "# Does the judge say where?",
        "",
        f"One region of each picture is damaged. Pictures of {_source(result['source'])}; {pictures['used']} of "
        f"{pictures['looked_at']} have two or more regions that show a phrase of their prompt, "
        f"{result['regions']} regions in all. Readout: {judge['readout']}.",
        "",
        "| damage | asked about | n | other regions | failed | AUROC | in its own picture | ties | damaged one fell by "
        "| others moved by | its score before | after |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for damage, said in DAMAGES.items():
        for way, asked in WAYS.items():
            row = result["ways"][way].get(damage)
            if row is not None:
                lines.append(_row(said, asked, row))
    for way, asked in WAYS.items():
        found = result["ways"][way]
        if "not_asked" in found:
            share = f" (failed: {found['failed']:.3f} of {found['asked']})" if "failed" in found else ""
            lines += ["", f"Not measured: {asked}: {found['not_asked']}{share}."]
    lines += [
        "",
        "n: pictures. AUROC: the chance that the damaged region's score fell by more than an undamaged one's, ties "
        "half; 0.5 says nothing about where. In its own picture: the same among the regions of one picture. Ties: "
        "pairs in a picture that fell equally. Scores are in [-1, 1]. ± is one standard error, over pictures. Failed: "
        "regions without both scores, which are left out of the other figures.",
    ]
    return "\n".join(lines) + "\n"


def _source(source: Mapping[str, Any]) -> str:
    told = ", ".join(f"{key} {value}" for key, value in source.items() if key not in ("pictures_of", "model_sha256"))
    return f"{source['pictures_of']} ({told})" if told else str(source["pictures_of"])


def _row(damage: str, asked: str, row: Mapping[str, Any]) -> str:
    cells = [damage, asked, str(row["n"]), str(row["others"]), _text(row["failed"])]
    cells += [_with_error(row, name) for name in ("auc", "same_picture", "ties", "fell", "moved", "before", "after")]
    return f"| {' | '.join(cells)} |"


def _with_error(row: Mapping[str, Any], name: str) -> str:
    error = row[f"{name}_stderr"]
    if row[name] is None or not error:
        return _text(row[name])
    return f"{_text(row[name])} ± {error:.3f}"


def _text(value: float | None) -> str:
    # Plus 0.0: a rounded -0.0 is 0.
    return "-" if value is None else f"{round(value, 3) + 0.0:.3f}"
