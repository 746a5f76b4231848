"""All that a run's folder says of the run, read so that a damaged, former or unfinished one still says what it can.

Nothing here needs the run's models, prompts or code: the report of a run can be made on another machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes
from srum_ds.common.texts import is_number, parse_json
from srum_ds.config.schema import WatchConfig
from srum_ds.evaluation.report import RESULT
from srum_ds.evaluation.run_report.benchmarks import Measured, benchmarks_of
from srum_ds.evaluation.run_report.state import State, state_of
from srum_ds.monitoring.judge_failures import FAILURES
from srum_ds.monitoring.records import METRICS
from srum_ds.monitoring.run_folder import CONFIG, STOPPED_BY_WATCH
from srum_ds.rollouts.fixed_records import Shown, read_showings

HELD_OUT = "held_out.jsonl"
ENVIRONMENT = "environment.json"

Record = dict[str, Any]


@dataclass
class RunFacts:
    """A run as its folder has it.

    metrics: a record a step; ``step`` is how many steps were done, also where a former version counted from 0.
    held_out: a record a look, the first of the base where there is one. config: every setting that ``config.yaml``
    holds, by its full key. stopped: the content of ``stopped_by_watch.json``. result: that of ``result.json``.
    problems: sentences on what could not be read, each naming its file.
    """

    run_dir: Path
    state: State
    metrics: list[Record] = field(default_factory=list)
    held_out: list[Record] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    result: Record | None = None
    stopped: Record | None = None
    environment: Record = field(default_factory=dict)
    failures: list[Record] = field(default_factory=list)
    showings: list[Shown] = field(default_factory=list)
    benchmarks: list[Measured] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def steps_done(self) -> int:
        """After how many steps the last record was written."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def steps_wanted(self) -> int | None:
        """``train.steps``; None where the configuration does not say."""
        wanted = self.config.get("train.steps")
        return wanted if type(wanted) is int else None

    def values(self, key: str) -> list[tuple[int, float]]:
        """(steps done, value) of a metric, where the step has it."""
        return [(line["step"], float(line[key])) for line in self.metrics if is_number(line.get(key))]

    def looks(self, key: str) -> list[tuple[int, float]]:
        """(steps done, value) of a held-out figure."""
        return [(line["step"], float(line[key])) for line in self.held_out if is_number(line.get(key))]


def read_run(run_dir: Path, ending: bool = False) -> RunFacts:
    """Reads a run's folder. ending: the caller is the run itself, which ends now.

    UserError for a folder that holds no run; everything else that is wrong becomes a sentence of ``problems``.
    """
    if not any((run_dir / name).exists() for name in (CONFIG, METRICS)):
        raise UserError(
            f"{run_dir} holds no run (no {CONFIG}, no {METRICS}): give the folder of a run (run.dir), or train one "
            "with `srum-ds train`."
        )
    facts = RunFacts(run_dir, state_of(run_dir, ending))
    told = facts.problems
    facts.metrics, former = _steps(_lines(run_dir / METRICS, told))
    facts.held_out = [line for line in _lines(run_dir / HELD_OUT, told) if _counted(line)]
    facts.config = _config(run_dir / CONFIG, told)
    facts.result = _object(run_dir / RESULT, told)
    facts.stopped = _object(run_dir / STOPPED_BY_WATCH, told)
    facts.environment = _object(run_dir / ENVIRONMENT, told) or {}
    facts.failures = _lines(run_dir / FAILURES, told)
    facts.showings = [_numbered(shown, former) for shown in read_showings(run_dir)]
    told += [shown.problem for shown in facts.showings if shown.problem]
    facts.benchmarks = benchmarks_of(run_dir, told)
    if not facts.metrics:
        told.append(f"{run_dir / METRICS} holds no step yet.")
    return facts


def _numbered(shown: Shown, former: bool) -> Shown:
    """Former versions named a grid by the step that it followed, from 0; a record says how many steps were done."""
    if shown.showing is not None:
        return Shown(shown.showing.step, shown.grid, shown.showing)
    return Shown(shown.number + former, shown.grid, None, shown.problem)


def _steps(lines: list[Record]) -> tuple[list[Record], bool]:
    """The records by steps done, and whether a former version wrote them, which counted from 0."""
    known = [line for line in lines if _counted(line)]
    former = bool(known) and known[0]["step"] == 0
    return [{**line, "step": line["step"] + former} for line in known], former


def _counted(line: Record) -> bool:
    return type(line.get("step")) is int and line["step"] >= 0


def _read(path: Path, told: list[str], parse: Callable[[bytes], Any]) -> Any:
    """What ``parse`` makes of a file; None where there is none, or where it is damaged, which is told."""
    try:
        return parse(file_bytes(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        told.append(f"{path} cannot be read ({reason}) and is left out.")
        return None


def _object(path: Path, told: list[str]) -> Record | None:
    found = _read(path, told, parse_json)
    if found is not None and not isinstance(found, dict):
        told.append(f"{path} is no JSON object and is left out.")
        return None
    return found


def _lines(path: Path, told: list[str]) -> list[Record]:
    """The JSON objects of a file, one a line. Others are left out, and told with their numbers."""
    data = _read(path, told, bytes)
    if data is None:
        return []
    whole, newline, torn = data.rpartition(b"\n")
    found, wrong = [], []
    for number, line in enumerate(whole.split(b"\n") if newline else [], 1):
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            found.append(record)
        else:
            wrong.append(number)
    if wrong:
        listed = ", ".join(map(str, wrong[:5])) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        told.append(f"{path}: line {listed} is no record and is left out.")
    if torn:
        told.append(f"{path}: its last line is cut off and is left out.")
    return found


def _config(path: Path, told: list[str]) -> dict[str, Any]:
    found = _read(path, told, yaml.safe_load)
    if found is None:
        return {}
    if not isinstance(found, dict):
        told.append(f"{path} is no table of settings and is left out.")
        return {}
    return {
        f"{section}.{name}": value
        for section, content in found.items()
        if isinstance(content, dict)
        for name, value in content.items()
    }


def watch_settings(config: Mapping[str, Any]) -> WatchConfig:
    """``watch.*`` of a run, with the defaults for what it does not say or says in another type."""
    default = WatchConfig()
    given: dict[str, Any] = {}
    for each in fields(WatchConfig):
        value = config.get(f"watch.{each.name}")
        usual = getattr(default, each.name)
        if type(value) is type(usual) or (isinstance(usual, float) and is_number(value)):
            given[each.name] = value
    return WatchConfig(**given)
