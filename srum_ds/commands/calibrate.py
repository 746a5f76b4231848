"""`srum-ds calibrate`: how well a model's judgement agrees with labels, for each readout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def calibrate(
    *arguments: str,
    readouts: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    labels: Path | None = None,
    threshold: float = 0.5,
    out: Path = Path("runs/calibration"),
    processes: int = 1,
) -> None:
    """Compare readouts of the judge with labels: AUC, rank correlation, reliability, seconds per image.

    Parameters
    ----------
    arguments
        [RECIPE] [key=value ...], as for train: the model and what it is asked. eval.prompts prompts of eval.split
        are drawn and labelled by the independent checker.
    readouts
        logprob, likelihood, generate (all of them without), each perhaps with settings of its own, such as
        generate:judge.think=true.
    labels
        Instead of drawing: a tar, or a folder of tars, of images with scores of humans or of another judge.
    threshold
        Smallest score of the labels that counts as good.
    out
        Folder of calibration.json, calibration.md and calibration.png.
    processes
        Drawing processes.
    """
    from srum_ds.config import split_arguments
    from srum_ds.config.choices import READOUTS
    from srum_ds.evaluation.calibration import calibrate as run
    from srum_ds.evaluation.calibration_report import markdown

    # What follows the names of --readouts is taken for names by the reader of the command line.
    words = READOUTS.names() if readouts is None else readouts
    names = [word for word in words if "=" not in word.split(":")[0]]
    recipe, overrides = split_arguments([*arguments, *(word for word in words if word not in names)])
    result = run(recipe, overrides, names, out, labels, threshold, processes)
    print(markdown(result), end="")
