"""The console script `srum-ds`. Reads arguments, prints results; the work is done elsewhere.

Modules that take long to import (torch above all) are imported inside the commands that need
them, so that `srum-ds --help` and mistyped arguments answer at once.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from srum_ds import __version__
from srum_ds.commands.model import ask, generate, inspect
from srum_ds.commands.rollouts import rescore, rollout
from srum_ds.common.errors import UserError, guarded

if TYPE_CHECKING:
    from srum_ds.prompts.shards import SplitReport

WRONG_INPUT = 2

app = App(
    name="srum-ds",
    version=__version__,
    help="Post-train a unified multimodal model with its own judgement (SRUM) on DeepSpeed.",
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable=()),
)
shards_app = App(name="shards", help="Write and check prompt shards.")
config_app = App(name="config", help="Show what a run would be configured with.")
app.command(shards_app)
app.command(config_app)
app.command(rollout)
app.command(rescore)


@app.command
def train(*arguments: str, launcher_args: str = "", dry_run: bool = False) -> int:
    """Train, or go on where the run stands: starts `deepspeed launch/train.sh`.

    Parameters
    ----------
    arguments
        [RECIPE] [key=value ...]: a recipe (without one launch/recipes/tiny.yaml) and settings on top of it.
    launcher_args
        The DeepSpeed launcher's own flags in one word, such as --launcher-args="--num_gpus 4".
    dry_run
        Print the launcher's command line and stop.
    """
    from srum_ds.commands.launcher import build_command, build_environment, has_cuda, run_command
    from srum_ds.config import check_world, load_config, split_arguments

    recipe, overrides = split_arguments(arguments)
    cfg = load_config(recipe, overrides)
    flags = shlex.split(launcher_args)
    command = build_command(cfg, recipe, overrides, flags)
    if "--num_gpus" in command[: len(command) - len(flags)]:
        # Nobody else says how many ranks there are, so a bad number can be told before they start.
        check_world(cfg, cfg.deepspeed.ranks)
    if dry_run:
        print(shlex.join(command))
        return 0
    return run_command(command, build_environment(os.environ, cfg.deepspeed.ranks, has_cuda()))


@app.command(name="eval")
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


@app.command
def ablate(
    *arguments: str,
    seeds: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    out: Path = Path("benchmarks/ablation"),
    runs: Path = Path("runs/ablation"),
    jobs: int = 1,
) -> int:
    """Train and evaluate a list of recipes over several seeds; one table as Markdown, JSON and a plot.

    Whatever is finished in the runs' folders is not done again, and a half-done run goes on where it stands.
    All are measured on the prompts and with the sampler that the first recipe's eval.* name.

    Parameters
    ----------
    arguments
        FILE... [key=value ...]: recipes, and settings of all of them. FILE:key=value:key=value is a recipe with
        settings of its own, in a row of its own.
    seeds
        Seeds of each recipe (0 1 2 without).
    out
        Folder of the table.
    runs
        Folder that holds a folder for each run.
    jobs
        Runs at once, with one rank each unless deepspeed.ranks says otherwise.
    """
    from srum_ds.evaluation.ablation import ablate as run

    # What follows the numbers of --seeds is taken for seeds by the reader of the command line.
    words = ["0", "1", "2"] if seeds is None else seeds
    numbers = [int(word) for word in words if word.isdecimal()]
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: give at least 1.")
    return run([*arguments, *(word for word in words if not word.isdecimal())], numbers, out, runs, jobs)


@app.command
def calibrate(
    *arguments: str,
    readouts: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    labels: Path | None = None,
    threshold: float = 0.5,
    out: Path = Path("runs/calibration"),
    processes: int = 1,
) -> None:
    """Compare readouts of the judge with labels: AUC, rank correlation, reliability, seconds a picture.

    Parameters
    ----------
    arguments
        [RECIPE] [key=value ...], as for train: the model and what it is asked. eval.prompts prompts of eval.split
        are drawn and labelled by the independent checker.
    readouts
        logprob, likelihood, generate (all of them without), each perhaps with settings of its own, such as
        generate:judge.think=true.
    labels
        Instead of drawing: a tar, or a folder of tars, of pictures with scores of humans or of another judge.
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


for command in (generate, ask, inspect):
    app.command(command)


@shards_app.command(name="write")
def shards_write(
    kind: str,
    source: Path | None = None,
    *,
    out: Path,
    shard_size: int = 2000,
    seed: int = 0,
    sizes: dict[str, int] | None = None,
    force: bool = False,
) -> None:
    """Write a prompt set as shards, and check them.

    Parameters
    ----------
    kind
        shapes (drawn), or compbench, srum, geneval (read from your checkout of that project).
    source
        File or folder of the public prompt set.
    out
        Folder of the shards.
    shard_size
        Prompts a tar.
    seed
        Seeds the prompts of shapes.
    sizes
        Prompts of each split of shapes, such as --sizes.train 4002 --sizes.test 1200.
    force
        Replace splits that are there.
    """
    from srum_ds.commands.shards import write

    _print_reports(out, write(kind, source, out, shard_size, seed, sizes, force))


@shards_app.command(name="check")
def shards_check(folder: Path) -> None:
    """Check every shard of a folder byte for byte against its index.

    Parameters
    ----------
    folder
        Folder of the shards.
    """
    from srum_ds.commands.shards import check

    _print_reports(folder, check(folder))


@config_app.command(name="show")
def config_show(*arguments: str) -> None:
    """Print the whole configuration, defaults included, as a recipe.

    Parameters
    ----------
    arguments
        [RECIPE] [key=value ...], as for train.
    """
    from omegaconf import OmegaConf

    from srum_ds.config import load_config, plain_config, split_arguments

    recipe, overrides = split_arguments(arguments)
    print(OmegaConf.to_yaml(OmegaConf.create(plain_config(load_config(recipe, overrides)))), end="")


@config_app.command(name="schema")
def config_schema() -> None:
    """Print a JSON Schema of recipes, for editors."""
    from srum_ds.config import config_schema as schema

    print(json.dumps(schema(), indent=2))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `srum-ds` with ``arguments`` (without: the process's) and returns its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: app(words, exit_on_error=False, result_action="return_value"))


def _print_reports(folder: Path, reports: Mapping[str, SplitReport]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=str(folder))
    for name in ("split", "shards", "prompts", "bytes", "categories"):
        table.add_column(name, justify="left" if name in ("split", "categories") else "right")
    for split, report in reports.items():
        kinds = ", ".join(f"{name} {count}" for name, count in report.categories.items())
        table.add_row(split, f"{report.shards:,}", f"{report.prompts:,}", f"{report.bytes:,}", kinds)
    Console().print(table)
