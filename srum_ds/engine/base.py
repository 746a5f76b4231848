"""What every engine shares: fp32 masters, named copies, the schedule and consolidation.

An engine owns a module of which some parameters train. It keeps their fp32 masters in flat tensors, cut
as its sharding cuts them, and tells by a ``Place`` for each parameter where its own part lies. All else
here works on places alone, so it is the same for one process, ZeRO-1/2 and ZeRO-3.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.finite import is_finite

LIVE = "live"
# A prime: places that far apart have the same weight in a fingerprint.
_PERIOD = 65521
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Place:
    """Where this rank keeps its part of one parameter.

    Elements [start, start + numel) of the flattened parameter are elements [offset, offset + numel) of
    the flat tensor number ``flat``. numel is 0 where this rank holds none of it.
    """

    flat: int
    offset: int
    start: int
    numel: int


@dataclass(frozen=True)
class Settings:
    """The optimizer: AdamW with its schedule (see ``learning_rate``) and clipping to a global norm (0: none)."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    max_grad_norm: float
    warmup_steps: int
    decay_steps: int = 0


def learning_rate(settings: Settings, step: int) -> float:
    """Rate of optimizer step ``step`` (0-based).

    Linear over the first ``warmup_steps``, then constant; or, with ``decay_steps`` (the length of the whole
    run), half a cosine from there down to zero, which step ``decay_steps`` would have. Source of the cosine:
    SGDR, arXiv 1608.03983.
    """
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    if settings.decay_steps == 0:
        return settings.lr * warm
    whole = max(1, settings.decay_steps - settings.warmup_steps)
    done = min(1.0, max(0, step - settings.warmup_steps) / whole)
    return settings.lr * warm * (1 + math.cos(math.pi * done)) / 2


def split_trainable(module: torch.nn.Module, trainable_names: set[str]) -> dict[str, torch.nn.Parameter]:
    """Freezes all parameters but the named ones; returns those in the module's order.

    Raises ValueError for a name the module does not have and for an empty set.
    """
    named = dict(module.named_parameters())
    unknown = sorted(trainable_names - named.keys())
    if unknown:
        raise ValueError(f"no such parameters in {type(module).__name__}: {', '.join(unknown[:5])}")
    if not trainable_names:
        raise ValueError("nothing to train: trainable_names is empty")
    for name, parameter in named.items():
        parameter.requires_grad_(name in trainable_names)
    return {name: parameter for name, parameter in named.items() if name in trainable_names}


def finite(tensors: Iterable[tuple[str, Tensor | None]]) -> Iterator[tuple[str, Tensor | None]]:
    """The same pairs, as ``consolidate`` gives them. Raises UserError at one that holds a number that is not finite."""
    for name, tensor in tensors:
        if tensor is not None and not is_finite(tensor):
            raise UserError(
                f"{name} holds numbers that are not finite, so nothing is exported. If the checkpoints hold them too, "
                "begin another run (another run.dir) with a lower train.lr or train.precision=fp32."
            )
        yield name, tensor
        # The next one is gathered before it is named here, and the model's largest is as much as may be held.
        del tensor


def spoiling(loss_sum: Tensor) -> Tensor:
    """The same loss, whose gradient is NaN where its value is not finite, without a look at it."""
    # 1 for a finite loss, NaN for any other.
    return loss_sum * (loss_sum.detach() * 0.0 + 1.0)


class EngineBase(ABC):
    """The interface the loop trains through. Every method that communicates is called by all ranks."""

    rank: int = 0
    world_size: int = 1
    device: torch.device
    compute_dtype: torch.dtype
    module: torch.nn.Module
    settings: Settings
    steps: int = 0
    """Optimizer steps taken (a step skipped for its non-finite gradient counts)."""

    # Filled by the subclass: this rank's fp32 masters, the parameters' parts in them, the parameters'
    # shapes (a sharded parameter no longer knows its own), the optimizer whose state they key.
    _flats: list[Tensor]
    _places: dict[str, Place]
    _shapes: dict[str, torch.Size]
    _adam: torch.optim.Optimizer
    _copies: dict[str, list[Tensor]]
    # Of the copies that never change: what tells them from others (``fingerprint``).
    _fixed: dict[str, str]

    # ---- what a subclass provides ------------------------------------------------------------------

    @abstractmethod
    def __call__(self, *args: Any) -> Any:
        """``module.forward(*args)``; the way every training forward goes."""

    @abstractmethod
    def backward(self, loss_sum: Tensor, global_count: float, micro_batches: int) -> None:
        """Adds d(loss_sum / global_count) to the gradient, summed over ranks and micro-batches.

        loss_sum: scalar, this micro-batch's sum of losses. global_count: what the whole step's losses
        are divided by, equal on all ranks. micro_batches: how many calls this rank makes before step(). The gradient
        of a loss that is not finite is none either, so that step() takes no step.
        """

    def take_back(self) -> None:
        """Uncounts a step that ``step`` did not take, so that it can be run again at the same learning rate."""
        self.steps -= 1

    @abstractmethod
    def step(self) -> float:
        """One optimizer step from the accumulated gradient.

        Returns the global gradient norm before clipping; nan where it was not finite, and then no
        weight has changed.
        """

    @abstractmethod
    def gathered(self, weights: str = LIVE) -> AbstractContextManager[torch.nn.Module]:
        """The whole module on every rank, without gradients and without communication inside."""

    def layer_by_layer(self, weights: str = LIVE) -> AbstractContextManager[torch.nn.Module]:
        """Like ``gathered`` with less memory and with communication inside, where the engine shards parameters."""
        return self.gathered(weights)

    def gathered_frozen(self) -> AbstractContextManager[torch.nn.Module]:
        """Like ``gathered`` for the parameters alone that do not train, where the engine shards parameters."""
        return self.gathered()

    def fits_gathered(self) -> bool:
        """Whether every rank has room for ``gathered`` now; all ranks call it."""
        return True

    @property
    def holds_whole(self) -> bool:
        """Whether the whole module is on this rank just now."""
        return True

    @abstractmethod
    def all_reduce(self, tensor: Tensor, op: str = "sum") -> Tensor:
        """Reduces in place over all ranks (``sum``, ``max`` or ``min``); returns the tensor."""

    @abstractmethod
    def barrier(self) -> None:
        """Waits for all ranks."""

    @abstractmethod
    def sharded_share(self) -> float:
        """Share in [0, 1] of all parameter elements of which this rank holds a part only."""

    @abstractmethod
    def _refresh_live(self) -> None:
        """Copies the masters into the parameters the module computes with."""

    @abstractmethod
    def _gather_objects(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""

    @abstractmethod
    def _full_frozen(self, name: str) -> Tensor:
        """A copy of a frozen parameter, whole, in the compute dtype."""

    # ---- named copies ------------------------------------------------------------------------------

    def add_weights(self, name: str, fixed: bool = False) -> None:
        """Starts a named copy of this rank's trainable masters, equal to them now; all ranks call it.

        fixed: the copy never changes. It is kept in the compute dtype, which is all that ``gathered`` uses of it,
        and checkpoints hold its fingerprint instead of it: a run that goes on makes it anew from ``model.path``.
        """
        if name == LIVE or not name.replace("_", "").isalnum():
            raise ValueError(f"a named copy cannot be called {name!r}")
        dtype = self.compute_dtype if fixed else torch.float32
        self._copies[name] = [flat.detach().to(dtype, copy=True) for flat in self._flats]
        if fixed:
            self._fixed[name] = self._fingerprint(self._copies[name])

    def has_weights(self, name: str) -> bool:
        """Whether there is a named copy of this name."""
        return name in self._copies

    @torch.no_grad()
    def update_weights(self, name: str, decay: float) -> None:
        """copy <- decay * copy + (1 - decay) * live, on this rank's fp32 shards, without communication.

        ValueError for a copy that is fixed.
        """
        if name in self._fixed:
            raise ValueError(f"the weights {name!r} are fixed")
        for copy, flat in zip(self._named(name), self._flats, strict=True):
            copy.mul_(decay).add_(flat.detach(), alpha=1.0 - decay)

    def _named(self, name: str) -> list[Tensor]:
        if name == LIVE:
            return self._flats
        if name not in self._copies:
            raise ValueError(f"no weights named {name!r}; there are: {', '.join([LIVE, *self._copies])}")
        return self._copies[name]

    def _fingerprint(self, flats: list[Tensor]) -> str:
        """What tells these values from others, the same for any number of ranks; one all-reduce.

        For each parameter its bits, as integers, are summed with weights that follow their places; integers wrap, so
        that the order of summing does not matter.
        """
        sums = torch.zeros(len(self._places), dtype=torch.int64, device=self.device)
        for row, (name, place) in enumerate(self._places.items()):
            bits = self._piece(flats, name)
            bits = bits.view(torch.int16 if bits.element_size() == 2 else torch.int32).long()
            places = torch.arange(place.start, place.start + place.numel, device=bits.device)
            sums[row] = bits.mul_(places.remainder_(_PERIOD).add_(1)).sum()
        self.all_reduce(sums)
        named = [f"{name} {value}" for name, value in zip(self._places, sums.tolist(), strict=True)]
        return hashlib.sha256("\n".join(sorted(named)).encode()).hexdigest()

    def pieces(self, weights: str = LIVE) -> Iterator[tuple[str, Tensor]]:
        """This rank's part of each trainable parameter of the live weights or a named copy, flattened."""
        flats = self._named(weights)
        return ((name, self._piece(flats, name)) for name in self._places)

    def _piece(self, flats: list[Tensor], name: str) -> Tensor:
        place = self._places[name]
        return flats[place.flat].detach()[place.offset : place.offset + place.numel]

    def _full(self, flats: list[Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        """Trainable parameters put together from all ranks, float32, on every rank; one all-reduce."""
        sizes = [self._shapes[name].numel() for name in names]
        whole = torch.zeros(sum(sizes), dtype=torch.float32, device=self.device)
        parts = whole.split(sizes)
        for name, part in zip(names, parts, strict=True):
            place = self._places[name]
            part[place.start : place.start + place.numel] = self._piece(flats, name)
        if self.world_size > 1:
            # Each element is non-zero on one rank; summed as integers, every bit survives (-0.0 too).
            self.all_reduce(whole.view(torch.int32))
        return {name: part.view(self._shapes[name]) for name, part in zip(names, parts, strict=True)}

    def consolidate(self, weights: str = LIVE, *, frozen: bool = False) -> Iterator[tuple[str, Tensor | None]]:
        """Yields (name, whole fp32 CPU tensor on rank 0 and None elsewhere), one parameter at a time.

        Trainable parameters hold the named copy's values; with ``frozen`` the others follow in the
        compute dtype's precision. All ranks iterate to the end. A rank holds one whole tensor at a time,
        if whoever iterates drops each before asking for the next.
        """
        flats = self._named(weights)
        for name in self._places:
            yield name, self._on_first_rank(self._full(flats, [name])[name])
        if frozen:
            for name, _ in self.module.named_parameters():
                if name not in self._places:
                    yield name, self._on_first_rank(self._full_frozen(name))

    def _on_first_rank(self, whole: Tensor) -> Tensor | None:
        # Nothing here keeps the tensor, so that the next one is gathered when its user has let it go.
        return whole.float().cpu() if self.rank == 0 else None

    # ---- the schedule ------------------------------------------------------------------------------

    def _set_learning_rate(self) -> float:
        rate = learning_rate(self.settings, self.steps)
        for group in self._adam.param_groups:
            group["lr"] = rate
        return rate

    # ---- together ----------------------------------------------------------------------------------

    def _together(self, work: Callable[[], Any], rank_zero: bool = False) -> list[Any]:
        """Runs ``work`` on all ranks (or rank 0) and raises on every rank what any of them raised."""
        result: Any = None
        problem: str | None = None
        if self.rank == 0 or not rank_zero:
            try:
                result = work()
            except (UserError, OSError) as error:
                problem = str(error)
        outcomes = self._gather_objects((result, problem))
        problems = [text for _, text in outcomes if text]
        if problems:
            raise UserError(problems[0])
        return [value for value, _ in outcomes]
