"""The released example of a reward map: its regions as the release takes them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def released_regions(case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Owners, normalised boxes and scores of the entries the release takes for regions."""
    height, width = case["image_hw"]
    owners, boxes, scores = [], [], []
    for owner in (0, 1):
        for entry in case[f"rewards_{owner}"]:
            corners = entry.get("bbox", ())
            if len(corners) != 4 or entry["object"] == "global_layout_reward":
                continue
            x0, y0, x1, y1 = (float(c) for c in corners)
            owners.append(owner)
            boxes.append([x0 / width, y0 / height, x1 / width, y1 / height])
            # a missing score is a failed one here, and counts 0 there: both leave the floor
            scores.append(entry.get("score", math.nan))
    return torch.tensor(owners), torch.tensor(boxes), torch.tensor(scores)
