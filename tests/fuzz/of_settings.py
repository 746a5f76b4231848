"""Targets: recipes and settings on the command line, DeepSpeed's JSON, judge templates."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from srum_ds.common.files import GENERATION
from srum_ds.config import flat_config, known_keys, load_config, plain_config, save_config
from srum_ds.config.reading import read_overrides, read_recipe
from srum_ds.engine import read_ds_config
from srum_ds.models import family_of
from srum_ds.models.generation import read_generation, usual_sampling
from srum_ds.rewards.templates import Template
from tests.fuzz.inputs import ODD_TEXTS, Maker
from tests.fuzz.target import Target, write
from tests.support.paths import MODEL, ROOT

_YAML = (
    "yes",
    "no",
    "on",
    "0o17",
    "1:30",
    "1e3",
    ".inf",
    ".nan",
    "~",
    "null",
    "2024-05-12",
    "!!python/object:os.system {}",
    "&a [*a]",
    "*a",
    "<<: *a",
    "- a",
    "? a",
    "| x",
    "> x",
    "'",
    '"',
    "{",
    "[",
    "{a: 1}",
    "[1, 2]",
    "# x",
    "${run.dir}",
    "${oc.env:HOME}",
    "${oc.env:NOT_THERE}",
    "${oc.env:NOT_THERE,x}",
    "${",
    "${a:b}",
    "${..x}",
    "???",
    "%",
    "@x",
    "`",
    "\t",
    "9" * 5000,
    "1e999",
    "-1",
    "0",
    "0.5",
    "1.5",
    "x" * 3000,
    "[" * 500,
    "!!float nan",
    "!!int x",
    "!!binary x",
    "!!set {a}",
    "2001-13-45",
    "!!timestamp x",
    "0x1F",
    "0b2",
    "1_000",
    "--- a",
    "...",
    "a: b: c",
    "\\x",
    '"\\ud800"',
    '"\\0"',
    "a\0b",
)


@cache
def _recipe() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "launch/recipes/tiny.yaml").read_text()))


def setting(make: Maker) -> str:
    """The value of a setting as somebody might write it."""
    kind = make.below(4)
    if kind == 0:
        return make.pick(ODD_TEXTS)
    if kind == 1:
        return make.digits()
    return make.pick(_YAML) if kind == 2 else make.text(_YAML, 2)


def make_recipe(make: Maker) -> str:
    """A recipe with some settings changed, as YAML that is perhaps none."""
    if make.chance(0.4):
        lines = []
        for key in make.some(tuple(known_keys()), 3):
            section, name = key.split(".")
            lines.append(f"{section}:{make.pick((' ', chr(10) + '  ', ''))}{name}: {setting(make)}")
        text = "\n".join(lines)
    else:
        text = yaml.safe_dump(plain(make.changed(_recipe())), allow_unicode=make.chance(0.5))
        at = text.find(": ", make.below(len(text)))
        if make.chance(0.4) and at >= 0:
            end = text.find("\n", at)
            text = f"{text[: at + 2]}{setting(make)}{text[end:]}"
    if make.chance(0.1):
        base = make.pick(("x.yaml", "../x", "recipe.yaml", "launch/recipes/tiny.yaml", "1", "[]", "a" * 5000))
        text = f"base: {base}\n{text}"
    return make.cut(text) if make.chance(0.2) else text


def plain(value: Any) -> Any:
    """The same with what YAML cannot represent as text."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _numbers(one)


def _check_loaded(recipe: Path, overrides: list[str], folder: Path) -> None:
    cfg = load_config(recipe, overrides)
    for key, value in flat_config(cfg).items():
        assert all(math.isfinite(number) for number in _numbers(value)) or ".options" in key, f"{key}={value}"
    assert list(plain_config(cfg))
    save_config(cfg, folder / "saved.yaml")
    again = load_config(folder / "saved.yaml")
    assert repr(flat_config(again)) == repr(flat_config(cfg))


def check_recipe(text: str, folder: Path) -> None:
    """A recipe that loads has finite numbers and loads again from the copy that a run keeps."""
    _check_loaded(write(folder / "recipe.yaml", text), [], folder)


def check_recipe_read(text: str, folder: Path) -> None:
    """A recipe's settings are known keys."""
    found = list(read_recipe(write(folder / "recipe.yaml", text), ()))
    assert all(one.key.split(".")[0] in {key.split(".")[0] for key in known_keys()} for one in found)
    assert repr(list(read_recipe(folder / "recipe.yaml", ()))) == repr(found)


def make_overrides(make: Maker) -> list[str]:
    """Settings on a command line."""
    keys = tuple(known_keys())
    found = []
    for _ in range(make.below(3) + 1):
        key = make.pick(keys)
        if make.chance(0.15):
            key = make.pick(
                (make.cut(key), key.split(".")[0], f"{key}.x", make.pick(ODD_TEXTS), "objective.options.a", "run")
            )
        found.append(f"{key}{make.pick(('=', '=', '=', '=', ' = ', '', '=='))}{setting(make)}")
    return found


def check_overrides(case: list[str], folder: Path) -> None:
    """Settings that are taken are finite and load again from the copy that a run keeps."""
    _check_loaded(ROOT / "launch/recipes/tiny.yaml", case, folder)


def check_overrides_read(case: list[str], folder: Path) -> None:
    """Settings on a command line are known keys."""
    found = list(read_overrides(case))
    assert len(found) >= 1 or any("=null" in item or "=~" in item or "=" in item for item in case)


@cache
def _deepspeed() -> dict[str, Any]:
    path = next(path for path in sorted((ROOT / "ds_configs").glob("*.json")))
    return {**json.loads(path.read_text()), "offload": None}


def check_deepspeed(text: str, folder: Path) -> None:
    """What is read is an object with a section on ZeRO."""
    found = read_ds_config(write(folder / "ds.json", text))
    assert isinstance(found["zero_optimization"], dict)


_JINJA = (
    "{{ prompt }}",
    "{{ phrase }}",
    "{% if think %}",
    "{% endif %}",
    "{% for b in boxes %}",
    "{% endfor %}",
    "{{ b[0] }}",
    "{# version 2 #}",
    "{#",
    "#}",
    "{{",
    "}}",
    "{%",
    "%}",
    "{{ prompt.__class__ }}",
    "{{ prompt.__init__.__globals__ }}",
    "{{ ''.join([]) }}",
    "{{ 1 / 0 }}",
    "{{ prompt|upper }}",
    "{{ prompt|nope }}",
    "{{ prompt|batch(0)|list }}",
    "{{ 'a'|int }}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% include 'x' %}",
    "{% extends prompt %}",
    "{% import 'x' as y %}",
    "{{ boxes|sum }}",
    "{{ prompt % 3 }}",
    "{{ '%s %s' % 1 }}",
    "{{ prompt.format(1) }}",
    "{{ '{0.x}'.format(prompt) }}",
    "{{ range(10**6)|list }}",
    "{{ nope }}",
    "{{ width + prompt }}",
    "{{ boxes[9] }}",
    "{% set x = 1 %}",
    "{% raw %}",
    "{% endraw %}",
    "{{ prompt|tojson }}",
    "{{ prompt|attr('x') }}",
    "{{ loop }}",
    "{{ self }}",
    "{{ super() }}",
    "{{ cycler() }}",
    "{{ lipsum(n=1) }}",
    "{{ namespace() }}",
    "{{ dict(a=1).a }}",
    "{% call f() %}",
    "{{ (((((1))))) }}",
    "{{ prompt|indent }}",
    "{{ boxes|groupby('x')|list }}",
    "{{ prompt|sort(attribute='x') }}",
    "{% block a %}",
    "{{ a.b.c }}",
    "{{ not }}",
    "\\",
    "text",
)


def make_template(make: Maker) -> tuple[str, dict[str, Any]]:
    """A template and the values that it is rendered with."""
    text = make.text(_JINJA, 6)
    if make.chance(0.02):
        text = make.pick(("{{ " + "(" * 300 + "1" + ")" * 300 + " }}", "{% if a %}" * 200, "{{ " + "-" * 3000 + "1 }}"))
    values = {"prompt": make.pick(ODD_TEXTS), "phrase": "a dog", "boxes": [[1, 2, 3, 4]], "width": 64, "height": 64}
    return text, {name: value for name, value in values.items() if make.chance(0.9)} | {"think": make.chance(0.5)}


def check_template(case: tuple[str, dict[str, Any]], folder: Path) -> None:
    """A question is text that remains, and the same each time."""
    text, values = case
    template = Template(text, "t", hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest())
    assert template.label and template.described()["sha256"] == template.sha256
    question = template.render(**values)
    assert question.strip() == question != ""
    if "lipsum" not in text and " at 0x" not in question:
        assert template.render(**values) == question


_GENERATION: dict[str, Any] = {
    "schema": 1,
    "kind": "bagel",
    "sampling": {"num_timesteps": 17, "text_scale": 1.25, "interval": [0.0, 1.0], "renorm": "global"},
    "image_size": [64, 64],
    "step": 120,
}


def make_generation(make: Maker) -> str | bytes:
    """What an export says of how it is drawn with: changed, or damaged."""
    text = make.json(make.changed(_GENERATION, keep=0.05))
    return make.damaged(text.encode("utf-8", "surrogatepass")) if make.chance(0.3) else text


def check_generation(case: str | bytes, folder: Path) -> None:
    """What is believed is a sampler's settings and a size in pixels."""
    write(folder / GENERATION, case)
    family = family_of(MODEL)
    found = read_generation(folder, family)
    assert found is not None and usual_sampling(family, found, {}) == family.sampling_type(**found.sampling)
    assert all(type(side) is int and side > 0 for side in found.image_size) and found.line(folder)


TARGETS = (
    Target("generation", make_generation, check_generation, 1, 40, known=("[" * 100_000, "null")),
    Target("recipes", make_recipe, check_recipe, 0.05, 8),
    Target("overrides", make_overrides, check_overrides, 0.05, 8),
    Target(
        "recipe_texts",
        make_recipe,
        check_recipe_read,
        0.6,
        60,
        known=("base: " + "a" * 5000, "run: !!timestamp x", "'-2'\n"),
    ),
    Target(
        "override_texts", make_overrides, check_overrides_read, 5, 80, known=(["run.seed=!!timestamp x"], ["run={"])
    ),
    Target("deepspeed", lambda make: make.json(make.changed(_deepspeed())), check_deepspeed, 2, known=("[" * 100_000,)),
    Target("templates", make_template, check_template, 2, 50),
)
