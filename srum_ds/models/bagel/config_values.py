"""Types and ranges of single values in a checkpoint folder's configuration files, for ``config.read_config``.

A wrong value found here is one line that names the file and the key; found later it is a shape error
somewhere in a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError

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
