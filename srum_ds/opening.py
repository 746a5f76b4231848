"""The model of a run, as its settings say, and the engine that trains it; ``job`` and ``replay`` open them so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from srum_ds.config import Config
from srum_ds.engine import Engine, compute_device, read_ds_config, shard_loader, start_distributed
from srum_ds.models import load_model
from srum_ds.models.fused import start_kernels
from srum_ds.models.protocol import UnifiedModel


def open_model(cfg: Config) -> tuple[UnifiedModel, Engine]:
    """The model of ``model.path``, under ZeRO-3 loaded straight into shards, and the engine that trains it."""
    ds_config = read_ds_config(Path(cfg.deepspeed.config))
    start_distributed()
    if cfg.train.precision == "bf16" and compute_device().type == "cuda":
        # What stays in float32 then (Segment Anything, small tables) need not be exact to the last bit.
        torch.set_float32_matmul_precision("high")
    start_kernels(cfg.kernels.fused, compute_device())
    materialise = shard_loader(ds_config, cfg.train.precision)
    model = load_model(cfg.model.path, cfg.model.kind, device=compute_device(), materialise=materialise)
    adapt(model, cfg)
    model.enable_checkpointing(cfg.train.activation_checkpointing)
    if cfg.train.compile:
        model.compile_blocks()
    engine = Engine.create(
        model.module,
        set(model.trainable(cfg.model.trains)),
        ds_config,
        **optimizer_settings(cfg),
        leaf_modules=model.shard_units(),
        stored=model.stored(),
    )
    return model, engine


def adapt(model: UnifiedModel, cfg: Config) -> None:
    """Gives a model the adapter that ``model.trains=lora`` trains."""
    if cfg.model.trains == "lora":
        model.add_lora(cfg.lora.rank, cfg.lora.alpha, cfg.lora.targets, cfg.run.seed)


def optimizer_settings(cfg: Config) -> dict[str, Any]:
    """What an engine is told of ``train.*``."""
    t = cfg.train
    return {
        "lr": t.lr,
        "betas": t.betas,
        "eps": t.eps,
        "weight_decay": t.weight_decay,
        "max_grad_norm": t.max_grad_norm,
        "warmup_steps": t.warmup_steps,
        "precision": t.precision,
        "seed": cfg.run.seed,
        "decay_steps": t.steps if t.schedule == "cosine" else 0,
    }
