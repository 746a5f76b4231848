"""Which parameters each training mode trains, and which layers a LoRA adapter may bind to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from srum_ds.common.errors import UserError
from srum_ds.models.lora import is_adapter, match_targets

TRANSFORMER = "transformer."
_BLOCK = re.compile(r"transformer\.[a-z_]*blocks\.(\d+)\.")


def trained(mode: str, names: Iterable[str], unreached: Sequence[str] = ()) -> list[str]:
    """Those of a module's parameter names that training mode ``mode`` trains.

    generation: the diffusion transformer, without what no velocity depends on (``unreached``: ends of names in its
    last block), for which an optimiser would keep moments, and which weight decay would move. lora: the adapter's
    parameters alone. UserError for another mode.
    """
    names = list(names)
    if mode == "lora":
        return [name for name in names if is_adapter(name)]
    if mode != "generation":
        raise UserError(f"model.trains is {mode!r}; this design knows 'generation' and 'lora'.")
    idle = _idle(names, unreached)
    return [name for name in names if name.startswith(TRANSFORMER) and not name.startswith(idle)]


def _idle(names: Sequence[str], unreached: Sequence[str]) -> tuple[str, ...]:
    """The beginnings of the names in the last block that no velocity depends on."""
    found = {match[0]: int(match[1]) for name in names if (match := _BLOCK.match(name))}
    last = max(found, key=found.__getitem__, default="")
    return tuple(last + part for part in unreached) if last else ()


def blocks(transformer: Any) -> list[nn.Module]:
    """The transformer's repeated blocks, as its library names them."""
    repeated = tuple(
        getattr(transformer, "_repeated_blocks", None) or getattr(transformer, "_no_split_modules", ()) or ()
    )
    return [part for part in transformer.modules() if type(part).__name__ in repeated]


def adaptable(module: nn.Module, unreached: Sequence[str] = ()) -> list[str]:
    """Names of the modules that an adapter may bind to: linear layers that mode ``generation`` trains."""
    linear = {f"{name}.weight": name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    return [linear[name] for name in trained("generation", linear, unreached)]


def lora_targets(module: nn.Module, targets: Sequence[str] = (), unreached: Sequence[str] = ()) -> tuple[str, ...]:
    """Full names of the modules that ``targets`` mean; without any, the projections of attention in every block."""
    candidates = adaptable(module, unreached)
    if targets:
        return match_targets(candidates, targets)
    attention = [name for name in candidates if _BLOCK.match(name) and ".attn." in name]
    return tuple(attention or candidates)
