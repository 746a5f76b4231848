"""The cross-entropy of a linear head, in chunks, against its plain formula."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srum_ds.kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_reference


def inputs(dtype: torch.dtype, n: int = 11, d: int = 7, v: int = 29) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(s, generator=generator).to(dtype) for s in ((n, d), (v, d), (v,)))
    target = torch.randint(0, v, (n,), generator=generator)
    target[3] = -1
    return hidden, weight, bias, target


def gradients(losses: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    weight_of_token = torch.linspace(-1, 1, len(losses), dtype=losses.dtype)
    return list(torch.autograd.grad((losses * weight_of_token).sum(), leaves))


@pytest.mark.parametrize("chunk", [1, 4, 11, 512])
@pytest.mark.parametrize("with_bias", [True, False])
def test_chunks_give_the_formula(chunk: int, with_bias: bool) -> None:
    *tensors, target = inputs(torch.float32)
    leaves = [x.requires_grad_() for x in tensors[: 3 if with_bias else 2]]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    ours = linear_cross_entropy(leaves[0], leaves[1], target, leaves[2] if with_bias else None, chunk)
    exact = linear_cross_entropy_reference(wide[0], wide[1], target, wide[2] if with_bias else None)
    assert ours.dtype == torch.float32 and ours[3] == 0
    assert float((ours - exact).detach().abs().max()) <= 1e-6 * float(exact.detach().abs().max())
    for one, other in zip(gradients(ours, leaves), gradients(exact, wide), strict=True):
        assert float((one - other).abs().max()) <= 1e-6 * float(other.abs().max())


def test_log_probabilities_by_hand() -> None:
    """Logits (0, log 3): probabilities 1/4 and 3/4; the slope of -log p is p - onehot."""
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(3)]], requires_grad=True)
    for code, probability in ((0, 0.25), (1, 0.75)):
        losses = linear_cross_entropy(hidden, weight, torch.tensor([code]))
        torch.testing.assert_close(losses.exp().reciprocal(), torch.tensor([probability]))
        slope = torch.tensor([0.25 - (code == 0), 0.75 - (code == 1)])
        for_hidden, for_weight = torch.autograd.grad(losses.sum(), [hidden, weight])
        torch.testing.assert_close(for_weight[:, 0], slope)
        torch.testing.assert_close(for_hidden[0, 0], slope[1] * math.log(3))


def test_bfloat16_is_summed_in_float32() -> None:
    hidden, weight, bias, target = inputs(torch.bfloat16, n=300)
    leaves = [hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    ours = linear_cross_entropy(hidden, weight, target, bias, chunk=7)
    assert ours.dtype == torch.float32
    wide = [x.detach().double().requires_grad_() for x in leaves]
    exact = linear_cross_entropy_reference(wide[0], wide[1], target, wide[2])
    torch.testing.assert_close(ours.double(), exact, atol=3e-2, rtol=1e-2)
    for one, other in zip(gradients(ours, leaves), gradients(exact, wide), strict=True):
        assert one.dtype == torch.bfloat16
        assert float((one - other).abs().max()) <= 2.0**-7 * float(other.abs().max())


def test_no_row_and_no_wanted_gradient() -> None:
    hidden, weight, _, target = inputs(torch.float32)
    assert linear_cross_entropy(hidden[:0], weight, target[:0]).shape == (0,)
    losses = linear_cross_entropy(hidden.requires_grad_(), weight, target)
    assert torch.autograd.grad(losses.sum(), [hidden])[0].shape == hidden.shape


def test_only_a_chunk_of_logits_exists_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = F.linear

    def seen(*args: Tensor) -> Tensor:
        logits = plain(*args)
        sizes.append(len(logits))
        return logits

    monkeypatch.setattr(F, "linear", seen)
    hidden, weight, bias, target = inputs(torch.float32, n=10)
    linear_cross_entropy(hidden.requires_grad_(), weight, target, bias, chunk=4).sum().backward()
    assert sizes == [4, 4, 2] * 2
