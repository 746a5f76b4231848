"""What the drawing and the judging half share: a loaded folder's parts, and pictures as codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srum_ds.models.lora import is_adapter
from srum_ds.models.showo.config import ShowoConfig
from srum_ds.models.showo.images import squares
from srum_ds.models.showo.magvit import Magvit
from srum_ds.models.showo.model import Showo
from srum_ds.models.showo.tokenizer import ShowoTokenizer


@dataclass(frozen=True)
class Reader:
    """A loaded Show-o folder: the module that an engine may wrap, and the picture tokenizer, which stays as it is."""

    config: ShowoConfig
    module: Showo
    magvit: Magvit
    tokenizer: ShowoTokenizer

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of every picture's codes."""
        return self.config.side, self.config.side

    @torch.no_grad()
    def codes(self, images: Sequence[Tensor]) -> Tensor:
        """Codes [N, T] (int64) of pictures [3, H, W] in [0, 1], of which only the centre square is seen."""
        pixels = squares(images, self.config.pixels).to(self.module.device)
        return self.magvit.encode(pixels)

    def require_whole(self) -> None:
        """RuntimeError where a weight is in shards: ranks would gather it unequally often, and hang."""
        for name, parameter in self.module.named_parameters():
            if parameter.numel() == 0 and not is_adapter(name):
                raise RuntimeError(f"judging takes whole weights, inside engine.gathered(); {name} is in shards")
