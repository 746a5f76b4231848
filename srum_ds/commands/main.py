"""The console script `srum-ds`: one module of this room for each command, put together here.

Modules that take long to import (torch above all) are imported inside the commands that need them, so that
`srum-ds --help` and mistyped arguments answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App, ArgumentCollection, Parameter

from srum_ds import __version__
from srum_ds.commands.ablate import ablate
from srum_ds.commands.ask import ask
from srum_ds.commands.calibrate import calibrate
from srum_ds.commands.check_adapter import check_adapter
from srum_ds.commands.compare import compare
from srum_ds.commands.completion import completion_of
from srum_ds.commands.doctor import doctor
from srum_ds.commands.evaluate import app as eval_app
from srum_ds.commands.export import export
from srum_ds.commands.generate import generate
from srum_ds.commands.init import init
from srum_ds.commands.inspect import inspect
from srum_ds.commands.plan import plan
from srum_ds.commands.push import push
from srum_ds.commands.replay import replay
from srum_ds.commands.report import report
from srum_ds.commands.rescore import rescore
from srum_ds.commands.rollout import rollout
from srum_ds.commands.runs import runs
from srum_ds.commands.shards import app as shards_app
from srum_ds.commands.show import show
from srum_ds.commands.show_config import app as config_app
from srum_ds.commands.train import train
from srum_ds.common.errors import guarded
from srum_ds.common.texts import at_home


def expand_home(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Takes ``~`` in every path that a command is given for the home folder: shells leave it after ``--out=``."""
    for argument in arguments:
        if "Path" in str(argument.hint):
            argument.tokens = [token.evolve(value=at_home(token.value)) for token in argument.tokens]


app = App(
    name="srum-ds",
    config=expand_home,
    version=__version__,
    help="Post-train a unified multimodal model with its own judgement (SRUM) on DeepSpeed.",
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable=()),
)
app.command(eval_app)
app.command(replay)
app.command(push)
app.command(export)
app.command(completion_of(app))
for command in (train, init, plan, ablate, compare, calibrate, rollout, rescore, generate, ask, inspect, check_adapter):
    app.command(command)
app.command(report)
app.command(runs)
app.command(show)
app.command(doctor)
app.command(shards_app)
app.command(config_app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `srum-ds` with ``arguments`` (without: the process's) and returns its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Of the ranks that a launcher starts with the same words, one says what is wrong with them.
    first = os.environ.get("RANK", "0") == "0"
    return guarded(lambda: app(words, exit_on_error=False, print_error=first, result_action="return_value"))
