"""Command line of the GPU check; see the package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from srum_ds.common.environment import ROOT, git_state
from tests.gpu.check.driver import run_parts
from tests.gpu.check.parts import PARTS, TOTAL_SECONDS, Part, chosen
from tests.gpu.check.recording import RECORD, merged, read_record, write_record

NO_GPU = 2
REHEARSAL_PATIENCE = 5
"""A part's limit in a rehearsal, in its limits on a GPU."""


def main(arguments: Sequence[str] | None = None, parts: Sequence[Part] = PARTS, record: Path = RECORD) -> int:
    """Runs the check; returns 0 where all parts were well, 1 where some failed, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.check", description="Checks this machine's GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json, parts.jsonl and log.txt")
    parser.add_argument("--only", help="names of parts, separated by commas: " + ", ".join(part.name for part in parts))
    parser.add_argument("--commit", help="of this tree, where it is no clone")
    parser.add_argument("--rehearse", action="store_true", help="scaled down on the CPU: proves that the parts run")
    given = parser.parse_args(arguments)
    try:
        wanted = chosen(parts, given.only)
    except ValueError as error:
        parser.error(str(error))
    if not given.rehearse and not torch.cuda.is_available():
        print(
            "make gpu-check: torch sees no CUDA device here. ARGS=--rehearse runs every part on the CPU, scaled down, "
            "to prove that it runs.",
            file=sys.stderr,
        )
        return NO_GPU
    patience = REHEARSAL_PATIENCE if given.rehearse else 1
    lines = run_parts(wanted, given.out, given.rehearse, TOTAL_SECONDS * patience, patience)
    commit, modified = git_state(ROOT)
    if given.commit is not None:
        commit, modified = given.commit, None
    before = {} if given.rehearse else read_record(record)
    found = merged(before, lines, commit, modified, given.rehearse)
    write_record(given.out / "gpu.json", found)
    if not given.rehearse:
        write_record(record, found)
    return 0 if all(line["ok"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
