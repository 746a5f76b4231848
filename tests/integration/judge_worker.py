"""Short real runs with a judge that answers garbage for 30 % of requests, for tests/integration/test_garbage_judge.py.

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
    from srum_ds import job as jobs
    from srum_ds import train
    from srum_ds.engine import leave_distributed
    from srum_ds.job import Job
    from srum_ds.objectives.apply import Batch
    from srum_ds.types import Judged

    rank = os.environ.get("RANK", "0")
    real_judge, real_weigh = jobs.choose_judge, train.weigh
    for run in RUNS:
        record = folder / f"{run}_rank{rank}.jsonl"

        def judge(*arguments: Any, record: Path = record) -> Any:
            host = real_judge(*arguments)
            return replace(host, judge=Spoiler(host.judge, record))

        def weigh(job: Job, judged: Judged, step: int, run: str = run) -> Batch:
            batch = real_weigh(job, judged, step)
            failed_N = batch.scores.global_N.isnan()
            spoilt_N = torch.zeros_like(failed_N)
            if run == "masked":
                spoilt_N = failed_N
            elif run == "one":
                spoilt_N[int((~failed_N).nonzero()[0])] = True
            view = batch.view
            junk = torch.randn(view.target.shape, generator=torch.Generator().manual_seed(0)) * 30
            where = spoilt_N[:, None, None, None]
            inputs = {**view.inputs, "x_NMTC": torch.where(where, junk, view.inputs["x_NMTC"])}
            return replace(batch, view=replace(view, inputs=inputs, target=torch.where(where, -junk, view.target)))

        jobs.choose_judge = judge  # type: ignore[assignment]
        train.weigh = weigh
        train.main([*words, f"run.dir={folder / run}"])
    leave_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[-1]), [word for word in sys.argv[1:-1] if not word.startswith("--local_rank")])
