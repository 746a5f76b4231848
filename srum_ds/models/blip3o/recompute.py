"""Recomputing a library's blocks in backward: their own switches are off in evaluation mode, or are none."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(block: nn.Module, enabled: bool) -> None:
    """Has a block keep its inputs alone in passes with a gradient, or (``enabled`` False) no longer.

    The block's ``forward`` is replaced, so its hooks still run once a pass: an engine gathers its weights around it.
    """
    changed = "forward" in block.__dict__
    if not enabled:
        if changed:
            del block.__dict__["forward"]
        return
    if changed:
        return
    whole = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return whole(*args, **kwargs)
        return checkpoint(whole, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    block.__dict__["forward"] = forward
