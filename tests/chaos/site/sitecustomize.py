"""On the path of the ranks of `make chaos` alone: Python imports this file before anything else."""

import os

if os.environ.get("CHAOS_HOOK") and "RANK" in os.environ:
    from tests.chaos.hook import install

    install()
