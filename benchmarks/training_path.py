"""One micro-batch of training, forward and backward, along two paths: cached prompts against packed samples.

    python benchmarks/training_path.py [--repeats 9] [--threads 2] [--cpu-time] [--json FILE]

``denoise`` is what the loop runs (``Bagel.forward``): prompts padded to one length are read into a cache, and the noised
copies of the images attend to it. ``packed`` is the released training pass (tests/support/bagel_packing.py): text and noised tokens
of all samples in one pass without a cache, either every copy as a sample of its own that brings its prompt, or all
copies of an image behind one reading of it. The copies, their noise, times and dropped prompts are the same, and so
are the losses; this is checked first. The three run one after the other in every repeat; what counts is the ratio of
medians. benchmarks/training_path.md says what was found and decided.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bagel import bench_config
from srum_ds.common import seeds
from srum_ds.common.environment import environment
from srum_ds.common.seeds import SampleKeys
from srum_ds.models.bagel.adapter import BagelAdapter, load_bagel
from srum_ds.models.protocol import ViewSettings
from srum_ds.prompts.reader import PromptReader
from srum_ds.types import Prompt, Samples, TrainView
from tests.support.bagel_packing import Latents, Packed, Part, Text, losses, pack
from tests.support.paths import MODEL, PROMPTS
from tests.support.tiny_models import write_tiny_bagel

COPIES = 6
LENGTHS = (8, 12, 16, 24, 40, 64, 96, 128)
"""Tokens of the prompts at the shapes of benchmarks/bagel.py, bos and eos included."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch: its prompts, one per image, and M training views of each image."""

    prompts: list[Prompt]
    view: TrainView
    grid: tuple[int, int]


def tiny() -> tuple[BagelAdapter, Batch]:
    """The embedded model and a rank's micro-batch of the tiny recipe: 4 prompts with 8 images each."""
    model = load_bagel(MODEL)
    reader = PromptReader(PROMPTS, "train")
    by_length = {len(model.reader.tokenizer.segment(p.text)): p for p in (reader[index] for index in range(400))}
    lengths = sorted(by_length)
    chosen = [by_length[lengths[round(place * (len(lengths) - 1) / 3)]] for place in range(4)]
    return model, batch(model, [prompt for prompt in chosen for _ in range(8)], (4, 4))


def bench() -> tuple[BagelAdapter, Batch]:
    """The shapes of benchmarks/bagel.py: 8 images of 256 tokens with prompts of 8 to 128 tokens."""
    with tempfile.TemporaryDirectory() as folder:
        model = load_bagel(write_tiny_bagel(Path(folder), bench_config(4)))
    # Byte-level: one token per character.
    return model, batch(model, [Prompt(str(n), "x" * (n - 2)) for n in LENGTHS], (16, 16))


def batch(model: BagelAdapter, prompts: list[Prompt], grid: tuple[int, int]) -> Batch:
    """Random images of the prompts and their training views."""
    shape = (grid[0] * grid[1], model.token_spec.size)
    tokens = torch.stack([seeds.normal(shape, "training path", n) for n in range(len(prompts))])
    number = torch.arange(len(prompts))
    samples = Samples(tuple(prompts), number, number, torch.zeros(len(prompts), 3, 1, 1), tokens, grid)
    keys = SampleKeys(0, 0, tuple((prompt.id, n) for n, prompt in enumerate(prompts)))
    return Batch(prompts, model.views(samples, ViewSettings(COPIES, "logit_normal", 2.0, 0.1), keys), grid)


def denoise(model: BagelAdapter, given: Batch) -> Tensor:
    """The mean loss along the loop's path."""
    velocity = model.predict(model.module, given.prompts, given.view, given.grid)
    return model.matching.energy(velocity.flatten(0, 1), given.view.target.flatten(0, 1)).mean()


class PackedPath:
    """The same loss along the packed path; ``joined``: an image's copies stand behind one reading of its prompt."""

    def __init__(self, model: BagelAdapter, given: Batch, joined: bool) -> None:
        self.model = model
        x_NMTC, target_NMTC = given.view.inputs["x_NMTC"], given.view.target
        time_NM, dropped_NM = given.view.inputs["time_NM"], given.view.inputs["dropped_NM"]
        noise_NMTC = x_NMTC + (1 - time_NM[:, :, None, None]) * target_NMTC
        clean_NMTC = noise_NMTC - target_NMTC
        self.samples: list[list[Part]] = []
        order: list[tuple[int, int]] = []
        for n, prompt in enumerate(given.prompts):
            text = Text(tuple(model.reader.tokenizer.encode(prompt.text)))
            seeing = [m for m in range(COPIES) if not dropped_NM[n, m]]
            groups = [seeing] if joined else [[m] for m in seeing]
            for group in groups:
                self.samples.append([text, *(Latents(clean_NMTC[n, m], given.grid) for m in group)])
                order += [(n, m) for m in group]
            for m in range(COPIES):
                if dropped_NM[n, m]:
                    self.samples.append([Latents(clean_NMTC[n, m], given.grid)])
                    order.append((n, m))
        rows = torch.tensor([n * COPIES + m for n, m in order])
        self.noise_GC = noise_NMTC.flatten(0, 1)[rows].flatten(0, 1)
        self.time_G = time_NM.flatten()[rows].repeat_interleave(x_NMTC.shape[2])

    def packed(self) -> Packed:
        """The samples as tensors, made anew in every step as training would have to."""
        return pack(self.samples, self.model)

    def __call__(self) -> Tensor:
        return losses(self.model.module, self.packed(), self.noise_GC, self.time_G)["squared_error_M"].mean()


def seconds(work: Callable[[], Tensor], module: torch.nn.Module, clock: Callable[[], float]) -> float:
    """What one forward and backward pass takes by ``clock``."""
    module.zero_grad()
    start = clock()
    work().backward()
    return clock() - start


def measure(
    model: BagelAdapter, given: Batch, mode: str, repeats: int, clock: Callable[[], float]
) -> dict[str, object]:
    """Medians of the three passes over interleaved repeats, and the packed ones' ratio to ``denoise``."""
    names = set(model.trainable(mode))
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(name in names)
    paths: dict[str, Callable[[], Tensor]] = {
        "denoise": lambda: denoise(model, given),
        "packed": PackedPath(model, given, joined=False),
        "packed_joined": PackedPath(model, given, joined=True),
    }
    for path in paths.values():
        torch.testing.assert_close(path(), paths["denoise"](), rtol=1e-5, atol=1e-6)
    for path in paths.values():
        seconds(path, model.module, clock)
    times = [{name: seconds(path, model.module, clock) for name, path in paths.items()} for _ in range(repeats)]
    medians = {name: statistics.median(row[name] for row in times) for name in paths}
    ratios = {name: [row[name] / row["denoise"] for row in times] for name in paths if name != "denoise"}
    lengths = sorted({len(model.reader.tokenizer.segment(prompt.text)) for prompt in given.prompts})
    return {
        "mode": mode,
        "images": len(given.prompts),
        "tokens": given.view.target.shape[2],
        "prompt_lengths": lengths,
        "seconds": {name: round(value, 4) for name, value in medians.items()},
        "ratio": {name: round(medians[name] / medians["denoise"], 3) for name in ratios},
        "ratio_range": {name: [round(min(found), 3), round(max(found), 3)] for name, found in ratios.items()},
    }


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds instead of wall time: for a busy machine")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.cpu_time else time.perf_counter
    rows = []
    for name, make in (("tiny", tiny), ("bench", bench)):
        model, given = make()
        for mode in ("generation", "transformer"):
            rows.append({"shapes": name, **measure(model, given, mode, args.repeats, clock)})
            print(json.dumps(rows[-1]), flush=True)
    report = {
        "threads": args.threads,
        "clock": "cpu" if args.cpu_time else "wall",
        "repeats": args.repeats,
        "rows": rows,
        "environment": environment(1),
    }
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
