"""The attention of Show-o's layers: the library's, with torch's kernels but cuDNN's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "showo_sdpa"
"""What a configuration of transformers says of it, as ``_attn_implementation``."""

BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""What may serve on an accelerator: cuDNN's kernel makes a plan for every new number of keys, so for every word."""


def attend(module: torch.nn.Module, query: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, None]:
    """transformers' ``sdpa_attention_forward``; a CPU chooses as it does.

    The choice is made here, in the layer, so that a layer that is recomputed in backward makes it again.
    """
    if query.device.type == "cpu":
        return sdpa_attention_forward(module, query, *rest, **options)
    with sdpa_kernel(BACKENDS):
        return sdpa_attention_forward(module, query, *rest, **options)


AttentionInterface.register(NAME, attend)
