"""What every engine shares: fp32 masters, named copies, the schedule, checkpoints and export.

An engine owns a module of which some parameters train. It keeps their fp32 masters in flat tensors, cut
as its sharding cuts them, and tells by a ``Place`` for each parameter where its own part lies. All else
here works on places alone, so it is the same for one process, ZeRO-1/2 and ZeRO-3.
"""

from __future__ import annotations

import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srum_ds import checkpoint
from srum_ds.errors import UserError

log = logging.getLogger(__name__)

LIVE = "live"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_MOMENTS = ("exp_avg", "exp_avg_sq")


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
    """The optimizer: AdamW with linear warm-up to a constant rate and clipping to a global norm (0: none)."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    max_grad_norm: float
    warmup_steps: int


def learning_rate(lr: float, warmup_steps: int, step: int) -> float:
    """Rate of optimizer step ``step`` (0-based): linear over the first ``warmup_steps``, then constant."""
    return lr * min(1.0, (step + 1) / max(1, warmup_steps))


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

    # ---- what a subclass provides ------------------------------------------------------------------

    @abstractmethod
    def __call__(self, *args: Any) -> Any:
        """``module.forward(*args)``; the way every training forward goes."""

    @abstractmethod
    def backward(self, loss_sum: Tensor, global_count: float, micro_batches: int) -> None:
        """Adds d(loss_sum / global_count) to the gradient, summed over ranks and micro-batches.

        loss_sum: scalar, this micro-batch's sum of losses. global_count: what the whole step's losses
        are divided by, equal on all ranks. micro_batches: how many calls this rank makes before step().
        """

    @abstractmethod
    def step(self) -> float:
        """One optimizer step from the accumulated gradient.

        Returns the global gradient norm before clipping; nan where it was not finite, and then no
        weight has changed.
        """

    @abstractmethod
    def gathered(self, weights: str = LIVE) -> AbstractContextManager[torch.nn.Module]:
        """The whole module on every rank, without gradients and without communication inside."""

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
        """A frozen parameter, whole, in the compute dtype."""

    # ---- named copies ------------------------------------------------------------------------------

    def add_weights(self, name: str) -> None:
        """Starts a named copy of this rank's trainable fp32 masters, equal to them now."""
        if name == LIVE or not name.replace("_", "").isalnum():
            raise ValueError(f"a named copy cannot be called {name!r}")
        self._copies[name] = [flat.detach().clone() for flat in self._flats]

    @torch.no_grad()
    def update_weights(self, name: str, decay: float) -> None:
        """copy <- decay * copy + (1 - decay) * live, on this rank's fp32 shards, without communication."""
        for copy, flat in zip(self._named(name), self._flats, strict=True):
            copy.mul_(decay).add_(flat.detach(), alpha=1.0 - decay)

    def weight_names(self) -> list[str]:
        """Names of the copies, in the order they were added."""
        return list(self._copies)

    def _named(self, name: str) -> list[Tensor]:
        if name == LIVE:
            return self._flats
        if name not in self._copies:
            raise ValueError(f"no weights named {name!r}; there are: {', '.join([LIVE, *self._copies])}")
        return self._copies[name]

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
        compute dtype's precision. All ranks iterate to the end.
        """
        flats = self._named(weights)
        for name in self._places:
            whole = self._full(flats, [name])[name]
            yield name, whole.cpu().clone() if self.rank == 0 else None
        if frozen:
            for name, _ in self.module.named_parameters():
                if name not in self._places:
                    whole = self._full_frozen(name)
                    yield name, whole.float().cpu().clone() if self.rank == 0 else None

    # ---- the schedule ------------------------------------------------------------------------------

    def _set_learning_rate(self) -> float:
        rate = learning_rate(self.settings.lr, self.settings.warmup_steps, self.steps)
        for group in self._adam.param_groups:
            group["lr"] = rate
        return rate

    # ---- checkpoints -------------------------------------------------------------------------------

    def save(self, folder: Path, step: int, extra_state: Mapping[str, Any], keep: int = 2) -> Path:
        """Saves everything training needs to go on, as ``folder/step_<step>``; all ranks call it.

        extra_state: JSON-able, equal on all ranks (rank 0's is kept). The ``keep`` newest checkpoints
        stay. Raises UserError on every rank where one of them could not write; the last checkpoint is
        then untouched.
        """
        kinds = self._kinds()
        pieces: dict[str, Tensor] = {}
        starts: dict[str, int] = {}
        for name, place in self._places.items():
            if place.numel == 0:
                continue
            starts[name] = place.start
            for kind, flats in kinds.items():
                pieces[f"{kind}/{name}"] = self._piece(flats, name)
        needed = sum(self._gather_objects(sum(piece.numel() * 4 for piece in pieces.values())))

        unfinished = checkpoint.partial_folder(folder, step)
        self._together(lambda: checkpoint.begin(folder, step, needed), rank_zero=True)
        try:
            files = self._together(lambda: self._write(unfinished, pieces, starts, folder, needed))
            state = {
                "format": checkpoint.FORMAT,
                "step": step,
                "optimizer_steps": self.steps,
                "adam_steps": self._adam_steps(),
                "world_size": self.world_size,
                "kinds": sorted(kinds),
                "parameters": {name: list(shape) for name, shape in self._shapes.items()},
                "files": [asdict(file) for file in files],
                "extra": dict(extra_state),
            }
            self._together(lambda: self._commit(unfinished, folder, step, state, needed), rank_zero=True)
        except UserError:
            if self.rank == 0:
                shutil.rmtree(unfinished, ignore_errors=True)
            self.barrier()
            raise
        self._together(lambda: checkpoint.prune(folder, keep), rank_zero=True)
        return checkpoint.step_folder(folder, step)

    def load(self, folder: Path) -> tuple[int, dict[str, Any]] | None:
        """Restores the newest good checkpoint of ``folder``; returns (step, extra_state), None if none.

        A checkpoint whose files are not what was written is set aside with a warning and the one before
        it is taken. Raises UserError where none is good, or where a good one belongs to another model.
        """
        removed = self._together(lambda: checkpoint.clean_partial(folder), rank_zero=True)[0]
        if removed and self.rank == 0:
            log.info("removed what an interrupted save left in %s: %s", folder, ", ".join(removed))
        steps = self._gather_objects(checkpoint.committed_steps(folder))[0]
        for step in reversed(steps):
            path = checkpoint.step_folder(folder, step)
            problems = [text for text in self._gather_objects(self._try_load(path)) if text]
            if not problems:
                state = checkpoint.read_state(path)
                return int(state["step"]), state["extra"]
            aside = self._together(partial(checkpoint.quarantine, folder, step), rank_zero=True)[0]
            if self.rank == 0:
                log.warning(
                    "CHECKPOINT %s IS DAMAGED: %s. Moved to %s; going back to the one before it.",
                    path.name,
                    "; ".join(problems),
                    aside,
                )
        if steps:
            raise UserError(
                f"no usable checkpoint in {folder}: all of them are damaged (they were renamed to "
                f"*{checkpoint.CORRUPT}). Restore one from a backup, or choose another run.dir to start anew."
            )
        return None

    def _write(
        self, unfinished: Path, pieces: dict[str, Tensor], starts: dict[str, int], folder: Path, needed: int
    ) -> checkpoint.FileRecord:
        try:
            return checkpoint.write_rank(unfinished, self.rank, pieces, starts)
        except OSError as error:
            raise checkpoint.no_room(folder, needed, str(error)) from error

    def _commit(self, unfinished: Path, folder: Path, step: int, state: dict[str, Any], needed: int) -> None:
        try:
            checkpoint.commit(unfinished, folder, step, state)
        except OSError as error:
            raise checkpoint.no_room(folder, needed, str(error)) from error

    def _try_load(self, path: Path) -> str:
        """Checks this rank's share of the files, then restores; returns what is wrong, empty if nothing."""
        problem = ""
        state: dict[str, Any] = {}
        try:
            state = checkpoint.read_state(path)
            for file in list(checkpoint.records(state))[self.rank :: self.world_size]:
                checkpoint.verify(path, file)
        except checkpoint.CorruptCheckpoint as error:
            problem = str(error)
        if any(self._gather_objects(problem)):
            # Another rank's share may be what is bad: nobody restores from it.
            return problem
        self._check_model(path, state)
        try:
            self._restore(path, state)
        except checkpoint.CorruptCheckpoint as error:
            return str(error)
        return ""

    def _check_model(self, path: Path, state: Mapping[str, Any]) -> None:
        ours = {name: list(shape) for name, shape in self._shapes.items()}
        theirs = state["parameters"]
        different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        if different:
            raise UserError(
                f"{path} belongs to another model: {len(different)} trainable parameters differ, e.g. "
                f"{different[0]} is {theirs.get(different[0], 'absent')} there and "
                f"{ours.get(different[0], 'absent')} here. "
                "Choose another run.dir, or the settings of that run."
            )
        missing = [name for name in self._copies if f"weights.{name}" not in state["kinds"]]
        if missing:
            raise UserError(
                f"{path} has no {' and no '.join(missing)} weights, which these settings need. "
                "Choose another run.dir, or the settings of that run."
            )

    def _restore(self, path: Path, state: Mapping[str, Any]) -> None:
        for kind in state["kinds"]:
            if kind.startswith("weights.") and kind.removeprefix("weights.") not in self._copies:
                self.add_weights(kind.removeprefix("weights."))
        if state["adam_steps"] > 0:
            for flat in self._flats:
                self._adam.state[flat] = {
                    "step": self._adam_step_value(int(state["adam_steps"])),
                    "exp_avg": torch.zeros_like(flat, requires_grad=False),
                    "exp_avg_sq": torch.zeros_like(flat, requires_grad=False),
                }
        else:
            self._adam.state.clear()
        kinds = self._kinds()
        with checkpoint.Reader(path, [file.name for file in checkpoint.records(state)]) as reader:
            for name, place in self._places.items():
                if place.numel == 0:
                    continue
                for kind, flats in kinds.items():
                    value = reader.read(f"{kind}/{name}", place.start, place.numel)
                    self._piece(flats, name).copy_(value)
        self.steps = int(state["optimizer_steps"])
        self._refresh_live()

    def _kinds(self) -> dict[str, list[Tensor]]:
        """Everything a checkpoint holds, by kind, cut like the masters."""
        kinds = {LIVE: self._flats}
        if self._adam_steps() > 0:
            for moment in _MOMENTS:
                kinds[moment] = [self._adam.state[flat][moment] for flat in self._flats]
        kinds.update({f"weights.{name}": flats for name, flats in self._copies.items()})
        return kinds

    def _adam_steps(self) -> int:
        state = self._adam.state.get(self._flats[0], {})
        return int(state["step"]) if "step" in state else 0

    def _adam_step_value(self, steps: int) -> Any:
        # torch counts in a tensor, DeepSpeed's CPU Adam in an int.
        return torch.tensor(float(steps)) if isinstance(self._adam, torch.optim.AdamW) else steps

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
