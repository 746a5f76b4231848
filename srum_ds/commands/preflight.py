"""What `srum-ds train`, `rollout` and `rescore` do with a preflight: print it, or refuse to start."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from srum_ds.common.errors import WRONG_INPUT

if TYPE_CHECKING:
    from srum_ds.config import Config
    from srum_ds.preflight import Finding, Start

WAIT_SECONDS = 5.0
"""How long a rank beside the first keeps what it has found to itself."""
_RANKS = ("--num_gpus", "--num_accelerators")
_ELSEWHERE = ("--include", "-i", "--exclude", "-e", "--hostfile", "-H")


def ranks_of(cfg: Config, flags: Sequence[str]) -> int | None:
    """How many ranks the launcher starts with these flags of its own; None where they do not say it."""
    said: dict[str, str] = {}
    for place, flag in enumerate(flags):
        name, equals, value = flag.partition("=")
        said[name] = value if equals else "".join(flags[place + 1 : place + 2])
    if any(name in said for name in _ELSEWHERE):
        return None
    counts = [said[name] for name in _RANKS if name in said]
    ranks = cfg.deepspeed.ranks if not counts else int(counts[0]) if counts[0].isdigit() else None
    nodes = said.get("--num_nodes", "1")
    return ranks * int(nodes) if ranks is not None and nodes.isdigit() else None


def look_or_refuse(start: Start, launcher_args: str) -> tuple[Config | None, int]:
    """The configuration that a command starts with, or None and the exit status where it must not; says why.

    A rank of a launcher's has no preflight of its own here: whoever started it had.
    """
    import shlex

    from srum_ds.config import load_config
    from srum_ds.preflight import look_at

    if "RANK" in os.environ:
        return load_config(start.recipe, start.overrides), 0
    cfg, found = look_at(start, lambda cfg: ranks_of(cfg, shlex.split(launcher_args)))
    status = refuse(found)
    return (None if status else cfg), status


def tell(findings: Sequence[Finding], json_: bool) -> int:
    """Prints everything that was looked at, and a line that sums it up; returns the exit status."""
    from srum_ds.preflight.run import errors

    wrong = errors(findings)
    if json_:
        print(json.dumps({"ok": not wrong, "findings": [finding.as_json() for finding in findings]}, indent=2))
    else:
        for finding in findings:
            print(finding.line)
        print(f"{len(wrong)} error(s)" if wrong else "nothing stands in the way of this run")
    return WRONG_INPUT if wrong else 0


def refuse_on_rank(words: Sequence[str]) -> int:
    """The preflight of a rank that somebody else than `srum-ds train` has started; 2 where the run cannot start.

    The first rank says what is wrong. Another one that finds something waits until the launcher has ended it, and says
    it where nobody does: there a file may be missing on its node alone.
    """
    from srum_ds.common.supervise import SUPERVISED
    from srum_ds.config import split_arguments
    from srum_ds.preflight import Start, look_at
    from srum_ds.preflight.run import errors

    rank = int(os.environ.get("RANK", "0"))
    if SUPERVISED in os.environ:
        return 0
    recipe, overrides = split_arguments(words)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    _, found = look_at(Start("train", recipe, overrides, ranks=ranks, holds_folder=rank == 0))
    if rank != 0 and errors(found):
        time.sleep(WAIT_SECONDS)
    return refuse(found if rank == 0 else errors(found))


def refuse(findings: Sequence[Finding]) -> int:
    """Says on stderr, a line each, what is wrong and what is odd; returns the exit status, 0 where a run may start."""
    from srum_ds.common.errors import concealed
    from srum_ds.preflight import State
    from srum_ds.preflight.run import errors

    for finding in findings:
        if finding.state in (State.ERROR, State.WARNING):
            odd = "warning: " if finding.state == State.WARNING else ""
            print(f"srum-ds: {odd}{concealed(finding.text)}", file=sys.stderr)
    return WRONG_INPUT if errors(findings) else 0
