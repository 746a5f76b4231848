"""The engine: numbers, sharding, gathering, named copies, checkpoints. One launch of two ranks for most."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from srum_ds.common.errors import UserError
from srum_ds.engine import checkpoint_files as checkpoint
from srum_ds.engine.base import Settings, learning_rate
from srum_ds.engine.config import read_ds_config
from srum_ds.engine.plain import PlainEngine
from tests.integration.engine_worker import (
    COUNT,
    ROOT,
    Toy,
    batch,
    distance,
    same,
    settings,
    toy,
    train,
    train_step,
    weights,
)

WORKER = ROOT / "tests/integration/engine_worker.py"


def plain(model: Toy | None = None, **changes: Any) -> PlainEngine:
    model = model or toy()
    return PlainEngine.create(model, model.trainable(), **settings(**changes))


def environment() -> dict[str, str]:
    tools = str(Path(sys.executable).parent)
    extensions = str(Path(sys.prefix) / "torch_extensions")
    fixed = {"OMP_NUM_THREADS": "1", "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    if not torch.cuda.is_available():
        fixed["DS_ACCELERATOR"] = "cpu"
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return {"TORCH_EXTENSIONS_DIR": extensions} | clean | fixed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process saved a checkpoint, and two ranks and one rank then ran the worker."""
    folder = tmp_path_factory.mktemp("engine")
    engine = plain()
    engine.add_weights("ema")
    train(engine, range(3))
    engine.update_weights("ema", 0.25)
    engine.save(folder / "from_one", 3, {"cursor": 3})

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", port]
    for command in ([*launcher, str(WORKER), str(folder)], [sys.executable, str(WORKER), str(folder)]):
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What each of two ranks saw."""
    return json.loads((folder / "world2.json").read_text())["ranks"]


def reference_steps(steps: range = range(6)) -> list[tuple[float, float]]:
    return train(plain(), steps)


# ---- numbers ---------------------------------------------------------------------------------------


def test_gradient_is_that_of_the_whole_batch_divided_by_the_count() -> None:
    """An outside check of the yardstick: one big batch through autograd, AdamW's first step by hand."""
    model = toy()
    ids, target = batch(0)
    losses = model("loss", ids, target)
    expected_loss = losses.sum() / COUNT
    expected_loss.backward()
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if name in model.trainable() and parameter.grad is not None
    }
    norm = float(torch.cat([gradient.flatten() for gradient in gradients.values()]).norm())
    engine = plain()
    loss, seen_norm = train_step(engine, 0)
    assert loss == pytest.approx(expected_loss.item(), rel=1e-6)
    assert seen_norm == pytest.approx(norm, rel=1e-5)
    # After one step AdamW has moved every weight by lr * (sign(gradient) + decay * weight).
    rate = 1e-2 / 3
    before, after = dict(toy().named_parameters()), weights(engine)
    for name, gradient in gradients.items():
        big = gradient.abs() > 1e-3
        moved = before[name] - after[name]
        expected = rate * (gradient.sign() + 0.01 * before[name])
        assert torch.allclose(moved[big], expected[big], atol=2e-6)


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


def test_unreached_parameter_does_not_reuse_its_old_gradient(folder: Path, ranks: Any) -> None:
    engine = plain()
    train(engine, range(0, 2), mode="sometimes")
    train(engine, range(2, 4))
    assert distance(load_file(folder / "weights_sometimes.safetensors"), weights(engine)) < 1e-6


def test_bad_gradient_changes_nothing(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["bad_norm"] == "nan"
        assert rank["bad_step_changes_nothing"] and rank["training_goes_on"]


def test_warm_up_then_constant() -> None:
    constant = Settings(3.0, (0.9, 0.95), 1e-8, 0.0, 1.0, warmup_steps=3)
    assert [learning_rate(constant, step) for step in range(5)] == [1.0, 2.0, 3.0, 3.0, 3.0]
    assert learning_rate(replace(constant, warmup_steps=0), 0) == 3.0


def test_the_rate_falls_along_half_a_cosine_to_the_end_of_the_run() -> None:
    falling = Settings(4.0, (0.9, 0.95), 1e-8, 0.0, 1.0, warmup_steps=2, decay_steps=10)
    rates = [learning_rate(falling, step) for step in range(11)]
    assert rates[:3] == [2.0, 4.0, 4.0]
    assert rates[6] == pytest.approx(2.0), "half-way between the warm-up's end and the run's"
    assert rates[8] == pytest.approx(2 * (1 - math.sqrt(0.5)))
    assert rates[10] == pytest.approx(0.0)
    assert all(later <= earlier for earlier, later in zip(rates[1:], rates[2:], strict=False))


def test_engine_refuses_wrong_use() -> None:
    model = toy()
    with pytest.raises(ValueError, match="no such parameters in Toy: blocks.9"):
        PlainEngine.create(model, {"blocks.9"}, **settings())
    with pytest.raises(ValueError, match="nothing to train"):
        PlainEngine.create(model, set(), **settings())
    with pytest.raises(ValueError, match="no weights named 'old'; there are: live, ema"):
        engine = plain()
        engine.add_weights("ema")
        engine.update_weights("old", 0.5)


# ---- gathering and named copies --------------------------------------------------------------------


def test_gathering_between_micro_batches_changes_nothing(ranks: list[dict[str, Any]]) -> None:
    """Inside, rank 0 alone called the root module: a collective left there would have hung the run."""
    assert all(rank["gathered_changes_nothing"] for rank in ranks)


@pytest.mark.parametrize("setup", ["cpu fp32", "cpu bf16", "zero3 fp32", "zero2 fp32", "zero2 bf16"])
def test_named_copies(ranks: list[dict[str, Any]], setup: str) -> None:
    for rank in ranks:
        seen = rank["copies"][setup]
        assert seen.pop("ema_distance") < 1e-6
        assert all(seen.values()), seen


def test_plain_engine_named_copies() -> None:
    engine = plain(precision="bf16")
    engine.add_weights("old")
    start = weights(engine)
    train(engine, range(2))
    live = weights(engine)
    with engine.gathered("old") as module:
        assert not torch.is_grad_enabled()
        assert torch.equal(module.get_parameter("head.weight"), start["head.weight"].bfloat16())
    assert torch.equal(engine.module.get_parameter("head.weight"), live["head.weight"].bfloat16())
    assert same(weights(engine, "old"), start) and same(weights(engine), live)


# ---- checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setup",
    [f"{config} {precision}" for config in ("cpu", "zero2", "zero1") for precision in ("fp32", "bf16")],
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
    assert engine.load(folder / "from_two") == (6, {"cursor": 7})
    assert same(load_file(folder / "saved_live.safetensors"), weights(engine))
    assert same(load_file(folder / "saved_ema.safetensors"), weights(engine, "ema"))
    never_stopped = plain()
    train(never_stopped, range(6))
    assert train(engine, range(6, 8)) == [pytest.approx(s, rel=1e-5) for s in train(never_stopped, range(6, 8))]


def saved(folder: Path, steps: int = 2) -> PlainEngine:
    """An engine with ``steps`` checkpoints behind it, one a step."""
    engine = plain()
    for step in range(1, steps + 1):
        train_step(engine, step)
        engine.save(folder, step, {"at": step})
    return engine


def loaded(folder: Path) -> tuple[int, dict[str, Any]] | None:
    return plain().load(folder)


def test_load_finds_nothing(tmp_path: Path) -> None:
    assert loaded(tmp_path / "absent") is None
    assert loaded(tmp_path) is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, steps=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000003", "step_000004"]
    assert json.loads((tmp_path / "step_000004" / "state.json").read_text())["optimizer_steps"] == 4


def test_load_goes_back_to_an_asked_step_or_the_oldest_that_is_left(tmp_path: Path) -> None:
    engine = plain()
    for step in (1, 2, 3):
        train(engine, range(step - 1, step))
        engine.save(tmp_path, step, {"at": step}, keep=2)
    for newest, expected in ((None, 3), (9, 3), (2, 2), (1, 2), (0, 2)):
        fresh = plain()
        assert fresh.load(tmp_path, newest=newest) == (expected, {"at": expected})
        assert fresh.steps == expected


class Killed(BaseException):
    """A kill -9: nothing catches it, nothing is cleaned up."""


def test_killed_at_any_moment_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dies before every single thing a save does to the disk; what is loaded is whole, old or new."""
    calls = 0
    deadly = 0

    def dying(function: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == deadly:
                raise Killed
            return function(*args, **kwargs)

        return wrapper

    engine = saved(tmp_path, steps=2)
    train_step(engine, 3)
    new = weights(engine)
    found = []
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", dying(checkpoint.save_file))
        patch.setattr(checkpoint.os, "fsync", dying(os.fsync))
        patch.setattr(checkpoint.os, "rename", dying(os.rename))
        patch.setattr(checkpoint.shutil, "rmtree", dying(shutil.rmtree))
        patch.setattr(Path, "write_text", dying(Path.write_text))
        patch.setattr(Path, "mkdir", dying(Path.mkdir))
        for deadly in range(1, 100):
            here = tmp_path.with_name(f"{tmp_path.name}_{deadly}")
            calls = -(10**9)
            shutil.copytree(tmp_path, here)
            calls = 0
            try:
                engine.save(here, 3, {"at": 3})
            except Killed:
                pass
            else:
                break
            finally:
                calls = -(10**9)
            again = plain()
            step, extra = again.load(here) or (0, {})
            assert extra == {"at": step}
            assert step == 2 or (step == 3 and same(weights(again), new))
            assert not [path for path in here.iterdir() if path.name.endswith(".partial")]
            found.append(step)
    assert found == sorted(found) and set(found) == {2, 3}, found


def test_kill_9_while_saving_over_and_over(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from tests.integration.test_engine import plain\n"
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


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        contents = bytearray(path.read_bytes())
        contents[-3] ^= 0x40
        path.write_bytes(contents)


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
@pytest.mark.parametrize("name", ["rank_00000.safetensors", "state.json"])
def test_damaged_checkpoint_falls_back(tmp_path: Path, how: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path)
    damage(tmp_path / "step_000002" / name, how)
    engine = plain()
    assert engine.load(tmp_path) == (1, {"at": 1})
    assert "step_000002 IS DAMAGED" in caplog.text and name in caplog.text
    expected = plain()
    train_step(expected, 1)
    assert same(weights(engine), weights(expected))
    # The run goes on past the damaged one, which is kept aside.
    train_step(engine, 2)
    engine.save(tmp_path, 2, {"at": 2})
    assert loaded(tmp_path) == (2, {"at": 2})
    assert (tmp_path / "step_000002.corrupt").is_dir()


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path)
    for step in (1, 2):
        damage(tmp_path / f"step_{step:06d}" / "rank_00000.safetensors", "truncated")
    with pytest.raises(UserError, match="no usable checkpoint in .*all of them are damaged"):
        loaded(tmp_path)


def test_checkpoint_of_another_model_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(UserError, match=r"belongs to another model: .* parameters differ, e.g. blocks"):
        plain(Toy(width=5)).load(tmp_path)
    with pytest.raises(UserError, match="has no ema weights"):
        engine = plain()
        engine.add_weights("ema")
        engine.load(tmp_path)


def test_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = saved(tmp_path)
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        patch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(UserError, match=f"no room for a checkpoint in {tmp_path}: it needs [0-9,]+ bytes"):
            engine.save(tmp_path, 3, {"at": 3})
    with monkeypatch.context() as patch:

        def full(contents: Any, path: Path, metadata: Any) -> None:
            path.write_bytes(b"half of it")
            raise SafetensorError("I/O error: No space left on device (os error 28)")

        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(UserError, match="No space left on device"):
            engine.save(tmp_path, 3, {"at": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000001", "step_000002"]
    assert loaded(tmp_path) == (2, {"at": 2})


# ---- configs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.name)
def test_shipped_configs_are_accepted(path: Path) -> None:
    config = read_ds_config(path)["zero_optimization"]
    assert config["stage"] == (2 if path.name == "zero2.json" else 3)
    if config["stage"] == 3:
        assert config["stage3_param_persistence_threshold"] == 0


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ('{"zero_optimization": {"stage": 0}}', "it must be 1, 2 or 3"),
        ("{}", "it must be 1, 2 or 3"),
        ('{"zero_optimization": true}', "zero_optimization must be an object"),
        (
            '{"zero_optimization": {"stage": 3}, "fp16": {}}',
            "remove 'fp16'; the recipe sets it .train.precision",
        ),
        ('{"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}', "nvme is not supported"),
    ],
)
def test_bad_config_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(UserError, match=f"deepspeed.config: .*{message}"):
        read_ds_config(tmp_path / "ds.json")


def test_absent_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*absent.json"):
        read_ds_config(tmp_path / "absent.json")
