"""Settings for people and editors: one explained, all on a page, a recipe with comments, a JSON Schema."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes
from srum_ds.config.changes import STEPS, is_free
from srum_ds.config.descriptions import descriptions, related, section_description, section_types
from srum_ds.config.loading import flat_config, plain_config
from srum_ds.config.marks import PathOrName, TemplateName, find_path
from srum_ds.config.messages import expected, is_options, marks, nearest
from srum_ds.config.reading import RECIPES, known_keys
from srum_ds.config.tree import Config

_WIDTH = 110
# What numbers of 32 and 64 bits and floats hold, which says nothing of a setting.
_ENDS = re.compile(r" and (at most 2147483647|at most 1e\+30|at most 1e\+09|below 18446744073709551616)")


def config_schema() -> dict[str, Any]:
    """A JSON Schema of recipes, for editors that complete, check and explain YAML."""
    schema = TypeAdapter(Config).json_schema()
    schema["properties"].pop("expressions")
    sections = [schema["$defs"][kind.__name__] for kind in section_types().values()]
    for section in [schema, *schema["$defs"].values()]:
        section["additionalProperties"] = False
    for name, section in zip(section_types(), sections, strict=True):
        section["description"] = section_description(name)
        for key, value in section["properties"].items():
            value["description"] = descriptions()[f"{name}.{key}"]
            value["default"] = default_of(f"{name}.{key}")
    schema["properties"]["base"] = {
        "type": "string",
        "title": "Recipe that this one builds on",
        "description": "Path, or name of one of the package's own; its settings hold where this one says nothing else.",
    }
    return schema


def default_of(key: str) -> Any:
    """A setting's default, as YAML has it."""
    value = flat_config(Config())[key]
    return list(value) if isinstance(value, tuple) else value


def explain(key: str) -> str:
    """What a setting is: its meaning, values, default, the recipes that set it, and what belongs to it.

    Of a section, its settings in a line each. UserError naming the nearest for a key that is neither.
    """
    if key in section_types():
        return _explain_section(key)
    known = descriptions()
    inside = key.split(".")
    holder = ".".join(inside[:2])
    if len(inside) > 2 and holder in known and is_options(known_keys()[holder]):
        key = holder
    if key not in known:
        raise UserError(f"unknown key '{key}'. The nearest is '{_nearest(key)}'; a section alone lists its keys.")
    lines = [key, *_paragraph(known[key]), ""]
    lines += _field("takes", _takes(key))
    lines += _field("default", _yaml(default_of(key)))
    lines += _field("recipes", "; ".join(f"{name} {_yaml(value)}" for name, value in _set_by(key)) or "none sets it")
    lines += _field("related", ", ".join(related(key)) or "none")
    lines += _field("changes", _may_change(key))
    return "\n".join(lines) + "\n"


def commented(cfg: Config) -> str:
    """The whole configuration as a recipe in which every setting has its description above it."""
    lines = []
    for section, settings in plain_config(cfg).items():
        lines += ["", *_comment(section_description(section), ""), f"{section}:"]
        for name, value in settings.items():
            lines += _comment(descriptions()[f"{section}.{name}"], "  ")
            shown = OmegaConf.to_yaml(OmegaConf.create({name: value})).rstrip("\n")
            lines += textwrap.indent(shown, "  ").split("\n")
    return "\n".join(lines[1:]) + "\n"


def settings_page() -> str:
    """All settings as a page in Markdown."""
    lines = [
        "# Settings",
        "",
        *textwrap.wrap(
            "Written by `srum-ds config page` from the comments in `srum_ds/config/schema.py` and the files beside it. "
            "`srum-ds config explain KEY` says the same of one setting, and which recipes set it; "
            "`srum-ds config show RECIPE --comments` prints a recipe with all of this. Settings marked * may change "
            f"between two calls of a run, `{STEPS}` may grow, and paths may change together with what lies there "
            "([runs.md](runs.md)). Where no upper end is named, whole numbers go to 2147483647 and others to 1e30.",
            _WIDTH,
            break_on_hyphens=False,
        ),
    ]
    for section in section_types():
        lines += ["", f"## {section}", "", section_description(section), ""]
        lines += ["| key | default | takes | what it is for |", "|---|---|---|---|"]
        for key, text in descriptions().items():
            if key.split(".")[0] == section:
                free = " *" if is_free(key) else ""
                cells = (f"`{key}`{free}", f"`{_yaml(default_of(key))}`", _takes(key), text)
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _explain_section(section: str) -> str:
    lines = [section, *_paragraph(section_description(section)), ""]
    for key, text in descriptions().items():
        if key.split(".")[0] == section:
            lines += [f"{key}={_yaml(default_of(key))}", *_paragraph(text)]
    return "\n".join(lines) + "\n"


def _set_by(key: str) -> Iterator[tuple[str, Any]]:
    """Recipes of the package that set a key themselves, and to what."""
    section, name = key.split(".")
    for path in sorted(find_path(RECIPES).glob("*.yaml")):
        own = yaml.safe_load(file_bytes(path))
        settings = own.get(section) if isinstance(own, dict) else None
        if isinstance(settings, dict) and name in settings:
            yield path.name, settings[name]


def _may_change(key: str) -> str:
    if is_free(key):
        return "freely, between two calls of a run"
    if key == STEPS:
        return "may grow; not with train.schedule=cosine or train.mode=rounds, where the steps taken depend on it"
    if key != "run.fork" and any(isinstance(mark, PathOrName | TemplateName) for mark in marks(known_keys()[key])):
        return "with a run's other place of the same contents; else a new run (--fork)"
    return "not once a run has begun; a new run may begin with its weights (--fork)"


def _nearest(key: str) -> str:
    keys = list(descriptions())
    close = [section for section in section_types() if section.startswith(key[:3]) and "." not in key]
    return close[0] if close and len(key) > 2 else nearest(key, keys)


def _takes(key: str) -> str:
    """The values of a setting, without the ends of the numbers that fit."""
    return _ENDS.sub("", expected(known_keys()[key]))


def _field(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=f"  {name}: ", subsequent_indent="    ", break_long_words=False)


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False)


def _comment(text: str, indent: str) -> list[str]:
    lead = f"{indent}# "
    return textwrap.wrap(text, _WIDTH, initial_indent=lead, subsequent_indent=lead, break_long_words=False)


def _yaml(value: Any) -> str:
    """A value in a line of YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").rstrip("\n")
