"""The engine without DeepSpeed: one process, torch's AdamW. For tests, and as the yardstick of the sharded one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from srum_ds.engine.base import DTYPES, LIVE, Place, Settings, split_trainable, spoiling
from srum_ds.engine.checkpoints import CheckpointedEngine


class PlainEngine(CheckpointedEngine):
    """One process that does what ``Engine`` does on one rank, in the same order and precision."""

    @classmethod
    def create(
        cls,
        module: torch.nn.Module,
        trainable_names: set[str],
        ds_config: Mapping[str, Any] | None = None,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        max_grad_norm: float,
        warmup_steps: int,
        precision: str,
        seed: int,
        decay_steps: int = 0,
        leaf_modules: Sequence[type[torch.nn.Module]] = (),
        device: torch.device | str | None = None,
    ) -> PlainEngine:
        """Takes the module over. ``ds_config`` and ``leaf_modules`` are accepted for symmetry, not read."""
        del ds_config, leaf_modules
        torch.manual_seed(seed)
        engine = cls()
        default = "cuda" if torch.cuda.is_available() else "cpu"
        engine.device = torch.device(device or default)
        engine.compute_dtype = DTYPES[precision]
        engine.settings = Settings(lr, betas, eps, weight_decay, max_grad_norm, warmup_steps, decay_steps)
        engine.module = module.to(engine.device)
        engine._copies = {}
        engine._fixed = {}
        engine._micro_batches = 0

        trainable = split_trainable(module, trainable_names)
        engine._parameters = trainable
        engine._shapes = {name: parameter.shape for name, parameter in trainable.items()}
        flat = torch.cat([parameter.detach().float().flatten() for parameter in trainable.values()])
        engine._flats = [flat.requires_grad_()]
        engine._gradient = torch.zeros_like(flat, requires_grad=False)
        engine._places = {}
        offset = 0
        for name, parameter in trainable.items():
            engine._places[name] = Place(0, offset, 0, parameter.numel())
            offset += parameter.numel()
        # Parameters only, like DeepSpeed: buffers (rotary tables) keep the precision they were made in.
        for parameter in module.parameters():
            parameter.data = parameter.data.to(engine.compute_dtype)
        engine._adam = torch.optim.AdamW(engine._flats, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        engine._refresh_live()
        return engine

    _parameters: dict[str, torch.nn.Parameter]
    _gradient: Tensor
    _micro_batches: int

    def __call__(self, *args: Any) -> Any:
        return self.module(*args)

    def backward(self, loss_sum: Tensor, global_count: float, micro_batches: int) -> None:
        (spoiling(loss_sum) / global_count).backward()
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            place = self._places[name]
            self._gradient[place.offset : place.offset + place.numel] += parameter.grad.flatten().float()
            parameter.grad = None
        self._micro_batches += 1
        if self._micro_batches > micro_batches:
            raise RuntimeError(f"backward() called {self._micro_batches} times for {micro_batches} micro-batches")

    def step(self) -> float:
        self._set_learning_rate()
        self._micro_batches = 0
        norm = float(self._gradient.double().norm())
        if norm == norm and norm != float("inf"):
            if self.settings.max_grad_norm > 0:
                # DeepSpeed's rule, so that the two engines agree to rounding.
                self._gradient.div_(max(1.0, (norm + 1e-6) / self.settings.max_grad_norm))
            self._flats[0].grad = self._gradient
            self._adam.step()
            self._flats[0].grad = None
            self._refresh_live()
        else:
            norm = float("nan")
        self._gradient.zero_()
        self.steps += 1
        return norm

    @contextmanager
    def gathered(self, weights: str = LIVE) -> Iterator[torch.nn.Module]:
        flats = self._named(weights)
        live = {name: parameter.data for name, parameter in self._parameters.items()}
        try:
            if weights != LIVE:
                for name, parameter in self._parameters.items():
                    parameter.data = self._piece(flats, name).view(self._shapes[name]).to(self.compute_dtype)
            with torch.no_grad():
                yield self.module
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = live[name]

    def all_reduce(self, tensor: Tensor, op: str = "sum") -> Tensor:
        return tensor

    def barrier(self) -> None:
        return None

    def sharded_share(self) -> float:
        return 0.0

    @torch.no_grad()
    def _refresh_live(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data.copy_(self._piece(self._flats, name).view(self._shapes[name]))

    def _gather_objects(self, value: Any) -> list[Any]:
        return [value]

    def _full_frozen(self, name: str) -> Tensor:
        return self.module.get_parameter(name).detach().clone()
