"""The types of settings: ranges, names of code, paths, names of templates. ``loading`` acts on what they say."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue

from srum_ds.common.registry import Registry
from srum_ds.common.texts import at_home

# The folder that holds the package: a clone of the repository, or site-packages.
ROOT = Path(__file__).resolve().parents[2]
# What a wheel brings along of a clone's other folders: launch, ds_configs, data_shards (setup.py puts them there).
SHIPPED = Path(__file__).resolve().parents[1] / "shipped"
QUESTIONS = Path("srum_ds/rewards/questions")
# Where templates stood in recipes of earlier versions.
FORMER_QUESTIONS = Path("srum_ds/rewards/prompts")


@dataclass(frozen=True)
class OneOf:
    """A name of a registry, or one of some further words; ``module:name`` and ``file.py:name`` pass too."""

    registry: Registry[Any]
    word: str = ""

    def names(self) -> list[str]:
        """The names that are known, the further word first."""
        return [*([self.word] if self.word else []), *self.registry.names()]

    def check(self, name: str) -> None:
        """UserError for a name that is not known and points at no code."""
        if name != self.word:
            self.registry.check_name(name)

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The known names for an editor's completion, and any text with a colon."""
        title = handler(core).get("title")
        known = {"anyOf": [{"enum": self.names()}, {"type": "string", "pattern": ":"}]}
        return known if title is None else {**known, "title": title}


@dataclass(frozen=True)
class PathOrName:
    """A path, or something that is none (``module:function``, an id of a cache): what exists is resolved."""

    resolve: Callable[[str], str] = lambda text: str(find_path(text))


@dataclass(frozen=True)
class TemplateName:
    """A judge question: one of the package's own by its bare name, or a file."""

    resolve: Callable[[str], str] = lambda text: find_template(text)


@dataclass(frozen=True)
class JudgeList:
    """``judge.external``: nothing, one name, or a list of judges (``config.external`` says what an entry may be)."""

    words: str = "a checkpoint folder, module:function, a list of judges (docs/judging.md), or null"

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """A name, or a list of names and of judges with their settings."""
        title = handler(core).get("title")
        entries = {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "object", "required": ["kind"]}]}}
        known = {"anyOf": [{"type": "string", "minLength": 1}, entries, {"type": "null"}]}
        return known if title is None else {**known, "title": title}


def find_path(text: str | Path) -> Path:
    """The file or folder a setting names.

    Relative paths are looked up from the working directory, then from the folder that holds the package, then among
    what a wheel ships; one that exists in none comes back unchanged, for its reader to complain about.
    """
    path = Path(at_home(str(text)))
    try:
        if path.is_absolute() or path.exists():
            return path
        return next((found for place in (ROOT, SHIPPED) if (found := place / path).exists()), path)
    except (OSError, ValueError):
        # Too long for a name, or with a NUL: no file, whatever reads it says so.
        return path


def find_template(text: str) -> str:
    """A template's bare name where it is one of the package's own, else its resolved path.

    A file in the working directory comes before a template of the package. Recipes of earlier versions name the
    package's own by their former folder.
    """
    path = Path(at_home(text))
    if os.path.isfile(path):
        return str(path)
    if path.parent in (Path("."), FORMER_QUESTIONS, QUESTIONS):
        name = path.name.removesuffix(".jinja")
        if (ROOT / QUESTIONS / f"{name}.jinja").is_file():
            return name
    return str(find_path(path))


# ---- the types of settings

# What a whole number of 32 bits holds, and what a float32 holds a product of: beyond lies no sense, but an overflow.
MOST = 2**31 - 1
Count = Annotated[int, Ge(1), Le(MOST)]
Whole = Annotated[int, Ge(0), Le(MOST)]
Seed = Annotated[int, Ge(0), Lt(2**64)]
Positive = Annotated[float, Ge(1e-30), Le(1e30)]
NotNegative = Annotated[float, Ge(0), Le(1e30)]
# Up to thirty years: clocks overflow beyond.
Seconds = Annotated[float, Gt(0), Le(1e9)]
Share = Annotated[float, Ge(0), Le(1)]
# The exponential averages: at 1 they would never take in anything.
Decay = Annotated[float, Ge(0), Lt(1)]
Text = Annotated[str, MinLen(1)]
Options = dict[str, Any]
# OmegaConf has no unions of texts and lists: `externals_of` checks what is given.
Judges = Annotated[Any, PathOrName(), JudgeList()]
PathText = Annotated[str, MinLen(1), PathOrName()]
# A URL is no path: what looks like one would lose a slash.
SourceText = Annotated[str, MinLen(1), PathOrName(lambda text: text if "://" in text else str(find_path(text)))]
FolderText = Annotated[str, MinLen(1), PathOrName(at_home)]
"""A folder that is written: it need not be there."""
TemplateText = Annotated[str, MinLen(1), TemplateName()]
