"""Checks around one training step in each mode: gradients, the judge, and export."""

from __future__ import annotations

import torch
from torch import Tensor

from srum_ds.models.contract.subject import Subject, apart, expect
from srum_ds.models.protocol import UnifiedModel

SAME_GRADIENT = 1e-3
"""Relative: how far a gradient may lie from the one with nothing frozen."""
SLOPE_TOLERANCE = 0.05
"""Relative: how far a gradient may lie from a difference quotient in float32."""
MERGED = 1e-3
"""Relative: how far a model with a merged adapter may draw from the adapted one, whose sums are taken apart."""


def stored_tensors(subject: Subject) -> str:
    """``stored`` gives every parameter by its name, and ``shard_units`` are classes of the module's parts."""
    model = subject.model
    parameters = dict(model.module.named_parameters())
    stored = {name: tensor for name, tensor in model.stored() if name in parameters}
    missing = sorted(set(parameters) - set(stored))
    expect(not missing, f"stored() lacks {len(missing)} parameters, such as {', '.join(missing[:3])}")
    for name, tensor in stored.items():
        expect(torch.equal(tensor.float(), parameters[name].float()), f"{name} is not loaded as it is stored")
    parts = {type(part) for part in model.module.modules()}
    for unit in model.shard_units():
        expect(unit in parts, f"shard_units() names {unit.__name__}, of which the module has none")
    return f"{len(parameters)} parameters, {sum(p.numel() for p in parameters.values()):,} numbers"


def moves(subject: Subject, mode: str) -> str:
    """Only what the mode trains has a gradient, that gradient is the whole one, and a step changes nothing else."""
    model, trained = subject.trained(mode)
    before = _copies(model)
    subject.energy(model).backward()
    named = dict(model.module.named_parameters())
    strangers = sorted(name for name, p in named.items() if p.grad is not None and name not in trained)
    expect(not strangers, f"{', '.join(strangers[:3])} receive a gradient and are not trained")
    found = {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}
    reached = {name for name, gradient in found.items() if bool((gradient != 0).any())}
    expect(bool(reached), "no trained parameter receives a gradient")
    model.module.zero_grad()
    model.module.requires_grad_(True)
    subject.energy(model).backward()
    largest = max(float(gradient.abs().max()) for gradient in found.values())
    for name, parameter in trained.items():
        whole = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        difference = float((found.get(name, torch.zeros_like(whole)) - whole).abs().max()) / largest
        expect(difference < SAME_GRADIENT, f"{name}: its gradient is another one where nothing is frozen")

    model, trained = subject.stepped(mode)
    changed = {name for name, tensor in _copies(model).items() if not torch.equal(tensor, before[name])}
    others = sorted(changed - set(trained))
    expect(not others, f"the step changed {', '.join(others[:3])}, which {mode} does not train")
    return f"{len(trained)} parameters are trained, {len(reached)} of them have a gradient"


def slope(subject: Subject, mode: str) -> str:
    """The gradient against the difference quotient of the energy along it."""
    model, trained = subject.trained(mode)
    subject.energy(model).backward()
    gradients = {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}
    norm = float(torch.stack([g.double().square().sum() for g in gradients.values()]).sum().sqrt())
    expect(norm > 0, "the gradient is 0")
    quotients = []
    for length in (1e-1, 3e-2, 1e-2, 3e-3):
        ends = [_energy_at(subject, model, trained, gradients, sign * length / norm) for sign in (1, -1)]
        quotients.append((ends[0] - ends[1]) / (2 * length))
    nearest = min(quotients, key=lambda quotient: abs(quotient - norm))
    difference = abs(nearest - norm) / norm
    expect(difference < SLOPE_TOLERANCE, f"along the gradient the energy rises by {nearest:.4g}, not by {norm:.4g}")
    return f"slope {norm:.4g}, measured {nearest:.4g}"


@torch.no_grad()
def _energy_at(
    subject: Subject, model: UnifiedModel, trained: dict[str, Tensor], direction: dict[str, Tensor], length: float
) -> float:
    """The energy with the trained parameters moved by ``length`` times a direction, and moved back."""
    kept = {name: trained[name].clone() for name in direction}
    for name, along in direction.items():
        trained[name].add_(length * along)
    found = float(subject.energy(model).double())
    for name, before in kept.items():
        trained[name].copy_(before)
    return found


def judge_after_step(subject: Subject, mode: str) -> str:
    """Inside ``judging()`` the judge is bit-identical after a step where ``judge_unchanged_by`` says so, else not."""
    model, _ = subject.trained(mode)
    with model.judging():
        before = subject.judged(model)
    stepped, _ = subject.stepped(mode)
    with stepped.judging():
        after = subject.judged(stepped)
    same = torch.equal(before[0], after[0]) and torch.equal(before[1], after[1]) and before[2] == after[2]
    said = stepped.judge_unchanged_by(mode)
    moved = apart(before[0], after[0])
    expect(same or not said, f"judge_unchanged_by({mode!r}) is True, but its log-probabilities moved by {moved:.2g}")
    expect(said or not same, f"judge_unchanged_by({mode!r}) is False, but a step changes nothing that it says")
    return "bit-identical" if said else f"changes: log-probabilities moved by {moved:.2g}"


def exported(subject: Subject, mode: str) -> str:
    """A step changes what is drawn, and the exported folder draws and judges as the stepped model does."""
    model, trained = subject.stepped(mode)
    tokens, images = subject.draw(model)
    expect(not torch.equal(tokens, subject.drawn[0]), "a step changes nothing that is drawn")
    folder = subject.scratch / mode
    names = [name for name, parameter in model.module.named_parameters() if parameter.requires_grad]
    model.export(folder, names, ((name, trained[name].detach()) for name in names), torch.float32)
    expect(subject.family.matches(folder), "matches() does not know the exported folder")
    again = subject.load(folder)
    loaded_tokens, loaded_images = subject.draw(again)
    judged, loaded_judged = subject.judged(model), subject.judged(again)
    levels = float((images - loaded_images).abs().max()) * 255
    if model.lora is not None:
        # The folder holds W + scale B A, of which the adapted model never takes the sum.
        difference = max(apart(tokens, loaded_tokens), apart(judged[0], loaded_judged[0]))
        expect(difference < MERGED, f"the merged model's tokens or answers differ by {difference:.2g}")
        return f"the merged model draws within {levels:.0f} of 255 of the adapted one"
    expect(torch.equal(tokens, loaded_tokens), f"loaded again, its images differ by up to {levels:.0f} of 255")
    expect(torch.equal(images, loaded_images), f"loaded again, its images differ by up to {levels:.0f} of 255")
    expect(
        torch.equal(judged[0], loaded_judged[0]) and judged[2] == loaded_judged[2], "loaded again, it judges otherwise"
    )
    return "the same images and answers, bit for bit"


def _copies(model: UnifiedModel) -> dict[str, Tensor]:
    """The module's parameters and buffers by name."""
    tensors: dict[str, Tensor] = dict(model.module.named_parameters())
    tensors |= dict(model.module.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
