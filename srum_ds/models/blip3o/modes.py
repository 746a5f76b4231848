"""Which parameters each training mode of BLIP3-o trains, and which layers a LoRA adapter may bind to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from srum_ds.common.errors import UserError
from srum_ds.models.lora import is_adapter, match_targets

GENERATION_PARTS = ("queries.", "dit.")
DENOISER = "dit."


def trained(mode: str, names: Iterable[str]) -> list[str]:
    """Those of a module's parameter names that training mode ``mode`` trains.

    generation: what the release trained, the queries and the transformer with its projection. lora: the adapter's
    parameters alone. The language model is frozen in both. UserError for another mode.
    """
    if mode == "lora":
        return [name for name in names if is_adapter(name)]
    if mode != "generation":
        raise UserError(
            f"model.trains is {mode!r}; BLIP3-o, whose language model is frozen, knows 'generation' and 'lora'."
        )
    return [name for name in names if name.startswith(GENERATION_PARTS) and not is_adapter(name)]


def lora_targets(module: nn.Module, targets: Sequence[str] = ()) -> tuple[str, ...]:
    """Full names of the transformer's linear layers that ``targets`` mean; none: the projections of attention."""
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    candidates = [name for name in linear if name.startswith(DENOISER)]
    if targets:
        return match_targets(candidates, targets)
    return tuple(name for name in candidates if ".attn1." in name or ".attn2." in name)
