"""The tiny model with every fused kernel in use draws, answers and learns what it does without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from srum_ds.common.seeds import SampleKeys
from srum_ds.config.schema import ObjectiveConfig
from srum_ds.kernels.dispatch import active
from srum_ds.kernels.selfcheck import MODULES, check_kernels
from srum_ds.models import load_model
from srum_ds.models.flow import FlowSampling
from srum_ds.models.protocol import UnifiedModel, ViewSettings
from srum_ds.objectives import get_objective
from srum_ds.objectives.apply import compute_losses
from srum_ds.objectives.registry import Terms
from srum_ds.rollouts.collect import roll_out
from srum_ds.types import Prompt, Samples
from tests.support.paths import MODEL

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
PROMPTS = [Prompt("a", "a red circle"), Prompt("b", "two green crosses and a blue square")]
CALLS: Counter[str] = Counter()


@pytest.fixture(scope="module")
def kernels() -> dict[str, Callable[..., Any]]:
    def counting(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            CALLS[name] += 1
            return kernel(*args)

        return run

    return {name: counting(name, kernel) for name, kernel in check_kernels(DEVICE).works.items()}


@pytest.fixture(scope="module")
def model() -> UnifiedModel:
    return load_model(MODEL, device=DEVICE)


@contextmanager
def using(kernels: dict[str, Callable[..., Any]]) -> Iterator[None]:
    CALLS.clear()
    with active(kernels, DEVICE):
        yield


def drawn(model: UnifiedModel) -> Samples:
    sampling = FlowSampling(num_timesteps=3, text_scale=1.25, interval=(0.0, 1.0))
    return roll_out(model, PROMPTS, 1, (32, 32), sampling, seed=0, step=0)


def losses_and_slopes(model: UnifiedModel, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
    names = tuple((p.name, k) for p, k in zip(samples.prompt_of_each(), samples.sample_N.tolist(), strict=True))
    view = model.views(samples, ViewSettings(2, "uniform", 1.0, 0.5), SampleKeys(0, 0, names))
    trained = set(model.trainable("transformer"))
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(name in trained)
        parameter.grad = None
    prediction = model.predict(model.module, samples.prompt_of_each(), view, samples.grid).flatten(0, 1)
    old, target = 0.9 * prediction.detach(), view.target.flatten(0, 1)
    assert view.time_NM is not None
    weights_BT = torch.linspace(-1, 1, target.shape[0] * target.shape[1], device=DEVICE).view(target.shape[:2])
    terms = Terms(model.matching, prediction, target, weights_BT, old, old, time_B=view.time_NM.flatten())
    losses_BT = compute_losses(get_objective("nft"), terms, ObjectiveConfig())
    losses_BT.sum().backward()
    slopes = {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}
    return losses_BT.detach(), slopes


def assert_near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1e-3, float(other.abs().max())))


def test_it_draws_and_answers_the_same(model: UnifiedModel, kernels: dict[str, Callable[..., Any]]) -> None:
    plain = drawn(model)
    images = list(plain.images_NCHW.float() / 255)
    questions = [f"does the picture show {prompt.text}?" for prompt in plain.prompt_of_each()]
    said = model.answer_logprobs(images, questions, ("yes", "no"))
    with using(kernels):
        ours = drawn(model)
        assert {"rms_norm", "add_rms_norm", "qk_norm_rotary", "swiglu"} <= CALLS.keys()
        assert_near(ours.tokens, plain.tokens)
        assert_near(model.answer_logprobs(images, questions, ("yes", "no")), said)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_learns_the_same(model: UnifiedModel, kernels: dict[str, Callable[..., Any]], checkpointing: bool) -> None:
    samples = drawn(model)
    model.enable_checkpointing(checkpointing)
    plain_losses, plain = losses_and_slopes(model, samples)
    with using(kernels):
        losses, slopes = losses_and_slopes(model, samples)
    assert CALLS.keys() == set(MODULES)
    assert_near(losses, plain_losses)
    # The same parameters have a gradient, or ranks would reduce different ones.
    assert slopes.keys() == plain.keys() and len(plain) > 50
    for name, slope in plain.items():
        assert_near(slopes[name], slope)
