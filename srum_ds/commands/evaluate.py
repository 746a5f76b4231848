"""`srum-ds eval`: a run against the model that it started from; `eval draw` and `eval score`: any pictures."""

from __future__ import annotations

import os
from pathlib import Path

from cyclopts import App, Parameter

from srum_ds.commands.evaluate_options import Drawn, Judging, Prompts, one_folder, settings_behind, split_words
from srum_ds.commands.understanding import understanding
from srum_ds.common.errors import UserError

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
    processes: int | None = None,
    cache: bool = True,
    benchmark: str | None = None,
    out: Path | None = None,
    prompts: Prompts = PROMPTS,
    drawn: Drawn = DRAWN,
    judging: Judging = JUDGING,
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
    processes
        Drawing processes (default: one per core, or one per GPU).
    cache
        Take the base's images from an earlier evaluation.
    benchmark
        Which benchmark, such as compbench or geneval.
    out
        Folder of the benchmark's pictures (default: RUN/eval/BENCHMARK; in it base and trained).
    """
    words = [*arguments, *settings_behind(prompts, drawn)]
    _check(processes)
    if benchmark is not None:
        _evaluate_benchmark(words, recipe, benchmark, out, processes, prompts, drawn, judging)
        return
    if out is not None or (prompts, drawn, judging) != (PROMPTS, DRAWN, JUDGING):
        raise UserError("--out, prompts, pictures and judges are those of a benchmark: name it by --benchmark.")
    # Under a launcher it spreads its images over processes of its own: one rank does it all.
    if os.environ.get("RANK", "0") == "0":
        from srum_ds.evaluation.evaluate import evaluate_run, evaluation_request

        run, overrides = evaluation_request(words, recipe)
        evaluate_run(run, overrides, processes, cache)


def _evaluate_benchmark(
    words: list[str],
    recipe: Path | None,
    benchmark: str,
    out: Path | None,
    processes: int | None,
    prompts: Prompts,
    drawn: Drawn,
    judging: Judging,
) -> None:
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
    evaluate_benchmark(
        source,
        prompts.choice(benchmark),
        drawn.options(settings),
        judge,
        score_folder,
        compare_folders,
        out,
        judging.failures,
        judging.srum_compat,
        processes,
    )


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
    score_folder(ScoreRequest(folder, prompts.choice(benchmark), judge, judging.failures, judging.srum_compat))


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
