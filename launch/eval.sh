#!/usr/bin/env bash
''':'
# Base against trained, on held-out prompts. Runs in one process or under the launcher:
#
#   bash launch/eval.sh [RUN] [eval.key=value ...]
#   deepspeed [launcher flags] launch/eval.sh [RUN] [eval.key=value ...]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$root/launch/environment.sh"
exec "$python" "${BASH_SOURCE[0]}" "$@"
'''

import os
import sys
from pathlib import Path


def run() -> int:
    """Hands the run's folder and the settings to the evaluation."""
    # Python puts this file's folder first on the path; the package lies one above.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    if os.environ.get("RANK", "0") != "0":
        # The evaluation spreads its images over processes of its own: one rank does it all.
        return 0
    from srum_ds.evaluation.evaluate import main

    return main([word for word in sys.argv[1:] if not word.startswith("--local_rank")])


# Drawing processes import this file again, under another name.
if __name__ == "__main__":
    sys.exit(run())
