"""Runs the engine on a toy model for tests/integration/test_engine.py, under the launcher or alone.

    deepspeed --num_gpus 2 tests/integration/engine_worker.py FOLDER
    python tests/integration/engine_worker.py FOLDER

Rank 0 writes what it saw to FOLDER/world<N>.json; the weights it compares go to FOLDER as safetensors.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.paths import ROOT
from tests.support.toy import COUNT, Block, batch, distance, same, settings, toy, train, train_step, weights


def keep(engine: Any, name: str, path: Path) -> None:
    """Writes consolidated weights; all ranks call it."""
    values = weights(engine, name)
    if engine.rank == 0:
        save_file(values, path)


def main(folder: Path) -> None:
    from srum_ds.engine import Engine, read_ds_config

    torch.set_num_threads(1)
    seen: dict[str, Any] = {}

    def create(config: str = "cpu", leaf: bool = False, **changes: Any) -> Engine:
        model = toy()
        ds_config = read_ds_config(ROOT / "ds_configs" / f"{config}.json")
        if changes.pop("stage", None) == 1:
            ds_config["zero_optimization"]["stage"] = 1
        leaves = (Block,) if leaf else ()
        return Engine.create(
            model, model.trainable(), ds_config, leaf_modules=leaves, timeout_minutes=3, **settings(**changes)
        )

    def predict_alone(engine: Engine, ids: Tensor, target: Tensor) -> None:
        # Rank 0 alone calls the root module: were there any collective left inside, it would hang.
        with engine.gathered("live") as module:
            if engine.rank == 0:
                module("predict", ids, target)

    engine = create()
    seen["world"] = engine.world_size
    seen["share"] = engine.sharded_share()
    parameters: list[Any] = list(engine.module.parameters())
    seen["shards"] = [(parameter.ds_numel, parameter.ds_tensor.numel()) for parameter in parameters]
    seen["losses"] = train(engine, range(6))
    reference = weights(engine)
    keep(engine, "live", folder / f"weights_world{engine.world_size}.safetensors")
    if engine.world_size == 1:
        write(folder, engine, seen)
        return

    # A step with gathered blocks between its micro-batches equals one without.
    other = create()
    train(other, range(6), between=predict_alone)
    seen["gathered_changes_nothing"] = same(weights(other), reference)

    # Leaf modules change how parameters are gathered, not what is learned.
    leaf = create(leaf=True)
    train(leaf, range(6))
    seen["leaf_distance"] = distance(weights(leaf), reference)

    # Masters, moments and shards in the host's memory: on a CPU that is where all is, but by DeepSpeed's other ways.
    offloaded = create("zero3_offload")
    train(offloaded, range(6))
    seen["offload_distance"] = distance(weights(offloaded), reference)

    # A parameter that only one step reaches gets no second helping of its gradient.
    other = create()
    train(other, range(0, 2), mode="sometimes")
    train(other, range(2, 4))
    keep(other, "live", folder / "weights_sometimes.safetensors")

    # A gradient that is not finite changes nothing and is reported.
    before = weights(engine)
    ids, target = batch(0)
    for index in range(2):
        engine.backward(engine("loss", ids[:2], target[:2]).sum() * (math.inf if index else 1.0), COUNT, 2)
    seen["bad_norm"] = str(engine.step())
    seen["bad_step_changes_nothing"] = same(weights(engine), before)
    train(engine, range(6, 7))
    seen["training_goes_on"] = all(bool(x.isfinite().all()) for x in weights(engine).values() if x is not None)

    seen["copies"] = named_copies(create)
    seen["resume"] = {
        f"{config} {precision}": resume(create, folder / "resume", config, precision)
        for config in ("cpu", "zero2", "zero1", "zero3_offload")
        for precision in ("fp32", "bf16")
    }

    # Another world size: what one process saved, two ranks go on from, and the other way round.
    # (Fixed weights are told by a fingerprint, which is the same for any number of ranks, or this raises.)
    engine = create()
    engine.add_weights("ema")
    engine.add_weights("reference", fixed=True)
    loaded = engine.load(folder / "from_one")
    seen["loaded_from_one"] = loaded
    for name in ("live", "ema"):
        keep(engine, name, folder / f"loaded_{name}.safetensors")
    seen["losses_from_one"] = train(engine, range(3, 6))
    engine.save(folder / "from_two", 6, {"cursor": 7})
    for name in ("live", "ema"):
        keep(engine, name, folder / f"saved_{name}.safetensors")
    write(folder, engine, seen)


def named_copies(create: Any) -> dict[str, Any]:
    """Checks named copies and gathered() on them, under every stage and precision."""
    seen: dict[str, Any] = {}
    for setup in ("cpu fp32", "cpu bf16", "zero3 fp32", "zero2 fp32", "zero2 bf16", "zero3_offload bf16"):
        config, precision = setup.split()
        engine = create(config, precision=precision)
        engine.add_weights("old", fixed=setup != "cpu fp32")
        engine.add_weights("ema")
        expected = weights(engine)
        start = weights(engine)
        for step in range(3):
            train_step(engine, step)
            engine.update_weights("ema", 0.5)
            now = weights(engine)
            expected = {k: None if v is None else 0.5 * v + 0.5 * now[k] for k, v in expected.items()}
        ids, target = batch(0)
        fresh = toy().to(torch.bfloat16 if precision == "bf16" else torch.float32)
        with torch.no_grad():
            first = fresh("predict", ids, target)
        with engine.gathered("old") as module:
            old_output = module("predict", ids, target)
            held = {key: value.detach().float().clone() for key, value in module.named_parameters()}
        with engine.gathered() as module:
            live_output = module("predict", ids, target)
        try:
            with engine.gathered("ema"):
                raise KeyError("inside")
        except KeyError:
            pass
        rounded = {k: v if v is None else v.to(engine.compute_dtype).float() for k, v in start.items()}
        result = {
            "old_is_the_start": torch.equal(old_output, first),
            "live_has_moved": not torch.equal(live_output, first),
            "old_held": all(v is None or torch.equal(v, held[k]) for k, v in rounded.items()),
            "live_untouched": same(weights(engine), now),
            "ema_distance": distance(weights(engine, "ema"), expected),
        }
        train_step(engine, 3)
        twin = create(config, precision=precision)
        train(twin, range(4))
        result["trains_on_the_same"] = same(weights(twin), weights(engine))
        seen[setup] = result
    return seen


def resume(create: Any, folder: Path, config: str, precision: str) -> dict[str, Any]:
    """Three steps, a save, three more; against a new engine that loads and does the last three."""
    stage = 1 if config == "zero1" else None
    config = "zero2" if config == "zero1" else config
    folder = folder / f"{config}_{stage}_{precision}"
    engine = create(config, precision=precision, stage=stage)
    engine.add_weights("ema")
    train(engine, range(3))
    engine.update_weights("ema", 0.5)
    engine.save(folder, 3, {"cursor": 5})
    steps = train(engine, range(3, 6))
    engine.update_weights("ema", 0.5)

    again = create(config, precision=precision, stage=stage)
    again.add_weights("ema")
    loaded = again.load(folder)
    again_steps = train(again, range(3, 6))
    again.update_weights("ema", 0.5)
    return {
        "loaded": loaded,
        "same_numbers": steps == again_steps,
        "same_weights": same(weights(engine), weights(again)),
        "same_ema": same(weights(engine, "ema"), weights(again, "ema")),
    }


def write(folder: Path, engine: Any, seen: dict[str, Any]) -> None:
    verdicts: list[Any] = engine._gather_objects(seen)
    if engine.rank == 0:
        text = json.dumps({"ranks": verdicts}, indent=1)
        (folder / f"world{engine.world_size}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    from srum_ds.engine import leave_distributed

    main(Path([a for a in sys.argv[1:] if not a.startswith("--local_rank")][0]))
    leave_distributed()
