"""Loads, checks, saves and compares configurations.

One recipe (YAML, perhaps on top of a ``base:`` recipe) and any number of ``key=value`` make one
:class:`Config`, whose keys, defaults and ranges stand in ``srum_ds.config.schema``. Paths are resolved
here, once. Whatever is not in the tree, or does not fit its type or range, is an error that names the
key, the place and what was expected. Environment variables (``${oc.env:NAME}``) are resolved for the run
and stay unresolved in every copy that is written.
"""

from __future__ import annotations

import io
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from srum_ds.common.errors import UserError
from srum_ds.common.files import write_atomic
from srum_ds.config.marks import OneOf, PathOrName, TemplateName, find_path
from srum_ds.config.messages import expected, is_options, is_text, marks, nearest
from srum_ds.config.relations import check_together
from srum_ds.config.tree import Config

DEFAULT_RECIPE = Path("launch/recipes/tiny.yaml")
COMMAND_LINE = "on the command line"


class _Setting(NamedTuple):
    key: str
    value: Any
    where: str


def split_arguments(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """Takes ``[RECIPE] [key=value ...]`` apart; without a recipe it is the default one.

    Raises UserError for a second word without ``=``.
    """
    words = list(arguments)
    recipe = DEFAULT_RECIPE
    if words and "=" not in words[0]:
        recipe = Path(words.pop(0))
    stray = [word for word in words if "=" not in word]
    if stray:
        raise UserError(
            f"'{stray[0]}' is not of the form key=value. Give one recipe first, then settings (train.steps=10)."
        )
    return recipe, words


def load_config(recipe: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Defaults, then the recipe's bases, the recipe, the ``key=value`` overrides; checked.

    Raises UserError for a recipe that cannot be read, an unknown key, and a value of the wrong
    type or out of range.
    """
    settings = [*_read_recipe(find_path(recipe), ()), *_read_overrides(overrides)]
    merged = OmegaConf.structured(Config)
    for section in _sections():
        # Frozen dataclasses come out read-only.
        OmegaConf.set_readonly(merged[section], False)
    origin: dict[str, str] = {}
    for setting in settings:
        try:
            OmegaConf.update(merged, setting.key, setting.value)
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            raise _wrong_value(setting.key, setting.value, setting.where) from error
        origin[setting.key] = setting.where
    cfg = _resolve(merged, origin)
    for key, value in flat_config(cfg).items():
        _check_value(key, value, origin.get(key, ""))
    check_together(cfg)
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


def config_schema() -> dict[str, Any]:
    """A JSON Schema of recipes, for editors that complete and check YAML."""
    schema = TypeAdapter(Config).json_schema()
    schema["properties"].pop("expressions")
    schema["properties"]["base"] = {"type": "string", "title": "Recipe that this one builds on"}
    for section in [schema, *schema["$defs"].values()]:
        section["additionalProperties"] = False
    return schema


def flat_config(cfg: Config) -> dict[str, Any]:
    """Full key -> value, in the tree's order."""
    return {key: getattr(getattr(cfg, key.split(".")[0]), key.split(".")[1]) for key in known_keys()}


@cache
def known_keys() -> dict[str, Any]:
    """Full key -> its annotated type, in the tree's order."""
    keys: dict[str, Any] = {}
    for section, kind in typing.get_type_hints(Config, include_extras=True).items():
        if not is_dataclass(kind):
            continue
        hints = typing.get_type_hints(kind, include_extras=True)
        for setting in fields(kind):
            keys[f"{section}.{setting.name}"] = hints[setting.name]
    return keys


def check(cfg: Config) -> None:
    """Whether settings made in Python are what a recipe may say. Raises UserError with key, value and a cure."""
    for key, value in flat_config(cfg).items():
        _check_value(key, value, "")
    check_together(cfg)


def _read_recipe(path: Path, above: tuple[Path, ...]) -> Iterator[_Setting]:
    if path.resolve() in above:
        raise UserError(f"{path}: its `base` leads back to itself; a recipe builds on others only.")
    if not path.is_file():
        raise UserError(f"no recipe at {path}: give the path of a YAML file, such as {DEFAULT_RECIPE}.")
    try:
        content = OmegaConf.to_container(OmegaConf.load(io.StringIO(path.read_text(encoding="utf-8"))))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}.") from error
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected sections with settings (`train:` and below it `steps: 10`).")
    base = content.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"{path}: `base` is {base!r}; expected the path of another recipe.")
        beside = path.parent / base
        yield from _read_recipe(beside if beside.exists() else find_path(base), (*above, path.resolve()))
    yield from _flatten(content, "", f"in {path}")


def _read_overrides(overrides: Sequence[str]) -> Iterator[_Setting]:
    keys = known_keys()
    for item in overrides:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(f"'{item}' is not of the form key=value (such as train.steps=10).")
        _check_known(key, COMMAND_LINE)
        if key in keys and is_text(keys[key]):
            yield _Setting(key, text, COMMAND_LINE)
            continue
        try:
            parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise _wrong_value(key, text, COMMAND_LINE) from error
        value = typing.cast(dict[str, Any], parsed)["value"]
        yield from _flatten({key: value}, "", COMMAND_LINE)


def _flatten(content: Mapping[Any, Any], prefix: str, where: str) -> Iterator[_Setting]:
    """Settings of a nested mapping; every key is checked against the tree."""
    keys = known_keys()
    for name, value in content.items():
        key = f"{prefix}{name}"
        _check_known(key, where)
        if _in_options(key):
            yield _Setting(key, value, where)
            continue
        if key not in keys:
            if value is None:
                # A section whose settings are all commented out.
                continue
            if not isinstance(value, Mapping):
                raise UserError(
                    f"{key} is {value!r} {where}, but it is a section: set what is in it, such as "
                    f"{nearest(f'{key}.', list(keys))}."
                )
            yield from _flatten(value, f"{key}.", where)
            continue
        yield _Setting(key, _switch(keys[key], value), where)


def _switch(kind: Any, value: Any) -> Any:
    """YAML reads a bare on or off as a truth value; it is the word again where a setting has these words."""
    words = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    return ("on" if value else "off") if isinstance(value, bool) and {"on", "off"} <= set(words) else value


def _check_known(key: str, where: str) -> None:
    known = known_keys()
    if key not in known and key not in _sections() and not _in_options(key):
        raise UserError(f"unknown key '{key}' {where}. The nearest known key is '{nearest(key, list(known))}'.")


def _in_options(key: str) -> bool:
    """Whether a key lies inside a setting that holds further ones (``objective.options.margin``)."""
    parts = key.split(".")
    above = ".".join(parts[:2])
    return len(parts) > 2 and above in known_keys() and is_options(known_keys()[above])


def _sections() -> list[str]:
    return list(dict.fromkeys(key.split(".")[0] for key in known_keys()))


def _resolve(merged: Any, origin: Mapping[str, str]) -> Config:
    written = typing.cast(dict[str, dict[str, Any]], OmegaConf.to_container(merged, resolve=False))
    # Where anything reads the environment, every expression stays as written in saved copies, since
    # it may pass the secret on; otherwise copies are fully resolved.
    secret = "oc.env" in repr(written)
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
        raise _wrong_value(key, value, where) from error
    for mark in marks(known_keys()[key]):
        if isinstance(mark, OneOf) and value != mark.word and value not in mark.registry.names():
            if ":" not in value:
                raise _wrong_value(key, value, where)
            mark.check(value)
    # YAML reads a bare yes or no as a truth value; OmegaConf would then keep the text "True".
    if isinstance(value, tuple) and "True" in value and "False" in value:
        raise UserError(
            f"{key}={list(value)} {where}: YAML reads a bare yes or no as a truth value; put the words "
            'in quotes ("yes").'
        )


def _wrong_value(key: str, value: Any, where: str) -> UserError:
    shown = list(value) if isinstance(value, tuple) else value
    place = f" {where}" if where else ""
    return UserError(f"{key}={shown}{place} is not allowed; expected {expected(known_keys()[key])}.")
