#!/usr/bin/env bash
''':'
# `srum-ds eval`, in one process or by the ranks of a launcher:
#
#   bash launch/eval.sh [RUN] [eval.key=value ...]                                base against trained
#   bash launch/eval.sh draw RUN|MODEL --benchmark NAME --out DIR [...]           pictures of a benchmark
#   bash launch/eval.sh score DIR --benchmark NAME --judge KIND [...]             what they are worth
#   deepspeed [launcher flags] launch/eval.sh WORD ...                            the same; all ranks draw
#
# Under launch/slurm/eval.sbatch the shell form is one task of srun, and so one rank.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$root/launch/environment.sh"
if [ "${SRUM_DS_LAUNCHER:-}" = slurm ]; then
    # The job script says where the ranks meet (MASTER_ADDR, MASTER_PORT); srun has started them all.
    export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"
    export LOCAL_SIZE="${SLURM_STEP_TASKS_PER_NODE%%[(,]*}"
fi
exec "$python" -u "${BASH_SOURCE[0]}" "$@"
'''

import os
import sys
from pathlib import Path


def run() -> int:
    """One rank: hands its words to `srum-ds eval`."""
    # Python puts this file's folder first on the path; the package lies one above.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    if os.environ.get("RANK", "0") != "0" and not _drawn_by_all(words):
        return 0
    from srum_ds.commands.main import main

    return main(["eval", *words])


def _drawn_by_all(words: list[str]) -> bool:
    """Whether all ranks have work: they draw together, and rank 0 alone does everything else."""
    return words[:1] != ["score"] and (words[:1] == ["draw"] or any(w.split("=")[0] == "--benchmark" for w in words))


# Drawing processes import this file again, under another name.
if __name__ == "__main__":
    sys.exit(run())
