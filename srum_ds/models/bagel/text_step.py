"""One token of each text at a time, after a cache that is laid out once and written in place.

Writing a token is the same pass as reading one (``transformer``), for understanding rows alone: no layout, no row of
the other expert, no copy of what is cached, and nothing that the device would have to be waited for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srum_ds.kernels.rotary import rotary_factors, rotate
from srum_ds.models.bagel.attention import backends
from srum_ds.models.bagel.cache import Cache
from srum_ds.models.bagel.config import LanguageConfig
from srum_ds.models.bagel.transformer import MoTLayer, MoTModel

BLOCK = 64
"""The room for new tokens grows by so many. Its width is a multiple of it, which suits kernels that take a mask."""


class TextStep:
    """A batch of texts that go on after a context: each call appends one token to each of them.

    All parameters are whole on this rank, and nothing has a gradient.
    """

    def __init__(self, model: MoTModel, context: Cache) -> None:
        """context: what the texts follow; it is copied and stays as it is."""
        self.model = model
        self.blocks = [_Block(layer, model.config) for layer in model.layers if isinstance(layer, MoTLayer)]
        # CPUs attend in float32 (see attention.attend): what is cached is converted once instead of at every token.
        dtype = torch.float32 if context.valid_BP.device.type == "cpu" else context.keys_L[0].dtype
        self.keys_L = [keys.to(dtype) for keys in context.keys_L]
        self.values_L = [values.to(dtype) for values in context.values_L]
        valid_B11P = context.valid_BP[:, None, None]
        self.mask_B11P = torch.zeros(valid_B11P.shape, dtype=dtype, device=valid_B11P.device)
        self.mask_B11P.masked_fill_(~valid_B11P, float("-inf"))
        self.position_B = context.position_B
        self.column = int(context.valid_BP.shape[1])
        self.written = 0
        self.cos_TB1D = self.sin_TB1D = torch.zeros(0)

    @torch.no_grad()
    def __call__(self, token_B: Tensor) -> Tensor:
        """Appends tokens (int64 [B]) to the texts; normed hidden states [B, D] of these."""
        if self.written % BLOCK == 0:
            self._make_room()
        turn = self.cos_TB1D[self.written % BLOCK], self.sin_TB1D[self.written % BLOCK]
        self.mask_B11P[..., self.column] = 0
        x_BD: Tensor = self.model.embed_tokens(token_B)
        for block, keys, values in zip(self.blocks, self.keys_L, self.values_L, strict=True):
            x_BD = block(x_BD, turn, keys, values, self.mask_B11P, self.column)
        self.column += 1
        self.written += 1
        hidden_BD: Tensor = self.model.norm(x_BD)
        return hidden_BD

    def _make_room(self) -> None:
        """Room for the next tokens, a layer at a time, and their rotary factors."""
        width = -(-(self.column + BLOCK) // BLOCK) * BLOCK
        self.mask_B11P = _widened(self.mask_B11P, 3, width, float("-inf"))
        for index in range(len(self.blocks)):
            # Zeros: what is masked has no weight, but a NaN times nothing would still be one.
            self.keys_L[index] = _widened(self.keys_L[index], 2, width, 0.0)
            self.values_L[index] = _widened(self.values_L[index], 2, width, 0.0)
        config = self.model.config
        ahead_T = torch.arange(self.written, self.written + BLOCK, device=self.position_B.device)
        position_TB = self.position_B + ahead_T[:, None]
        factors = rotary_factors(position_TB.reshape(-1), config.head_size, config.rope_theta)
        dtype = self.model.embed_tokens.weight.dtype
        self.cos_TB1D, self.sin_TB1D = (x.to(dtype).view(*position_TB.shape, 1, -1) for x in factors)


class _Block:
    """A layer's understanding half for one token a text, in the order and precision of ``MoTLayer``."""

    def __init__(self, layer: MoTLayer, config: LanguageConfig) -> None:
        self.before, self.between = layer.input_layernorm, layer.post_attention_layernorm
        self.mlp = layer.mlp
        # By name, so that what LoRA wraps is called as it is.
        names = ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "o_proj")
        self.q, self.k, self.v, self.q_norm, self.k_norm, self.out = map(layer.self_attn.get_submodule, names)
        self.head = config.head_size
        self.kv_heads = config.num_key_value_heads

    def __call__(
        self,
        x_BD: Tensor,
        turn: tuple[Tensor, Tensor],
        keys_BGPD: Tensor,
        values_BGPD: Tensor,
        mask_B11P: Tensor,
        column: int,
    ) -> Tensor:
        """Hidden states [B, D] after the block; writes keys and values into ``column``."""
        normed_BD = self.before(x_BD)
        q_BHD = self.q_norm(self._heads(self.q, normed_BD))
        k_BGD = self.k_norm(self._heads(self.k, normed_BD))
        turned = rotate(torch.cat([q_BHD, k_BGD], dim=1), *turn)
        keys_BGPD[:, :, column] = turned[:, -self.kv_heads :]
        values_BGPD[:, :, column] = self._heads(self.v, normed_BD)
        # Query heads that share a key head are as many queries under one mask.
        q_BGHD = turned[:, : -self.kv_heads].view(len(x_BD), self.kv_heads, -1, self.head).to(keys_BGPD.dtype)
        # A GPU gets one shape for many tokens, since it may make a plan for each; a CPU only what has been written.
        seen = column + 1 if x_BD.device.type == "cpu" else keys_BGPD.shape[2]
        keys_BGPD, values_BGPD = keys_BGPD[:, :, :seen], values_BGPD[:, :, :seen]
        with backends(x_BD.device):
            seen_BGHD = F.scaled_dot_product_attention(q_BGHD, keys_BGPD, values_BGPD, attn_mask=mask_B11P[..., :seen])
        x_BD = x_BD + self.out(seen_BGHD.reshape(len(x_BD), -1).to(x_BD.dtype))
        x_BD = x_BD + self.mlp(self.between(x_BD))
        return x_BD

    def _heads(self, projection: nn.Module, x_BD: Tensor) -> Tensor:
        heads_BHD: Tensor = projection(x_BD).view(len(x_BD), -1, self.head)
        return heads_BHD


def _widened(x: Tensor, dim: int, width: int, value: float) -> Tensor:
    """The same with ``value`` behind it, so that dimension ``dim`` has ``width`` places."""
    shape = list(x.shape)
    shape[dim] = width
    wider = x.new_full(shape, value)
    wider.narrow(dim, 0, x.shape[dim]).copy_(x)
    return wider
