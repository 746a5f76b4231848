"""Whether a run can start, told before any rank does: what is wrong, all of it, a line each.

Read in this order: ``findings`` (what a look gives), ``run`` (what is looked at, for whom), then the looks themselves:
``folder``, ``data``, ``model``, ``questions``, ``code``, ``placing``. None of them imports torch, so that the answer
comes within a second or so; what only a model in memory can tell, its ranks still do. ``plan`` is the exception: what
`srum-ds train --dry-run` prints.
"""

from srum_ds.preflight.findings import Finding, State
from srum_ds.preflight.run import Start, look_at

__all__ = ["Finding", "Start", "State", "look_at"]
