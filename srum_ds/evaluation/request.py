"""Which run `srum-ds eval` means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.config import COMMAND_LINE, load_config, split_arguments


def evaluation_request(arguments: Sequence[str], recipe: Path | None) -> tuple[Path, list[str]]:
    """Which run `srum-ds eval` means, and the evaluation settings that were given with it.

    ``arguments`` are ``[RUN] [key=value ...]``. With ``recipe`` they are the words a training run was
    started with, and the run is that recipe's ``run.dir``; without, the run is RUN (or the default
    recipe's) and only ``eval.*`` may be set. Returns the run's folder and the ``eval.*`` overrides.

    Raises UserError for other settings, and for a folder that holds no run.
    """
    words = list(arguments)
    named = words.pop(0) if words and "=" not in words[0] else None
    default, overrides = split_arguments(words)
    if recipe is not None and named is not None:
        raise UserError(f"'{named}' names a run and --recipe names another: give one of them.")
    chosen = [word for word in overrides if word.split("=")[0].strip().split(".")[0] == "eval"]
    fixed = [word for word in overrides if word not in chosen]
    if recipe is None and fixed:
        raise UserError(
            f"{fixed[0]} {COMMAND_LINE}: a run that is there keeps its settings, and only eval.* can be "
            "chosen anew. (With --recipe, give the words the training was started with.)"
        )
    run = Path(load_config(recipe or default, overrides).run.dir if named is None else named)
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} holds no run (no config.yaml): train one first, with `srum-ds train`.")
    load_config(run / "config.yaml", chosen)
    return run, chosen
