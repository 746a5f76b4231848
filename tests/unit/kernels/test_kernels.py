"""Fused operations against their plain references: values, gradients, dtypes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from srum_ds.kernels.norm import RMSNorm, rms_norm, rms_norm_reference
from srum_ds.kernels.rotary import rotary_factors, rotate, rotate_reference
from srum_ds.kernels.rows import collect, place, place_reference


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_same(
    ours: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: list[Tensor], tolerance: float
) -> None:
    """Equal outputs and equal gradients for a random cotangent."""
    inputs = [x.requires_grad_() for x in inputs]
    one, other = ours(*inputs), reference(*inputs)
    assert one.dtype == other.dtype
    torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
    back = randn(*one.shape, seed=9, dtype=one.dtype)
    for ours_g, reference_g in zip(
        torch.autograd.grad(one, inputs, back), torch.autograd.grad(other, inputs, back), strict=True
    ):
        assert ours_g.dtype == reference_g.dtype
        torch.testing.assert_close(ours_g, reference_g, atol=tolerance, rtol=tolerance)


# ---- RMSNorm


@pytest.mark.parametrize("shape", [(6, 32), (5, 3, 16), (0, 8), (1, 1)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_rms_norm_equals_torchs(shape: tuple[int, ...], scale: float) -> None:
    x = randn(*shape) * scale
    weight = 1 + 0.1 * randn(shape[-1], seed=1)
    assert_same(lambda a, w: rms_norm(a, w, 1e-6), lambda a, w: rms_norm_reference(a, w, 1e-6), [x, weight], 2e-5)


def test_rms_norm_by_hand() -> None:
    out = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
    # Root mean square of (3, 4): sqrt(12.5).
    torch.testing.assert_close(out, torch.tensor([[3.0, 8.0]]) / 12.5**0.5)


def test_rms_norm_keeps_bf16_and_sums_in_float32() -> None:
    x, weight = randn(64, 256, dtype=torch.bfloat16), 1 + randn(256, seed=1, dtype=torch.bfloat16) / 8
    ours = rms_norm(x, weight, 1e-6)
    assert ours.dtype == torch.bfloat16
    exact = rms_norm_reference(x.double(), weight.double(), 1e-6)
    assert (ours.double() - exact).abs().max() <= (rms_norm_reference(x, weight, 1e-6).double() - exact).abs().max()
    assert_same(lambda a, w: rms_norm(a, w, 1e-6), lambda a, w: rms_norm_reference(a, w, 1e-6), [x, weight], 3e-2)


def test_rms_norm_gradient_is_that_of_finite_differences() -> None:
    x, weight = randn(3, 2, 8, dtype=torch.float64), 1 + 0.1 * randn(8, seed=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, w: rms_norm(a, w, 1e-6), (x.requires_grad_(), weight.requires_grad_()))


def test_a_frozen_norm_passes_the_gradient_on() -> None:
    norm = RMSNorm(8, eps=1e-6)
    assert list(norm.state_dict()) == ["weight"]
    norm.requires_grad_(False)
    x = randn(4, 8).requires_grad_()
    norm(x).square().sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is None
    norm.requires_grad_(True)
    (for_weight,) = torch.autograd.grad(norm(randn(4, 8)).square().sum(), [norm.weight])
    assert for_weight.shape == (8,)


# ---- rotary


def test_rotation_equals_its_reference() -> None:
    cos, sin = rotary_factors(torch.tensor([0, 1, 7, 7, 900]), 16, 1e4)
    x = randn(5, 3, 16)
    assert_same(lambda a: rotate(a, cos, sin), lambda a: rotate_reference(a, cos, sin), [x], 1e-6)
    assert torch.equal(rotate(x, cos, sin)[0], x[0])


def test_rotation_by_hand() -> None:
    quarter = torch.tensor([[[torch.pi / 2, 0.0]]]).repeat(1, 1, 2)
    out = rotate(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), quarter.cos(), quarter.sin())
    torch.testing.assert_close(out, torch.tensor([[[-3.0, 2.0, 1.0, 4.0]]]))


# ---- rows


@pytest.mark.parametrize("places", [7, 10])
def test_rows_go_to_their_places_and_back(places: int) -> None:
    slot = torch.randperm(places, generator=torch.Generator().manual_seed(1))[:7]
    first, second = randn(3, 2, 4), randn(4, 2, 4, seed=1)
    assert_same(
        lambda a, b: place(a, b, slot, places), lambda a, b: place_reference(a, b, slot, places), [first, second], 0
    )
    back = collect(place(first, second, slot, places), slot, 3)
    assert torch.equal(back[0], first) and torch.equal(back[1], second)
    grid = randn(places, 5)
    assert_same(lambda g: torch.cat(collect(g, slot, 3)), lambda g: g.index_select(0, slot), [grid], 0)


def test_an_empty_group_is_placed_too() -> None:
    slot = torch.tensor([1, 0])
    none, two = randn(0, 3).requires_grad_(), randn(2, 3).requires_grad_()
    grid = place(none, two, slot, 2)
    assert torch.equal(grid, two.detach()[slot])
    grid.sum().backward()
    assert none.grad is not None and none.grad.shape == (0, 3)


def test_rows_leave_out_what_has_no_gradient() -> None:
    """Only one of both outputs is used: the other half counts as zero."""
    slot = torch.tensor([2, 0])
    grid = randn(3, 2).requires_grad_()
    collect(grid, slot, 1)[1].sum().backward()
    assert grid.grad is not None and grid.grad.tolist() == [[1, 1], [0, 0], [0, 0]]
