"""Four ranks of one node, each on the emulated device of its local number: nothing lands on another's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from deepspeed.accelerator import get_accelerator, set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from torch import Tensor, nn

from srum_ds import opening
from srum_ds.engine import distributed
from srum_ds.engine.plain import PlainEngine
from srum_ds.models.bagel.weights import fill
from srum_ds.models.flow import FlowSampling
from srum_ds.rollouts.collect import roll_out
from srum_ds.types import Prompt
from tests.support.emulated import NAME, CurrentDevice, counted
from tests.support.emulated.training import short_recipe
from tests.support.paths import RECIPE

RANKS = 4


class Accelerator(CPU_Accelerator):  # type: ignore[misc]
    """DeepSpeed's view of the emulated devices. chosen: the indices that were made current, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen: list[int] = []

    def device_name(self, device_index: int | None = None) -> str:
        return NAME if device_index is None else f"{NAME}:{device_index}"

    def device_count(self) -> int:
        return CurrentDevice.count

    def set_device(self, device_index: int) -> None:
        self.chosen.append(device_index)
        CurrentDevice.index = device_index

    def current_device(self) -> int:
        return CurrentDevice.index

    def current_device_name(self) -> str:
        return f"{NAME}:{CurrentDevice.index}"


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    before = get_accelerator()
    made = Accelerator()
    set_accelerator(made)
    yield made
    set_accelerator(before)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch, accelerator: Accelerator) -> list[int]:
    """No process group is joined; which device was current when one would have been."""
    joined: list[int] = []
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(distributed.dist, "barrier", lambda: None)
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(
        distributed.deepspeed, "init_distributed", lambda **_: joined.append(accelerator.current_device())
    )
    return joined


def sharded_like_zero3(monkeypatch: pytest.MonkeyPatch, accelerator: Accelerator, local: int) -> None:
    """DeepSpeed's part: ``zero.Init`` makes the rank's device current and puts the module there."""

    def materialise(module: nn.Module, stored: Iterable[tuple[str, Tensor]]) -> None:
        accelerator.set_device(local)
        module.to_empty(device=accelerator.current_device_name())
        fill(module, stored)

    class Engine(PlainEngine):
        @classmethod
        def create(cls, *args: object, stored: object = None, **settings: object) -> PlainEngine:
            return PlainEngine.create(*args, **settings, device=f"{NAME}:{local}")  # type: ignore[arg-type]

    monkeypatch.setattr(opening, "shard_loader", lambda *_: materialise)
    monkeypatch.setattr(opening, "Engine", Engine)


@pytest.mark.parametrize("local", range(RANKS))
def test_a_rank_loads_draws_and_decodes_on_its_own_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, accelerator: Accelerator, group: list[int], local: int
) -> None:
    for name, value in {"RANK": local, "LOCAL_RANK": local, "WORLD_SIZE": RANKS, "MASTER_PORT": 0}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    sharded_like_zero3(monkeypatch, accelerator, local)
    with counted() as counts:
        model, engine = opening.open_model(short_recipe(RECIPE, tmp_path, tmp_path))
        prompts = [Prompt("a", "a red circle")]
        samples = roll_out(model, prompts, 1, (64, 64), FlowSampling(num_timesteps=3), seed=0, step=0)
    own = torch.device(NAME, local)
    assert group == [local] and accelerator.chosen[0] == local
    assert engine.device == samples.tokens.device == samples.images_NCHW.device == own
    assert {p.device for p in model.module.parameters()} == {own}
    assert counts.launches > 100 and counts.devices == {local}
