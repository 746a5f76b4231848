"""`srum-ds runs`: the runs below a folder, one a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def runs(
    folder: Path = Path("runs"),
    /,
    *,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """List runs: state, steps done, reward, held-out difference, evaluation, age and size.

    Parameters
    ----------
    folder
        The folder that the runs stand in, also some folders deeper.
    json_
        Print one JSON object per run.
    """
    from rich.console import Console

    from srum_ds.evaluation.run_report.listing import list_runs, plain_lines, table_of

    found = list_runs(folder)
    if json_:
        for plain in plain_lines(found):
            print(json.dumps(plain, ensure_ascii=False, allow_nan=False))
        return
    console = Console()
    if not found:
        console.print(f"no runs below {folder}", highlight=False, markup=False)
        return
    console.print(table_of(found, console.width), crop=False)
    for line in found:
        for problem in line.problems:
            console.print(f"{line.name}: {problem}", soft_wrap=True, highlight=False, markup=False)
