"""Where a run began, if not with the model of ``model.path``: a checkpoint of another run (``run.fork``).

``forked_from.json`` in the run's folder says which one, since the other run may go on, and what is taken of it. It is
written before the first step and read until the run has a checkpoint of its own.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes, sha256_of, write_atomic
from srum_ds.config import Config, diff_configs, load_config
from srum_ds.monitoring.run_changes import CHECKPOINTS, CONFIG, newest_step, shown
from srum_ds.monitoring.run_inputs import FORKED, inputs_of, read_inputs

if TYPE_CHECKING:
    from srum_ds.engine.checkpoints import CheckpointedEngine

# The trained weights mean nothing beside other ones that did not train, or in an adapter of another kind.
_SAME = ("model.trains", "lora.rank", "lora.alpha", "lora.targets")
_STATE = "state.json"


@dataclass(frozen=True)
class Fork:
    """A checkpoint that a run begins with.

    run: the other run's folder. step: how many steps were done there. sha256: of the checkpoint's state.json. moments:
    whether the optimizer's come along; why_fresh: else the reason. changed: settings that differ from that run's, with
    both values in words.
    """

    run: str
    step: int
    sha256: str
    moments: bool
    why_fresh: str
    changed: list[list[str]]

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's folder."""
        return Path(self.run) / CHECKPOINTS / f"step_{self.step:06d}"

    def told(self) -> str:
        """What the run begins with, in a sentence."""
        optimizer = "its moments of the optimizer" if self.moments else f"fresh moments, since {self.why_fresh}"
        return f"begins with the weights after step {self.step} of {self.run}, and with {optimizer}"


def pin_fork(run_dir: Path, cfg: Config) -> None:
    """Notes which checkpoint a new run begins with; where it begins with its model, takes a note away.

    Raises UserError as ``choose_fork``.
    """
    fork = choose_fork(run_dir, cfg)
    if fork is None:
        (run_dir / FORKED).unlink(missing_ok=True)
    else:
        write_atomic(run_dir / FORKED, json.dumps(asdict(fork), indent=2) + "\n")


def choose_fork(run_dir: Path, cfg: Config) -> Fork | None:
    """The checkpoint that a new run begins with, as ``run.fork`` says; None where it begins with its model.

    Nothing is written. Raises UserError for a folder without a run or a checkpoint, or whose weights do not fit these
    settings.
    """
    if cfg.run.fork is None:
        return None
    source = Path(cfg.run.fork)
    if not (source / CONFIG).is_file():
        raise UserError(f"run.fork={cfg.run.fork}: no run there (no {CONFIG}); give the folder of a run.")
    if source.resolve() == run_dir.resolve():
        raise UserError(f"run.fork={cfg.run.fork} is run.dir itself: give the new run a folder of its own (run.dir).")
    known = read_fork(run_dir)
    wanted = cfg.run.fork_step or newest_step(source)
    if known is not None and known.run == str(source.resolve()) and cfg.run.fork_step in (None, known.step):
        # The call before this one chose; the other run may have gone on since.
        wanted = known.step
    if not wanted:
        raise UserError(
            f"run.fork={cfg.run.fork}: that run has no checkpoint. To begin with its trained model, set "
            f"model.path={source / 'export'} instead."
        )
    there = load_config(source / CONFIG)
    _refuse_other_weights(cfg, there, source)
    betas = there.train.betas == cfg.train.betas
    why = "" if betas else f"train.betas were {list(there.train.betas)} and are {list(cfg.train.betas)}"
    changed = [[key, shown(there, key), shown(cfg, key)] for key, _, _ in diff_configs(there, cfg, ("run",))]
    fork = Fork(str(source.resolve()), wanted, "", betas, why, changed)
    if not (fork.checkpoint / _STATE).is_file():
        raise UserError(f"run.fork_step={wanted}: {source} has no checkpoint of that step; it has {_listed(source)}.")
    return replace(fork, sha256=sha256_of(fork.checkpoint / _STATE))


def read_fork(run_dir: Path) -> Fork | None:
    """The checkpoint that a run began with; None where it began with its model. UserError where it cannot be read."""
    path = run_dir / FORKED
    try:
        return TypeAdapter(Fork).validate_json(file_bytes(path), strict=True) if path.exists() else None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Restore it, or choose another run.dir.") from error


def take_fork(engine: CheckpointedEngine, run_dir: Path, begins: bool) -> Fork | None:
    """The checkpoint that a run began with, if any; all ranks call it. begins: its weights are taken up now.

    Raises UserError on all ranks where the checkpoint is not there any more as it was chosen, or cannot be used.
    """
    # It imports torch, which whoever looks at a folder does not need.
    from srum_ds.common import ranks

    fork: Fork | None = ranks.run_on_all_ranks(lambda: read_fork(run_dir), rank_zero=True)[0]
    if fork is not None and begins:
        ranks.run_on_all_ranks(lambda: _refuse_changed(fork), rank_zero=True)
        engine.begin_from(fork.checkpoint, fork.moments)
    return fork


def _refuse_changed(fork: Fork) -> None:
    state = fork.checkpoint / _STATE
    if not state.is_file() or sha256_of(state) != fork.sha256:
        raise UserError(
            f"{fork.checkpoint}, which this run is to begin with, is not there any more as it was chosen. Put it back, "
            "or choose another run.dir."
        )


def _refuse_other_weights(cfg: Config, there: Config, source: Path) -> None:
    export = f"To begin with what it has become: `srum-ds export {source}`, and model.path naming that folder."
    differ = [key for key, _, _ in diff_configs(there, cfg) if key in _SAME and _matters(key, cfg)]
    if differ:
        listed = "; ".join(f"{key} was {shown(there, key)} and is {shown(cfg, key)}" for key in differ)
        raise UserError(f"run.fork={cfg.run.fork}: its trained weights do not fit this run: {listed}. {export}")
    kept, _ = read_inputs(source)
    if "model.path" in kept and kept["model.path"] != inputs_of(cfg).get("model.path"):
        raise UserError(
            f"run.fork={cfg.run.fork}: that run began with other weights than model.path={cfg.written('model.path')} "
            f"has, and what it did not train comes from there. {export}"
        )


def _matters(key: str, cfg: Config) -> bool:
    return key == "model.trains" or cfg.model.trains == "lora"


def _listed(source: Path) -> str:
    found = sorted(path.name for path in (source / CHECKPOINTS).glob("step_*") if (path / _STATE).is_file())
    return ", ".join(str(int(name.removeprefix("step_"))) for name in found if name[5:].isdigit()) or "none"
