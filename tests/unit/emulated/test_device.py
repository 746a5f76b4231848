"""The emulated device itself: it computes what the CPU does, refuses what a GPU refuses, and counts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint

from srum_ds.models.matching import FlowMatching
from tests.support.emulated import NAME, CurrentDevice, counted


def on_device(*values: float, number: int = 0) -> Tensor:
    return torch.tensor(values, device=f"{NAME}:{number}")


def ones(device: str) -> Tensor:
    return torch.ones(1, 1, 2, 2, device=device)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 9), nn.SiLU(), nn.LayerNorm(9), nn.Linear(9, 2))


def test_tensors_land_where_they_are_told() -> None:
    for made in (torch.zeros(2, device=NAME), torch.arange(3, device=f"{NAME}:0"), torch.randn(2).to(NAME)):
        assert made.device == torch.device(NAME, 0)
    assert torch.ones(2, device=f"{NAME}:3").to(f"{NAME}:1").device.index == 1
    moved = torch.empty_like(on_device(1.0), device="cpu")
    assert moved.device.type == "cpu" and type(moved) is Tensor
    torch.get_device_module(NAME).set_device(2)
    assert torch.zeros(2, device=NAME).device.index == CurrentDevice.index == 2
    with pytest.raises(RuntimeError, match="emulated:4 is none of 4 devices"):
        torch.zeros(1, device=f"{NAME}:4")


@pytest.mark.parametrize(
    "work",
    [
        lambda: on_device(1.0, 2.0) + torch.ones(2),
        lambda: on_device(1.0, 2.0) + on_device(1.0, 2.0, number=1),
        lambda: torch.cat([on_device(1.0), torch.ones(1)]),
        lambda: torch.ones(3)[torch.tensor([1], device=NAME)],
        lambda: on_device(1.0, 2.0).index_put_((torch.tensor([0]),), torch.ones(1)),
        lambda: F.embedding(torch.tensor(1), on_device(1.0, 2.0).view(2, 1)),
        lambda: F.linear(torch.ones(1, 2), on_device(1.0, 2.0).view(1, 2)),
        lambda: F.scaled_dot_product_attention(ones(NAME), ones(NAME), ones(NAME), ones("cpu")[0, 0]),
        lambda: torch.where(on_device(1.0, 0.0) > 0, torch.ones(2), on_device(1.0, 1.0)),
    ],
)
def test_operands_on_two_devices_raise(work: Callable[[], Tensor]) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        work()


def test_single_numbers_and_indices_may_come_from_the_host() -> None:
    x = on_device(1.0, 2.0, 3.0)
    assert (x * torch.tensor(2.0)).tolist() == [2, 4, 6]
    with counted() as counts:
        assert x[torch.tensor([2, 0])].cpu().tolist() == [3, 1]
    assert counts.uploads == 1


def test_a_tensor_of_the_device_is_no_array() -> None:
    for convert in (lambda x: x.numpy(), np.asarray):
        with pytest.raises(TypeError, match=r"emulated:0 to numpy\. Use Tensor\.cpu"):
            convert(on_device(1.0))
    assert on_device(1.5).cpu().numpy() == 1.5


def test_gradients_are_the_cpus_with_and_without_recomputing() -> None:
    cpu = network()
    ids = torch.tensor([[1, 2, 3], [3, 3, 6]])
    cpu(ids).square().sum().backward()
    for recompute in (False, True):
        emulated = copy.deepcopy(cpu).to(NAME)
        emulated.zero_grad()
        assert all(isinstance(p, nn.Parameter) and p.device.type == NAME for p in emulated.parameters())
        out = checkpoint(emulated, ids.to(NAME), use_reentrant=False) if recompute else emulated(ids.to(NAME))
        out.square().sum().backward()
        for one, other in zip(cpu.parameters(), emulated.parameters(), strict=True):
            assert one.grad is not None and other.grad is not None
            torch.testing.assert_close(other.grad.cpu(), one.grad, rtol=1e-6, atol=1e-6)


def test_a_parameters_data_can_be_put_elsewhere() -> None:
    module = network().to(NAME)
    weight = module.get_parameter("1.weight")
    with pytest.raises(TypeError, match="cannot lie on cpu"):
        weight.data = torch.zeros(9, 6)
    weight.data = weight.data.to(torch.bfloat16)
    assert weight.dtype == weight.data.dtype == torch.bfloat16
    weight.data.zero_()
    assert weight.detach().float().abs().sum().item() == 0
    view = weight.data[0]
    view.fill_(2)
    assert weight.detach().cpu()[0].tolist() == [2] * 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_the_cpus_and_is_recorded(dtype: torch.dtype, masked: bool) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, heads, tokens, 8) for heads, tokens in ((4, 5), (2, 7), (2, 7))]
    mask = torch.rand(2, 1, 5, 7) > 0.3 if masked else None
    found = {}
    with counted() as counts:
        for device in ("cpu", NAME):
            q, k, v = (x.detach().to(dtype).to(device).requires_grad_() for x in inputs)
            given = None if mask is None else mask.to(device)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=given, enable_gqa=True)
            out.float().square().sum().backward()
            found[device] = [x.detach().float().cpu() for x in (out, q.grad, k.grad, v.grad) if x is not None]
    exact = dtype == torch.float32
    for one, other in zip(found["cpu"], found[NAME], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5 if exact else 0.05, atol=1e-5 if exact else 0.05)
    (call,) = counts.attention
    assert call.masked == masked and call.query == (2, 4, 5, 8) and call.keys == 7 and call.dtype == dtype


def test_attention_over_sequences_is_that_of_each() -> None:
    # Grouped heads are a setting of torch 2.13 that 2.11 has not.
    grouped: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}
    torch.manual_seed(0)
    shapes = ((7, 4), (9, 2 if grouped else 4), (9, 2 if grouped else 4))
    host = [torch.randn(rows, heads, 8, dtype=torch.bfloat16) for rows, heads in shapes]
    q, k, v = (x.detach().to(NAME).requires_grad_() for x in host)
    ends_q, ends_k = (torch.tensor(ends, dtype=torch.int32, device=NAME) for ends in ([0, 3, 7], [0, 4, 9]))
    with counted() as counts:
        out = varlen_attn(q, k, v, ends_q, ends_k, 4, 5, **grouped)
        assert isinstance(out, Tensor)
        out.float().square().sum().backward()
    assert [call.kernel for call in counts.attention] == ["varlen"] and not counts.attention[0].masked
    # The second sequence alone.
    rows = (slice(3, 7), slice(4, 9), slice(4, 9))
    own = [x[part].transpose(0, 1)[None].float().requires_grad_() for x, part in zip(host, rows, strict=True)]
    alone = F.scaled_dot_product_attention(own[0], own[1], own[2], enable_gqa=True)
    alone.square().sum().backward()
    torch.testing.assert_close(out.detach().cpu()[3:7].float(), alone[0].transpose(0, 1).detach(), rtol=0.02, atol=0.02)
    for ours, its, part in zip((q, k, v), own, rows, strict=True):
        assert ours.grad is not None and its.grad is not None
        torch.testing.assert_close(ours.grad.cpu()[part].float(), its.grad[0].transpose(0, 1), rtol=0.05, atol=0.05)
    with pytest.raises(RuntimeError, match="only supports fp16 and bf16"):
        varlen_attn(q.float(), k.float(), v.float(), ends_q, ends_k, 4, 5, **grouped)


def test_rms_norm_is_one_kernel_forward_and_one_back() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 8), torch.rand(8)
    found = []
    for device in ("cpu", NAME):
        own = [t.detach().to(device).requires_grad_() for t in (x, weight)]
        with counted() as counts:
            out = F.rms_norm(own[0], (8,), own[1], 1e-6)
            out.backward(torch.ones_like(out))
        found.append([t.detach().cpu() for t in (out, own[0].grad, own[1].grad) if t is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one)
    assert counts.kernels["rms_norm"] == counts.kernels["rms_norm_backward"] == 1
    with counted() as counts:
        F.rms_norm(torch.ones(0, 8, device=NAME), (8,)), torch.ones(0, device=NAME) + 1
    assert counts.launches == 0


def test_inference_mode_counts_the_same() -> None:
    asked = []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), counted() as counts:
            q = torch.ones(2, 4, 5, 8).to(NAME)
            normed = F.rms_norm(F.scaled_dot_product_attention(q, q, q), (8,), torch.ones(8, device=NAME), 1e-6)
            F.linear(normed, torch.ones(3, 8, device=NAME)).sum().item()
        assert len(counts.attention) == counts.syncs == 1
        asked.append(counts.kernels)
    assert asked[0] == asked[1]


def test_waits_copies_and_launches_are_counted() -> None:
    x = on_device(3.0, 1.0, 2.0)
    with counted() as counts:
        y = (x * 2).view(3, 1)[1:].squeeze(1)  # one kernel, then views
    assert (counts.launches, counts.syncs, counts.uploads) == (1, 0, 0)
    waiting: list[Callable[[], object]] = [
        lambda: float(y[0]),
        lambda: bool((y > 1).any()),
        lambda: y.tolist(),
        lambda: y.cpu(),
        lambda: y[y > 3],
        lambda: y.nonzero(),
        lambda: torch.zeros(2).copy_(y),
        lambda: torch.repeat_interleave(y, torch.tensor([1, 2], device=NAME)),
        torch.get_device_module(NAME).synchronize,
    ]
    for work in waiting:
        with counted() as counts:
            work()
        assert counts.syncs == 1, counts.kernels
    with counted() as counts:
        y.repeat_interleave(2)
        y.argsort()
        x.masked_fill(x > 1, 0.0)
    assert counts.syncs == 0
    with counted() as counts:
        torch.tensor([1, 2], device=NAME)
        torch.ones(4).to(NAME, non_blocking=True)
        torch.full((4,), 0.5, device=NAME)
    total = counts.total
    assert (total.uploads, total.blocking_uploads, total.upload_bytes) == (2, 1, 2 * 8 + 4 * 4)
    with counted() as counts:
        y.cpu()
        x.expand(5, 3).to("cpu")
    largest = counts.largest_download
    assert largest is not None and largest.shape == (5, 3) and largest.bytes == 60


def test_counts_stand_at_the_line_of_the_package() -> None:
    with counted() as outer:
        with counted() as counts:
            FlowMatching().energy(torch.ones(2, 3, 4, device=NAME), torch.zeros(2, 3, 4, device=NAME))
        torch.zeros(3, device=NAME)
    places = [place for place in counts.by_place() if place.startswith("srum_ds/models/matching.py ")]
    assert places and all(counts.by_place()[place].launches for place in places)
    lines = [line for line in counts.by_line() if line.startswith("srum_ds/models/matching.py:")]
    assert lines and lines[0] in counts.where("launches")
    assert outer.launches == counts.launches + 1
