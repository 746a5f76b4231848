"""BAGEL's mixture of transformers: Qwen2 blocks with two complete sets of weights.

Latent tokens use the ``_moe_gen`` set, everything else the plain one; attention is joint. Module
names equal the keys of the released checkpoint.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from srum_ds.kernels.norm import RMSNorm, add, add_rms_norm
from srum_ds.kernels.rotary import rotary_factors
from srum_ds.kernels.swiglu import swiglu
from srum_ds.models.bagel.attention import Plan, make_plan, narrow
from srum_ds.models.bagel.cache import Cache
from srum_ds.models.bagel.config import LanguageConfig
from srum_ds.models.bagel.joint_attention import Asked, Attention, Pass, idle, only
from srum_ds.models.bagel.layout import Layout
from srum_ds.models.bagel.pictures import Context, Pictures, attend_in_groups


def _of(expert: nn.Module, x_ND: Tensor) -> Tensor:
    """What an expert's norm or MLP, which keep the shape, makes of its rows."""
    out_ND: Tensor = x_ND if idle(x_ND) else expert(x_ND)
    return out_ND


def _add_and_norm(norm: nn.Module, stream_ND: Tensor, change_ND: Tensor) -> tuple[Tensor, Tensor]:
    """The sum, and the sum normed."""
    if idle(stream_ND):
        return stream_ND, change_ND
    if isinstance(norm, RMSNorm):
        assert norm.eps is not None
        return add_rms_norm(stream_ND, change_ND, norm.weight, norm.eps)
    # What stands for a norm in a model that was loaded to judge only.
    sum_ND = add(stream_ND, change_ND)
    return sum_ND, norm(sum_ND)


class SwiGLU(Qwen2MLP):
    """Qwen2's gated MLP; where nothing is differentiated, in two arrays instead of four."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]

    def forward(self, x_ND: Tensor) -> Tensor:
        out_ND: Tensor
        if self.config.hidden_act != "silu":
            out_ND = super().forward(x_ND)  # type: ignore[no-untyped-call]
            return out_ND
        out_ND = self.down_proj(swiglu(self.gate_proj(x_ND), self.up_proj(x_ND)))
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

    def forward(self, *work: Any) -> Any:
        """``read``, or ``denoise`` where the third argument says so.

        One call a block either way: what an engine's hooks and activation checkpointing see, and gather weights for.
        """
        return self.denoise(*work) if isinstance(work[2], Pictures) else self.read(*work)

    def read(
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
        und_UD, gen_GD = only(asked, und_UD, gen_GD)
        und_UD, und = _add_and_norm(self.post_attention_layernorm, und_UD, und)
        gen_GD, gen = _add_and_norm(self.post_attention_layernorm_moe_gen, gen_GD, gen)
        und_UD = add(und_UD, _of(self.mlp, und))
        gen_GD = add(gen_GD, _of(self.mlp_moe_gen, gen))
        if not keep:
            return und_UD, gen_GD, None, None
        return und_UD, gen_GD, keys, values

    def denoise(
        self,
        und_UD: Tensor,
        gen_GD: Tensor,
        pictures: Pictures,
        before: Tensor | tuple[Context | None, ...],
        last: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Hidden states after the block of pictures' start and end tokens [2 B, D], and latent tokens [B T, D].

        before: the block's context of each group of pictures; or hidden states [rows of texts, D] of the texts that
        are read in this pass, which are then given back third. Of the ``last`` block the latent tokens alone are
        wanted: the others come back as they were.
        """
        text_ND: Tensor | None = None
        seen: Context | tuple[Context | None, ...]
        if isinstance(before, Tensor):
            assert pictures.texts is not None
            out, keys, values = self.self_attn.texts(self.input_layernorm(before), pictures.texts, last)
            text_ND, seen = before if out is None else self._understood(before, out), (keys, values)
            if pictures.texts.unseen and keys.requires_grad:
                # Gradients of zero, not none: engines expect the same ones on every rank.
                und_UD = und_UD + 0 * (keys.sum() + values.sum())
        else:
            seen = before
        und, gen = self.self_attn.pictures(
            self.input_layernorm(und_UD), self.input_layernorm_moe_gen(gen_GD), pictures, seen, last
        )
        if und is not None:
            und_UD = self._understood(und_UD, und)
        gen_GD, gen = _add_and_norm(self.post_attention_layernorm_moe_gen, gen_GD, gen)
        gen_GD = add(gen_GD, self.mlp_moe_gen(gen))
        return und_UD, gen_GD, text_ND

    def _understood(self, x_ND: Tensor, attended_ND: Tensor) -> Tensor:
        """Rows of the understanding expert after their attention's output and MLP."""
        x_ND, normed_ND = _add_and_norm(self.post_attention_layernorm, x_ND, attended_ND)
        return add(x_ND, self.mlp(normed_ND))


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
            und_UD, gen_GD, k, v = self._through(layer, und_UD, gen_GD, step, before, keep, few)
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

    def denoise(
        self,
        und_UD: Tensor,
        gen_GD: Tensor,
        pictures: Pictures,
        before: Tensor | tuple[tuple[Context | None, ...], ...],
    ) -> Tensor:
        """Normed hidden states [B T, D] of the latent tokens of noised pictures.

        und_UD: embeddings of the pictures' start and end tokens, gen_GD: of their latent tokens. before: the contexts
        by block and by group, or embeddings of the texts that are read in the same pass.
        """
        final = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            seen = before if isinstance(before, Tensor) else before[index]
            und_UD, gen_GD, text_ND = self._through(layer, und_UD, gen_GD, pictures, seen, index == final)
            before = before if text_ND is None else text_ND
        hidden_GD: Tensor = self.norm_moe_gen(gen_GD)
        return hidden_GD

    def compile_blocks(self) -> None:
        """Compiles what a block does to pictures, but their attention.

        Its kernel is there already, and its shapes, those of the groups, change with every batch.
        """
        apart = torch.compiler.disable(attend_in_groups)
        for block in self.layers:
            assert isinstance(block, MoTLayer)
            block.self_attn.in_groups = apart
            block.denoise = torch.compile(block.denoise)  # type: ignore[method-assign]

    def _through(self, layer: nn.Module, *work: Any) -> Any:
        if self.checkpointing and torch.is_grad_enabled():
            # Nothing in a block is random.
            return checkpoint(layer, *work, use_reentrant=False, preserve_rng_state=False)
        return layer(*work)

    def _pass(self, plan: Plan, dtype: torch.dtype) -> Pass:
        cos_P1D, sin_P1D = rotary_factors(plan.position_P, self.config.head_size, self.config.rope_theta)
        return Pass(plan, cos_P1D.to(dtype), sin_P1D.to(dtype))


class LanguageModel(nn.Module):
    """``language_model`` of the checkpoint: the stack and the text head."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.model = MoTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
