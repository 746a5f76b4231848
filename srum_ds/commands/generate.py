"""`srum-ds generate`: draws images of prompts, or edits images, with the model of a folder of any design."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from srum_ds.commands.placement import Placement, resolve_placement
from srum_ds.commands.sampler import sampling_settings
from srum_ds.commands.saved_images import SavedImage, output_paths, save
from srum_ds.commands.whole_set import WHOLE, WholeSet, WholeSetRequest, draw_whole_set
from srum_ds.common.errors import UserError
from srum_ds.common.texts import require_encodable

if TYPE_CHECKING:
    from torch import Tensor

    from srum_ds.models.protocol import UnifiedModel


def generate(
    *,
    model: Path,
    prompt: list[str] | None = None,
    prompts: str | None = None,
    out: Path,
    image: list[Path] | None = None,
    seed: int = 0,
    count: Annotated[int, Parameter(name=["--count", "--samples"])] = 1,
    size: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    steps: int | None = None,
    guidance: float | None = None,
    image_guidance: float | None = None,
    interval: tuple[float, float] | None = None,
    renorm: str | None = None,
    renorm_min: float | None = None,
    shift: float | None = None,
    sampler: list[str] | None = None,
    think: Annotated[bool, Parameter(negative=())] = False,
    think_tokens: int = 256,
    temperature: float = 0.0,
    device: str = "auto",
    dtype: str = "auto",
    force: bool = False,
    whole: WholeSet = WHOLE,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Draw images of prompts, or edit images.

    The sampler has the settings that the model's training drew with, where the folder says them (generation.json),
    else the defaults of its design; those of flow matching are named below. A design may lack some of these settings,
    and have others (--sampler). With --prompts a whole set is drawn on all devices: repeated, the command draws what
    is missing.

    Parameters
    ----------
    model
        Checkpoint folder, such as runs/tiny/export.
    prompt
        What to draw, or what to change; may be given several times.
    prompts
        Instead of --prompt, a set of prompts to draw: a text, JSON, CSV or Parquet file, a folder that Hugging Face's
        datasets saved, the URL of a file, a folder of prompt shards, or for --layout a checkout of its benchmark.
    out
        Folder for the PNG files.
    image
        Image to edit: one for all prompts, or one for each.
    seed
        Seeds the images, and the plans where --temperature is above 0.
    count
        Images of each prompt.
    size
        Height and width in pixels, such as 512x768; without it the largest square of the model, or the size
        that the design gives to the edited image.
    steps
        Steps of the sampler (Euler steps where it integrates a flow). Default of flow matching: 49.
    guidance
        Scale of classifier-free guidance by the text; 1 is without. Default of flow matching: 4.
    image_guidance
        Scale of the guidance by the edited image; 1 is without. Default of flow matching: 2 with --image.
    interval
        Two numbers: guidance applies to times above the first, up to the second. Default of flow matching:
        0.4 1, with --image 0 1.
    renorm
        How guided predictions are scaled back: global, channel or text_channel. Default of flow matching:
        global, with --image text_channel.
    renorm_min
        The smallest factor of that scaling; 1 switches it off. Default of flow matching: 0.
    shift
        Timestep shift; above 1, more of the steps are taken at the beginning. Default of flow matching: 3.
    sampler
        KEY=VALUE: a further setting of the design's sampler; may be given several times.
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
        Print one JSON object per image.
    """
    if (prompt is None) == (prompts is None):
        raise UserError("say what to draw: either --prompt TEXT, once or several times, or --prompts FILE.")
    if image_guidance is not None and not image:
        raise UserError("--image-guidance needs an image to be guided by: give --image.")
    options = {
        "--steps": steps,
        "--guidance": guidance,
        "--image-guidance": image_guidance,
        "--interval": interval,
        "--renorm": renorm,
        "--renorm-min": renorm_min,
        "--shift": shift,
    }
    if prompts is not None:
        refused = {"--image": image, "--think": think, "--force": force, "--dtype": dtype != "auto"}
        whole.refuse(refused)
        given = WholeSetRequest(
            model, prompts, out, seed, count, parse_size(size or ()), options, sampler or (), device
        )
        draw_whole_set(given, whole, json_)
        return
    assert prompt is not None
    whole.refuse_alone()
    request = Request(
        model=model,
        prompts=prompt,
        edits=edits_of(prompt, image or ()),
        out=out,
        seed=seed,
        count=count,
        size=parse_size(size or ()),
        planning=Planning(think_tokens, temperature) if think else None,
        force=force,
    )
    for saved in draw_images(request, options, sampler or (), Placement(device, dtype)):
        if json_:
            facts = {"image": str(saved.path), "prompt": saved.prompt, "seed": seed, "number": saved.number}
            print(json.dumps(facts if saved.plan is None else {**facts, "plan": saved.plan}))
            continue
        print(saved.path)
        if saved.plan is not None:
            print(f"  plan: {saved.plan}")


@dataclass(frozen=True)
class Planning:
    """The model writes a plan of at most ``tokens`` tokens before it draws; temperature 0 is greedy."""

    tokens: int = 256
    temperature: float = 0.0


@dataclass(frozen=True)
class Request:
    """What is to be drawn: ``count`` images of each prompt, as PNG files of the folder ``out``.

    edits: for each prompt the image that it edits, if any. size: (height, width) in pixels; without it, the largest
    square that the model draws, or what suits the edited image.
    """

    model: Path
    prompts: Sequence[str]
    edits: Sequence[Path | None]
    out: Path
    seed: int = 0
    count: int = 1
    size: tuple[int, int] | None = None
    planning: Planning | None = None
    force: bool = False

    @property
    def editing(self) -> bool:
        """Whether images are edited."""
        return any(edit is not None for edit in self.edits)

    def check(self) -> None:
        """UserError, naming the option, for what no model could draw."""
        if self.count < 1:
            raise UserError("--count must be at least 1.")
        for text in self.prompts:
            if not text.strip():
                raise UserError(f"--prompt {text!r} is empty; give it a text.")
            require_encodable(text, f"--prompt {ascii(text)}")
        planning = self.planning
        if planning is not None and (planning.tokens < 1 or not 0 <= planning.temperature < math.inf):
            raise UserError("--think-tokens must be at least 1 and --temperature at least 0.")


def draw_images(
    request: Request, options: dict[str, Any], further: Sequence[str], placement: Placement
) -> Iterator[SavedImage]:
    """Draws what is asked for, and yields each image once it is written.

    options, further: of the sampler, see ``sampling_settings``. An image depends on the model, the sampler, the seed,
    its prompt (and edited image) and its number alone, not on what else is drawn. Each PNG carries its prompt, plan,
    seed and sampler as text chunks.

    Raises UserError when a file is there already (unless ``force``) and on a bad model, image, option or size.
    """
    from srum_ds.common.image_files import read_image
    from srum_ds.models import family_of, load_model
    from srum_ds.models.generation import read_generation
    from srum_ds.types import Prompt

    family = family_of(request.model)
    own = read_generation(request.model, family)
    sampling = sampling_settings(family, options, further, request.editing, own.sampling if own else None)
    request.check()
    if own is not None:
        print(own.line(request.model), file=sys.stderr)
        if request.size is None and not request.editing:
            request = replace(request, size=own.image_size)
    paths = output_paths(request.out, request.prompts, request.edits, request.seed, request.count, request.force)
    pixels = {path: read_image(path) for path in request.edits if path is not None}
    device, dtype = resolve_placement(placement)
    model = load_model(request.model, dtype=dtype, device=device)
    model.check_prompts([Prompt(id=text[:40], text=text) for text in request.prompts])
    for place, (text, edit) in enumerate(zip(request.prompts, request.edits, strict=True)):
        edit_CHW = None if edit is None else pixels[edit]
        tokens, images_NCHW, plans = _draw_prompt(model, request, sampling, text, edit_CHW)
        if not bool(tokens.isfinite().all() and images_NCHW.isfinite().all()):
            raise UserError(
                f"the model in {request.model} draws numbers that are not finite: its weights are damaged, or --dtype "
                f"{dtype} is too narrow for them. Try --dtype float32, or copy the weights again."
            )
        about = {"seed": request.seed, "model": request.model, "image": edit, **asdict(sampling)}
        for number, image_CHW in enumerate(images_NCHW):
            plan = None if plans is None else plans[number]
            saved = SavedImage(paths[place * request.count + number], text, number, plan)
            save(saved, image_CHW, about)
            yield saved


def _draw_prompt(
    model: UnifiedModel, request: Request, sampling: Any, text: str, edit_CHW: Tensor | None
) -> tuple[Tensor, Tensor, list[str] | None]:
    """Tokens and images [N, 3, H, W] of one prompt, and the plans that they were drawn by."""
    from srum_ds.common.seeds import derive
    from srum_ds.types import Prompt

    numbers = range(request.count)
    prompts = [Prompt(id=text[:40], text=text)] * request.count
    edits = None if edit_CHW is None else [edit_CHW] * request.count
    grid = model.grid(*(request.size or model.default_size(edit_CHW)))
    plans = None
    if request.planning is not None:
        seeds = [derive("plan", request.seed, text, number) for number in numbers]
        plans = model.plan(prompts, request.planning.tokens, edits, request.planning.temperature, seeds)
    keys = [("generate", request.seed, text, number) for number in numbers]
    tokens, images_NCHW = model.generate(prompts, keys, grid, sampling, edits, plans)
    return tokens, images_NCHW, plans


def edits_of(prompts: Sequence[str], images: Sequence[Path]) -> list[Path | None]:
    """The image that each prompt edits: one for all, one for each, or none. UserError for another number."""
    if len(images) not in (0, 1, len(prompts)):
        raise UserError(f"{len(images)} --image for {len(prompts)} --prompt: give one for all, or one for each prompt.")
    if len(images) == len(prompts):
        return list(images)
    return [images[0] if images else None] * len(prompts)


def parse_size(words: Sequence[str]) -> tuple[int, int] | None:
    """(height, width) of ``("512x768",)`` or ``("512", "768")``; None without words. UserError for others."""
    if not words:
        return None
    numbers = re.fullmatch(r"(\d+)[x ](\d+)", " ".join(words).lower())
    if numbers is None:
        raise UserError(f"--size {' '.join(words)!r} is no size; expected height and width, such as 512x768.")
    return int(numbers[1]), int(numbers[2])
