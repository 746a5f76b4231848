"""Functions that a Python program hands over itself (``Trainer(reward=f)``): their names in files, and their digests.

A function of a module that can be imported is called ``module:name``, as in a recipe. One of a notebook, of a script,
or made inside another function is in no file that others could import: settings call it ``python:name``, which means
the one that this process was given last under that name. A run is bound to its source (``monitoring.run_inputs``).
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable
from types import CodeType
from typing import Any

from srum_ds.common.errors import UserError

PREFIX = "python:"
_given: dict[str, Callable[..., Any]] = {}


def is_given(name: str) -> bool:
    """Whether a name is that of a function which only a Python program can hand over."""
    return name.startswith(PREFIX)


def give(function: Callable[..., Any]) -> str:
    """The name of a function in settings: ``module:name`` where that imports this very one, else ``python:name``.

    Raises UserError for what cannot be called.
    """
    if not callable(function):
        raise UserError(f"{function!r} is {type(function).__name__}, expected a function")
    importable = _importable(function)
    if importable is not None:
        return importable
    said = getattr(function, "__qualname__", "") or type(function).__qualname__
    name = PREFIX + (re.sub(r"\W+", "_", said.rpartition(".")[2]).strip("_") or "function")
    _given[name] = function
    return name


def given(name: str, setting: str) -> Callable[..., Any]:
    """The function of a name ``python:...``. UserError, which names ``setting``, where this process was given none."""
    if name not in _given:
        raise UserError(
            f"{setting}={name} is a function that a Python program gave to Trainer(reward=...), and this process has "
            "not got it: go on with the run there, or begin a new one with the function in a file, named file.py:name"
        )
    return _given[name]


def digest_of(function: Callable[..., Any]) -> str:
    """SHA-256 of a function's own source, or of its code where it has none (a lambda stands among other code).

    What it refers to (other functions, numbers outside it, the weights of a model) is not part of it.
    """
    inner = inspect.unwrap(function)
    code = getattr(inner, "__code__", None)
    text = ""
    if code is None or code.co_name != "<lambda>":
        try:
            text = textwrap.dedent(inspect.getsource(inner if code is not None else type(inner)))
        except (OSError, TypeError):
            pass
    if not text:
        text = _described(code) if code is not None else type(inner).__qualname__
    return hashlib.sha256(text.encode()).hexdigest()


def _importable(function: Callable[..., Any]) -> str | None:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if not module or module == "__main__" or not name.isidentifier():
        return None
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None
    return f"{module}:{name}" if found is function else None


def _described(code: CodeType) -> str:
    """What a code does, without where it stands."""
    parts = [_described(part) if isinstance(part, CodeType) else repr(part) for part in code.co_consts]
    return "\n".join([code.co_code.hex(), repr(code.co_names), repr(code.co_varnames), *parts])
