"""The judge beside the model's own in `make chaos`: the brightness of a picture, until CHAOS_JUDGE says otherwise."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from srum_ds.common.phases import PHASES
from srum_ds.types import Prompt

VARIABLE = "CHAOS_JUDGE"
"""{"what": one of FAULTS, "step": from 1, "ranks": [0]} as JSON."""
FAULTS = ("raises", "none", "nan", "infinity", "shape", "text", "hangs", "exits", "exits 0", "leaves")


def score(images_NCHW: Tensor, prompts: Sequence[Prompt]) -> Any:
    """Scores in [-1, 1] of N pictures, or the fault of this step and rank."""
    good_N = images_NCHW.mean(dim=(1, 2, 3)) * 2 - 1
    fault = json.loads(os.environ.get(VARIABLE, "null"))
    if fault is None or PHASES.stand.step != fault["step"] or int(os.environ.get("RANK", "0")) not in fault["ranks"]:
        return good_N
    match fault["what"]:
        case "raises":
            raise ValueError("the judge of `make chaos` raises")
        case "none":
            return None
        case "nan":
            return torch.full_like(good_N, float("nan"))
        case "infinity":
            return torch.full_like(good_N, float("inf"))
        case "shape":
            return good_N[:, None].expand(-1, 3)
        case "text":
            return ["good"] * len(prompts)
        case "hangs":
            time.sleep(3600)
        case "exits":
            os._exit(3)
        case "exits 0":
            os._exit(0)
        case "leaves":
            sys.exit(0)
    raise AssertionError(f"{fault['what']} is no fault of this judge")
