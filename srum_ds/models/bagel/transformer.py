"""BAGEL's mixture of transformers: Qwen2 blocks with two complete sets of weights.

Latent tokens use the ``_moe_gen`` set, everything else the plain one; attention is joint. Module
names equal the keys of the released checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from srum_ds.models.bagel.configuration import LanguageConfig
from srum_ds.models.bagel.layout import Layout


@dataclass(frozen=True)
class Cache:
    """Keys and values of everything read so far, one tensor a layer.

    keys_L, values_L: [B, KV, P, head]; valid_BP: bool, which places hold a token (the others are
    padding); position_B: int64, the rotary position of the next segment.
    """

    keys_L: tuple[Tensor, ...]
    values_L: tuple[Tensor, ...]
    valid_BP: Tensor
    position_B: Tensor

    @property
    def batch(self) -> int:
        return int(self.valid_BP.shape[0])

    def take(self, index: Tensor) -> Cache:
        """The cache of the samples in ``index`` (int64 [B']), which may repeat."""
        return Cache(
            tuple(k.index_select(0, index) for k in self.keys_L),
            tuple(v.index_select(0, index) for v in self.values_L),
            self.valid_BP.index_select(0, index),
            self.position_B.index_select(0, index),
        )

    def without(self, dropped_B: Tensor) -> Cache:
        """The same cache with the samples in ``dropped_B`` (bool [B]) emptied: an empty context."""
        keep_B = ~dropped_B
        return Cache(
            self.keys_L,
            self.values_L,
            self.valid_BP & keep_B[:, None],
            self.position_B * keep_B,
        )


def stack_caches(caches: list[Cache]) -> Cache:
    """Joins caches along the batch, padding to the longest."""
    longest = max(int(c.valid_BP.shape[1]) for c in caches)

    def widen(x: Tensor, dim: int) -> Tensor:
        missing = longest - x.shape[dim]
        if missing == 0:
            return x
        shape = list(x.shape)
        shape[dim] = missing
        return torch.cat([x, x.new_zeros(shape)], dim=dim)

    layers = range(len(caches[0].keys_L))
    return Cache(
        tuple(torch.cat([widen(c.keys_L[i], 2) for c in caches]) for i in layers),
        tuple(torch.cat([widen(c.values_L[i], 2) for c in caches]) for i in layers),
        torch.cat([widen(c.valid_BP, 1) for c in caches]),
        torch.cat([c.position_B for c in caches]),
    )


def empty_cache(config: LanguageConfig, batch: int, dtype: torch.dtype, device: torch.device) -> Cache:
    """A cache that holds nothing, for ``batch`` samples."""
    shape = (batch, config.num_key_value_heads, 0, config.head_size)
    layers = range(config.num_hidden_layers)
    return Cache(
        tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in layers),
        tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in layers),
        torch.zeros(batch, 0, dtype=torch.bool, device=device),
        torch.zeros(batch, dtype=torch.int64, device=device),
    )


@dataclass(frozen=True)
class Pass:
    """What every layer of one forward pass shares.

    cos_N1D, sin_N1D: rotary factors in flat order. mask: 0 or -inf, [B, 1, groups * S, K], repeated
    for the query heads that share a key head.
    """

    layout: Layout
    cos_N1D: Tensor
    sin_N1D: Tensor
    mask: Tensor


def rotary_factors(position_N: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [N, 1, head] (float32) of rotate-half rotary embedding (RoFormer, arXiv 2104.09864)."""
    index = torch.arange(0, head_size, 2, dtype=torch.float32, device=position_N.device)
    frequency = 1.0 / theta ** (index / head_size)
    angle = position_N[:, None].float() * frequency[None, :]
    angle = torch.cat([angle, angle], dim=-1)[:, None, :]
    return angle.cos(), angle.sin()


def rotate(x_NHD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
    """Applies rotary embedding, in x's dtype."""
    first, second = x_NHD.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x_NHD * cos_N1D.to(x_NHD.dtype) + turned * sin_N1D.to(x_NHD.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Scaled dot-product attention, in q's dtype; mask is additive and broadcasts to [B, KV, Q, K].

    On CPU it computes in float32: the bfloat16 kernel's backward pass is several times slower there.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
    with torch.autocast("cpu", enabled=False):
        out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask.float())
    return out.to(q.dtype)


class Attention(nn.Module):
    """Joint grouped-query attention with an expert's projections for each kind of token."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        head = config.head_size
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head = head
        for suffix in ("", "_moe_gen"):
            self.add_module(f"q_proj{suffix}", nn.Linear(hidden, self.heads * head, bias=True))
            self.add_module(f"k_proj{suffix}", nn.Linear(hidden, self.kv_heads * head, bias=True))
            self.add_module(f"v_proj{suffix}", nn.Linear(hidden, self.kv_heads * head, bias=True))
            self.add_module(f"o_proj{suffix}", nn.Linear(self.heads * head, hidden, bias=False))
            self.add_module(f"q_norm{suffix}", nn.RMSNorm(head, eps=config.rms_norm_eps))
            self.add_module(f"k_norm{suffix}", nn.RMSNorm(head, eps=config.rms_norm_eps))

    def _project(self, x_ND: Tensor, suffix: str) -> tuple[Tensor, Tensor, Tensor]:
        q = self.get_submodule(f"q_proj{suffix}")(x_ND).view(-1, self.heads, self.head)
        k = self.get_submodule(f"k_proj{suffix}")(x_ND).view(-1, self.kv_heads, self.head)
        v = self.get_submodule(f"v_proj{suffix}")(x_ND).view(-1, self.kv_heads, self.head)
        q = self.get_submodule(f"q_norm{suffix}")(q)
        k = self.get_submodule(f"k_norm{suffix}")(k)
        return q, k, v

    def forward(
        self, und_UD: Tensor, gen_GD: Tensor, step: Pass, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Attention output of both groups, and keys and values [B, KV, P + S, head], past included."""
        layout = step.layout
        parts = [self._project(und_UD, ""), self._project(gen_GD, "_moe_gen")]
        q_NHD, k_NHD, v_NHD = (torch.cat([parts[0][i], parts[1][i]]) for i in range(3))
        q_NHD = rotate(q_NHD, step.cos_N1D, step.sin_N1D)
        k_NHD = rotate(k_NHD, step.cos_N1D, step.sin_N1D)
        flat = layout.flat_BS.view(-1)
        shape = (layout.batch, layout.length)
        k = k_NHD.index_select(0, flat).view(*shape, self.kv_heads, self.head).transpose(1, 2)
        v = v_NHD.index_select(0, flat).view(*shape, self.kv_heads, self.head).transpose(1, 2)
        # Query heads that share a key head are laid along the query axis: no copy of keys or values.
        groups = self.heads // self.kv_heads
        q = q_NHD.index_select(0, flat).view(*shape, self.kv_heads, groups, self.head)
        q = q.permute(0, 2, 3, 1, 4).reshape(layout.batch, self.kv_heads, groups * layout.length, self.head)
        keys, values = k, v
        if past is not None:
            keys = torch.cat([past[0], k], dim=2)
            values = torch.cat([past[1], v], dim=2)
        out = attend(q, keys, values, step.mask)
        out = out.view(layout.batch, self.kv_heads, groups, layout.length, self.head)
        out = out.permute(0, 3, 1, 2, 4).reshape(-1, self.heads * self.head)
        out_ND = out.index_select(0, layout.slot_N)
        split = layout.understanding
        return (
            self.get_submodule("o_proj")(out_ND[:split]),
            self.get_submodule("o_proj_moe_gen")(out_ND[split:]),
            keys,
            values,
        )


class MoTLayer(nn.Module):
    """One block: pre-norm attention and SwiGLU, each with its expert's weights."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        mlp_config = Qwen2Config(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            hidden_act=config.hidden_act,
        )
        eps = config.rms_norm_eps
        self.self_attn = Attention(config)
        self.mlp = Qwen2MLP(mlp_config)
        self.mlp_moe_gen = Qwen2MLP(mlp_config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=eps)
        self.input_layernorm_moe_gen = nn.RMSNorm(config.hidden_size, eps=eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=eps)
        self.post_attention_layernorm_moe_gen = nn.RMSNorm(config.hidden_size, eps=eps)

    def forward(
        self,
        und_UD: Tensor,
        gen_GD: Tensor,
        step: Pass,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Hidden states of both groups after the block, and its keys and values, past included."""
        und, gen, keys, values = self.self_attn(
            self.input_layernorm(und_UD), self.input_layernorm_moe_gen(gen_GD), step, past
        )
        und_UD = und_UD + und
        gen_GD = gen_GD + gen
        und_UD = und_UD + self.mlp(self.post_attention_layernorm(und_UD))
        gen_GD = gen_GD + self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(gen_GD))
        return und_UD, gen_GD, keys, values


class MoTModel(nn.Module):
    """The stack of blocks with its two final norms (``language_model.model`` of the checkpoint)."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MoTLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norm_moe_gen = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.checkpointing = False

    def forward(
        self, und_UD: Tensor, gen_GD: Tensor, layout: Layout, past: Cache | None = None
    ) -> tuple[Tensor, Tensor, Cache]:
        """Runs new tokens after ``past``.

        und_UD, gen_GD: embeddings in the layout's flat order. Returns the normed hidden states of
        both groups and the cache of past and new tokens together.
        """
        config = self.config
        cos, sin = rotary_factors(layout.position_N, config.head_size, config.rope_theta)
        groups = config.num_attention_heads // config.num_key_value_heads
        allowed = layout.allowed_BQK[:, None].repeat(1, 1, groups, 1)
        mask = torch.zeros(allowed.shape, dtype=und_UD.dtype, device=und_UD.device)
        mask = mask.masked_fill(~allowed, float("-inf"))
        step = Pass(layout, cos, sin, mask)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            before = None if past is None else (past.keys_L[index], past.values_L[index])
            if self.checkpointing and torch.is_grad_enabled():
                und_UD, gen_GD, k, v = torch.utils.checkpoint.checkpoint(
                    layer, und_UD, gen_GD, step, before, use_reentrant=False
                )
            else:
                und_UD, gen_GD, k, v = layer(und_UD, gen_GD, step, before)
            keys.append(k)
            values.append(v)
        valid = layout.valid_BS if past is None else torch.cat([past.valid_BP, layout.valid_BS], dim=1)
        cache = Cache(tuple(keys), tuple(values), valid, layout.next_position_B)
        return self.norm(und_UD), self.norm_moe_gen(gen_GD), cache


class LanguageModel(nn.Module):
    """``language_model`` of the checkpoint: the stack and the text head."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.model = MoTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
