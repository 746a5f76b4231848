"""What `srum-ds generate` and `srum-ds ask` do once their arguments are read."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.image_files import read_picture, write_picture
from srum_ds.common.seeds import derive, noise
from srum_ds.models import load_model
from srum_ds.models.flow import FlowSampling
from srum_ds.types import Prompt

RENORMS = ("global", "channel", "text_channel")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Placement:
    """Where a model runs and in which type; ``auto`` is the GPU in bfloat16, or the CPU in float32."""

    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Planning:
    """The model writes a plan of at most ``tokens`` tokens before it draws; temperature 0 is greedy."""

    tokens: int = 256
    temperature: float = 0.0


@dataclass(frozen=True)
class Drawn:
    """One picture that was written."""

    path: Path
    prompt: str
    number: int
    plan: str | None


def resolve_placement(placement: Placement) -> tuple[torch.device, torch.dtype]:
    """The device and the type that are meant. UserError for unknown ones and for a device that is not there."""
    cuda = torch.cuda.is_available()
    name = placement.device if placement.device != "auto" else "cuda" if cuda else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name!r} is unknown; expected auto, cpu, cuda or cuda:1.") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name!r} is not supported; expected auto, cpu, cuda or cuda:1.")
    if device.type == "cuda" and (not cuda or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"--device {name}: there are {torch.cuda.device_count()} GPUs here. Pass --device cpu.")
    if placement.dtype == "auto":
        return device, torch.bfloat16 if device.type == "cuda" else torch.float32
    if placement.dtype not in DTYPES:
        raise UserError(f"--dtype {placement.dtype!r} is unknown; expected auto, {', '.join(DTYPES)}.")
    return device, DTYPES[placement.dtype]


def parse_size(words: Sequence[str]) -> tuple[int, int] | None:
    """(height, width) of ``("512x768",)`` or ``("512", "768")``; None without words. UserError for others."""
    if not words:
        return None
    numbers = re.fullmatch(r"(\d+)[x ](\d+)", " ".join(words).lower())
    if numbers is None:
        raise UserError(f"--size {' '.join(words)!r} is no size; expected height and width, such as 512x768.")
    return int(numbers[1]), int(numbers[2])


def check_sampling(sampling: FlowSampling) -> None:
    """UserError, naming the option, for a sampler's setting outside its range."""
    low, high = sampling.interval
    wrong = {
        "--steps must be at least 1": sampling.num_timesteps < 2,
        "--guidance must be a number from 0": not 0 <= sampling.text_scale < math.inf,
        "--image-guidance must be a number from 0": not 0 <= sampling.image_scale < math.inf,
        "--shift must be a number above 0": not 0 < sampling.timestep_shift < math.inf,
        "--interval must be two numbers with 0 <= first <= second <= 1": not 0 <= low <= high <= 1,
        "--renorm-min must lie in 0..1": not 0 <= sampling.renorm_min <= 1,
        f"--renorm must be one of {', '.join(RENORMS)}": sampling.renorm not in RENORMS,
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise UserError(f"{message}. Correct it and repeat the command.")


def draw_pictures(
    model: Path,
    prompts: Sequence[str],
    out: Path,
    sampling: FlowSampling,
    *,
    images: Sequence[Path] = (),
    planning: Planning | None = None,
    count: int = 1,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    force: bool = False,
    placement: Placement | None = None,
) -> Iterator[Drawn]:
    """Draws ``count`` pictures of each prompt into PNG files of ``out``, and yields each once it is written.

    images: pictures to edit, one for all prompts or one a prompt. A picture depends on the model, the
    sampler, the seed, its prompt (and input picture) and its number alone, not on what else is drawn.
    ``size`` is (height, width) in pixels; without it, the largest square the model draws, or the size of
    the edited picture. Each PNG carries its prompt, plan, seed and sampler as text chunks.

    Raises UserError when a file is there already (unless ``force``) and on a bad model, picture or size.
    """
    check_sampling(sampling)
    if count < 1:
        raise UserError("--count must be at least 1.")
    for text in prompts:
        if not text.strip():
            raise UserError(f"--prompt {text!r} is empty; give it a text.")
    if planning is not None and (planning.tokens < 1 or not 0 <= planning.temperature < math.inf):
        raise UserError("--think-tokens must be at least 1 and --temperature at least 0.")
    inputs = _inputs(images, len(prompts))
    paths = _paths(out, prompts, inputs, seed, count)
    there = [path for path in paths if path.exists()]
    if there and not force:
        raise UserError(f"{there[0]} is there already: choose another --out or --seed, or pass --force.")
    pictures = {path: read_picture(path) for path in inputs if path is not None}
    device, dtype = resolve_placement(placement or Placement())
    adapter = load_model(model, dtype=dtype, device=device)
    adapter.prompt_ids([Prompt(id=text[:40], text=text) for text in prompts])
    largest = adapter.config.max_latent_size * adapter.config.pixels_per_token
    for start, (text, source) in enumerate(zip(prompts, inputs, strict=True)):
        given = None if source is None else [pictures[source]] * count
        height, width = size or ((largest, largest) if given is None else adapter.edited_size(given[0]))
        grid = adapter.grid_of(height, width)
        batch = [Prompt(id=f"{start}", text=text)] * count
        plans = None
        if planning is not None:
            seeds = [derive("plan", seed, text, number) for number in range(count)]
            plans = adapter.think(batch, planning.tokens, given, planning.temperature, seeds)
        shape = (grid[0] * grid[1], adapter.config.token_channels)
        noise_NTC = torch.stack([noise(shape, "generate", seed, text, number) for number in range(count)])
        targets_NTC, images_NCHW = adapter.generate(batch, noise_NTC, grid, sampling, given, plans)
        if not bool(targets_NTC.isfinite().all()):
            raise UserError(
                f"the model in {model} draws numbers that are not finite: its weights are damaged, or --dtype "
                f"{dtype} is too narrow for them. Try --dtype float32, or copy the weights again."
            )
        for number, image_CHW in enumerate(images_NCHW):
            drawn = Drawn(paths[start * count + number], text, number, None if plans is None else plans[number])
            _write(drawn, image_CHW, {"seed": seed, "model": model, "image": source, **asdict(sampling)})
            yield drawn


def ask_model(
    model: Path,
    images: Sequence[Path],
    question: str,
    *,
    answers: Sequence[str] = (),
    max_new_tokens: int = 16,
    temperature: float = 0.0,
    seed: int = 0,
    placement: Placement | None = None,
) -> list[tuple[Path, str, list[tuple[str, float]]]]:
    """Asks one question about each picture: (picture, answer, probability of each of ``answers``).

    With ``answers`` the reply is the likeliest of them, read from one prefill (their probabilities
    are the model's own and need not add up to 1); without, it is decoded: greedily at temperature 0, above
    it drawn, so that a reply depends on the seed and the picture's place in ``images`` alone.

    Raises UserError for a picture that cannot be read, an empty question and on a bad model.
    """
    if max_new_tokens < 1:
        raise UserError("--max-new-tokens must be at least 1.")
    if not question.strip():
        raise UserError("--question is empty; give it a text.")
    pictures = [read_picture(path) for path in images]
    device, dtype = resolve_placement(placement or Placement())
    adapter = load_model(model, dtype=dtype, device=device)
    questions = [question] * len(pictures)
    if not answers:
        seeds = [derive("ask", seed, number) for number in range(len(pictures))]
        texts = adapter.answer(pictures, questions, max_new_tokens, None, temperature, seeds)
        return [(path, text, []) for path, text in zip(images, texts, strict=True)]
    shares_QA = adapter.answer_logprobs(pictures, questions, answers).exp().tolist()
    replies = []
    for path, shares in zip(images, shares_QA, strict=True):
        best = answers[shares.index(max(shares))]
        replies.append((path, best, list(zip(answers, shares, strict=True))))
    return replies


def _inputs(images: Sequence[Path], prompts: int) -> list[Path | None]:
    if len(images) not in (0, 1, prompts):
        raise UserError(f"{len(images)} --image for {prompts} --prompt: give one for all, or one for each prompt.")
    return list(images) if len(images) == prompts else [*images, None][:1] * prompts


def _paths(out: Path, prompts: Sequence[str], inputs: Sequence[Path | None], seed: int, count: int) -> list[Path]:
    above = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise UserError(f"--out {out}: {above} is a file; give a folder.")
    if not os.access(above, os.W_OK):
        raise UserError(f"--out {out}: {above} is not writable for you; choose another folder.")
    names = [_name(text, source) for text, source in zip(prompts, inputs, strict=True)]
    if len(set(names)) < len(names):
        raise UserError("the same prompt is given twice: raise --count instead.")
    return [out / f"{name}-seed{seed}-{number}.png" for name in names for number in range(count)]


def _name(text: str, source: Path | None) -> str:
    """A file name that says the prompt; a hash tells prompts apart that look alike in it."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "picture"
    if source is None and text.replace(" ", "-") == slug:
        return slug
    identity = text if source is None else f"{text}|{source}"
    return f"{slug}-{hashlib.sha256(identity.encode()).hexdigest()[:6]}"


def _write(drawn: Drawn, image_CHW: Tensor, about: dict[str, object]) -> None:
    said = {"prompt": drawn.prompt, "number": drawn.number, "plan": drawn.plan, **about}
    write_picture(drawn.path, image_CHW, {name: value for name, value in said.items() if value is not None})
