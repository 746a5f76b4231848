"""T2I-CompBench's prompts graded by the probability of "yes": for judges that write no JSON, such as small models.

It is a benchmark of its own, with figures of its own: they are not comparable with those of ``compbench``. The
question is the one that the training's judge is asked about a whole picture, and the grade is VQAScore's (Lin et al.,
arXiv 2404.01291): 100 P(yes) / (P(yes) + P(no)) of the answer's first token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from srum_ds.evaluation.benchmarks.canaries import SHOWN, four_cases
from srum_ds.evaluation.benchmarks.compbench import figures, read
from srum_ds.evaluation.benchmarks.protocol import Benchmark, Canary, Grade
from srum_ds.judges.protocol import Question, Reply
from srum_ds.types import Prompt

_KEY = "match"
ANSWERS = ("yes", "no")


@dataclass(frozen=True)
class YesGrading:
    """One question about the whole picture, answered by probabilities."""

    def questions(self, prompt: Prompt) -> Sequence[Question]:
        """Whether the picture shows what the prompt says."""
        return [_question(prompt.text)]

    def grade(self, prompt: Prompt, replies: Mapping[str, Reply]) -> Grade:
        """100 P(yes) / (P(yes) + P(no)); failed where the judge failed, or gave neither word a probability."""
        reply = replies[_KEY]
        if reply.error:
            return Grade(None, failure=reply.error)
        share = yes_share(reply.probabilities)
        if share is None:
            return Grade(None, failure=f"no probability of yes or no: {list(reply.probabilities)}")
        yes, no = reply.probabilities
        return Grade(100 * share, words=f"P(yes) {yes:.3g}, P(no) {no:.3g}")


def yes_share(probabilities: Sequence[float]) -> float | None:
    """P(yes) / (P(yes) + P(no)) in [0, 1]; None for anything but two numbers >= 0, finite, of a sum above 0."""
    if len(probabilities) != len(ANSWERS) or not all(math.isfinite(p) and p >= 0 for p in probabilities):
        return None
    total = sum(probabilities)
    return probabilities[0] / total if total > 0 else None


def _question(text: str) -> Question:
    return Question(_KEY, (f"does the picture show {text.strip().rstrip('.')}?",), max_tokens=1, answers=ANSWERS)


def canaries() -> Sequence[Canary]:
    """A blank picture, another one and a blind control must be below a half, a drawn one above."""
    return four_cases(
        _question(SHOWN),
        "must be answered with yes",
        lambda reply: (share := yes_share(reply.probabilities)) is not None and share < 0.5,
        lambda reply: (share := yes_share(reply.probabilities)) is not None and share > 0.5,
    )


BENCHMARK = Benchmark(
    name="compbench_yes",
    version="1",
    read=read,
    grading=YesGrading(),
    figures=figures,
    full=100.0,
    canaries=canaries,
    notice=(
        "Prompts: T2I-CompBench (Karine-Huang/T2I-CompBench, MIT), read from your copy. The question is ours: these "
        "figures compare with each other alone, not with published ones."
    ),
)
"""T2I-CompBench by P(yes) as ``--benchmark compbench_yes``."""
