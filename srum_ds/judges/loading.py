"""Opening a judge by the name that ``--judge`` gives."""

from __future__ import annotations

from inspect import getattr_static
from typing import cast

from srum_ds.common import foreign
from srum_ds.common.errors import UserError
from srum_ds.config.choices import JUDGES
from srum_ds.judges.guarded import GuardedJudge
from srum_ds.judges.protocol import JudgeSettings, PictureJudge

_NEEDED = ("kind", "model", "under_test", "ask", "close")


def load_judge(kind: str, settings: JudgeSettings) -> PictureJudge:
    """The judge of this kind: a name of the registry, of an entry point, ``module:name`` or ``file.py:name``.

    UserError for an unknown kind, for settings that it cannot obey, and for code that makes no judge.
    """
    if settings.concurrency < 1 or settings.batch < 1 or settings.retries < 0 or not settings.timeout > 0:
        raise UserError(
            f"--judge {kind}: concurrency {settings.concurrency} and batch {settings.batch} must be at least 1, "
            f"retries {settings.retries} at least 0, timeout {settings.timeout:g} above 0"
        )
    make = JUDGES.get(kind)
    judge = make(settings) if kind in JUDGES.builtin else foreign.run(f"--judge {kind}", lambda: make(settings))
    # Looked for, not asked for: a server says its model's name when it is first needed.
    missing = [name for name in _NEEDED if getattr_static(judge, name, None) is None]
    if missing:
        raise UserError(
            f"--judge {kind}: makes {type(judge).__name__} without {missing[0]}, expected a PictureJudge "
            f"(srum_ds/judges/protocol.py)"
        )
    found = cast(PictureJudge, judge)
    return found if kind in JUDGES.builtin else GuardedJudge(f"--judge {kind}", found)
