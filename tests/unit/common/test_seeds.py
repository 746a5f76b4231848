"""Seeds and noise depend on names and numbers alone."""

from __future__ import annotations

import pytest
import torch

from srum_ds.common.seeds import derive, generator, normal, uniform


def test_seeds_are_the_same_on_every_machine() -> None:
    # SHA-256 of '[7,"rollout","red-circle",0]', first 8 bytes, halved: worked out with sha256sum.
    assert derive(7, "rollout", "red-circle", 0) == 3565269550543321728
    assert 0 <= derive("x") < 2**63


def test_different_parts_give_different_seeds() -> None:
    names = [("",), ("1",), ("ab", "c"), ("a", "bc"), ("a,b",), ("a", "b"), ('"',)]
    numbers: list[tuple[int, ...]] = [(), (1,), (-1,), (1, 0), (10,)]
    seeds = {derive(*name) for name in names} | {derive(*number) for number in numbers}
    assert len(seeds) == len(names) + len(numbers)


@pytest.mark.parametrize("part", [1.0, None, True, b"x", ("a",)])
def test_a_part_that_is_neither_name_nor_number_is_refused(part: object) -> None:
    with pytest.raises(TypeError, match="ints and strings"):
        derive("a", part)  # type: ignore[arg-type]


def test_noise_does_not_depend_on_what_was_drawn_before() -> None:
    first = normal((16, 64), 3, "rollout", "p1", 0)
    torch.manual_seed(123)
    torch.randn(7)
    batch = torch.stack([normal((16, 64), 3, "rollout", name, 0) for name in ("p2", "p1")])
    assert torch.equal(batch[1], first)
    assert not torch.equal(batch[0], first)
    assert first.dtype == torch.float32 and first.device.type == "cpu"


def test_noise_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.randn(4)
    torch.manual_seed(5)
    normal((1000,), "a")
    uniform((1000,), "a")
    assert torch.equal(torch.randn(4), expected)


def test_noise_is_standard_normal_and_uniform_is_uniform() -> None:
    x = normal((200_000,), "statistics")
    assert abs(x.mean().item()) < 0.01
    assert abs(x.std().item() - 1.0) < 0.01
    u = uniform((200_000,), "statistics")
    assert u.min().item() >= 0.0 and u.max().item() < 1.0
    assert abs(u.mean().item() - 0.5) < 0.005
    assert torch.equal(uniform((3,), 1), torch.rand(3, generator=generator(1)))
