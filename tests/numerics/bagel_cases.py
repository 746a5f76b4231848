"""How each case of a conformance set is run through the adapter's public functions.

A runner gets a case's settings, its input tensors and the names of the outputs that the set lists. It never
sees an expected value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from srum_ds.config.schema import ObjectiveConfig
from srum_ds.models.bagel.adapter import BagelAdapter
from srum_ds.models.bagel.cache import Cache
from srum_ds.models.bagel.generator import SamplerStep
from srum_ds.models.bagel.latents import unpatchify_latent
from srum_ds.models.bagel.layout import Layout
from srum_ds.models.bagel.sampling import shift_timesteps, time_points
from srum_ds.models.bagel.vision import grid_ids
from srum_ds.models.flow import FlowSampling
from srum_ds.models.matching import FlowMatching
from srum_ds.objectives import Terms, get_objective
from srum_ds.objectives.apply import compute_losses
from srum_ds.rewards.painting import paper_map
from tests.numerics.conformance_set import Case, Outputs, as_uint8, picture, released_regions
from tests.support.bagel_packing import Latents, Packed, Part, Picture, Text, losses, pack, packed_layout

# ---- autoencoder, grids


@torch.no_grad()
def run_vae(model: BagelAdapter, case: Case) -> Outputs:
    image = case.input("image")
    return {
        "moments": model.reader.autoencoder.moments(image),
        "latent_mean": model.reader.autoencoder.encode(image),
        "latent_sample": model.reader.autoencoder.encode(image, case.input("eps")),
        "decoded": model.reader.autoencoder.decode(case.input("z")),
    }


def run_position_ids(model: BagelAdapter, case: Case) -> Outputs:
    outputs: Outputs = {}
    for number, values in case.settings.items():
        grid = (values["img_h"] // values["patch_size"], values["img_w"] // values["patch_size"])
        side = values["max_num_patches_per_side"]
        outputs[f"extrapolate_{number}"] = grid_ids(*grid, side)
        outputs[f"interpolate_{number}"] = grid_ids(*grid, side, interpolate=True)
    return outputs


# ---- understanding


def _read_ids(model: BagelAdapter, ids: Sequence[int], past: Cache) -> Cache:
    """The context of one text, given as ids without bos and eos, after ``past``."""
    return model.module.read_text([model.reader.tokenizer.wrap(list(ids))], past)


def _decode(model: BagelAdapter, case: Case, context: Cache) -> tuple[Outputs, Tensor]:
    steps = max((case.wanted[name][0] for name in ("tokens", "logits") if name in case.wanted), default=1)
    first, cache = model.answerer.decoder.start(context)
    tokens, logits = model.answerer.decoder.decode(first, cache, steps, keep_logits=True)
    assert logits is not None
    return {"tokens": tokens[0], "logits": logits[0]}, first[0]


@torch.no_grad()
def run_und(model: BagelAdapter, case: Case) -> Outputs:
    image = picture(case.input("image_uint8"))
    patches, grid = model.reader.patches([image])[0]
    seen = model.reader.vision_inputs([(patches, grid)])
    assert seen.patches_VD is not None and seen.patch_place_V is not None
    features = model.module.vit_model.vision_model(seen.patches_VD, seen.patch_place_V, list(seen.patch_counts))
    context = _read_ids(model, case.settings["question_ids"], model.reader.read_images([image]))
    outputs, first = _decode(model, case, context)
    outputs |= {
        "next_token_logits": first,
        "vit_patches": patches,
        "vit_position_ids": seen.patch_place_V,
        "vit_features": features,
        "connector_out": model.module.connector(features),
        "last_layer_keys": context.keys_L[-1][0].transpose(0, 1),
        "last_layer_values": context.values_L[-1][0].transpose(0, 1),
    }
    return outputs


@torch.no_grad()
def run_edit_text(model: BagelAdapter, case: Case) -> Outputs:
    image = picture(case.inputs[case.settings["input_image"]])
    resized = model.reader.resized(image)
    # As released, the resized picture goes through the autoencoder's transform once more.
    encoded = model.reader.resized(resized)
    tokens = model.reader.encode(encoded[None])
    grid = model.grid(encoded.shape[1], encoded.shape[2])
    context = _read_ids(model, case.settings["prompt_ids"], model.reader.read_edits([image]))
    outputs, _ = _decode(model, case, context)
    outputs |= {
        "resized_uint8": as_uint8(resized),
        "vae_latent": unpatchify_latent(tokens, grid, model.reader.config.latent_patch_size),
        "vit_patches": model.reader.patches([resized])[0][0],
    }
    return outputs


# ---- drawing


def _sampling(values: Mapping[str, Any]) -> FlowSampling:
    return FlowSampling(
        num_timesteps=values["num_timesteps"],
        timestep_shift=values["timestep_shift"],
        text_scale=values["cfg_text_scale"],
        image_scale=values.get("cfg_img_scale", 1.0),
        interval=tuple(values["cfg_interval"]),
        renorm=values["cfg_renorm_type"],
        renorm_min=values.get("cfg_renorm_min", 0.0),
        renorm_scope="batch",
    )


def _stack(steps: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """[steps, all tokens, channels] of those steps at which a branch was computed."""
    known = [step.reshape(-1, step.shape[-1]) for step in steps if step is not None]
    return torch.stack(known) if known else like.new_zeros(0, *like.shape)


def _drawn(
    model: BagelAdapter, sampling: FlowSampling, grid: tuple[int, int], x: Tensor, v: Sequence[Tensor]
) -> Outputs:
    flat = x.reshape(-1, x.shape[-1])
    return {
        "timesteps": time_points(sampling)[:-1],
        "v": _stack(v, flat),
        "final_latents": flat,
        "latent_grid": unpatchify_latent(x, grid, model.reader.config.latent_patch_size),
        "image": model.generator.decode_unclamped(x, grid),
    }


@torch.no_grad()
def run_t2i(model: BagelAdapter, case: Case) -> Outputs:
    sampling = _sampling(case.settings)
    prompts = case.settings["prompt_ids"]
    grid = model.grid(*case.settings["image_hw"])
    noise = case.input("init_noise")
    ids = [model.reader.tokenizer.wrap(prompt) for prompt in prompts]
    seen = model.generator.contexts(ids)
    trace: list[SamplerStep] = []
    x, v = model.generator.sample(noise.view(len(prompts), grid[0] * grid[1], -1), grid, sampling, seen, trace)
    outputs = _drawn(model, sampling, grid, x, v)
    outputs["v_cond"] = _stack([step.conditional_BTC for step in trace], noise)
    outputs["v_uncond"] = _stack([step.no_text_BTC for step in trace], noise)
    return outputs


@torch.no_grad()
def run_edit_image(model: BagelAdapter, case: Case) -> Outputs:
    sampling = _sampling(case.settings["hyper"])
    image = picture(case.inputs[case.settings["input_image"]])
    grid = model.grid(*model.default_size(image))
    noise = case.input("init_noise")
    seen = model.generator.contexts([model.reader.tokenizer.wrap(case.settings["prompt_ids"])], [image])
    trace: list[SamplerStep] = []
    x, v = model.generator.sample(noise[None], grid, sampling, seen, trace)
    outputs = _drawn(model, sampling, grid, x, v)
    outputs["v_cond"] = _stack([step.conditional_BTC for step in trace], noise)
    outputs["v_cfg_text"] = _stack([step.no_text_BTC for step in trace], noise)
    without_image = [step.no_image_BTC for step in trace]
    if sampling.text_scale <= 1 < sampling.image_scale and seen.no_image is not None:
        # Released: this branch is computed, and not used, where only the image scale is above 1.
        low, high = torch.tensor(sampling.interval).tolist()
        without_image = [
            model.module.velocity(step.x_BTC, torch.tensor([step.time]), grid, seen.no_image)
            if low < step.time <= high
            else None
            for step in trace
        ]
    outputs["v_cfg_img"] = _stack(without_image, noise)
    outputs["image_uint8"] = as_uint8(model.generator.decode(x, grid)[0])
    return outputs


# ---- training


def _vision_parts(model: BagelAdapter, case: Case) -> list[Picture]:
    """The pictures of a training case.

    The set does not name their sources: they are the understanding cases' pictures, found by the number
    of patches; ``edit`` cases take the second of equals, as documented for the mixed and the edit case.
    """
    if f"{case.name}/vit_token_seqlens" not in case.inputs:
        return []
    pictures = []
    for key in sorted(key for key in case.inputs if re.fullmatch(r"und_\d+/image_uint8", key)):
        pictures.append(Picture(*model.reader.patches([picture(case.inputs[key])])[0]))
    if "edit" in case.name:
        pictures = pictures[1:] + pictures[:1]
    chosen: list[Picture] = []
    for count in case.input("vit_token_seqlens").tolist():
        fitting = [p for p in pictures if len(p.patches_ND) == count]
        if not fitting:
            raise LookupError(f"no picture of the set has {count} patches")
        # Each picture once before any of them again.
        fresh = [p for p in fitting if not any(p is c for c in chosen)]
        chosen.append((fresh or fitting)[0])
    return chosen


def _samples(model: BagelAdapter, case: Case) -> list[list[Part]]:
    pictures = iter(_vision_parts(model, case))
    patch = model.reader.config.latent_patch_size
    latent_number = 0
    samples: list[list[Part]] = []
    for plan, texts in zip(case.settings["plan"], case.settings["prompt_ids"], strict=True):
        ids = iter(texts)
        parts: list[Part] = []
        for kind, loss in plan:
            if kind == "text":
                parts.append(Text(tuple(next(ids)), bool(loss)))
            elif kind == "vit_image":
                parts.append(next(pictures))
            else:
                latent = case.input(f"latent_{latent_number}")
                parts.append(_latents(latent, patch, bool(loss)))
                latent_number += 1
        samples.append(parts)
    return samples


def _latents(latent_CHW: Tensor, patch: int, noised: bool) -> Latents:
    channels, height, width = latent_CHW.shape
    grid = (height // patch, width // patch)
    cut = latent_CHW.reshape(channels, grid[0], patch, grid[1], patch)
    return Latents(cut.permute(1, 3, 2, 4, 0).reshape(grid[0] * grid[1], -1), grid, noised)


def _times(model: BagelAdapter, case: Case, packed: Packed) -> Tensor:
    if not len(packed["latents_GC"]):
        return torch.zeros(0)
    shift = case.settings.get("model_timestep_shift", model.reader.config.timestep_shift)
    return shift_timesteps(torch.sigmoid(case.input("timestep_logits")), shift)


def _masks(layout: Layout, packed: Packed) -> Outputs:
    lengths = layout.valid_BS.sum(dim=1).tolist()
    return {
        f"attention_allowed_{row}": layout.allowed_BQK[row, :n, :n].to(torch.uint8) for row, n in enumerate(lengths)
    }


def _gradients(model: BagelAdapter, names: Sequence[str], loss: Tensor) -> dict[str, Tensor]:
    """Gradients of a loss; zero where a parameter has no part in it. ``requires_grad`` ends as it was."""
    parameters = dict(model.module.named_parameters())
    found = torch.autograd.grad(loss, [parameters[name] for name in names], allow_unused=True)
    return {
        name: torch.zeros_like(parameters[name]) if gradient is None else gradient
        for name, gradient in zip(names, found, strict=True)
    }


class _Training:
    """Lets the named parameters require gradients inside a ``with`` block."""

    def __init__(self, model: BagelAdapter, names: Sequence[str]) -> None:
        parameters = dict(model.module.named_parameters())
        self.chosen = [parameters[name] for name in names]

    def __enter__(self) -> None:
        for parameter in self.chosen:
            parameter.requires_grad_(True)

    def __exit__(self, *error: object) -> None:
        for parameter in self.chosen:
            parameter.requires_grad_(False)


def run_train(model: BagelAdapter, case: Case) -> Outputs:
    packed = pack(_samples(model, case), model)
    normed = list(case.settings.get("grad_norm_names", []))
    single = [name.removeprefix("grad.") for name in case.wanted if name.startswith("grad.")]
    names = list(dict.fromkeys([*normed, *single]))
    with _Training(model, names):
        # A batch that only looks has no latent tokens, and no noise.
        clean_GC = packed["latents_GC"]
        noise_GC = case.input("noise") if len(clean_GC) else torch.zeros_like(clean_GC)
        out = losses(model.module, packed, noise_GC, _times(model, case, packed))
        error_M = out["squared_error_M"]
        mse = error_M.mean() if len(error_M) else error_M.sum()
        ce_L = out["cross_entropy_L"]
        ce = ce_L.mean() if len(ce_L) else ce_L.sum()
        loss = mse + ce
        gradients = _gradients(model, names, loss) if names else {}
    outputs: Outputs = {
        "timesteps": out["time_G"],
        "clean_tokens": packed["latents_GC"],
        "x_t": out["noisy_GC"],
        "latent_position_ids": packed["latent_place_G"],
        "vit_position_ids": packed["patch_place_V"],
        "v_pred": out["velocity_MC"],
        "mse_per_token": error_M,
        "mse": mse,
        "logits": out["logits_LV"],
        "ce_per_token": ce_L,
        "ce": ce,
    }
    outputs |= _masks(packed_layout(packed), packed)
    outputs |= {f"grad.{name}": gradients[name] for name in single}
    if normed:
        outputs["grad_norms"] = torch.stack([gradients[name].norm() for name in normed])
    return outputs


# ---- the paper's reward


def run_srum(model: BagelAdapter, case: Case) -> Outputs:
    settings = case.settings
    height, width = settings["image_hw"]
    patch = model.reader.config.latent_patch_size
    bad, good = case.input("bad_latents"), case.input("good_latents")
    noise = case.input("noise")
    samples: list[list[Part]] = [
        [Text(tuple(ids)), _latents(latent, patch, True)]
        for ids, latent in zip(settings["prompt_ids"], bad, strict=True)
    ]
    packed = pack(samples, model)
    good_MC = torch.cat([_latents(latent, patch, True).tokens_TC for latent in good])
    target_bad, target_gt = noise - packed["latents_GC"], noise - good_MC

    owner: list[int] = []
    boxes: list[list[int]] = []
    scores: list[float] = []
    for number in range(len(bad)):
        found, values = released_regions(settings[f"rewards_{number}"])
        owner += [number] * len(found)
        boxes += found
        scores += values
    sides = torch.tensor([width, height, width, height], dtype=torch.float64)
    pixels_NHW, tokens_Nhw = paper_map(
        torch.tensor(owner, dtype=torch.int64),
        torch.tensor(boxes, dtype=torch.float64).view(-1, 4) / sides,
        torch.tensor(scores),
        torch.tensor([float(settings.get(f"global_score_{n}") or 0.0) for n in range(len(bad))]),
        (height, width),
        (bad.shape[2] // patch, bad.shape[3] // patch),
    )
    weights_M = tokens_Nhw.flatten()
    strength = settings["lambda_constraint"]
    matching = FlowMatching()
    outputs: Outputs = {
        "reward_map": pixels_NHW,
        "token_rewards": weights_M,
        "target_bad": target_bad,
        "target_gt": target_gt,
    }
    bias = "llm2vae.bias"
    with _Training(model, [bias]):
        out = losses(model.module, packed, noise, _times(model, case, packed))
        v = out["velocity_MC"][None]
        outputs["velocity"] = v[0]
        weighted = get_objective("weighted")
        terms = Terms(matching, v, target_bad[None], weights_M[None])
        for prefix, reference in (("", target_gt), ("same_", target_bad)):
            reward = compute_losses(weighted, terms, ObjectiveConfig(constraint="none")).mean()
            constraint = matching.energy(v, reference[None]).mean()
            anchored = ObjectiveConfig(constraint="target", constraint_weight=strength)
            loss = compute_losses(weighted, terms, anchored, constraint_target=reference[None]).mean()
            outputs[f"{prefix}loss_reward"] = reward
            outputs[f"{prefix}loss_constraint"] = constraint
            outputs[f"{prefix}loss"] = loss
            (outputs[f"{prefix}grad_llm2vae_bias"],) = torch.autograd.grad(
                loss, [model.module.llm2vae.bias], retain_graph=True
            )
        plain = ObjectiveConfig(constraint="none")
        loss = compute_losses(get_objective("sft"), Terms(matching, v, target_gt[None]), plain).mean()
        outputs["nomap_loss"] = loss
        (outputs["nomap_grad_llm2vae_bias"],) = torch.autograd.grad(loss, [model.module.llm2vae.bias])
    return outputs


RUNNERS: dict[str, Callable[[BagelAdapter, Case], Outputs]] = {
    "vae": run_vae,
    "position_ids": run_position_ids,
    "und": run_und,
    "edit_text": run_edit_text,
    "edit_image": run_edit_image,
    "t2i": run_t2i,
    "train": run_train,
    "srum": run_srum,
}
