"""`srum-ds calibrate`: how well a model's judgement agrees with labels, for each readout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from srum_ds.commands.json_output import Json, one_object


def calibrate(
    *arguments: str,
    readouts: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    labels: Path | None = None,
    threshold: float = 0.5,
    out: Path = Path("runs/calibration"),
    processes: int = 1,
    localise: Annotated[bool, Parameter(negative=())] = False,
    listed: str | None = None,
    json_: Json = False,
) -> None:
    """Compare readouts of the judge with labels: AUC, rank correlation, reliability, seconds per image.

    With --localise: damage one region of each picture and see whether the judge's scores say which one.

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
        Folder of calibration.json, calibration.md and calibration.png; with --localise of localise.json and .md.
    processes
        Drawing processes.
    localise
        Ask for all regions' scores before and after one of them is damaged (blurred, painted over, swapped), each on
        its own crop, as boxes listed in a question about the whole picture, and for the whole picture's score; with a
        grey picture as the control. The readout is judge.readout. --labels: pictures and phrases are taken from there.
    listed
        --localise: question about one listed box (a template with phrase, boxes and number). Without: one of ours.
    """
    from srum_ds.common.errors import UserError
    from srum_ds.config import split_arguments
    from srum_ds.config.choices import READOUTS
    from srum_ds.evaluation.calibration import calibrate as run
    from srum_ds.evaluation.calibration_report import markdown

    if localise:
        with one_object(json_) as tell:
            found = _localise(arguments, readouts, labels, out, processes, listed)
            tell({"command": "calibrate", "out": str(out), "localise": found})
        return
    if listed is not None:
        raise UserError("--listed belongs to --localise")
    # What follows the names of --readouts is taken for names by the reader of the command line.
    words = READOUTS.names() if readouts is None else readouts
    names = [word for word in words if "=" not in word.split(":")[0]]
    recipe, overrides = split_arguments([*arguments, *(word for word in words if word not in names)])
    with one_object(json_) as tell:
        result = run(recipe, overrides, names, out, labels, threshold, processes)
        print(markdown(result), end="")
        tell({"command": "calibrate", "out": str(out), "calibration": result})


def _localise(
    arguments: Sequence[str],
    readouts: Sequence[str] | None,
    labels: Path | None,
    out: Path,
    processes: int,
    listed: str | None,
) -> Mapping[str, Any]:
    from srum_ds.common.errors import UserError
    from srum_ds.config import split_arguments
    from srum_ds.evaluation.localise_report import markdown
    from srum_ds.evaluation.localise_run import localise as run

    if readouts is not None:
        raise UserError("--localise reads the judge as judge.readout says: set that, without --readouts")
    recipe, overrides = split_arguments(arguments)
    result = run(recipe, overrides, out, labels, listed, processes)
    print(markdown(result), end="")
    return result
