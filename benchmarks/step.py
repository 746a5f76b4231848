"""Seconds of a training step by phase, on this machine: runs the tiny recipe for some steps and reads its metrics.

python benchmarks/step.py [--steps 12] [--json benchmarks/step.json] [key=value ...]
python benchmarks/step.py --judge [--steps 12] [--json benchmarks/judge_share.json] [key=value ...]

--judge: the judge's share of a step on one rank with one thread and 4 regions a picture, each asked about all
phrases of its prompt (a grid of 2 x 2); aim: at most 15 %.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PHASES = ("time_data", "time_rollout", "time_judge", "time_train")
WARM_UP = 2
JUDGE = ("deepspeed.ranks=1", "regions.kind=grid", "regions.grid_side=2")


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="launch/recipes/tiny.yaml")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--json", type=Path)
    args, overrides = parser.parse_known_args()
    if args.judge:
        overrides = [*JUDGE, *overrides]
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [str(Path(sys.executable).parent / "srum-ds"), "train", args.recipe, f"run.dir={run_dir}"]
        command += [f"train.steps={args.steps}", f"train.save_every={args.steps}", "log.tensorboard=false", *overrides]
        threads = {"OMP_NUM_THREADS": "1"} if args.judge else {}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **threads})
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()][WARM_UP:]
        environment = json.loads((run_dir / "environment.json").read_text())
    medians = {name: round(statistics.median(line[name] for line in lines), 4) for name in PHASES}
    total = sum(medians.values())
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "recipe": args.recipe,
        "overrides": overrides,
        "steps": len(lines),
        "median_seconds": medians,
        "step_seconds": round(total, 4),
        "judge_share": round(medians["time_judge"] / total, 4),
        "environment": environment,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
