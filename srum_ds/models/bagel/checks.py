"""Whether a configuration can be a BAGEL at all: types, ranges and what must divide what.

A wrong value found here is one line that names the file and the key; found later it is a shape error
somewhere in a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.activations import ACT2FN

from srum_ds.common.errors import UserError

if TYPE_CHECKING:
    from srum_ds.models.bagel.configuration import BagelConfig

MAY_BE_NEGATIVE = ("shift_factor",)
MAY_BE_ZERO = ("head_dim",)


def checked_value(name: str, value: Any, like: Any, where: Path) -> Any:
    """``value`` in the type of ``like`` (bool, int, float, str or a tuple of ints), or UserError.

    Whole numbers pass as floats. Numbers must be above 0, but for the few keys that may be otherwise.
    """
    if isinstance(like, bool):
        return _typed(name, value, bool, "true or false", where)
    if isinstance(like, int):
        number = _typed(name, value, int, "a whole number", where)
        _above_zero(name, number, where)
        return number
    if isinstance(like, float):
        number = float(_typed(name, value, (int, float), "a number", where))
        if not math.isfinite(number):
            raise UserError(f"{where}: {name} is {value!r}, expected a finite number. Put the release's value there.")
        _above_zero(name, number, where)
        return number
    if isinstance(like, tuple):
        _typed(name, value, (list, tuple), "a list of whole numbers", where)
        return tuple(checked_value(f"{name}[{index}]", item, 1, where) for index, item in enumerate(value))
    return _typed(name, value, str, "a text in quotes", where)


def _typed(name: str, value: Any, kinds: type | tuple[type, ...], words: str, where: Path) -> Any:
    # In Python a bool is an int; in a configuration it is a mistake.
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise UserError(f"{where}: {name} is {value!r}, expected {words}. Put the release's value there.")
    return value


def _above_zero(name: str, number: float, where: Path) -> None:
    if name in MAY_BE_NEGATIVE or number > 0 or (number == 0 and name in MAY_BE_ZERO):
        return
    raise UserError(f"{where}: {name} is {number}, expected a number above 0. Put the release's value there.")


def checked_fields(cls: type, values: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The keys of ``values`` that the dataclass ``cls`` knows and that are not null, checked by type.

    UserError for a wrong type, and for a key without default that is absent.
    """
    found: dict[str, Any] = {}
    for field in fields(cls):
        value = values.get(field.name)
        if value is not None:
            like = 1 if field.default is MISSING else field.default
            found[field.name] = checked_value(field.name, value, like, where)
        elif field.default is MISSING:
            raise UserError(f"{where}: {cls.__name__} needs {field.name}, which is not there. Add it.")
    return found


def check_config(config: BagelConfig, folder: Path) -> None:
    """What no single value shows: divisibility, activations, the autoencoder's levels. UserError."""
    llm, vit, vae = config.llm, config.vit, config.vae
    llm_path, vit_path, top = folder / "llm_config.json", folder / "vit_config.json", folder / "config.json"
    heads, kv_heads = llm.num_attention_heads, llm.num_key_value_heads
    if not llm.head_dim:
        _divides(llm.hidden_size, heads, "hidden_size", "num_attention_heads", llm_path)
    _divides(heads, kv_heads, "num_attention_heads", "num_key_value_heads", llm_path)
    _divides(llm.head_size, 2, "the width of a head", "rotary embedding's 2 halves", llm_path)
    _divides(llm.hidden_size, 4, "hidden_size", "the position table's 4 parts", llm_path)
    _divides(vit.hidden_size, vit.num_attention_heads, "hidden_size", "num_attention_heads", vit_path)
    if vit.image_size < vit.patch_size:
        raise UserError(f"{vit_path}: image_size {vit.image_size} is below patch_size {vit.patch_size}. Correct one.")
    for name, value, path in (
        ("hidden_act", llm.hidden_act, llm_path),
        ("hidden_act", vit.hidden_act, vit_path),
        ("connector_act", config.connector_act, top),
    ):
        if value not in ACT2FN:
            raise UserError(f"{path}: {name} {value!r} is unknown. Expected one of {', '.join(sorted(ACT2FN))}.")
    if not vae.ch_mult or vae.downsample != 2 ** (len(vae.ch_mult) - 1):
        raise UserError(
            f"{top}: vae_config.downsample is {vae.downsample}, but {len(vae.ch_mult)} levels of ch_mult "
            f"halve a picture {len(vae.ch_mult) - 1} times. Correct one of them."
        )
    for level in (1, *vae.ch_mult):
        width = vae.ch * level
        _divides(width, vae.norm_num_groups, "vae_config: a level's width ch * ch_mult", "norm_num_groups", top)


def _divides(whole: int, part: int, name: str, by: str, where: Path) -> None:
    if whole % part:
        raise UserError(f"{where}: {name} {whole} is not a multiple of {by} ({part}). Correct one of them.")
