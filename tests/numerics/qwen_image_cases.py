"""How each case of a Qwen-Image conformance set is run through the public functions of its adapter.

A runner gets a case's settings, its input tensors and the names of the outputs that the set lists. It never
sees an expected value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srum_ds.models.qwen_vl.pictures import PictureReader
from srum_ds.models.vlm_dit.adapter import VlmDitAdapter, load_vlm_dit
from srum_ds.models.vlm_dit.generator import SamplerStep
from srum_ds.models.vlm_dit.sampling import PipelineSampling
from srum_ds.types import Prompt, TrainView
from tests.numerics.conformance_set import OPEN, Case, ConformanceDesign, Outputs, open_levels, picture

ENCODED = 1e-4
"""How far encoded latents may lie from the recorded ones."""


@dataclass
class QwenImageSet:
    """A set's model, and the settings of all its cases: the texts and the size stand in some of them."""

    model: VlmDitAdapter
    settings: Mapping[str, Any]

    @property
    def prompts(self) -> list[str]:
        return list(self.settings["prompts"]["prompts"])

    @property
    def grid(self) -> tuple[int, int]:
        drawn = self.settings["draw_guided"]
        return self.model.grid(drawn["height"], drawn["width"])


def load_set(checkpoint: Path, settings: Mapping[str, Any]) -> QwenImageSet:
    """The set's checkpoint with the image processor that the set was made with, which no file of it names."""
    model = load_vlm_dit(checkpoint)
    config = model.answerer.module.config.vision_config
    model.answerer.pictures = PictureReader(config, settings.get("looking_settings"))
    return QwenImageSet(model, settings)


def is_qwen_image(checkpoint: Path) -> bool:
    index = checkpoint / "model_index.json"
    return index.is_file() and json.loads(index.read_text()).get("_class_name") == "QwenImagePipeline"


# ---- drawing


@torch.no_grad()
def run_prompts(data: QwenImageSet, case: Case) -> Outputs:
    generator = data.model.generator
    ids, mask = generator.dry.prompt_ids(data.prompts)
    (embedded,) = data.model.module.conditions(data.prompts, data.grid)
    (empty,) = data.model.module.conditions([""], data.grid)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "embeddings": embedded["encoder_hidden_states"],
        "empty_embeddings": empty["encoder_hidden_states"],
    }


def _drawn(
    data: QwenImageSet, noise: Tensor, sampling: PipelineSampling, texts: Sequence[str]
) -> tuple[Tensor, list[SamplerStep]]:
    trace: list[SamplerStep] = []
    tokens = data.model.generator.sample(noise, data.grid, sampling, texts, trace)
    return tokens, trace


@torch.no_grad()
def run_draw_guided(data: QwenImageSet, case: Case) -> Outputs:
    sampling = PipelineSampling(case.settings["num_inference_steps"] + 1, case.settings["true_cfg_scale"])
    tokens, trace = _drawn(data, case.input("noise"), sampling, data.prompts)
    generator = data.model.generator
    decoded = generator.decode_unclamped(tokens, data.grid)
    outputs = {
        "sigmas": generator.dry.sigmas(sampling.steps, data.grid),
        "timestep_input": torch.stack([step.time_input_B for step in trace]),
        "v_conditional": torch.stack([step.conditional_BTC for step in trace]),
        "v_guided": torch.stack([step.guided_BTC for step in trace]),
        "latents": tokens,
        "picture": (decoded / 2 + 0.5).clamp(0, 1),
        "picture_uint8": (generator.decode(tokens, data.grid) * 255).round().to(torch.uint8),
        "picture_uint8" + OPEN: open_levels((decoded / 2 + 0.5) * 255, 0.5),
    }
    empty = [step.empty_BTC for step in trace if step.empty_BTC is not None]
    if empty:
        outputs["v_empty"] = torch.stack(empty)
    return outputs


@torch.no_grad()
def run_draw_unguided(data: QwenImageSet, case: Case) -> Outputs:
    steps = data.settings["draw_guided"]["num_inference_steps"]
    noise = case.input("noise")
    tokens, trace = _drawn(data, noise, PipelineSampling(steps + 1, 1.0), data.prompts[: len(noise)])
    return {"latents": tokens, "v": torch.stack([step.conditional_BTC for step in trace])}


@torch.no_grad()
def run_autoencoder(data: QwenImageSet, case: Case) -> Outputs:
    """Decodes the latents, and finds the picture to be theirs.

    The sets list picture_uint8 among the outputs, and it is what the latents were encoded from: it is given, and counts
    as computed where encoding it gives the recorded latents.
    """
    latents, given = case.input("packed_latents"), case.input("picture_uint8")
    outputs: Outputs = {"decoded_unclamped": data.model.generator.decode_unclamped(latents, data.grid)}
    if float((encoded(data.model, given) - latents).abs().max()) < ENCODED:
        outputs["picture_uint8"] = given
    return outputs


@torch.no_grad()
def encoded(model: VlmDitAdapter, picture_3HW: Tensor) -> Tensor:
    """Packed latents [1, T, C] of an 8-bit picture: the posterior's mode, normalised, in patches of 2 x 2.

    The adapter itself never encodes: training keeps the latents that were drawn.
    """
    vae = model.generator.dry.decoder.vae
    pixels = picture_3HW.float()[None, :, None] / 255 * 2 - 1
    mode = vae.encode(pixels).latent_dist.mode()[:, :, 0]
    shape = (1, -1, 1, 1)
    mean, std = (torch.tensor(numbers).view(shape) for numbers in (vae.config.latents_mean, vae.config.latents_std))
    latents = (mode - mean) / std
    _, channels, height, width = latents.shape
    cut = latents.view(1, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(1, height * width // 4, channels * 4)


# ---- training


def run_train(data: QwenImageSet, case: Case) -> Outputs:
    """Every row is one view of an image of its own; a row without a prompt has its prompt dropped."""
    x0, noise, t = case.input("x0"), case.input("noise"), case.input("t")
    given = case.settings["prompt_of_row"]
    prompts = [Prompt(str(row), data.prompts[number or 0]) for row, number in enumerate(given)]
    target = (noise - x0)[:, None]
    inputs = {
        "x_NMTC": ((1 - t)[:, None, None] * x0 + t[:, None, None] * noise)[:, None],
        "time_NM": t[:, None],
        "dropped_NM": torch.tensor([[number is None] for number in given]),
    }
    counts = torch.ones(target.shape[:3], dtype=torch.bool)
    model = data.model
    transformer = model.module.transformer.requires_grad_(True)
    try:
        view = TrainView(inputs, target, counts, t[:, None])
        v_BTC = model.predict(model.module, prompts, view, data.grid)[:, 0]
        error_BT = model.matching.energy(v_BTC, target[:, 0])
        loss = (case.input("weights") * error_BT).sum() / error_BT.numel()
        loss.backward()
        found = {name: parameter.grad for name, parameter in transformer.named_parameters()}
    finally:
        transformer.zero_grad()
        transformer.requires_grad_(False)
    outputs: Outputs = {"v": v_BTC.detach(), "squared_error": error_BT.detach(), "loss": loss.detach()}
    norms = []
    for name in case.settings["grad_norm_names"]:
        gradient = found[name]
        norms.append(float("nan") if gradient is None else float(gradient.double().norm()))
        if gradient is not None:
            outputs[f"grad.{name}"] = gradient
    return outputs | {"grad_norms": torch.tensor(norms)}


# ---- looking


def _images(case: Case) -> list[Tensor]:
    count = sum(1 for key in case.inputs if re.fullmatch(r"picture_\d+/image_uint8", key))
    return [picture(case.inputs[f"picture_{number}/image_uint8"]) for number in range(count)]


def _padded(rows: Sequence[Sequence[int]], pad: int, left: bool) -> Tensor:
    longest = max(map(len, rows))
    gaps = [[pad] * (longest - len(row)) for row in rows]
    return torch.tensor([[*gap, *row] if left else [*row, *gap] for row, gap in zip(rows, gaps, strict=True)])


@torch.no_grad()
def run_picture(data: QwenImageSet, case: Case) -> Outputs:
    read = data.model.answerer.pictures.read([picture(case.input("image_uint8"))])[0]
    return {"pixel_values": read.patches_VD, "image_grid_thw": torch.tensor([read.grid])}


@torch.no_grad()
def run_look(data: QwenImageSet, case: Case) -> Outputs:
    answerer, images = data.model.answerer, _images(case)
    questions, shown = case.settings["questions"], case.settings["picture_of"]
    ids = [answerer.question_ids(images[image], question) for image, question in zip(shown, questions, strict=True)]
    outputs = {
        "input_ids": _padded(ids, answerer.chat.pad, left=True),
        "next_logprobs": answerer.next_logprobs(images, questions, shown),
        "answer_logprobs": _first_logprobs(data.model, images, questions, case.settings["answers"], shown),
    }
    if "greedy_tokens" in case.wanted:
        length = case.wanted["greedy_tokens"][1]
        written = answerer.answer_tokens(images, questions, length, shown, with_end=True)
        # The library writes the token that ends a text, whichever it is, and paddings up to the end of the longest.
        outputs["greedy_tokens"] = torch.tensor([[*row, *[answerer.chat.pad] * length][:length] for row in written])
    for name in case.wanted:
        if match := re.fullmatch(r"features_of_picture_(\d+)", name):
            outputs[name] = answerer.features([images[int(match[1])]])[0]
    return outputs


def _first_logprobs(
    model: VlmDitAdapter, images: Sequence[Tensor], questions: Sequence[str], answers: Sequence[str], shown: list[int]
) -> Tensor:
    """Of each answer's first token. A judge refuses answers that share it; a set of few merges may have such."""
    first = [model.answerer.chat.encode(answer)[0] for answer in answers]
    if len(set(first)) == len(first):
        return model.answerer.answer_logprobs(images, questions, answers, shown)
    return model.answerer.next_logprobs(images, questions, shown)[:, first]


@torch.no_grad()
def run_text_logprob(data: QwenImageSet, case: Case) -> Outputs:
    answerer = data.model.answerer
    texts, question = case.settings["texts"], case.settings["question"]
    image = _images(case)[case.settings["picture"]]
    asked = answerer.question_ids(image, question)
    rows = [(*asked, *answerer.chat.encode(text), answerer.chat.end) for text in texts]
    found = answerer.token_logprobs([image], texts, [question] * len(texts), [0] * len(texts))
    placed = torch.zeros(len(rows), max(map(len, rows)) - 1)
    for row, (ids, logprobs) in enumerate(zip(rows, found, strict=True)):
        placed[row, len(ids) - 1 - len(logprobs) : len(ids) - 1] = logprobs
    return {
        "input_ids": _padded(rows, answerer.chat.pad, left=False),
        "token_logprobs": placed,
        "mean_logprob": answerer.text_logprob([image], texts, [question] * len(texts), [0] * len(texts)),
    }


# ---- the design


def problems(data: QwenImageSet, settings: Mapping[str, Any]) -> list[str]:
    """Rendered texts and first tokens of answers that are others than the set says, in words."""
    chat = data.model.answerer.chat
    look = settings.get("look", {})
    found = []
    for question, rendered in zip(look.get("questions", ()), look.get("rendered", ()), strict=True):
        if chat.encode(chat.rendered(question)) != chat.encode(rendered):
            found.append(f"{question!r} is rendered as {chat.rendered(question)!r}, expected {rendered!r}")
    for answer, first in zip(look.get("answers", ()), look.get("answer_first_ids", ()), strict=True):
        if chat.encode(answer)[0] != first:
            found.append(f"{answer!r} begins with {chat.encode(answer)[0]}, expected {first}")
    return found


DESIGN = ConformanceDesign(
    name="qwen_image",
    matches=is_qwen_image,
    load=load_set,
    inputs={
        "prompts": r"attention_mask|embeddings_mask",
        "draw_guided": r"noise",
        "draw_unguided": r"noise",
        "autoencoder": r"packed_latents|picture_uint8",
        "train": r"x0|noise|t|x_t|weights",
        "picture": r"image_uint8",
        "look": r"attention_mask|mm_token_type_ids|position_ids",
        "text_logprob": r"attention_mask|mm_token_type_ids|label_mask",
    },
    runners={
        "prompts": run_prompts,
        "draw_guided": run_draw_guided,
        "draw_unguided": run_draw_unguided,
        "autoencoder": run_autoencoder,
        "train": run_train,
        "picture": run_picture,
        "look": run_look,
        "text_logprob": run_text_logprob,
    },
    problems=problems,
    settings=("looking_settings",),
    given=r"autoencoder/picture_uint8",
)
