"""What Janus's work costs by formula, against torch's own counter of FLOPs on the same passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from srum_ds.common.errors import UserError
from srum_ds.common.seeds import SampleKeys
from srum_ds.models import costs_of, load_model
from srum_ds.models.costs import Device
from srum_ds.models.janus import FAMILY
from srum_ds.models.janus.costs import JanusCosts, costs_of_folder
from srum_ds.models.janus.sampling import CodeSampling
from srum_ds.models.protocol import ViewSettings
from srum_ds.rollouts.collect import roll_out
from srum_ds.types import Prompt, Samples
from tests.support.tiny_janus import TinyJanus, write_tiny_janus

PROMPT = Prompt("a", "a red circle above a blue square")
QUESTIONS = ("is there a red circle?", "is there a blue square in it?", "is there a red circle?")
CLOSE = 0.02
SIZES = {
    "small": TinyJanus(),
    "other": TinyJanus(hidden=96, inner=200, layers=3, heads=6, kv_heads=2, per_side=5, codes=150, tied=True),
}


@pytest.fixture(scope="module", params=list(SIZES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_janus(tmp_path_factory.mktemp(request.param) / "model", 0, SIZES[request.param])


def counted(work: Callable[[], Any]) -> float:
    """FLOPs by torch's counter, which knows attention as products alone on a CPU."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def drawn(model: Any, guidance: float = 1.0) -> Samples:
    return roll_out(model, [PROMPT], 2, model.default_size(), CodeSampling(guidance), 0, 0)


def side_of(costs: JanusCosts) -> tuple[int, int]:
    return costs.settings.side, costs.settings.side


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_drawing(folder: Path, guidance: float) -> None:
    model, costs = load_model(folder), costs_of_folder(folder)
    found = counted(lambda: drawn(model, guidance))
    assert costs.draw_flops(PROMPT.text, 2, side_of(costs), CodeSampling(guidance)) == pytest.approx(found, rel=CLOSE)


def test_judging_and_writing(folder: Path) -> None:
    model, costs = load_model(folder), costs_of_folder(folder)
    size = side_of(costs)
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    found = counted(lambda: model.answer_logprobs([image], QUESTIONS, ("yes", "no"), [0, 0, 0]))
    assert costs.answer_flops(size, QUESTIONS) == pytest.approx(found, rel=CLOSE)
    texts = ["a red circle", "green"]
    found = counted(lambda: model.text_logprob([image], texts, None, [0, 0]))
    assert costs.text_flops(size, ["", ""], texts) == pytest.approx(found, rel=CLOSE)
    found = counted(lambda: model.text_logprob([image], texts, QUESTIONS[:2], [0, 0]))
    assert costs.text_flops(size, QUESTIONS[:2], texts) == pytest.approx(found, rel=CLOSE)
    assert costs.answer_flops(size, []) == 0.0
    found = counted(lambda: model.answer([image], QUESTIONS[:1], 4))
    assert costs.write_flops(size, QUESTIONS[0], 4) == pytest.approx(found, rel=CLOSE)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("mode", FAMILY.modes)
def test_training(folder: Path, mode: str, recompute: bool) -> None:
    model, costs = load_model(folder), costs_of_folder(folder)
    samples = drawn(model)
    adapter = model.add_lora(4, 8.0, (), 0).parameters if mode == "lora" else 0
    names = set(model.trainable(mode))
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(name in names)
    model.enable_checkpointing(recompute)
    keys = SampleKeys(0, 0, (("a", 0), ("a", 1)))
    view = model.views(samples, ViewSettings(3, "uniform", 1.0, 0.0), keys)

    def step() -> None:
        model.predict(model.module, [PROMPT] * 2, view, samples.grid).square().sum().backward()

    flops = costs.train_flops([PROMPT.text] * 2, 3, side_of(costs), mode, recompute, adapter)
    assert flops.executed == pytest.approx(counted(step), rel=CLOSE)


def test_parameters_are_those_of_the_module(folder: Path) -> None:
    costs, (facts, _) = costs_of_folder(folder), FAMILY.inspect(folder)
    for mode in FAMILY.modes:
        counts = costs.parameters(mode, 16, ())
        assert counts.frozen_outside == facts["parts"]["vq"]
        assert counts.trained == facts["trainable"][mode]
        assert counts.total == facts["parameters"] + (counts.trained if mode == "lora" else 0)
        assert counts.judging == facts["parameters"]
    with pytest.raises(UserError, match="pixels alone"):
        costs.tokens((8, 8))


def test_the_released_model() -> None:
    """Janus-Pro-7B by its published sizes: 6.9 B of language model, 576 codes, about as many parameters as its name."""
    costs = costs_of("/nowhere", "janus")
    assert isinstance(costs, JanusCosts)
    counts = costs.parameters("transformer")
    # 2 x 102400 x 4096 of embeddings and head, and 30 layers of 4 x 4096^2 + 3 x 4096 x 11008 + 2 x 4096.
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert counts.unit == layer and counts.units == 30
    assert 7.2e9 < counts.total < 7.5e9
    assert costs.tokens((384, 384)) == 576 and costs.token_numbers == 1
    assert costs.draw_passes(CodeSampling()) == 576
    # Two branches of 575 tokens, 2 FLOPs a parameter of the layers, at least; attention and ends on top.
    assert costs.draw_flops("a" * 160, 1, (384, 384), CodeSampling()) > 2 * 575 * 2 * 30 * layer
    assert costs.cache_bytes(1, Device(2)) == 2 * 30 * 4096 * 2
    # A few of the largest arrays, 128 channels of 384 x 384 pixels.
    assert 2 <= costs.decode_bytes(1, (384, 384), Device(2)) / (128 * 384**2 * 2) <= 4
    assert costs.decode_bytes(9, (384, 384), Device(4, cpu=True)) == 2 * costs.decode_bytes(1, (384, 384), Device(2))
