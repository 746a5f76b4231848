"""The module that trains: a vision-language model, the queries appended to its prompts, and a transformer of features.

``forward`` is the pass with a gradient. The language model is frozen, yet the gradient passes through it: the queries
are its inputs, and what it says at their places conditions the transformer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from srum_ds.models.blip3o.config import Blip3oConfig
from srum_ds.models.blip3o.denoiser import Denoiser
from srum_ds.models.blip3o.drawing import velocity
from srum_ds.models.blip3o.recompute import recompute
from srum_ds.models.blip3o.settings import TIME_SCALE


class LatentQueries(nn.Module):
    """The learned queries [1, Q, D]; a module of their own, so that an engine gathers them when they are read."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.latent_queries = nn.Parameter(torch.empty(1, count, width))

    def forward(self, copies: int) -> Tensor:
        """``copies`` of them: [P, Q, D], memory of their own."""
        return self.latent_queries.repeat(copies, 1, 1)


class Blip3o(nn.Module):
    """``vlm``, ``queries`` and ``dit``."""

    def __init__(self, config: Blip3oConfig) -> None:
        super().__init__()
        self.config = config
        # The library's stubs do not say what its models offer.
        self.vlm: Any = Qwen2_5_VLForConditionalGeneration(config.vlm)
        self.queries = LatentQueries(config.n_query, config.width)
        self.dit = Denoiser(config.denoiser)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.vlm.lm_head.weight.device
        return device

    def keep_judge(self) -> None:
        """Lets ``queries`` and ``dit`` go: it judges the same and cannot draw."""
        del self.queries, self.dit

    def enable_checkpointing(self, enabled: bool = True) -> None:
        """Recomputes each block of the transformer, and each layer that the gradient of the queries passes through."""
        for block in (*self.dit.blocks, *self.vlm.model.language_model.layers):
            recompute(block, enabled)

    def forward(
        self,
        ids_PL: Tensor,
        length_P: Tensor,
        dropped_NM: Tensor,
        x_NMTC: Tensor,
        time_NM: Tensor,
        grid_2: Tensor,
        prompt_N: Tensor,
    ) -> Tensor:
        """Velocities [N, M, T, C] (float32) of noised tokens: noise - data.

        ids_PL (int64, paddings behind each prompt's ``length_P`` ids): the distinct prompts, of which ``prompt_N`` is
        each image's. dropped_NM: bool, views without their prompt, whose condition is zeros. x_NMTC: float32 tokens,
        row-major over ``grid_2`` = rows, columns. time_NM: float32 in [0, 1]; the transformer is given 1000 times that.
        """
        # The condition has a gradient where the queries train; the rest of the model is read without one.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.queries.latent_queries.requires_grad):
            z_PQD = self.conditions(ids_PL, length_P)
        z_NMQD = z_PQD[prompt_N.to(z_PQD.device)][:, None].expand(-1, dropped_NM.shape[1], -1, -1)
        z_NMQD = z_NMQD * (~dropped_NM)[:, :, None, None].to(z_NMQD)
        x_BTC = x_NMTC.flatten(0, 1).to(self.device)
        timestep_B = time_NM.flatten().to(self.device, torch.float32) * TIME_SCALE
        rows, columns = grid_2.tolist()
        return velocity(self.dit, x_BTC, timestep_B, z_NMQD.flatten(0, 1), (rows, columns)).reshape(x_NMTC.shape)

    def conditions(self, ids_PL: Tensor, length_P: Tensor) -> Tensor:
        """The language model's last hidden states (normed) at the queries, which follow each prompt: [P, Q, D].

        ids_PL, length_P: as in ``forward``. Paddings come behind the queries, where a causal model does not look, so
        that a prompt's states are the same in any batch.
        """
        device, count = self.device, self.config.n_query
        ids_PL, length_P = ids_PL.to(device), length_P.to(device)
        # Any id does where queries or paddings come.
        ids_PS = torch.nn.functional.pad(ids_PL, (0, count))
        embedded_PSD = self.vlm.get_input_embeddings()(ids_PS)
        queries_PQD = self.queries(len(ids_PL)).to(embedded_PSD.dtype)
        place_PQD = (length_P[:, None] + torch.arange(count, device=device))[:, :, None].expand_as(queries_PQD)
        hidden_PSD = self.vlm.model.language_model(
            inputs_embeds=embedded_PSD.scatter(1, place_PQD, queries_PQD), use_cache=False
        ).last_hidden_state
        conditions_PQD: Tensor = hidden_PSD.gather(1, place_PQD)
        return conditions_PQD
