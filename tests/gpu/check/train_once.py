"""One training of part_training.py: python -m tests.gpu.check.train_once engine|plain RECIPE key=value ..."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch


def main(how: str, arguments: Sequence[str]) -> int:
    """``engine``: what every run executes, one rank under DeepSpeed. ``plain``: the same on the CPU without it."""
    torch.set_num_threads(2)
    # Convolutions in TF32 would be compared with the CPU's, not the code.
    torch.backends.cudnn.allow_tf32 = False
    if how == "engine":
        from srum_ds.engine import leave_distributed
        from srum_ds.train import main as train

        status = train(arguments)
        leave_distributed()
        return status
    from srum_ds.config import load_config, split_arguments
    from tests.support.emulated.training import train_on

    recipe, overrides = split_arguments(arguments)
    return train_on("cpu", load_config(recipe, overrides)).status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
