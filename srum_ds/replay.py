"""``srum-ds replay FILE``: a kept step run again on one rank, and the first tensor of it that is not finite.

The run's model and the checkpoint that the file names are loaded; nothing in the run's folder changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srum_ds.common.errors import UserError
from srum_ds.common.finite import is_finite
from srum_ds.config import Config, load_config
from srum_ds.engine import PlainEngine, choose_device, compute_device
from srum_ds.models import load_model
from srum_ds.models.protocol import UnifiedModel
from srum_ds.monitoring import run_folder
from srum_ds.monitoring.run_binding import differing
from srum_ds.objectives import Objective, get_objective
from srum_ds.objectives.apply import Batch, constraint_losses, masked, terms_of, token_losses
from srum_ds.opening import adapt, optimizer_settings
from srum_ds.planning.policies import holds_to_reference, policies_of
from srum_ds.rollouts.collect import to_device
from srum_ds.rollouts.kept_batches import first_not_finite, read_batches

NOT_FINITE = 78
"""Exit status of a replay that met a number that is not finite."""


@dataclass
class Found:
    """What a replay saw: lines to show, and the first thing that is not finite, in the order of the computation."""

    lines: list[str] = field(default_factory=list)
    first: str | None = None

    def look(self, what: str, tensor: Tensor | None) -> None:
        """Looks at a tensor of the computation, if nothing was found before it."""
        if self.first is None and tensor is not None and not is_finite(tensor):
            self.first = what


def replay(path: Path, run: Path | None, say: Callable[[str], None]) -> int:
    """Runs the step of a file again and says what came of it; returns 0, or 78 where a number is not finite.

    run: the run's folder, where it is not the one that the file lies in or names. Raises UserError for a file, a run or
    a checkpoint that is not there or does not belong to it.
    """
    batches, facts = read_batches(path)
    run_dir = _run_of(path, run, facts)
    cfg = load_config(run_dir / run_folder.CONFIG)
    other = differing(run_dir, cfg, facts["settings"])
    if other:
        raise UserError(f"{path} was kept under other settings than {run_dir} has: {', '.join(other)}.")
    say(f"step {facts['step'] + 1} of {run_dir}, the share of rank {facts['rank']} of {facts['world_size']}")
    choose_device()
    model, engine, objective = _opened(cfg, compute_device())
    if facts["checkpoint"]:
        engine.read(run_dir / facts["checkpoint"])
        say(f"weights: {facts['checkpoint']}")
    else:
        say(f"weights: {cfg.written('model.path')}, as nothing was saved before this step")
    found = Found()
    batches = [_moved(batch, engine.device) for batch in batches]
    for number, batch in enumerate(batches):
        if found.first is None and (name := first_not_finite(batch)) is not None:
            found.first = f"the kept batch itself: {name} of micro-batch {number}"
    for weights in ("live", *policies_of(cfg, objective)):
        for name, tensor in engine.pieces(weights):
            found.look(f"the {weights} weights: {name}", tensor)
    _passes(cfg, model, engine, objective, batches, float(facts["count"]), found)
    for line in found.lines:
        say(line)
    if found.first is None:
        say("everything is finite. If the step was not, then hardware erred, or other ranks' shares did.")
        return 0
    say(f"the first that is not finite: {found.first}")
    return NOT_FINITE


def _run_of(path: Path, run: Path | None, facts: Mapping[str, Any]) -> Path:
    """The folder of the run that kept a step."""
    for folder in (run,) if run is not None else (path.resolve().parent.parent, Path(facts["run"])):
        if (folder / run_folder.CONFIG).is_file():
            return folder
    raise UserError(
        f"{path}: no run with a {run_folder.CONFIG} in {run or facts['run']}; name the run's folder with --run."
    )


def _opened(cfg: Config, device: torch.device) -> tuple[UnifiedModel, PlainEngine, Objective]:
    """The run's model, objective and weights before the checkpoint is read, whole on one device."""
    objective = get_objective(cfg.objective.name)
    model = load_model(cfg.model.path, cfg.model.kind, device=device)
    adapt(model, cfg)
    engine = PlainEngine.create(
        model.module, set(model.trainable(cfg.model.trains)), **optimizer_settings(cfg), device=device
    )
    for policy in policies_of(cfg, objective):
        engine.add_weights(policy, fixed=policy == "reference")
    return model, engine, objective


def _moved(batch: Batch, device: torch.device) -> Batch:
    drawn = to_device(batch, device).samples
    view = batch.view
    inputs = {name: tensor.to(device) for name, tensor in view.inputs.items()}
    time_NM = None if view.time_NM is None else view.time_NM.to(device)
    moved = replace(
        view, inputs=inputs, target=view.target.to(device), counts_NMT=view.counts_NMT.to(device), time_NM=time_NM
    )
    return replace(batch, samples=drawn, view=moved)


def _passes(
    cfg: Config,
    model: UnifiedModel,
    engine: PlainEngine,
    objective: Objective,
    batches: Sequence[Batch],
    count: float,
    found: Found,
) -> None:
    """Predicts, sums the losses by term and goes backward, as the training loop does."""
    others: dict[str, list[Tensor | None]] = {}
    wanted = {"old": objective.needs_old, "reference": holds_to_reference(cfg, objective)}
    for policy, needed in wanted.items():
        others[policy] = [None] * len(batches)
        if needed:
            with engine.gathered(policy) as module, watched(module, found, f"{policy} weights, "):
                others[policy] = [_predicted(model, module, batch) for batch in batches]
            for number, prediction in enumerate(others[policy]):
                found.look(f"the prediction of the {policy} weights for micro-batch {number}", prediction)
    norms = 0.0
    for number, batch in enumerate(batches):
        old, reference = others["old"][number], others["reference"][number]
        with watched(model.module, found, ""):
            prediction = _predicted(model, engine, batch)
        found.look(f"the prediction for micro-batch {number}", prediction)
        settings, matching = cfg.objective, model.matching
        rewarded_BT = token_losses(
            objective, replace(settings, constraint="none"), matching, prediction, batch, old, reference
        )
        terms, counts_BT = terms_of(matching, prediction, batch, old, reference)
        constraint_BT = constraint_losses(terms, settings)
        losses = {objective_name(cfg): rewarded_BT.sum()}
        if constraint_BT is not None:
            losses[f"constraint {settings.constraint}"] = masked(constraint_BT, counts_BT).sum()
        for name, term in losses.items():
            found.look(f"the loss term {name} of micro-batch {number}", term)
            found.lines.append(f"micro-batch {number}: {name} {float(term.detach()) / max(count, 1.0):.6g}")
        loss = token_losses(objective, settings, matching, prediction, batch, old, reference).sum()
        found.look(f"the loss of micro-batch {number}", loss)
        norms += _backward(model.module, loss / max(count, 1.0), found, number)
    found.lines.append(f"gradient norm of this share: {math.sqrt(norms):.6g}")


def objective_name(cfg: Config) -> str:
    """How the loss of the objective is called beside its constraint."""
    return f"objective {cfg.objective.name}"


def _predicted(model: UnifiedModel, forward: Any, batch: Batch) -> Tensor:
    return model.predict(forward, batch.samples.prompt_of_each(), batch.view, batch.samples.grid)


def _backward(module: nn.Module, loss: Tensor, found: Found, number: int) -> float:
    """Goes backward, looking at each parameter's gradient when it is there; returns the sum of their squares."""
    handles = [
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: found.look(f"the gradient of {name}, micro-batch {number}", p.grad)
        )
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
    try:
        loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    squares = 0.0
    for parameter in module.parameters():
        if parameter.grad is not None:
            squares += float(parameter.grad.double().square().sum())
            parameter.grad = None
    return squares


class watched:
    """Inside, the first module whose output is not finite is found, with its own parameters' names."""

    def __init__(self, module: nn.Module, found: Found, whose: str) -> None:
        self.found, self.whose = found, whose
        self._modules = dict(module.named_modules())
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        for name, part in self._modules.items():
            self._handles.append(part.register_forward_hook(self._seen(name)))

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _seen(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(part: nn.Module, given: Any, output: Any) -> None:
            if self.found.first is not None or all(is_finite(tensor) for tensor in _tensors(output)):
                return
            own = ", ".join(key for key, _ in part.named_parameters(prefix=name, recurse=False)) or "none of its own"
            came = "finite" if all(is_finite(tensor) for tensor in _tensors(given)) else "not finite either"
            self.found.first = (
                f"{self.whose}the output of module {name or '(the whole model)'} ({type(part).__name__}; "
                f"parameters: {own}); what it was given is {came}"
            )

        return look


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in what a module takes or gives."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
