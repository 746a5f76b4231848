"""Training a BAGEL under ZeRO-3: two ranks whose micro-batches are of different kinds, against one plain process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from srum_ds.engine.plain import PlainEngine
from srum_ds.models.bagel.adapter import load_bagel
from tests.integration.packed_worker import settings, train
from tests.support.ranks import run_ranks
from tests.support.tiny_models import write_tiny_bagel


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    write_tiny_bagel(folder / "model")
    run_ranks(2, [str(folder)], "tests/integration/packed_worker.py")
    return folder


@pytest.mark.parametrize("mode", ["transformer", "generation"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_ranks_equal_one_process(folder: Path, mode: str, checkpointing: bool) -> None:
    """Losses and gradient norms of three steps; with recomputed blocks too, also where half of them is frozen."""
    seen = json.loads((folder / "world2.json").read_text())[f"{mode} {checkpointing}"]
    model = load_bagel(folder / "model")
    engine = PlainEngine.create(model.module, set(model.trainable(mode)), **settings())
    expected = train(engine, model)
    assert seen == [pytest.approx(step, rel=1e-5) for step in expected]
    assert expected[-1][0] < expected[0][0]
