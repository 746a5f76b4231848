"""What a campaign found: a line for each fault as it ends, a table on the terminal, benchmarks/chaos.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from srum_ds.common.environment import ROOT, environment
from srum_ds.common.files import write_atomic
from tests.chaos.campaign import Record
from tests.chaos.verdict import FAILED, REFUSED, SAME

RECORD = ROOT / "benchmarks" / "chaos.json"
LINES = "faults.jsonl"


def read_lines(path: Path) -> list[Record]:
    """The faults that a campaign has carried out, by number; a line that a kill cut off is left out."""
    found: dict[int, Record] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = Record(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found[record.number] = record
    return [found[number] for number in sorted(found)]


def add_line(path: Path, record: Record) -> None:
    """Appends one fault."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record)) + "\n")


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row a kind, and one of all: counts, the median and the longest time to detect, the most steps lost."""
    kinds = sorted({record.kind for record in records})
    groups = [(kind, [record for record in records if record.kind == kind]) for kind in kinds] + [("all", records)]
    return [
        {
            "kind": kind,
            "faults": len(group),
            **{outcome: sum(record.outcome == outcome for record in group) for outcome in (SAME, REFUSED, FAILED)},
            "equal": sum(record.equal for record in group),
            "median_seconds_to_detect": statistics.median(record.seconds_to_detect for record in group),
            "longest_seconds_to_detect": max(record.seconds_to_detect for record in group),
            "most_steps_lost": max(record.steps_lost for record in group),
        }
        for kind, group in groups
        if group
    ]


def show(records: Sequence[Record], console: Console) -> None:
    """The table, and what failed."""
    found = rows(records)
    table = Table(title="faults and what became of them")
    for name in found[0] if found else ():
        table.add_column(name.replace("_", " "), justify="left" if name == "kind" else "right")
    for row in found:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)
    for record in records:
        if record.outcome == FAILED:
            console.print(told(record), soft_wrap=True, markup=False, highlight=False)


def told(record: Record) -> str:
    """One fault in a line."""
    moment = f" at {record.moment}" if record.moment else ""
    text = (
        f"{record.number:4d} {record.outcome:8s} {record.kind}: {record.what}{moment}; {record.door} x {record.ranks}"
    )
    text += f"; calls {record.calls}; detected in {record.seconds_to_detect} s, {record.seconds} s in all"
    return text + (f"; {record.done}" if record.done else "") + "".join(f"\n       {why}" for why in record.why)


def write_record(path: Path, records: Sequence[Record], seed: int) -> None:
    """Writes benchmarks/chaos.json: where it was made, the table, each fault."""
    content = {
        "seed": seed,
        "faults": len(records),
        "summed_seconds": round(sum(record.seconds for record in records)),
        "table": rows(records),
        "records": [asdict(record) for record in records],
        "environment": environment(world_size=1),
    }
    write_atomic(path, json.dumps(content, indent=1) + "\n")
