"""How much each phase may ask of an accelerator: measured on the emulated one, kept in ``tests/golden``, only lowered.

    python -m tests.support.emulated.budgets            # writes what is measured now, and says what changed
    python -m tests.support.emulated.budgets --check    # writes nothing; exit status 1 where a budget is exceeded

A phase that asks for more than its budget fails ``tests/unit/emulated/test_budgets.py``. Who lowers one writes the file
anew and commits it with the change; who has to raise one does the same and says why in the commit message.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from srum_ds.models import load_model
from srum_ds.models.flow import FlowSampling
from srum_ds.models.protocol import UnifiedModel
from srum_ds.rollouts.collect import roll_out
from srum_ds.types import Prompt
from tests.support.emulated.counts import Counts, Line, Tally, counted
from tests.support.emulated.device import emulation
from tests.support.emulated.tensor import NAME
from tests.support.emulated.training import Trained, short_recipe, train_on
from tests.support.paths import GOLDEN, MODEL, RECIPE
from tests.support.runs import write_prompts

FILE = GOLDEN / "emulated_budgets.json"
COMMAND = "python -m tests.support.emulated.budgets"

STEPS = 4
TOKENS = 32
DRAW, DECODE, JUDGE, TRAIN = f"{STEPS} sampler steps", f"{TOKENS} decoded tokens", "judge call", "training step"

PROMPTS = (Prompt("a", "a red circle"), Prompt("b", "two green crosses"))
SIDE = 64
"""Pixels along each side of an image, whose 16 tokens are more than any of the prompts has."""

Phase = dict[Line, Tally]
"""What a phase asks for, by line."""

Budget = dict[str, Tally]
"""What a phase may ask for, by file and function (``Line.place``), which stay when lines are added above."""


def measure(folder: Path) -> dict[str, Phase]:
    """All phases on the emulated device, with the embedded model. ``folder``: for a run, empty before."""
    with emulation():
        model = load_model(MODEL, device=f"{NAME}:0")
        trained = one_step(folder, "regions.kind=grid")
        return {
            DRAW: _difference(drawn(model, 3 + STEPS), drawn(model, 3)),
            DECODE: _difference(written(model, 4 + TOKENS), written(model, 4)),
            JUDGE: dict(trained.phases["judge"].lines),
            TRAIN: dict(trained.phases["train"].lines),
        }


def drawn(model: UnifiedModel, time_points: int) -> Counts:
    """What drawing two images of each of two prompts asks for, every sampler step with guidance."""
    sampling = FlowSampling(num_timesteps=time_points, text_scale=1.25, interval=(0.0, 1.0))
    with counted() as counts:
        roll_out(model, PROMPTS, 2, (SIDE, SIDE), sampling, seed=0, step=0)
    return counts


def written(model: UnifiedModel, tokens: int, temperature: float = 0.0) -> Counts:
    """What two replies of ``tokens`` tokens ask for. The tiny model repeats its one word for ever."""
    images = [torch.zeros(3, 56, 56, device=f"{NAME}:0"), torch.ones(3, 56, 56, device=f"{NAME}:0")]
    questions = [f"does the picture show {prompt.text}?" for prompt in PROMPTS]
    seeds = [0, 1] if temperature else None
    with counted() as counts:
        model.answer(images, questions, tokens, temperature=temperature, seeds=seeds)
    return counts


def one_step(folder: Path, *settings: str) -> Trained:
    """A step of ``train()`` with two prompts, two images of each."""
    prompts = write_prompts(folder / "prompts", 4)
    return train_on(f"{NAME}:0", short_recipe(RECIPE, prompts, folder / "run", *settings))


def _difference(more: Counts, less: Counts) -> Phase:
    """What the first run asks for beyond the second: the cost of what it does more often."""
    found = {line: tally.minus(less.lines.get(line, Tally())) for line, tally in more.lines.items()}
    return {line: tally for line, tally in found.items() if tally != Tally()}


def by_place(phase: Phase) -> Budget:
    """A phase's counts by file and function: the budget that it just keeps."""
    found: Budget = {}
    for line, tally in sorted(phase.items(), key=lambda item: item[0].place):
        found.setdefault(line.place, Tally()).add(tally)
    return found


def totals(phase: Mapping[Any, Tally]) -> Tally:
    """The sum over all places."""
    total = Tally()
    for tally in phase.values():
        total.add(tally)
    return total


def exceeded(name: str, phase: Phase, budget: Budget) -> list[str]:
    """What a phase asks for beyond its budget, a paragraph each with the lines; empty where it keeps within it."""
    found = []
    now, before = totals(phase), totals(budget)
    for each in fields(Tally):
        count, allowed = getattr(now, each.name), getattr(before, each.name)
        if count > allowed:
            places = _grown(each.name, phase, budget)
            found.append("\n".join([f"{name}: {each.name} rose from {allowed} to {count}, in", *places]))
    return found


def _grown(what: str, phase: Phase, budget: Budget) -> list[str]:
    """The functions where a count grew, from what to what, with the lines that it stands at now."""
    found = []
    for place, tally in by_place(phase).items():
        count, allowed = getattr(tally, what), getattr(budget.get(place, Tally()), what)
        if count > allowed:
            numbers = sorted(line.number for line, t in phase.items() if line.place == place and getattr(t, what))
            file, _, function = place.partition(" ")
            found.append(f"    {file}:{','.join(map(str, numbers))} {function}: {allowed} -> {count}")
    return found


def fallen(name: str, phase: Phase, budget: Budget) -> str:
    """What a phase asks less for than its budget allows, in a line; empty where nothing."""
    now, before = asdict(totals(phase)), asdict(totals(budget))
    counts = [f"{what} from {before[what]} to {now[what]}" for what in now if now[what] < before[what]]
    return f"{name}: fell: {', '.join(counts)}" if counts else ""


def read() -> tuple[str, dict[str, Budget]]:
    """The version of torch that the budgets were measured with, and the budgets."""
    content = json.loads(FILE.read_text())
    return content["torch"], {
        name: {place: Tally(**tally) for place, tally in places.items()} for name, places in content["phases"].items()
    }


def write(phases: Mapping[str, Phase]) -> None:
    """Writes budgets that are just what was measured, a line a function; counts that are 0 are left out."""
    parts = []
    for name, phase in phases.items():
        lines = [
            f"   {json.dumps(place)}: {json.dumps({what: n for what, n in asdict(tally).items() if n})}"
            for place, tally in by_place(phase).items()
        ]
        parts.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n  }")
    torch_line = f' "torch": {json.dumps(minor_version())},'
    FILE.write_text("\n".join(["{", torch_line, ' "phases": {', ",\n".join(parts), " }", "}"]) + "\n")


def minor_version() -> str:
    """Torch's, as in 2.13: another one may take its operations apart otherwise."""
    return ".".join(torch.__version__.split(".")[:2])


def main(arguments: Sequence[str]) -> int:
    """Measures, says what changed, and writes the file unless only asked to check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where a budget is exceeded")
    only_checks = parser.parse_args(arguments).check
    with tempfile.TemporaryDirectory() as folder:
        phases = measure(Path(folder))
    known = read()[1] if FILE.exists() else {}
    rose = [text for name, phase in phases.items() for text in exceeded(name, phase, known.get(name, {}))]
    fell = [fallen(name, phase, known.get(name, {})) for name, phase in phases.items()]
    print("\n".join([*rose, *filter(None, fell)]) or "nothing changed")
    if not only_checks:
        write(phases)
    return 1 if only_checks and rose else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
