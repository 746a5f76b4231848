"""Numbers that are not finite are seen in every dtype, without a second tensor of the same size."""

from __future__ import annotations

import pytest
import torch

from srum_ds.common.finite import are_finite, is_finite
from tests.support.memory import TensorBytes

BAD = (float("nan"), float("inf"), float("-inf"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("bad", BAD)
def test_one_bad_number_is_seen(dtype: torch.dtype, bad: float) -> None:
    tensor = torch.full((3, 5), -1e4, dtype=dtype)
    assert is_finite(tensor)
    tensor[1, 2] = bad
    assert not is_finite(tensor)
    assert not is_finite(tensor.T)


def test_what_can_only_be_finite_is() -> None:
    assert is_finite(torch.zeros(0))
    assert is_finite(torch.ones(3, dtype=torch.int64))
    assert is_finite(torch.ones(3, dtype=torch.bool))
    assert is_finite(torch.full((4,), torch.finfo(torch.float32).max))


def test_each_of_several_is_told() -> None:
    whole = torch.full((3, 4), torch.finfo(torch.float32).max)
    assert are_finite([]) == []
    assert are_finite([whole, whole[:, :2], torch.zeros(0), torch.ones(2, dtype=torch.int64)]) == [True] * 4
    for bad in BAD:
        broken = torch.tensor([0.0, bad])
        assert are_finite([whole, broken, torch.zeros(0), whole[0]]) == [True, False, True, True]
        assert are_finite([torch.tensor([complex(bad, 0.0)]), whole]) == [False, True]


def test_looking_takes_no_second_tensor() -> None:
    with TensorBytes() as tensors:
        tensor = torch.ones(1 << 20)
        with tensors.measured(1000) as figures:
            assert is_finite(tensor)
    assert figures.tensor_peak < 1000


def test_floats_of_8_bits_are_looked_at_too() -> None:
    whole = torch.ones(3).to(torch.float8_e5m2)
    assert is_finite(whole) and are_finite([whole, torch.ones(2)]) == [True, True]
    broken = torch.tensor([1.0, float("nan")]).to(torch.float8_e5m2)
    assert not is_finite(broken) and are_finite([broken, torch.ones(2)]) == [False, True]
