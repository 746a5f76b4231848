"""Fifty training steps of a random tiny BAGEL: the losses of a recorded run, and bf16 beside fp32.

`python -m tests.numerics.test_golden_loss` records tests/golden/tiny_bagel_losses.json anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from srum_ds.engine.plain import PlainEngine
from srum_ds.models.bagel.adapter import load_bagel
from tests.support.bagel_packing import Latents, Part, Text, pack, train_packed
from tests.support.paths import GOLDEN as FOLDER
from tests.support.tiny_models import TINY, write_tiny_bagel

GOLDEN = FOLDER / "tiny_bagel_losses.json"
STEPS = 50
GRIDS = ((4, 4), (2, 4), (4, 2), (3, 3))
GOLDEN_TOLERANCE = 5e-4
"""Relative. Kernels sum in another order on other machines, and fifty steps carry that on."""
BF16_BAND = 5e-3
"""Relative: how far a bf16 step's loss may lie from the fp32 step's (0.0011 was seen)."""


def losses(folder: Path, precision: str) -> list[float]:
    """Mean squared velocity error of each of 50 steps, on packed samples of four sizes."""
    model = load_bagel(write_tiny_bagel(folder / "model"))
    module = model.module
    train_packed(module)
    engine = PlainEngine.create(
        module,
        set(model.trainable("generation")),
        lr=2e-3,
        betas=(0.9, 0.99),
        eps=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,
        warmup_steps=5,
        precision=precision,
        seed=0,
    )
    g = torch.Generator().manual_seed(1)
    channels = TINY.token_channels
    samples: list[list[Part]] = [
        [Text((5 + n, 6, 7)[: 1 + n % 3]), Latents(torch.randn(h * w, channels, generator=g), (h, w))]
        for n, (h, w) in enumerate(GRIDS)
    ]
    packed = pack(samples, model)
    counts = torch.tensor([h * w for h, w in GRIDS])
    tokens = int(counts.sum())
    values = []
    for _ in range(STEPS):
        noise = torch.randn(tokens, channels, generator=g)
        time_G = torch.rand(len(GRIDS), generator=g).repeat_interleave(counts)
        error = engine(packed, noise, time_G)["squared_error_M"]
        engine.backward(error.sum(), float(tokens), 1)
        engine.step()
        values.append(float(error.detach().sum()) / tokens)
    return values


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    return torch.tensor(losses(tmp_path_factory.mktemp("fp32"), "fp32"))


def test_losses_are_the_recorded_ones(fp32: torch.Tensor) -> None:
    expected = torch.tensor(json.loads(GOLDEN.read_text()))
    assert len(expected) == STEPS and expected[-5:].mean() < 0.8 * expected[:5].mean()
    torch.testing.assert_close(fp32, expected, rtol=GOLDEN_TOLERANCE, atol=0.0)


def test_bf16_follows_fp32(fp32: torch.Tensor, tmp_path: Path) -> None:
    bf16 = torch.tensor(losses(tmp_path, "bf16"))
    assert not torch.equal(bf16, fp32)
    assert float(((bf16 - fp32) / fp32).abs().max()) < BF16_BAND


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        GOLDEN.write_text(json.dumps([round(v, 6) for v in losses(Path(temporary), "fp32")]) + "\n")
