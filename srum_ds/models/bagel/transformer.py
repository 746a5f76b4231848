"""BAGEL's mixture of transformers: Qwen2 blocks with two complete sets of weights.

Latent tokens use the ``_moe_gen`` set, everything else the plain one; attention is joint. Module
names equal the keys of the released checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from srum_ds.kernels.norm import RMSNorm
from srum_ds.kernels.rotary import rotary_factors, rotate
from srum_ds.kernels.rows import collect, place
from srum_ds.models.bagel.attention import Plan, attend, make_plan, narrow
from srum_ds.models.bagel.config import LanguageConfig
from srum_ds.models.bagel.layout import Layout


@dataclass(frozen=True)
class Cache:
    """Keys and values of everything read so far, one tensor per layer.

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
    """What every layer of one forward pass shares: the plan of its attention, and rotary factors by place."""

    plan: Plan
    cos_P1D: Tensor
    sin_P1D: Tensor


@dataclass(frozen=True)
class Asked:
    """Some of a pass's understanding rows (int64), and how these alone attend to its keys and values."""

    rows_L: Tensor
    step: Pass


class Attention(nn.Module):
    """Joint grouped-query attention with an expert's projections for each kind of token."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        head = config.head_size
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head = head
        self.hidden = hidden
        for suffix in ("", "_moe_gen"):
            self.add_module(f"q_proj{suffix}", nn.Linear(hidden, self.heads * head, bias=True))
            self.add_module(f"k_proj{suffix}", nn.Linear(hidden, self.kv_heads * head, bias=True))
            self.add_module(f"v_proj{suffix}", nn.Linear(hidden, self.kv_heads * head, bias=True))
            self.add_module(f"o_proj{suffix}", nn.Linear(self.heads * head, hidden, bias=False))
            self.add_module(f"q_norm{suffix}", RMSNorm(head, eps=config.rms_norm_eps))
            self.add_module(f"k_norm{suffix}", RMSNorm(head, eps=config.rms_norm_eps))

    def _queries(self, x_ND: Tensor, suffix: str) -> Tensor:
        if _idle(x_ND):
            return x_ND.new_zeros(0, self.heads, self.head)
        q_NHD: Tensor = self.get_submodule(f"q_proj{suffix}")(x_ND).view(-1, self.heads, self.head)
        normed_NHD: Tensor = self.get_submodule(f"q_norm{suffix}")(q_NHD)
        return normed_NHD

    def _keys_values(self, x_ND: Tensor, suffix: str) -> tuple[Tensor, Tensor]:
        if _idle(x_ND):
            nothing = x_ND.new_zeros(0, self.kv_heads, self.head)
            return nothing, nothing
        k = self.get_submodule(f"k_proj{suffix}")(x_ND).view(-1, self.kv_heads, self.head)
        v = self.get_submodule(f"v_proj{suffix}")(x_ND).view(-1, self.kv_heads, self.head)
        return self.get_submodule(f"k_norm{suffix}")(k), v

    def forward(
        self,
        und_UD: Tensor,
        gen_GD: Tensor,
        step: Pass,
        past: tuple[Tensor, Tensor] | None,
        asked: Asked | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Attention output of both groups, and keys and values [B, KV, P + S, head], past included.

        asked: the rows whose output is wanted, if not all.
        """
        plan = step.plan
        parts = zip(self._keys_values(und_UD, ""), self._keys_values(gen_GD, "_moe_gen"), strict=True)
        k_PHD, v_PHD = (place(und, gen, plan.slot_N, plan.places) for und, gen in parts)
        k_PHD = rotate(k_PHD, step.cos_P1D, step.sin_P1D)
        keys, values = (x.view(*plan.grid, self.kv_heads, self.head).transpose(1, 2) for x in (k_PHD, v_PHD))
        if asked is not None:
            plan, step = asked.step.plan, asked.step
        und_UD, gen_GD = _only(asked, und_UD, gen_GD)
        q_PHD = place(self._queries(und_UD, ""), self._queries(gen_GD, "_moe_gen"), plan.slot_N, plan.places)
        q_PHD = rotate(q_PHD, step.cos_P1D, step.sin_P1D)
        if past is not None:
            keys = torch.cat([past[0], keys], dim=2)
            values = torch.cat([past[1], values], dim=2)
        q = q_PHD.view(*plan.grid, self.heads, self.head).transpose(1, 2)
        # Where no row is wanted, the pass is there for its keys and values alone.
        out = (attend(q, keys, values, plan) if len(und_UD) or len(gen_GD) else q).transpose(1, 2)
        und, gen = collect(out.reshape(plan.places, self.heads * self.head), plan.slot_N, len(und_UD))
        und = self._output(und, "")
        gen = self._output(gen, "_moe_gen")
        return und, gen, keys, values

    def _output(self, x_ND: Tensor, suffix: str) -> Tensor:
        projection = self.get_submodule(f"o_proj{suffix}")
        out_ND: Tensor = x_ND.new_zeros(0, self.hidden) if _idle(x_ND) else projection(x_ND)
        return out_ND


def _idle(x_ND: Tensor) -> bool:
    """Whether an expert has no rows, and no gradient, which all ranks reduce, would miss it: then it is not called."""
    return len(x_ND) == 0 and not torch.is_grad_enabled()


def _of(expert: nn.Module, x_ND: Tensor) -> Tensor:
    """What an expert's norm or MLP, which keep the shape, makes of its rows."""
    out_ND: Tensor = x_ND if _idle(x_ND) else expert(x_ND)
    return out_ND


def _only(asked: Asked | None, und_UD: Tensor, gen_GD: Tensor) -> tuple[Tensor, Tensor]:
    """The understanding rows that are asked for and no generation rows; all of both where it is None."""
    return (und_UD, gen_GD) if asked is None else (und_UD.index_select(0, asked.rows_L), gen_GD[:0])


def _add(stream_ND: Tensor, change_ND: Tensor) -> Tensor:
    """Their sum; where nothing is differentiated, in the array of the change, which nobody else has."""
    if torch.is_grad_enabled() or stream_ND.dtype != change_ND.dtype:
        return stream_ND + change_ND
    return change_ND.add_(stream_ND)


class SwiGLU(Qwen2MLP):
    """Qwen2's gated MLP; where nothing is differentiated, in two arrays instead of four."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]

    def forward(self, x_ND: Tensor) -> Tensor:
        out_ND: Tensor
        if torch.is_grad_enabled() or self.config.hidden_act != "silu":
            out_ND = super().forward(x_ND)  # type: ignore[no-untyped-call]
            return out_ND
        gate_NF = F.silu(self.gate_proj(x_ND), inplace=True)
        out_ND = self.down_proj(gate_NF.mul_(self.up_proj(x_ND)))
        return out_ND


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
        self.mlp = SwiGLU(mlp_config)
        self.mlp_moe_gen = SwiGLU(mlp_config)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=eps)
        self.input_layernorm_moe_gen = RMSNorm(config.hidden_size, eps=eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=eps)
        self.post_attention_layernorm_moe_gen = RMSNorm(config.hidden_size, eps=eps)

    def forward(
        self,
        und_UD: Tensor,
        gen_GD: Tensor,
        step: Pass,
        past: tuple[Tensor, Tensor] | None = None,
        keep: bool = True,
        asked: Asked | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Hidden states of both groups after the block, and its keys and values, past included, to ``keep``.

        asked: the rows whose hidden states are wanted, if not all; keys and values are those of all rows.
        """
        und, gen, keys, values = self.self_attn(
            _of(self.input_layernorm, und_UD), _of(self.input_layernorm_moe_gen, gen_GD), step, past, asked
        )
        und_UD, gen_GD = _only(asked, und_UD, gen_GD)
        und_UD = _add(und_UD, und)
        gen_GD = _add(gen_GD, gen)
        und_UD = _add(und_UD, _of(self.mlp, _of(self.post_attention_layernorm, und_UD)))
        gen_GD = _add(gen_GD, _of(self.mlp_moe_gen, _of(self.post_attention_layernorm_moe_gen, gen_GD)))
        if not keep:
            return und_UD, gen_GD, None, None
        return und_UD, gen_GD, keys, values


class MoTModel(nn.Module):
    """The stack of blocks with its two final norms (``language_model.model`` of the checkpoint)."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MoTLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norm_moe_gen = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.checkpointing = False

    def forward(
        self,
        und_UD: Tensor,
        gen_GD: Tensor,
        layout: Layout,
        past: Cache | None = None,
        keep: bool = True,
        rows_L: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Cache | None]:
        """Runs new tokens after ``past``.

        und_UD, gen_GD: embeddings in the layout's flat order. rows_L (int64, all different): the
        understanding rows whose hidden states are wanted, and none of the generation rows; the last block
        then computes keys and values for all, and the rest for these alone. None: all of both.

        Returns the normed hidden states of both groups and the cache of past and new tokens together, or
        None where it is not to be kept.
        """
        config = self.config
        plan = make_plan(layout, config.num_attention_heads // config.num_key_value_heads, und_UD.dtype)
        # Of one expert and without padding, rows travel in the grid's order, so that no block has to move them.
        # A gradient would miss the other expert then, and ranks would no longer reduce the same ones.
        ordered = layout.understanding == plan.places and not torch.is_grad_enabled()
        if ordered:
            und_UD = und_UD.index_select(0, layout.slot_N.argsort())
            plan = replace(plan, slot_N=None)
        step = self._pass(plan, und_UD.dtype)
        asked = None
        if rows_L is not None:
            slot_L = layout.slot_N.index_select(0, rows_L)
            asked = Asked(slot_L if ordered else rows_L, self._pass(narrow(plan, slot_L), und_UD.dtype))
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            before = None if past is None else (past.keys_L[index], past.values_L[index])
            few = asked if index == len(self.layers) - 1 else None
            if self.checkpointing and torch.is_grad_enabled():
                und_UD, gen_GD, k, v = checkpoint(layer, und_UD, gen_GD, step, before, keep, few, use_reentrant=False)
            else:
                und_UD, gen_GD, k, v = layer(und_UD, gen_GD, step, before, keep, few)
            if keep:
                keys.append(k)
                values.append(v)
        if ordered and rows_L is None:
            und_UD = und_UD.index_select(0, layout.slot_N)
        hidden = (_of(self.norm, und_UD), _of(self.norm_moe_gen, gen_GD))
        if not keep:
            return *hidden, None
        valid = layout.valid_BS if past is None else torch.cat([past.valid_BP, layout.valid_BS], dim=1)
        return *hidden, Cache(tuple(keys), tuple(values), valid, layout.next_position_B)

    def _pass(self, plan: Plan, dtype: torch.dtype) -> Pass:
        cos_P1D, sin_P1D = rotary_factors(plan.position_P, self.config.head_size, self.config.rope_theta)
        return Pass(plan, cos_P1D.to(dtype), sin_P1D.to(dtype))


class LanguageModel(nn.Module):
    """``language_model`` of the checkpoint: the stack and the text head."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.model = MoTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
