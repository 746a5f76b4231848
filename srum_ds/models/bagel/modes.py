"""Which parameters each training mode of BAGEL trains, and which layers a LoRA adapter may bind to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from srum_ds.common.errors import UserError
from srum_ds.models.lora_names import is_adapter, match_targets

if TYPE_CHECKING:
    from torch import nn

GENERATION_PARTS = ("vae2llm.", "llm2vae.", "time_embedder.")

DEFAULT_TARGETS = (
    "q_proj_moe_gen",
    "k_proj_moe_gen",
    "v_proj_moe_gen",
    "o_proj_moe_gen",
    "mlp_moe_gen.gate_proj",
    "mlp_moe_gen.up_proj",
    "mlp_moe_gen.down_proj",
)
"""All projections of the generation experts."""

_BLOCK = re.compile(r"language_model\.model\.layers\.(\d+)\.")

_UNREACHED = ("language_model.lm_head.", "language_model.model.norm.")
_AFTER_KEYS = (
    "self_attn.q_proj.",
    "self_attn.q_norm.",
    "self_attn.o_proj.",
    "mlp.",
    "post_attention_layernorm.",
)
"""What no velocity depends on: the text head, and in the last block all that follows the keys and values of text."""


def trains_in(mode: str, name: str) -> bool:
    """Whether training mode ``mode`` trains the parameter called ``name``, provided a loss reaches it.

    generation: the generation experts and what only they use. transformer: the released recipe,
    both experts as well, and embeddings. lora: the adapter's parameters alone.
    """
    generation = "_moe_gen" in name or name.startswith(GENERATION_PARTS)
    if mode == "generation":
        return generation
    if mode == "transformer":
        return generation or name.startswith("language_model.")
    if mode == "lora":
        return is_adapter(name)
    raise UserError(f"model.trains is {mode!r}; BAGEL knows 'generation', 'transformer' and 'lora'.")


def trained(mode: str, names: Iterable[str]) -> list[str]:
    """Those of a whole module's parameter names that training mode ``mode`` trains.

    In ``transformer`` not those that no loss reaches: an optimiser would keep moments for them, and weight decay
    would move them.
    """
    names = list(names)
    last = max((int(found[1]) for name in names if (found := _BLOCK.match(name))), default=-1)
    inside = f"language_model.model.layers.{last}."
    unreached = (*_UNREACHED, *(inside + part for part in _AFTER_KEYS))
    return [name for name in names if trains_in(mode, name) and (is_adapter(name) or not name.startswith(unreached))]


def adaptable(module: nn.Module) -> list[str]:
    """Names of the modules an adapter may bind to: linear layers that mode ``transformer`` trains."""
    from torch import nn

    linear = {f"{name}.weight": name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    return [linear[name] for name in trained("transformer", linear)]


def lora_targets(module: nn.Module, targets: Sequence[str] = ()) -> tuple[str, ...]:
    """Full names of the modules that ``targets`` mean; without any, of ``DEFAULT_TARGETS``."""
    return match_targets(adaptable(module), targets or DEFAULT_TARGETS)
