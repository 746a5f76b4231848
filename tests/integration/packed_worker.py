"""Trains a random tiny BAGEL on packed samples under DeepSpeed, for tests/integration/test_packed_ranks.py.

    PYTHONPATH=. deepspeed --num_gpus N tests/integration/packed_worker.py FOLDER

Each of two slices of the batch is a micro-batch of its own kind, so that two ranks see different experts at work:
the first has no pictures to look at, the second has texts and pictures only. Rank 0 writes FOLDER/world<N>.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from srum_ds.models.bagel.adapter import BagelAdapter, load_bagel
from srum_ds.models.bagel.packing import Latents, Part, Picture, Text
from tests.support.paths import ROOT
from tests.support.tiny_models import random_picture

STEPS = 3
COUNT = 20.0


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


def slices(model: BagelAdapter) -> list[list[Sequence[Part]]]:
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: int, columns: int, noised: bool = True) -> Latents:
        return Latents(torch.randn(rows * columns, 16, generator=generator), (rows, columns), noised)

    def words(text: str, loss: bool = False) -> Text:
        return Text(tuple(model.tokenizer.encode(text)), loss)

    draw: list[Sequence[Part]] = [
        [words("a red cat"), drawn(2, 3)],
        [drawn(2, 2, noised=False), words("bluer"), drawn(2, 2)],
    ]
    shown = Picture(*model.patches(random_picture(30, 50, 3)))
    return [draw, [[shown, words("what is it?"), words("no", loss=True)]]]


def train(engine: Any, model: BagelAdapter) -> list[tuple[float, float]]:
    """(loss, gradient norm) of some steps; two ranks take one slice each, one rank both."""
    parts = slices(model)
    mine = parts[engine.rank :: engine.world_size]
    seen = []
    for _ in range(STEPS):
        total = torch.zeros(())
        for samples in mine:
            packed = model.pack(samples, always_look=True)
            noise = torch.sin(1000 * packed["latents_GC"])
            out = engine("train", packed, noise, packed["latents_GC"][:, 0].sigmoid())
            loss = out["squared_error_KM"].sum() + out["cross_entropy_L"].sum()
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
