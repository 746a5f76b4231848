"""`srum-ds compare`: several runs on the pictures that they share, paired; or by what was looked at during training."""

from __future__ import annotations

from pathlib import Path


def compare(*runs: Path, out: Path = Path("compare"), benchmark: str = "", any_judge: bool = False) -> None:
    """Compare runs with the first one: evaluated ones paired by prompt and sample, in one table and one report.html.

    Where a run has no evaluation yet, all are compared by their held-out figures and rewards during training, and what
    is missing is said.

    Parameters
    ----------
    runs
        Folders that `srum-ds eval score` scored, or runs; one evaluated run alone is compared with the base that it
        started from.
    out
        Folder of compare.json and report.html.
    benchmark
        Which one, where a run was measured on several.
    any_judge
        Compare figures of different judges too; the report then says so.
    """
    from srum_ds.evaluation.run_report.side_by_side import compare_by_training, not_evaluated

    if not_evaluated(runs):
        compare_by_training(runs, out)
        return
    from srum_ds.evaluation.compare import compare as run

    run(*runs, out=out, benchmark=benchmark, any_judge=any_judge)
