"""Exports any checkpoint of a run as a model folder of its design, in one process and tensor by tensor.

The model is built without its weights: what trained is read from the checkpoint, all else is copied from
``model.path``, as at the end of a run.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes, sha256_of, write_atomic
from srum_ds.common.texts import parse_json
from srum_ds.config import Config
from srum_ds.engine import checkpoint_files as checkpoint
from srum_ds.engine import finite
from srum_ds.engine.checkpoint_state import STATE_FILE, CorruptCheckpoint, read_state, records
from srum_ds.evaluation.export_extras import write_export_extras
from srum_ds.models import load_model
from srum_ds.models.protocol import UnifiedModel
from srum_ds.monitoring.run_folder import CHECKPOINTS, CONFIG, load_run

EXPORTS = "exports"
Weights = Literal["live", "ema", "old"]


def export_checkpoint(
    run_dir: Path, step: int | None = None, weights: Weights | None = None, out: Path | None = None
) -> Path:
    """Writes the model of a checkpoint in its design's released layout, float32, and returns its folder.

    step: how many steps were done (default: the newest checkpoint). weights: the trained ones, or an average of them
    (default: ``eval.weights``). out: a folder that is not there yet (default: ``exports/step_000040_ema`` of the run).

    Raises UserError for a folder without a run, a checkpoint that is not there or is damaged, weights that it does not
    hold or that are not finite, and for an ``out`` that is there; nothing is left behind then.
    """
    cfg = run_settings(run_dir)
    path = find_checkpoint(run_dir, step)
    chosen: Weights = weights or cfg.eval.weights
    default = run_dir / EXPORTS / f"{path.name}_{chosen}"
    target = default if out is None else out
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there already and is left as it is: give another folder by --out, or remove it.")
    _write(cfg, path, chosen, target)
    if out is None:
        write_atomic(_note_of(target), json.dumps(_identity(path, chosen), indent=2) + "\n")
    return target


def exported(run_dir: Path, step: int | None, weights: Weights) -> Path:
    """The export of a checkpoint in the run's folder; made where it is not there, or is of another checkpoint."""
    path = find_checkpoint(run_dir, step)
    folder = run_dir / EXPORTS / f"{path.name}_{weights}"
    if folder.is_dir():
        note = _note_of(folder)
        with suppress(OSError, ValueError):
            if parse_json(file_bytes(note)) == _identity(path, weights):
                return folder
        raise UserError(f"{folder} is not of the checkpoint that the run has now: remove it, and repeat the command.")
    return export_checkpoint(run_dir, step, weights)


def run_settings(run_dir: Path) -> Config:
    """The settings of a run. UserError for a folder without one."""
    if not (run_dir / CONFIG).is_file():
        raise UserError(f"{run_dir} holds no run (no {CONFIG}): give the folder of a run, such as runs/tiny.")
    return load_run(run_dir)


def find_checkpoint(run_dir: Path, step: int | None) -> Path:
    """The folder of a step's checkpoint, of the newest without one. UserError listing those that are there."""
    steps = checkpoint.committed_steps(run_dir / CHECKPOINTS)
    if not steps:
        raise UserError(f"{run_dir} has no checkpoint yet: the first is saved after train.save_every steps.")
    if step is not None and step not in steps:
        raise UserError(
            f"{run_dir} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}. train.keep_checkpoints "
            "says how many stay, train.save_every how often one is saved."
        )
    return checkpoint.step_folder(run_dir / CHECKPOINTS, steps[-1] if step is None else step)


def _write(cfg: Config, path: Path, weights: Weights, target: Path) -> None:
    partial = target.with_name(f"{target.name}.partial")
    try:
        state = read_state(path)
        for file in records(state):
            checkpoint.verify(path, file)
        model, names = _empty_model(cfg)
        _check(path, state, weights, {name: model.module.get_parameter(name) for name in names})
        shutil.rmtree(partial, ignore_errors=True)
        with checkpoint.Reader(path, [file.name for file in records(state)]) as reader:
            kind = weights if weights == "live" else f"weights.{weights}"
            model.export(partial, names, finite(_tensors(reader, kind, names, state)), torch.float32)
        write_export_extras(partial, cfg, state["step"], weights, path.parent.parent)
        if target.is_dir():
            target.rmdir()
        os.replace(partial, target)
    except CorruptCheckpoint as error:
        raise UserError(
            f"{error}: the checkpoint is damaged, and nothing was exported. Choose another --step."
        ) from error
    except OSError as error:
        raise UserError(f"{error.filename or target}: cannot be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _empty_model(cfg: Config) -> tuple[UnifiedModel, list[str]]:
    """The run's model with its weights left on the meta device, and the names of what trains, in the module's order."""
    model = load_model(cfg.model.path, cfg.model.kind, materialise=_leave)
    if cfg.model.trains == "lora":
        model.add_lora(cfg.lora.rank, cfg.lora.alpha, cfg.lora.targets, cfg.run.seed)
    trains = set(model.trainable(cfg.model.trains))
    return model, [name for name, _ in model.module.named_parameters() if name in trains]


def _leave(module: nn.Module, stored: Iterable[tuple[str, Tensor]]) -> None:
    """Gives a module no memory."""


def _check(path: Path, state: Mapping[str, Any], weights: Weights, ours: Mapping[str, Tensor]) -> None:
    shapes = {name: list(parameter.shape) for name, parameter in ours.items()}
    theirs = state["parameters"]
    if shapes != theirs:
        different = sorted(name for name in shapes.keys() | theirs.keys() if shapes.get(name) != theirs.get(name))
        raise UserError(
            f"{path} is of another model than model.path and model.trains say: {len(different)} parameters differ, "
            f"such as {different[0]}. Put the run's own model and config.yaml back."
        )
    kept = [kind.removeprefix("weights.") for kind in state["kinds"] if kind == "live" or kind.startswith("weights.")]
    if weights not in kept:
        raise UserError(f"{path} has no {weights} weights, which the run does not need; it has {', '.join(kept)}.")


def _tensors(
    reader: checkpoint.Reader, kind: str, names: Iterable[str], state: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        shape = state["parameters"][name]
        yield name, reader.read(f"{kind}/{name}", 0, math.prod(shape)).reshape(shape)


def _identity(path: Path, weights: Weights) -> dict[str, Any]:
    return {"checkpoint": path.name, "weights": weights, "state_sha256": sha256_of(path / STATE_FILE)}


def _note_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")
