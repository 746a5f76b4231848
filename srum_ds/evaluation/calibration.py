"""``srum-ds calibrate``: compares readouts of the judge with labelled images, in accuracy and in seconds."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import ArrayLike

from srum_ds.common.environment import environment
from srum_ds.common.errors import UserError
from srum_ds.common.files import replacing, write_atomic
from srum_ds.config import Config, load_config
from srum_ds.config.choices import READOUTS
from srum_ds.evaluation.calibration_report import markdown, plot
from srum_ds.evaluation.labels import Labelled, RegionQuestion, drawn_and_checked, read_labels
from srum_ds.evaluation.statistics import auc
from srum_ds.models import default_dtype, load_model
from srum_ds.models.protocol import Judge
from srum_ds.monitoring.judge_failures import worst_replies_of
from srum_ds.rewards.judge.judge import Asked, ask_all, render
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rewards.judge.readouts import Replies, Request
from srum_ds.rewards.regions import crop
from srum_ds.types import Regions, Status

BINS = 10
RESAMPLES = 200


@dataclass(frozen=True)
class Opinion:
    """A readout's replies about N images and about Q questions on their regions.

    seconds_whole, seconds_parts: what they took; cpu_seconds: the processor's time for both.
    """

    whole: Replies
    parts: Replies
    seconds_whole: float
    seconds_parts: float
    cpu_seconds: float


def calibrate(
    recipe: Path | str,
    overrides: Sequence[str],
    readouts: Sequence[str],
    out: Path,
    labels: Path | None = None,
    threshold: float = 0.5,
    processes: int = 1,
) -> dict[str, Any]:
    """Compares readouts on labelled images; writes ``calibration.json``, ``.md`` and ``.png`` to ``out``.

    readouts: names of readouts, each perhaps with settings of its own: ``generate:judge.think=true``. Without
    ``labels`` the recipe's model draws ``eval.prompts`` prompts of ``eval.split`` and the independent checker
    labels them; with them, see ``read_labels``. Returns the content of ``calibration.json``.

    Raises UserError for readouts, settings or labels that do not fit, before anything is drawn.
    """
    configs = {name: readout_config(recipe, overrides, name) for name in readouts}
    pipelines = {name: JudgePipeline(cfg) for name, cfg in configs.items()}
    base = load_config(recipe, overrides)
    labelled = drawn_and_checked(base, processes) if labels is None else read_labels(labels, threshold)
    model = load_model(base.model.path, base.model.kind, default_dtype(_device()), _device())
    rows = {}
    for name, judging in pipelines.items():
        opinion = ask_readout(judging, model, labelled)
        rows[name] = {"judge": judging.described(), **readout_metrics(opinion, labelled)}
    result: dict[str, Any] = _finite({"source": labelled.source, "readouts": rows, "environment": environment(1)})
    write_atomic(out / "calibration.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    write_atomic(out / "calibration.md", markdown(result))
    with replacing(out / "calibration.png") as stream:
        plot(result, stream)
    return result


def readout_config(recipe: Path | str, overrides: Sequence[str], name: str) -> Config:
    """The recipe with the readout that ``name`` (``readout[:key=value]...``) asks for; a readout as ``judge.readout``.

    Raises UserError for an unknown readout and for settings that do not fit.
    """
    readout, *own = re.split(r":(?=[a-z_]+(?:\.\w+)+=)", name)
    if readout not in READOUTS.names() and ":" not in readout:
        known = ", ".join(READOUTS.names())
        raise UserError(
            f"--readouts {name}: expected one of {known}, or your own as module:name, perhaps with :key=value"
        )
    return load_config(recipe, [*overrides, f"judge.readout={readout}", *own])


def ask_readout(judging: JudgePipeline, judge: Judge, labelled: Labelled) -> Opinion:
    """What a readout says of all images and of all questions about their regions."""
    j = judging.cfg.judge
    if j.regional != "crop":
        raise UserError("judge.regional=boxes cannot be calibrated on questions about single regions: set it to crop")
    device = _device()
    images = [image.to(device) for image in labelled.images]
    whole = [
        [Request(0, judging.question_about(prompt), prompt.text, (prompt.name, "whole"))] for prompt in labelled.prompts
    ]
    regions: dict[int, list[RegionQuestion]] = {}
    for item in labelled.asked:
        regions.setdefault(item.region, []).append(item)
    crops = []
    parts = []
    for items in regions.values():
        first = items[0]
        box = Regions(torch.zeros(1, dtype=torch.int64), torch.tensor([first.box]))
        crops.append(crop(images[first.image][None], box, j.crop_size)[0])
        prompt = labelled.prompts[first.image]
        parts.append(
            [
                Request(
                    0,
                    render(judging.part, judging.readout, prompt=prompt.text, phrase=item.phrase),
                    item.phrase,
                    (prompt.name, first.region, number),
                )
                for number, item in enumerate(items)
            ]
        )
    begin, begin_cpu = time.perf_counter(), time.process_time()
    (said,) = ask_all(judge, [Asked(images, whole)], judging.readout, j.batch)
    between = time.perf_counter()
    (said_parts,) = ask_all(judge, [Asked(crops, parts)], judging.readout, j.batch)
    end, end_cpu = time.perf_counter(), time.process_time()
    return Opinion(said, said_parts, between - begin, end - between, end_cpu - begin_cpu)


def readout_metrics(opinion: Opinion, labelled: Labelled) -> dict[str, Any]:
    """All metrics of a readout: global, local, agreement, and cost.

    The order of ``labelled.asked`` is that of the regions.
    """
    count, crops = len(labelled.prompts), len({item.region for item in labelled.asked})
    owner_Q = np.array([item.image for item in labelled.asked], dtype=int)
    result: dict[str, Any] = {
        "global": level_metrics(opinion.whole, labelled.good_N, labelled.grade_N, np.arange(count)),
        "seconds_a_picture": opinion.seconds_whole / count,
    }
    if crops:
        good_Q = np.array([item.good for item in labelled.asked])
        grade_Q = np.array([item.grade for item in labelled.asked])
        result["local"] = level_metrics(opinion.parts, good_Q, grade_Q, owner_Q)
        result["local"]["crops"] = crops
        result["seconds_a_crop"] = opinion.seconds_parts / crops
        result["agreement"] = agreement(opinion, labelled)
    result["seconds_a_judged_picture"] = (opinion.seconds_whole + opinion.seconds_parts) / count
    result["cpu_seconds_a_judged_picture"] = opinion.cpu_seconds / count
    return result


def level_metrics(replies: Replies, good: np.ndarray, grade: np.ndarray, owner: np.ndarray) -> dict[str, Any]:
    """AUC, rank correlation, accuracy, calibration and failures of one level.

    auc: against ``good``, with the standard error of a bootstrap over images (``owner``). spearman: against
    ``grade``. accuracy: of the score's sign. reliability: in each of ten bins of (score + 1) / 2, how many
    replies, their mean and the share that was good; ece: the mean distance of the two, by replies.
    Failed replies are left out of all of these and counted.
    """
    score = replies.score_Q.double().numpy()
    known = np.isfinite(score)
    share, truth = (score[known] + 1) / 2, good[known].astype(float)
    bins = reliability(share, truth)
    statuses = torch.bincount(replies.status_Q, minlength=len(Status)).tolist()
    return {
        "n": len(score),
        "good": float(good.mean()),
        "failed": statuses[Status.FAILED] / len(score),
        "clamped": statuses[Status.CLAMPED] / len(score),
        "auc": auc(score, good),
        "auc_stderr": auc_error(score, good, owner),
        "spearman": spearman(score, grade),
        "accuracy": float(((score[known] > 0) == good[known]).mean()) if known.any() else math.nan,
        "ece": sum(b["n"] * abs(b["said"] - b["good"]) for b in bins) / known.sum() if known.any() else math.nan,
        "reliability": bins,
        "failed_replies": worst_replies_of(
            [text for text, score_ok in zip(replies.raw, known, strict=True) if not score_ok]
        ),
    }


def spearman(scores: ArrayLike, grades: ArrayLike) -> float:
    """Spearman's rank correlation over the pairs without NaN; NaN where either side is constant."""
    x, y = np.asarray(scores, dtype=float), np.asarray(grades, dtype=float)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(scipy.stats.spearmanr(x, y).statistic)


def auc_error(scores: np.ndarray, good: np.ndarray, owner: np.ndarray, seed: int = 0) -> float:
    """Standard error of the AUC from a bootstrap over images: an image's questions are drawn together."""
    rng = np.random.default_rng(seed)
    images, place = np.unique(owner, return_inverse=True)
    members = [np.flatnonzero(place == number) for number in range(len(images))]
    values = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([members[number] for number in rng.integers(len(images), size=len(images))])
        values.append(auc(scores[drawn], good[drawn]))
    finite = np.array([value for value in values if math.isfinite(value)])
    return float(finite.std(ddof=1)) if finite.size > 1 else math.nan


def reliability(share: np.ndarray, truth: np.ndarray) -> list[dict[str, float]]:
    """The bins of a reliability diagram that hold anything: {"low", "high", "n", "said", "good"}."""
    place = np.minimum((share * BINS).astype(int), BINS - 1)
    rows = []
    for number in range(BINS):
        inside = place == number
        if inside.any():
            rows.append(
                {
                    "low": number / BINS,
                    "high": (number + 1) / BINS,
                    "n": int(inside.sum()),
                    "said": float(share[inside].mean()),
                    "good": float(truth[inside].mean()),
                }
            )
    return rows


def agreement(opinion: Opinion, labelled: Labelled) -> dict[str, Any]:
    """Whether the whole-image score and the regions' scores say the same of an image.

    A region is worth its best score over the prompt's own phrases, an image the mean of its regions.
    spearman: between the two, over the images that have both. same_sign: how often both are above 0,
    or both not.
    """
    best: dict[tuple[int, int], float] = {}
    for item, score in zip(labelled.asked, opinion.parts.score_Q.tolist(), strict=True):
        key = (item.image, item.region)
        if item.own and math.isfinite(score):
            best[key] = max(score, best.get(key, -math.inf))
    of_image: dict[int, list[float]] = {}
    for (image, _), score in best.items():
        of_image.setdefault(image, []).append(score)
    local_N = np.array([np.mean(of_image.get(n, [math.nan])) for n in range(len(labelled.prompts))])
    global_N = opinion.whole.score_Q.double().numpy()
    both = np.isfinite(local_N) & np.isfinite(global_N)
    same = float(((local_N[both] > 0) == (global_N[both] > 0)).mean()) if both.any() else math.nan
    return {"n": int(both.sum()), "spearman": spearman(global_N, local_N), "same_sign": same}


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _finite(value: Any) -> Any:
    """The same with None for numbers that are not finite, rounded to five digits after the point."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value
