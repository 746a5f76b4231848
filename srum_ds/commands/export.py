"""`srum-ds export`: a checkpoint of a run as a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def export(
    run: Path,
    *,
    step: int | None = None,
    weights: Literal["live", "ema", "old"] | None = None,
    out: Path | None = None,
) -> None:
    """Write the model of any checkpoint of a run in its design's released layout, in one process.

    Parameters
    ----------
    run
        The run's folder; the run may be going on.
    step
        How many steps were done (default: the newest checkpoint).
    weights
        The trained weights (live), their average that is evaluated (ema), or the one that draws (old); default:
        eval.weights.
    out
        Folder to make (default: RUN/exports/step_000040_ema). One that holds something is left as it is.
    """
    from srum_ds.evaluation.run_export import export_checkpoint

    print(export_checkpoint(run, step, weights, out))
