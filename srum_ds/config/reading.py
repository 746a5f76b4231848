"""Reads recipes, ``key=value`` and mappings of Python into single settings, each with the place it was written at.

Every key is looked up in the tree (``srum_ds.config.schema``): one that is not there is an error that names the place
and the nearest known key. Whether values fit, ``srum_ds.config.loading`` says.
"""

from __future__ import annotations

import io
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes
from srum_ds.common.texts import require_encodable
from srum_ds.config.marks import find_path
from srum_ds.config.messages import expected, is_options, is_text, nearest, switch, wants_text
from srum_ds.config.spelling import as_written
from srum_ds.config.tree import Config

RECIPES = Path("launch/recipes")
DEFAULT_RECIPE = RECIPES / "tiny.yaml"
COMMAND_LINE = "on the command line"
IN_PYTHON = "in the settings given"
# YAML's constructors of dates, numbers and bytes raise whatever suits them for text that is none.
_YAML_ERRORS = (
    yaml.YAMLError,
    OmegaConfBaseException,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    ArithmeticError,
    AssertionError,
    RecursionError,
)


class Setting(NamedTuple):
    """One value by its full key, and where it was written, as a message says it: "on the command line"."""

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


def find_recipe(text: Path | str) -> Path:
    """The file of a recipe: by its path, as ``find_path`` looks for it, or one of the package's own by its bare name.

    What is no recipe comes back as its path, for its reader to complain about.
    """
    path = find_path(text)
    name = str(text)
    # isfile: a name too long for a file, or with a NUL, is none.
    if not os.path.isfile(path) and re.fullmatch(r"\w+", name):
        own = find_path(RECIPES / f"{name}.yaml")
        return own if os.path.isfile(own) else path
    return path


def read_recipe(path: Path, above: tuple[Path, ...], wrong: list[str] | None = None) -> Iterator[Setting]:
    """The settings of a recipe's bases and then its own, in that order.

    above: the recipes that lead here by their ``base``. wrong: takes what is wrong with single settings instead of the
    first of it being raised. UserError for a file that is no recipe, and for bases that lead in a circle.
    """
    try:
        circle, there = path.resolve() in above, path.is_file()
    except (OSError, ValueError) as error:
        raise UserError(f"no recipe can be at {str(path)[:200]!r} ({error}): give the path of a YAML file.") from error
    if circle:
        raise UserError(f"{path}: its `base` leads back to itself; a recipe builds on others only.")
    if not there:
        raise UserError(
            f"no recipe at {path}: give the path of a YAML file, or the name of a recipe that srum-ds brings along "
            f"({', '.join(sorted(own.stem for own in find_path(RECIPES).glob('*.yaml')))})."
        )
    try:
        text = file_bytes(path).decode("utf-8")
        content = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
        written = as_written(text, _holds_text)
        if written != text:
            content = OmegaConf.to_container(OmegaConf.load(io.StringIO(written)))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}. Correct it there.") from error
    except _YAML_ERRORS as error:
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
        try:
            chosen = beside if beside.is_file() else find_recipe(base)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: `base` is {base[:200]!r}, where no recipe can be ({error}).") from error
        yield from read_recipe(chosen, (*above, path.resolve()), wrong)
    yield from flatten(content, "", f"in {path}", wrong)


def read_overrides(overrides: Sequence[str], wrong: list[str] | None = None) -> Iterator[Setting]:
    """The settings of ``key=value`` words. UserError, or a line for ``wrong``, for each that is none."""
    for item in overrides:
        try:
            found = _override(item)
        except UserError as error:
            told(error, error.__cause__, wrong)
            continue
        yield from found


def as_in_yaml(value: Any) -> Any:
    """The same with lists and texts in the place of tuples and paths."""
    if isinstance(value, Mapping):
        return {key: as_in_yaml(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_in_yaml(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


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


def sections() -> list[str]:
    """The tree's sections, in its order."""
    return list(dict.fromkeys(key.split(".")[0] for key in known_keys()))


def wrong_value(key: str, value: Any, where: str) -> UserError:
    """What is said of a value that its setting does not take; ``where`` may be empty."""
    shown = list(value) if isinstance(value, tuple) else value
    place = f" {where}" if where else ""
    wanted = expected(known_keys()[key]) if key in known_keys() else "settings by name, as it is a section"
    return UserError(f"{key}={shown}{place} is not allowed; expected {wanted}.")


def told(error: UserError, cause: BaseException | None, wrong: list[str] | None) -> None:
    """Raises an error, or adds it to the list where there is one."""
    if wrong is None:
        raise error from cause
    wrong.append(str(error))


def _override(item: str) -> list[Setting]:
    """The settings of one ``key=value``."""
    keys = known_keys()
    key, equals, text = item.partition("=")
    key = key.strip()
    require_encodable(item, f"{ascii(item)} {COMMAND_LINE}")
    if not equals or not key:
        raise UserError(f"'{item}' is not of the form key=value (such as train.steps=10).")
    _check_known(key, COMMAND_LINE)
    if key in keys and is_text(keys[key]):
        return [Setting(key, text, COMMAND_LINE)]
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
        written = as_written(text, lambda _: _holds_text(key))
        if written != text:
            parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={written}"]))
    except _YAML_ERRORS as error:
        raise wrong_value(key, text, COMMAND_LINE) from error
    return list(flatten({key: typing.cast(dict[str, Any], parsed)["value"]}, "", COMMAND_LINE))


def flatten(content: Mapping[Any, Any], prefix: str, where: str, wrong: list[str] | None = None) -> Iterator[Setting]:
    """Settings of a nested mapping; every key is checked against the tree."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        try:
            found = _checked(key, value, where)
        except UserError as error:
            told(error, error.__cause__, wrong)
            continue
        if isinstance(found, Setting):
            yield found
        elif found is not None:
            yield from flatten(found, f"{key}.", where, wrong)


def _checked(key: str, value: Any, where: str) -> Setting | Mapping[Any, Any] | None:
    """A setting, or what a section holds, or nothing where all of a section's settings are commented out."""
    keys = known_keys()
    _check_known(key, where)
    if _in_options(key):
        return Setting(key, value, where)
    if key not in keys:
        if value is not None and not isinstance(value, Mapping):
            raise UserError(
                f"{key} is {value!r} {where}, but it is a section: set what is in it, such as "
                f"{nearest(f'{key}.', list(keys))}."
            )
        return value
    value = switch(keys[key], value)
    if wants_text(keys[key]) and any(isinstance(one, bool) for one in (value if isinstance(value, list) else [value])):
        raise UserError(
            f"{key}={value} {where}: YAML reads a bare yes, no, on, off, true or false as a truth value, but text "
            'belongs here; put the words in quotes ("yes").'
        )
    return Setting(key, value, where)


def _holds_text(key: str) -> bool:
    return key in known_keys() and wants_text(known_keys()[key])


def _check_known(key: str, where: str) -> None:
    known = known_keys()
    if key not in known and key not in sections() and not _in_options(key):
        raise UserError(f"unknown key '{key}' {where}. The nearest known key is '{nearest(key, list(known))}'.")


def _in_options(key: str) -> bool:
    """Whether a key lies inside a setting that holds further ones (``objective.options.margin``)."""
    parts = key.split(".")
    above = ".".join(parts[:2])
    return len(parts) > 2 and above in known_keys() and is_options(known_keys()[above])
