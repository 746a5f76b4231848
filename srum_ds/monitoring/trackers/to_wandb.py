"""Weights & Biases (https://docs.wandb.ai). ``WANDB_MODE=offline`` keeps everything in the run's folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srum_ds.monitoring.trackers.protocol import TrackerRun, need


class WandbTracker:
    """One run of wandb, the same again where a run of ours goes on. UserError where wandb is not installed."""

    def __init__(self, run: TrackerRun) -> None:
        try:
            import wandb
        except ImportError as error:
            raise need("wandb", "wandb") from error
        self._wandb: Any = wandb
        # The folder tells runs apart: the same one again is the same run.
        name = hashlib.sha256(str(run.folder.resolve()).encode()).hexdigest()[:16]
        self._run: Any = wandb.init(
            project=run.project,
            name=run.name,
            id=name,
            resume="allow" if run.start else None,
            dir=str(run.folder),
            config=dict(run.settings),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )
        # wandb's own steps never go back, and a resumed run does; a look comes after its step.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See ``Tracker``."""
        self._run.log({**figures, "step": step})

    def image(self, step: int, name: str, path: Path) -> None:
        """See ``Tracker``."""
        self._run.log({f"samples/{name}": self._wandb.Image(str(path)), "step": step})

    def close(self) -> None:
        """See ``Tracker``."""
        self._run.finish()
