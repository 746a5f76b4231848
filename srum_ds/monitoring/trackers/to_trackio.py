"""Trackio (https://huggingface.co/docs/trackio). Local (``TRACKIO_DIR``) unless ``TRACKIO_SPACE_ID`` names a Space."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srum_ds.monitoring.trackers.protocol import TrackerRun, need


class TrackioTracker:
    """One run of Trackio, the same again where a run of ours goes on. UserError where trackio is not installed."""

    def __init__(self, run: TrackerRun) -> None:
        try:
            import trackio
        except ImportError as error:
            raise need("trackio", "trackio") from error
        self._trackio: Any = trackio
        # Names tell runs apart there: two folders of one name are two runs.
        place = hashlib.sha256(str(run.folder.resolve()).encode()).hexdigest()[:6]
        self._run: Any = trackio.init(
            project=run.project,
            name=f"{run.name}-{place}",
            config=dict(run.settings),
            resume="allow" if run.start else "never",
            embed=False,
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See ``Tracker``."""
        self._run.log(dict(figures), step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        """See ``Tracker``."""
        self._run.log({f"samples/{name}": self._trackio.Image(str(path))}, step=step)

    def close(self) -> None:
        """See ``Tracker``."""
        self._run.finish()
