"""The contract's checks: BAGEL keeps every promise, and an adapter that breaks one is found out by the right check."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.seeds import Key
from srum_ds.models.bagel import FAMILY
from srum_ds.models.bagel.adapter import BagelAdapter, load_bagel
from srum_ds.models.contract import check_adapter, check_family
from srum_ds.models.contract.drawing import cell_shares
from srum_ds.models.flow import FlowSampling
from srum_ds.models.protocol import Forward
from srum_ds.types import Prompt, TrainView
from tests.support.tiny_models import write_tiny_bagel

SAMPLING = FlowSampling(num_timesteps=3, text_scale=2.0)
LATE = "language_model.model.layers.0.self_attn.k_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bagel(tmp_path_factory.mktemp("bagel"))


def test_bagel_keeps_every_promise(folder: Path) -> None:
    checks = check_adapter("auto", folder, SAMPLING)
    assert [(check.name, check.detail) for check in checks if not check.ok] == []
    assert len(checks) == len({check.name for check in checks}) == 11 + 4 * len(FAMILY.modes)
    assert all(check.detail for check in checks)


def test_a_folder_of_no_design_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no known design"):
        check_adapter("auto", tmp_path)
    with pytest.raises(UserError, match="no such design"):
        check_adapter("bagle", tmp_path)


# ---- adapters that break a promise


class NoiseByPlace(BagelAdapter):
    """Draws the noise of an image by its place in the batch."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        keys: Sequence[Key],
        grid: tuple[int, int],
        sampling: FlowSampling,
        edits: Sequence[Tensor] | None = None,
        plans: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        placed: list[Key] = [(*key, place) for place, key in enumerate(keys)]
        return super().generate(prompts, placed, grid, sampling, edits, plans)


class TrainsTheJudge(BagelAdapter):
    """Trains a layer that also judges in mode ``generation``, and says that it does not matter."""

    def trainable(self, mode: str) -> list[str]:
        return [*super().trainable(mode), *([LATE] if mode == "generation" else [])]


class ForgetsATensor(BagelAdapter):
    """Exports all trained tensors but one."""

    def export(
        self,
        folder: Path,
        names: Iterable[str],
        tensors: Iterable[tuple[str, Tensor | None]],
        dtype: torch.dtype | None = None,
    ) -> None:
        forgotten = "llm2vae.weight"
        kept = ((name, tensor) for name, tensor in tensors if name != forgotten)
        super().export(folder, [name for name in names if name != forgotten], kept, dtype)


class HalfAGradient(BagelAdapter):
    """Predicts rightly, with half the gradient."""

    def predict(self, forward: Forward, prompts: Sequence[Prompt], view: TrainView, grid: tuple[int, int]) -> Tensor:
        velocity = super().predict(forward, prompts, view, grid)
        return 0.5 * velocity + 0.5 * velocity.detach()


class Transposed(BagelAdapter):
    """Takes rows for columns."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = super().grid(height, width)
        return columns, rows


class AcceptsAnything(BagelAdapter):
    """Lets an empty prompt pass, and cannot say how likely a text is."""

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        pass

    def text_logprob(self, *_: Any, **__: Any) -> Tensor:
        raise NotImplementedError("not yet")


def failed(folder: Path, broken: type[BagelAdapter], modes: tuple[str, ...] = ("generation",)) -> dict[str, str]:
    """The checks that fail for an adapter: name to detail."""

    def load(path: Path, *options: Any) -> BagelAdapter:
        model = load_bagel(path, *options)
        model.__class__ = broken
        return model

    family = dataclasses.replace(FAMILY, load=load, modes=modes)
    return {check.name: check.detail for check in check_family(family, folder, SAMPLING) if not check.ok}


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (NoiseByPlace, {"the same image in any batch": "image 1 alone"}),
        (TrainsTheJudge, {"mode generation: the judge changes where it is said to": "judge_unchanged_by"}),
        (ForgetsATensor, {"mode generation: what is exported is what is loaded": "loaded again, its images differ"}),
        (HalfAGradient, {"mode generation: the gradient is the energy's slope": "along the gradient"}),
        (Transposed, {"a box in the corner weighs the corner's tokens": r"half the width has a grid of (2, 4)"}),
    ],
)
def test_a_broken_promise_is_found_and_no_other(
    folder: Path, broken: type[BagelAdapter], expected: dict[str, str]
) -> None:
    found = failed(folder, broken)
    assert found.keys() == expected.keys(), found
    for name, words in expected.items():
        assert words in found[name]


def test_what_an_adapter_raises_is_a_failed_check_and_does_not_stop_the_others(folder: Path) -> None:
    found = failed(folder, AcceptsAnything, modes=("transformer",))
    assert found["wrong input is refused"] == "an empty prompt is accepted; expected a UserError"
    assert found["answers have their shapes"] == "NotImplementedError: not yet"
    assert "the same image in any batch" not in found


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.0, 0.0, 0.25, 0.5), [[1, 0, 0, 0], [0, 0, 0, 0]]),
        ((0.125, 0.0, 0.5, 0.75), [[0.5, 1, 0, 0], [0.25, 0.5, 0, 0]]),
        ((0.0, 0.0, 1.0, 1.0), [[1, 1, 1, 1], [1, 1, 1, 1]]),
    ],
)
def test_cell_shares_by_hand(box: tuple[float, float, float, float], expected: list[list[float]]) -> None:
    torch.testing.assert_close(cell_shares(box, (2, 4)), torch.tensor(expected, dtype=torch.float32))
