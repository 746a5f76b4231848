"""One part in its own process: python -m tests.gpu.check.child MODULE:FUNCTION FIGURES [--rehearse]."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from tests.gpu.check.measuring import Figures, Where


def main(target: str, path: Path, rehearse: bool) -> None:
    where = Where(rehearse)
    figures = Figures(path)
    figures["device"] = where.described()
    module, function = target.split(":")
    getattr(importlib.import_module(module), function)(figures, where)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), "--rehearse" in sys.argv[3:])
