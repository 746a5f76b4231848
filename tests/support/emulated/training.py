"""The real ``srum_ds.train.train`` on a device of choice, in one process: DeepSpeed's place takes the plain engine.

Everything else is what a run executes: ``open_job``, the loop, the judge, checkpoints and the export. What DeepSpeed
does itself (sharding, collectives) is not covered.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from srum_ds import job, opening, train
from srum_ds.common.clock import Clock
from srum_ds.common.stopping import STOP_SIGNALS
from srum_ds.config import Config, load_config
from srum_ds.engine.base import DTYPES
from srum_ds.engine.plain import PlainEngine
from srum_ds.rewards.judge import host
from tests.support.emulated.counts import Counts, counted


@dataclass
class Trained:
    """What a run left behind: its metrics, a line a step, and what each phase of its steps asked of the device."""

    status: int
    metrics: list[dict[str, Any]]
    phases: dict[str, Counts] = field(default_factory=dict)


def train_on(device: str, cfg: Config) -> Trained:
    """Trains as a recipe says, on ``device``; call it inside ``emulation()`` for an emulated one.

    A phase's counts are those of all its steps together.
    """
    run_dir = Path(cfg.run.dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    phases: dict[str, Counts] = {}
    with one_process(torch.device(device)) as patch:
        patch.setattr(train, "Clock", lambda: _CountingClock(phases))
        status = train.train(cfg, run_dir)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return Trained(status, [json.loads(line) for line in lines], phases)


def short_recipe(recipe: Path, shards: Path, run_dir: Path, *more: str) -> Config:
    """A recipe with steps of a second: two prompts, two images of each, two sampler steps, nothing shown."""
    return load_config(
        str(recipe),
        [
            f"run.dir={run_dir}",
            f"data.shards={shards}",
            "train.steps=1",
            "train.warmup_steps=0",
            "train.timesteps_per_image=1",
            "rollout.prompts_per_step=2",
            "rollout.micro_batch_prompts=2",
            "rollout.images_per_prompt=2",
            "rollout.num_timesteps=3",
            "log.tensorboard=false",
            "log.progress=false",
            *more,
        ],
    )


@contextmanager
def one_process(device: torch.device) -> Iterator[pytest.MonkeyPatch]:
    """Inside, a job is opened on ``device`` by one process without DeepSpeed."""

    class Engine(PlainEngine):
        """The plain engine, told what DeepSpeed's is told."""

        @classmethod
        def create(cls, *args: Any, stored: object = None, **settings: Any) -> PlainEngine:
            return super().create(*args, **settings, device=device)

    # A job answers signals by itself, which is not for the process that runs the tests.
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with ExitStack() as held:
        for number, handler in before.items():
            held.callback(signal.signal, number, handler)
        patch = held.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(opening, "start_distributed", lambda: None)
        patch.setattr(opening, "Engine", Engine)
        patch.setattr(job, "write_environment", lambda *_, **__: None)
        patch.setattr(host, "FrozenEngine", _Whole)
        for module in (opening, host):
            patch.setattr(module, "compute_device", lambda: device)
            patch.setattr(module, "shard_loader", lambda *_: None)
        yield patch


class _Whole:
    """A frozen copy that is whole already."""

    def __init__(self, module: nn.Module, ds_config: Mapping[str, Any], precision: str) -> None:
        self.module = module.eval().requires_grad_(False)
        for parameter in module.parameters():
            parameter.data = parameter.data.to(DTYPES[precision])

    def gathered(self) -> Any:
        stack = ExitStack()
        stack.enter_context(torch.no_grad())
        stack.enter_context(nullcontext(self.module))
        return stack


class _CountingClock(Clock):
    """Counts what each phase asks of the device."""

    def __init__(self, phases: dict[str, Counts]) -> None:
        super().__init__()
        self.phases = phases

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        with counted(self.phases.get(phase)) as counts, super().__call__(phase):
            self.phases[phase] = counts
            yield
