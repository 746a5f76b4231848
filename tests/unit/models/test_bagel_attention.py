"""Both attention kernels over mixed layouts: the same numbers, padded or packed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from srum_ds.models.bagel import attention
from srum_ds.models.bagel.adapter import BagelAdapter, load_bagel
from srum_ds.models.bagel.attention import attend, choose_kernel, dense_mask, make_plan, narrow, shared_heads
from srum_ds.models.bagel.layout import Layout, Segment, build_layout
from srum_ds.models.bagel.packing import Part
from tests.support.tiny_models import TINY, write_tiny_bagel
from tests.unit.models.test_bagel_packing import latents, mixed_samples, noise_and_time, run, text

MIXED = (
    (Segment("text", 5), Segment("noised", 6)),
    (Segment("noised", 2),),
    (Segment("vision", 9), Segment("text", 3), Segment("text", 4)),
    (Segment("clean", 4), Segment("vision", 7), Segment("text", 2), Segment("noised", 4), Segment("noised", 3)),
)
LONG = ((Segment("text", 90), Segment("noised", 64)), (Segment("vision", 100), Segment("text", 11)))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> BagelAdapter:
    return load_bagel(write_tiny_bagel(tmp_path_factory.mktemp("bagel")))


@pytest.fixture
def model(loaded: BagelAdapter) -> Iterator[BagelAdapter]:
    yield loaded
    loaded.module.language_model.model.kernel = "auto"


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


def planned(q: Tensor, k: Tensor, v: Tensor, layout: Layout, kernel: str) -> Tensor:
    """The same through a plan."""
    plan = make_plan(layout, kernel, q.shape[1] // k.shape[1], q.dtype)
    slot_N = plan.slot_N
    assert slot_N is not None

    def placed(x: Tensor) -> Tensor:
        grid = x.new_zeros(plan.places, *x.shape[1:]).index_copy(0, slot_N, x)
        return grid.view(*plan.grid, *x.shape[1:]).transpose(1, 2)

    out = attend(placed(q), placed(k), placed(v), plan).transpose(1, 2)
    return out.reshape(plan.places, *q.shape[1:]).index_select(0, slot_N)


def operands(layout: Layout, heads: int, shared: int, head: int = 16, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(layout.tokens, h, head, generator=generator).to(device) for h in (heads, shared, shared)]


@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
@pytest.mark.parametrize(("heads", "shared"), [(4, 2), (3, 3), (6, 1)])
@pytest.mark.parametrize("samples", [MIXED, LONG, MIXED[:1], MIXED + LONG])
def test_attention_is_what_its_definition_says(
    kernel: str, heads: int, shared: int, samples: tuple[tuple[Segment, ...], ...]
) -> None:
    layout = build_layout(samples)
    q, k, v = operands(layout, heads, shared)
    torch.testing.assert_close(planned(q, k, v, layout, kernel), naive(q, k, v, layout), atol=1e-5, rtol=0)


def test_a_branch_goes_on_from_what_is_shared_as_if_there_were_no_other() -> None:
    shared = (Segment("vision", 1), Segment("text", 2))
    layout = build_layout([[*shared, Segment("branch", 2), Segment("branch", 3)], shared])
    in_order = torch.zeros(20, dtype=torch.int64).index_copy(0, layout.slot_N, layout.position_N)
    assert in_order[:10].tolist() == [0, 0, 0, 1, 2, 3, 4, 3, 4, 5]
    allowed = layout.allowed_BQK[0].int().tolist()
    assert allowed[6] == [1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert allowed[8] == [1, 1, 1, 1, 1, 0, 0, 1, 1, 0]
    assert not any(row[5] for row in allowed[:5]) and layout.next_position_B.tolist() == [3, 3]


def test_kernels_agree_on_random_layouts() -> None:
    rng = random.Random(0)
    for _ in range(10):
        samples = [
            [Segment(rng.choice(("text", "branch", "vision", "clean", "noised")), rng.randint(1, 40)) for _ in range(n)]
            for n in (rng.randint(1, 5) for _ in range(rng.randint(1, 6)))
        ]
        layout = build_layout(samples)
        q, k, v = operands(layout, 4, 2)
        one, other = (planned(q, k, v, layout, kernel) for kernel in ("sdpa", "flex"))
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_shared_heads_along_the_query_axis_equal_grouped_ones() -> None:
    """What SDPA does on a GPU, with a cache of which one sample uses less."""
    valid = torch.tensor([[True, True, True], [True, False, False]])
    layout = build_layout(MIXED[:2], valid, torch.tensor([3, 1]))
    q = torch.randn(2, 4, layout.length, 8)
    k, v = torch.randn(2, 2, 3 + layout.length, 8), torch.randn(2, 2, 3 + layout.length, 8)
    mask = dense_mask(layout, torch.float32)
    along = shared_heads(q, k, v, mask.repeat(1, 1, 2, 1), 2)
    torch.testing.assert_close(along, attend(q, k, v, make_plan(layout, "sdpa", 2, q.dtype)), atol=1e-6, rtol=0)


def test_a_narrowed_plan_gives_some_queries_what_the_whole_plan_gives_them() -> None:
    layout = build_layout(
        [[Segment("vision", 3), Segment("branch", 2), Segment("branch", 4)], [Segment("text", 5)], []]
    )
    q, k, v = operands(layout, 4, 2)
    whole = planned(q, k, v, layout, "sdpa")
    plan = make_plan(layout, "sdpa", 2, q.dtype)
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
    with pytest.raises(ValueError, match="packed"):
        narrow(make_plan(layout, "flex", 2, q.dtype), slots)


def test_packing_leaves_out_the_padding() -> None:
    """Three short samples beside a long one: one row of whole blocks, not four rows of the longest."""
    layout = build_layout([[Segment("text", 500)], *[[Segment("text", 20)]] * 3])
    padded, packed = make_plan(layout, "sdpa", 2, torch.float32), make_plan(layout, "flex", 2, torch.float32)
    assert padded.grid == (4, 500)
    assert packed.grid == (1, 640)
    assert packed.slot_N is not None and packed.slot_N.tolist() == list(range(560))
    assert isinstance(packed.mask, attention.BlockMask)
    # Blocks of 128: the long one is causal (1, 2, 3, 4 blocks), the short ones stand in its last block and the next.
    assert packed.mask.to_dense()[0, 0].tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [0, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize(
    ("asked", "device", "head", "cached", "kernel"),
    [
        ("auto", "cpu", 64, False, "sdpa"),
        ("auto", "cuda", 64, False, "flex"),
        ("auto", "cuda", 64, True, "sdpa"),
        ("auto", "cuda", 8, False, "sdpa"),
        ("flex", "cpu", 8, False, "flex"),
        ("flex", "cuda", 64, True, "sdpa"),
        ("sdpa", "cuda", 64, False, "sdpa"),
    ],
)
def test_the_kernel_follows_from_device_and_cache(
    asked: str, device: str, head: int, cached: bool, kernel: str
) -> None:
    assert choose_kernel(asked, torch.device(device), head, cached) == kernel


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="'flash' is none of auto, sdpa, flex"):
        choose_kernel("flash", torch.device("cpu"), 64, False)


# ---- the whole model


@torch.no_grad()
def test_packed_training_is_the_same_under_both_kernels(model: BagelAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = mixed_samples(model)
    padded = run(model, samples)
    calls: list[tuple[int, ...]] = []
    plain: Any = attention.flex_attention

    def counted(q: Tensor, *args: object, **options: object) -> Tensor:
        calls.append(tuple(q.shape))
        return plain(q, *args, **options)

    monkeypatch.setattr(attention, "_flex", lambda _: counted)
    model.module.language_model.model.kernel = "flex"
    packed = run(model, samples)
    # Two layers, all samples along one sequence of one block.
    assert calls == [(1, 4, 128, 8)] * 2
    for key in ("velocity_MC", "squared_error_KM", "logits_LV", "cross_entropy_L"):
        torch.testing.assert_close(packed[key], padded[key], atol=1e-5, rtol=0)
    alone = torch.cat([run(model, [sample])["velocity_MC"] for sample in samples])
    torch.testing.assert_close(packed["velocity_MC"], alone, atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiled flex attention and its gradient need a GPU")
def test_flex_attention_trains_on_a_gpu() -> None:
    """Outputs and gradients of the compiled kernel against SDPA's on the same GPU."""
    layout = build_layout(MIXED + LONG, device="cuda")
    q, k, v = (x.requires_grad_() for x in operands(layout, 4, 2, device="cuda"))
    results = []
    for kernel in ("sdpa", "flex"):
        out = planned(q, k, v, layout, kernel)
        results.append([out, *torch.autograd.grad(out.sin().sum(), [q, k, v])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=5e-3, rtol=5e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="auto chooses flex attention on a GPU only")
def test_a_model_on_a_gpu_trains_packed(tmp_path_factory: pytest.TempPathFactory) -> None:
    config = replace(TINY, llm=replace(TINY.llm, hidden_size=64))
    adapter = load_bagel(write_tiny_bagel(tmp_path_factory.mktemp("wide"), config))
    adapter.module.to("cuda").requires_grad_(True)
    samples: list[list[Part]] = [[text(adapter, "a red cat"), latents(2, 3, 1)], [latents(1, 2, 2)]]
    gradients = []
    kernels: tuple[attention.Kernel, ...] = ("auto", "sdpa")
    for kernel in kernels:
        adapter.module.language_model.model.kernel = kernel
        packed = adapter.pack(samples)
        adapter.losses(packed, *noise_and_time(packed))["squared_error_KM"].sum().backward()
        name = "language_model.model.layers.0.self_attn.k_proj_moe_gen.weight"
        gradient = adapter.module.get_parameter(name).grad
        assert gradient is not None
        gradients.append(gradient.clone())
        adapter.module.zero_grad()
    torch.testing.assert_close(gradients[0], gradients[1], atol=5e-3, rtol=5e-3)
