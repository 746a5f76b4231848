"""A run's TensorBoard: scalars, samples, the settings, the evaluation, and a page of charts that says whether it works.

The tab "Custom Scalars" shows the page; ``LAYOUT`` is what is on it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srum_ds.common.errors import concealed
from srum_ds.monitoring.images import to_array
from srum_ds.monitoring.records import TENSORBOARD

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Keys of these beginnings are groups of their own.
TAGS = ("reward", "time", "flops", "speed", "memory", "bytes")
HELD_OUT = "held_out"

LAYOUT: dict[str, dict[str, list[Any]]] = {
    "1. Is it working?": {
        "Reward of whole images: each step, mean of 10 steps, the base": [
            "Multiline",
            ["reward/global$", "reward/global_mean", "reward/global_base"],
        ],
        "Held-out reward with its standard error (prompts that never train)": [
            "Margin",
            [f"{HELD_OUT}/reward", f"{HELD_OUT}/reward_low", f"{HELD_OUT}/reward_high"],
        ],
        "Held-out difference to the base with its standard error: above 0 is better": [
            "Margin",
            [f"{HELD_OUT}/difference", f"{HELD_OUT}/difference_low", f"{HELD_OUT}/difference_high"],
        ],
        "Diversity of a prompt's images against the first steps' (near 1 is healthy)": [
            "Multiline",
            ["train/diversity_ratio", "train/latent_std_ratio"],
        ],
        "Gradient norm before clipping": ["Multiline", ["train/grad_norm"]],
        "Failures: share of the judge's answers; images that were left out": [
            "Multiline",
            ["train/parse_failed_share", "train/masked", "train/pictures_not_finite"],
        ],
    },
    "2. Rewards": {
        "Reward of regions: each step, mean of 10 steps, the base": [
            "Multiline",
            ["reward/local$", "reward/local_mean", "reward/local_base"],
        ],
        "Share of prompts whose images all got one reward": ["Multiline", ["reward/std_zero_share"]],
        "Held-out, by an independent checker: share of exact images": ["Multiline", [f"{HELD_OUT}/checker_exact"]],
        "Judges beside the model's own": ["Multiline", ["train/judge_.*", f"{HELD_OUT}/judge_.*"]],
    },
    "3. Training": {
        "Loss": ["Multiline", ["train/loss"]],
        "Learning rate": ["Multiline", ["train/learning_rate"]],
        "Tokens that count in the loss": ["Multiline", ["train/tokens$"]],
    },
    "4. Speed": {
        "Images per second": ["Multiline", ["speed/images_per_second$"]],
        "Seconds of a step by phase": ["Multiline", ["time/.*"]],
        "Most memory of a rank, in bytes": ["Multiline", ["memory/.*"]],
    },
}


class TensorBoard:
    """Writes on rank 0. Opened at the first thing to write; ``purge`` hides what a resumed run does again."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / TENSORBOARD
        self._writer: SummaryWriter | None = None
        self._purge: int | None = None

    def purge(self, step: int) -> None:
        """Hides everything from ``step`` on that was written before."""
        self.close()
        self._purge = step

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Writes the layout and the settings (``section.name`` -> value, as written)."""
        writer = self._open()
        writer.add_custom_scalars(LAYOUT)
        rows = "\n".join(f"| `{key}` | `{_cell(value)}` |" for key, value in settings.items())
        writer.add_text("configuration", f"| setting | value |\n|---|---|\n{rows}")

    def step(self, step: int, record: Mapping[str, Any], means: Mapping[str, tuple[float, float | None]]) -> None:
        """A step's numbers, and ``status.Figures``' means with the base's values."""
        writer = self._open()
        for key, value in record.items():
            if key != "step" and isinstance(value, int | float):
                writer.add_scalar(tag(key), value, step)
        for name, short in (("reward", "global"), ("local", "local")):
            mean, base = means.get(name, (None, None))
            if mean is not None:
                writer.add_scalar(f"reward/{short}_mean", mean, step)
            if base is not None:
                writer.add_scalar(f"reward/{short}_base", base, step)

    def held_out(self, look: Mapping[str, Any]) -> None:
        """A look at the held-out prompts."""
        writer = self._open()
        for key in ("reward", "difference"):
            value, spread = look.get(key), look.get(f"{key}_se")
            if value is not None:
                spread = spread or 0.0
                for name, shown in ((key, value), (f"{key}_low", value - spread), (f"{key}_high", value + spread)):
                    writer.add_scalar(f"{HELD_OUT}/{name}", shown, look["step"])
        if "checker_exact" in look:
            writer.add_scalar(f"{HELD_OUT}/checker_exact", look["checker_exact"], look["step"])
        for name, said in look.get("judges", {}).items():
            if said is not None:
                writer.add_scalar(f"{HELD_OUT}/judge_{name}", said, look["step"])

    def image(self, name: str, picture: Any, step: int) -> None:
        """A picture (PIL)."""
        self._open().add_image(f"samples/{name}", to_array(picture), step, dataformats="HWC")

    def end(self, settings: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """The settings beside what came of them, for the tab that compares runs; figures: by tag."""
        from torch.utils.tensorboard.summary import hparams

        plain = {
            key: value if isinstance(value, bool | int | float | str) else _cell(value)
            for key, value in settings.items()
        }
        known = {key: value for key, value in figures.items() if math.isfinite(value)}
        writer = self._open()._get_file_writer()
        for summary in hparams(plain, known):
            writer.add_summary(summary)

    def flush(self) -> None:
        """Brings everything to the disk."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Closes; a later call opens it again."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> SummaryWriter:
        if self._writer is None:
            self._writer = _writer(self.folder, self._purge)
            # Only once: another writer of this process goes on after what this one wrote.
            self._purge = None
        return self._writer


def tag(key: str) -> str:
    """TensorBoard groups by what precedes a slash: reward_global -> reward/global."""
    group, _, rest = key.partition("_")
    return f"{group}/{rest}" if group in TAGS and rest else f"train/{key}"


def add_evaluation(run_dir: Path, markdown: str, figures: Mapping[str, float], step: int) -> None:
    """Adds an evaluation's table and figures (by name) to a run that has a TensorBoard; nothing where it has none."""
    folder = run_dir / TENSORBOARD
    if not folder.is_dir():
        return
    with _writer(folder) as writer:
        writer.add_text("evaluation", markdown, step)
        for name, value in figures.items():
            if math.isfinite(value):
                writer.add_scalar(f"evaluation/{name}", value, step)


def _writer(folder: Path, purge_step: int | None = None) -> SummaryWriter:
    """Opens a file of events that is read after those which are there.

    TensorBoard reads them in the order of their names, which begin with the second of their making; what follows it
    (host, process, count) sorts by letters, so that of two files of one second the later may be read first, and what
    its ``purge_step`` ought to hide would hide what it holds.
    """
    # Only rank 0 writes: the others start without it.
    from torch.utils.tensorboard import SummaryWriter

    while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)
    return SummaryWriter(str(folder), purge_step=purge_step)


def _cell(value: Any) -> str:
    return concealed(str(value)).replace("|", "\\|").replace("\n", " ")
