#!/usr/bin/env bash
''':'
# Trains, or goes on where the run stands. One file, three ways in:
#
#   deepspeed [launcher flags] launch/train.sh [RECIPE] [key=value ...]     DeepSpeed runs it as Python
#   bash launch/train.sh [RECIPE] [key=value ...]                           the lines down to the quotes
#   srum-ds train [RECIPE] [key=value ...]                                  what those lines call
#
# Under launch/slurm/train.sbatch the shell form is one task of srun, and so one rank.
#
# NUM_RANKS     ranks on this node (default: one per GPU; without a GPU what deepspeed.ranks says, 2)
# LAUNCHER_ARGS further flags of the DeepSpeed launcher, such as "--hostfile hosts --master_addr node1"
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$root/launch/environment.sh"

if [ "${SRUM_DS_LAUNCHER:-}" = slurm ]; then
    # The job script says where the ranks meet (MASTER_ADDR, MASTER_PORT); srun has started them all.
    export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"
    export LOCAL_SIZE="${SLURM_STEP_TASKS_PER_NODE%%[(,]*}"
    exec "$python" -u "${BASH_SOURCE[0]}" "$@"
fi

flags="${LAUNCHER_ARGS:-}"
if [ -z "${NUM_RANKS:-}" ] && [ "$(visible_gpus)" -gt 0 ]; then
    NUM_RANKS="$(visible_gpus)"
fi
if [ -n "${NUM_RANKS:-}" ]; then
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(threads_per_rank "$NUM_RANKS")}"
    case " $flags" in
        *" --num_gpus"* | *" --num_accelerators"* | *" --include"* | *" -i "*) ;;
        *) flags="--num_gpus $NUM_RANKS $flags" ;;
    esac
fi
exec "$python" -P -c "import sys; from srum_ds.commands.main import main; sys.exit(main())" \
    train "--launcher-args=$flags" "$@"
'''

import os
import sys
from pathlib import Path


def run() -> int:
    """One rank: hands the recipe and the settings to the training loop."""
    # The launcher puts this file's folder first on the path; the package lies one above.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from srum_ds.common.errors import guarded
    from srum_ds.common.stopping import stop_without_launcher
    from srum_ds.commands.launcher import build_environment

    stop_without_launcher()

    # Before torch starts its threads: the cores of this node are shared out over its ranks.
    ranks = int(os.environ.get("LOCAL_SIZE", "1"))
    os.environ.update(build_environment(os.environ, ranks, cuda=True))
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]

    def train() -> int:
        from srum_ds.commands.preflight import refuse_on_rank

        refused = refuse_on_rank(words)
        if refused:
            return refused
        from srum_ds.common.stopping import StopSignal
        from srum_ds.engine import leave_distributed
        from srum_ds.train import main

        status = main(words)
        # The run is over: who asks now changes nothing of its status.
        StopSignal()
        leave_distributed()
        return status

    return guarded(train)


# Worker processes import this file again, under another name.
if __name__ == "__main__":
    sys.exit(run())
