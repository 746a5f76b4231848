"""Trains a random tiny BAGEL along the loop's path under DeepSpeed, for tests/integration/test_packed_ranks.py.

    PYTHONPATH=. deepspeed --num_gpus N tests/integration/packed_worker.py FOLDER

Each of two slices of the batch is a micro-batch of its own kind: prompts of other lengths, images of another size, and
all views of the second are trained without their prompts. Rank 0 writes FOLDER/world<N>.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from srum_ds.models.bagel.adapter import BagelAdapter, load_bagel
from srum_ds.types import Prompt, TrainView
from tests.support.paths import ROOT

STEPS = 3
COUNT = 28.0


def settings() -> dict[str, Any]:
    return {
        "lr": 1e-3,
        "betas": (0.9, 0.99),
        "eps": 1e-6,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "warmup_steps": 2,
        "precision": "fp32",
        "seed": 1,
    }


@dataclass(frozen=True)
class MicroBatch:
    """Prompts, one per image, and two views of each image."""

    prompts: list[Prompt]
    view: TrainView
    grid: tuple[int, int]


def slices() -> list[MicroBatch]:
    """Two micro-batches: 2 images of 6 tokens and 1 image of 2 tokens, with two views each."""
    generator = torch.Generator().manual_seed(0)

    def micro_batch(texts: tuple[str, ...], grid: tuple[int, int], dropped: list[list[bool]]) -> MicroBatch:
        shape = (len(texts), 2, grid[0] * grid[1])
        inputs = {
            "x_NMTC": torch.randn(*shape, 16, generator=generator),
            "time_NM": torch.rand(shape[:2], generator=generator),
            "dropped_NM": torch.tensor(dropped),
        }
        target = torch.randn(*shape, 16, generator=generator)
        view = TrainView(inputs, target, torch.ones(shape, dtype=torch.bool))
        return MicroBatch([Prompt(text, text) for text in texts], view, grid)

    return [
        micro_batch(("a red cat", "bluer"), (2, 3), [[False, True], [False, False]]),
        micro_batch(("no",), (1, 2), [[True, True]]),
    ]


def train(engine: Any, model: BagelAdapter) -> list[tuple[float, float]]:
    """(loss, gradient norm) of some steps; two ranks take one slice each, one rank both."""
    mine = slices()[engine.rank :: engine.world_size]
    seen = []
    for _ in range(STEPS):
        total = torch.zeros(())
        for batch in mine:
            velocity = model.predict(engine, batch.prompts, batch.view, batch.grid)
            loss = (velocity - batch.view.target).square().mean(dim=-1).sum()
            engine.backward(loss, COUNT, len(mine))
            total += loss.detach() / COUNT
        engine.all_reduce(total)
        seen.append((float(total), engine.step()))
    return seen


def main(folder: Path) -> None:
    from srum_ds.engine import Engine, read_ds_config

    torch.set_num_threads(1)
    seen: dict[str, list[tuple[float, float]]] = {}
    for mode in ("transformer", "generation"):
        for checkpointing in (False, True):
            model = load_bagel(folder / "model")
            model.enable_checkpointing(checkpointing)
            engine = Engine.create(
                model.module,
                set(model.trainable(mode)),
                read_ds_config(ROOT / "ds_configs/cpu.json"),
                leaf_modules=model.shard_units(),
                timeout_minutes=3,
                **settings(),
            )
            seen[f"{mode} {checkpointing}"] = train(engine, model)
            world, rank = engine.world_size, engine.rank
    if rank == 0:
        (folder / f"world{world}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    from srum_ds.engine import leave_distributed

    main(Path([a for a in sys.argv[1:] if not a.startswith("--local_rank")][0]))
    leave_distributed()
