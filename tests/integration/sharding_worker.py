"""Loads BAGEL folders into ZeRO-3 shards for tests/integration/test_sharding.py, under the launcher.

    deepspeed --num_gpus 2 tests/integration/sharding_worker.py FOLDER

FOLDER holds two models, ``tiny`` and ``big``. Every rank's findings go to FOLDER/found.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

QUESTIONS = ["yes or no?", "red?"]
ANSWERS = ("yes", "no")
ATTEMPTS = 3


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
        leaf_modules=model.leaf_modules(),
        stored=model.stored(),
    )


def train_step(engine: Any, model: Any, step: int) -> None:
    """One step of the velocity loss on this rank's half of four noised pictures."""
    from srum_ds.types import Prompt

    channels = model.config.token_channels
    generator = torch.Generator().manual_seed(step)
    x_NTC = torch.randn(4, 4, channels, generator=generator)
    mine = slice(engine.rank * 4 // engine.world_size, (engine.rank + 1) * 4 // engine.world_size)
    x = x_NTC[mine]
    ids = torch.stack(model.prompt_ids([Prompt("a", "a red")] * len(x)))
    length = torch.full((len(x),), ids.shape[1])
    t = torch.full((len(x), 1), 0.5)
    v = engine("denoise", ids, length, torch.zeros(len(x), 1, dtype=torch.bool), x[:, None], t, torch.tensor([2, 2]))
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
    seat = choose_judge(cfg, model)
    judge_engine = seat.engine
    assert judge_engine is not None
    parameters: list[Any] = list(judge_engine.module.parameters())
    ours = {id(parameter) for parameter in model.module.parameters()}

    def both() -> tuple[Tensor, Tensor]:
        with engine.gathered():
            live = answers(model)
        with judge_engine.gathered():
            # The first rank alone: were there a collective left inside, it would hang.
            if engine.rank == 0:
                answers(seat.judge)
            return live, answers(seat.judge)

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


def lowest(figures: list[dict[str, int]]) -> dict[str, int]:
    """The attempt with the lowest peak: other threads, and other work on the machine, only ever add to it.

    (A collective's own thread may hold a tensor for a moment after its caller has been woken.)
    """
    return min(figures, key=lambda found: found["peak"])


def memory(folder: Path, run_dir: Path) -> dict[str, Any]:
    """Anonymous memory of this rank while a large model is loaded, trained a step, judged and exported."""
    from srum_ds.config import Config
    from srum_ds.engine import FrozenEngine, read_ds_config, shard_loader
    from srum_ds.engine import gathering as engine_gathering
    from srum_ds.models import load_model
    from srum_ds.train import export
    from tests.support.memory import Peak

    ds_config = read_ds_config(ROOT / "ds_configs/cpu.json")
    loader = shard_loader(ds_config, "fp32")
    loads = []
    for _ in range(ATTEMPTS):
        model = None
        with Peak() as load:
            model = load_model(folder, materialise=loader)
        loads.append(load.figures())
    assert model is not None
    parameters: list[Any] = list(model.module.parameters())
    numels = [p.ds_numel for p in parameters]
    with Peak() as make:
        engine = create(model, "transformer", ds_config)
    engine.add_weights("ema")
    with Peak() as judge_load:
        judge = load_model(folder, materialise=loader, only_looks=True)
        judge_engine = FrozenEngine(judge.module, ds_config, "fp32")
    parameters = list(judge.module.parameters())
    judge_numel = sum(p.ds_numel for p in parameters)
    # Gathering has a buffer beside what it gathers; small, so that the models themselves are seen.
    engine_gathering._GATHER_NUMEL = 1 << 20
    with Peak() as turns:
        with engine.gathered():
            pass
        with judge_engine.gathered():
            pass
    exports = []
    for _ in range(ATTEMPTS):
        with Peak() as write:
            export(Config(), engine, model, run_dir)
        exports.append(write.figures())
    return {
        "model": 4 * sum(numels),
        "largest": 4 * max(numels),
        "judge": 4 * judge_numel,
        "load": lowest(loads),
        "create": make.figures(),
        "judge_load": judge_load.figures(),
        "turns": turns.figures(),
        "export": lowest(exports),
    }


def main(folder: Path) -> None:
    import torch.distributed as dist

    from srum_ds.engine import leave_distributed, start_distributed

    torch.set_num_threads(1)
    start_distributed(3)
    world = dist.get_world_size()
    seen = {
        "loading": loading(folder / "tiny"),
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
