"""``--json``: one object on stdout for programs, and everything that people read on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any

from cyclopts import Parameter

Json = Annotated[
    bool,
    Parameter(name="--json", negative=(), help="Print one JSON object on stdout, and all else on stderr."),
]


@contextmanager
def one_object(wanted: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Inside, whatever this process and those it starts print goes to stderr, if an object is ``wanted``.

    The function that is given takes the object, which is printed when all inside has ended well; where it was not
    called, or something was raised, nothing is printed.
    """
    found: list[Mapping[str, Any]] = []
    if not wanted:
        yield found.append
        return
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        # Processes that are started inherit the file, whatever Python calls stdout.
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield found.append
    finally:
        sys.stderr.flush()
        os.dup2(kept, 1)
        os.close(kept)
    for item in found:
        print(json.dumps(item, ensure_ascii=False, allow_nan=False))
