"""The engine: numbers, sharding, gathering, named copies, checkpoints. One launch of two ranks for most."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.support.launching import environment
from tests.support.ranks import run_alone, run_ranks
from tests.support.toy import distance, plain, same, toy, train, weights

WORKER = "tests/integration/engine_worker.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process saved a checkpoint, and two ranks and one rank then ran the worker."""
    folder = tmp_path_factory.mktemp("engine")
    engine = plain()
    engine.add_weights("ema")
    engine.add_weights("reference", fixed=True)
    train(engine, range(3))
    engine.update_weights("ema", 0.25)
    engine.save(folder / "from_one", 3, {"cursor": 3})

    run_ranks(2, [str(folder)], WORKER)
    run_alone([str(folder)], WORKER)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What each of two ranks saw."""
    return json.loads((folder / "world2.json").read_text())["ranks"]


def reference_steps(steps: range = range(6)) -> list[tuple[float, float]]:
    return train(plain(), steps)


# ---- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2])
def test_deepspeed_trains_like_the_plain_engine(folder: Path, world: int) -> None:
    seen = json.loads((folder / f"world{world}.json").read_text())["ranks"]
    for rank in seen:
        assert rank["losses"] == [pytest.approx(step, rel=1e-5) for step in reference_steps()]
    engine = plain()
    train(engine, range(6))
    assert distance(load_file(folder / f"weights_world{world}.safetensors"), weights(engine)) < 1e-6


def test_every_parameter_is_really_sharded(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert len(rank["shards"]) == len(list(toy().parameters()))
        assert all(held == math.ceil(numel / 2) for numel, held in rank["shards"])
        whole = sum(numel for numel, _ in rank["shards"])
        assert rank["share"] == pytest.approx((whole - 1) / whole)  # the one-element parameter cannot be


def test_one_rank_shards_nothing(folder: Path) -> None:
    assert json.loads((folder / "world1.json").read_text())["ranks"][0]["share"] == 0.0


def test_leaf_modules_learn_the_same(ranks: list[dict[str, Any]]) -> None:
    """The first block gets an input without gradient and runs twice: DeepSpeed's own leaves fail at both."""
    assert ranks[0]["leaf_distance"] < 1e-6


def test_offloaded_to_the_host_it_learns_the_same(ranks: list[dict[str, Any]]) -> None:
    """`ds_configs/zero3_offload.json`, with torch's AdamW: DeepSpeed's own for the host would be compiled first."""
    assert ranks[0]["offload_distance"] < 1e-6


def test_unreached_parameter_does_not_reuse_its_old_gradient(folder: Path, ranks: Any) -> None:
    engine = plain()
    train(engine, range(0, 2), mode="sometimes")
    train(engine, range(2, 4))
    assert distance(load_file(folder / "weights_sometimes.safetensors"), weights(engine)) < 1e-6


def test_bad_gradient_changes_nothing(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["bad_norm"] == "nan"
        assert rank["bad_step_changes_nothing"] and rank["training_goes_on"]


# ---- gathering and named copies --------------------------------------------------------------------


def test_gathering_between_micro_batches_changes_nothing(ranks: list[dict[str, Any]]) -> None:
    """Inside, rank 0 alone called the root module: a collective left there would have hung the run."""
    assert all(rank["gathered_changes_nothing"] for rank in ranks)


@pytest.mark.parametrize(
    "setup", ["cpu fp32", "cpu bf16", "zero3 fp32", "zero2 fp32", "zero2 bf16", "zero3_offload bf16"]
)
def test_named_copies(ranks: list[dict[str, Any]], setup: str) -> None:
    for rank in ranks:
        seen = rank["copies"][setup]
        assert seen.pop("ema_distance") < 1e-6
        assert all(seen.values()), seen


# ---- checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setup",
    [
        f"{config} {precision}"
        for config in ("cpu", "zero2", "zero1", "zero3_offload")
        for precision in ("fp32", "bf16")
    ],
)
def test_resume_is_bit_exact(ranks: list[dict[str, Any]], setup: str) -> None:
    for rank in ranks:
        assert rank["resume"][setup] == {
            "loaded": [3, {"cursor": 5}],
            "same_numbers": True,
            "same_weights": True,
            "same_ema": True,
        }


def test_two_ranks_go_on_from_one(folder: Path, ranks: list[dict[str, Any]]) -> None:
    engine = plain()
    engine.add_weights("ema")
    assert engine.load(folder / "from_one") == (3, {"cursor": 3})
    assert ranks[0]["loaded_from_one"] == [3, {"cursor": 3}]
    assert same(load_file(folder / "loaded_live.safetensors"), weights(engine))
    assert same(load_file(folder / "loaded_ema.safetensors"), weights(engine, "ema"))
    steps = train(engine, range(3, 6))
    assert ranks[0]["losses_from_one"] == [pytest.approx(step, rel=1e-5) for step in steps]
    assert steps == reference_steps()[3:]


def test_one_process_goes_on_from_two_ranks(folder: Path, ranks: Any) -> None:
    engine = plain()
    engine.add_weights("ema")
    assert engine.load(folder / "from_two") == (6, {"cursor": 7})
    assert same(load_file(folder / "saved_live.safetensors"), weights(engine))
    assert same(load_file(folder / "saved_ema.safetensors"), weights(engine, "ema"))
    never_stopped = plain()
    train(never_stopped, range(6))
    assert train(engine, range(6, 8)) == [pytest.approx(s, rel=1e-5) for s in train(never_stopped, range(6, 8))]


def loaded(folder: Path) -> tuple[int, dict[str, Any]] | None:
    return plain().load(folder)


def test_kill_9_while_saving_over_and_over(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.support.toy import plain\n"
        "engine = plain()\n"
        "for step in range(1, 10**6):\n"
        "    engine.save(Path(sys.argv[1]), step, {'at': step})\n"
        "    print(step, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, env=environment(), text=True
    ) as process:
        assert process.stdout is not None
        said = 0
        while said < 5:
            said = int(process.stdout.readline())
        time.sleep(0.0123)
        process.send_signal(signal.SIGKILL)
        said = max([said, *(int(line) for line in process.stdout if line.endswith("\n"))])
    step, extra = loaded(tmp_path) or (0, {})
    assert step >= said and extra == {"at": step}


# ---- configs ---------------------------------------------------------------------------------------
