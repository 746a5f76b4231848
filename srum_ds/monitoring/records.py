"""The records that a run appends to, one JSON object a line: metrics.jsonl and held_out.jsonl. Read, cut, numbered.

Steps are counted from 1 everywhere: the record of step n is written when n steps are done. Former versions counted the
steps of ``metrics.jsonl`` and ``judge_failures.jsonl`` from 0; ``read_metrics`` gives today's numbers of either, and a
run that is taken up has its files renumbered.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import write_atomic
from srum_ds.common.texts import parse_json

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
HELD_OUT = "held_out.jsonl"
"""One look at held-out prompts a line; step 0 is the base, before any step."""
BEST = "best.json"
"""Which checkpoint has the best held-out self-reward."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, steps counted from 1; none where there is no such file.

    A torn last line is left out.
    """
    records = _read(path)
    if is_former(records):
        return [{**record, "step": record["step"] + 1} for record in records]
    return records


def read_held_out(run_dir: Path) -> list[dict[str, Any]]:
    """The looks at a run's held-out prompts in order, without a torn last line; none where nobody looked."""
    return _read(run_dir / HELD_OUT)


def is_former(records: list[dict[str, Any]]) -> bool:
    """Whether these lines of ``metrics.jsonl`` count steps from 0, as former versions did."""
    return bool(records) and records[0].get("step") == 0


def take_up(path: Path, done: int, *also: Path) -> bool:
    """Cuts ``metrics.jsonl`` to the first ``done`` steps; returns whether it was a former version's.

    One that is gets today's numbers, and with it the files ``also``. Raises UserError naming a line that is no step's
    record; only the last may be torn.
    """
    if not path.exists():
        return False
    before = path.read_bytes()
    kept, former = metrics_before(before, done, path)
    if kept != before:
        if former:
            # First: a kill in between leaves the sign of a former run in place.
            for other in also:
                _renumber(other)
        write_atomic(path, kept)
    return former


def metrics_before(data: bytes, done: int, path: Path | str = METRICS) -> tuple[bytes, bool]:
    """(The lines of a metrics file of the first ``done`` steps, whether it counted from 0); a torn last line goes.

    What counted from 0 counts from 1 afterwards. Raises UserError naming any other line that is not a JSON object with
    a whole number as "step".
    """
    whole, _, _ = data.rpartition(b"\n")
    kept = []
    former = False
    for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
        try:
            record = parse_json(line)
            found = record["step"]
            if type(found) is not int:
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: not a step's record; remove that line and repeat") from error
        former = former or (number == 1 and found == 0)
        if found + former <= done:
            kept.append((json.dumps({**record, "step": found + 1}).encode() if former else line) + b"\n")
    return b"".join(kept), former


def cut(path: Path, done: int) -> list[dict[str, Any]]:
    """Cuts a file of records to the first ``done`` steps and gives what is left; a torn last line goes."""
    if not path.exists():
        return []
    records = _read(path)
    kept = [record for record in records if int(record["step"]) <= done]
    text = "".join(json.dumps(record) + "\n" for record in kept)
    if text.encode() != path.read_bytes():
        write_atomic(path, text)
    return kept


def _renumber(path: Path) -> None:
    """Counts a file's steps from 1 that counted from 0; what is no step's record stays as it is."""
    if not path.exists():
        return
    lines = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = parse_json(line)
            lines.append(json.dumps({**record, "step": record["step"] + 1}).encode() + b"\n")
        except (ValueError, KeyError, TypeError):
            lines.append(line)
    write_atomic(path, b"".join(lines))


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    try:
        return [dict(parse_json(line)) for line in whole.splitlines()]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: holds a line that is no record ({error}); remove that line and repeat") from error
