"""Damage to one region of a picture, and whether a judge's scores say which one it was: pure functions.

``localise_run`` asks the judge before and after; the figures here say whether the damaged region's score fell, and
whether the others' stayed. (The question is that of a public audit of region rewards: scores of boxes that are listed
in one question fall with the whole picture's, whichever box was damaged.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from srum_ds.evaluation.statistics import estimate
from srum_ds.rewards.regions import pixel_range

Box = tuple[float, float, float, float]

BLUR = 0.25
"""Standard deviation of the blur, as a share of the box's longer side."""

GREY = 0.5
TIE = 1e-3
"""Scores in [-1, 1] that are nearer than this count as the same: rounding differs between batches."""

RESAMPLES = 500
_SMALL_WORDS = frozenset({"a", "an", "the"})


# ---- damages


def blurred(image_CHW: Tensor, box: Box) -> Tensor:
    """The image [3, H, W] with one box blurred (Gaussian, ``BLUR``), as if nothing were around it."""
    rows, columns = _pixels(image_CHW, box)
    cut = image_CHW[:, rows, columns]
    sigma = BLUR * max(cut.shape[1:])
    soft = scipy.ndimage.gaussian_filter(cut.detach().float().cpu().numpy(), (0, sigma, sigma), mode="reflect")
    return _with(image_CHW, box, torch.from_numpy(soft))


def painted(image_CHW: Tensor, box: Box) -> Tensor:
    """The image [3, H, W] with one box painted in the background's colour: the median of the image's border."""
    return _with(image_CHW, box, background(image_CHW)[:, None, None])


def replaced(image_CHW: Tensor, box: Box, patch_CHW: Tensor) -> Tensor:
    """The image [3, H, W] with one box showing a patch [3, h, w] (bilinear, antialiased) instead."""
    rows, columns = _pixels(image_CHW, box)
    size = (rows.stop - rows.start, columns.stop - columns.start)
    fitted = F.interpolate(patch_CHW[None].float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return _with(image_CHW, box, fitted[0].clamp(0.0, 1.0))


def grey(image_CHW: Tensor) -> Tensor:
    """A grey image of the same size: the blind control, for nothing is to be seen in it."""
    return torch.full_like(image_CHW, GREY)


def cut_out(image_CHW: Tensor, box: Box) -> Tensor:
    """What a box of the image shows, [3, h, w]."""
    rows, columns = _pixels(image_CHW, box)
    return image_CHW[:, rows, columns]


def background(image_CHW: Tensor) -> Tensor:
    """Median colour [3] of the image's outermost pixels, as regions of kind ``components`` see it."""
    edges = (image_CHW[:, 0], image_CHW[:, -1], image_CHW[:, :, 0], image_CHW[:, :, -1])
    border = torch.cat(edges, dim=1).detach().float().cpu().numpy()
    return torch.from_numpy(np.median(border, axis=1)).to(image_CHW)


def least_alike(phrase: str, others: Sequence[str]) -> list[int]:
    """Positions of the phrases that share the fewest words with ``phrase``; the same phrase is never among them."""
    words = _words(phrase)
    shared = {k: len(words & _words(other)) for k, other in enumerate(others) if _words(other) != words}
    fewest = min(shared.values(), default=0)
    return [k for k, count in shared.items() if count == fewest]


def _words(phrase: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", phrase.casefold())) - _SMALL_WORDS


def _pixels(image_CHW: Tensor, box: Box) -> tuple[slice, slice]:
    """Rows and columns that a crop of this box takes."""
    height, width = image_CHW.shape[1:]
    return slice(*pixel_range(box[1], box[3], height)), slice(*pixel_range(box[0], box[2], width))


def _with(image_CHW: Tensor, box: Box, patch: Tensor) -> Tensor:
    rows, columns = _pixels(image_CHW, box)
    changed = image_CHW.clone()
    changed[:, rows, columns] = patch.to(changed)
    return changed


# ---- figures


def effect(before_R: ArrayLike, after_R: ArrayLike, owner_R: ArrayLike, damaged_R: ArrayLike) -> dict[str, Any]:
    """What damage to one region of each picture did to the scores of all of them.

    before_R, after_R: scores in [-1, 1] of R regions, NaN where the judge failed. owner_R: each region's picture.
    damaged_R: whether it is the damaged one, of which each picture has exactly one.

    A picture counts (``n``) where the damaged region and at least one other have both scores; ``left_out`` are the
    others, ``failed`` the share of all regions without both scores, ``others`` the regions compared with. Of these:

    auc: the chance that a damaged region's score fell by more than an undamaged one's, ties half, over all pairs of two
    pictures and within them (``fall_auc``); auc_stderr: of a bootstrap over pictures. same_picture: the same over pairs
    within a picture, the mean over pictures. ties: the share of pairs within a picture that fell equally (``TIE``).
    fell: mean fall of the damaged region's score. moved: mean absolute change of the others'. before, after: the
    damaged region's mean scores. Each with its standard error over pictures (``_stderr``). NaN where nothing is left.

    Raises ValueError for a picture without, or with more than one, damaged region.
    """
    before, after = np.asarray(before_R, dtype=float), np.asarray(after_R, dtype=float)
    owner, damaged = np.asarray(owner_R, dtype=int), np.asarray(damaged_R, dtype=bool)
    fall = np.round((before - after) / TIE) * TIE
    known = np.isfinite(fall)
    own: list[float] = []
    others: list[np.ndarray] = []
    rows: dict[str, list[float]] = {name: [] for name in ("same_picture", "ties", "fell", "moved", "before", "after")}
    pictures = np.unique(owner)
    for picture in pictures:
        mine = owner == picture
        hit = mine & damaged
        if hit.sum() != 1:
            raise ValueError(f"picture {picture} has {int(hit.sum())} damaged regions, expected one")
        rest = mine & ~damaged & known
        if not (hit & known).any() or not rest.any():
            continue
        own.append(float(fall[hit][0]))
        others.append(fall[rest])
        equal = np.abs(own[-1] - fall[rest]) < TIE / 2
        rows["same_picture"].append(float(np.where(equal, 0.5, own[-1] > fall[rest]).mean()))
        rows["ties"].append(float(equal.mean()))
        rows["fell"].append(float((before - after)[hit][0]))
        rows["moved"].append(float(np.abs(before - after)[rest].mean()))
        rows["before"].append(float(before[hit][0]))
        rows["after"].append(float(after[hit][0]))
    result: dict[str, Any] = {
        "n": len(own),
        "left_out": len(pictures) - len(own),
        "others": sum(map(len, others)),
        "failed": float(1 - known.mean()) if known.size else math.nan,
        "auc": fall_auc(own, others) if own else math.nan,
        "auc_stderr": fall_auc_stderr(own, others) if len(own) > 1 else math.nan,
    }
    for name, values in rows.items():
        found = estimate(values) if values else None
        result[name] = math.nan if found is None else found.mean
        result[f"{name}_stderr"] = math.nan if found is None else found.stderr
    return result


def fall_auc(damaged_P: Sequence[float], others: Sequence[np.ndarray], times_P: np.ndarray | None = None) -> float:
    """The chance that the damaged region of one of P pictures fell by more than another region of one of them.

    Ties count half, and every picture as much as another, however many regions it has: a judge whose scores all fall
    alike within a picture gets exactly 1/2. times_P: how often each picture counts (a bootstrap's draw), default once.
    """
    times = np.ones(len(damaged_P)) if times_P is None else times_P
    sizes = [len(of_one) for of_one in others]
    pool = np.concatenate(others)
    order = np.argsort(pool, kind="stable")
    share = np.repeat(times / sizes, sizes)[order]
    pool = pool[order]
    below = np.concatenate([[0.0], np.cumsum(share)])
    # Half a tie apart counts as equal: falls are multiples of TIE, but for rounding.
    lower = below[np.searchsorted(pool, np.asarray(damaged_P) - TIE / 2)]
    upper = below[np.searchsorted(pool, np.asarray(damaged_P) + TIE / 2)]
    return float((times * (lower + upper) / 2).sum() / times.sum() ** 2)


def fall_auc_stderr(damaged_P: Sequence[float], others: Sequence[np.ndarray], seed: int = 0) -> float:
    """Standard error of ``fall_auc`` from a bootstrap over pictures, whose regions are drawn together."""
    rng = np.random.default_rng(seed)
    count = len(damaged_P)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return float(np.std([fall_auc(damaged_P, others, times.astype(float)) for times in draws], ddof=1))
