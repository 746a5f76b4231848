"""The twelve defects of the released SRUM code (arXiv 2510.12784, code a53ba18): none of them is shared.

Each test names one and runs the code that a recipe runs. Where the ``paper`` recipe has to keep the released
arithmetic, the test shows both: what is kept there, and that the default does otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from srum_ds.common.clock import Clock
from srum_ds.common.errors import UserError
from srum_ds.config import Config, load_config
from srum_ds.engine.plain import PlainEngine
from srum_ds.models import load_model
from srum_ds.models.flow import FlowSampling
from srum_ds.monitoring.judge_failures import refuse_broken_judge
from srum_ds.monitoring.metrics import measure
from srum_ds.objectives.apply import Batch, count_tokens
from srum_ds.prompts.reader import PromptReader
from srum_ds.prompts.shards import write_shards
from srum_ds.rewards.judge.parsing import parse_regions, parse_score
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rewards.judge.readouts import GenerateReadout, Replies, Request
from srum_ds.rewards.painting import paper_map
from srum_ds.rollouts.draw import roll_out
from srum_ds.types import Judged, Prompt, Regions, Status, TokenWeights, TrainView
from tests.support.batches import left_half_batch, losses_of, map_of, samples_of
from tests.support.judges import WritingJudge
from tests.support.paths import ROOT

RECIPES = ROOT / "launch/recipes"
TOKENS, CHANNELS = 4, 3


def recipe(name: str, *more: str) -> Config:
    return load_config(RECIPES / f"{name}.yaml", more)


def batch(cfg: Config, global_N: Sequence[float], local_R: Sequence[float]) -> Batch:
    """Images of one prompt, each with one region (the left half), scored as given, weighed as a recipe says."""
    return left_half_batch(cfg, global_N, local_R, [0] * len(global_N), 1, CHANNELS)


def weights_of(cfg: Config, global_N: Sequence[float], local_R: Sequence[float]) -> Tensor:
    return map_of(batch(cfg, global_N, local_R))


def read(readout: GenerateReadout, writer: WritingJudge) -> Replies:
    request = Request(0, "how good is it?", "a red circle", ("a", 0, "whole"))
    return readout.read(writer, [torch.zeros(3, 8, 8)], [request])


def test_defect_01() -> None:
    """Scores below 0 are inert: a region scored -0.9 weighs what the background weighs."""
    bad = ([0.5, 0.5], [-0.9, 0.9])
    kept = weights_of(recipe("paper"), *bad)
    # Kept in `paper`: the floor of 0.5, times (0.5 + 1) / 2, at the region's centre as outside it.
    assert kept[0].flatten().tolist() == pytest.approx([0.375] * 4)
    # The default: the whole pictures do not differ, the region repels, and the background is neutral.
    ours = weights_of(recipe("srum"), *bad)
    assert (ours[0, :, 0] < 0).all() and ours[0, :, 1].eq(0).all() and (ours[1, :, 0] > 0).all()


def test_defect_02() -> None:
    """Scores are not clamped: a "50" becomes weight 25.5."""
    assert parse_score("Score: 50") == (1.0, Status.CLAMPED)
    replies = read(GenerateReadout(retries=0), WritingJudge(lambda question, attempt: "Score: 50"))
    assert replies.score_Q.tolist() == [1.0] and replies.status_Q.tolist() == [int(Status.CLAMPED)]
    assert float(weights_of(recipe("paper"), [1.0], [float(replies.score_Q[0])]).max()) == 1.0


def test_defect_03() -> None:
    """The regional parser splits on blank lines while its own example separates with ---."""
    reply = "object: a red circle\nscore: 0.5\n---\nobject: a blue square\nscore: -0.25\n---\nobject: a cross\nscore: 1"
    for text in (reply, reply.replace("\n---\n", "\n\n")):
        found = parse_regions(text, 3)
        assert [entry.score for entry in found] == [0.5, -0.25, 1.0]
        assert all(entry.status == Status.PARSED for entry in found)


def test_defect_04() -> None:
    """A region with no score counts as parsed."""
    found = parse_regions("object: a red circle\nscore: 0.5\n---\nobject: a blue square\nscore: N/A", 2)
    assert [entry.status for entry in found] == [Status.PARSED, Status.FAILED]
    assert math.isnan(found[1].score)


def test_defect_05() -> None:
    """Retries are greedy, hence identical."""
    writer = WritingJudge(lambda question, attempt: "Score: 0.5" if attempt == 2 else "I would rather not say")
    replies = read(GenerateReadout(retries=2, seed=3), writer)
    assert replies.score_Q.tolist() == [0.5]
    (first, *again) = [temperature for _, temperature in writer.calls]
    assert first == 0.0 and all(temperature > 0 for temperature in again)
    assert len({seed for (seed,) in writer.seeds}) == 3
    with pytest.raises(UserError, match=r"judge\.retry_temperature=0.*a number above 0"):
        recipe("srum", "judge.retry_temperature=0")


def test_defect_06() -> None:
    """A genuine global 0 and a parse failure's 0 are the same value, and such records are dropped."""
    assert parse_score("Score: 0") == (0.0, Status.PARSED)
    failed, status = parse_score("no idea")
    assert math.isnan(failed) and status == Status.FAILED
    scores = ([0.0, math.nan, 0.8], [0.1, 0.1, 0.1])
    for name in ("srum", "paper"):
        assert batch(recipe(name), *scores).counts_NMT[:, 0, 0].tolist() == [True, False, True]
    # In the paper's map a genuine 0 weighs by its factor (0 + 1) / 2.
    assert weights_of(recipe("paper"), *scores)[0, 0, 1] == pytest.approx(0.25)


def test_defect_07() -> None:
    """A missing global score halves the map (factor 0.5) instead of being neutral."""
    for name in ("srum", "paper"):
        cfg = recipe(name, "objective.constraint=none")
        given = batch(cfg, [math.nan, 0.6], [0.4, 0.4])
        v = torch.randn(2, 1, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(1), requires_grad=True)
        losses_of(cfg, given, v, torch.zeros_like(v)).sum().backward()
        assert v.grad is not None
        assert v.grad[0].eq(0).all() and v.grad[1].abs().max() > 0
        # It is not in the denominator either.
        assert int(count_tokens([given])) == TOKENS


def test_defect_08() -> None:
    """Boxes are not rescaled to the resized image: ours are shares of the picture, at any size the same tokens."""
    boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0]])
    maps = [
        paper_map(torch.tensor([0]), boxes, torch.tensor([0.8]), torch.tensor([1.0]), size, (2, 4))[1]
        for size in ((32, 64), (64, 128), (512, 1024))
    ]
    for tokens in maps:
        assert tokens[0, :, 0].tolist() == pytest.approx([0.9] * 2)
        assert tokens[0, :, 3].tolist() == pytest.approx([0.5] * 2)
    ours = [
        weights_of(recipe("srum", f"rollout.image_size=[{side},{side}]"), [0.5, 0.5], [0.9, -0.9])
        for side in (64, 1024)
    ]
    assert torch.equal(*ours) and (ours[0][0, :, 0] > 0).all() and ours[0][0, :, 1].eq(0).all()


def test_defect_09(tmp_path: Path) -> None:
    """Resume skips data: the order is reshuffled without a seed and then sliced."""
    write_shards(tmp_path, "train", [Prompt(f"p{i}", f"text {i}") for i in range(10)])
    whole = [[p.id for p in PromptReader(tmp_path, "train").batch(step, 4, seed=5)] for step in range(10)]
    # Another process goes on from step 3, on two ranks.
    reader = PromptReader(tmp_path, "train")
    for step in range(3, 10):
        assert [p.id for rank in (0, 1) for p in reader.batch(step, 4, 5, rank, 2)] == whole[step]
    seen = [prompt for step in whole for prompt in step]
    # Every prompt once in each of the four epochs.
    assert all(sorted(seen[at : at + 10]) == sorted(f"p{i}" for i in range(10)) for at in range(0, 40, 10))


class Velocity(torch.nn.Module):
    """A weight for every channel, so that a gradient can be reckoned by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(CHANNELS))

    def forward(self, mode: str, x_NMTC: Tensor) -> Tensor:
        return self.scale * x_NMTC


def sft_gradient(batches: Sequence[Batch]) -> Tensor:
    """The gradient of a step's loss, as the loop forms it, over one or several micro-batches."""
    cfg = recipe("sft")
    model = Velocity()
    # A step of plain AdamW from zero moments moves a weight by its rate; the norm tells the gradient's size.
    engine = PlainEngine.create(
        model,
        {"scale"},
        lr=0.0,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.0,
        max_grad_norm=1e9,
        warmup_steps=0,
        precision="fp32",
        seed=0,
    )
    count = float(engine.all_reduce(count_tokens(batches)))
    for b in batches:
        loss = losses_of(cfg, b, engine("velocity", b.view.inputs["x_NMTC"])).sum()
        engine.backward(loss, count, micro_batches=len(batches))
    return torch.tensor(engine.step())


def test_defect_10() -> None:
    """The mean is taken per GPU, not over the global token count: unequal parts would weigh alike."""
    given = batch(recipe("sft"), [0.5, math.nan, math.nan, 0.3, 0.1, 0.2], [0.0] * 6)

    def part(rows: slice) -> Batch:
        inputs = {"x_NMTC": given.view.inputs["x_NMTC"][rows]}
        view = TrainView(inputs, given.view.target[rows], given.view.counts_NMT[rows])
        return replace(given, view=view, weights=TokenWeights(None, given.weights.counts_N[rows]))

    # One part has one picture that counts, the other three: as ranks, or micro-batches, would have.
    parts = [part(slice(0, 3)), part(slice(3, 6))]
    together, apart = sft_gradient([given]), sft_gradient(parts)
    assert apart == pytest.approx(float(together), rel=1e-6)
    x, target = given.view.inputs["x_NMTC"], given.view.target
    counts = given.scores.global_N.isfinite()
    by_hand = (2 * (x - target) * x)[counts].sum(dim=(0, 1, 2)) / CHANNELS / (int(counts.sum()) * TOKENS)
    assert float(together) == pytest.approx(float(by_hand.norm()), rel=1e-5)


class OneRank:
    """What ``measure`` asks of an engine, for a single rank."""

    device = torch.device("cpu")

    def all_reduce(self, tensor: Tensor, op: str = "sum") -> Tensor:
        return tensor


def test_defect_11() -> None:
    """Unparsable judge replies are swallowed: ours are counted, reported with their text, and end a run of them."""
    cfg = recipe("srum", "judge.readout=generate", "judge.max_new_tokens=3", "judge.retries=0")
    model = load_model(ROOT / "srum_ds/assets/tiny_bagel")
    samples = samples_of(torch.zeros(2, 16, 64), (4, 4), [0, 0])
    # The tiny model repeats its one word for ever, which is no verdict.
    regions = Regions(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    judging = JudgePipeline(cfg)
    scores = judging.scores(model, samples, regions)
    assert scores.global_N.isnan().all()
    spoilt = Judged(samples, regions, scores)
    loss = torch.zeros(())
    record, _ = measure(OneRank(), model.token_spec, [spoilt], loss, 0.0, Clock(), False)  # type: ignore[arg-type]
    assert (record["judged"], record["parse_failures"]) == (2, 2)
    with pytest.raises(UserError, match=r"judge\.max_failed_share") as told:
        refuse_broken_judge(cfg.judge.max_failed_share, judging.readout.cure, record | {"step": 4}, [spoilt])
    assert scores.failures[0].reply[:3] in str(told.value)


def test_defect_12() -> None:
    """Images depend on how prompts were split over processes: ours on (run seed, prompt id, sample index)."""
    model = load_model(ROOT / "srum_ds/assets/tiny_bagel")
    prompts = [Prompt(f"p{i}", f"a {colour} circle") for i, colour in enumerate(("red", "blue", "green", "cyan"))]
    sampling = FlowSampling(num_timesteps=3, text_scale=1.25, interval=(0.0, 1.0))

    def drawn(part: Sequence[Prompt], seed: int = 0) -> Tensor:
        return roll_out(model, part, 2, (64, 64), sampling, seed, 7).tokens

    whole = drawn(prompts)
    for split in ([prompts[:1], prompts[1:]], [prompts[:2], prompts[2:]]):
        assert torch.allclose(whole, torch.cat([drawn(part) for part in split]), atol=1e-4)
    # In another order each prompt keeps its pictures; with another seed it has others.
    assert torch.allclose(drawn(prompts[::-1])[-2:], whole[:2], atol=1e-4)
    assert not torch.allclose(drawn(prompts[:1], seed=1), whole[:2], atol=0.1)
