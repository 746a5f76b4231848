"""Attention over mixed layouts against its definition, and a training pass on a GPU against the CPU's."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from srum_ds.models.bagel.adapter import load_bagel
from srum_ds.models.bagel.attention import attend, dense_mask, make_plan, narrow, shared_heads
from srum_ds.models.bagel.layout import Layout, Segment, build_layout
from srum_ds.types import Prompt, TrainView
from tests.support.tiny_models import write_tiny_bagel

MIXED = (
    (Segment("text", 5), Segment("noised", 6)),
    (Segment("noised", 2),),
    (Segment("vision", 9), Segment("text", 3), Segment("text", 4)),
    (Segment("clean", 4), Segment("vision", 7), Segment("text", 2), Segment("noised", 4), Segment("noised", 3)),
)
LONG = ((Segment("text", 90), Segment("noised", 64)), (Segment("vision", 100), Segment("text", 11)))


def naive(q_NHD: Tensor, k_NGD: Tensor, v_NGD: Tensor, layout: Layout) -> Tensor:
    """Softmax attention by the definition, sample by sample, in flat order."""
    out = torch.zeros_like(q_NHD)
    groups = q_NHD.shape[1] // k_NGD.shape[1]
    sample_N, place_N = layout.slot_N // layout.length, layout.slot_N % layout.length
    for row in range(layout.batch):
        mine = (sample_N == row).nonzero()[:, 0]
        allowed = layout.allowed_BQK[row][place_N[mine]][:, place_N[mine]]
        for head in range(q_NHD.shape[1]):
            scores = q_NHD[mine, head] @ k_NGD[mine, head // groups].T / q_NHD.shape[2] ** 0.5
            out[mine, head] = scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ v_NGD[mine, head // groups]
    return out


def planned(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """The same through a plan."""
    plan = make_plan(layout, q.shape[1] // k.shape[1], q.dtype)
    slot_N = plan.slot_N
    assert slot_N is not None

    def placed(x: Tensor) -> Tensor:
        grid = x.new_zeros(plan.places, *x.shape[1:]).index_copy(0, slot_N, x)
        return grid.view(*plan.grid, *x.shape[1:]).transpose(1, 2)

    out = attend(placed(q), placed(k), placed(v), plan).transpose(1, 2)
    return out.reshape(plan.places, *q.shape[1:]).index_select(0, slot_N)


def operands(layout: Layout, heads: int, shared: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(layout.tokens, h, 16, generator=generator) for h in (heads, shared, shared)]


@pytest.mark.parametrize(("heads", "shared"), [(4, 2), (3, 3), (6, 1)])
@pytest.mark.parametrize("samples", [MIXED, LONG, MIXED[:1], MIXED + LONG])
def test_attention_is_what_its_definition_says(
    heads: int, shared: int, samples: tuple[tuple[Segment, ...], ...]
) -> None:
    layout = build_layout(samples)
    q, k, v = operands(layout, heads, shared)
    torch.testing.assert_close(planned(q, k, v, layout), naive(q, k, v, layout), atol=1e-5, rtol=0)


def test_a_branch_goes_on_from_what_is_shared_as_if_there_were_no_other() -> None:
    shared = (Segment("vision", 1), Segment("text", 2))
    layout = build_layout([[*shared, Segment("branch", 2), Segment("branch", 3)], shared])
    in_order = torch.zeros(20, dtype=torch.int64).index_copy(0, layout.slot_N, layout.position_N)
    assert in_order[:10].tolist() == [0, 0, 0, 1, 2, 3, 4, 3, 4, 5]
    allowed = layout.allowed_BQK[0].int().tolist()
    assert allowed[6] == [1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert allowed[8] == [1, 1, 1, 1, 1, 0, 0, 1, 1, 0]
    assert not any(row[5] for row in allowed[:5]) and layout.next_position_B.tolist() == [3, 3]


def test_attention_is_what_its_definition_says_on_random_layouts() -> None:
    rng = random.Random(0)
    for _ in range(10):
        samples = [
            [Segment(rng.choice(("text", "branch", "vision", "clean", "noised")), rng.randint(1, 40)) for _ in range(n)]
            for n in (rng.randint(1, 5) for _ in range(rng.randint(1, 6)))
        ]
        layout = build_layout(samples)
        q, k, v = operands(layout, 4, 2)
        torch.testing.assert_close(planned(q, k, v, layout), naive(q, k, v, layout), atol=1e-5, rtol=0)


def test_shared_heads_along_the_query_axis_equal_grouped_ones() -> None:
    """What SDPA does on a GPU, with a cache of which one sample uses less."""
    valid = torch.tensor([[True, True, True], [True, False, False]])
    layout = build_layout(MIXED[:2], valid, torch.tensor([3, 1]))
    q = torch.randn(2, 4, layout.length, 8)
    k, v = torch.randn(2, 2, 3 + layout.length, 8), torch.randn(2, 2, 3 + layout.length, 8)
    mask = dense_mask(layout, torch.float32)
    along = shared_heads(q, k, v, mask.repeat(1, 1, 2, 1), 2)
    torch.testing.assert_close(along, attend(q, k, v, make_plan(layout, 2, q.dtype)), atol=1e-6, rtol=0)


def test_a_narrowed_plan_gives_some_queries_what_the_whole_plan_gives_them() -> None:
    layout = build_layout(
        [[Segment("vision", 3), Segment("branch", 2), Segment("branch", 4)], [Segment("text", 5)], []]
    )
    q, k, v = operands(layout, 4, 2)
    whole = planned(q, k, v, layout)
    plan = make_plan(layout, 2, q.dtype)
    # Flat rows out of order: places 7, 0, 2 and 10 of the first sample, 0 and 4 of the second, none of the third.
    slots = torch.tensor([7, 0, layout.length, 2, layout.length + 4, 10])
    rows = (layout.slot_N[None] == slots[:, None]).nonzero()[:, 1]
    few = narrow(plan, slots)
    assert few.grid == (3, 4) and few.slot_N is not None
    assert few.slot_N.tolist() == [2, 0, 4, 1, 5, 3]
    assert few.position_P[few.slot_N].tolist() == plan.position_P[slots].tolist()

    def placed(x: Tensor, where: Tensor, grid: tuple[int, int]) -> Tensor:
        places = x.new_zeros(grid[0] * grid[1], *x.shape[1:]).index_copy(0, where, x)
        return places.view(*grid, *x.shape[1:]).transpose(1, 2)

    keys, values = (placed(x, layout.slot_N, plan.grid) for x in (k, v))
    out = attend(placed(q[rows], few.slot_N, few.grid), keys, values, few).transpose(1, 2)
    torch.testing.assert_close(out.reshape(few.places, *q.shape[1:])[few.slot_N], whole[rows], atol=1e-6, rtol=0)


# ---- the whole model


@pytest.mark.skipif(not torch.cuda.is_available(), reason="heads lie along the query axis on a GPU only")
def test_a_model_on_a_gpu_trains_as_on_the_cpu(tmp_path: Path) -> None:
    """Predictions and a gradient of both experts, prompts of two lengths, one view without its prompt."""
    folder = write_tiny_bagel(tmp_path)
    prompts = [Prompt("0", "a red cat"), Prompt("1", "no")]
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(2, 3, 6, 16, generator=generator) for _ in range(2))
    inputs = {
        "x_NMTC": x,
        "time_NM": torch.rand(2, 3, generator=generator),
        "dropped_NM": torch.tensor([[False, True, False], [False, False, False]]),
    }
    found = []
    for device in ("cpu", "cuda"):
        model = load_bagel(folder, device=device)
        model.module.requires_grad_(True)
        there = {name: tensor.to(device) for name, tensor in inputs.items()}
        view = TrainView(there, target.to(device), torch.ones(2, 3, 6, dtype=torch.bool))
        velocity = model.predict(model.module, prompts, view, (2, 3))
        (velocity - view.target).square().sum().backward()
        layer = "language_model.model.layers.0.self_attn.k_proj"
        gradients = [model.module.get_parameter(f"{layer}{suffix}.weight").grad for suffix in ("", "_moe_gen")]
        found.append([tensor.detach().cpu() for tensor in (velocity, *gradients) if tensor is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=5e-3, rtol=5e-3)
