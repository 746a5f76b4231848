"""The big run: ``python -m tests.fuzz --inputs 1000000 --seed 1 [--only NAME] [--workers 2] [--json FILE]``.

Each input is made from (seed, target, number), so that any one can be made again. Prints for each target how many
inputs were read and refused, what escaped with the smallest such input, and the slowest. Ends with status 1 where
anything escaped, or a reader's time grows faster than its input.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

from srum_ds.common.environment import environment
from tests.fuzz.campaign import SHOWN, record, run
from tests.fuzz.growth import all_growths
from tests.fuzz.targets import TARGETS


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", choices=sorted(TARGETS), help="a target; may be given again")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--length", type=int, default=4000, help="characters of the short inputs that are timed")
    parser.add_argument("--json", type=Path, help="where the result goes, such as benchmarks/fuzz.json")
    parser.add_argument("--seconds", type=float, default=math.inf, help="hand out no more inputs after so long")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    names = options.only or list(TARGETS)
    results = run(names, options.inputs, options.seed, options.workers, options.seconds, told=True)
    for name, result in results.items():
        print(
            f"{name:16} {result.inputs:8} inputs, {result.read:8} read, {sum(n for n, _ in result.escapes.values()):5} "
            f"escapes, slowest {1000 * result.slowest:8.1f} ms: {result.slowest_input[:60]}",
            flush=True,
        )
        for escape, (count, shown) in result.escapes.items():
            print(f"    {count} x {escape}\n        {shown[: 4 * SHOWN]}", flush=True)
    growths = [] if options.only else all_growths(options.length)
    bad = [growth for growth in growths if not growth.is_linear]
    for growth in bad:
        print(f"not linear: {growth.reader} of {growth.shape}: {growth.seconds:.4f} s, {growth.seconds_of_long:.4f} s")
    found = record(results, options.seed, time.monotonic() - start)
    print(f"{found['inputs']} inputs, {found['escapes']} escapes, {len(growths)} timed, {len(bad)} of them not linear")
    if options.json is not None:
        found["growth"] = {
            "timed": len(growths),
            "not_linear": [f"{growth.reader} of {growth.shape}" for growth in bad],
            "largest_ratio": round(max((g.ratio for g in growths if g.seconds_of_long > 0.02), default=0.0), 1),
        }
        found["environment"] = environment(1, {"workers": options.workers})
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 1 if found["escapes"] or bad else 0


if __name__ == "__main__":
    sys.exit(main())
