"""Checkpoints of an engine: its masters, moments and named copies, saved and restored by all ranks together."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srum_ds.common.errors import HOW_TO_GO_ON, UserError
from srum_ds.common.finite import is_finite
from srum_ds.engine import checkpoint_files as checkpoint
from srum_ds.engine.base import LIVE, EngineBase
from srum_ds.engine.checkpoint_state import FORMAT, CorruptCheckpoint, FileRecord, read_state, records

log = logging.getLogger(__name__)

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class _Saving:
    """A save under way: where it goes, what its state.json will say, and this rank's file as it is being written."""

    folder: Path
    step: int
    keep: int
    protected: frozenset[int]
    needed: int
    state: dict[str, Any]
    written: Future[FileRecord]

    def result(self) -> FileRecord:
        """Waits for this rank's file."""
        try:
            return self.written.result()
        except OSError as error:
            raise checkpoint.no_room(self.folder, self.needed, str(error)) from error

    def commit(self, unfinished: Path, state: dict[str, Any]) -> None:
        """Gives the folder its final name."""
        try:
            checkpoint.commit(unfinished, self.folder, self.step, state)
        except OSError as error:
            raise checkpoint.no_room(self.folder, self.needed, str(error)) from error


class CheckpointedEngine(EngineBase):
    """An engine whose state, cut as its sharding cuts it, goes to disk and back at any number of ranks."""

    _saving: _Saving | None = None

    def save(
        self,
        folder: Path,
        step: int,
        extra_state: Mapping[str, Any],
        keep: int = 2,
        background: bool = False,
        protected: Collection[int] = (),
    ) -> Path:
        """Saves everything training needs to go on, as ``folder/step_<step>``; all ranks call it.

        extra_state: JSON-able, equal on all ranks (rank 0's is kept). The ``keep`` newest checkpoints stay, and
        those of the steps ``protected``.
        background: return once the state is copied into the host's memory, and write it in a thread; the checkpoint is
        there when ``finish_save`` has found all ranks done. Raises UserError on every rank where one of them could not
        write, or holds a number that is not finite; the last checkpoint is then untouched.
        """
        self.finish_save()
        kinds = self._kinds()
        pieces: dict[str, Tensor] = {}
        starts: dict[str, int] = {}
        for name, place in self._places.items():
            if place.numel == 0:
                continue
            starts[name] = place.start
            for kind, flats in kinds.items():
                pieces[f"{kind}/{name}"] = self._piece(flats, name)
        self._refuse_not_finite(folder, step, pieces)
        needed = sum(self._gather_objects(sum(piece.numel() * 4 for piece in pieces.values())))
        state = {
            "format": FORMAT,
            "step": step,
            "optimizer_steps": self.steps,
            "adam_steps": self._adam_steps(),
            "world_size": self.world_size,
            "kinds": sorted(kinds),
            "fixed": dict(self._fixed),
            "parameters": {name: list(shape) for name, shape in self._shapes.items()},
            "extra": dict(extra_state),
        }
        unfinished = checkpoint.partial_folder(folder, step)
        self._together(lambda: checkpoint.begin(folder, step, needed), rank_zero=True)
        contents = checkpoint.on_host(pieces)
        writer = ThreadPoolExecutor(1, "checkpoint")
        written = writer.submit(checkpoint.write_rank, unfinished, self.rank, contents, starts)
        writer.shutdown(wait=False)
        self._saving = _Saving(folder, step, keep, frozenset(protected), needed, state, written)
        if not background:
            self.finish_save()
        return checkpoint.step_folder(folder, step)

    def _refuse_not_finite(self, folder: Path, step: int, pieces: Mapping[str, Tensor]) -> None:
        """Raises UserError, on every rank, where a number of a piece is not finite on any of them."""
        own = next((key for key, piece in pieces.items() if not is_finite(piece)), None)
        found = [(rank, key) for rank, key in enumerate(self._gather_objects(own)) if key is not None]
        if found:
            rank, key = found[0]
            kind, _, name = key.partition("/")
            raise UserError(
                f"after step {step}, {kind} of {name} holds numbers that are not finite (on {len(found)} of "
                f"{self.world_size} rank(s), first on rank {rank}). They are not saved, so that {folder} keeps finite "
                f"checkpoints alone: {HOW_TO_GO_ON}"
            )

    def finish_save(self, wait: bool = True) -> None:
        """Makes a save under way a checkpoint, once every rank has written; all ranks call it. Raises as ``save``.

        wait: until they have; else nothing happens where one of them has not.
        """
        saving = self._saving
        if saving is None:
            return
        if not wait and not all(self._gather_objects(saving.written.done())):
            return
        self._saving = None
        unfinished = checkpoint.partial_folder(saving.folder, saving.step)
        try:
            files = self._together(lambda: saving.result())
            state = saving.state | {"files": [asdict(file) for file in files]}
            self._together(lambda: saving.commit(unfinished, state), rank_zero=True)
        except UserError:
            if self.rank == 0:
                shutil.rmtree(unfinished, ignore_errors=True)
            self.barrier()
            raise
        self._together(lambda: checkpoint.prune(saving.folder, saving.keep, saving.protected), rank_zero=True)

    def load(self, folder: Path, newest: int | None = None) -> tuple[int, dict[str, Any]] | None:
        """Restores the newest good checkpoint of ``folder``; returns (step, extra_state), None if none.

        newest: no checkpoint of a later step than this, where an earlier one is there; else the oldest.

        A checkpoint whose files are not what was written is set aside with a warning and the one before it is taken.
        Raises UserError, on every rank, where none is good, where a good one belongs to another model, where only
        such are left as were set aside before or have another name than a step's, and, touching nothing, where one
        could not be read or was written by a newer version.
        """
        removed = self._together(lambda: checkpoint.clean_partial(folder), rank_zero=True)[0]
        if removed and self.rank == 0:
            log.info("removed what an interrupted save left in %s: %s", folder, ", ".join(removed))
        steps = self._together(lambda: checkpoint.committed_steps(folder), rank_zero=True)[0]
        if newest is not None:
            steps = [step for step in steps if step <= newest] or steps[:1]
        for step in reversed(steps):
            path = checkpoint.step_folder(folder, step)
            problems, state = self._try_load(path)
            if not problems:
                return step, state["extra"]
            aside = self._together(partial(checkpoint.quarantine, folder, step), rank_zero=True)[0]
            if self.rank == 0:
                log.warning(
                    "CHECKPOINT %s IS DAMAGED: %s. Moved to %s; going back to the one before it.",
                    path.name,
                    "; ".join(problems),
                    aside,
                )
        lost = self._together(lambda: checkpoint.set_aside(folder), rank_zero=True)[0]
        if lost:
            raise UserError(
                f"no usable checkpoint in {folder}: all of them are damaged (they were renamed: {', '.join(lost)}). "
                f"Restore one from a backup. To start anew, choose another run.dir, or remove {folder}."
            )
        renamed = self._together(lambda: checkpoint.under_other_names(folder), rank_zero=True)[0]
        if renamed:
            raise UserError(
                f"no checkpoint in {folder} has a step's name (such as step_000020), but there are some of other "
                f"names: {', '.join(renamed)}. Give one its step's name back, as its state.json says. To start anew, "
                "choose another run.dir, or move them away."
            )
        return None

    def read(self, path: Path) -> dict[str, Any]:
        """Restores one checkpoint and returns its extra state; nothing on the disk changes, whatever is found.

        Raises UserError, on every rank, where it cannot be used.
        """
        problems, state = self._try_load(path)
        if problems:
            raise UserError(f"{path} cannot be used: {'; '.join(problems)}.")
        extra: dict[str, Any] = state["extra"]
        return extra

    def begin_from(self, path: Path, moments: bool) -> None:
        """Takes the weights of another run's checkpoint as the beginning of this one; all ranks call it.

        Named copies have its values too, or where it has none of theirs, those of its weights. moments: Adam's, with
        the number of its steps; else they begin anew. The schedule begins at its first step. Raises UserError, on every
        rank, where the checkpoint cannot be used; nothing on the disk changes.
        """
        problems, _ = self._try_load(path, begins=True, moments=moments)
        if problems:
            raise UserError(f"{path} cannot be used: {'; '.join(problems)}. Choose another checkpoint of that run.")
        self.steps = 0

    def _try_load(self, path: Path, begins: bool = False, moments: bool = True) -> tuple[list[str], dict[str, Any]]:
        """Checks a checkpoint's files, each rank its share, then restores it: (what is wrong with it, its state).

        begins, moments: as ``begin_from`` wants it. Raises UserError, on every rank, where a file could not be read:
        that proves nothing.
        """
        state: dict[str, Any] = {}

        def check() -> str:
            try:
                state.update(read_state(path))
                for file in list(records(state))[self.rank :: self.world_size]:
                    checkpoint.verify(path, file)
            except CorruptCheckpoint as error:
                return str(error)
            return ""

        def restore() -> str:
            try:
                self._restore(path, state, moments)
            except CorruptCheckpoint as error:
                return str(error)
            return ""

        # Another rank's share may be what is bad: nobody restores before all have looked.
        problems = [text for text in self._together(check) if text]
        if not problems:
            self._check_parameters(path, state)
            if not begins:
                self._check_copies(path, state)
            problems = [text for text in self._together(restore) if text]
        if not problems:
            self._refresh_live()
        return problems, state

    def _check_parameters(self, path: Path, state: Mapping[str, Any]) -> None:
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

    def _check_copies(self, path: Path, state: Mapping[str, Any]) -> None:
        kept = state["kinds"]
        missing = [name for name in self._copies if name not in self._fixed and f"weights.{name}" not in kept]
        if missing:
            raise UserError(
                f"{path} has no {' and no '.join(missing)} weights, which these settings need. "
                "Choose another run.dir, or the settings of that run."
            )
        then = state.get("fixed", {})
        changed = [name for name, now in self._fixed.items() if name in then and then[name] != now]
        if changed:
            raise UserError(
                f"{path}: the {' and '.join(changed)} weights are not those that this run began with: model.path holds "
                "other weights now. Put the old ones back, or choose another run.dir."
            )

    def _restore(self, path: Path, state: Mapping[str, Any], moments: bool) -> None:
        if state["adam_steps"] > 0 and moments:
            for flat in self._flats:
                self._adam.state[flat] = {
                    "step": self._adam_step_value(int(state["adam_steps"])),
                    "exp_avg": torch.zeros_like(flat, requires_grad=False),
                    "exp_avg_sq": torch.zeros_like(flat, requires_grad=False),
                }
        else:
            self._adam.state.clear()
        kinds = self._kinds()
        # A checkpoint of before fixed copies were left out has them.
        kinds |= {f"weights.{n}": self._copies[n] for n in self._fixed if f"weights.{n}" in state["kinds"]}
        with checkpoint.Reader(path, [file.name for file in records(state)]) as reader:
            for name, place in self._places.items():
                if place.numel == 0:
                    continue
                for kind, flats in kinds.items():
                    stored = kind if kind in state["kinds"] else LIVE
                    value = reader.read(f"{stored}/{name}", place.start, place.numel)
                    if not is_finite(value):
                        # No save writes such any more; a former version did, and its hash fits.
                        raise CorruptCheckpoint(f"{path}: {kind} of {name} holds numbers that are not finite")
                    self._piece(flats, name).copy_(value)
        self.steps = int(state["optimizer_steps"])

    def _kinds(self) -> dict[str, list[Tensor]]:
        """Everything a checkpoint holds, by kind, cut like the masters: of the copies those that change."""
        kinds = {LIVE: self._flats}
        if self._adam_steps() > 0:
            for moment in _MOMENTS:
                kinds[moment] = [self._adam.state[flat][moment] for flat in self._flats]
        kinds.update({f"weights.{name}": flats for name, flats in self._copies.items() if name not in self._fixed})
        return kinds

    def _adam_steps(self) -> int:
        state = self._adam.state.get(self._flats[0], {})
        return int(state["step"]) if "step" in state else 0

    def _adam_step_value(self, steps: int) -> Any:
        # torch counts in a tensor (its fused step wants it on the device), DeepSpeed's CPU Adam in an int.
        if not isinstance(self._adam, torch.optim.AdamW):
            return steps
        fused = bool(self._adam.param_groups[0].get("fused"))
        return torch.tensor(float(steps), device=self._flats[0].device if fused else None)
