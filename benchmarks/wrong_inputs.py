"""How long a wrong command line takes to be told: each kind of tests/support/wrong_inputs.py as a process of its own.

python benchmarks/wrong_inputs.py [--json benchmarks/wrong_inputs.json]

The clock is the wall's, from the start of the process to its end; each is run some times and the fastest one counts,
since what else runs on the machine only adds to it. Beside it stand the seconds of a core that the process took, which
is what the clock says where a core is free. Exit status 1 where one takes longer than the limit (2 s of the clock),
says more than one line, or ends with another status than 2. The table of docs/preflight.md is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from srum_ds.monitoring import run_folder  # noqa: E402
from tests.support.wrong_inputs import WRONG_INPUTS, WrongInput, run_dir  # noqa: E402

LIMIT_SECONDS = 2.0
REPEATS = 3


def measured(wrong: WrongInput) -> dict[str, object]:
    """Seconds, exit status and lines of one kind."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "srum_ds", "train", *wrong.make(folder)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        seconds = cpu = float("inf")
        with run_folder.locked(run_dir(folder)) if wrong.locks else nullcontext():
            for _ in range(REPEATS):
                used, begin = _cpu_seconds(), time.perf_counter()
                done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
                seconds = min(seconds, time.perf_counter() - begin)
                cpu = min(cpu, _cpu_seconds() - used)
        said = done.stderr.replace(f"{folder}/", "").replace(f"{ROOT}/", "").strip()
        return {
            "name": wrong.name,
            "typed": wrong.typed,
            "said": said,
            "seconds": round(seconds, 2),
            "cpu_seconds": round(cpu, 2),
            "status": done.returncode,
        }


def _cpu_seconds() -> float:
    """Of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def row(found: dict[str, object]) -> str:
    """A row of the table in the docs."""
    said = str(found["said"]).removeprefix("srum-ds: ").replace("|", "\\|")
    return f"| {found['name']} | `{found['typed']}` | {said} | {found['cpu_seconds']} |"


def main() -> int:
    """Measures all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = [measured(wrong) for wrong in WRONG_INPUTS]
    for one in found:
        print(row(one))
    slow = [one for one in found if float(str(one["seconds"])) > LIMIT_SECONDS]
    bad = [one for one in found if one["status"] != 2 or len(str(one["said"]).splitlines()) != 1]
    longest = max(float(str(one["seconds"])) for one in found)
    cpu = max(float(str(one["cpu_seconds"])) for one in found)
    summary = f"{len(found)} kinds, at most {longest} s and {cpu} s of CPU"
    print(f"{summary}; {len(slow)} above {LIMIT_SECONDS} s, {len(bad)} told otherwise")
    if options.json:
        facts = {"load": os.getloadavg()[0], "cores": os.cpu_count(), "limit_seconds": LIMIT_SECONDS, "kinds": found}
        options.json.write_text(json.dumps(facts, indent=2) + "\n")
    return 1 if slow or bad else 0


if __name__ == "__main__":
    sys.exit(main())
