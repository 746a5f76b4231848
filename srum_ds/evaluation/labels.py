"""Labelled images to calibrate a judge on: drawn and checked, or from a shard with scores of others.

``calibration`` calls it.
"""

from __future__ import annotations

import random
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.files import refuse_special, weights_sha256
from srum_ds.common.image_files import read_image_bytes
from srum_ds.common.tars import members_of
from srum_ds.common.texts import is_encodable, is_number, parse_json
from srum_ds.config import Config
from srum_ds.evaluation.draw import draw_images
from srum_ds.evaluation.evaluate import (
    benchmark_for,
    check_images,
    draw_settings,
    eval_prompts,
    eval_questions,
    shown_benchmark,
    shown_sampling,
)
from srum_ds.prompts.files import sample_name
from srum_ds.rewards.regions import select
from srum_ds.rewards.regions.components import component_candidates
from srum_ds.types import Prompt

IMAGE_ENDINGS = ("png", "jpg", "jpeg", "webp")


@dataclass(frozen=True)
class RegionQuestion:
    """One question about a region: its image, box (x0, y0, x1, y1 in [0, 1]), phrase, and the truth.

    good: whether it shows the phrase. grade: how well, on the labels' own scale. own: whether the phrase is
    one of the prompt's.
    """

    image: int
    region: int
    box: tuple[float, float, float, float]
    phrase: str
    good: bool
    grade: float
    own: bool = True


@dataclass(frozen=True)
class Labelled:
    """N images [3, H, W] in [0, 1] with their prompts and truths, and Q questions about their regions.

    good_N: whether an image follows its prompt. grade_N: how far. source: where the truth comes from.
    """

    prompts: tuple[Prompt, ...]
    images: tuple[Tensor, ...]
    good_N: np.ndarray
    grade_N: np.ndarray
    asked: tuple[RegionQuestion, ...]
    source: dict[str, Any]


def drawn_and_checked(cfg: Config, processes: int = 1) -> Labelled:
    """Images that the model draws of ``eval.prompts`` prompts of ``eval.split``, checked by ``eval.benchmark``.

    good: exactly what was asked for; grade: the benchmark's partial credit. Each region is asked about phrases whose
    truth the benchmark knows: for the shapes world each of its prompt's, and one with an attribute changed.

    Raises UserError for prompts that ``eval.benchmark`` cannot score.
    """
    prompts = eval_prompts(cfg)
    try:
        benchmark = benchmark_for(cfg, prompts)
    except UserError as error:
        raise UserError(f"{error}; or give --labels, a shard of images with scores") from error
    images_NCHW, source = drawn(cfg, prompts, processes)
    outcomes = check_images(benchmark, prompts, images_NCHW, cfg.eval.batch)
    images_NCHW = images_NCHW.float() / 255
    r = cfg.regions
    candidates = component_candidates(images_NCHW, r.threshold)
    regions = select(candidates, max_count=r.max_count, min_area=r.min_area, pad=r.pad)
    rng = random.Random(cfg.eval.seed)
    asked: list[RegionQuestion] = []
    for number, (prompt, image_CHW) in enumerate(zip(prompts, images_NCHW, strict=True)):
        mine = (regions.owner_R == number).nonzero().flatten().tolist()
        boxes = [regions.boxes_R4[region].tolist() for region in mine]
        truths = benchmark.region_truths(rng, prompt, image_CHW, boxes)
        for region, box, of_box in zip(mine, boxes, truths, strict=True):
            place = _box(box, "a drawn image")
            for said in of_box:
                grade = float(said.truth)
                asked.append(RegionQuestion(number, region, place, said.phrase, said.truth, grade, said.own))
    return Labelled(
        tuple(prompts),
        tuple(images_NCHW),
        np.array([outcome.exact for outcome in outcomes]),
        np.array([outcome.partial for outcome in outcomes]),
        tuple(asked),
        {"labels": "the independent checker, on pictures the model drew itself", **source, **shown_benchmark(cfg)},
    )


def drawn(cfg: Config, prompts: Sequence[Prompt], processes: int = 1) -> tuple[Tensor, dict[str, Any]]:
    """The recipe's model's own images of the prompts, uint8 [N, 3, H, W], and how they were drawn."""
    folder = Path(cfg.model.path)
    settings = draw_settings(cfg)
    images_NCHW = draw_images([folder], prompts, eval_questions(cfg, prompts), settings, processes)[0].images_NCHW
    sampling = shown_sampling(settings)
    return images_NCHW, {
        "split": cfg.eval.split,
        "pictures": len(prompts),
        "seed": cfg.eval.seed,
        **{name: sampling[name] for name in ("text_scale", "num_timesteps") if name in sampling},
        "model": cfg.written("model.path"),
        "model_sha256": weights_sha256(folder),
    }


def read_labels(path: Path, threshold: float) -> Labelled:
    """Images with scores of humans or of another judge, from a tar or a folder of tars.

    Each sample has an image ``<key>.png`` (or jpg, jpeg, webp) and ``<key>.json``:

        {"prompt": "...", "score": 0.7,
         "regions": [{"box": [x0, y0, x1, y1], "phrase": "...", "score": 0.2}, ...]}

    ``regions`` may be left out; boxes are in [0, 1]. Scores may have any scale, the same for all; ``threshold``
    is the smallest that counts as good.

    Raises UserError naming the file and the sample that does not fit.
    """
    tars = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not tars:
        raise UserError(f"{path}: no tar files there; expected samples of <key>.png and <key>.json")
    prompts: list[Prompt] = []
    images: list[Tensor] = []
    grades: list[float] = []
    asked: list[RegionQuestion] = []
    region_count = 0
    for tar in tars:
        for key, record, image in _samples(tar):
            where = f"{tar}: {key}.json"
            if not isinstance(record, dict) or not _is_text(record.get("prompt")):
                raise UserError(f'{where}: expected an object with "prompt" (text) and "score" (a number)')
            phrases: dict[str, None] = {}
            entries = record.get("regions", [])
            if not isinstance(entries, list):
                raise UserError(f"{where}: regions is {entries!r}, expected a list")
            for entry in entries:
                if not isinstance(entry, dict) or not _is_text(entry.get("phrase")):
                    raise UserError(f'{where}: a region is {entry!r}, expected "box", "phrase" and "score"')
                grade = _number(entry.get("score"), where)
                box = _box(entry.get("box"), where)
                asked.append(
                    RegionQuestion(len(prompts), region_count, box, entry["phrase"], grade >= threshold, grade)
                )
                phrases[entry["phrase"]] = None
                region_count += 1
            prompts.append(Prompt(key, record["prompt"], "", tuple(phrases)))
            images.append(image)
            grades.append(_number(record.get("score"), where))
    if not prompts:
        raise UserError(f"{path}: holds no samples of <key>.png and <key>.json")
    grade_N = np.array(grades)
    source = {"labels": str(path), "pictures": len(prompts), "threshold": threshold}
    return Labelled(tuple(prompts), tuple(images), grade_N >= threshold, grade_N, tuple(asked), source)


def _samples(path: Path) -> list[tuple[str, Any, Tensor]]:
    """(key, record, image) of each sample of a tar, in its order; ``sample_name`` says what the key of a member is.

    Members of a sample that are neither JSON nor image are no part of it. Raises UserError for a sample that lacks
    one of the two or has it twice.
    """
    records: dict[str, Any] = {}
    images: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    try:
        refuse_special(path)
        with tarfile.open(path, "r:") as tar:
            for member in members_of(tar):
                key, ending = sample_name(member.name)
                is_image = ending in IMAGE_ENDINGS
                stream = tar.extractfile(member)
                if stream is None or not key:
                    continue
                if not is_image and ending != "json":
                    if ending.rpartition(".")[2] in (*IMAGE_ENDINGS, "json"):
                        others.setdefault(key, member.name)
                    continue
                if key in (images if is_image else records):
                    kind = "image" if is_image else "JSON"
                    raise UserError(f"{path}: {member.name}: the sample {key!r} has a second {kind}; each has one")
                data = stream.read()
                if is_image:
                    images[key] = read_image_bytes(data, f"{path}: {member.name}")
                else:
                    records[key] = _record(data, f"{path}: {member.name}")
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path}: not a readable tar of images and JSON ({error})") from error
    for key, name in others.items():
        if key not in records and key not in images:
            raise UserError(
                f"{path}: {name}: a sample's name ends at the first dot after the folder, so that this is of a sample "
                f"{key!r}, which has no image and no JSON; write the dots in names as another letter"
            )
    lonely = sorted(records.keys() ^ images.keys())
    if lonely:
        raise UserError(f"{path}: {lonely[0]} has no image or no JSON; each sample needs both")
    return [(key, record, images[key]) for key, record in records.items()]


def _record(data: bytes, where: str) -> Any:
    try:
        return parse_json(data)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error})") from error


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and is_encodable(value)


def _number(value: Any, where: str) -> float:
    if not is_number(value):
        raise UserError(f"{where}: score is {value!r}, expected a number")
    return float(value)


def _box(value: Any, where: str) -> tuple[float, float, float, float]:
    numbers = isinstance(value, Sequence) and len(value) == 4 and all(is_number(x) for x in value)
    if not numbers or not (0 <= value[0] < value[2] <= 1 and 0 <= value[1] < value[3] <= 1):
        raise UserError(f"{where}: box is {value!r}, expected x0 < x1 and y0 < y1 in [0, 1]")
    return float(value[0]), float(value[1]), float(value[2]), float(value[3])
