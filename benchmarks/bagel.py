"""The BAGEL module against its own matrix products, interleaved in one run.

python benchmarks/bagel.py [--repeats 7] [--threads 2] [--cpu-time] [--profile]
    [--json benchmarks/bagel.json]

Shape: hidden 256, MLP 1024, 8 layers, 4 / 2 heads, vocabulary 4096, 256 latent tokens, 16 text tokens,
fp32. Three ratios, each a median over repeats in which both sides run one after the other:

* generation: 8 prompts, 10 time points, guidance inside its interval, against bare ``torch.mm`` of the linear layers'
  shapes, counted once a branch (attention's own products are not counted);
* training: forward and backward over 8 images under their prompts, as the loop trains, against ``torch.mm`` forward
  and both backward products;
* judging: one-token readout of 8 images (``--judge-patches`` a side) against a 32-token answer about them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from srum_ds.common.environment import environment
from srum_ds.models.bagel.adapter import load_bagel
from srum_ds.models.bagel.config import BagelConfig, ImageTransform, LanguageConfig, VisionConfig
from srum_ds.models.bagel.sampling import guided_at, time_points
from srum_ds.models.flow import FlowSampling
from srum_ds.types import Prompt, TrainView
from tests.support.tiny_models import TINY, random_picture, write_tiny_bagel

HIDDEN, MLP, LAYERS, KV = 256, 1024, 8, 128
IMAGES, SIDE, TEXT, POINTS = 8, 16, 16, 10
TOKENS = SIDE * SIDE


def shapes(rows: int, channels: int) -> list[tuple[int, int, int]]:
    """(rows, in, out) of every matrix product of one pass of ``rows`` latent tokens."""
    layer = [(HIDDEN, HIDDEN), (HIDDEN, KV), (HIDDEN, KV), (HIDDEN, HIDDEN)]
    layer += [(HIDDEN, MLP), (HIDDEN, MLP), (MLP, HIDDEN)]
    return [(rows, i, o) for i, o in [(channels, HIDDEN), *layer * LAYERS, (HIDDEN, channels)]]


class Products:
    """Bare matrix products over operands made beforehand."""

    def __init__(self, sizes: list[tuple[int, int, int]], backward: bool) -> None:
        made: dict[tuple[int, int], torch.Tensor] = {}

        def matrix(a: int, b: int) -> torch.Tensor:
            return made.setdefault((a, b), torch.randn(a, b))

        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        for n, i, o in sizes:
            self.pairs.append((matrix(n, i), matrix(i, o)))
            if backward:
                self.pairs.append((matrix(n, o), matrix(i, o).t()))
                self.pairs.append((matrix(n, i).t(), matrix(n, o)))

    def __call__(self) -> None:
        for a, b in self.pairs:
            torch.mm(a, b)


Clock = Callable[[], float]


def seconds(work: Callable[[], object], clock: Clock) -> float:
    """Time of one call by a clock."""
    start = clock()
    work()
    return clock() - start


def compare(first: Callable[[], object], second: Callable[[], object], repeats: int, clock: Clock) -> dict[str, float]:
    """Medians of both, and of their ratio, over interleaved repeats after one warm-up."""
    first()
    second()
    pairs = [(seconds(first, clock), seconds(second, clock)) for _ in range(repeats)]
    ratios = [a / b for a, b in pairs]
    return {
        "seconds": round(statistics.median(a for a, _ in pairs), 4),
        "against": round(statistics.median(b for _, b in pairs), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }


def bench_config(judge_patches: int) -> BagelConfig:
    """The model that is measured; ``judge_patches``: patches along each side of a judged image."""
    side = judge_patches * 14
    return replace(
        TINY,
        llm=LanguageConfig(
            hidden_size=HIDDEN,
            intermediate_size=MLP,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=4096,
        ),
        vit=VisionConfig(
            hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, image_size=side
        ),
        max_latent_size=SIDE,
        vit_max_num_patch_per_side=judge_patches,
        vae_transform=ImageTransform(max_image_size=256, min_image_size=16, image_stride=16),
        vit_transform=ImageTransform(max_image_size=side, min_image_size=14, image_stride=14),
    )


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--judge-patches", type=int, default=4, help="patches along each side of a judged image")
    parser.add_argument("--profile", action="store_true", help="only say where one training pass spends its time")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU seconds: fair on a machine that is shared")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = bench_config(args.judge_patches)
    side = args.judge_patches * 14
    with tempfile.TemporaryDirectory() as folder:
        model = load_bagel(write_tiny_bagel(Path(folder), config))
    module, channels = model.module, config.token_channels
    clock = time.process_time if args.cpu_time else time.perf_counter
    report: dict[str, object] = {"threads": args.threads, "repeats": args.repeats, "cpu_time": args.cpu_time}

    sampling = FlowSampling(num_timesteps=POINTS, text_scale=3.0)
    noise = torch.randn(IMAGES, TOKENS, channels)
    # Byte-level: fourteen characters, bos and eos.
    prompts = [Prompt(str(n), f"prompt {n:07d}") for n in range(IMAGES)]
    ids = model.generator.prompt_ids(prompts)
    assert {len(i) for i in ids} == {TEXT}

    @torch.no_grad()
    def generate() -> None:
        model.generator.sample(noise, (SIDE, SIDE), sampling, model.generator.contexts(ids))

    passes = sum(2 if guided_at(time, sampling) else 1 for time in time_points(sampling)[:-1].tolist())
    if not args.profile:
        products = Products(shapes(IMAGES * TOKENS, channels) * passes, backward=False)
        report["generation"] = compare(generate, products, args.repeats, clock)

    inputs = {
        "x_NMTC": torch.randn(IMAGES, 1, TOKENS, channels),
        "time_NM": torch.rand(IMAGES, 1),
        "dropped_NM": torch.zeros(IMAGES, 1, dtype=torch.bool),
    }
    target = torch.randn(IMAGES, 1, TOKENS, channels)
    view = TrainView(inputs, target, torch.ones(IMAGES, 1, TOKENS, dtype=torch.bool))
    trainable = set(model.trainable("generation"))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trainable)

    def train() -> None:
        module.zero_grad()
        velocity = model.predict(module, prompts, view, (SIDE, SIDE))
        (velocity - target).square().mean().backward()

    if args.profile:
        train()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            train()
        print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))
        return
    report["training"] = compare(train, Products(shapes(IMAGES * TOKENS, channels), backward=True), args.repeats, clock)

    pictures = [random_picture(side, side, n) for n in range(IMAGES)]
    questions = ["is this right?"] * IMAGES

    def read_out() -> None:
        model.answer_logprobs(pictures, questions, ("yes", "no"))

    def answer() -> None:
        model.answer(pictures, questions, 32)

    report["judging"] = compare(read_out, answer, args.repeats, clock)
    report["judge_patches"] = args.judge_patches**2
    report["environment"] = environment(1)
    text_report = json.dumps(report, indent=2)
    print(text_report)
    if args.json:
        args.json.write_text(text_report + "\n")


if __name__ == "__main__":
    main()
