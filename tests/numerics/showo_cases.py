"""How each case of a Show-o conformance set is run through the adapter's public functions.

A runner gets a case's settings, its input tensors and the names of the outputs that the set lists. It never sees an
expected value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srum_ds.models.showo import FAMILY
from srum_ds.models.showo.adapter import ShowoAdapter, load_showo
from srum_ds.models.showo.decoding import Chooser
from srum_ds.models.showo.images import squares
from srum_ds.models.showo.layout import AROUND, drawing_mask, looking_mask, question_text
from srum_ds.models.showo.sampling import MASKED, MaskedSampling, SamplerStep
from tests.numerics.conformance_set import OPEN, Case, ConformanceDesign, Outputs, open_levels, picture


@dataclass(frozen=True)
class Loaded:
    """The model, and what the set says of drawing: ``draw_unguided`` has the settings of ``draw_guided``."""

    adapter: ShowoAdapter
    settings: Mapping[str, Mapping[str, Any]]


def load_set(folder: Path, settings: Mapping[str, Mapping[str, Any]]) -> Loaded:
    """A set's checkpoint in float32, with the prompt length that the set was made with."""
    length = settings.get("prompts", {}).get("max_text_len")
    return Loaded(load_showo(folder, max_text_len=length), settings)


# ---- drawing


def _prompt_mask(model: ShowoAdapter, ids_BL: Tensor) -> Tensor:
    vocabulary = model.module.vocabulary
    return drawing_mask(ids_BL == vocabulary.pad, model.module.codes + AROUND).to(torch.uint8)


def run_prompts(loaded: Loaded, case: Case) -> Outputs:
    model, prompts = loaded.adapter, case.settings["prompts"]
    all_masked = torch.full((len(prompts), model.module.codes), MASKED)
    ids_BL = model.generator.sequence_ids(prompts, all_masked)
    empty_BL = model.generator.sequence_ids([""] * len(prompts), all_masked)
    return {
        "input_ids": ids_BL,
        "unconditional_ids": empty_BL,
        "attention_allowed": _prompt_mask(model, ids_BL),
        "unconditional_attention_allowed": _prompt_mask(model, empty_BL[:1]),
    }


def _draw(loaded: Loaded, case: Case, rows: slice, **changes: float) -> Outputs:
    model = loaded.adapter
    settings = {**loaded.settings.get("draw_guided", {}), **changes, **case.settings}

    def uniform(name: str) -> Tensor:
        key = f"{case.name}/{name}"
        return case.inputs[key if key in case.inputs else f"draw_guided/{name}"]

    # [steps, B, T] twice -> [B, 2, steps, T].
    uniform_N2ST = torch.stack([uniform("u_codes"), uniform("u_gumbel")]).permute(2, 0, 1, 3)[rows]
    sampling = MaskedSampling(
        steps=uniform_N2ST.shape[2], guidance=settings["guidance"], temperature=settings["temperature"]
    )
    prompts = loaded.settings["prompts"]["prompts"][rows]
    trace: list[SamplerStep] = []
    codes_NT = model.generator.sample(prompts, uniform_N2ST, sampling, trace)
    images = model.generator.decode(codes_NT, model.reader.grid)
    pixels = model.generator.decode_unclamped(codes_NT, model.reader.grid)
    return {
        "codes": codes_NT,
        "probabilities": torch.stack([step.probability_NTV for step in trace]),
        "tokens_before_step": torch.stack([step.seen_NT for step in trace]),
        "image": pixels,
        "image_uint8": (images * 255).round().to(torch.uint8),
        "image_uint8" + OPEN: open_levels((pixels + 1) / 2 * 255, 0.0),
    }


def run_draw_guided(loaded: Loaded, case: Case) -> Outputs:
    return _draw(loaded, case, slice(None))


def run_draw_unguided(loaded: Loaded, case: Case) -> Outputs:
    count = next(shape[0] for name, shape in case.wanted.items() if name == "codes")
    return _draw(loaded, case, slice(0, count), guidance=0.0)


def run_vq(loaded: Loaded, case: Case) -> Outputs:
    return {"image": loaded.adapter.generator.decode_unclamped(case.input("codes"), loaded.adapter.reader.grid)}


# ---- training


def run_train(loaded: Loaded, case: Case) -> Outputs:
    model, module = loaded.adapter, loaded.adapter.module
    vocabulary = module.vocabulary
    code_BT, masked_BT = case.input("codes"), case.input("masked").bool()
    ids_BL = model.generator.sequence_ids(case.settings["prompts"], torch.where(masked_BT, MASKED, code_BT))
    normed = list(case.settings.get("grad_norm_names", []))
    single = [name.removeprefix("grad.") for name in case.wanted if name.startswith("grad.")]
    names = list(dict.fromkeys([*normed, *single]))
    known = dict(module.named_parameters(remove_duplicate=False))
    parameters = {name: known[name] for name in names}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    whole_BT = -module(ids_BL, code_BT, True)
    loss = (case.input("weights") * whole_BT * masked_BT).sum() / masked_BT.sum()
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True) if names else ()
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    gradients = {
        name: torch.zeros_like(parameters[name]) if gradient is None else gradient
        for name, gradient in zip(names, found, strict=True)
    }
    with torch.no_grad():
        logits_BSV = module.picture_logits(ids_BL)
        first = vocabulary.first_code
        # The release's labels: the picture's ends, and the masked codes; all of them at their own places.
        ends_B = torch.full((len(ids_BL), 1), -1)
        label_BT = torch.where(masked_BT, code_BT + first, -1)
        label_BS = torch.cat([ends_B + 1 + vocabulary.soi, label_BT, ends_B + 1 + vocabulary.eoi], dim=1)
        chosen = label_BS >= 0
        logp_BSV = logits_BSV.log_softmax(dim=-1)
        official = -logp_BSV[chosen].gather(1, label_BS[chosen][:, None]).mean()
        outputs = {
            "input_ids": ids_BL,
            "code_logits": logits_BSV[:, 1:-1, first : first + vocabulary.codes],
            "logsumexp_whole_vocabulary": logits_BSV[:, 1:-1].logsumexp(dim=-1),
            "cross_entropy_whole_vocabulary": whole_BT.detach(),
            "cross_entropy_codes_only": -module(ids_BL, code_BT),
            "official_loss": official,
            "loss": loss.detach(),
        }
    outputs |= {f"grad.{name}": gradients[name] for name in single}
    if normed:
        outputs["grad_norms"] = torch.stack([gradients[name].norm() for name in normed])
    return outputs


# ---- looking


def run_picture(loaded: Loaded, case: Case) -> Outputs:
    model = loaded.adapter
    pixels = squares([picture(case.input("image_uint8"))], model.reader.config.pixels)
    with torch.no_grad():
        latents = model.reader.magvit.latents(pixels)
    codes = model.reader.codes([picture(case.input("image_uint8"))])
    return {"pixels": pixels[0], "latents": latents[0], "codes": codes[0]}


def _shown(case: Case) -> Tensor:
    return picture(case.inputs[f"picture_{case.settings['picture']}/image_uint8"])


def run_look(loaded: Loaded, case: Case) -> Outputs:
    answerer = loaded.adapter.answerer
    image, question = _shown(case), case.settings["question"]
    rows = answerer.rows([image], [answerer.question_ids(question)], [0])
    logprobs = answerer.next_logprobs([image], [question])
    first = [answerer.answer_ids(answer)[0] for answer in case.settings["answers"]]
    steps = case.wanted.get("greedy_tokens", (0,))[0]
    tokens = answerer.answer_tokens([image], [question], [0], steps, Chooser(1), to_the_end=True)
    return {
        "input_ids": rows.ids_BL,
        "attention_allowed": looking_mask(rows.position_BL, rows.text_BL).to(torch.uint8),
        "next_logprobs": logprobs,
        "answer_logprobs": logprobs[0, first],
        "greedy_tokens": tokens[0],
    }


def run_text_logprob(loaded: Loaded, case: Case) -> Outputs:
    answerer = loaded.adapter.answerer
    image, text, question = _shown(case), case.settings["text"], case.settings.get("question") or ""
    ids, _ = answerer.text_ids(text, question)
    questions = [question] if question else None
    return {
        "input_ids": answerer.rows([image], [ids], [0]).ids_BL,
        "token_logprobs": answerer.text_logprobs([image], [text], questions)[0],
        "mean_logprob": answerer.text_logprob([image], [text], questions)[0],
    }


# ---- ids


def problems(loaded: Loaded, settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the tokenizer makes otherwise than the set says."""
    model = loaded.adapter
    tokenizer, vocabulary = model.reader.tokenizer, model.module.vocabulary
    said = settings.get("prompts", {})
    own = dict(tokenizer.special)
    own |= {"<|sot|>": vocabulary.bos, "<|eot|>": vocabulary.eos, "<|pad|>": vocabulary.pad}
    pairs: list[tuple[str, Any, Any]] = [
        (f"special token {name}", own.get(name), number) for name, number in said.get("special_tokens", {}).items()
    ]
    facts: dict[str, Any] = {
        "mask_token": vocabulary.mask,
        "first_code": vocabulary.first_code,
        "codebook": vocabulary.codes,
        "grid": list(model.reader.grid),
    }
    pairs += [(name, value, said[name]) for name, value in facts.items() if name in said]
    for name, case in settings.items():
        if not name.startswith("look_"):
            continue
        first = [model.answerer.answer_ids(answer)[0] for answer in case.get("answers", ())]
        pairs.append((f"{name}: first ids of {case.get('answers')}", first, case.get("answer_first_ids", first)))
        rendered = question_text(case["question"])
        pairs.append((f"{name}: the question", rendered, case.get("rendered", rendered)))
    return [f"{what} is {found!r}, expected {expected!r}" for what, found, expected in pairs if found != expected]


RUNNERS: dict[str, Callable[[Loaded, Case], Outputs]] = {
    "prompts": run_prompts,
    "draw_guided": run_draw_guided,
    "draw_unguided": run_draw_unguided,
    "vq": run_vq,
    "train": run_train,
    "picture": run_picture,
    "look": run_look,
    "text_logprob": run_text_logprob,
}

INPUTS: Sequence[tuple[str, str]] = (
    ("prompts", r"(?!)"),
    ("draw_guided", r"u_codes|u_gumbel"),
    ("draw_unguided", r"u_codes|u_gumbel"),
    ("vq", r"codes"),
    ("train", r"codes|t|masked|weights"),
    ("picture", r"image_uint8"),
    ("look", r"(?!)"),
    ("text_logprob", r"(?!)"),
)

DESIGN = ConformanceDesign(
    name="showo",
    matches=FAMILY.matches,
    load=load_set,
    inputs=dict(INPUTS),
    runners=RUNNERS,
    problems=problems,
)
