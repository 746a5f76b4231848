"""``python -m srum_ds``: the console script `srum-ds`, where it is not on the path."""

from __future__ import annotations

import sys

from srum_ds.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
