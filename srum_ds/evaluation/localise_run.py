"""``srum-ds calibrate --localise``: damages a region of each picture; asks for all regions' scores before and after.

Asked in three ways: each region on its own crop, as boxes that are listed in a question about the whole picture, and
the whole picture alone. ``localise`` has the damages and the figures.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srum_ds.common.environment import environment
from srum_ds.common.errors import UserError
from srum_ds.common.files import write_atomic
from srum_ds.config import Config, load_config
from srum_ds.evaluation.evaluate import eval_prompts
from srum_ds.evaluation.labels import drawn, read_labels
from srum_ds.evaluation.localise import Box, blurred, cut_out, effect, grey, least_alike, painted, replaced
from srum_ds.evaluation.localise_report import markdown
from srum_ds.models import default_dtype, load_model
from srum_ds.models.protocol import Judge
from srum_ds.rewards.judge.judge import Asked, ask_all, check_template, judge_samples, render
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rewards.judge.readouts import Request, generate_readout
from srum_ds.rewards.regions import crop
from srum_ds.rewards.templates import Template, load_template
from srum_ds.types import Prompt, Regions, Samples

JSON = "localise.json"
MARKDOWN = "localise.md"
GREY_CONTROL = "grey"
DAMAGES = ("blur", "paint", "swap", "foreign", GREY_CONTROL)
WRITTEN_TEMPLATE = "regional_boxes"
UNREADABLE = "no reply to the undamaged pictures could be read"


@dataclass(frozen=True)
class Scene:
    """A picture [3, H, W] in [0, 1] with at least two regions that show a phrase of its prompt each.

    boxes, phrases: of the regions. damaged: which of them is damaged.
    """

    prompt: Prompt
    picture: Tensor
    boxes: tuple[Box, ...]
    phrases: tuple[str, ...]
    damaged: int


Way = Callable[[Judge, Sequence[Scene], Sequence[Tensor]], np.ndarray]
"""(judge, scenes, one picture of each) -> scores of all regions, one scene after the other, NaN where failed."""


def localise(
    recipe: Path | str,
    overrides: Sequence[str],
    out: Path,
    labels: Path | None = None,
    listed: str | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """Measures whether region scores say where a picture is damaged; writes ``localise.json`` and ``.md`` to ``out``.

    The recipe's model draws ``eval.prompts`` prompts of ``eval.split``, or the pictures are those of ``labels`` (see
    ``read_labels``; only prompts, phrases and pictures are looked at). Regions are the recipe's, matched to phrases as
    in training. listed: template of the question about one listed box, see ``listed_template``. Returns the content of
    ``localise.json``.

    Raises UserError for settings that do not fit, before anything is drawn, and where no picture has two regions.
    """
    cfg = load_config(recipe, overrides)
    if cfg.judge.regional != "crop":
        raise UserError("judge.regional=boxes: --localise asks about crops and listed boxes alike: set it to crop")
    if cfg.regions.kind == "none":
        raise UserError("regions.kind=none: there are no regions to damage; choose another kind")
    judging = JudgePipeline(cfg).ready()
    ways, refused = ways_of(judging, listed)
    prompts, pictures, source = _pictures(cfg, labels, processes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(cfg.model.path, cfg.model.kind, default_dtype(device), device)
    scenes, left_out = scenes_of(judging, model, prompts, [picture.to(device) for picture in pictures], cfg.eval.seed)
    if not scenes:
        raise UserError(
            f"none of {len(pictures)} pictures has two regions that show a phrase of its prompt (left out: "
            f"{dict(left_out)}): nothing can be compared; see regions.* and eval.prompts"
        )
    result: dict[str, Any] = {
        "source": source,
        "judge": judging.described(),
        "pictures": {"looked_at": len(pictures), "used": len(scenes), **left_out},
        "regions": sum(len(scene.boxes) for scene in scenes),
        "ways": {name: measured(way, model, scenes, cfg.eval.seed) for name, way in ways.items()} | refused,
        "environment": environment(1),
    }
    result = _finite(result)
    write_atomic(out / JSON, json.dumps(result, indent=2, allow_nan=False) + "\n")
    write_atomic(out / MARKDOWN, markdown(result))
    return result


# ---- pictures and their regions


def _pictures(
    cfg: Config, labels: Path | None, processes: int
) -> tuple[Sequence[Prompt], Sequence[Tensor], dict[str, Any]]:
    if labels is not None:
        found = read_labels(labels, 0.0)
        return found.prompts, found.images, {"pictures_of": str(labels)}
    prompts = eval_prompts(cfg)
    images_NCHW, source = drawn(cfg, prompts, processes)
    return prompts, list(images_NCHW.float() / 255), {"pictures_of": "the model itself", **source}


def scenes_of(
    judging: JudgePipeline, judge: Judge, prompts: Sequence[Prompt], pictures: Sequence[Tensor], seed: int
) -> tuple[list[Scene], Counter[str]]:
    """The pictures with at least two regions that the judge matched to phrases, and how many were left out, and why.

    A region that no phrase claims is not asked about. Which region is damaged is chosen at random, by ``seed`` and the
    prompt's id.
    """
    alike: dict[torch.Size, list[int]] = {}
    for number, picture in enumerate(pictures):
        alike.setdefault(picture.shape, []).append(number)
    found: dict[int, Scene] = {}
    left_out: Counter[str] = Counter(without_two_regions=0, regions_without_phrase=0)
    for numbers in alike.values():
        samples = Samples(
            judging.regions.phrases(judge, [prompts[number] for number in numbers]),
            torch.arange(len(numbers)),
            torch.zeros(len(numbers), dtype=torch.int64),
            torch.stack([pictures[number] for number in numbers]),
            torch.zeros(len(numbers), 1, dtype=torch.int64),
            (1, 1),
        )
        regions = judging.regions.regions(judge, samples)
        phrase_R = judge_samples(judge, samples, regions, judging.asking).phrase_R.tolist()
        owners = regions.owner_R.tolist()
        for place, number in enumerate(numbers):
            prompt = samples.prompts[place]
            mine = [region for region, owner in enumerate(owners) if owner == place]
            shown = [region for region in mine if phrase_R[region] >= 0]
            left_out["regions_without_phrase"] += len(mine) - len(shown)
            if len(shown) < 2:
                left_out["without_two_regions"] += 1
                continue
            found[number] = Scene(
                prompt,
                pictures[number],
                tuple(_box(regions.boxes_R4[region].tolist()) for region in shown),
                tuple(prompt.phrases[phrase_R[region]] for region in shown),
                random.Random(f"localise {seed} {prompt.id}").randrange(len(shown)),
            )
    return [found[number] for number in sorted(found)], left_out


def _box(values: Sequence[float]) -> Box:
    x0, y0, x1, y1 = values
    return x0, y0, x1, y1


def damaged_picture(scenes: Sequence[Scene], number: int, damage: str, seed: int) -> Tensor | None:
    """A scene's picture after a damage of ``DAMAGES``; None where its picture has nothing to swap with.

    swap: the box shows another region of the picture instead; foreign: a region of another picture. Either is chosen
    at random among those whose phrase shares the fewest words with the damaged one's, and none shows the same phrase.
    """
    scene = scenes[number]
    box = scene.boxes[scene.damaged]
    phrase = scene.phrases[scene.damaged]
    rng = random.Random(f"{damage} {seed} {scene.prompt.id}")
    if damage == "blur":
        return blurred(scene.picture, box)
    if damage == "paint":
        return painted(scene.picture, box)
    if damage == GREY_CONTROL:
        return grey(scene.picture)
    if damage == "swap":
        places = [(number, region) for region in range(len(scene.boxes))]
    elif damage == "foreign":
        places = [(k, region) for k, other in enumerate(scenes) if k != number for region in range(len(other.boxes))]
    else:
        raise ValueError(f"unknown damage {damage!r}, expected one of {', '.join(DAMAGES)}")
    unlike = least_alike(phrase, [scenes[k].phrases[region] for k, region in places])
    if not unlike:
        return None
    picture, region = places[rng.choice(unlike)]
    return replaced(scene.picture, box, cut_out(scenes[picture].picture, scenes[picture].boxes[region]))


# ---- asking


def ways_of(judging: JudgePipeline, listed: str | None = None) -> tuple[dict[str, Way], dict[str, dict[str, str]]]:
    """How regions are asked about, by name, and the ways that this readout cannot serve, with the reason.

    crops; listed: one question a region about the whole picture, boxes as text; written: one written reply about all
    boxes (as released); whole: one question about the picture, whose score all of its regions get.
    """
    ways: dict[str, Way] = {"crops": _Crops(judging)}
    refused: dict[str, dict[str, str]] = {}
    template = listed_template(judging, listed)
    if isinstance(template, Template):
        ways["listed"] = _Listed(judging, template)
    else:
        refused["listed"] = {"not_asked": template}
    ways["written"] = _Written(judging, load_template(WRITTEN_TEMPLATE))
    ways["whole"] = _Whole(judging)
    return ways, refused


def listed_template(judging: JudgePipeline, name: str | None) -> Template | str:
    """The template of the question about one listed box, or why there is none.

    Without ``name``: ``shapes_listed`` where the judge is asked by ``shapes_local`` (the words of that world have none
    for a box: it asks about the whole picture whether such an object is there), else ``listed_box``.
    """
    j = judging.cfg.judge
    if not judging.readout.needs_question:
        return f"judge.readout={j.readout} scores the phrase itself, which the question must not name"
    if name is None and j.scale:
        return "judge.scale is set: name a question that asks for such a rating by --listed"
    own = "shapes_listed" if judging.part is not None and judging.part.name == "shapes_local" else "listed_box"
    template = load_template(name if name is not None else own)
    check_template(template, judging.readout, "phrase")
    return template


def measured(way: Way, judge: Judge, scenes: Sequence[Scene], seed: int) -> dict[str, Any]:
    """``effect`` of each damage; where nothing at all can be read of undamaged pictures, that alone."""
    before = way(judge, scenes, [scene.picture for scene in scenes])
    if not np.isfinite(before).any():
        return {"not_asked": UNREADABLE, "failed": 1.0, "asked": len(before)}
    counts = [len(scene.boxes) for scene in scenes]
    owner = np.repeat(np.arange(len(scenes)), counts)
    damaged = np.concatenate([np.arange(len(scene.boxes)) == scene.damaged for scene in scenes])
    rows: dict[str, Any] = {}
    for damage in DAMAGES:
        pictures = {
            number: picture
            for number in range(len(scenes))
            if (picture := damaged_picture(scenes, number, damage, seed)) is not None
        }
        after = way(judge, [scenes[number] for number in pictures], list(pictures.values()))
        chosen = np.isin(owner, list(pictures))
        rows[damage] = effect(before[chosen], after, owner[chosen], damaged[chosen])
        rows[damage]["not_possible"] = len(scenes) - len(pictures)
    return rows


@dataclass(frozen=True)
class _Crops:
    judging: JudgePipeline

    def __call__(self, judge: Judge, scenes: Sequence[Scene], pictures: Sequence[Tensor]) -> np.ndarray:
        crops: list[Tensor] = []
        requests = []
        for scene, picture in zip(scenes, pictures, strict=True):
            boxes = Regions(torch.zeros(len(scene.boxes), dtype=torch.int64), torch.tensor(scene.boxes))
            crops += crop(picture[None], boxes, self.judging.cfg.judge.crop_size)
            for number, phrase in enumerate(scene.phrases):
                question = render(self.judging.part, self.judging.readout, prompt=scene.prompt.text, phrase=phrase)
                requests.append([Request(0, question, phrase, (scene.prompt.name, "crops", number))])
        return _scores(judge, self.judging, Asked(crops, requests))


@dataclass(frozen=True)
class _Listed:
    judging: JudgePipeline
    template: Template

    def __call__(self, judge: Judge, scenes: Sequence[Scene], pictures: Sequence[Tensor]) -> np.ndarray:
        requests = []
        for scene, picture in zip(scenes, pictures, strict=True):
            boxes, size = _in_pixels(scene, picture)
            requests.append(
                [
                    Request(
                        0,
                        render(
                            self.template,
                            self.judging.readout,
                            prompt=scene.prompt.text,
                            phrase=phrase,
                            boxes=boxes,
                            number=number,
                            **size,
                        ),
                        phrase,
                        (scene.prompt.name, "listed", number),
                    )
                    for number, phrase in enumerate(scene.phrases, 1)
                ]
            )
        return _scores(judge, self.judging, Asked(pictures, requests))


@dataclass(frozen=True)
class _Written:
    judging: JudgePipeline
    template: Template

    def __call__(self, judge: Judge, scenes: Sequence[Scene], pictures: Sequence[Tensor]) -> np.ndarray:
        readout = generate_readout(self.judging.cfg)
        requests = []
        for scene, picture in zip(scenes, pictures, strict=True):
            boxes, size = _in_pixels(scene, picture)
            question = render(self.template, readout, prompt=scene.prompt.text, boxes=boxes, **size)
            name = (scene.prompt.name, "written")
            requests.append([Request(0, question, scene.prompt.text, name, len(scene.boxes))])
        (replies,) = ask_all(judge, [Asked(pictures, requests)], readout, self.judging.cfg.judge.batch)
        return replies.score_Q.double().numpy()


@dataclass(frozen=True)
class _Whole:
    judging: JudgePipeline

    def __call__(self, judge: Judge, scenes: Sequence[Scene], pictures: Sequence[Tensor]) -> np.ndarray:
        requests = [
            [Request(0, self.judging.question_about(scene.prompt), scene.prompt.text, (scene.prompt.name, "whole"))]
            for scene in scenes
        ]
        score_N = _scores(judge, self.judging, Asked(pictures, requests))
        return np.repeat(score_N, [len(scene.boxes) for scene in scenes])


def _scores(judge: Judge, judging: JudgePipeline, asked: Asked) -> np.ndarray:
    (replies,) = ask_all(judge, [asked], judging.readout, judging.cfg.judge.batch)
    return replies.score_Q.double().numpy()


def _in_pixels(scene: Scene, picture: Tensor) -> tuple[list[list[int]], dict[str, int]]:
    """The boxes as listed in a question, and the picture's width and height."""
    height, width = picture.shape[1:]
    sides = (width, height, width, height)
    boxes = [[round(value * side) for value, side in zip(box, sides, strict=True)] for box in scene.boxes]
    return boxes, {"width": width, "height": height}


def _finite(value: Any) -> Any:
    """The same with None for numbers that are not finite, rounded to five digits after the point."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value
