"""Loads BAGEL folders into ZeRO-3 shards for tests/integration/test_sharding.py, under the launcher.

    deepspeed --num_gpus 2 tests/integration/sharding_worker.py FOLDER

FOLDER holds two models, ``tiny`` and ``big``. Every rank's findings go to FOLDER/found.json.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.support.paths import ROOT

QUESTIONS = ["yes or no?", "red?"]
ANSWERS = ("yes", "no")
MB = 1e6
SMALL = 1 * MB
"""Tensors beside the model's: buffers, and what collectives pad."""
GATHERED_AT_ONCE = 1 << 20
"""Elements of one all-gather; small, so that the models themselves are seen beside its buffer."""


def pictures() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(3, 28, 28, generator=generator) for _ in QUESTIONS]


def answers(model: Any) -> Tensor:
    return model.answer_logprobs(pictures(), QUESTIONS, ANSWERS)


def create(model: Any, mode: str, ds_config: dict[str, Any], precision: str = "fp32") -> Any:
    from srum_ds.engine import Engine

    return Engine.create(
        model.module,
        set(model.trainable(mode)),
        ds_config,
        lr=1e-2,
        betas=(0.9, 0.99),
        eps=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,
        warmup_steps=0,
        precision=precision,
        seed=1,
        leaf_modules=model.shard_units(),
        stored=model.stored(),
    )


def train_step(engine: Any, model: Any, step: int) -> None:
    """One step of the velocity loss on this rank's half of four noised pictures."""
    from srum_ds.types import Prompt
    from tests.support.batches import flow_view

    generator = torch.Generator().manual_seed(step)
    clean_NTC = torch.randn(4, 4, model.token_spec.size, generator=generator)
    mine = slice(engine.rank * 4 // engine.world_size, (engine.rank + 1) * 4 // engine.world_size)
    view = flow_view(clean_NTC[mine], 1, generator)
    prompts = [Prompt("a", "a red")] * len(view.target)
    v = model.predict(engine, prompts, view, (2, 2))
    engine.backward((v - 1).square().mean((1, 2, 3)).sum(), 4.0, 1)
    engine.step()


def consolidated(engine: Any) -> dict[str, Tensor]:
    return {name: value for name, value in engine.consolidate() if value is not None}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def loading(folder: Path) -> dict[str, Any]:
    """What shards and masters hold after a load, against the file and against a model loaded whole."""
    from srum_ds.engine import read_ds_config, shard_loader
    from srum_ds.models import load_model

    seen: dict[str, Any] = {}
    ds_config = read_ds_config(ROOT / "ds_configs/cpu.json")
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = load_model(folder, materialise=shard_loader(ds_config, precision))
        parameters: list[Any] = list(model.module.parameters())
        whole = sum(p.ds_numel for p in parameters)
        held = sum(p.ds_tensor.numel() for p in parameters)
        stored = {name: tensor.clone() for name, tensor in model.stored()}
        engine = create(model, "transformer", ds_config, precision)
        masters = consolidated(engine)
        with engine.gathered() as module:
            live = {name: parameter.clone() for name, parameter in module.named_parameters()}
        twin = load_model(folder)
        other = create(twin, "transformer", ds_config, precision)
        for step in range(2):
            train_step(engine, model, step)
            train_step(other, twin, step)
        trained = consolidated(engine)
        seen[precision] = {
            "held": held / whole,
            "live": same(live, {name: tensor.to(dtype) for name, tensor in stored.items()}),
            "masters": all(torch.equal(value, stored[name]) for name, value in masters.items()),
            "trains": engine.rank > 0 or not same(trained, masters),
            "as_loaded_whole": same(trained, consolidated(other)),
        }
    return seen


def judging(folder: Path, stage: str) -> dict[str, Any]:
    """A frozen copy's answers and the live model's, before and after training the whole transformer."""
    from srum_ds.config import load_config
    from srum_ds.engine import read_ds_config, shard_loader
    from srum_ds.models import load_model
    from srum_ds.rewards.judge.host import choose_judge

    words = [f"model.path={folder}", "model.trains=transformer", f"deepspeed.config={stage}"]
    cfg = load_config(ROOT / "launch/recipes/tiny.yaml", words)
    ds_config = read_ds_config(Path(cfg.deepspeed.config))
    model = load_model(folder, materialise=shard_loader(ds_config, "fp32"))
    engine = create(model, "transformer", ds_config)
    host = choose_judge(cfg, model)
    judge_engine = host.engine
    assert judge_engine is not None
    parameters: list[Any] = list(judge_engine.module.parameters())
    ours = {id(parameter) for parameter in model.module.parameters()}

    def both() -> tuple[Tensor, Tensor]:
        with engine.gathered():
            live = answers(model)
        with judge_engine.gathered():
            # The first rank alone: were there a collective left inside, it would hang.
            if engine.rank == 0:
                answers(host.judge)
            return live, answers(host.judge)

    live, frozen = both()
    for step in range(3):
        train_step(engine, model, step)
    live_after, frozen_after = both()
    sharded = all(hasattr(p, "ds_id") and p.numel() == 0 and p.ds_tensor.numel() < p.ds_numel for p in parameters)
    return {
        "agree_at_first": torch.equal(live, frozen),
        "frozen_unchanged": torch.equal(frozen, frozen_after),
        "live_moved": float((live - live_after).abs().max()),
        "shared_parameters": sum(id(parameter) in ours for parameter in parameters),
        "sharded": sharded,
        "generation_parameters": [n for n, _ in judge_engine.module.named_parameters() if "_moe_gen" in n],
        "answers": frozen.tolist(),
    }


def drawing_by_layer(folder: Path) -> dict[str, Any]:
    """Images drawn with all weights gathered, and with each layer gathered when it runs, by live and named weights.

    Ranks draw other prompts, of other lengths, and train in between: what is fetched for drawing leaves no trace.
    """
    from srum_ds.engine import read_ds_config, shard_loader
    from srum_ds.models import load_model
    from srum_ds.models.flow import FlowSampling
    from srum_ds.types import Prompt
    from tests.support.memory import TensorBytes

    ds_config = read_ds_config(ROOT / "ds_configs/cpu.json")
    seen: dict[str, Any] = {"same": [], "peak": {}, "trains": []}
    model = load_model(folder, materialise=shard_loader(ds_config, "fp32"))
    engine = create(model, "generation", ds_config)
    twin = load_model(folder, materialise=shard_loader(ds_config, "fp32"))
    twin_engine = create(twin, "generation", ds_config)
    engine.add_weights("old")
    prompts = [Prompt("a", "a red"), Prompt("b", "a red a red a red")][engine.rank :]

    def drawn() -> Tensor:
        keys = [("rollout", prompt.name) for prompt in prompts]
        return model.generate(prompts, keys, (2, 2), FlowSampling(num_timesteps=4))[1]

    for step in range(2):
        train_step(engine, model, step)
        train_step(twin_engine, twin, step)
        for weights in ("live", "old"):
            pictures = {}
            with TensorBytes() as tensors:
                for way in ("gathered", "layer_by_layer"):
                    with tensors.measured(1 << 62) as peak, getattr(engine, way)(weights):
                        pictures[way] = drawn()
                    seen["peak"][way] = peak.tensor_peak
            seen["same"].append(torch.equal(*pictures.values()))
    seen["trains"] = same(consolidated(engine), consolidated(twin_engine))
    return seen


def bytes_stored(folder: Path) -> tuple[int, int]:
    """Bytes in float32 of all tensors of a folder's weights, and of the largest; from the file's header."""
    from safetensors import safe_open

    with safe_open(folder / "ema.safetensors", "pt") as handle:
        sizes = [4 * math.prod(handle.get_slice(key).get_shape()) for key in handle.keys()]
    return sum(sizes), max(sizes)


def memory(folder: Path, run_dir: Path) -> dict[str, Any]:
    """What this rank holds while a large model is loaded, its engine made, judged and exported, and what it may.

    Under ``limits`` stand the bytes of tensors that it may hold at most, above those held before.
    """
    import torch.distributed as dist

    from srum_ds.config import Config
    from srum_ds.config.schema import ModelConfig
    from srum_ds.engine import FrozenEngine, read_ds_config, shard_loader
    from srum_ds.engine import gathering as engine_gathering
    from srum_ds.job import Job
    from srum_ds.models import load_model
    from tests.support.memory import TensorBytes

    ranks = dist.get_world_size()
    whole, largest = bytes_stored(folder)
    ds_config = read_ds_config(ROOT / "ds_configs/cpu.json")
    loader = shard_loader(ds_config, "fp32")
    found: dict[str, Any] = {}
    limits = {
        "load": whole / ranks + largest + SMALL,
        # DeepSpeed keeps gradients twice, and its shards twice while it lays them in one piece.
        "create": 3 * whole / ranks,
        # Gathering holds its buffer twice.
        "turns": whole + 4 * GATHERED_AT_ONCE,
        "export": largest + SMALL,
    }
    with TensorBytes() as tensors:
        with tensors.measured(limits["load"], python=True) as found["load"]:
            model = load_model(folder, materialise=loader)
        with tensors.measured(limits["create"]) as found["create"]:
            engine = create(model, "transformer", ds_config)
        engine.add_weights("ema")
        # What a judge lacks is known once it is there; until then it may hold what a whole model may.
        with tensors.measured(limits["load"], python=True) as found["judge_load"]:
            judge = load_model(folder, materialise=loader, only_judges=True)
            judge_engine = FrozenEngine(judge.module, ds_config, "fp32")
        engine_gathering.GATHER_NUMEL = GATHERED_AT_ONCE
        with tensors.measured(limits["turns"]) as found["turns"]:
            with engine.gathered():
                pass
            with judge_engine.gathered():
                pass
        cfg = replace(Config(), model=ModelConfig(path=str(folder)))
        monitor = SimpleNamespace(activity=lambda *said: None)
        job = SimpleNamespace(cfg=cfg, run_dir=run_dir, model=model, engine=engine, monitor=monitor)
        with tensors.measured(limits["export"], python=True) as found["export"]:
            Job.export(job, 1)  # type: ignore[arg-type]
    parameters: list[Any] = list(judge.module.parameters())
    judge_bytes = 4 * sum(p.ds_numel for p in parameters)
    limits["judge_load"] = judge_bytes / ranks + largest + SMALL
    figures = {phase: asdict(seen) for phase, seen in found.items()}
    return {"model": whole, "largest": largest, "judge": judge_bytes, "found": figures, "limits": limits}


def main(folder: Path) -> None:
    import torch.distributed as dist

    from srum_ds.engine import leave_distributed, start_distributed

    torch.set_num_threads(1)
    start_distributed(3)
    world = dist.get_world_size()
    seen = {
        "loading": loading(folder / "tiny"),
        "drawing_by_layer": drawing_by_layer(folder / "tiny"),
        "zero3": judging(folder / "tiny", str(ROOT / "ds_configs/cpu.json")),
        "zero2": judging(folder / "tiny", str(ROOT / "ds_configs/zero2.json")),
        # Last: all that is imported and set up once is there by now.
        "memory": memory(folder / "big", folder / "run"),
    }
    found: list[Any] = [None] * world
    dist.all_gather_object(found, seen)
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    leave_distributed()


if __name__ == "__main__":
    main(Path([a for a in sys.argv[1:] if not a.startswith("--local_rank")][0]))
