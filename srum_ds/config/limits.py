"""How long a rank may be in a phase of a run before the job is ended (``limits.*``)."""

from __future__ import annotations

from dataclasses import dataclass

from srum_ds.config.marks import Seconds


@dataclass(frozen=True)
class LimitsConfig:
    """A rank that stops, dies or hangs ends the job within these limits; see docs/training.md."""

    # Seconds past the longest that the rank has been in the same phase.
    grace_seconds: Seconds = 60.0
    # Seconds of a phase that it has not been in yet: loading, the first of each.
    first_seconds: Seconds = 1800.0
    # Seconds until the first step; null: what the two above say, as of the phases below.
    init: Seconds | None = None
    # Seconds of drawing, and of reading rollouts.
    rollout: Seconds | None = None
    # Seconds of judging, a judge outside included.
    judge: Seconds | None = None
    # Seconds of the passes.
    train: Seconds | None = None
    # Seconds of a checkpoint, and of the export.
    save: Seconds | None = None
