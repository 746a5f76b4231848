"""Which parameters each training mode of Show-o trains, and which layers a LoRA adapter may bind to.

There is no mode ``generation``: drawing and judging go through the same weights. What only drawing uses are single rows
of the embeddings, the mask's and ``<|t2i|>``'s; codes are read when a picture is judged too, and the head's rows of
codes stand under every probability of an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from srum_ds.common.errors import UserError
from srum_ds.models.lora_names import is_adapter, match_targets

if TYPE_CHECKING:
    from torch import nn

MODES = ("transformer", "lora")

_LAYERS = "showo.model.layers."


def trained(mode: str, names: Iterable[str]) -> list[str]:
    """Those of the module's parameter names that ``mode`` trains: all of the language model, or the adapter alone."""
    if mode == "transformer":
        return [name for name in names if not is_adapter(name)]
    if mode == "lora":
        return [name for name in names if is_adapter(name)]
    why = " No weights of it draw and do not judge." if mode == "generation" else ""
    raise UserError(f"model.trains is {mode!r}; Show-o knows 'transformer' and 'lora'.{why}")


def lora_targets(module: nn.Module, targets: Sequence[str] = ()) -> tuple[str, ...]:
    """Full names of the linear layers of the blocks that ``targets`` mean; without any, of all of them."""
    from torch import nn

    linear = [
        name for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and name.startswith(_LAYERS)
    ]
    return match_targets(linear, targets) if targets else tuple(linear)
