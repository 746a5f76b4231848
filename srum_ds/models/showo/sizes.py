"""Which size of pictures a Show-o folder draws, told by its configuration alone: nothing heavy is imported here."""

from __future__ import annotations

from math import isqrt
from pathlib import Path

from srum_ds.common.model_files import configuration, whole_number

_MAGVIT = "magvitv2"
# The release, whose files need not say them.
TOKENS, LEVELS = 256, 5


def refuses_size(folder: Path, height: int, width: int) -> str:
    """Why a picture of this size in pixels is not drawn, as ``ShowoGenerator.grid`` says it; empty where it is."""
    tokens = whole_number(configuration(folder / "config.json"), "num_vq_tokens", TOKENS)
    magvit = configuration(folder / _MAGVIT / "config.json")
    levels = magvit.get("encoder_ch_mult") or magvit.get("ch_mult")
    side = isqrt(tokens) * 2 ** ((len(levels) if isinstance(levels, list) else LEVELS) - 1)
    return "" if (height, width) == (side, side) else f"this Show-o draws pictures of {side} x {side} pixels only"
