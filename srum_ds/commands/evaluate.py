"""`srum-ds eval`: a run against the model that it started from; `eval draw` and `eval score`: any pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App, Parameter

from srum_ds.commands.evaluate_options import Drawn, Judging, Prompts, one_folder, settings_behind, split_words
from srum_ds.commands.json_output import Json, one_object
from srum_ds.commands.understanding import understanding
from srum_ds.common.errors import UserError

if TYPE_CHECKING:
    from srum_ds.evaluation.score_request import ScoreRequest

app = App(
    name="eval",
    help="Evaluate a run, or draw and score the pictures of a benchmark.",
    default_parameter=Parameter(negative_iterable=()),
)
PROMPTS, DRAWN, JUDGING = Prompts(), Drawn(), Judging()


@app.default
def evaluate(
    *arguments: str,
    recipe: Path | None = None,
    if_checkable: bool = False,
    processes: int | None = None,
    cache: bool = True,
    step: int | None = None,
    benchmark: str | None = None,
    out: Path | None = None,
    prompts: Prompts = PROMPTS,
    drawn: Drawn = DRAWN,
    judging: Judging = JUDGING,
    json_: Json = False,
) -> None:
    """Draw held-out prompts with the base and the trained model of a run and compare them.

    With --benchmark the prompts are the benchmark's, and --judge says who scores the pictures; the options of
    `eval draw` and `eval score` apply, and a model's folder may stand in the place of RUN.

    Parameters
    ----------
    arguments
        [RUN] [key=value ...]: the run's folder (runs/tiny without one) and eval.* settings.
    recipe
        Instead of RUN: the recipe the run was trained by; the settings are then those of the training.
    if_checkable
        Where eval.benchmark cannot check the run's prompts, say so and what can, and end well.
    processes
        Drawing processes (default: one per core, or one per GPU).
    cache
        Take the base's images from an earlier evaluation.
    step
        The checkpoint of this step instead of the trained model (eval.weights=live: not its average); the results are
        written to RUN/exports/step_000040_ema_eval.
    benchmark
        Which benchmark, such as compbench or geneval.
    out
        Folder of the benchmark's pictures (default: RUN/eval/BENCHMARK; in it base and trained).
    """
    words = [*arguments, *settings_behind(prompts, drawn)]
    _check(processes)
    if benchmark is not None:
        if step is not None:
            raise UserError("--step and --benchmark: `srum-ds export RUN --step N`, and give that folder as RUN.")
        with one_object(json_) as tell:
            found = _evaluate_benchmark(words, recipe, benchmark, out, processes, prompts, drawn, judging)
            if found["scores"]:
                # Of the ranks that a launcher has started, one scores.
                tell({"command": "eval", "benchmark": benchmark, **found})
        return
    if out is not None or (prompts, drawn, judging) != (PROMPTS, DRAWN, JUDGING):
        raise UserError("--out, prompts, pictures and judges are those of a benchmark: name it by --benchmark.")
    # Under a launcher it spreads its images over processes of its own: one rank does it all.
    if os.environ.get("RANK", "0") == "0":
        from srum_ds.evaluation.evaluate import evaluate_run, evaluation_request

        run, overrides = evaluation_request(words, recipe)
        if if_checkable and (told := _uncheckable(run, overrides)) is not None:
            with one_object(json_) as tell:
                print(told)
                tell({"command": "eval", "run_dir": str(run), "result": None, "why": told})
            return
        with one_object(json_) as tell:
            folder, results = (None, run) if step is None else _of_checkpoint(run, step, overrides)
            result = evaluate_run(run, overrides, processes, cache, model=folder, out=results)
            tell({"command": "eval", "run_dir": str(run), "step": step, "out": str(results), "result": result})


def _uncheckable(run: Path, overrides: list[str]) -> str | None:
    from srum_ds.evaluation.run_words import uncheckable
    from srum_ds.monitoring.run_folder import load_run

    return uncheckable(load_run(run, overrides), run)


def _of_checkpoint(run: Path, step: int, overrides: list[str]) -> tuple[Path, Path]:
    """A checkpoint as a model folder, and the folder of its results."""
    from srum_ds.evaluation.run_export import exported
    from srum_ds.monitoring.run_folder import load_run

    folder = exported(run, step, load_run(run, overrides).eval.weights)
    return folder, folder.with_name(f"{folder.name}_eval")


def _evaluate_benchmark(
    words: list[str],
    recipe: Path | None,
    benchmark: str,
    out: Path | None,
    processes: int | None,
    prompts: Prompts,
    drawn: Drawn,
    judging: Judging,
) -> dict[str, Any]:
    """Returns, on the rank that scored, what the scored folders and a run's comparison say."""
    from srum_ds.evaluation.evaluate import evaluation_request
    from srum_ds.evaluation.evaluate_benchmark import evaluate_benchmark
    from srum_ds.evaluation.score import compare_folders, score_folder
    from srum_ds.monitoring.run_folder import CONFIG

    folders, settings = split_words(words)
    judge = judging.choice(_judge(judging, benchmark))
    if recipe is None and folders and Path(folders[0]).is_dir() and not (Path(folders[0]) / CONFIG).is_file():
        source, settings = one_folder(words, "folder of a run or of a model")
    else:
        source, settings = evaluation_request(words, recipe)
    scores: dict[str, Any] = {}
    comparison: list[Any] = []

    def score(request: ScoreRequest) -> None:
        scores[str(request.folder)] = score_folder(request)

    evaluate_benchmark(
        source,
        prompts.choice(benchmark),
        drawn.options(settings),
        judge,
        score,
        lambda base, trained: comparison.append(compare_folders(base, trained)),
        out,
        judging.failures,
        judging.srum_compat,
        processes,
    )
    return {"source": str(source), "scores": scores, "comparison": comparison[0] if comparison else None}


@app.command
def draw(
    *arguments: str,
    benchmark: str,
    out: Path,
    base: bool = False,
    processes: int | None = None,
    prompts: Prompts = PROMPTS,
    drawn: Drawn = DRAWN,
) -> None:
    """Draw a benchmark's pictures into a folder, by all ranks where a launcher has started some.

    Repeated, it draws what is missing. The pictures are the same whatever the number of ranks and processes.

    Parameters
    ----------
    arguments
        RUN|MODEL [key=value ...]: a run's folder and eval.* settings, or a model's folder and settings of its sampler.
    benchmark
        Which benchmark, such as compbench or geneval.
    out
        Folder of the pictures.
    base
        Draw with the model that the run started from.
    processes
        Drawing processes of a rank (default: one per core, or one per GPU).
    """
    from srum_ds.evaluation.draw_folder import draw_folders
    from srum_ds.evaluation.draw_request import draw_request

    source, words = one_folder([*arguments, *settings_behind(prompts, drawn)], "folder of a run or of a model")
    _check(processes)
    choice, options = prompts.choice(benchmark), drawn.options(words)
    draw_folders(lambda: [draw_request(source, base, choice, options, out)], processes)


@app.command
def score(
    folder: Path,
    /,
    *,
    benchmark: str,
    prompts: Prompts = PROMPTS,
    judging: Judging = JUDGING,
    json_: Json = False,
) -> None:
    """Score a folder of pictures by a benchmark, also one that another tool made.

    Repeated, it asks the judge only for what is missing.

    Parameters
    ----------
    folder
        Folder of the pictures.
    benchmark
        Which benchmark, such as compbench or geneval.
    """
    from srum_ds.evaluation.score import score_folder
    from srum_ds.evaluation.score_request import ScoreRequest

    judge = judging.choice(_judge(judging, benchmark))
    request = ScoreRequest(folder, prompts.choice(benchmark), judge, judging.failures, judging.srum_compat)
    with one_object(json_) as tell:
        scores = {str(folder): score_folder(request)}
        tell({"command": "eval score", "benchmark": benchmark, "scores": scores})


def _check(processes: int | None) -> None:
    if processes is not None and processes < 1:
        raise UserError(f"--processes {processes}: give at least 1.")


def _judge(judging: Judging, benchmark: str) -> str:
    """The judge's kind; where none is named, the benchmark itself if it needs nobody else."""
    from srum_ds.evaluation.benchmarks import Asks, load_benchmark

    if judging.judge is not None:
        return judging.judge
    if isinstance(load_benchmark(benchmark).grading, Asks):
        raise UserError(f"--benchmark {benchmark} asks a judge: give --judge http, transformers, self or replay.")
    return "checker"


app.command(understanding)
