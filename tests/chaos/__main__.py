"""The command of `make chaos`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from rich.console import Console

from srum_ds.common.environment import ROOT
from tests.chaos.campaign import KINDS, Record, carry_out, draw
from tests.chaos.recording import LINES, RECORD, add_line, read_lines, show, told, write_record
from tests.chaos.verdict import FAILED
from tests.chaos.workshop import Workshop, open_workshop
from tests.support.ranks import server


def main(words: Sequence[str] | None = None) -> int:
    """Runs a campaign; returns 0 where no fault failed."""
    parser = argparse.ArgumentParser("make chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=100, help="how many (100)")
    parser.add_argument("--seed", type=int, default=0, help="with the number of a fault it says everything of it (0)")
    parser.add_argument("--only", nargs="+", choices=sorted(KINDS), default=[], help="kinds of fault")
    parser.add_argument("--number", type=int, nargs="+", help="these faults alone, by number")
    parser.add_argument("--jobs", type=int, default=1, help="faults at once (1)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "chaos", help="folder (runs/chaos)")
    parser.add_argument("--record", type=Path, help="file for the result (benchmarks/chaos.json where all kinds ran)")
    parser.add_argument("--resume", action="store_true", help="go on with the campaign of that folder")
    parser.add_argument("--list", action="store_true", help="show the faults and stop")
    asked = parser.parse_args(words)
    console = Console(width=None if sys.stdout.isatty() else 200)
    out = asked.out.resolve()
    numbers = asked.number or list(range(asked.faults))
    if asked.list:
        shop = Workshop(out, 5.0, 10.0, True, {}, "")
        for number in numbers:
            fault = draw(asked.seed, number, shop, asked.only)
            console.print(f"{number:4d} {fault.kind}: {fault.what}; {fault.door} x {fault.ranks}; {fault.moment}")
        return 0
    lines = out / f"seed_{asked.seed}{''.join('_' + kind for kind in sorted(asked.only))}_{LINES}"
    if not asked.resume:
        shutil.rmtree(out, ignore_errors=True)
    records = {record.number: record for record in read_lines(lines)}
    # Before there are threads: it changes this process's variables for a moment.
    server()
    shop = open_workshop(out, evaluates=not asked.only or "evaluation" in asked.only)
    console.print(f"the undisturbed run takes {shop.unit} s, an evaluation {shop.evaluation} s; faults in {out}")
    lock = Lock()

    def one(number: int) -> Record:
        record = carry_out(asked.seed, number, shop, asked.only)
        with lock:
            add_line(lines, record)
            records[number] = record
            console.print(told(record), soft_wrap=True, markup=False, highlight=False)
        return record

    with ThreadPoolExecutor(asked.jobs) as pool:
        list(pool.map(one, [number for number in numbers if number not in records]))
    found = [records[number] for number in numbers]
    show(found, console)
    record_file = asked.record or (None if asked.only or asked.number else RECORD)
    if record_file is not None:
        write_record(record_file, found, asked.seed)
        console.print(f"written: {record_file}")
    return int(any(record.outcome == FAILED for record in found))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
