"""DeepSpeed's JSON settings: what the recipe fills in. ``config.deepspeed_json`` reads a user's file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from srum_ds.config.deepspeed_json import read_ds_config as read_ds_config
from srum_ds.config.deepspeed_json import settled
from srum_ds.engine.base import Settings


def frozen_config(ds_config: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """The user's config for an engine without optimizer: one that left it in would make Adam's moments."""
    config = settled(ds_config, "the config")
    config["zero_optimization"].pop("offload_optimizer", None)
    _fill_in(config, precision)
    return config


def full_config(ds_config: Mapping[str, Any], settings: Settings, precision: str) -> dict[str, Any]:
    """The user's config with what the recipe says filled in."""
    config = settled(ds_config, "the config")
    offloaded = "offload_optimizer" in config["zero_optimization"]
    parameters: dict[str, Any] = {
        "lr": settings.lr,
        "betas": list(settings.betas),
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    if not offloaded:
        parameters["torch_adam"] = True
        if torch.cuda.is_available():
            # One kernel a flat tensor; torch's default there makes several temporaries of its size.
            parameters["fused"] = True
    elif not torch.cuda.is_available():
        # The host's memory is where all is anyway: DeepSpeed's own step for it would be compiled for nothing.
        parameters["torch_adam"] = True
    config["optimizer"] = {"type": "AdamW", "params": parameters}
    config["gradient_clipping"] = settings.max_grad_norm
    # DeepSpeed's defaults under bf16 would reduce and accumulate gradients in bf16.
    config["data_types"] = {"grad_accum_dtype": "fp32"}
    config.setdefault("communication_data_type", "fp32")
    _fill_in(config, precision)
    return config


def _fill_in(config: dict[str, Any], precision: str) -> None:
    # The engine says itself which micro-batch is the last of a step, so these are formal.
    config["train_micro_batch_size_per_gpu"] = 1
    config["gradient_accumulation_steps"] = 1
    config["bf16"] = {"enabled": precision == "bf16", "check_grad_overflow": True}
    config.setdefault("steps_per_print", 10**9)
