"""The rows that papers report, beside which a table of results stands. Figures as printed, by category.

The papers round each figure by itself, and not all alike: an overall figure recomputed from a printed row is within
half of its last digit. A test does so for every row.
"""

from __future__ import annotations

from srum_ds.evaluation.benchmarks.protocol import Published

SRUM_COMPBENCH = "SRUM, arXiv 2510.12784, table of T2I-CompBench; judge Qwen2.5-VL-72B-Instruct"
SRUM_REASONBENCH = "SRUM, arXiv 2510.12784, table of T2I-ReasonBench; judge Qwen2.5-VL-72B-Instruct"
WISE_LEADERBOARD = "PKU-YuanGroup/WISE, leaderboard of WISE_Verified (April 2026); judge Qwen3.5-35B-A3B"

_COMPBENCH = ("3d_spatial", "color", "complex", "non_spatial", "numeracy", "shape", "spatial", "texture", "overall")
_REASONBENCH = ("entity", "idiom", "scientific", "textual_image", "overall")
_WISE = ("culture", "time", "space", "biology", "physics", "chemistry", "overall")


def _rows(columns: tuple[str, ...], source: str, table: dict[str, tuple[float, ...]]) -> tuple[Published, ...]:
    return tuple(Published(model, dict(zip(columns, figures, strict=True)), source) for model, figures in table.items())


COMPBENCH_ROWS = _rows(
    _COMPBENCH,
    SRUM_COMPBENCH,
    {
        "FLUX.1-dev": (76.39, 90.63, 83.51, 87.47, 75.30, 80.20, 84.23, 87.07, 83.10),
        "FLUX.1-schnell": (79.38, 84.53, 81.96, 85.55, 72.82, 82.20, 85.49, 86.38, 82.29),
        "SD3-medium": (77.83, 91.63, 84.73, 86.12, 72.80, 83.72, 88.20, 89.03, 84.26),
        "SDXL-base": (72.25, 77.75, 75.00, 85.28, 57.14, 72.18, 77.08, 78.38, 74.38),
        "Janus-Pro": (76.17, 84.25, 80.28, 80.47, 56.43, 65.14, 79.67, 69.67, 74.01),
        "Show-o2": (88.61, 87.73, 87.88, 85.91, 69.74, 73.99, 86.60, 82.17, 82.83),
        "OmniGen2": (82.21, 92.22, 86.87, 88.51, 72.00, 83.95, 90.07, 90.88, 85.84),
        "BLIP3-o": (81.73, 89.92, 85.55, 84.78, 71.67, 83.75, 92.47, 87.45, 84.66),
        "BAGEL": (77.98, 89.30, 83.32, 85.03, 70.40, 81.94, 81.52, 87.93, 82.18),
        "BAGEL (CoT)": (84.66, 88.85, 86.10, 85.64, 75.36, 84.33, 82.71, 88.07, 84.46),
        "BLIP3-o + SRUM": (83.78, 90.22, 86.57, 85.10, 74.52, 85.44, 93.88, 86.52, 85.75),
        "BAGEL + SRUM": (83.10, 92.90, 88.69, 88.47, 78.52, 84.23, 86.92, 89.57, 86.55),
        "BAGEL + SRUM (CoT)": (88.60, 92.90, 91.31, 90.48, 80.12, 84.47, 89.93, 89.15, 88.37),
    },
)

REASONBENCH_ROWS = _rows(
    _REASONBENCH,
    SRUM_REASONBENCH,
    {
        "BAGEL": (49.70, 34.46, 47.52, 43.59, 43.82),
        "BAGEL + SFT": (50.53, 39.43, 47.45, 44.08, 45.37),
        "BAGEL + SRUM": (52.85, 40.51, 47.83, 45.83, 46.75),
    },
)

WISE_VERIFIED_ROWS = _rows(
    _WISE,
    WISE_LEADERBOARD,
    {
        "BAGEL": (0.4125, 0.3500, 0.3083, 0.2000, 0.4417, 0.2583, 0.3520),
        "BAGEL (CoT)": (0.7800, 0.6333, 0.5667, 0.3750, 0.5500, 0.5083, 0.6280),
        "Janus-Pro-7B": (0.3700, 0.3500, 0.2833, 0.2833, 0.4000, 0.2333, 0.3340),
        "SD3-medium": (0.4700, 0.4083, 0.4000, 0.2000, 0.3750, 0.2583, 0.3850),
        "FLUX.1-dev": (0.5225, 0.4000, 0.5333, 0.1750, 0.3750, 0.2417, 0.4160),
        "Qwen-Image": (0.6275, 0.5250, 0.5583, 0.3417, 0.4833, 0.2500, 0.5100),
    },
)
