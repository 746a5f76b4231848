"""`srum-ds eval`: a run's trained model against the one that it started from."""

from __future__ import annotations

from pathlib import Path


def evaluate(*arguments: str, recipe: Path | None = None) -> None:
    """Draw held-out prompts with the base and the trained model and compare them.

    Parameters
    ----------
    arguments
        [RUN] [key=value ...]: the run's folder (runs/tiny without one) and eval.* settings.
    recipe
        Instead of RUN: the recipe the run was trained by; the settings are then those of the training.
    """
    from srum_ds.evaluation.evaluate import evaluate_run, evaluation_request

    run, overrides = evaluation_request(arguments, recipe)
    evaluate_run(run, overrides)
