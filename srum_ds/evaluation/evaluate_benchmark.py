"""``srum-ds eval RUN|MODEL --benchmark NAME``: draws, has the pictures scored, and compares a run's with its base's.

A run's pictures lie in RUN/eval/NAME/base and RUN/eval/NAME/trained, or below ``--out``. Repeated, it draws and asks
only for what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.config import find_path, load_config
from srum_ds.evaluation.benchmarks import load_benchmark
from srum_ds.evaluation.card_figures import refresh_card
from srum_ds.evaluation.draw_folder import draw_folders
from srum_ds.evaluation.draw_request import DrawOptions, DrawRequest, PromptChoice, draw_request
from srum_ds.evaluation.model_card import BASE, EVALUATIONS, TRAINED
from srum_ds.evaluation.picture_folder import read_drawn
from srum_ds.evaluation.run_report import write_run_report
from srum_ds.evaluation.score_request import SELF, Failures, JudgeChoice, ScoreRequest
from srum_ds.monitoring.run_folder import CONFIG, EXPORT

Score = Callable[[ScoreRequest], object]
Compare = Callable[[Path, Path], object]
"""Compares two scored folders: (base, trained)."""


def evaluate_benchmark(
    source: Path,
    choice: PromptChoice,
    options: DrawOptions,
    judge: JudgeChoice,
    score: Score,
    compare: Compare,
    out: Path | None = None,
    failures: Failures = "exclude",
    srum_compat: bool = False,
    processes: int | None = None,
) -> None:
    """Draws on all ranks; rank 0 then has the folders scored (``score``) and a run's two compared (``compare``).

    source: a run's folder, or a model's, which has nothing to be compared with. Raises UserError as drawing and scoring
    do, for a bare model without ``out``, and before anything is drawn for prompts and settings that cannot be.
    """
    is_run = (source / CONFIG).is_file()

    def plan() -> list[DrawRequest]:
        if not is_run and out is None:
            raise UserError(f"{source} is a model, no run (no {CONFIG}): say by --out where its pictures shall lie.")
        ScoreRequest(out or source, choice, judge, failures, srum_compat).check(load_benchmark(choice.benchmark))
        return [draw_request(source, base, choice, options, folder) for base, folder in folders.items()]

    folders = run_folders(source, choice.benchmark, out) if is_run else {False: out or source}
    if not draw_folders(plan, processes):
        return
    if judge.kind == SELF and not judge.model and is_run:
        # One judge for both sides: the model that the run started from, which is also who judged its training.
        judge = replace(judge, model=str(find_path(load_config(source / CONFIG, []).model.path)))
    for folder in folders.values():
        score(ScoreRequest(folder, choice, judge, failures, srum_compat))
    if is_run:
        compare(folders[True], folders[False])
        drawn = read_drawn(folders[False]) or {}
        refresh_card(source / EXPORT, source, drawn.get("weights_sha256", ""))
        write_run_report(source)


def run_folders(run: Path, benchmark: str, out: Path | None = None) -> dict[bool, Path]:
    """Where a run's pictures of a benchmark lie: True: those of its base, False: those of the trained model."""
    # A benchmark may be named file.py:NAME.
    folder = out or run / EVALUATIONS / re.sub(r"[^\w.-]+", "-", benchmark).strip("-.")
    return {True: folder / BASE, False: folder / TRAINED}
