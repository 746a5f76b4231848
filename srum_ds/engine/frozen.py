"""An engine for a model that never trains: the frozen copy that judges beside the model that is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from srum_ds.engine.base import DTYPES
from srum_ds.engine.config import frozen_config
from srum_ds.engine.distributed import compute_device, deepspeed, start_distributed
from srum_ds.engine.gathering import whole, without


class FrozenEngine:
    """Holds a module in ZeRO-3 shards of its own, without optimizer; whole on every rank under stages 1 and 2.

    It shares no parameters with another engine. Its only use is ``gathered()``.
    """

    def __init__(self, module: nn.Module, ds_config: Mapping[str, Any], precision: str) -> None:
        """Takes the module over and freezes it; all ranks call it with the same weights.

        ds_config: what the training engine gets. precision: ``fp32`` or ``bf16``, which the parameters
        are cast to.
        """
        start_distributed()
        self.module = module.eval().requires_grad_(False)
        self._ds: Any = None
        if ds_config["zero_optimization"]["stage"] == 3:
            config = frozen_config(ds_config, precision)
            self._ds = deepspeed.initialize(model=module, config=config, dist_init_required=False)[0]
            return
        for parameter in module.parameters():
            parameter.data = parameter.data.to(DTYPES[precision])
        module.to(compute_device())

    @contextmanager
    def gathered(self) -> Iterator[nn.Module]:
        """The whole module on every rank, without gradients and without communication inside.

        All ranks enter and leave it together, outside any other engine's ``gathered()``: so no rank
        ever holds two whole models.
        """
        sharded = [] if self._ds is None else list(self.module.parameters())
        with whole(sharded), without(self._hooks()), torch.no_grad():
            yield self.module

    def _hooks(self) -> list[Any]:
        if self._ds is None:
            return []
        offload = self._ds.optimizer
        hooks = [self._ds.module_forward_pre_hook, self._ds.module_forward_post_hook]
        return [*hooks, *offload.forward_hooks, *offload.backward_hooks, offload.fwd_pre_hook]
