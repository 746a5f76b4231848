"""``evaluate``: what `srum-ds eval` does, and its result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from srum_ds.api.model import Model
from srum_ds.api.trainer import TrainResult
from srum_ds.common.errors import UserError
from srum_ds.config import find_path
from srum_ds.evaluation.benchmarks import Asks, load_benchmark
from srum_ds.evaluation.draw_request import DrawOptions, PromptChoice
from srum_ds.evaluation.evaluate import evaluate_run, evaluation_request
from srum_ds.evaluation.evaluate_benchmark import evaluate_benchmark
from srum_ds.evaluation.score import compare_folders, score_folder
from srum_ds.evaluation.score_request import CHECKER, JudgeChoice, ScoreRequest
from srum_ds.monitoring.run_folder import CONFIG


def evaluate(
    run_or_model: TrainResult | Model | str | Path,
    benchmark: str | None = None,
    *,
    settings: Sequence[str] = (),
    prompts: str | Path | None = None,
    limit: int | None = None,
    categories: Sequence[str] = (),
    samples: int | None = None,
    seed: int | None = None,
    size: tuple[int, int] | None = None,
    judge: JudgeChoice | str | None = None,
    out: str | Path | None = None,
    processes: int = 1,
    cache: bool = True,
    quiet: bool = False,
) -> dict[str, Any]:
    """Evaluates a run's trained model against the one that it started from, or a model's pictures of a benchmark.

    Args:
        run_or_model: what ``Trainer.train`` returned, a run's folder; with ``benchmark`` also a model or its folder.
        benchmark: None: the run's own held-out prompts (``eval.*``), scored by ``eval.benchmark``. Else the
            benchmark's name, such as ``compbench`` or ``own``.
        settings: ``eval.key=value`` of a run, ``key=value`` of the sampler of a model, as on the command line.
        prompts, limit, categories: of a benchmark: its file or folder of prompts, at most how many, which ones.
        samples, seed, size: of a benchmark: pictures of each prompt, their seed, (height, width) in pixels.
        judge: of a benchmark that asks one: ``self``, ``http``, ``transformers``, ``replay``, or a ``JudgeChoice``
            (``srum_ds.evaluation.score_request``), which has the address and the rest.
        out: folder of a benchmark's pictures; a run has one of its own, RUN/eval/BENCHMARK.
        processes: drawing processes; above 1, a program must keep what it does under ``if __name__ == "__main__"``.
        cache: take the base's images of the run's own prompts from an earlier evaluation.
        quiet: print nothing of the run's own evaluation.

    Returns the content of ``result.json`` (a run's own prompts); of ``results.json`` (a model's benchmark); of a run's
    benchmark ``{"base": ..., "trained": ..., "compare": ...}``, the contents of both ``results.json`` and
    ``compare.json``. Everything is written where `srum-ds eval` writes it.

    Raises UserError as the command.
    """
    if processes < 1:
        raise UserError(f"processes={processes}: give at least 1")
    source = _folder(run_or_model)
    words = list(settings)
    if benchmark is None:
        alone = {"prompts": prompts, "limit": limit, "samples": samples, "seed": seed, "size": size, "judge": judge}
        given = [name for name, value in {**alone, "out": out, "categories": categories or None}.items() if value]
        if given:
            raise UserError(f"{given[0]} belongs to a benchmark: name it by benchmark='...'")
        run, chosen = evaluation_request([str(source), *words], None)
        return evaluate_run(run, chosen, processes, cache, Console(quiet=True) if quiet else None)
    scored: list[dict[str, Any]] = []
    compared: list[dict[str, Any]] = []

    def score(request: ScoreRequest) -> None:
        scored.append(score_folder(request))

    def compare(base: Path, trained: Path) -> None:
        compared.append(compare_folders(base, trained))

    choice = PromptChoice(benchmark, None if prompts is None else Path(prompts), limit, tuple(categories))
    options = DrawOptions(tuple(words), seed, samples, None, size)
    chosen_judge = _judge(judge, benchmark)
    folder = None if out is None else Path(out)
    evaluate_benchmark(source, choice, options, chosen_judge, score, compare, folder, processes=processes)
    if not compared:
        return scored[0]
    return {"base": scored[0], "trained": scored[1], "compare": compared[0]}


def _folder(run_or_model: TrainResult | Model | str | Path) -> Path:
    """The folder that is meant. UserError for a run that has not ended."""
    if isinstance(run_or_model, TrainResult):
        if run_or_model.export is None:
            raise UserError(
                f"{run_or_model.run_dir} has not finished ({run_or_model.status}): train it to its end first"
            )
        return run_or_model.run_dir
    if isinstance(run_or_model, Model):
        run = run_or_model.folder.parent
        return run if run_or_model.config is not None and (run / CONFIG).is_file() else run_or_model.folder
    return find_path(run_or_model)


def _judge(judge: JudgeChoice | str | None, benchmark: str) -> JudgeChoice:
    """Who judges; where nobody is named, the benchmark itself if it needs nobody else."""
    if isinstance(judge, JudgeChoice):
        return judge
    if judge is None and isinstance(load_benchmark(benchmark).grading, Asks):
        raise UserError(f"benchmark={benchmark!r} asks a judge: give judge='self', a JudgeChoice, or another name")
    choice = JudgeChoice(CHECKER if judge is None else judge)
    choice.check()
    return choice
