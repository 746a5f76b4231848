"""What a notebook does with `Trainer`, in one process: FOLDER SHARDS NOTEBOOK. test_python.py looks at it.

Cells are run twice, and after one that failed: so is this.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from srum_ds import Trainer, TrainResult
from srum_ds.common.errors import UserError
from tests.support.pages import cells
from tests.support.runs import short_run

# As little work as a step can be.
SMALL = (
    "train.steps=4",
    "train.timesteps_per_image=1",
    "rollout.image_size=[32,32]",
    "rollout.num_timesteps=3",
    "judge.crop_size=[28,28]",
)
SEEN: list[dict[str, Any]] = []
INTERRUPTED: list[bool] = []


def spoil(record: Mapping[str, Any]) -> None:
    """Notes a step, and does what must change nothing of the run."""
    SEEN.append(dict(record))
    if isinstance(record, dict):
        record.clear()
    torch.manual_seed(len(SEEN))
    random.seed(len(SEEN))


def fail(record: Mapping[str, Any]) -> None:
    raise RuntimeError("no more today")


def interrupt(record: Mapping[str, Any]) -> None:
    """Ctrl-C, once, as a notebook's button sends it."""
    if not INTERRUPTED:
        INTERRUPTED.append(True)
        os.kill(os.getpid(), signal.SIGINT)


def run_notebook(folder: Path, notebook: Path) -> dict[str, Any]:
    """Runs its code cells in a folder, in order and in one namespace, with one step in the place of many."""
    sources = [cell["source"] for cell in cells(notebook)]
    sources[0], changed = re.subn(r"^STEPS = \d+$", "STEPS = 1", sources[0], flags=re.MULTILINE)
    assert changed == 1
    namespace: dict[str, Any] = {}
    before = Path.cwd()
    os.chdir(folder)
    for number, source in enumerate(sources):
        exec(compile(source, f"cell {number}", "exec"), namespace)
    other = {**namespace, "prompts": [*namespace["prompts"], "a cross"]}
    try:
        exec(compile(sources[1], "cell 1", "exec"), other)
    except UserError as error:
        other["told"] = str(error)
    os.chdir(before)
    return {"cells": len(sources), "metrics": namespace["result"].metrics, "other prompts": other["told"]}


def main(folder: Path, shards: Path, notebook: Path) -> dict[str, Any]:
    """The facts that the test looks at."""

    def train(*callbacks: Any) -> TrainResult:
        recipe, *settings = short_run(shards, folder / "same", *SMALL)
        return Trainer(recipe, settings, callbacks=callbacks).train()

    facts: dict[str, Any] = {"notebook": run_notebook(folder, notebook)}
    try:
        train(fail)
    except UserError as error:
        facts["failed"] = str(error)
    facts["handlers"] = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    stopped = train(spoil, lambda record: True)
    interrupted = train(interrupt, spoil)
    finished = train(spoil)
    facts["seen"] = SEEN
    facts["calls"] = [[result.status, result.steps, str(result.export)] for result in (stopped, interrupted, finished)]
    facts["again"] = repr(train(fail))
    return facts


if __name__ == "__main__":
    found = main(*map(Path, sys.argv[1:]))
    (Path(sys.argv[1]) / "facts.json").write_text(json.dumps(found))
