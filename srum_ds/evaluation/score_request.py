"""What ``srum-ds eval score`` is asked for: which folder, and who says what its pictures are worth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from srum_ds.common.errors import UserError
from srum_ds.config.choices import JUDGES
from srum_ds.evaluation.draw_request import PromptChoice

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
