"""Which parameters each training mode of Janus trains, and which layers a LoRA adapter may bind to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from srum_ds.common.errors import UserError
from srum_ds.models.janus import MODES
from srum_ds.models.lora_names import is_adapter, match_targets

if TYPE_CHECKING:
    from torch import nn

GENERATION_PARTS = ("model.generation_embeddings.", "model.generation_aligner.", "model.generation_head.")
"""What drawing alone uses."""

LANGUAGE = "model.language_model."
"""What drawing and looking share. The text head, the vision tower and its aligner get no gradient from pictures."""

DEFAULT_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All projections of the language model."""


def trains_in(mode: str, name: str) -> bool:
    """Whether training mode ``mode`` trains the parameter called ``name``. UserError for another mode.

    generation: what drawing alone uses. transformer: the language model as well, with its embeddings (and so the text
    head where it shares them). lora: the adapter's parameters alone.
    """
    if mode == "generation":
        return name.startswith(GENERATION_PARTS)
    if mode == "transformer":
        return name.startswith((*GENERATION_PARTS, LANGUAGE))
    if mode == "lora":
        return is_adapter(name)
    known = " and ".join((", ".join(repr(known) for known in MODES[:-1]), repr(MODES[-1])))
    raise UserError(f"model.trains is {mode!r}; Janus knows {known}.")


def trained(mode: str, names: Iterable[str]) -> list[str]:
    """Those of a module's parameter names that training mode ``mode`` trains."""
    return [name for name in names if trains_in(mode, name)]


def lora_targets(module: nn.Module, targets: Sequence[str] = ()) -> tuple[str, ...]:
    """Full names of the linear layers that ``targets`` mean; without any, of ``DEFAULT_TARGETS``.

    An adapter binds to what mode ``transformer`` trains, but for the layer of the code's logits, which computes them in
    parts from its own weight.
    """
    from torch import nn

    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    candidates = [name for name in linear if trains_in("transformer", f"{name}.weight")]
    if targets:
        return match_targets(candidates, targets)
    return match_targets([name for name in candidates if name.startswith(LANGUAGE)], DEFAULT_TARGETS)
