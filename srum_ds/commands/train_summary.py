"""What `srum-ds train --json` prints when the ranks have ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from srum_ds.common.errors import HUNG, STOPPED, STOPPED_BY_WATCH, UserError
from srum_ds.common.files import file_bytes
from srum_ds.common.texts import parse_json

_MEANS = ("loss", "reward_global", "reward_local", "grad_norm")
_STEPS = 10
_ENDED = {0: "finished", STOPPED: "stopped", STOPPED_BY_WATCH: "stopped by the watch", HUNG: "hung"}
_PATHS = ("config.yaml", "metrics.jsonl", "export", "result.json", "report.html", "stopped_by_watch.json")


def train_summary(run_dir: Path, steps: int, status: int) -> dict[str, Any]:
    """A run as its folder shows it: how it ended, its first and last steps, and where everything is.

    steps: ``train.steps``. status: the job's exit status. Means are over the steps of a group that have the figure, at
    most ten of them; null where none has. UserError for metrics that cannot be read.
    """
    records = _records(run_dir / "metrics.jsonl")
    times = [sum(value for key, value in line.items() if key.startswith("time_")) for line in records]
    newest = max((run_dir / "checkpoints").glob("step_??????"), default=None)
    paths = {name.partition(".")[0]: run_dir / name for name in _PATHS}
    result = paths["result"]
    return {
        "command": "train",
        "status": status,
        "ended": _ENDED.get(status, "failed"),
        "run_dir": str(run_dir),
        "steps": {"done": len(records), "wanted": steps},
        "seconds": round(sum(times), 3),
        "first_steps": _means(records[:_STEPS]),
        "last_steps": _means(records[-_STEPS:]),
        "last_step": records[-1] if records else None,
        "result": _parsed(result) if result.is_file() else None,
        "paths": {
            **{name: str(path) if path.exists() else None for name, path in paths.items()},
            "checkpoint": None if newest is None else str(newest),
        },
    }


def _means(records: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    known = {key: [line[key] for line in records if line.get(key) is not None] for key in _MEANS}
    return {"steps": len(records), **{key: fmean(values) if values else None for key, values in known.items()}}


def _records(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return [parse_json(line) for line in file_bytes(path).splitlines() if line.endswith(b"}")]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); the run itself is as it was.") from error


def _parsed(path: Path) -> Any:
    try:
        return parse_json(file_bytes(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); `srum-ds eval` writes it anew.") from error
