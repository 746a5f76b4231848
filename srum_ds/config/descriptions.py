"""What each setting is for, in the words of the comments that stand above it in the source of its section.

A comment belongs to the setting below it, and to those that follow without one of their own and without a blank line.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from srum_ds.config.tree import Config

_KEY = re.compile(r"\b([a-z_]+\.[a-z_]+)\b")


@cache
def descriptions() -> dict[str, str]:
    """Full key -> what the setting is for, in the tree's order."""
    return {
        f"{section}.{setting.name}": _of_class(kind).get(setting.name, "")
        for section, kind in section_types().items()
        for setting in fields(kind)
    }


@cache
def section_types() -> dict[str, Any]:
    """Section -> its dataclass, in the tree's order."""
    hints = typing.get_type_hints(Config)
    return {name: kind for name, kind in hints.items() if is_dataclass(kind)}


def section_description(section: str) -> str:
    """What a section is about."""
    return " ".join((section_types()[section].__doc__ or "").split())


def related(key: str) -> list[str]:
    """Settings that a setting's description names, whose descriptions name it, or that share its description."""
    told = descriptions()
    named = [other for other in _KEY.findall(told[key]) if other in told]
    naming = [other for other, text in told.items() if key in _KEY.findall(text)]
    sharing = [other for other, text in told.items() if text == told[key]]
    return [other for other in dict.fromkeys([*sharing, *named, *naming]) if other != key]


@cache
def _of_class(kind: type) -> dict[str, str]:
    source = _source(kind.__module__)
    comments = dict(_comments(source))
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    found: dict[str, str] = {}
    before, end = "", 0
    for node in classes[kind.__name__].body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            before, end = "", node.end_lineno or node.lineno
            continue
        line = node.lineno - 1
        own: list[str] = []
        while line in comments:
            own.insert(0, comments[line])
            line -= 1
        if own or line != end:
            before = " ".join(own)
        found[node.target.id] = before
        end = node.end_lineno or node.lineno
    return found


@cache
def _source(module: str) -> str:
    return Path(__file__).with_name(f"{module.rpartition('.')[2]}.py").read_text(encoding="utf-8")


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every comment that has its line to itself."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip():
            yield token.start[0], token.string.lstrip("# ").rstrip()
