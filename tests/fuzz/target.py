"""What a target is, and running one on an input."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from tests.fuzz.inputs import Maker


@dataclass(frozen=True)
class Target:
    """Something that reads what comes from outside.

    make: an input. check: hands it to the reader and asserts what must hold of the result; ``UserError`` means that
    the input was refused, anything else that is raised is an escape. The folder it may write to keeps what earlier
    inputs left, which it has to write over. share: how many of the big run's inputs are this one's, relative to the
    others'. examples: how many the suite tries. known: inputs that escaped once, the smallest of their kind.
    refusals: further exceptions that refuse an input. seconds: of CPU that no input may take.
    """

    name: str
    make: Callable[[Maker], Any]
    check: Callable[[Any, Path], None]
    share: float = 1.0
    examples: int = 40
    known: tuple[Any, ...] = ()
    refusals: tuple[type[Exception], ...] = ()
    seconds: float = 2.0

    def accepts(self, case: Any, folder: Path) -> bool:
        """Whether an input was read (True) or refused (False); raises what escapes."""
        try:
            self.check(case, folder)
        except Exception as refusal:
            if not isinstance(refusal, (UserError, *self.refusals)):
                raise
            assert str(refusal).strip(), "the input was refused without a word"
            return False
        return True


def is_share(value: float) -> bool:
    """Whether a number is finite and in [0, 1]."""
    return math.isfinite(value) and 0.0 <= value <= 1.0


def write(path: Path, data: str | bytes) -> Path:
    """Writes an input to a file, texts as UTF-8 where they can be (what cannot becomes bytes that are none)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
    return path
