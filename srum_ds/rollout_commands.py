"""The former name of ``srum_ds.rollouts.worker``, for scripts that start it by hand."""

import sys

from srum_ds.common.errors import guarded
from srum_ds.rollouts.worker import main

if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
