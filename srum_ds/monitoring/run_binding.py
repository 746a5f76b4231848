"""Which run a checkpoint belongs to: digests of its settings and inputs, kept in the checkpoint's own sealed state.

``config.yaml`` and ``inputs.json`` lie beside the checkpoints and may be changed by hand, and a checkpoint may be
copied into another run's folder. What it was made with is said by itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.config import Config
from srum_ds.config.changes import STEPS, is_free, steps_decide
from srum_ds.config.loading import FORMER_BOUND, flat_config
from srum_ds.config.marks import PathOrName, TemplateName
from srum_ds.config.messages import marks
from srum_ds.config.reading import known_keys
from srum_ds.monitoring.run_inputs import read_inputs

BINDING = "settings"
"""Its key in a checkpoint's extra state."""
_CONTENTS = "contents of "
_LETTERS = 16


def binding_of(run_dir: Path, cfg: Config) -> dict[str, str]:
    """Digest of each setting that decides what the weights become, and of the contents of each input."""
    settings = {key: _digest(_plain(key, value)) for key, value in flat_config(cfg).items() if _counts(cfg, key)}
    inputs, _ = read_inputs(run_dir)
    return settings | {_CONTENTS + key: digest[:_LETTERS] for key, digest in inputs.items()}


def refuse_foreign(run_dir: Path, cfg: Config, step: int, extra: Mapping[str, Any]) -> None:
    """Raises UserError naming what differs where a checkpoint was made with other settings or inputs than these.

    So it does for one of a step that the run does not have.

    step, extra: the checkpoint's. One of a version that bound none passes, a setting that either version does not know
    does, and so do inputs whose change was accepted since.
    """
    if step > cfg.train.steps:
        raise UserError(
            f"{run_dir} holds a checkpoint of step {step}, beyond train.steps={cfg.train.steps}: it is of another run. "
            "Nothing was touched: take it away, or choose another run.dir."
        )
    kept = extra.get(BINDING)
    differ = differing(run_dir, cfg, kept) if isinstance(kept, dict) else []
    if differ:
        raise UserError(
            f"the checkpoint of step {step} in {run_dir} was made with other settings or inputs than this run has: "
            f"{', '.join(differ)}. It was copied from another run, or the run's config.yaml or inputs.json was changed "
            "since. Nothing was touched: put back what belongs there, or choose another run.dir."
        )


def differing(run_dir: Path, cfg: Config, kept: Mapping[str, str]) -> list[str]:
    """What is not as it was when ``kept`` was made by ``binding_of``, by key; see ``refuse_foreign``."""
    _, former = read_inputs(run_dir)
    return [
        key
        for key, digest in binding_of(run_dir, cfg).items()
        if key in kept
        and kept[key] != digest
        and not any(known.startswith(str(kept[key])) for known in former.get(key.removeprefix(_CONTENTS), ()))
    ]


def _counts(cfg: Config, key: str) -> bool:
    """Whether a setting is bound: not what may change, a path, whose contents are an input, or a secret."""
    if cfg.reads_environment(key) or is_free(key) or key == "model.kind":
        return False
    if key == STEPS and not steps_decide(cfg):
        # More of them change nothing of those that are taken.
        return False
    return not any(isinstance(mark, PathOrName | TemplateName) for mark in marks(known_keys()[key]))


def _plain(key: str, value: Any) -> Any:
    return None if key == "objective.bound" and value == FORMER_BOUND else value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:_LETTERS]
