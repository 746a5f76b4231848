"""What a look at one part of a run gives: it is right, it will be right but oddly, or it is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from srum_ds.common.errors import UserError, concealed


class State(Enum):
    """How a part stands."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True)
class Finding:
    """What was found.

    part: a setting (``data.shards``), or what else was looked at. text: one line, for the user. figures: what was
    measured, by name, in SI units.
    """

    part: str
    state: State
    text: str
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The finding as a line of a list."""
        return f"{self.state.value:<11}  {self.part:<16}  {concealed(self.text)}"

    def as_json(self) -> dict[str, Any]:
        """The finding as an object."""
        figures = {"figures": dict(self.figures)} if self.figures else {}
        return {"part": self.part, "state": self.state.value, "text": concealed(self.text), **figures}

    def with_figures(self, figures: Mapping[str, float]) -> Finding:
        """The same with what was measured."""
        return replace(self, figures=figures)


def from_json(found: Mapping[str, Any]) -> Finding:
    """What ``as_json`` made an object of."""
    return Finding(found["part"], State(found["state"]), found["text"], found.get("figures", {}))


Look = Callable[[], Iterable[Finding]]
"""Looks at one part; a UserError that it raises is an error found."""


def ok(part: str, text: str) -> Finding:
    """A part that is right; text: what it is."""
    return Finding(part, State.OK, text)


def warning(part: str, text: str) -> Finding:
    """A part that a run goes on with; text: what is odd, and what to do."""
    return Finding(part, State.WARNING, text)


def error(part: str, text: str) -> Finding:
    """A part that no run can start with; text: what is wrong, and what to do."""
    return Finding(part, State.ERROR, "; ".join(line.strip() for line in text.splitlines() if line.strip()))


def not_checked(part: str, text: str) -> Finding:
    """A part that was not looked at; text: why, and who will."""
    return Finding(part, State.NOT_CHECKED, text)


def gathered(looks: Iterable[tuple[str, Look]]) -> Iterator[Finding]:
    """All that some looks, by their parts, find, each error once."""
    said: set[str] = set()
    for part, look in looks:
        for finding in _found(part, look):
            if finding.state != State.ERROR:
                yield finding
            elif finding.text not in said:
                said.add(finding.text)
                yield finding


def _found(part: str, look: Look) -> Iterator[Finding]:
    try:
        yield from look()
    except UserError as found:
        yield error(part, str(found))
    except OSError as found:
        yield error(part, f"{found.filename or part}: {found.strerror or found}. Look at that file and its disk.")
