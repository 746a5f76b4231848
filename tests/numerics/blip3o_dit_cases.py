"""How each case of a BLIP3-o conformance set (its diffusion transformer alone) is run through public functions.

A runner gets a case's settings, its input tensors and the names of the outputs that the set lists. It never
sees an expected value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srum_ds.models.blip3o.denoiser import Denoiser, denoiser_key, load_denoiser
from srum_ds.models.blip3o.drawing import DrawingStep, draw_features, velocity
from srum_ds.models.blip3o.sampling import noise_levels, passed_timesteps, to_map, to_tokens
from srum_ds.models.blip3o.settings import TIME_SCALE
from srum_ds.models.matching import FlowMatching
from tests.numerics.conformance_set import Case, ConformanceDesign, Outputs


def is_blip3o_dit(checkpoint: Path) -> bool:
    path = checkpoint / "config.json"
    return path.is_file() and json.loads(path.read_text()).get("model_type") == "nextdit-crossattn"


def load_set(checkpoint: Path, settings: Mapping[str, Any]) -> Denoiser:
    return load_denoiser(checkpoint)


def run_train(denoiser: Denoiser, case: Case) -> Outputs:
    x0, noise, timestep, z = (case.input(name) for name in ("x0", "noise", "timestep", "condition"))
    grid = (int(x0.shape[-2]), int(x0.shape[-1]))
    s = (timestep / TIME_SCALE)[:, None, None, None]
    x_t = to_tokens((1 - s) * x0 + s * noise)
    denoiser.requires_grad_(True)
    try:
        v_BTC = velocity(denoiser, x_t, timestep, z, grid)
        error_BT = FlowMatching().energy(v_BTC, to_tokens(noise - x0))
        loss = (case.input("weights") * error_BT).mean()
        loss.backward()
        found = {denoiser_key(name): parameter.grad for name, parameter in denoiser.named_parameters()}
    finally:
        denoiser.zero_grad()
        denoiser.requires_grad_(False)
    outputs: Outputs = {"v": to_map(v_BTC, grid), "squared_error": error_BT, "loss": loss}
    norms = []
    for name in case.settings["grad_norm_names"]:
        gradient = found[name]
        norms.append(float("nan") if gradient is None else float(gradient.double().norm()))
    outputs |= {f"grad.{name}": gradient for name, gradient in found.items() if gradient is not None}
    return outputs | {"grad_norms": torch.tensor(norms)}


@torch.no_grad()
def run_draw(denoiser: Denoiser, case: Case) -> Outputs:
    noise, z = case.input("noise"), case.input("condition")
    grid = (int(noise.shape[-2]), int(noise.shape[-1]))
    sigmas = noise_levels(case.settings["steps"])
    trace: list[DrawingStep] = []
    tokens = draw_features(denoiser, to_tokens(noise), z, grid, sigmas, case.settings["guidance"], trace)

    def both(step: DrawingStep) -> Tensor:
        empty_BTC = step.empty_BTC
        if empty_BTC is None:
            passed_B = torch.full((len(z),), step.timestep)
            empty_BTC = velocity(denoiser, step.x_BTC, passed_B, torch.zeros_like(z), grid)
        return torch.stack([to_map(step.conditional_BTC, grid), to_map(empty_BTC, grid)])

    return {
        "sigmas": sigmas,
        "timesteps_passed": passed_timesteps(sigmas),
        "v_conditional_and_empty": torch.stack([both(step) for step in trace]),
        "features": to_map(tokens, grid),
    }


def problems(denoiser: Denoiser, settings: Mapping[str, Any]) -> list[str]:
    """A set of the transformer alone has no tokenizer: nothing can differ."""
    return []


DESIGN = ConformanceDesign(
    name="blip3o_dit",
    matches=is_blip3o_dit,
    load=load_set,
    inputs={"train": r"x0|noise|timestep|x_t|condition|weights", "draw": r"noise|condition"},
    runners={"train": run_train, "draw": run_draw},
    problems=problems,
)
