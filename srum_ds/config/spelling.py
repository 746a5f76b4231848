"""Values of YAML as they were written: YAML 1.1 reads 010 as 8, 1:30 as 90, and a text such as 2024_01 as a number."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import yaml

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
# Octal numbers without their o, and numbers to the base of 60.
_MISREAD = re.compile(r"[-+]?0[0-9_]+|[^:]*:.*")


# Read as a number by OmegaConf's YAML alone.
_EXPONENT = re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+")


def as_written(text: str, wants_text: Callable[[str], bool]) -> str:
    """The same YAML with quotes around numbers that it would read as others, or that stand where text belongs.

    wants_text: whether a key, with the names of its sections and dots, holds text or a list of texts. Raises what yaml
    raises for a text that is no YAML.
    """
    # libyaml's marks count bytes.
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    places = set()
    for key, node in _scalars(root, "", set()):
        if node.style is not None or not (node.tag in _NUMBERS or _EXPONENT.fullmatch(node.value)):
            continue
        end = node.end_mark.index
        begin = end - len(node.value)
        if text[begin:end] == node.value and (_MISREAD.fullmatch(node.value) or wants_text(key)):
            places.add((begin, end))
    for begin, end in sorted(places, reverse=True):
        text = f'{text[:begin]}"{text[begin:end]}"{text[end:]}'
    return text


def _scalars(node: yaml.Node | None, key: str, seen: set[int]) -> Iterator[tuple[str, yaml.ScalarNode]]:
    """(key, scalar) of everything below a node; each once, however many aliases lead to it."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        yield key, node
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _scalars(value, key, seen)
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            below = name.value if isinstance(name, yaml.ScalarNode) else ""
            yield from _scalars(value, f"{key}.{below}" if key else below, seen)
