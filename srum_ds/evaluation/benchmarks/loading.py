"""Opening a benchmark by the name that ``eval.benchmark`` or ``--benchmark`` gives; one of a user's own is guarded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from srum_ds.common import foreign
from srum_ds.common.errors import UserError
from srum_ds.common.registry import Registry
from srum_ds.config.choices import BENCHMARKS
from srum_ds.evaluation.benchmarks.guarded import GuardedChecks, guarded_benchmark
from srum_ds.evaluation.benchmarks.protocol import Benchmark, Checks
from srum_ds.prompts.shards import prompt_to_json
from srum_ds.types import Prompt


def load_benchmark(name: str) -> Benchmark:
    """The benchmark of this name. UserError for an unknown one, and for code that is no benchmark."""
    # The option is what the user wrote, not the setting.
    found = _found(name, replace(BENCHMARKS, setting="--benchmark"))
    if not isinstance(found, Benchmark):
        raise UserError(
            f"--benchmark {name}: is {type(found).__name__}, expected a Benchmark "
            f"(srum_ds/evaluation/benchmarks/protocol.py)"
        )
    given = found if name in BENCHMARKS.builtin else guarded_benchmark(f"--benchmark {name}", found)
    return replace(given, read=lambda source: _kept(given.read(source)))


def _kept(prompts: list[Prompt]) -> list[Prompt]:
    """Prompts that can be written and asked about; UserError naming one in which something is no text or no JSON."""
    for prompt in prompts:
        prompt_to_json(prompt)
    return prompts


def load_checks(name: str) -> Checks:
    """What checks pixels, for commands that ask no judge: a benchmark that does, or such an object itself.

    UserError for an unknown name, and for a benchmark that needs a judge or a detector.
    """
    found = _found(name)
    grading = found.grading if isinstance(found, Benchmark) else found
    if isinstance(grading, Checks):
        return grading if name in BENCHMARKS.builtin else GuardedChecks(f"eval.benchmark={name}", grading)
    if isinstance(found, Benchmark):
        raise UserError(
            f"eval.benchmark={name}: is scored by a judge or a detector, not from pixels: use `srum-ds eval draw` and "
            f"`srum-ds eval score --benchmark {name}`"
        )
    raise UserError(
        f"eval.benchmark={name}: is {type(found).__name__}, expected a benchmark with name, refuse, check and "
        f"region_truths (srum_ds/evaluation/benchmarks/protocol.py)"
    )


def _found(name: str, registry: Registry[Any] = BENCHMARKS) -> object:
    found = registry.get(name)
    # A class without arguments stands for its one instance.
    return foreign.run(f"{registry.setting}={name}", found) if isinstance(found, type) else found
