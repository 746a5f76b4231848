"""A small module with odd sizes, and steps that train it under any engine and any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srum_ds.engine.plain import PlainEngine

COUNT = 40.0


SAMPLES = 8


MICRO_BATCH = 2


class Block(nn.Module):
    """A residual block with odd sizes, so that nothing divides evenly over ranks, and a frozen part."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width + 1)
        self.down = nn.Linear(2 * width + 1, width)
        self.frozen = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(x)
        return x + self.down(torch.tanh(self.up(hidden))) + 0.1 * self.frozen(hidden)


class Toy(nn.Module):
    """About thirty small tensors; dispatches on a mode, as the real model does."""

    def __init__(self, width: int = 7, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, 3)
        self.scale = nn.Parameter(torch.ones(1))
        self.sometimes = nn.Linear(width, 5)

    def forward(self, mode: str, ids: Tensor, target: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        # Once more, as a text and a picture go through the same layers in one forward.
        y = self.head(self.blocks[0](x)) * self.scale
        if mode == "predict":
            return y
        if mode == "sometimes":
            y = y + self.sometimes(x).sum(-1, keepdim=True)
        return (y.float() - target).pow(2).sum(-1)

    def trainable(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if "frozen" not in name and "embed" not in name}


def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


def settings(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "lr": 1e-2,
        "betas": (0.9, 0.99),
        "eps": 1e-8,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "warmup_steps": 3,
        "precision": "fp32",
        "seed": 1,
    }
    return values | changes


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 11, (SAMPLES, 5), generator=generator)
    return ids, torch.randn(SAMPLES, 5, 3, generator=generator)


def train_step(engine: Any, step: int, mode: str = "loss", between: Any = None) -> tuple[float, float]:
    """One step on this rank's slice of the global batch; micro-batches are the same for any world."""
    ids, target = batch(step)
    mine = SAMPLES // engine.world_size
    micro_batches = mine // MICRO_BATCH
    total = torch.zeros(())
    for index in range(micro_batches):
        start = engine.rank * mine + index * MICRO_BATCH
        part = slice(start, start + MICRO_BATCH)
        loss = engine(mode, ids[part], target[part]).sum()
        engine.backward(loss, COUNT, micro_batches)
        total += loss.detach() / COUNT
        if between is not None:
            between(engine, ids, target)
    engine.all_reduce(total)
    return float(total), engine.step()


def train(engine: Any, steps: range, mode: str = "loss", between: Any = None) -> list[tuple[float, float]]:
    return [train_step(engine, step, mode, between) for step in steps]


def weights(engine: Any, name: str = "live") -> dict[str, Tensor]:
    return {key: value for key, value in engine.consolidate(name)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two consolidated sets of weights are bit-identical (true away from rank 0)."""
    return all(x is None or torch.equal(x, b[key]) for key, x in a.items())


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max((float((x - b[key]).abs().max()) for key, x in a.items() if x is not None), default=0.0)


def plain(model: Toy | None = None, **changes: Any) -> PlainEngine:
    """The engine without DeepSpeed, around a toy model."""
    model = model or toy()
    return PlainEngine.create(model, model.trainable(), **settings(**changes))


def saved(folder: Path, steps: int = 2) -> PlainEngine:
    """An engine with ``steps`` checkpoints behind it, one a step."""
    engine = plain()
    for step in range(1, steps + 1):
        train_step(engine, step)
        engine.save(folder, step, {"at": step})
    return engine


def loaded(folder: Path) -> tuple[int, dict[str, Any]] | None:
    return plain().load(folder)
