"""DeepSpeed's JSON settings: what a user's file may say, and what the recipe fills in."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from srum_ds.common.errors import UserError
from srum_ds.engine.base import Settings

# Keys of a DeepSpeed config that the recipe says, and where.
OURS = {
    "optimizer": "train.lr, train.betas, train.eps and train.weight_decay",
    "scheduler": "train.warmup_steps and train.schedule",
    "bf16": "train.precision",
    "bfloat16": "train.precision",
    "fp16": "train.precision",
    "data_types": "train.precision",
    "gradient_clipping": "train.max_grad_norm",
    "train_batch_size": "rollout.prompts_per_step and rollout.images_per_prompt",
    "train_micro_batch_size_per_gpu": "rollout.micro_batch_prompts",
    "gradient_accumulation_steps": "rollout.micro_batch_prompts",
}


def read_ds_config(path: Path) -> dict[str, Any]:
    """Reads a DeepSpeed JSON config. Raises UserError naming the file and what is wrong with it."""
    try:
        config: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"deepspeed.config: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"deepspeed.config: {path} is not JSON: {error}") from error
    _check_config(config, str(path))
    return config


def _check_config(config: Mapping[str, Any], where: str) -> None:
    if not isinstance(config, Mapping):
        raise UserError(f"deepspeed.config: {where} must hold a JSON object")
    for key, setting in OURS.items():
        if key in config:
            raise UserError(f"deepspeed.config: {where}: remove {key!r}; the recipe sets it ({setting})")
    if not isinstance(config.get("zero_optimization", {}), Mapping):
        raise UserError(f"deepspeed.config: {where}: zero_optimization must be an object")
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if stage not in (1, 2, 3):
        raise UserError(f"deepspeed.config: {where}: zero_optimization.stage is {stage!r}; it must be 1, 2 or 3")
    for key in ("zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_nontrainable_weights"):
        # Second copies of the shards, which gathering a named copy or loading would leave stale.
        if int(config["zero_optimization"].get(key, 0)) > (key == "zero_hpz_partition_size"):
            raise UserError(f"deepspeed.config: {where}: remove zero_optimization.{key}; it is not supported")
    for part in ("offload_param", "offload_optimizer"):
        if config["zero_optimization"].get(part, {}).get("device") == "nvme":
            raise UserError(f"deepspeed.config: {where}: zero_optimization.{part} to nvme is not supported")


def frozen_config(ds_config: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """The user's config for an engine without optimizer: one that left it in would make Adam's moments."""
    _check_config(ds_config, "the config")
    config = copy.deepcopy(dict(ds_config))
    config["zero_optimization"].pop("offload_optimizer", None)
    _fill_in(config, precision)
    return config


def full_config(ds_config: Mapping[str, Any], settings: Settings, precision: str) -> dict[str, Any]:
    """The user's config with what the recipe says filled in."""
    _check_config(ds_config, "the config")
    config = copy.deepcopy(dict(ds_config))
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
