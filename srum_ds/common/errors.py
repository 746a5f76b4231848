"""The one exception that is a message to the user rather than a bug, and the exit statuses of the commands."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any

from cyclopts import CycloptsError

WRONG_INPUT = 2
"""Exit status after a ``UserError``."""

SHORTEST_SECRET = 6
"""Fewer letters than these keep no secret, and would be found in half of all words."""

STOPPED = 75
"""Exit status of a run that was asked to stop, saved and can go on (EX_TEMPFAIL)."""

STOPPED_BY_WATCH = 76
"""Exit status of a run that the watch ended; it is finished, and the same command prints its result."""


HOW_TO_GO_ON = (
    "the same command goes on from the last checkpoint, in case the hardware erred once. If it ends here again, begin "
    "another run (another run.dir) with a lower train.lr or train.precision=fp32: this one keeps its settings."
)
"""Ends the message of a run whose numbers went wrong; no checkpoint holds what is not finite."""


_secrets: dict[str, str] = {}


def hide(secret: str, written: str) -> None:
    """Has every message of a UserError say ``written`` where it would say ``secret``, if that is no common word.

    Of ``file.py:name`` the file is a secret too: a stack names it.
    """
    source = secret.rpartition(":")[0]
    files = (source, os.path.basename(source)) if source.endswith(".py") else ()
    for word in (secret, *files):
        if len(word) >= SHORTEST_SECRET:
            _secrets[word] = written


def concealed(text: str) -> str:
    """A text with what ``hide`` was told in place of every secret, the longest first."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, _secrets[secret])
    return text


HUNG = 77
"""Exit status of a rank that was ended because the job waited too long, or with one that was."""


class Crash(Exception):
    """An error of a rank that is nobody's fault, told in one paragraph; the stack stands in the run's ``crash/``.

    status: the process's exit status; that of the rank which ended first, where it has said why.
    """

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


class UserError(Exception):
    """Something the user can put right: says what was found, what was expected and what to do.

    The command line prints the message alone and exits with status 2.
    """


def guarded(work: Callable[[], Any]) -> int:
    """Runs ``work`` and returns an exit status; a UserError becomes its message on stderr and 2."""
    _open_streams()
    try:
        result = work()
        sys.stdout.flush()
    except UserError as error:
        print(f"srum-ds: {concealed(str(error))}", file=sys.stderr)
        return WRONG_INPUT
    except Crash as error:
        print(f"srum-ds: {concealed(str(error))}", file=sys.stderr)
        return error.status
    except CycloptsError:
        # Cyclopts has printed what is wrong.
        return WRONG_INPUT
    except BrokenPipeError:
        # The reader of a pipe went away; nothing more can be said, at the interpreter's exit either.
        _close_stdout()
        return 0
    except OSError as error:
        if error.filename is None and _stdout_is_full(error):
            _close_stdout()
            print(f"srum-ds: what it prints could not be written ({error.strerror}).", file=sys.stderr)
            return WRONG_INPUT
        if error.filename is None:
            raise
        # A disk or a network that does not answer where nobody expected it; which file it was says all there is.
        name = concealed(ascii(os.fspath(error.filename))[1:-1])
        print(f"srum-ds: {name}: {error.strerror}. Look at that file and its disk, then try again.", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        return 130
    return result if isinstance(result, int) else 0


def _open_streams() -> None:
    """Of a process that was started with a standard stream closed (`>&-`): the null device in its place.

    Otherwise the next file that is opened has its number, and gets what libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives


def _stdout_is_full(error: OSError) -> bool:
    """Whether it is stdout whose disk is full, rather than a file that the error does not name."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return False
    try:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), b"\n")
    except OSError:
        return True
    return False


def _close_stdout() -> None:
    """Nothing more is printed, at the interpreter's exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
