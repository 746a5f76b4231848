"""`srum-ds replay`: a training step that went wrong, run again."""

from __future__ import annotations

from pathlib import Path


def replay(file: Path, *, run: Path | None = None) -> int:
    """Run a kept training step again and name the first tensor that is not finite (exit status 78; 0: all are finite).

    Parameters
    ----------
    file
        The .json of a step, which a run writes to its folder `crash`.
    run
        The run's folder, where the file was moved out of it.
    """
    from srum_ds.replay import replay as run_again

    return run_again(file, run, lambda line: print(line, flush=True))
