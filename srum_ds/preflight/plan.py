"""What a run would do, built at its number of ranks without memory for its weights: `srum-ds train --dry-run`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from srum_ds.common.errors import UserError
from srum_ds.config import Config
from srum_ds.models import costs_of, load_model
from srum_ds.models.protocol import UnifiedModel
from srum_ds.objectives import get_objective
from srum_ds.planning.hardware import GPUS, Hardware
from srum_ds.planning.plan import make_plan, work_of
from srum_ds.planning.policies import policies_of
from srum_ds.planning.seconds import Cluster
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rollouts.collect import sampling_of

# Masters and the two moments of Adam, 4 bytes each.
_MASTERS = 3


def planned(cfg: Config, ranks: int) -> Iterator[str]:
    """Lines of the plan: the model as it is built, the judge, a step, what a rank holds, a checkpoint.

    Questions, region proposers and judges outside are opened too. Raises UserError for whatever a rank would refuse
    when it opens the model and the judge, the tensors' names and shapes included; no weights are read.
    """
    JudgePipeline(cfg).ready()
    sampling = sampling_of(cfg)
    model = skeleton(cfg)
    yield from _model(cfg, model)
    yield from _step(cfg, model, ranks)
    yield f"sampler         {sampling}"
    yield from _engine(cfg, model, ranks)
    yield from _memory(cfg, ranks)


def skeleton(cfg: Config) -> UnifiedModel:
    """The model of ``model.path`` with its parameters on the meta device, ready to train in ``model.trains``."""
    model = load_model(cfg.model.path, cfg.model.kind, materialise=_leave_empty)
    if cfg.model.trains == "lora":
        model.add_lora(cfg.lora.rank, cfg.lora.alpha, cfg.lora.targets, cfg.run.seed)
    return model


def _leave_empty(module: nn.Module, stored: Iterable[tuple[str, Tensor]]) -> None:
    """Gives a module neither memory nor values."""


def _counted(model: UnifiedModel, mode: str) -> tuple[int, int]:
    """(parameters, those that train)."""
    sizes = {name: parameter.numel() for name, parameter in model.module.named_parameters()}
    return sum(sizes.values()), sum(sizes[name] for name in model.trainable(mode))


def _model(cfg: Config, model: UnifiedModel) -> Iterator[str]:
    total, trained = _counted(model, cfg.model.trains)
    yield (
        f"model           {cfg.model.path}: {_count(total)} parameters in the engine, of which {cfg.model.trains} "
        f"trains {_count(trained)}"
    )
    unchanged = model.judge_unchanged_by(cfg.model.trains)
    if cfg.model.judge == "shared" and not unchanged:
        raise UserError(
            f"model.judge=shared, but model.trains={cfg.model.trains} changes the understanding half: use "
            "model.judge=frozen_copy (or auto), or another model.trains."
        )
    live = cfg.model.judge != "frozen_copy" and unchanged
    yield f"judge           {'the live model' if live else 'a frozen copy'}, {cfg.judge.readout}"


def _step(cfg: Config, model: UnifiedModel, ranks: int) -> Iterator[str]:
    r, t = cfg.rollout, cfg.train
    rows, columns = model.grid(*r.image_size)
    own = r.prompts_per_step // ranks
    yield (
        f"a step          {r.prompts_per_step} prompts x {r.images_per_prompt} images of {r.image_size[0]} x "
        f"{r.image_size[1]} pixels ({rows} x {columns} tokens), {t.timesteps_per_image} training views each"
    )
    yield (
        f"a rank          {own} prompts in {own // r.micro_batch_prompts} micro-batch(es) of {r.micro_batch_prompts}, "
        f"{own * r.images_per_prompt} images"
    )
    yield f"the run         {t.steps} steps, {t.mode}, objective {cfg.objective.name}, into {cfg.run.dir}"


def _engine(cfg: Config, model: UnifiedModel, ranks: int) -> Iterator[str]:
    from srum_ds.config.deepspeed_json import read_ds_config

    _, trained = _counted(model, cfg.model.trains)
    stage = read_ds_config(Path(cfg.deepspeed.config))["zero_optimization"]["stage"]
    copies = policies_of(cfg, get_objective(cfg.objective.name))
    kept = [name for name in copies if name != "reference"]
    size = 4 * trained * (_MASTERS + len(kept))
    yield (
        f"engine          ZeRO-{stage} on {ranks} rank(s), {cfg.train.precision}; copies of what trains: "
        f"{', '.join(copies) or 'none'}"
    )
    yield (
        f"checkpoint      {_bytes(size)} every {cfg.train.save_every} steps, {cfg.train.keep_checkpoints} kept; the "
        f"export {_bytes(4 * trained)} of trained weights"
    )


def _memory(cfg: Config, ranks: int) -> Iterator[str]:
    if costs_of(cfg.model.path, cfg.model.kind) is None:
        yield "memory          not planned: this design does not say what its work costs"
        return
    hardware, told = here()
    plan = make_plan(work_of(cfg, sampling_of(cfg)), Cluster(hardware, ranks, 1, 50e9))
    memory = plan.memory
    yield f"memory          {_bytes(memory.peak)} a rank at most, in phase {memory.peak_phase}; {told}"
    if not hardware.cpu and not plan.fits:
        yield "                it does NOT fit; `srum-ds plan` says what would"
    yield f"  all the time  {_bytes(memory.persistent)}: " + ", ".join(
        f"{name} {_bytes(size)}" for name, size in memory.stays.items()
    )
    for phase, size in memory.totals.items():
        yield f"  {phase:<22}  {_bytes(size)}"


def here() -> tuple[Hardware, str]:
    """This machine's device as a plan counts it, and what it is in words."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        known = next((gpu for gpu in GPUS.values() if gpu.is_called(name)), None)
        size = torch.cuda.get_device_properties(0).total_memory
        if known is not None:
            return known, f"{name} has {_bytes(size)}"
        return Hardware(name, {"bf16": 1e14, "fp32": 1e14}, size, 1e12, 1e11), f"{name} has {_bytes(size)}"
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpu = Hardware("cpu", {"bf16": 1e10, "fp32": 1e10}, size, 1e10, 1e10, cpu=True)
    return cpu, f"no GPU here, so counted for the CPU; this machine has {_bytes(size)} for all ranks"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _bytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
