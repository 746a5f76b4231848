"""What a user's file of DeepSpeed's settings (JSON) may say."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes
from srum_ds.common.texts import parse_json

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


OFFLOADS = ("offload_param", "offload_optimizer")


def read_ds_config(path: Path) -> dict[str, Any]:
    """Reads a DeepSpeed JSON config, without what says nothing (null, offload to no device).

    Raises UserError naming the file and what is wrong with it.
    """
    try:
        config: dict[str, Any] = parse_json(file_bytes(Path(path)).decode("utf-8"))
    except OSError as error:
        raise UserError(f"deepspeed.config: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(
            f"deepspeed.config: {path} is not JSON: {error}. Correct it, or begin with ds_configs/zero3.json"
        ) from error
    return settled(config, str(path))


def settled(config: Any, where: str) -> dict[str, Any]:
    """A copy without what says nothing, checked."""
    settled: dict[str, Any] = _without_nulls(copy.deepcopy(config))
    _check_config(settled, where)
    for part in OFFLOADS:
        # DeepSpeed's own way to say that nothing is offloaded.
        if settled["zero_optimization"].get(part, {}).get("device", "none") == "none":
            settled["zero_optimization"].pop(part, None)
    return settled


def _without_nulls(value: Any) -> Any:
    """The same without keys that are null, which is how DeepSpeed writes a setting that is not set."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value


def _check_config(config: Mapping[str, Any], where: str) -> None:
    if not isinstance(config, Mapping):
        raise UserError(f"deepspeed.config: {where} must hold a JSON object")
    for key, setting in OURS.items():
        if key in config:
            raise UserError(f"deepspeed.config: {where}: remove {key!r}; the recipe sets it ({setting})")
    if not isinstance(config.get("zero_optimization", {}), Mapping):
        raise UserError(f"deepspeed.config: {where}: zero_optimization must be an object")
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if isinstance(stage, bool) or stage not in (1, 2, 3):
        raise UserError(f"deepspeed.config: {where}: zero_optimization.stage is {stage!r}; it must be 1, 2 or 3")
    for key in ("zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_nontrainable_weights"):
        # Second copies of the shards, which gathering a named copy or loading would leave stale.
        value = config["zero_optimization"].get(key, 0)
        if not isinstance(value, int):
            raise UserError(f"deepspeed.config: {where}: zero_optimization.{key} is {value!r}, expected a number")
        if value > (key == "zero_hpz_partition_size"):
            raise UserError(f"deepspeed.config: {where}: remove zero_optimization.{key}; it is not supported")
    for part in OFFLOADS:
        offload = config["zero_optimization"].get(part, {})
        if not isinstance(offload, Mapping):
            raise UserError(
                f"deepspeed.config: {where}: zero_optimization.{part} is {offload!r}; it must be an object, such as "
                '{"device": "cpu"}'
            )
        if offload.get("device") == "nvme":
            raise UserError(f"deepspeed.config: {where}: zero_optimization.{part} to nvme is not supported")
