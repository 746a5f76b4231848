"""`srum-ds ask`: asks the model of a folder of any design about images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from srum_ds.commands.placement import Placement, resolve_placement
from srum_ds.common.errors import UserError
from srum_ds.common.texts import require_encodable

if TYPE_CHECKING:
    from torch import Tensor

    from srum_ds.models.protocol import Judge


@dataclass(frozen=True)
class Reply:
    """What the model answers about one image, and the probability of each answer that was offered."""

    image: Path
    answer: str
    probabilities: dict[str, float]


def ask(
    *,
    model: Path,
    image: list[Path],
    question: str,
    answer: list[str] | None = None,
    max_new_tokens: int = 16,
    temperature: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Ask a model about images.

    Parameters
    ----------
    model
        Checkpoint folder, such as runs/tiny/export.
    image
        Image file; may be given several times.
    question
        What to ask about each image.
    answer
        A possible answer (given at least twice): prints the probability of each instead of free text.
    max_new_tokens
        Longest free answer.
    temperature
        Of a free answer's sampling; 0 takes the likeliest tokens.
    seed
        Seeds the sampling.
    device
        auto, cpu, cuda or cuda:1; auto is the GPU where there is one.
    dtype
        auto, float32, bfloat16 or float16; auto is bfloat16 on a GPU and float32 else.
    json_
        Print one JSON object per image.
    """
    choices = answer or []
    if len(choices) == 1:
        raise UserError("--answer needs at least two answers to choose from.")
    if max_new_tokens < 1:
        raise UserError("--max-new-tokens must be at least 1.")
    if not question.strip():
        raise UserError("--question is empty; give it a text.")
    for option, text in [("--question", question), *(("--answer", text) for text in choices)]:
        require_encodable(text, f"{option} {ascii(text)}")
    placement = Placement(device, dtype)
    if choices:
        replies = choose_answers(model, image, question, choices, placement)
    else:
        replies = write_answers(model, image, question, max_new_tokens, temperature, seed, placement)
    for reply in replies:
        if json_:
            facts = {"image": str(reply.image), "answer": reply.answer, "probabilities": reply.probabilities}
            print(json.dumps(facts))
            continue
        detail = "  ".join(f"{text} {share:.3f}" for text, share in reply.probabilities.items())
        print(f"{reply.image}: {reply.answer}" + (f"  ({detail})" if detail else ""))


def choose_answers(
    folder: Path, images: Sequence[Path], question: str, answers: Sequence[str], placement: Placement
) -> list[Reply]:
    """The likeliest of the offered answers for each image, read from one prefill.

    Their probabilities are the model's own and need not add up to 1. Raises UserError for an image that cannot be
    read and on a bad model, such as one whose numbers are not finite.
    """
    pixels, model = _open(folder, images, placement)
    logprobs_QA = model.answer_logprobs(pixels, [question] * len(images), answers)
    # An answer that the model thinks impossible may be -inf; a NaN is no probability at all.
    if bool(logprobs_QA.isnan().any()):
        raise _not_finite(folder, placement)
    shares_QA = logprobs_QA.exp().tolist()
    replies = []
    for path, shares_A in zip(images, shares_QA, strict=True):
        best = answers[shares_A.index(max(shares_A))]
        replies.append(Reply(path, best, dict(zip(answers, shares_A, strict=True))))
    return replies


def write_answers(
    folder: Path,
    images: Sequence[Path],
    question: str,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    placement: Placement,
) -> list[Reply]:
    """An answer in the model's own words for each image: greedy at temperature 0, above it sampled.

    A sampled reply depends on the seed and the image's place in ``images`` alone. Raises UserError as
    ``choose_answers``.
    """
    from srum_ds.common.seeds import derive

    pixels, model = _open(folder, images, placement)
    seeds = [derive("ask", seed, number) for number in range(len(images))]
    questions = [question] * len(images)
    texts = model.answer(pixels, questions, max_new_tokens, None, temperature, seeds)
    # Whatever the numbers are, writing takes the likeliest token of them: only a probability tells them apart.
    if bool(model.answer_logprobs(pixels, questions, ["yes"]).isnan().any()):
        raise _not_finite(folder, placement)
    return [Reply(path, text, {}) for path, text in zip(images, texts, strict=True)]


def _not_finite(folder: Path, placement: Placement) -> UserError:
    dtype = str(resolve_placement(placement)[1]).removeprefix("torch.")
    return UserError(
        f"the model in {folder} answers with numbers that are not finite: its weights are damaged, or --dtype "
        f"{dtype} is too narrow for them. Try --dtype float32, or copy the weights again."
    )


def _open(folder: Path, images: Sequence[Path], placement: Placement) -> tuple[list[Tensor], Judge]:
    """The images' pixels, and the model."""
    from srum_ds.common.image_files import read_image
    from srum_ds.models import load_model

    pixels = [read_image(path) for path in images]
    device, dtype = resolve_placement(placement)
    return pixels, load_model(folder, dtype=dtype, device=device)
