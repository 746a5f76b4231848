"""Models. ``load_model`` is the only door: nothing outside this room imports a concrete one."""

from srum_ds.models.registry import AUTO, costs_of, default_dtype, family_of, load_model, make_sampling

__all__ = ["AUTO", "costs_of", "default_dtype", "family_of", "load_model", "make_sampling"]
