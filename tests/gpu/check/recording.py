"""benchmarks/gpu.json: the newest figures of every part, with the commit and the device that each is of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srum_ds.common.environment import ROOT
from srum_ds.common.files import write_atomic

RECORD = ROOT / "benchmarks" / "gpu.json"


def merged(
    before: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    commit: str | None,
    modified: bool | None,
    rehearsal: bool,
) -> dict[str, Any]:
    """A record with the lines of a run in it: parts that were run are replaced, the others stay as they were.

    commit, device and versions are of the newest run; each part has those that it was run with.
    """
    device = next((line["device"] for line in lines if line["device"]), None)
    versions = next((line["figures"]["versions"] for line in lines if "versions" in line["figures"]), None)
    parts = dict(before.get("parts", {}))
    for line in lines:
        kept = {key: value for key, value in line.items() if key not in ("part", "rehearsal")}
        parts[line["part"]] = {"commit": commit, "modified": modified, **kept}
    return {
        **({"rehearsal": True} if rehearsal else {}),
        "commit": commit,
        "modified": modified,
        "device": device,
        "versions": versions or before.get("versions"),
        "parts": parts,
    }


def read_record(path: Path = RECORD) -> dict[str, Any]:
    """The record as it is; empty where there is none."""
    if not path.exists():
        return {}
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record whole or not at all."""
    write_atomic(path, json.dumps(record, indent=1) + "\n")
