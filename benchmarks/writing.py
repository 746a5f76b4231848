"""Writing text against another checkout, interleaved, in CPU seconds: replies to questions about images.

    python benchmarks/writing.py OTHER [--repeats 9] [--json benchmarks/writing.json]

OTHER is a checkout of this repository at another commit (``git worktree add``). Each side is a process of its own with
one thread and the model of benchmarks/bagel.py; they work in turns, so that whatever else the machine does meets both.

* together: 8 images, a question and 32 tokens each, in one call;
* sampled: the same at temperature 1;
* apart: here that one call, there a call for every two images, as micro-batches were asked before;
* prefill: the first token alone; readout: the probabilities of two answers, without writing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

IMAGES, PATCHES, TOKENS = 8, 4, 32
WORK = ("together", "sampled", "apart", "prefill", "readout")


def serve(apart: int) -> None:
    """One side: does the work that a line of its input names and answers with its CPU seconds."""
    import torch

    sys.path.insert(0, os.getcwd())
    from benchmarks.bagel import bench_config
    from srum_ds.models.bagel.adapter import load_bagel
    from tests.support.tiny_models import random_picture, write_tiny_bagel

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = load_bagel(write_tiny_bagel(Path(folder), bench_config(PATCHES)))
    images = [random_picture(PATCHES * 14, PATCHES * 14, n) for n in range(IMAGES)]
    questions = ["is this right?"] * IMAGES

    def write(size: int, tokens: int = TOKENS, temperature: float = 0.0) -> None:
        for start in range(0, IMAGES, size):
            part = slice(start, start + size)
            seeds = list(range(IMAGES))[part]
            model.answer(images[part], questions[part], tokens, None, temperature, seeds)

    work: dict[str, Callable[[], object]] = {
        "together": lambda: write(IMAGES),
        "sampled": lambda: write(IMAGES, temperature=1.0),
        "apart": lambda: write(apart),
        "prefill": lambda: write(IMAGES, 1),
        "readout": lambda: model.answer_logprobs(images, questions, ("yes", "no")),
    }
    for line in sys.stdin:
        start = time.process_time()
        work[line.strip()]()
        print(time.process_time() - start, flush=True)


class Side:
    """A process that works in one checkout."""

    def __init__(self, checkout: Path, apart: int) -> None:
        place = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve", str(apart)],
            cwd=checkout,
            env=os.environ | place,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, work: str) -> float:
        """CPU seconds of one piece of work."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(work + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    if args.other is None:
        parser.error("name the other checkout")
    root = Path(__file__).resolve().parent.parent
    sys.path.insert(0, str(root))
    from srum_ds.common.environment import environment

    here, there = Side(root, IMAGES), Side(args.other.resolve(), 2)
    commit = ["git", "-C", str(args.other), "rev-parse", "--short", "HEAD"]
    other = subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip()
    report: dict[str, object] = {"threads": 1, "repeats": args.repeats, "other_commit": other}
    for work in WORK:
        here.seconds(work), there.seconds(work)
        pairs = [(here.seconds(work), there.seconds(work)) for _ in range(args.repeats)]
        ratios = [b / a for a, b in pairs]
        report[work] = {
            "cpu_seconds": round(statistics.median(a for a, _ in pairs), 4),
            "other": round(statistics.median(b for _, b in pairs), 4),
            "times_as_fast": round(statistics.median(ratios), 3),
            "least": round(min(ratios), 3),
            "most": round(max(ratios), 3),
        }
    for side in (here, there):
        side.process.communicate()
    report["environment"] = environment(1)
    text = json.dumps(report, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
