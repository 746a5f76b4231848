"""Prompts of one's own, graded by the probability of "yes" to whether the picture shows what the prompt says.

The question and the grade are those of ``compbench_yes``. Any judge can answer it, the model under test as well.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.evaluation.benchmarks.compbench_yes import YesGrading, canaries
from srum_ds.evaluation.benchmarks.protocol import Benchmark, equal_shares
from srum_ds.prompts.source import read_source
from srum_ds.types import Prompt

ALL = "all"
"""The category of prompts that come without one."""


def read(source: Path | None) -> list[Prompt]:
    """The prompts of a file (``prompts.own.read_own``), or of a folder of shards: its held-out split.

    Raises UserError without a source, and as ``read_source``, which says what held-out is.
    """
    if source is None:
        raise UserError(
            "--benchmark own: name your prompts with --prompts FILE, or for a run of data.prompts its held-out ones, "
            "--prompts RUN/prompts"
        )
    return [in_category(prompt) for prompt in read_source(str(source))]


def in_category(prompt: Prompt) -> Prompt:
    """The prompt itself, in the category ``ALL`` where it has none."""
    return prompt if prompt.category else replace(prompt, category=ALL)


BENCHMARK = Benchmark(
    name="own",
    version="1",
    read=read,
    grading=YesGrading(),
    figures=equal_shares,
    full=100.0,
    canaries=canaries,
    notice="Prompts of your own; 100 x P(yes) of one question. The figures compare with each other alone.",
)
"""Prompts of one's own as ``--benchmark own``."""
