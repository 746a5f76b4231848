"""The fused kernels against their formulas in float64: values and gradients, float32 and bfloat16, odd sizes.

Without a GPU they run under Triton's interpreter (tests/conftest.py), which sees no race and no compile error, and cuts
bfloat16 off where a GPU rounds: one unit in the last place instead of half of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from srum_ds.kernels import norm, qk, swiglu, velocity
from srum_ds.kernels.rotary import rotary_factors
from srum_ds.kernels.triton import norm as triton_norm
from srum_ds.kernels.triton import qk as triton_qk
from srum_ds.kernels.triton import swiglu as triton_swiglu
from srum_ds.kernels.triton import velocity as triton_velocity
from srum_ds.kernels.triton.tiles import stages

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16]
EPS = 1e-6


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.to(dtype).to(DEVICE)


def check(fused: Callable[..., Any], formula: Callable[..., Any], leaves: list[Tensor]) -> None:
    """Outputs and the gradients of all leaves, for random cotangents, within rounding of the formula in float64."""
    wide = [x.double().requires_grad_() for x in leaves]
    leaves = [x.clone().requires_grad_() for x in leaves]
    ours, exact = _tuple(fused(*leaves)), _tuple(formula(*wide))
    cotangents = [randn(*one.shape, seed=90 + i, dtype=one.dtype) for i, one in enumerate(ours)]
    for one, other in zip(ours, exact, strict=True):
        assert_rounded(one, other)
    gradients = torch.autograd.grad(ours, leaves, cotangents)
    expected = torch.autograd.grad(
        exact, wide, [g.double() for g in cotangents], allow_unused=True, materialize_grads=True
    )
    for leaf, one, other in zip(leaves, gradients, expected, strict=True):
        assert one.dtype == leaf.dtype
        assert_rounded(one, other)
    # Without gradients other code runs, and may write into its inputs.
    with torch.no_grad():
        for one, again in zip(ours, _tuple(fused(*[x.detach().clone() for x in leaves])), strict=True):
            assert torch.equal(one, again)


def assert_rounded(ours: Tensor, exact: Tensor) -> None:
    """Off by at most 1e-6 of the largest value, in bfloat16 by one unit in the last place on top."""
    assert ours.shape == exact.shape
    if not ours.numel():
        return
    exact = exact.detach()
    allowed = 1e-6 * exact.abs().max().clamp(min=1e-30)
    if ours.dtype == torch.bfloat16:
        # The distance of bfloat16 numbers of this size: 8 bits, of which the first is not stored.
        allowed = allowed + torch.exp2(torch.floor(torch.log2(exact.abs().clamp(min=1e-30))) - 7)
    error = (ours.double() - exact).abs().detach()
    assert bool((error <= allowed).all()), f"off by {float(error.max()):.2e}"


def _tuple(x: Any) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)


# ---- RMSNorm, alone and behind a sum


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 37), (3, 2, 64), (1, 3), (67, 80), (0, 8)])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    leaves = [randn(*shape, seed=1, dtype=dtype), 1 + randn(shape[-1], seed=2, dtype=dtype) / 4]
    check(lambda x, w: triton_norm.rms_norm(x, w, EPS), lambda x, w: norm.rms_norm_reference(x, w, EPS), leaves)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 37), (130, 72), (0, 8)])
def test_add_rms_norm(shape: tuple[int, int], dtype: torch.dtype) -> None:
    leaves = [randn(*shape, seed=i, dtype=dtype) for i in (1, 2)]
    leaves.append(1 + randn(shape[-1], seed=3, dtype=dtype) / 4)
    stored = triton_norm.add_rms_norm(leaves[0], leaves[1].clone(), leaves[2], EPS)[0].double()

    def formula(x: Tensor, delta: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        # The sum is rounded, by which it is stored, before it is normed.
        total = x + delta
        return total, norm.rms_norm_reference(total + (stored - total).detach(), weight, EPS)

    check(lambda x, delta, w: triton_norm.add_rms_norm(x, delta, w, EPS), formula, leaves)


def test_a_sum_of_two_dtypes_is_of_the_wider_one() -> None:
    x = randn(3, 8, seed=1).requires_grad_()
    delta = randn(3, 8, seed=2, dtype=torch.bfloat16).requires_grad_()
    weight = torch.ones(8, device=DEVICE)
    total, normed = triton_norm.add_rms_norm(x, delta, weight, EPS)
    assert total.dtype == normed.dtype == torch.float32
    assert_rounded(total, x.double() + delta.double())
    (total.sum() + normed.sum()).backward()
    assert x.grad is not None and delta.grad is not None and delta.grad.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(triton_norm.add_rms_norm(x, delta, weight, EPS)[1], normed)


def test_only_the_gradients_that_are_wanted_are_made() -> None:
    x, weight = randn(4, 8, seed=1).requires_grad_(), torch.ones(8, device=DEVICE)
    triton_norm.rms_norm(x, weight, EPS).sum().backward()
    assert x.grad is not None and weight.grad is None


def test_sums_over_many_rows_leave_none_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that takes several tiles, the last of them beyond the end."""
    monkeypatch.setattr("srum_ds.kernels.triton.tiles.TILE", 64)
    monkeypatch.setattr("srum_ds.kernels.triton.tiles.PROGRAMS", 3)
    leaves = [randn(29, 12, seed=1), 1 + randn(12, seed=2) / 4]
    check(lambda x, w: triton_norm.rms_norm(x, w, EPS), lambda x, w: norm.rms_norm_reference(x, w, EPS), leaves)


@pytest.mark.parametrize(("turn", "expected"), [(3 * 4096 * 2, 3), (3 * 4096 * 4, 2), (3 * 16384 * 4, 1), (64, 3)])
def test_what_is_on_its_way_fits_into_shared_memory(turn: int, expected: int) -> None:
    """Three arrays of BAGEL's width in bfloat16 and in float32, of four times its width, and of next to nothing."""
    assert stages(turn) == expected


# ---- SwiGLU


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 7), (41, 130), (0, 5)])
def test_swiglu(shape: tuple[int, int], dtype: torch.dtype) -> None:
    leaves = [randn(*shape, seed=1, dtype=dtype) * 3, randn(*shape, seed=2, dtype=dtype)]
    check(triton_swiglu.swiglu, swiglu.swiglu, leaves)


def test_swiglu_of_extreme_gates() -> None:
    gate = torch.tensor([-200.0, -20.0, 0.0, 20.0, 200.0], device=DEVICE)
    check(triton_swiglu.swiglu, swiglu.swiglu, [gate, torch.ones(5, device=DEVICE)])


def test_swiglu_keeps_gate_and_up_alone() -> None:
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    gate, up = randn(4, 8, seed=1).requires_grad_(), randn(4, 8, seed=2).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        triton_swiglu.swiglu(gate, up)
    assert [x.data_ptr() for x in kept] == [gate.data_ptr(), up.data_ptr()]


# ---- queries and keys


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "heads", "width", "places"), [((5, 4), 3, 40, 12), ((0, 3), 2, 8, 3), ((7, 2), 1, 6, 9)]
)
def test_qk_norm_rotary(rows: tuple[int, int], heads: int, width: int, places: int, dtype: torch.dtype) -> None:
    slot = torch.randperm(places, generator=torch.Generator().manual_seed(3))[: sum(rows)].to(DEVICE)
    check_qk(rows, heads, width, slot, places, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_qk_norm_rotary_of_rows_in_order(dtype: torch.dtype) -> None:
    check_qk((9, 0), 4, 32, None, 9, dtype)


def check_qk(
    rows: tuple[int, int], heads: int, width: int, slot: Tensor | None, places: int, dtype: torch.dtype
) -> None:
    cos, sin = (x.to(dtype) for x in rotary_factors(7 * torch.arange(places, device=DEVICE), width, 1e4))
    leaves = [randn(n, heads, width, seed=n, dtype=dtype) for n in rows]
    constants: list[Any] = [EPS, cos, sin, slot, places]
    wide_constants: list[Any] = [EPS, cos.double(), sin.double(), slot, places]
    leaves += [1 + randn(width, seed=s, dtype=dtype) / 4 for s in (31, 32)]

    def fused(*x: Any) -> Tensor:
        return triton_qk.qk_norm_rotary(*x, *constants)

    def formula(*x: Any) -> Tensor:
        return qk.qk_norm_rotary(*x, *wide_constants)

    check(fused, formula, leaves)


def test_qk_norm_rotary_by_hand() -> None:
    """(3, 4) has root mean square sqrt(12.5); a quarter turn makes (a, b) to (-b, a); place 0 is empty."""
    cos, sin = torch.zeros(2, 1, 2, device=DEVICE), torch.ones(2, 1, 2, device=DEVICE)
    x, weight = torch.tensor([[[3.0, 4.0]]], device=DEVICE), torch.tensor([1.0, 2.0], device=DEVICE)
    slot = torch.tensor([1], device=DEVICE)
    out = triton_qk.qk_norm_rotary(x, x[:0], weight, weight, 1e-12, cos, sin, slot, 2)
    torch.testing.assert_close(out.cpu(), torch.tensor([[[0.0, 0.0]], [[-8.0, 3.0]]]) / 12.5**0.5)


# ---- the velocity loss


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [5, 64])
@pytest.mark.parametrize(
    ("shares", "old", "reference", "counts"),
    [
        ((1.0,), False, False, False),
        ((1.0,), False, True, True),
        ((0.7, -0.7), True, True, True),
        ((0.7, -0.7, 1.0), True, False, False),
    ],
)
def test_velocity_loss(
    shares: tuple[float, ...], old: bool, reference: bool, counts: bool, channels: int, dtype: torch.dtype
) -> None:
    shape = (2, 19, channels)
    target = randn(*shape, seed=2)
    coefficient = randn(len(shares), 2, 19, seed=3)
    optional: dict[str, Any] = {
        "old_BTC": randn(*shape, seed=4, dtype=dtype) if old else None,
        "reference_BTC": randn(*shape, seed=5, dtype=dtype) if reference else None,
        "reference_weight": 0.3,
        "counts_BT": randn(2, 19, seed=6) > -0.5 if counts else None,
    }

    def fused(v: Tensor) -> Tensor:
        return triton_velocity.velocity_loss(v, target, shares, coefficient, **optional)

    def formula(v: Tensor) -> Tensor:
        return velocity.velocity_loss(v, target, shares, coefficient, **optional)

    check(fused, formula, [randn(*shape, seed=1, dtype=dtype)])


def test_velocity_loss_by_hand() -> None:
    """v = 1, old = 0, target = 2: the mixtures 0.5 and -0.5 are off by 1.5 and 2.5; the reference 3 by 2."""
    v = torch.ones(1, 1, 2, device=DEVICE, requires_grad=True)
    coefficient = torch.tensor([[[2.0]], [[1.0]]], device=DEVICE)
    losses = triton_velocity.velocity_loss(v, 2 * v.detach(), (0.5, -0.5), coefficient, 0 * v, 3 * v.detach(), 0.1)
    torch.testing.assert_close(losses.detach().cpu(), torch.tensor([[2 * 2.25 + 6.25 + 0.1 * 4]]))
    losses.sum().backward()
    assert v.grad is not None
    # Of either channel: 2 * 0.5 * -1.5 + 1 * -0.5 * -2.5 + 0.1 * -2, each term twice over two channels.
    torch.testing.assert_close(v.grad.cpu(), torch.full((1, 1, 2), -1.5 + 1.25 - 0.2))


def test_what_does_not_count_may_be_no_number() -> None:
    v = randn(1, 3, 4, seed=1)
    v[0, 1] = torch.nan
    v.requires_grad_()
    counts = torch.tensor([[True, False, True]], device=DEVICE)
    coefficient = torch.tensor([[[1.0, torch.nan, 1.0]]], device=DEVICE)
    losses = triton_velocity.velocity_loss(v, torch.zeros_like(v), (1.0,), coefficient, counts_BT=counts)
    losses.sum().backward()
    assert v.grad is not None
    assert losses[0, 1] == 0 and bool(losses.isfinite().all())
    assert bool((v.grad[0, 1] == 0).all()) and bool(v.grad.isfinite().all())
