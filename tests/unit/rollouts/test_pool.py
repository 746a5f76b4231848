"""A pool of cheap images, and the judge outside that answers while others are drawn."""

from __future__ import annotations

import threading
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from srum_ds.common.clock import Clock
from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.models import load_model
from srum_ds.models.protocol import UnifiedModel
from srum_ds.rewards.judge.host import JudgeHost
from srum_ds.rollouts.choose import check_pool
from srum_ds.rollouts.draw import roll_out, share
from srum_ds.rollouts.pool import extremes
from srum_ds.rollouts.shards import RolloutReader, RolloutWriter
from srum_ds.types import Prompt
from tests.support.paths import MODEL, RECIPE
from tests.support.rollouts import HEADER
from tests.support.runs import collector_of

PROMPTS = [Prompt("a", "a red circle"), Prompt("b", "a blue square")]
NAN = float("nan")


@pytest.fixture(scope="module")
def model() -> UnifiedModel:
    return load_model(MODEL)


@pytest.mark.parametrize(
    ("scores", "keep", "expected"),
    [
        ([0.1, 0.9, 0.5, -0.7], 2, [1, 3]),
        # Variances: 0.9 0.5 0.1 has 0.107, 0.9 0.5 -0.7 has 0.462, 0.9 0.1 -0.7 has 0.427.
        ([0.1, 0.9, 0.5, -0.7], 3, [1, 2, 3]),
        # One failure among seven successes is worth more than half and half would be.
        ([1, 1, 1, 1, 1, 0, 1, 1], 4, [0, 1, 2, 5]),
        ([0.5, 0.5, 0.5], 2, [0, 1]),
        ([NAN, 0.2, NAN, 0.4], 3, [0, 1, 3]),
        ([NAN, NAN], 2, [0, 1]),
    ],
)
def test_the_samples_whose_scores_vary_most_are_chosen(scores: list[float], keep: int, expected: list[int]) -> None:
    assert extremes(torch.tensor(scores), keep) == expected


def test_no_more_samples_than_there_are() -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        extremes(torch.zeros(2), 3)


def test_a_chosen_sample_is_drawn_as_it_would_be_without_a_pool(model: UnifiedModel, tmp_path: Path) -> None:
    words = ["rollout.images_per_prompt=2", "rollout.num_timesteps=5", "rollout.micro_batch_prompts=2"]
    cfg = load_config(RECIPE, [*words, "rollout.pool=6", "rollout.pool_timesteps=2"])
    collector = collector_of(cfg, model)
    with ExitStack() as held:
        judged = collector.collect(PROMPTS, 3, Clock(), held)
    (batch,) = judged
    samples = batch.samples
    assert samples.group_N.tolist() == [0, 0, 1, 1]
    numbers = samples.sample_N.tolist()
    assert all(0 <= first < second < 6 for first, second in (numbers[:2], numbers[2:]))
    whole = roll_out(model, PROMPTS, 6, cfg.rollout.image_size, collector.sampling, cfg.run.seed, 3)
    where = [6 * group + number for group, number in zip(samples.group_N.tolist(), numbers, strict=True)]
    torch.testing.assert_close(samples.tokens, whole.tokens[where], rtol=0, atol=1e-5)
    # The choice is by the cheap images' scores.
    cheap = replace(collector.sampling, num_timesteps=2)
    pool = roll_out(model, PROMPTS, 6, cfg.rollout.image_size, cheap, cfg.run.seed, 3)
    looked = collector.judging.first_look(model, pool).view(2, 6)
    assert [extremes(own, 2) for own in looked] == [numbers[:2], numbers[2:]]
    # What is kept on the disk finds them again, with the numbers that seeded them.
    header = replace(HEADER, prompts_per_step=2, images_per_prompt=2, grid=samples.grid, tokens=model.token_spec)
    RolloutWriter(tmp_path / "kept", header).write(3, 3, judged)
    assert RolloutReader(tmp_path / "kept").batches(3, 2)[0].samples.sample_N.tolist() == numbers


def test_a_pool_that_cannot_be_is_refused(model: UnifiedModel) -> None:
    with pytest.raises(UserError, match=r"rollout\.pool=4 is smaller than rollout\.images_per_prompt=8"):
        load_config(RECIPE, ["rollout.pool=4"])
    with pytest.raises(UserError, match=r"rollout\.pool=16 chooses samples by their scores.*sft"):
        load_config(RECIPE, ["rollout.pool=16", "objective.name=sft"])
    collector = collector_of(load_config(RECIPE, ["rollout.pool=16"]), model)
    check_pool(collector)
    copy: Any = JudgeHost(model, SimpleNamespace(gathered=nullcontext))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="frozen copy"):
        check_pool(replace(collector, host=copy))
    with pytest.raises(UserError, match="num_timesteps"):
        check_pool(replace(collector, sampling=object()))


def test_a_judge_outside_answers_while_the_next_images_are_drawn(
    model: UnifiedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked about the first micro-batch before the second one is drawn, and nobody waits for it until the end."""
    asked, drawn = threading.Event(), threading.Event()
    seen: list[list[str]] = []

    def scores(images_NCHW: Tensor, prompts: list[Prompt]) -> list[float]:
        assert not torch.is_grad_enabled()
        asked.set()
        assert drawn.wait(60), "the next images were not drawn while this one was being judged"
        seen.append([prompt.name for prompt in prompts])
        return [0.25] * len(prompts)

    words = ["rollout.images_per_prompt=2", "rollout.num_timesteps=2", "rollout.micro_batch_prompts=1"]
    cfg = load_config(RECIPE, [*words, "judge.external=tests.support.judges:picture", "judge.external_weight=1"])
    collector = collector_of(cfg, model)
    monkeypatch.setattr(collector.judging.externals.judges[0], "function", scores)
    generate = model.generate
    calls: list[int] = []

    def counted(*arguments: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 2:
            assert asked.wait(60), "the judge outside was not asked about the first images"
        result = generate(*arguments)
        if len(calls) == 2:
            drawn.set()
        return result

    monkeypatch.setattr(model, "generate", counted)
    with ExitStack() as held:
        judged = collector.collect(PROMPTS, 0, Clock(), held)
    assert seen == [["a", "a"], ["b", "b"]]
    assert [batch.scores.global_N.tolist() for batch in judged] == [[0.25, 0.25]] * 2


def test_all_ranks_draw_equally_many() -> None:
    prompts = [Prompt(str(n), f"prompt {n}") for n in range(5)]
    shares = [share(prompts, rank, 3) for rank in range(3)]
    assert [[p.name for p in mine] for mine, _ in shares] == [["0", "3"], ["1", "4"], ["2", "0"]]
    assert [count for _, count in shares] == [2, 2, 1]
