"""The tiny model on a GPU says, draws and learns what it does on the CPU."""

from __future__ import annotations

import pytest
import torch

from srum_ds.common.seeds import SampleKeys
from srum_ds.models import load_model
from srum_ds.models.flow import FlowSampling
from srum_ds.models.protocol import UnifiedModel, ViewSettings
from srum_ds.rollouts.draw import roll_out
from srum_ds.types import Prompt, Samples
from tests.support.paths import MODEL

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")

PROMPTS = [Prompt("a", "a red circle"), Prompt("b", "two green crosses")]
SAMPLING = FlowSampling(num_timesteps=5, text_scale=1.25, interval=(0.0, 1.0))


def on(device: str) -> UnifiedModel:
    return load_model(MODEL, device=device)


def drawn(model: UnifiedModel) -> Samples:
    return roll_out(model, PROMPTS, 2, (64, 64), SAMPLING, seed=0, step=0)


def test_images_and_answers_are_the_cpus() -> None:
    cpu, gpu = (drawn(on(device)) for device in ("cpu", "cuda"))
    assert gpu.tokens.device.type == "cuda"
    torch.testing.assert_close(gpu.tokens.cpu(), cpu.tokens, rtol=0, atol=5e-3)
    questions = [f"does the picture show {prompt.text}?" for prompt in cpu.prompt_of_each()]
    said = [
        on(device).answer_logprobs([image.to(device) for image in cpu.images_NCHW], questions, ("yes", "no")).cpu()
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(said[1], said[0], rtol=0, atol=5e-3)


def test_a_training_pass_has_the_cpus_energy_and_a_finite_gradient() -> None:
    samples = drawn(on("cpu"))
    energies = []
    for device in ("cpu", "cuda"):
        model = on(device)
        for name, parameter in model.module.named_parameters():
            parameter.requires_grad_(name in set(model.trainable("generation")))
        names = tuple((p.name, k) for p, k in zip(samples.prompt_of_each(), samples.sample_N.tolist(), strict=True))
        view = model.views(samples, ViewSettings(2, "uniform", 1.0, 0.5), SampleKeys(0, 0, names))
        inputs = {key: tensor.to(device) for key, tensor in view.inputs.items()}
        view = type(view)(inputs, view.target.to(device), view.counts_NMT.to(device), view.time_NM)
        prediction = model.predict(model.module, samples.prompt_of_each(), view, samples.grid)
        energy = model.matching.energy(prediction.flatten(0, 1), view.target.flatten(0, 1))
        energy.mean().backward()
        gradients = [p.grad for p in model.module.parameters() if p.grad is not None]
        assert gradients and all(bool(gradient.isfinite().all()) for gradient in gradients)
        energies.append(energy.detach().cpu())
    torch.testing.assert_close(energies[1], energies[0], rtol=0, atol=5e-3)
