"""The colour of a detected object by its pixels alone: a plain stand-in for GenEval's CLIP on crops.

Each pixel has the name that its hue, saturation and brightness say; the object's colour is the name that most of its
pixels have, inside the mask where there is one, else inside the ellipse that its box encloses. Limits: whatever lies
behind a thin object counts as its colour, as does a cast or coloured light; grey counts as white or black; brown,
orange, pink and red meet at edges that people draw elsewhere. It is exact for flat colours (a test); on photographs it
was not measured, so that its figures are for comparing runs with each other, not with published ones. A detection
file may name colours (``"color"``), which then count instead: use that for CLIP's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srum_ds.evaluation.benchmarks.masks import decode_mask
from srum_ds.evaluation.benchmarks.protocol import Detection

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""The ten that GenEval's prompts use."""


def pixel_color(image_CHW: Tensor, detection: Detection) -> str:
    """Which of ``COLORS`` most pixels of the object have; image float [3, H, W] in [0, 1]."""
    inside_HW = _inside(image_CHW, detection)
    names_N = name_pixels(image_CHW.float()[:, inside_HW])
    return COLORS[int(torch.bincount(names_N, minlength=len(COLORS)).argmax())]


def name_pixels(pixels_3N: Tensor) -> Tensor:
    """Index into ``COLORS`` [N] of pixels [3, N] in [0, 1].

    With hue in degrees, saturation s and value v: v < 0.2 black; s < 0.2 white, or black below v = 0.5; then by hue:
    red from 345 to 15, orange to 45, yellow to 70, green to 170, blue to 255, purple to 300, pink to 345. Dark reds and
    oranges (v < 0.65 and hue 10 to 45) are brown; pale reds (s < 0.55, v > 0.65) are pink.
    """
    high_N, low_N = pixels_3N.amax(0), pixels_3N.amin(0)
    spread_N = high_N - low_N
    saturation_N = torch.where(high_N > 0, spread_N / high_N.clamp_min(1e-8), torch.zeros_like(high_N))
    red_N, green_N, blue_N = pixels_3N
    safe_N = spread_N.clamp_min(1e-8)
    hue_N = torch.where(
        high_N == red_N,
        (green_N - blue_N) / safe_N % 6,
        torch.where(high_N == green_N, (blue_N - red_N) / safe_N + 2, (red_N - green_N) / safe_N + 4),
    )
    hue_N = hue_N * 60
    edges = torch.tensor([15.0, 45.0, 70.0, 170.0, 255.0, 300.0, 345.0], device=pixels_3N.device)
    by_hue = torch.tensor([0, 1, 2, 3, 4, 5, 6, 0], device=pixels_3N.device)
    name_N = by_hue[torch.bucketize(hue_N, edges, right=True)]
    reddish_N = (hue_N < 15) | (hue_N >= 345)
    name_N = torch.where(reddish_N & (saturation_N < 0.55) & (high_N > 0.65), COLORS.index("pink"), name_N)
    name_N = torch.where((hue_N >= 10) & (hue_N < 45) & (high_N < 0.65), COLORS.index("brown"), name_N)
    name_N = torch.where(saturation_N < 0.2, COLORS.index("white"), name_N)
    grey_N = (saturation_N < 0.2) & (high_N < 0.5)
    return torch.where((high_N < 0.2) | grey_N, COLORS.index("black"), name_N)


def _inside(image_CHW: Tensor, detection: Detection) -> Tensor:
    height, width = image_CHW.shape[-2:]
    if detection.mask is not None:
        mask_HW = decode_mask(detection.mask, height, width).to(image_CHW.device)
        if mask_HW.any():
            return mask_HW
    x0, y0, x1, y1 = detection.box
    rows_H = (torch.arange(height, device=image_CHW.device) + 0.5) / height
    columns_W = (torch.arange(width, device=image_CHW.device) + 0.5) / width
    across_W = (columns_W - (x0 + x1) / 2) / max((x1 - x0) / 2, 1e-8)
    down_H = (rows_H - (y0 + y1) / 2) / max((y1 - y0) / 2, 1e-8)
    inside_HW = across_W[None, :] ** 2 + down_H[:, None] ** 2 <= 1
    if not inside_HW.any():
        # Smaller than a pixel: the one that its centre lies in.
        row = min(int((y0 + y1) / 2 * height), height - 1)
        column = min(int((x0 + x1) / 2 * width), width - 1)
        inside_HW[row, column] = True
    return inside_HW
