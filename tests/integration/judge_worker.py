"""Short real runs with a judge that answers garbage for 30 % of requests, for tests/integration/test_judge.py.

    deepspeed --num_gpus 2 tests/integration/judge_worker.py FOLDER RECIPE key=value ...

Runs of the same settings, one after another, in FOLDER/plain and so on. The double sits at the text
boundary: it wraps the model's ``answer_logprobs`` and spoils what comes out. In ``masked`` the noised copies
of all pictures whose judging failed are replaced by junk before training sees them, in ``one`` those of
one picture whose judging did not fail. Each rank writes what it spoiled to FOLDER/<run>_rank<N>.jsonl.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

RUNS = ("plain", "masked", "one")
SHARE = 0.3


class Spoiler:
    """Passes everything on to a judge, and replaces exactly 3 of every 10 answers by garbage."""

    def __init__(self, judge: Any, record: Path) -> None:
        self.judge = judge
        self.record = record
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.judge, name)

    def answer_logprobs(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        logprobs_QA = self.judge.answer_logprobs(images, questions, answers, image_index).clone()
        spoiled = []
        for number in range(len(questions)):
            before, self.asked = self.asked, self.asked + 1
            if int(self.asked * SHARE) > int(before * SHARE):
                # All the probability on other words.
                logprobs_QA[number] = -20.0
                spoiled.append(number)
        line = {"whole": questions[0].startswith("does the picture"), "asked": len(questions), "spoiled": spoiled}
        with open(self.record, "a") as stream:
            stream.write(json.dumps(line) + "\n")
        return logprobs_QA


def main(folder: Path, words: list[str]) -> None:
    """All runs, on this rank."""
    from srum_ds import train
    from srum_ds.engine import leave_distributed
    from srum_ds.objectives.apply import Batch

    rank = os.environ.get("RANK", "0")
    real_judge, real_noise = train.choose_judge, train.with_noise
    for run in RUNS:
        record = folder / f"{run}_rank{rank}.jsonl"

        def judge(*arguments: Any, record: Path = record) -> Any:
            seat = real_judge(*arguments)
            return replace(seat, judge=Spoiler(seat.judge, record))

        def noise(*arguments: Any, run: str = run) -> Batch:
            batch = real_noise(*arguments)
            failed_N = batch.scores.global_N.isnan()
            spoilt_N = torch.zeros_like(failed_N)
            if run == "masked":
                spoilt_N = failed_N
            elif run == "one":
                spoilt_N[int((~failed_N).nonzero()[0])] = True
            junk = torch.randn(batch.noised.x_NMTC.shape, generator=torch.Generator().manual_seed(0)) * 30
            noised = replace(
                batch.noised,
                x_NMTC=torch.where(spoilt_N[:, None, None, None], junk, batch.noised.x_NMTC),
                target_NMTC=torch.where(spoilt_N[:, None, None, None], -junk, batch.noised.target_NMTC),
            )
            return replace(batch, noised=noised)

        train.choose_judge = judge  # type: ignore[assignment]
        train.with_noise = noise  # type: ignore[assignment]
        train.main([*words, f"run.dir={folder / run}"])
    leave_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[-1]), [word for word in sys.argv[1:-1] if not word.startswith("--local_rank")])
