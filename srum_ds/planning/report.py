"""A plan as JSON and as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srum_ds.planning.assumptions import IN_WORDS, SPARE
from srum_ds.planning.plan import Advice, Plan
from srum_ds.planning.segment_anything import sam_costs

HEADING = "Predicted from shapes and published peaks, not measured on a GPU."


def plan_facts(plan: Plan, advice: Sequence[Advice] = ()) -> dict[str, Any]:
    """The plan as JSON: bytes of a rank, FLOPs of a rank's step, seconds of a step, GPU hours of the run.

    ``parts`` are the bytes by part in the phase that holds the most; ``phases`` the bytes of every phase.
    """
    memory, cluster = plan.memory, plan.cluster
    return {
        "fits": plan.fits,
        "peak_bytes": memory.peak,
        "peak_phase": memory.peak_phase,
        "limit_bytes": plan.limit,
        "memory_bytes": cluster.hardware.memory,
        "parts": {**memory.stays, **_own(plan)},
        "phases": memory.totals,
        "flops": {
            "rollout": plan.flops.rollout,
            "judge": plan.flops.judge,
            "train": plan.flops.train.model,
            "train_executed": plan.flops.train.executed,
        },
        "bytes_gathered": plan.traffic.gathered,
        "bytes_reduced": plan.traffic.reduced,
        "seconds": plan.seconds,
        "step_seconds": plan.step_seconds,
        "gpu_hours": plan.gpu_hours,
        "gpus": cluster.ranks,
        "nodes": cluster.nodes,
        "gpu": cluster.hardware.name,
        "shapes": plan.assumed,
        "parameters": plan.parameters,
        "trained": plan.trained,
        "assumptions": list(IN_WORDS),
        "advice": [{"change": item.change, "peak_bytes": item.peak} for item in advice],
    }


def _own(plan: Plan) -> dict[str, int]:
    """Parts of the peak phase alone; one that is named like a part that stays is told apart by the phase."""
    phase = plan.memory.peak_phase
    return {f"{phase}: {name}": size for name, size in plan.memory.phases[phase].items() if size}


def plan_text(plan: Plan, name: str, advice: Sequence[Advice] = ()) -> str:
    """The same for people; GB are 1e9 bytes."""
    memory, cluster, cfg = plan.memory, plan.cluster, plan.cfg
    nodes = f" on {cluster.nodes} nodes" if cluster.nodes > 1 else ""
    verdict = "fits" if plan.fits else "does not fit"
    card = cluster.hardware.memory
    lines = [
        f"{name} {verdict} {cluster.ranks} x {cluster.hardware.name}{nodes}. {HEADING}",
        f"shapes of {plan.assumed}{_missing(plan)}: {plan.parameters / 1e9:.2f} B parameters in the engine, "
        f"{plan.trained / 1e9:.2f} B trained ({cfg.model.trains})",
        f"peak {_gb(memory.peak)} GB in phase {memory.peak_phase}, {memory.peak / card:.0%} of {_gb(card)} GB; "
        f"{SPARE:.0%} stay free, so {_gb(plan.limit)} GB is the limit",
        "",
        "GB a rank holds all the time" + " " * 20 + _gb(memory.persistent),
        *(f"  {part:<44} {_gb(size):>6}" for part, size in memory.stays.items()),
        "GB a rank holds by phase, all that with",
    ]
    for phase, parts in memory.phases.items():
        inside = ", ".join(f"{part} {_gb(size)}" for part, size in parts.items() if size)
        lines.append(f"  {phase:<22} {_gb(memory.totals[phase]):>6}   {inside}")
    lines += ["", "a step" + " " * 16 + "PFLOP a GPU   seconds"]
    work = {"rollout": plan.flops.rollout, "judge": plan.flops.judge, "train": plan.flops.train.executed}
    for phase, seconds in plan.seconds.items():
        flops = f"{work[phase] / 1e15:.3f}" if phase in work else ""
        lines.append(f"  {phase:<20} {flops:>11} {seconds:>9.2f}")
    images = cfg.rollout.prompts_per_step * cfg.rollout.images_per_prompt
    lines += [
        f"  {'together':<20} {sum(work.values()) / 1e15:>11.3f} {plan.step_seconds:>9.2f}   "
        f"({images} images, {plan.traffic.gathered / 1e9:.0f} GB gathered and {plan.traffic.reduced / 1e9:.0f} GB "
        "reduced a GPU)",
        f"{cfg.train.steps} steps: {plan.gpu_hours:.1f} GPU hours, {plan.gpu_hours / cluster.ranks:.1f} h on the clock",
    ]
    if not plan.fits:
        lines += ["", "it would fit with any of" if advice else "no single change or pair of those tried makes it fit"]
        lines += [f"  {item.change:<64} {_gb(item.peak):>6} GB" for item in advice]
    return "\n".join(lines) + "\n"


def assumptions_text(plan: Plan) -> str:
    """What the plan assumes, a line each."""
    lines = [f"assumed: {line}" for line in IN_WORDS]
    model = plan.cfg.regions.sam_model
    if plan.cfg.regions.kind == "sam" and not sam_costs(model)[1]:
        lines.append(f"assumed: regions.sam_model={model} is in no table and counts as SAM ViT-H")
    return "\n".join(lines) + "\n"


def _missing(plan: Plan) -> str:
    path = plan.cfg.model.path
    return "" if Path(path).is_dir() else f", since model.path={path} is not on this machine"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f}"
