"""`srum-ds compare`: several runs on the pictures that they share, paired."""

from __future__ import annotations

from pathlib import Path


def compare(*runs: Path, out: Path = Path("compare"), benchmark: str = "", any_judge: bool = False) -> None:
    """Compare evaluated runs with the first one, paired by prompt and sample; one table and one report.html.

    Parameters
    ----------
    runs
        Folders that `srum-ds eval score` scored, or runs that `srum-ds eval` measured; one run alone is compared with
        the base that it started from.
    out
        Folder of compare.json and report.html.
    benchmark
        Which one, where a run was measured on several.
    any_judge
        Compare figures of different judges too; the report then says so.
    """
    from srum_ds.evaluation.compare import compare as run

    run(*runs, out=out, benchmark=benchmark, any_judge=any_judge)
