"""`srum-ds report`: a run as one HTML file, made from its folder alone."""

from __future__ import annotations

from pathlib import Path


def report(run: Path, /) -> None:
    """Write RUN/report.html: whether the run works, its curves, its pictures before and after, how it was made.

    One file that needs no network, also of a run that is still running. A run writes it when it ends, and
    `srum-ds eval` writes it anew.

    Parameters
    ----------
    run
        A run's folder (run.dir), such as runs/tiny.
    """
    from srum_ds.evaluation.run_report import write_run_report

    print(f"written: {write_run_report(run)}")
