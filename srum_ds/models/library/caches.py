"""The word by which transformers' models take and give a cache of keys and values: another one since 5.24."""

from __future__ import annotations

import inspect
from typing import Any

from transformers.models.llama.modeling_llama import LlamaModel

CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
"""The parameter's name and the output's. A model swallows a word that it does not know, and would read no cache."""


def with_cache(cache: Any) -> dict[str, Any]:
    """The argument that hands a cache, or None, to a model of transformers or one of its layers."""
    return {CACHE: cache}


def cache_of(output: Any) -> Any:
    """The cache that a model of transformers gave with its output."""
    return getattr(output, CACHE)
