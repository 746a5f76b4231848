"""Which copies of the trained weights a run keeps: each costs a rank its share of the masters again."""

from __future__ import annotations

import pytest

from srum_ds.config import load_config
from srum_ds.objectives import get_objective
from srum_ds.planning.policies import policies_of
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("recipe", "words", "kept"),
    [
        ("tiny", [], ("old", "ema", "reference")),
        ("tiny", ["eval.weights=live"], ("old", "reference")),
        ("tiny", ["objective.constraint=none"], ("old", "ema")),
        ("tiny", ["objective.constraint_weight=0"], ("old", "ema")),
        ("tiny", ["objective.name=signed", "rollout.weights=live"], ("ema", "reference")),
        ("tiny", ["objective.name=signed", "objective.constraint=none", "rollout.weights=live"], ("ema",)),
        ("bagel_paper", [], ("reference",)),
    ],
)
def test_a_copy_exists_only_where_something_reads_it(recipe: str, words: list[str], kept: tuple[str, ...]) -> None:
    cfg = load_config(ROOT / f"launch/recipes/{recipe}.yaml", words)
    assert policies_of(cfg, get_objective(cfg.objective.name)) == kept
