"""What ``srum-ds eval score`` is asked for: which folder, and who says what its pictures are worth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from srum_ds.common.errors import UserError
from srum_ds.config.choices import JUDGES
from srum_ds.evaluation.benchmarks import Asks, Benchmark, Detects
from srum_ds.evaluation.draw_request import PromptChoice
from srum_ds.judges.transport import checked_url

CHECKER = "checker"
SELF = "self"

Failures = Literal["exclude", "zero"]


@dataclass(frozen=True)
class JudgeChoice:
    """Who is asked: ``--judge`` and what belongs to it.

    kind: http, transformers, self, replay (or a user's own), or ``checker``: nobody is asked, the benchmark looks at
    pixels or at detections itself. url, model: of the judge. replies: files of recorded replies. detections: a file of
    boxes; detector: what finds them instead. concurrency: requests in flight. timeout: seconds for one. retries:
    attempts after the first.
    """

    kind: str
    url: str = ""
    model: str = ""
    replies: tuple[Path, ...] = ()
    detections: Path | None = None
    detector: str = ""
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 4

    def check(self) -> None:
        """UserError, naming the option, for an unknown judge and for numbers that no judge could obey."""
        if self.kind != CHECKER:
            JUDGES.check_name(self.kind)
        if self.concurrency < 1:
            raise UserError(f"--concurrency {self.concurrency}: give at least 1.")
        if not self.timeout > 0:
            raise UserError(f"--timeout {self.timeout}: give seconds above 0.")
        if self.retries < 0:
            raise UserError(f"--retries {self.retries}: give 0 or more.")


@dataclass(frozen=True)
class ScoreRequest:
    """A folder of pictures to be scored.

    failures: whether a picture without a grade is left out of the means or counts as zero. srum_compat: the arithmetic
    of SRUM's released scripts.
    """

    folder: Path
    choice: PromptChoice
    judge: JudgeChoice
    failures: Failures = "exclude"
    srum_compat: bool = False

    def check(self, benchmark: Benchmark, judge_given: bool = False) -> None:
        """UserError for what cannot be scored whatever the pictures: before any is drawn, or a judge is loaded.

        judge_given: somebody else than ``judge`` is asked.
        """
        judge = self.judge
        judge.check()
        if self.srum_compat and not benchmark.srum_compat:
            raise UserError(f"--srum-compat: SRUM's released scripts say nothing of {benchmark.name}; leave it out.")
        if self.srum_compat and self.failures == "zero":
            raise UserError("--srum-compat counts failures as the released scripts do; leave --failures zero out.")
        if isinstance(benchmark.grading, Asks):
            if judge.kind == CHECKER and not judge_given:
                raise UserError(
                    f"--judge {CHECKER}: {benchmark.name} cannot be checked from pixels, it asks a judge: give --judge "
                    f"http, transformers, {SELF} or replay"
                )
            if judge.kind == "http" and not judge_given:
                checked_url(judge.url)
        elif judge_given or judge.kind != CHECKER:
            raise UserError(
                f"--judge {judge.kind}: {benchmark.name} asks no judge; leave --judge out (or give --judge {CHECKER})"
            )
        elif isinstance(benchmark.grading, Detects) and (judge.detections is None) == (not judge.detector):
            raise UserError(
                f"{benchmark.name} is graded from a detector's boxes: give either --detector FOLDER (a model such as "
                f"Grounding DINO, OWLv2 or Mask2Former) or --detections FILE (boxes that were made elsewhere)"
            )
