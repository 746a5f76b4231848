"""Opening a folder: wrong weights are refused before any memory is given, and a judge alone cannot draw."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from srum_ds.common.errors import UserError
from srum_ds.models import load_model
from srum_ds.models.flow import FlowSampling
from srum_ds.types import Prompt
from tests.support.tiny_models import random_picture, write_tiny_bagel


def test_wrong_weights_are_refused_before_anything_is_sharded(tmp_path: Path) -> None:
    folder = write_tiny_bagel(tmp_path / "model")
    weights = load_file(folder / "ema.safetensors")
    weights["extra"] = weights.pop("llm2vae.bias")
    save_file(weights, folder / "ema.safetensors")

    def materialise(module: nn.Module, stored: Iterable[tuple[str, Tensor]]) -> None:
        raise AssertionError("called")

    with pytest.raises(UserError, match=r"missing: llm2vae\.bias; unexpected: extra"):
        load_model(folder, materialise=materialise)


def test_a_model_that_only_judges_says_that_it_cannot_draw(tmp_path: Path) -> None:
    folder = write_tiny_bagel(tmp_path / "model")
    model = load_model(folder, only_judges=True)
    asked = ([random_picture(28, 28, seed) for seed in (1, 2)], ["yes or no?", "red?"], ("yes", "no"))
    assert torch.equal(model.answer_logprobs(*asked), load_model(folder).answer_logprobs(*asked))
    with pytest.raises(RuntimeError, match="judge only"):
        model.generate([Prompt("a", "a red")], [("a",)], (2, 2), FlowSampling(num_timesteps=2))
