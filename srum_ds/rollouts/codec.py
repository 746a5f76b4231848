"""One judged image as three members of a tar, and back: JSON, PNG and safetensors; nothing is pickled.

    <key>.json          prompt, seeds, scores with statuses and raw replies, regions, who made it
    <key>.png           the image, 8 bits (models hand out multiples of 1/255)
    <key>.safetensors   tokens exactly as sampled, [T, C] float32 or [T] int64 (format 1: latents_TC)

Numbers in JSON are float32 values written so that they read back bit for bit; a score that failed is null. An image
that is not finite has a black PNG and ``"finite": false``; it reads back as NaN throughout, as it was drawn, and so
does one whose tokens are not finite.
"""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.image_files import read_image_bytes
from srum_ds.common.texts import is_number, parse_json
from srum_ds.prompts.shards import prompt_from_json, prompt_to_json
from srum_ds.types import Failure, Judged, Prompt, Regions, Samples, Scores, Status

EXTENSIONS = ("json", "png", "safetensors")
TOKENS = "tokens"
# What format 1 called them.
FORMER_TOKENS = "latents_TC"
_MOST_REQUESTS = 1_000_000
"""Of one micro-batch, by kind: a larger number is none that a judge has answered."""


def sample_key(step: int, place: int, sample: int) -> str:
    """The key of a sample: its step, its prompt's place in the step's global batch, its number of the prompt's."""
    return f"s{step:06d}-p{place:05d}-k{sample:04d}"


def encode(
    judged: Judged, step: int, first_place: int, seed: int, made: Mapping[str, Any]
) -> Iterator[dict[str, str | bytes]]:
    """The samples of a micro-batch, as ``webdataset.TarWriter`` takes them.

    first_place: the place of its first prompt in the step's global batch. seed: the run's, which seeded the images.
    made: who made them, kept with every sample.
    """
    samples, scores = judged.samples, judged.scores
    owners = judged.regions.owner_R.tolist()
    members: list[list[int]] = [[] for _ in range(len(samples.sample_N))]
    for region, owner in enumerate(owners):
        members[owner].append(region)
    looked = {"asked": judged.regions.asked, "failed": judged.regions.failed}
    requests = (
        None if scores.status_Q is None else Counter(Status(status).name.lower() for status in scores.status_Q.tolist())
    )
    failures: list[list[dict[str, Any]]] = [[] for _ in members]
    for failure in scores.failures:
        own = members[failure.picture]
        said = {"question": failure.question, "reply": failure.reply, "template": failure.template}
        region = own.index(failure.region) if failure.region >= 0 else -1
        failures[failure.picture].append({"region": region, **said})
    raw = scores.raw or ("",) * (len(members) + len(owners))
    # Which of a prompt's images it is here; the number that seeded it stands in the record.
    number = dict.fromkeys(range(len(samples.prompts)), -1)
    for n, group in enumerate(samples.group_N.tolist()):
        prompt = samples.prompts[group]
        number[group] += 1
        k = int(samples.sample_N[n])
        place = first_place + group
        record = {
            "prompt": json.loads(prompt_to_json(prompt)),
            "epoch": prompt.epoch,
            "step": step,
            "place": place,
            "sample": k,
            "seed": [seed, "rollout", step, prompt.name, k],
            "grid": list(samples.grid),
            **({} if bool(samples.finite_N[n]) else {"finite": False}),
            "global": _score(scores.global_N[n], scores.global_status_N[n], raw[n]),
            "missing": None if scores.missing_N is None else float(scores.missing_N[n]),
            "regions": [
                {
                    "box": judged.regions.boxes_R4[r].tolist(),
                    "phrase": int(scores.phrase_R[r]),
                    **_score(scores.local_R[r], scores.local_status_R[r], raw[len(members) + r]),
                }
                for r in members[n]
            ],
            "failures": failures[n],
            **(
                {"judges": {name: _value(said[n]) for name, said in scores.by_judge.items()}} if scores.by_judge else {}
            ),
            # Of the whole micro-batch, kept with its first image.
            "requests": requests if n == 0 or requests is None else {},
            "looked": looked if n == 0 else {},
            "made": dict(made),
        }
        yield {
            "__key__": sample_key(step, place, number[group]),
            "json": json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(),
            "png": _png(samples.images_NCHW[n]),
            "safetensors": save_tensors({TOKENS: samples.tokens[n].detach().cpu().contiguous()}),
        }


def decode(samples: Sequence[Mapping[str, bytes]], where: str) -> Judged:
    """One micro-batch from its samples' members, the samples of a prompt adjacent; tensors on the CPU.

    ``where`` names the place in the UserError raised for a member that is not what ``encode`` wrote.
    """
    try:
        return _decode(samples, where)
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        OverflowError,
        SafetensorError,
        OSError,
    ) as error:
        raise UserError(f"{where}: not a sample of a rollout ({error!r})") from error


def _decode(samples: Sequence[Mapping[str, bytes]], where: str) -> Judged:
    records = [parse_json(sample["json"], parse_constant=_no_number) for sample in samples]
    prompts: dict[int, Prompt] = {}
    for record in records:
        prompt = prompt_from_json(json.dumps(record["prompt"]).encode(), where)
        prompts[record["place"]] = Prompt(
            prompt.id, prompt.text, prompt.category, prompt.phrases, prompt.meta, epoch=record["epoch"]
        )
    places = list(prompts)
    grids = {tuple(record["grid"]) for record in records}
    if len(grids) != 1:
        raise ValueError(f"token grids {sorted(grids)} in one step")
    regions = [(n, region) for n, record in enumerate(records) for region in record["regions"]]
    missing = [record["missing"] for record in records]
    drawn = Samples(
        prompts=tuple(prompts.values()),
        group_N=torch.tensor([places.index(record["place"]) for record in records]),
        sample_N=torch.tensor([record["sample"] for record in records]),
        images_NCHW=torch.stack(
            [
                read_image_bytes(sample["png"], f"{where}: the image of prompt {record['prompt']['id']!r}")
                for sample, record in zip(samples, records, strict=True)
            ]
        ),
        tokens=torch.stack([_tokens(sample["safetensors"]) for sample in samples]),
        grid=grids.pop(),
    )
    # Whoever judges it again, and whoever trains from it, is to see what it is.
    lost_N = torch.tensor([not record.get("finite", True) for record in records]) | ~drawn.finite_N
    images_NCHW = drawn.images_NCHW.masked_fill(lost_N[:, None, None, None], torch.nan)
    drawn = replace(drawn, images_NCHW=images_NCHW) if bool(lost_N.any()) else drawn
    wholes = [record["global"] for record in records]
    parts = [region for _, region in regions]
    for said in (*wholes, *parts):
        _check_score(said)
    for part in parts:
        _check_box(part["box"])
    for record in records:
        _check_counts(record)
    scores = Scores(
        **_scores(wholes, "global_N", "global_status_N", lost_N.tolist()),
        **_scores(parts, "local_R", "local_status_R", [bool(lost_N[n]) for n, _ in regions]),
        phrase_R=torch.tensor([part["phrase"] for part in parts], dtype=torch.int64),
        raw=tuple(item["raw"] for item in [*wholes, *parts]),
        missing_N=None if None in missing else _floats(missing),
        status_Q=_requests(records),
        failures=_failures(records),
        by_judge=_by_judge(records),
    )
    owner_R = torch.tensor([n for n, _ in regions], dtype=torch.int64)
    boxes_R4 = torch.tensor([part["box"] for part in parts], dtype=torch.float32).reshape(-1, 4)
    if not bool(boxes_R4.isfinite().all()):
        raise ValueError("a box that is not finite")
    asked, failed = (sum(record["looked"].get(key, 0) for record in records) for key in ("asked", "failed"))
    return Judged(drawn, Regions(owner_R, boxes_R4, asked, failed), scores)


def _check_score(said: Mapping[str, Any]) -> None:
    """ValueError for a score that no judge gives: a number beyond [-1, 1], or none at all.

    null, and a number too large for a float, are what a judge that failed gives.
    """
    score = said["score"]
    if isinstance(score, bool) or not isinstance(score, int | float | None) or (is_number(score) and abs(score) > 1):
        raise ValueError(f"a score is {score!r}, {said['status']}")
    if not isinstance(said["raw"], str):
        raise ValueError(f"a reply is {said['raw']!r}")


def _check_box(box: Any) -> None:
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(side) and 0 <= side <= 1 for side in box):
        raise ValueError(f"a box is {box!r}")


def _check_counts(record: Mapping[str, Any]) -> None:
    """ValueError for a share, another judge's score or a number of requests that cannot have been."""
    missing = record["missing"]
    if missing is not None and not (is_number(missing) and 0 <= missing <= 1):
        raise ValueError(f"the share of missing objects is {missing!r}")
    for name, score in record.get("judges", {}).items():
        if score is not None and not (is_number(score) and abs(score) <= 1):
            raise ValueError(f"the score of judge {name!r} is {score!r}")
    for key, count in [*(record["requests"] or {}).items(), *record["looked"].items()]:
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= _MOST_REQUESTS:
            raise ValueError(f"the number of requests {key!r} is {count!r}")


def _tokens(data: bytes) -> Tensor:
    tensors = load_tensors(data)
    return tensors[FORMER_TOKENS] if FORMER_TOKENS in tensors else tensors[TOKENS]


def _value(score: Tensor) -> float | None:
    value = float(score)
    return value if math.isfinite(value) else None


def _by_judge(records: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """What each judge said of the images, NaN where one was not asked."""
    said = [record.get("judges", {}) for record in records]
    names = dict.fromkeys(name for of_one in said for name in of_one)
    return {name: _floats([of_one.get(name) for of_one in said]) for name in names}


def _score(score: Tensor, status: Tensor, raw: str) -> dict[str, Any]:
    return {"score": _value(score), "status": Status(int(status)).name.lower(), "raw": raw}


def _floats(values: Sequence[float | None]) -> Tensor:
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float32)


def _scores(items: Sequence[Mapping[str, Any]], score: str, status: str, lost: Sequence[bool]) -> dict[str, Any]:
    """Fields of ``Scores``: NaN and FAILED wherever one of the two says so, or the image is lost."""
    score_M = _floats([item["score"] for item in items])
    status_M = torch.tensor([int(Status[item["status"].upper()]) for item in items], dtype=torch.int64)
    failed_M = ~score_M.isfinite() | (status_M == Status.FAILED) | torch.tensor(lost, dtype=torch.bool)
    return {
        score: score_M.masked_fill(failed_M, torch.nan),
        status: status_M.masked_fill(failed_M, int(Status.FAILED)),
    }


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _requests(records: Sequence[Mapping[str, Any]]) -> Tensor | None:
    """How the requests ended, by kind: their order is not kept."""
    if any(record["requests"] is None for record in records):
        return None
    counts = Counter({status: 0 for status in Status})
    for record in records:
        counts.update({Status[name.upper()]: count for name, count in record["requests"].items()})
    return torch.tensor([int(status) for status in counts.elements()], dtype=torch.int64)


def _failures(records: Sequence[Mapping[str, Any]]) -> tuple[Failure, ...]:
    found = []
    first = 0
    for n, record in enumerate(records):
        for failure in record["failures"]:
            region = failure["region"] + first if failure["region"] >= 0 else -1
            found.append(Failure(n, region, failure["question"], failure["reply"], failure["template"]))
        first += len(record["regions"])
    return tuple(found)


def _png(image_CHW: Tensor) -> bytes:
    shown_CHW = image_CHW.detach().float().nan_to_num(0.0).clamp(0, 1)
    pixels = (shown_CHW * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()
