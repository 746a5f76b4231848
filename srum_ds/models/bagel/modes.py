"""Which parameters each training mode of BAGEL trains, and which layers a LoRA adapter may bind to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from srum_ds.common.errors import UserError
from srum_ds.models.lora import is_adapter, match_targets

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


def trains_in(mode: str, name: str) -> bool:
    """Whether training mode ``mode`` trains the parameter called ``name``.

    generation: the generation experts and what only they use. transformer: the released recipe,
    both experts as well, embeddings and heads included. lora: the adapter's parameters alone.
    """
    generation = "_moe_gen" in name or name.startswith(GENERATION_PARTS)
    if mode == "generation":
        return generation
    if mode == "transformer":
        return generation or name.startswith("language_model.")
    if mode == "lora":
        return is_adapter(name)
    raise UserError(f"model.trains is {mode!r}; BAGEL knows 'generation', 'transformer' and 'lora'.")


def adaptable(module: nn.Module) -> list[str]:
    """Names of the modules an adapter may bind to: linear layers that mode ``transformer`` trains."""
    linear = (name for name, layer in module.named_modules() if isinstance(layer, nn.Linear))
    return [name for name in linear if trains_in("transformer", f"{name}.weight")]


def lora_targets(module: nn.Module, targets: Sequence[str] = ()) -> tuple[str, ...]:
    """Full names of the modules that ``targets`` mean; without any, of ``DEFAULT_TARGETS``."""
    return match_targets(adaptable(module), targets or DEFAULT_TARGETS)
