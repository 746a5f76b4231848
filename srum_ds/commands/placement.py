"""Where a command runs a model and in which type: what `--device` and `--dtype` of `generate` and `ask` mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from srum_ds.common.errors import UserError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Placement:
    """Where a model runs and in which type; ``auto`` is the GPU in bfloat16, or the CPU in float32."""

    device: str = "auto"
    dtype: str = "auto"


def resolve_placement(placement: Placement) -> tuple[torch.device, torch.dtype]:
    """The device and the type that are meant. UserError for unknown ones and for a device that is not there."""
    import torch

    cuda = torch.cuda.is_available()
    name = placement.device
    if name == "auto":
        name = "cuda" if cuda else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name!r} is unknown; expected auto, cpu, cuda or cuda:1.") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name!r} is not supported; expected auto, cpu, cuda or cuda:1.")
    if device.type == "cuda" and (not cuda or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"--device {name}: there are {torch.cuda.device_count()} GPUs here. Pass --device cpu.")
    if placement.dtype == "auto":
        return device, torch.bfloat16 if device.type == "cuda" else torch.float32
    if placement.dtype not in DTYPES:
        raise UserError(f"--dtype {placement.dtype!r} is unknown; expected auto, {', '.join(DTYPES)}.")
    dtype: torch.dtype = getattr(torch, placement.dtype)
    return device, dtype
