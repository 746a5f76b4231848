"""What drawing, writing, judging and training ask of an accelerator: no waits where none is needed, and never more."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

from srum_ds.models import load_model
from srum_ds.models.protocol import UnifiedModel
from tests.support.emulated import NAME, AttentionCall, Counts, Download, Line, Tally, budgets, emulation
from tests.support.emulated.budgets import DECODE, DRAW, JUDGE, SIDE, TOKENS, TRAIN, Phase, drawn, one_step, written
from tests.support.paths import MODEL

LARGEST = 1024
"""Bytes that may come back to the host at once, images apart: some ids, scores and losses."""


@pytest.fixture(scope="module")
def model() -> UnifiedModel:
    with emulation():
        return load_model(MODEL, device=f"{NAME}:0")


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Phase]:
    return budgets.measure(tmp_path_factory.mktemp("budgets"))


@pytest.mark.parametrize("name", [DRAW, DECODE, JUDGE, TRAIN])
def test_no_phase_asks_for_more_than_its_budget(phases: dict[str, Phase], name: str) -> None:
    version, allowed = budgets.read()
    if version != budgets.minor_version():
        pytest.skip(f"the budgets were measured with torch {version}")
    rose = budgets.exceeded(name, phases[name], allowed[name])
    assert not rose, "\n".join([*rose, f"If that has to be, `{budgets.COMMAND}` writes the budgets anew."])
    if fell := budgets.fallen(name, phases[name], allowed[name]):
        warnings.warn(f"{fell}; `{budgets.COMMAND}` lowers the budget", stacklevel=1)


def test_a_sampler_step_waits_for_nothing(phases: dict[str, Phase]) -> None:
    assert budgets.totals(phases[DRAW]).launches > 0
    assert {str(line): tally.syncs for line, tally in phases[DRAW].items() if tally.syncs} == {}


def test_a_sampler_step_copies_nothing_from_the_host(phases: dict[str, Phase]) -> None:
    assert {str(line): tally.uploads for line, tally in phases[DRAW].items() if tally.uploads} == {}


def test_a_decoded_token_waits_at_most_once(phases: dict[str, Phase]) -> None:
    total = budgets.totals(phases[DECODE])
    assert total.launches >= TOKENS and total.syncs <= TOKENS


def test_attention_is_called_for_every_decoded_token(model: UnifiedModel) -> None:
    # What the budget of a token rests on: replies that go on.
    more, less = written(model, 12), written(model, 4)
    assert len(more.attention) - len(less.attention) >= 8


def is_image(copy: Download) -> bool:
    """[..., 3, height, width], or [..., height, width, 3] of bytes."""
    shape = copy.shape
    return len(shape) >= 3 and 3 in (shape[-3], shape[-1]) and min(sorted(shape[-3:])[1:]) >= 8


@pytest.mark.parametrize("readout", ["logprob", "likelihood", "generate"])
def test_nothing_large_comes_back_but_images(tmp_path: Path, readout: str) -> None:
    with emulation():
        trained = one_step(tmp_path, f"judge.readout={readout}", "judge.max_new_tokens=2", "judge.max_failed_share=1")
    for phase, counts in trained.phases.items():
        large = [str(copy) for copy in counts.downloaded if copy.bytes > LARGEST and not is_image(copy)]
        assert not large, f"{phase}: {large}"


def masked_pictures(counts: Counts) -> list[AttentionCall]:
    """Calls with a dense mask that reach as far as a picture; prompts are shorter."""
    tokens = (SIDE // 16) ** 2
    assert any(call.keys >= tokens for call in counts.attention)
    return [call for call in counts.attention if call.masked and call.keys >= tokens]


def test_drawing_builds_no_dense_mask(model: UnifiedModel) -> None:
    assert masked_pictures(drawn(model, 3)) == []


def test_training_builds_no_dense_mask(tmp_path: Path) -> None:
    with emulation():
        assert masked_pictures(one_step(tmp_path).phases["train"]) == []


def test_a_budget_that_is_exceeded_names_the_lines() -> None:
    budget = {"srum_ds/a.py f": Tally(launches=3), "srum_ds/b.py g": Tally(launches=2, syncs=1)}
    f, also_f, g = Line("srum_ds/a.py", "f", 7), Line("srum_ds/a.py", "f", 9), Line("srum_ds/b.py", "g", 1)
    now = {f: Tally(launches=4), also_f: Tally(launches=1), g: Tally(launches=1)}
    (text,) = budgets.exceeded("a phase", now, budget)
    assert re.search(r"a phase: launches rose from 5 to 6.*\n +srum_ds/a\.py:7,9 f: 3 -> 5$", text)
    assert budgets.fallen("a phase", now, budget) == "a phase: fell: syncs from 1 to 0"
    assert budgets.exceeded("a phase", now, budgets.by_place(now)) == []
