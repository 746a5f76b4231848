"""The messages that docs/troubleshooting.md quotes are those that the program prints."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

from tests.support.paths import ROOT

PAGE = ROOT / "docs/troubleshooting.md"
HOLE = "…"
"""What varies: a value in a message of the source, any text in a quoted one."""


def quoted() -> list[str]:
    """The messages of the page, one a line of its blocks of text."""
    blocks = re.findall(r"^```text\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@cache
def said() -> tuple[str, ...]:
    """Every text of the package and of the launch scripts, with a hole for each value that it takes."""
    python = [text for path in sorted((ROOT / "srum_ds").rglob("*.py")) for text in texts(path.read_text())]
    shell = [line for path in sorted((ROOT / "launch").glob("*.sh")) for line in path.read_text().splitlines()]
    return (*python, *(re.sub(r"\$\{?\w+\}?", HOLE, line) for line in shell))


def texts(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def is_said(message: str) -> bool:
    """Whether the fixed parts of a message stand in one text of the source, in order."""
    parts = [part for part in message.strip().split(HOLE) if part.strip()]
    pattern = re.compile(".*".join(re.escape(part) for part in parts), re.DOTALL)
    return any(pattern.search(text) for text in said())


def test_every_message_is_one_that_the_program_prints() -> None:
    assert len(quoted()) > 25
    # Fixed parts of a few letters would be found in anything.
    assert all(max(map(len, message.split(HOLE))) >= 12 for message in quoted())
    assert [message for message in quoted() if not is_said(message)] == []


def test_another_message_is_found_out() -> None:
    assert is_said("no room for a checkpoint in …: it needs … bytes")
    assert not is_said("no room for a checkpoint on …: it needs … bytes")
    assert not is_said("it needs … bytes. no room for a checkpoint in …")
    assert list(texts("f'a {b} c' 'd'"))[0] == "a … cd"
