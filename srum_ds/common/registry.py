"""Code by name: what a setting may name, built in, from an installed package, or from the user's own file.

A ``Registry`` stands for one kind of extension (objectives, readouts, region proposers, models, ...). Its built-in
entries are one line each in ``srum_ds/config/choices.py``: a name and where the code is, imported when first asked for.
Packages add entries by an entry point of the registry's group; anything else is named ``module:attribute`` or
``file.py:attribute``. What a Python program hands over itself (``common.given``) has a name of its own.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, cast

from srum_ds.common import foreign
from srum_ds.common.errors import UserError

T = TypeVar("T")

_USER_MODULE = "srum_ds_user_"


@dataclass
class Registry(Generic[T]):
    """One kind of extension.

    setting: the key that names an entry, for messages (``objective.name``). what: one entry in words. group: the entry
    points that add to it. builtin: name -> ``module:attribute``. kind: the class whose instances entries are, or None.
    parts: attributes that an entry has, for a class that stands above this floor; expected: that class in words.
    """

    setting: str
    what: str
    group: str
    builtin: Mapping[str, str]
    kind: type | None = None
    parts: tuple[str, ...] = ()
    expected: str = ""
    _loaded: dict[str, T] = field(default_factory=dict, repr=False)

    def names(self) -> list[str]:
        """The known names: built in first, then those of installed packages."""
        return [*self.builtin, *(name for name in sorted(self._installed()) if name not in self.builtin)]

    def get(self, name: str) -> T:
        """The entry of this name, ``module:attribute`` or ``file.py:attribute``.

        Raises UserError for an unknown name (it names the nearest known one) and for code that cannot be imported.
        """
        if name not in self._loaded:
            found = self._load(name)
            if ".py:" in name:
                # A file may change, and the working directory: whoever asks again (a notebook) gets what it is then.
                return found
            self._loaded[name] = found
        return self._loaded[name]

    def check_name(self, name: str) -> None:
        """UserError unless the name is known or points at code (which is imported)."""
        if name not in self.builtin and name not in self._installed():
            self.get(name)

    def _load(self, name: str) -> T:
        installed = self._installed()
        if name in self.builtin:
            module, _, attribute = self.builtin[name].partition(":")
            found = getattr(importlib.import_module(module), attribute)
        elif name in installed:
            found = self._from_package(name, installed[name])
        elif ":" in name:
            found = load_attribute(name, self.setting)
        else:
            near = difflib.get_close_matches(name, self.names(), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"{self.setting}={name}: no such {self.what}: use one of {', '.join(self.names())}, or your own as "
                f"module:name or file.py:name{hint}"
            )
        if self.kind is not None and isinstance(found, type) and issubclass(found, self.kind):
            # A class without arguments stands for its one instance.
            found = foreign.run(f"{self.setting}={name}", found)
        if self.kind is not None and not isinstance(found, self.kind):
            raise UserError(f"{self.setting}={name}: is {type(found).__name__}, expected {self.kind.__name__}")
        if not all(hasattr(found, part) for part in self.parts):
            raise UserError(f"{self.setting}={name}: is {type(found).__name__}, expected {self.expected}")
        return cast(T, found)

    def _from_package(self, name: str, point: metadata.EntryPoint) -> Any:
        what = f"{self.setting}={name}: the entry point {point.value} of the group {self.group}"
        try:
            return foreign.run(what, point.load)
        except UserError as error:
            raise UserError(f"{what} cannot be loaded ({_cause(error)}); repair or remove that package") from error

    def _installed(self) -> dict[str, metadata.EntryPoint]:
        return {point.name: point for point in metadata.entry_points(group=self.group)}


def load_attribute(name: str, setting: str) -> Any:
    """What ``module:attribute`` or ``file.py:attribute`` names; modules are found in the working directory too.

    Raises UserError, which names ``setting``, where there is no such file, module or attribute, or its import fails.
    """
    source, _, attribute = name.rpartition(":")
    what = f"{setting}={name}"
    try:
        module = foreign.run(what, lambda: import_file(Path(source)) if source.endswith(".py") else _imported(source))
    except UserError as error:
        raise UserError(
            f"{what}: {source} cannot be imported ({_cause(error)}); expected module:name or file.py:name"
        ) from error
    if not foreign.run(what, lambda: hasattr(module, attribute)):
        near = difflib.get_close_matches(attribute, foreign.run(what, lambda: dir(module)), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "give the name of what it defines."
        raise UserError(f"{what}: {source} has no {attribute!r}; {hint}")
    return foreign.run(what, lambda: getattr(module, attribute))


def _cause(error: UserError) -> str:
    """What made foreign code fail, as its own error says it."""
    cause = error.__cause__
    return str(error) if cause is None else f"{type(cause).__name__.lstrip('_')}: {cause}"


def _imported(name: str) -> ModuleType:
    _put_on_path(Path.cwd())
    return importlib.import_module(name)


def _put_on_path(folder: Path) -> None:
    """Behind everything else, so that no file of the user's stands in the place of a package."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def import_file(path: Path) -> ModuleType:
    """The module of a user's Python file, imported once for its contents, under the same name in every process."""
    path = path.expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    digest = hashlib.sha256(str(path).encode() + b"\0" + path.read_bytes()).hexdigest()
    name = f"{_USER_MODULE}{path.stem}_{digest[:12]}"
    if name not in sys.modules:
        # What it imports itself may lie in the working directory, or beside it.
        _put_on_path(Path.cwd())
        _put_on_path(path.parent)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def user_files() -> list[Path]:
    """The files that ``file.py:attribute`` has named so far: a new process imports them before it unpickles objects."""
    return [Path(str(module.__file__)) for name, module in sys.modules.items() if name.startswith(_USER_MODULE)]
