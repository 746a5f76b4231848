"""Packed training under ZeRO-3: two ranks whose samples need different experts, against one plain process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from srum_ds.engine.plain import PlainEngine
from srum_ds.models.bagel.adapter import load_bagel
from tests.integration.packed_worker import settings, train
from tests.integration.test_engine import environment
from tests.support.paths import ROOT
from tests.support.tiny_models import write_tiny_bagel

WORKER = Path(__file__).with_name("packed_worker.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    write_tiny_bagel(folder / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", port]
    command = [*launcher, str(WORKER), str(folder)]
    variables = environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
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
