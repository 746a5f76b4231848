"""How each case of a conformance set of Janus is run through the adapter's public functions.

A runner gets a case's settings, its input tensors and the names of the outputs that the set lists. It never
sees an expected value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srum_ds.models.janus import FAMILY
from srum_ds.models.janus.adapter import JanusAdapter, load_janus
from srum_ds.models.janus.generator import levels, padded
from srum_ds.models.janus.sampling import CodeSampling
from srum_ds.models.janus.texts import Ids
from tests.numerics.conformance_set import OPEN, Case, ConformanceDesign, Outputs, open_levels, picture


@dataclass(frozen=True)
class JanusSet:
    """A set's model, and the prompts, which the cases that draw share."""

    model: JanusAdapter
    prompts: Sequence[str]

    def ids(self, count: int) -> list[Ids]:
        """Ids of the first ``count`` prompts."""
        # Not through the generator, which refuses prompts that a user cannot mean, such as an empty one.
        return [self.model.reader.texts.prompt(text) for text in self.prompts[:count]]

    def placed(self, ids: Sequence[Ids], mask_BS: Tensor) -> Tensor:
        """Ids [B, S] where the mask says that they stand, and pads elsewhere."""
        out_BS = torch.full(mask_BS.shape, self.model.reader.texts.special.pad)
        for row, mask_S, own in zip(out_BS, mask_BS.bool(), ids, strict=True):
            row[mask_S] = torch.tensor(own)
        return out_BS


# ---- drawing


def run_prompts(data: JanusSet, case: Case) -> Outputs:
    mask_BS = case.input("attention_mask")
    ids = data.ids(len(mask_BS))
    without = [data.model.reader.texts.without_prompt(own) for own in ids]
    return {"input_ids": data.placed(ids, mask_BS), "unconditional_ids": data.placed(without, mask_BS)}


def run_draw(data: JanusSet, case: Case) -> Outputs:
    """Greedy, or by the set's uniform numbers where it gives some."""
    generator = data.model.generator
    count, tokens = case.wanted["codes"]
    greedy = f"{case.name}/u" not in case.inputs
    uniform_NT = torch.zeros(count, tokens) if greedy else case.input("u")
    temperature = 0.0 if greedy else float(case.settings.get("temperature", 1.0))
    trace: list[tuple[Tensor, ...]] = []
    sampling = CodeSampling(float(case.settings["guidance"]), temperature)
    codes = generator.sample(data.ids(count), uniform_NT, sampling, trace)
    # In one pass, as the set has it: truncation makes a whole level of the last bit.
    image_NHWC = generator.decode_unclamped(codes, together=count).permute(0, 2, 3, 1)
    outputs = {"codes": codes, "image": image_NHWC, "image_uint8": levels(image_NHWC).to(torch.uint8)}
    outputs["image_uint8" + OPEN] = open_levels((image_NHWC + 1) / 2 * 255, 0.0)
    logits = [torch.stack(of_steps, dim=1) for of_steps in zip(*trace, strict=True)]
    names = ("conditional_logits", "unconditional_logits") if sampling.guided else ("logits",)
    return outputs | dict(zip(names, logits, strict=True))


def run_vq(data: JanusSet, case: Case) -> Outputs:
    codes = case.input("codes")
    return {"image": data.model.generator.decode_unclamped(codes, together=len(codes)).permute(0, 2, 3, 1)}


# ---- training


def run_train(data: JanusSet, case: Case) -> Outputs:
    """The pass that trains, with the prompts as they are given, among them one that is dropped."""
    module, code_BT = data.model.module, case.input("codes")
    rows = zip(case.input("input_ids"), case.input("attention_mask").bool(), strict=True)
    ids_BL, length_B = padded([tuple(row[mask].tolist()) for row, mask in rows])
    module.requires_grad_(True).zero_grad()
    energy_BT = -module(ids_BL, length_B, code_BT)
    loss = (case.input("weights") * energy_BT).sum() / energy_BT.numel()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    norms = [_norm(gradients.get(name)) for name in case.settings["grad_norm_names"]]
    with torch.no_grad():
        logits = module.logits(ids_BL, length_B, code_BT)
    outputs = {"cross_entropy": energy_BT, "loss": loss, "logits": logits, "grad_norms": torch.tensor(norms)}
    for name in case.wanted:
        gradient = gradients.get(name.removeprefix("grad."))
        if gradient is not None:
            outputs[name] = gradient
    module.requires_grad_(False).zero_grad()
    return outputs


def _norm(gradient: Tensor | None) -> float:
    """NaN for what gets no gradient, such as the VQ, which is no part of the module."""
    return float("nan") if gradient is None else float(gradient.double().norm())


# ---- looking


def run_picture(data: JanusSet, case: Case) -> Outputs:
    return {"pixel_values": data.model.reader.pixel_values([picture(case.input("image_uint8"))])}


def _pictures(case: Case, numbers: Sequence[int]) -> list[Tensor]:
    return [picture(case.inputs[f"picture_{number}/image_uint8"]) for number in numbers]


def run_look(data: JanusSet, case: Case) -> Outputs:
    """The pictures once each, and all questions about them."""
    model, questions, picture_of = data.model, case.settings["questions"], case.settings["picture_of"]
    numbers = sorted(set(picture_of))
    images, index = _pictures(case, numbers), [numbers.index(number) for number in picture_of]
    openings = [model.reader.texts.opening(question) for question in questions]
    features_PTD = model.module.features(model.reader.pixel_values(images))
    of_questions = "features" in case.wanted and case.wanted["features"][0] == len(questions)
    return {
        "input_ids": data.placed(openings, case.input("attention_mask")),
        "features": features_PTD[index] if of_questions else features_PTD,
        "next_logprobs": model.answerer.next_logprobs(images, questions, index),
        "answer_logprobs": _first_logprobs(model, images, questions, case.settings["answers"], index),
        "greedy_tokens": _written(model, images, questions, case.wanted.get("greedy_tokens", (0, 1))[1], index),
    }


def _first_logprobs(
    model: JanusAdapter, images: Sequence[Tensor], questions: Sequence[str], answers: Sequence[str], index: list[int]
) -> Tensor:
    """Of each answer's first token. A judge refuses answers that share it; a set of few merges may have such."""
    first = [[model.reader.texts.answer(question, answer)[0] for answer in answers] for question in questions]
    if all(len(set(row)) == len(row) for row in first):
        return model.answer_logprobs(images, questions, answers, index)
    return model.answerer.next_logprobs(images, questions, index).gather(1, torch.tensor(first))


def _written(
    model: JanusAdapter, images: Sequence[Tensor], questions: Sequence[str], count: int, index: Sequence[int]
) -> Tensor:
    """Greedy tokens [Q, count], pads behind an answer's end."""
    tokens_QT = model.answerer.write(images, questions, count, index)
    return torch.nn.functional.pad(tokens_QT, (0, count - tokens_QT.shape[1]), value=model.reader.texts.special.pad)


def run_text_logprob(data: JanusSet, case: Case) -> Outputs:
    model, texts = data.model, case.settings["texts"]
    questions = [case.settings["question"]] * len(texts)
    images, index = _pictures(case, [case.settings["picture"]]), [0] * len(texts)
    answers = [model.answerer.answer_ids(question, text) for question, text in zip(questions, texts, strict=True)]
    whole = [(*model.reader.texts.opening(q), *answer) for q, answer in zip(questions, answers, strict=True)]
    mask_NS = case.input("attention_mask")
    logprobs = model.answerer.text_logprobs(images, texts, questions, index)
    tokens_NS = torch.zeros(mask_NS.shape)
    for row, mask_S, own in zip(tokens_NS, mask_NS, logprobs, strict=True):
        row[mask_S.nonzero()[-len(own) :, 0]] = own
    return {
        "input_ids": data.placed(whole, mask_NS),
        "token_logprobs": tokens_NS[:, 1:],
        "mean_logprob": model.text_logprob(images, texts, questions, index),
    }


RUNNERS: dict[str, Callable[[JanusSet, Case], Outputs]] = {
    "prompts": run_prompts,
    "draw_guided": run_draw,
    "draw_sampled": run_draw,
    "draw_unguided": run_draw,
    "vq": run_vq,
    "train": run_train,
    "picture": run_picture,
    "look": run_look,
    "text_logprob": run_text_logprob,
}


# ---- the design


def load_set(checkpoint: Path, settings: Mapping[str, Any]) -> JanusSet:
    """The set's checkpoint in float32."""
    return JanusSet(load_janus(checkpoint), settings["prompts"]["prompts"])


def special_problems(data: JanusSet, settings: Mapping[str, Any]) -> list[str]:
    """Ids and counts that the folder says otherwise than the set does, in words."""
    special, sizes = data.model.reader.texts.special, data.model.reader.settings
    found = {
        "bos": special.bos,
        "eos": special.eos,
        "pad": special.pad,
        "begin_of_image": special.image_start,
        "image_placeholder": special.image,
        "num_image_tokens": sizes.tokens,
        "codebook": sizes.codes,
    }
    expected = settings.get("prompts", {})
    look = settings.get("look", {})
    answer, asked = data.model.reader.texts.answer, (look.get("questions") or [""])[0]
    wrong = [
        f"{text!r} begins with {answer(asked, text)[0]}, expected {first}"
        for text, first in zip(look.get("answers", ()), look.get("answer_first_ids", ()), strict=True)
        if answer(asked, text)[0] != first
    ]
    return wrong + [
        f"{name} is {value}, expected {expected[name]}"
        for name, value in found.items()
        if expected.get(name, value) != value
    ]


DESIGN = ConformanceDesign(
    name="janus",
    matches=FAMILY.matches,
    load=load_set,
    inputs={
        "prompts": r"attention_mask",
        "draw_guided": r"(?!)",
        "draw_sampled": r"u",
        "draw_unguided": r"(?!)",
        "vq": r"codes",
        "train": r"input_ids|attention_mask|codes|weights",
        "picture": r"image_uint8",
        "look": r"attention_mask",
        "text_logprob": r"attention_mask|label_mask",
    },
    runners=RUNNERS,
    problems=special_problems,
    exact=r"pixel_values",
)
