"""The commands about one model: `srum-ds generate`, `ask` and `inspect`. As in ``cli``, imports wait for a call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from srum_ds.common.errors import UserError


def generate(
    *,
    model: Path,
    prompt: list[str],
    out: Path,
    image: list[Path] | None = None,
    seed: int = 0,
    count: int = 1,
    size: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    steps: int = 49,
    guidance: float = 4.0,
    image_guidance: float | None = None,
    interval: tuple[float, float] | None = None,
    renorm: str | None = None,
    renorm_min: float = 0.0,
    shift: float = 3.0,
    think: Annotated[bool, Parameter(negative=())] = False,
    think_tokens: int = 256,
    temperature: float = 0.0,
    device: str = "auto",
    dtype: str = "auto",
    force: bool = False,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Draw pictures of prompts, or edit pictures. The sampler's defaults are BAGEL's own.

    Parameters
    ----------
    model
        Checkpoint folder, such as runs/tiny/export.
    prompt
        What to draw, or what to change; may be given several times.
    out
        Folder for the PNG files.
    image
        Picture to edit: one for all prompts, or one for each.
    seed
        Seeds the noise, and the plans where --temperature is above 0.
    count
        Pictures of each prompt.
    size
        Height and width in pixels, such as 512x768; without it the largest square of the model, or the size
        that BAGEL gives to the edited picture.
    steps
        Euler steps.
    guidance
        Scale of classifier-free guidance by the text; 1 is without.
    image_guidance
        Scale of the guidance by the edited picture; 1 is without. Default 2 with --image.
    interval
        Two numbers: guidance applies to times above the first, up to the second. Default 0.4 1, with --image 0 1.
    renorm
        How guided velocities are scaled back: global, channel or text_channel. Default global, with --image
        text_channel.
    renorm_min
        The smallest factor of that scaling; 1 switches it off.
    shift
        Timestep shift; above 1, more steps go to high noise.
    think
        Let the model write a plan first, and draw by it.
    think_tokens
        Longest plan.
    temperature
        Of the plan's sampling; 0 takes the likeliest tokens.
    device
        auto, cpu, cuda or cuda:1; auto is the GPU where there is one.
    dtype
        auto, float32, bfloat16 or float16; auto is bfloat16 on a GPU and float32 else.
    force
        Write over files of the same name.
    json_
        Print one JSON object a picture.
    """
    from srum_ds.commands.model_work import Placement, Planning, draw_pictures, parse_size
    from srum_ds.models.flow import FlowSampling

    if image_guidance is not None and not image:
        raise UserError("--image-guidance needs a picture to be guided by: give --image.")
    sampling = FlowSampling(
        num_timesteps=steps + 1,
        timestep_shift=shift,
        text_scale=guidance,
        image_scale=image_guidance if image_guidance is not None else 2.0 if image else 1.0,
        interval=interval if interval is not None else (0.0, 1.0) if image else (0.4, 1.0),
        renorm=renorm if renorm is not None else "text_channel" if image else "global",
        renorm_min=renorm_min,
    )
    pictures = draw_pictures(
        model,
        prompt,
        out,
        sampling,
        images=image or (),
        planning=Planning(think_tokens, temperature) if think else None,
        count=count,
        seed=seed,
        size=parse_size(size or ()),
        force=force,
        placement=Placement(device, dtype),
    )
    for drawn in pictures:
        if json_:
            facts = {"image": str(drawn.path), "prompt": drawn.prompt, "seed": seed, "number": drawn.number}
            print(json.dumps(facts if drawn.plan is None else {**facts, "plan": drawn.plan}))
            continue
        print(drawn.path)
        if drawn.plan is not None:
            print(f"  plan: {drawn.plan}")


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
    """Ask a model about pictures.

    Parameters
    ----------
    model
        Checkpoint folder, such as runs/tiny/export.
    image
        Picture file; may be given several times.
    question
        What to ask about each picture.
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
        Print one JSON object a picture.
    """
    from srum_ds.commands.model_work import Placement, ask_model

    choices = answer or []
    if len(choices) == 1:
        raise UserError("--answer needs at least two answers to choose from.")
    replies = ask_model(
        model,
        image,
        question,
        answers=choices,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        placement=Placement(device, dtype),
    )
    for path, reply, shares in replies:
        if json_:
            print(json.dumps({"image": str(path), "answer": reply, "probabilities": dict(shares)}))
            continue
        detail = "  ".join(f"{text} {share:.3f}" for text, share in shares)
        print(f"{path}: {reply}" + (f"  ({detail})" if detail else ""))


def inspect(folder: Path, *, json_: Annotated[bool, Parameter(name="--json", negative=())] = False) -> None:
    """Say what a checkpoint folder holds, without loading its weights.

    Parameters
    ----------
    folder
        Checkpoint folder in BAGEL's layout.
    json_
        Print JSON.
    """
    from srum_ds.models.bagel.inspect import inspect_folder, inspection_text

    found = inspect_folder(folder)
    print(json.dumps(found, indent=2) if json_ else inspection_text(found))
