"""``srum-ds eval RUN --benchmark NAME``: the base and the trained model draw, both are scored, and are compared.

The pictures lie in RUN/eval/NAME/base and RUN/eval/NAME/trained. Repeated, it draws and asks only for what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.evaluation.draw_folder import draw_folders
from srum_ds.evaluation.draw_request import DrawOptions, DrawRequest, PromptChoice, draw_request
from srum_ds.evaluation.score_request import Failures, JudgeChoice, ScoreRequest
from srum_ds.monitoring.run_folder import CONFIG

FOLDER = "eval"
BASE, TRAINED = "base", "trained"

Score = Callable[[ScoreRequest], object]
Compare = Callable[[Path, Path], object]
"""Compares two scored folders: (base, trained)."""


def evaluate_benchmark(
    run: Path,
    choice: PromptChoice,
    options: DrawOptions,
    judge: JudgeChoice,
    score: Score,
    compare: Compare,
    failures: Failures = "exclude",
    srum_compat: bool = False,
) -> None:
    """Draws on all ranks; rank 0 then has both folders scored (``score``) and compared (``compare``).

    Raises UserError for a folder that is no finished run, before anything is drawn, and as drawing and scoring do.
    """
    folders = benchmark_folders(run, choice.benchmark)

    def plan() -> list[DrawRequest]:
        if not (run / CONFIG).is_file():
            raise UserError(
                f"{run} holds no run (no {CONFIG}): a bare model has no base to compare with; draw with `srum-ds eval "
                f"draw {run} --benchmark {choice.benchmark} --out DIR`, then `srum-ds eval score DIR`"
            )
        judge.check()
        return [draw_request(run, base, choice, options, folders[base]) for base in (True, False)]

    if not draw_folders(plan):
        return
    for folder in folders.values():
        score(ScoreRequest(folder, choice, judge, failures, srum_compat))
    compare(folders[True], folders[False])


def benchmark_folders(run: Path, benchmark: str) -> dict[bool, Path]:
    """Where a run's pictures of a benchmark lie: True: those of the base, False: those of the trained model."""
    # A benchmark may be named file.py:NAME.
    name = re.sub(r"[^\w.-]+", "-", benchmark).strip("-.")
    return {True: run / FOLDER / name / BASE, False: run / FOLDER / name / TRAINED}
