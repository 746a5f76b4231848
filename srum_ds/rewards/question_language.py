"""Jinja as the judge's questions use it: in a sandbox that no loop, call or product of a template can hold for long."""

from __future__ import annotations

import functools
import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jinja2
from jinja2 import nodes, pass_context
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.visitor import NodeTransformer

T = TypeVar("T")

MOST_TURNS = 100_000
"""Turns of all loops together in one rendering; a call counts as several."""
MOST_LETTERS = 1_000_000
"""Of a text, or members of a list, that an operation makes."""
MOST_NUMBER = 100_000
"""Of a number that a filter or a call is given: a width, a count."""
_CALL = 4
_GROWING = frozenset({"+", "*", "**", "%"})
_LARGEST = 10**100
_WIDE = re.compile(r"%[^a-zA-Z%]*\d{6}|[:.]\D{0,3}\d{6}")


class _Budget(threading.local):
    turns = MOST_TURNS


_budget = _Budget()


def _spend(turns: int = 1) -> None:
    _budget.turns -= turns
    if _budget.turns < 0:
        raise SecurityError(f"its loops and calls take more than {MOST_TURNS:,} turns")


def _turns(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _spend()
        yield value


@pass_context
def _counted(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    # With the context, or Jinja would call it when it compiles.
    return _turns(values)


@pass_context
def _joined(context: Context, values: Iterable[Any]) -> str:
    return _short("".join(str(value) for value in values))


def _short(value: T) -> T:
    """A filter's or a call's value, unless it is an endless text."""
    if isinstance(value, str) and len(value) > 1000:
        _spend(len(value) // 1000)
        if len(value) > MOST_LETTERS:
            raise SecurityError(f"a text of more than {MOST_LETTERS:,} letters")
    return value


def _check_given(name: str, own: object, given: Sequence[object]) -> None:
    """SecurityError for numbers and texts from which a filter or a method ``name`` of ``own`` makes far too much."""
    if any(isinstance(value, int) and abs(value) > MOST_NUMBER for value in given):
        raise SecurityError(f"{name} of a number above {MOST_NUMBER:,}")
    if name in ("join", "replace"):
        sizes = [len(value) for value in (own, *given) if isinstance(value, str | list | tuple)]
        if math.prod(sizes) > MOST_LETTERS and max(sizes) > MOST_LETTERS // 1000:
            raise SecurityError(f"{name} might make more than {MOST_LETTERS:,} letters")
    if name == "join" and any(isinstance(value, str) and len(value) > 1000 for value in given):
        raise SecurityError("join by a text of more than 1,000 letters")
    if name in ("format", "%") and isinstance(own, str) and _WIDE.search(own):
        raise SecurityError("a format that is wider than a question")


def _bounded(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of Jinja's that makes no more than a question may hold."""
    skipped = 1 if hasattr(own, "jinja_pass_arg") else 0

    @functools.wraps(own)
    def run(*given: Any, **named: Any) -> Any:
        values = given[skipped:]
        _check_given(name, values[0] if values else None, [*values[1:], *named.values()])
        return _short(own(*given, **named))

    return run


class _Counting(NodeTransformer):
    """Has each loop count its turns, and each ``~`` its letters."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_counted", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "_joined", [], [], None, None, lineno=node.lineno)


class QuestionEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox. Plain text, not HTML: escaping quotes would change the question; a missing variable is an error."""

    intercepted_binops = _GROWING

    def __init__(self) -> None:
        super().__init__(undefined=jinja2.StrictUndefined, autoescape=False)
        self.filters = {name: _bounded(name, own) for name, own in self.filters.items()}
        self.filters |= {"_counted": _counted, "_joined": _joined}
        del self.globals["lipsum"]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        return tree

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Any call that a template makes."""
        _spend(_CALL)
        if isinstance(obj, LoopContext) and args:
            # The turns of a loop within the loop.
            args = (_turns(args[0]), *args[1:])
        else:
            name = str(getattr(obj, "__name__", ""))
            _check_given(name, getattr(obj, "__self__", None), [*args, *kwargs.values()])
        return _short(super().call(context, obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Any:
        """The method ``format`` of a text."""
        _check_given("format", getattr(value, "__self__", None), ())
        return super().wrap_str_format(value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Sums, products, powers and formats, unless what comes of them is beyond all sense."""
        sizes = [len(value) for value in (left, right) if isinstance(value, str | list | tuple)]
        numbers = [abs(value) for value in (left, right) if isinstance(value, int)]
        if operator == "*" and sizes and numbers and sizes[0] * numbers[0] > MOST_LETTERS:
            raise SecurityError(f"a product of more than {MOST_LETTERS:,} members")
        if operator == "+" and sum(sizes) > MOST_LETTERS:
            raise SecurityError(f"a sum of more than {MOST_LETTERS:,} members")
        if operator == "**" and len(numbers) == 2 and (numbers[1] > 300 or numbers[0] > _LARGEST):
            raise SecurityError("a power of hundreds of digits")
        if operator in ("*", "+") and any(number > _LARGEST for number in numbers):
            raise SecurityError("a number of more than a hundred digits")
        if operator == "%":
            _check_given("%", left, [right])
        return _short(super().call_binop(context, operator, left, right))


def rendered(template: jinja2.Template, given: dict[str, object]) -> str:
    """The text of a template; raises whatever it does."""
    _budget.turns = MOST_TURNS
    pieces: list[str] = []
    letters = 0
    for piece in template.generate(given):
        pieces.append(piece)
        letters += len(piece)
        if letters > MOST_LETTERS:
            raise SecurityError(f"a text of more than {MOST_LETTERS:,} letters")
    return "".join(pieces)
