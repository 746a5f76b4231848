"""The module that trains: a diffusion transformer and the text encoder that conditions it, sharded together.

``forward`` is the pass with a gradient. It computes the conditions itself, without one: under ZeRO-3 the encoder's
layers are gathered as it runs, whereas outside a forward its weights are in shards. Prompts come as tensors of UTF-8,
since an engine's hooks see tensors alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from srum_ds.models.vlm_dit.asking import Conditioner, Conditions, DryRun


class VlmDit(nn.Module):
    """``transformer`` and ``text_encoder`` of a pipeline; without ``transformer`` it judges and cannot draw.

    conditioner, dry: how the pipeline conditions the transformer, and what its output means.
    """

    def __init__(self, transformer: Any, text_encoder: Any, conditioner: Conditioner, dry: DryRun) -> None:
        super().__init__()
        if transformer is not None:
            self.transformer = transformer
        self.text_encoder = text_encoder
        self.conditioner = conditioner
        self.dry = dry

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._first.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self._first.dtype

    @property
    def _first(self) -> nn.Parameter:
        first: nn.Parameter = next(self.text_encoder.parameters())
        return first

    def enable_checkpointing(self, enabled: bool = True) -> None:
        """Recomputes each block of the transformer in backward instead of keeping its activations."""
        if enabled:
            self.transformer.enable_gradient_checkpointing()
        else:
            self.transformer.disable_gradient_checkpointing()

    def forward(
        self, utf8_NL: Tensor, length_N: Tensor, dropped_NM: Tensor, x_NMTC: Tensor, time_NM: Tensor, grid_2: Tensor
    ) -> Tensor:
        """Velocities [N, M, T, C] (float32) of noised tokens: noise - data.

        utf8_NL (uint8) with length_N: the prompts (``as_bytes``). dropped_NM: bool, views without their prompt.
        x_NMTC: float32 tokens, time_NM: float32 in [0, 1], grid_2: rows and columns of the tokens.
        """
        texts = [
            "" if dropped else text
            for text, row in zip(as_texts(utf8_NL, length_N), dropped_NM.tolist(), strict=True)
            for dropped in row
        ]
        rows, columns = grid_2.tolist()
        with torch.no_grad():
            conditions = self.conditioner(texts, self.dry.size_of((rows, columns)))
        v_BTC = self.velocity(x_NMTC.flatten(0, 1), time_NM.flatten(), conditions)
        return v_BTC.reshape(x_NMTC.shape)

    def velocity(self, x_BTC: Tensor, time_B: Tensor, conditions: Conditions) -> Tensor:
        """Velocities [B, T, C] (float32) of tokens at times in [0, 1] under the conditions of as many texts.

        The time is given in float32, in training and in drawing: what it becomes in a lower precision is the
        transformer's affair. The pipeline itself would round 1000 t first, which in bfloat16 is another number.
        """
        output: Tensor = self.transformer(
            hidden_states=x_BTC.to(self.device, self.dtype),
            timestep=time_B.to(self.device, torch.float32) * self.dry.time_scale,
            return_dict=False,
            **conditions,
        )[0]
        v_BTC: Tensor = self.dry.sign * output.float()
        return v_BTC


def as_bytes(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Texts as UTF-8, [N, L] uint8 padded with 0, and the length of each (int64)."""
    encoded = [list(text.encode()) for text in texts]
    length_N = torch.tensor([len(row) for row in encoded])
    longest = max(1, int(length_N.max()))
    return torch.tensor([row + [0] * (longest - len(row)) for row in encoded], dtype=torch.uint8), length_N


def as_texts(utf8_NL: Tensor, length_N: Tensor) -> list[str]:
    """The texts of ``as_bytes``."""
    rows = zip(utf8_NL.tolist(), length_N.tolist(), strict=True)
    return [bytes(row[:length]).decode() for row, length in rows]
