"""Finds what was measured of the runs that ``compare`` is given, whichever way they were evaluated."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes
from srum_ds.common.texts import parse_json
from srum_ds.config import load_config
from srum_ds.evaluation.benchmarks import equal_shares
from srum_ds.evaluation.report import RESULT
from srum_ds.evaluation.results import Score, read_results, read_scores
from srum_ds.evaluation.scored import RESULTS
from srum_ds.monitoring.run_folder import CONFIG
from srum_ds.prompts.prompt_set import prompt_folder
from srum_ds.prompts.reader import PromptReader
from srum_ds.types import Prompt

OUTCOMES = "outcomes.json"
SCORED_RUNS = "eval"
BASE = "base"
TRAINED = "trained"


@dataclass(frozen=True)
class Compared:
    """One side of a comparison. results: as ``results.json`` has it; notes: what a reader must know of it."""

    name: str
    folder: Path
    results: dict[str, Any]
    scores: list[Score]
    notes: tuple[str, ...] = ()


def compared_sides(runs: Sequence[Path], benchmark: str = "") -> list[Compared]:
    """What each run is worth; of one run alone, its base and itself. Names tell the runs apart.

    Raises UserError for a folder without a score, for one scored folder alone, and for a run with several benchmarks
    where ``benchmark`` does not say which.
    """
    if not runs:
        raise UserError("nothing to compare: give two scored folders or runs, or one run (base against trained)")
    if len(runs) == 1:
        if (runs[0] / RESULTS).is_file():
            raise UserError(f"{runs[0]}: one scored folder alone; give another one to compare it with")
        return [_side(runs[0], BASE, benchmark, BASE), _side(runs[0], TRAINED, benchmark, TRAINED)]
    return [_side(run, name, benchmark, TRAINED) for run, name in zip(runs, _names(runs), strict=True)]


def _names(runs: Sequence[Path]) -> list[str]:
    """As much of each path's end as it takes to tell them apart; the same folder twice is numbered."""
    # abspath: links that lead in a circle, or a NUL, are for the reader of the folder to complain about.
    parts = [Path(os.path.abspath(run)).parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(set(parts)):
            break
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return numbered


def _side(run: Path, name: str, benchmark: str, which: str) -> Compared:
    if (run / RESULTS).is_file():
        return Compared(name, run, read_results(run), read_scores(run))
    scored = sorted(path.parent.parent.name for path in run.glob(f"{SCORED_RUNS}/*/{which}/{RESULTS}"))
    checked = (run / RESULT).is_file() and (run / OUTCOMES).is_file()
    if benchmark in scored or (not benchmark and len(scored) == 1 and not checked):
        folder = run / SCORED_RUNS / (benchmark or scored[0]) / which
        return Compared(name, folder, read_results(folder), read_scores(folder))
    if checked:
        side = _checked(run, name, which)
        if benchmark in ("", side.results["benchmark"]) and (benchmark or not scored):
            return side
        scored = [side.results["benchmark"], *scored]
    if scored:
        wanted = f"not with {benchmark}" if benchmark else "with several benchmarks"
        raise UserError(f"{run}: was measured {wanted}; choose with --benchmark one of {', '.join(scored)}")
    raise UserError(
        f"{run}: holds neither {RESULTS} of a scored folder nor {RESULT} and {OUTCOMES} of an evaluated run: "
        f"use `srum-ds eval {run}` for a run, or `srum-ds eval score {run}` for pictures"
    )


def _checked(run: Path, name: str, which: str) -> Compared:
    """A run that was measured from pixels: 0 or 1 for each prompt."""
    result, outcomes = _read(run / RESULT), _read(run / OUTCOMES)
    try:
        settings, seed = result["settings"], result["seed"]
        pairs = list(zip(outcomes["prompts"], outcomes[which], strict=True))
        split = settings.get("split", "")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{run}: {RESULT} and {OUTCOMES} do not fit ({error!r}); repeat `srum-ds eval {run}`") from None
    prompts, notes = _prompts(run, split, name)
    scores = []
    for prompt_id, value in pairs:
        prompt = prompts.get(prompt_id, Prompt(prompt_id, ""))
        scores.append(Score(prompt_id, 0, prompt.category, prompt.text, "", float(value)))
    categories = list(dict.fromkeys(score.category for score in scores))
    # Overall is the plain mean over prompts there, so that each category counts by its number of prompts.
    counts = Counter(score.category for score in scores)
    weights = {category: counts[category] / len(scores) for category in categories}
    hidden = ("base_model", "base_sha256", "trained_sha256", "base_from_cache", "judge")
    drawn = {key: value for key, value in settings.items() if key not in hidden} | {"seed": seed}
    results = {
        "benchmark": settings.get("benchmark", "shapes"),
        "version": "",
        "full": 1.0,
        "judge": {"kind": "checker", "model": settings.get("benchmark", "shapes"), "under_test": False},
        "failure_rule": "exclude",
        "srum_compat": False,
        "canary": {"passed": True, "cases": []},
        "drawn": drawn,
        "by_category": dict.fromkeys(categories),
        "figures": {figure.name: {"weights": weights} for figure in equal_shares(categories)},
    }
    return Compared(name, run, results, scores, tuple(notes))


def _prompts(run: Path, split: str, name: str) -> tuple[dict[str, Prompt], list[str]]:
    """The prompts by id where the run's shards are still there, and otherwise a word about it."""
    try:
        with PromptReader(prompt_folder(load_config(run / CONFIG)), split) as reader:
            return {prompt.id: prompt for prompt in reader}, []
    except UserError as error:
        return {}, [f"The prompts of {name} are not at hand, so no categories are told apart ({error})."]


def _read(path: Path) -> Any:
    try:
        return parse_json(file_bytes(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
