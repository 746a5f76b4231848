"""The attention of BAGEL's blocks: each kind of token has its expert's projections, and all attend together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from srum_ds.kernels.norm import RMSNorm, rms_norm
from srum_ds.kernels.qk import qk_norm_rotary
from srum_ds.kernels.rows import collect, place
from srum_ds.models.bagel.attention import Plan, attend, attend_freely
from srum_ds.models.bagel.config import LanguageConfig
from srum_ds.models.bagel.pictures import Context, Pictures, Texts, attend_in_groups


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
        self.in_groups = attend_in_groups
        for suffix in ("", "_moe_gen"):
            self.add_module(f"q_proj{suffix}", nn.Linear(hidden, self.heads * head, bias=True))
            self.add_module(f"k_proj{suffix}", nn.Linear(hidden, self.kv_heads * head, bias=True))
            self.add_module(f"v_proj{suffix}", nn.Linear(hidden, self.kv_heads * head, bias=True))
            self.add_module(f"o_proj{suffix}", nn.Linear(self.heads * head, hidden, bias=False))
            self.add_module(f"q_norm{suffix}", RMSNorm(head, eps=config.rms_norm_eps))
            self.add_module(f"k_norm{suffix}", RMSNorm(head, eps=config.rms_norm_eps))

    def _queries(self, x_ND: Tensor, suffix: str) -> Tensor:
        if idle(x_ND):
            return x_ND.new_zeros(0, self.heads, self.head)
        q_NHD: Tensor = self.get_submodule(f"q_proj{suffix}")(x_ND).view(-1, self.heads, self.head)
        return q_NHD

    def _keys_values(self, x_ND: Tensor, suffix: str) -> tuple[Tensor, Tensor]:
        if idle(x_ND):
            nothing = x_ND.new_zeros(0, self.kv_heads, self.head)
            return nothing, nothing
        k = self.get_submodule(f"k_proj{suffix}")(x_ND).view(-1, self.kv_heads, self.head)
        v = self.get_submodule(f"v_proj{suffix}")(x_ND).view(-1, self.kv_heads, self.head)
        return k, v

    def _normed_and_rotated(self, norm: str, und_UHD: Tensor, gen_GHD: Tensor, step: Pass) -> Tensor:
        """Queries or keys of both groups, each normed by its own, in the grid's order, rotated by place."""
        und_weight, eps = self._norm(norm, "")
        # Where nothing trains, there may be no norm for generation rows when there are no such rows.
        gen_weight = und_weight if idle(gen_GHD) else self._norm(norm, "_moe_gen")[0]
        slot_N, places = step.plan.slot_N, step.plan.places
        return qk_norm_rotary(und_UHD, gen_GHD, und_weight, gen_weight, eps, step.cos_P1D, step.sin_P1D, slot_N, places)

    def _norm(self, norm: str, suffix: str) -> tuple[Tensor, float]:
        """The weight and epsilon of an expert's norm of queries or keys."""
        module = self.get_submodule(f"{norm}{suffix}")
        assert isinstance(module, RMSNorm) and module.eps is not None
        return module.weight, module.eps

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
        und_k, und_v = self._keys_values(und_UD, "")
        gen_k, gen_v = self._keys_values(gen_GD, "_moe_gen")
        k_PHD = self._normed_and_rotated("k_norm", und_k, gen_k, step)
        v_PHD = place(und_v, gen_v, plan.slot_N, plan.places)
        keys, values = (x.view(*plan.grid, self.kv_heads, self.head).transpose(1, 2) for x in (k_PHD, v_PHD))
        if asked is not None:
            plan, step = asked.step.plan, asked.step
        und_UD, gen_GD = only(asked, und_UD, gen_GD)
        queries = self._queries(und_UD, ""), self._queries(gen_GD, "_moe_gen")
        q_PHD = self._normed_and_rotated("q_norm", *queries, step)
        if past is not None:
            keys = torch.cat([past[0], keys], dim=2)
            values = torch.cat([past[1], values], dim=2)
        q = q_PHD.view(*plan.grid, self.heads, self.head).transpose(1, 2)
        # Where no row is wanted, the pass is there for its keys and values alone.
        out = (attend(q, keys, values, plan) if len(und_UD) or len(gen_GD) else q).transpose(1, 2)
        und, gen = collect(out.reshape(plan.places, self.heads * self.head), plan.slot_N, len(und_UD))
        return self._output(und, ""), self._output(gen, "_moe_gen"), keys, values

    def texts(self, x_ND: Tensor, texts: Texts, last: bool) -> tuple[Tensor | None, Tensor, Tensor]:
        """Causal attention output of texts, None in the ``last`` block, and keys and values [B, L, KV, head]."""

        def turned(norm: str, x_NHD: Tensor) -> Tensor:
            weight, eps = self._norm(norm, "")
            factors = texts.cos_N1D, texts.sin_N1D
            turned_NHD = qk_norm_rotary(x_NHD, x_NHD[:0], weight, weight, eps, *factors, None, len(x_NHD))
            return turned_NHD.view(texts.batch, -1, *x_NHD.shape[1:])

        k_NGD, v_NGD = self._keys_values(x_ND, "")
        k_BLGD = turned("k_norm", k_NGD)
        v_BLGD = v_NGD.view_as(k_BLGD)
        if last:
            return None, k_BLGD, v_BLGD
        out = attend_freely(turned("q_norm", self._queries(x_ND, "")), k_BLGD, v_BLGD, causal=True)
        return self._output(out.reshape(len(x_ND), -1), ""), k_BLGD, v_BLGD

    def pictures(
        self,
        und_UD: Tensor,
        gen_GD: Tensor,
        pictures: Pictures,
        before: Context | tuple[Context | None, ...],
        last: bool,
    ) -> tuple[Tensor | None, Tensor]:
        """Attention output of pictures' start and end tokens, None in the ``last`` block, and of their latent tokens.

        before: see ``attend_in_groups``.
        """
        kinds = ((und_UD, ""), (gen_GD, "_moe_gen"))
        new = [self._keys_values(x_ND, suffix) for x_ND, suffix in kinds]
        keys = [rms_norm(k, *self._norm("k_norm", suffix)) for (k, _), (_, suffix) in zip(new, kinds, strict=True)]
        asking = kinds[1:] if last else kinds
        queries = [rms_norm(self._queries(x_ND, suffix), *self._norm("q_norm", suffix)) for x_ND, suffix in asking]
        found = self.in_groups(pictures, before, queries, keys, [v for _, v in new])
        outputs = [self._output(x_ND, suffix) for x_ND, (_, suffix) in zip(found, asking, strict=True)]
        return None if last else outputs[0], outputs[-1]

    def _output(self, x_ND: Tensor, suffix: str) -> Tensor:
        projection = self.get_submodule(f"o_proj{suffix}")
        out_ND: Tensor = x_ND.new_zeros(0, self.hidden) if idle(x_ND) else projection(x_ND)
        return out_ND


def idle(x_ND: Tensor) -> bool:
    """Whether an expert has no rows, and no gradient, which all ranks reduce, would miss it: then it is not called."""
    return len(x_ND) == 0 and not torch.is_grad_enabled()


def only(asked: Asked | None, und_UD: Tensor, gen_GD: Tensor) -> tuple[Tensor, Tensor]:
    """The understanding rows that are asked for and no generation rows; all of both where it is None."""
    return (und_UD, gen_GD) if asked is None else (und_UD.index_select(0, asked.rows_L), gen_GD[:0])
