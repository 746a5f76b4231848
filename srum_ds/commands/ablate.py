"""`srum-ds ablate`: several recipes over several seeds in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from srum_ds.commands.json_output import Json, one_object
from srum_ds.common.errors import UserError


def ablate(
    *arguments: str,
    seeds: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    out: Path = Path("benchmarks/ablation"),
    runs: Path = Path("runs/ablation"),
    jobs: int = 1,
    json_: Json = False,
) -> int:
    """Train and evaluate a list of recipes over several seeds; one table as Markdown, JSON and a plot.

    Whatever is finished in the runs' folders is not done again, and a half-done run goes on where it stands.
    All are measured on the prompts and with the sampler that the first recipe's eval.* name.

    Parameters
    ----------
    arguments
        FILE... [key=value ...]: recipes, and settings of all of them. FILE:key=value:key=value is a recipe with
        settings of its own, in a row of its own.
    seeds
        Seeds of each recipe (0 1 2 without).
    out
        Folder of the table.
    runs
        Folder that holds a folder for each run.
    jobs
        Runs at once, with one rank each unless deepspeed.ranks says otherwise.
    """
    from srum_ds.common.texts import parse_json
    from srum_ds.evaluation.ablation import ablate as run

    # What follows the numbers of --seeds is taken for seeds by the reader of the command line.
    words = ["0", "1", "2"] if seeds is None else seeds
    numbers = [int(word) for word in words if word.isdecimal()]
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: give at least 1.")
    with one_object(json_) as tell:
        status = run([*arguments, *(word for word in words if not word.isdecimal())], numbers, out, runs, jobs)
        table = parse_json((out / "ablation.json").read_bytes())
        tell({"command": "ablate", "status": status, "out": str(out), "table": table})
    return status
