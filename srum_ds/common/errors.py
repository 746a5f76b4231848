"""The one exception that is a message to the user rather than a bug, and the exit statuses of the commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from cyclopts import CycloptsError

WRONG_INPUT = 2
"""Exit status after a ``UserError``."""

STOPPED = 75
"""Exit status of a run that was asked to stop, saved and can go on (EX_TEMPFAIL)."""

STOPPED_BY_WATCH = 76
"""Exit status of a run that the watch ended; it is finished, and the same command prints its result."""


class UserError(Exception):
    """Something the user can put right: says what was found, what was expected and what to do.

    The command line prints the message alone and exits with status 2.
    """


def guarded(work: Callable[[], Any]) -> int:
    """Runs ``work`` and returns an exit status; a UserError becomes its message on stderr and 2."""
    try:
        result = work()
        sys.stdout.flush()
    except UserError as error:
        print(f"srum-ds: {error}", file=sys.stderr)
        return WRONG_INPUT
    except CycloptsError:
        # Cyclopts has printed what is wrong.
        return WRONG_INPUT
    except BrokenPipeError:
        # The reader of a pipe went away; nothing more can be said, at the interpreter's exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return result if isinstance(result, int) else 0
