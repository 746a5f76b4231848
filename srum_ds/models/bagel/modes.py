"""Which parameters each training mode of BAGEL trains."""

from __future__ import annotations

from srum_ds.common.errors import UserError
from srum_ds.models.lora import is_adapter

GENERATION_PARTS = ("vae2llm.", "llm2vae.", "time_embedder.")


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
