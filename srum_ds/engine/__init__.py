"""Everything DeepSpeed: engines that train and engines that never do, gathering, checkpoints.

Nothing outside this room imports DeepSpeed. ``sharded`` holds the engine the loop trains through.
"""

from srum_ds.engine.base import finite
from srum_ds.engine.config import read_ds_config
from srum_ds.engine.distributed import (
    choose_device,
    compute_device,
    leave_at_exit,
    leave_distributed,
    start_distributed,
)
from srum_ds.engine.frozen import FrozenEngine
from srum_ds.engine.loading import shard_loader
from srum_ds.engine.plain import PlainEngine
from srum_ds.engine.sharded import Engine

__all__ = [
    "Engine",
    "FrozenEngine",
    "PlainEngine",
    "choose_device",
    "compute_device",
    "finite",
    "leave_at_exit",
    "leave_distributed",
    "read_ds_config",
    "shard_loader",
    "start_distributed",
]
