"""The tables of a scored folder as rows of text: ``eval.md``, the terminal and the report show the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from srum_ds.common.files import write_atomic
from srum_ds.evaluation.results import OVERALL
from srum_ds.evaluation.scored import MARKDOWN

HEADINGS = ("category", "n", "failed", "missing", "mean ± stderr", "95 % interval")
SELF_MARK = "†"
SELF_NOTE = "judged by the model under test itself, not by an independent judge"
FEW_PARTS = 4
NO_CATEGORY = "(no category)"


def number(value: float | None, full: float, signed: bool = False) -> str:
    """A figure with the decimals that its scale needs; a dash where it is undefined."""
    if value is None:
        return "-"
    digits = 2 if full >= 10 else 3
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def with_error(measured: Mapping[str, Any], full: float, signed: bool = False) -> str:
    """``mean ± stderr``, the mean alone where its error is unknown."""
    mean = number(measured["mean"], full, signed)
    return mean if measured["stderr"] is None else f"{mean} ± {number(measured['stderr'], full)}"


def between(measured: Mapping[str, Any], full: float, signed: bool = False) -> str:
    """``low to high`` of an interval, a dash where it is unknown."""
    ends = measured["interval"]
    return "-" if ends is None else " to ".join(number(end, full, signed) for end in ends)


def label(category: str) -> str:
    """A category as a table names it."""
    return category or NO_CATEGORY


def judge_line(judge: Mapping[str, Any]) -> str:
    """The judge in words, marked where it is the model under test."""
    text = f"{judge['kind']}: {judge['model']}" if judge["model"] else str(judge["kind"])
    return f"{text} ({SELF_NOTE})" if judge["under_test"] else text


def figure_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Rows under ``HEADINGS``: each category, then each figure, overall last."""
    full, mark = results["full"], SELF_MARK if results["judge"]["under_test"] else ""
    named = [(label(name), measured) for name, measured in results["by_category"].items()]
    figures = [(figure_label(results, name), found) for name, found in results["figures"].items() if name != OVERALL]
    named += [*figures, (OVERALL, results["overall"])]
    return [_row(name, measured, full, mark) for name, measured in named]


def part_tables(results: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, Mapping[str, Any], str]]]]:
    """(title, rows of (name, measured, "leaf" or "sum")): all parts, then each by category where these are few.

    With one category, or with many parts, the tables by category stay in ``results.json``.
    """
    if not results["parts"]:
        return []
    tables = [("Parts", [(name, part["figures"][OVERALL], "leaf") for name, part in results["parts"].items()])]
    for name, part in results["parts"].items():
        if 1 < len(part["by_category"]) and len(results["parts"]) <= FEW_PARTS:
            rows = [(label(leaf), found, "leaf") for leaf, found in part["by_category"].items()]
            rows += [(figure_label(results, figure), found, "sum") for figure, found in part["figures"].items()]
            tables.append((name, rows))
    return tables


def figure_label(results: Mapping[str, Any], name: str) -> str:
    """A figure as a table names it, apart from a leaf category of the same name (CompBench's complex)."""
    return f"{name}, averaged" if name in results["by_category"] else name


def published_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of this result beside the published ones, with their sources; no rows where there are none."""
    if not results["published"]:
        return [], []
    known = {name for row in results["published"] for name in row["figures"]}
    own = {**results["by_category"], **results["figures"], OVERALL: results["overall"]}
    # The name of a figure may be that of a category too, as complex is: the figure is what a paper reports.
    columns = [name for name in own if name in known and name != OVERALL]
    columns += [
        name for name in dict.fromkeys(n for row in results["published"] for n in row["figures"]) if name not in own
    ]
    columns.append(OVERALL)
    mark = SELF_MARK if results["judge"]["under_test"] else ""
    full = results["full"]
    rows = [["this folder", *(number(own[n]["mean"], full) + mark if n in own else "-" for n in columns), ""]]
    for row in results["published"]:
        rows.append([row["model"], *(number(row["figures"].get(name), full) for name in columns), row["source"]])
    return ["model", *map(label, columns), "source"], rows


def remarks(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know before the table, the gravest first: whole sentences."""
    said = []
    canary = results["canary"]
    if canary["passed"] is False:
        wrong = [case for case in canary["cases"] if not case["passed"]]
        said.append(
            f"The judge failed {len(wrong)} of {len(canary['cases'])} canary questions: do not believe these scores."
        )
    if results["judge"]["under_test"]:
        said.append(f"Every score here was {SELF_NOTE}.")
    overall = results["overall"]
    if overall["lacks"]:
        names = ", ".join(map(label, overall["lacks"]))
        verb = "overall is of the other categories alone" if overall["partial"] else "there is no overall"
        if overall["partial"] and sum(overall["weights"].values()) < 0.999:
            verb = "overall is of the others, complex counted as 0 as the released scripts do"
        said.append(f"No answer in {names}: {verb}.")
    lacking = _not_asked(results)
    if lacking and not results["partial"]:
        named = ", ".join(map(label, lacking))
        said.append(f"The prompts have nothing in {named}: overall is not comparable with published rows.")
    if results["missing"]:
        said.append(f"{_are(len(results['missing']))} missing from the folder.")
    if results["partial"]:
        chosen = results["partial"]
        what = [f"the categories {', '.join(chosen['categories'])}"] if chosen["categories"] else []
        what += [f"the first {chosen['limit']} prompts"] if chosen["limit"] is not None else []
        said.append(f"Only a part was chosen ({' and '.join(what)}): not comparable with published rows.")
    if results["failures"]:
        said.append(
            f"{results['failures']} of {results['pictures']} pictures have no score; they are "
            f"{results['failures_count']}."
        )
    if canary["passed"] is None:
        said.append("No canary was asked: nothing here shows that the judge looks at the pictures.")
    return said


def reading(results: Mapping[str, Any]) -> str:
    """How the errors are meant, and what difference this n can show."""
    text = (
        "± is one standard error, clustered by prompt: pictures of a prompt, and prompts of the same text, count as "
        "one. Intervals are 95 % bootstrap intervals over prompts."
    )
    smallest = results["power"]["smallest_difference"]
    if smallest is not None:
        text += (
            f" The smallest difference between two unpaired runs of this size that would be found four times in five: "
            f"{number(smallest, results['full'])}."
        )
    return text


def markdown(results: Mapping[str, Any]) -> str:
    """The content of ``eval.md``."""
    lines = [f"# {cell(results['benchmark'])}, version {cell(results['version'])}", ""]
    lines += [f"Judge: {cell(judge_line(results['judge']))}. n = {results['n']}, scale 0 to {results['full']:g}.", ""]
    for remark in remarks(results):
        lines += [f"> {cell(remark)}", ">"]
    if lines[-1] == ">":
        lines[-1] = ""
    lines += table(HEADINGS, figure_rows(results), bold=OVERALL)
    if results["judge"]["under_test"]:
        lines += ["", f"{SELF_MARK} {SELF_NOTE}."]
    lines += ["", reading(results)]
    mark = SELF_MARK if results["judge"]["under_test"] else ""
    for title, named in part_tables(results):
        rows = [_row(name, measured, results["full"], mark) for name, measured, _ in named]
        lines += ["", f"## {cell(title)}", "", *table(HEADINGS, rows, bold=OVERALL)]
    headings, rows = published_rows(results)
    if rows:
        lines += ["", "## Beside published rows", "", *table(headings, rows)]
    cases = results["canary"]["cases"]
    if cases:
        told = [[case["what"], "passed" if case["passed"] else "FAILED", case["reply"]] for case in cases]
        lines += ["", "## Canary", "", *table(("case", "verdict", "reply"), told)]
    if results["notice"]:
        lines += ["", cell(results["notice"])]
    return "\n".join(lines) + "\n"


def write_markdown(folder: Path, results: Mapping[str, Any]) -> None:
    """Writes ``DIR/eval.md`` in one step."""
    write_atomic(folder / MARKDOWN, markdown(results))


def screen_table(results: Mapping[str, Any]) -> Table:
    """The table for a terminal."""
    title = f"{results['benchmark']} {results['version']}, judge {judge_line(results['judge'])}"
    shown = Table(title=escape(title))
    for position, heading in enumerate(HEADINGS):
        shown.add_column(heading, justify="left" if position == 0 else "right")
    for row in figure_rows(results):
        shown.add_row(*map(escape, row), style="bold" if row[0] == OVERALL else "")
    return shown


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], bold: str = "") -> list[str]:
    """Lines of a Markdown table; the row that begins with ``bold`` is set bold."""
    lines = ["| " + " | ".join(map(cell, headings)) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    for row in rows:
        cells = [cell(text) for text in row]
        if bold and row[0] == bold:
            cells = [f"**{text}**" if text else "" for text in cells]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def cell(text: str) -> str:
    """Text that stays in its cell and starts no tag: a judge's reply may hold anything."""
    flat = " ".join(text.split())
    return flat.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")


def _not_asked(results: Mapping[str, Any]) -> list[str]:
    """Categories of the published rows that the prompts of this result do not have."""
    own = {*results["by_category"], *results["figures"], *results["parts"]}
    return list(dict.fromkeys(name for row in results["published"] for name in row["figures"] if name not in own))


def _are(count: int) -> str:
    return "1 picture is" if count == 1 else f"{count} pictures are"


def _row(name: str, measured: Mapping[str, Any], full: float, mark: str) -> list[str]:
    counts = [str(measured[key]) for key in ("n", "failures", "missing")]
    mean = with_error(measured, full)
    return [name, *counts, f"{mean} {mark}".rstrip(), between(measured, full)]
