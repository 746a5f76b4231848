"""Loads, checks, saves and compares configurations.

One recipe (YAML, perhaps on top of a ``base:`` recipe) and any number of ``key=value`` make one
:class:`Config`, whose keys, defaults and ranges stand in ``srum_ds.config.schema``. Paths are resolved
here, once. Whatever is not in the tree, or does not fit its type or range, is an error that names the
key, the place and what was expected. Environment variables (``${oc.env:NAME}``) are resolved for the run
and stay unresolved in every copy that is written.
"""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from srum_ds.common.errors import UserError, hide
from srum_ds.common.files import write_atomic
from srum_ds.config.marks import OneOf, PathOrName, TemplateName
from srum_ds.config.messages import expected, marks
from srum_ds.config.reading import (
    IN_PYTHON,
    Setting,
    as_in_yaml,
    find_recipe,
    flatten,
    known_keys,
    read_overrides,
    read_recipe,
    sections,
    told,
    wrong_value,
)
from srum_ds.config.relations import check_together, together_problems
from srum_ds.config.tree import Config

_READS_ENVIRONMENT = re.compile(r"\$\{oc\.env:\s*([^,}\s]+)")


def load_config(recipe: Path | str, overrides: Sequence[str] = (), wrong: list[str] | None = None) -> Config:
    """Defaults, then the recipe's bases, the recipe, the ``key=value`` overrides; checked.

    Raises UserError for a recipe that cannot be read, an unknown key, and a value of the wrong type or out of range.
    wrong: a list that takes what is wrong with single settings, all of it, instead; such a setting has its default
    then.
    """
    return _load([*read_recipe(find_recipe(recipe), (), wrong), *read_overrides(overrides, wrong)], wrong)


def config_of(layers: Sequence[Mapping[str, Any]], overrides: Sequence[str] = ()) -> Config:
    """The same from the contents of recipes, the later ones on top.

    Of each ``base`` names a recipe below it. Keys are sections, or full keys (``train.steps``); paths may be ``Path``,
    lists tuples. UserError as ``load_config``.
    """
    settings: list[Setting] = []
    for layer in layers:
        content = as_in_yaml(layer)
        base = content.pop("base", None)
        settings += [] if base is None else read_recipe(find_recipe(str(base)), ())
        settings += flatten(content, "", IN_PYTHON)
    return _load([*settings, *read_overrides(overrides)])


def _load(settings: Sequence[Setting], wrong: list[str] | None = None) -> Config:
    merged = OmegaConf.structured(Config)
    for section in sections():
        # Frozen dataclasses come out read-only.
        OmegaConf.set_readonly(merged[section], False)
    origin: dict[str, str] = {}
    for setting in settings:
        try:
            OmegaConf.update(merged, setting.key, setting.value)
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            told(wrong_value(setting.key, setting.value, setting.where), error, wrong)
            continue
        origin[setting.key] = setting.where
    cfg = _resolve(merged, origin)
    for key, value in flat_config(cfg).items():
        try:
            _check_value(key, value, origin.get(key, ""))
        except UserError as error:
            told(error, None, wrong)
            section, name = key.split(".")
            default = getattr(getattr(Config(), section), name)
            cfg = replace(cfg, **{section: replace(getattr(cfg, section), **{name: default})})
    if wrong is None:
        check_together(cfg)
    elif not wrong:
        # Between settings of which one is wrong by itself, nothing can be said.
        wrong += together_problems(cfg)
    return cfg


def plain_config(cfg: Config) -> dict[str, Any]:
    """The tree as nested dicts and lists; what reads the environment stands as it was written."""
    tree: dict[str, Any] = {}
    for key in known_keys():
        shown = cfg.written(key)
        section, name = key.split(".")
        tree.setdefault(section, {})[name] = list(shown) if isinstance(shown, tuple) else shown
    return tree


def save_config(cfg: Config, path: Path | str) -> None:
    """Writes the configuration as a recipe that ``load_config`` reads back; replaces atomically.

    Raises UserError when the file cannot be written (the old one is then untouched).
    """
    write_atomic(Path(path), OmegaConf.to_yaml(OmegaConf.create(plain_config(cfg))))


FORMER_BOUND = 2.0
"""The default of ``objective.bound`` before it was null."""


def diff_configs(old: Config, new: Config, ignore: Iterable[str] = ()) -> list[tuple[str, Any, Any]]:
    """Settings that differ: (key, old value, new value), in the tree's order.

    ``ignore`` names keys, or whole sections, that do not count.
    """
    skipped = set(ignore)
    before = flat_config(old)
    changed = []
    for key, value in flat_config(new).items():
        if key in skipped or key.split(".")[0] in skipped:
            continue
        if key == "model.kind" and "auto" in (before[key], value):
            # The folder says it, and that one is compared.
            continue
        if key == "objective.bound" and (before[key], value) == (FORMER_BOUND, None):
            # What every design had before it could say its own; BAGEL, the only one then, still has it.
            continue
        if before[key] != value:
            changed.append((key, before[key], value))
    return changed


def flat_config(cfg: Config) -> dict[str, Any]:
    """Full key -> value, in the tree's order."""
    return {key: getattr(getattr(cfg, key.split(".")[0]), key.split(".")[1]) for key in known_keys()}


def check(cfg: Config) -> None:
    """Whether settings made in Python are what a recipe may say. Raises UserError with key, value and a cure."""
    for key, value in flat_config(cfg).items():
        _check_value(key, value, "")
    check_together(cfg)


def _resolve(merged: Any, origin: Mapping[str, str]) -> Config:
    written = typing.cast(dict[str, dict[str, Any]], OmegaConf.to_container(merged, resolve=False))
    # Where anything reads the environment, every expression stays as written in saved copies, since
    # it may pass the secret on; otherwise copies are fully resolved.
    secret = "oc.env" in repr(written)
    for name in _READS_ENVIRONMENT.findall(repr(written)):
        hide(os.environ.get(name, ""), f"${{oc.env:{name}}}")
    expressions: dict[str, tuple[Any, Any]] = {}
    for key in known_keys():
        section, name = key.split(".")
        raw = written[section][name]
        where = origin.get(key, "")
        try:
            node = OmegaConf.select(merged, key, throw_on_missing=True)
            value = OmegaConf.to_object(node) if OmegaConf.is_config(node) else node
        except MissingMandatoryValue as error:
            raise UserError(f"{key} has no value {where}: expected {expected(known_keys()[key])}.") from error
        except InterpolationKeyError as error:
            raise UserError(f"{key}={raw} {where}: the key it refers to does not exist.") from error
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{key}={raw} {where} does not resolve ({reason}); expected {expected(known_keys()[key])}."
            ) from error
        if secret and "${" in repr(raw):
            expressions[key] = (raw, value)
    return _with_paths(replace(typing.cast(Config, OmegaConf.to_object(merged)), expressions=expressions))


def _with_paths(cfg: Config) -> Config:
    """The same with its paths found and the package's templates by their bare names; both stay known as written."""
    expressions = dict(cfg.expressions)
    for key, kind in known_keys().items():
        section, name = key.split(".")
        given = getattr(getattr(cfg, section), name)
        for mark in marks(kind):
            if not isinstance(mark, PathOrName | TemplateName) or not isinstance(given, str) or not given:
                continue
            found = mark.resolve(given)
            if found == given:
                continue
            cfg = replace(cfg, **{section: replace(getattr(cfg, section), **{name: found})})
            if isinstance(mark, PathOrName):
                expressions[key] = (expressions.get(key, (given, given))[0], found)
    return replace(cfg, expressions=expressions)


@cache
def _adapter(key: str) -> TypeAdapter[Any]:
    return TypeAdapter(known_keys()[key])


def _check_value(key: str, value: Any, where: str) -> None:
    try:
        _adapter(key).validate_python(value)
    except ValidationError as error:
        raise wrong_value(key, value, where) from error
    kind = known_keys()[key]
    listed = typing.get_origin(kind) is tuple
    for mark in marks(typing.get_args(kind)[0] if listed else kind):
        for name in value if listed else (value,):
            if isinstance(mark, OneOf) and name != mark.word and name not in mark.registry.names():
                if ":" not in name:
                    raise wrong_value(key, value, where)
                mark.check(name)
