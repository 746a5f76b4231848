"""The gate of a gated MLP (GLU variants, arXiv 2002.05202)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from srum_ds.kernels.dispatch import fusable


@fusable
def swiglu(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    """silu(gate) * up, in their dtype. Where nothing is differentiated, the result may lie in the array of ``gate``."""
    if torch.is_grad_enabled():
        return F.silu(gate_NF) * up_NF
    return F.silu(gate_NF, inplace=True).mul_(up_NF)
