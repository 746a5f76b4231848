"""Randomness by identity, and noised copies by hand."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from srum_ds.common import seeds
from srum_ds.common.clock import Clock
from srum_ds.common.errors import UserError
from srum_ds.common.seeds import Key, SampleKeys
from srum_ds.config import load_config
from srum_ds.models import load_model
from srum_ds.models.bagel import FAMILY
from srum_ds.models.flow import FlowSampling, noised_views, timesteps
from srum_ds.models.protocol import ViewSettings
from srum_ds.prompts.reader import PromptReader
from srum_ds.prompts.shards import write_shards
from srum_ds.rollouts import collect
from srum_ds.rollouts.choose import check_prompts
from srum_ds.rollouts.collect import sampling_of, training_views
from srum_ds.rollouts.draw import roll_out
from srum_ds.types import Prompt, Samples, TrainView
from tests.support.paths import MODEL, RECIPE, RECIPES
from tests.support.runs import collector_of, short_run, write_prompts

PROMPTS = [Prompt(f"p{i}", f"text {i}") for i in range(4)]


class Short:
    """A model that takes texts of at most ten letters."""

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            if len(prompt.text) > 10:
                raise UserError(f"prompt {prompt.id!r} is too long")


def test_every_prompt_that_a_model_does_not_take_is_named_before_a_run(tmp_path: Path) -> None:
    texts = ["a cup", "a cup and a dog", "a dog", "a dog and a cup"]
    write_shards(tmp_path, "train", [Prompt(f"p{i}", text) for i, text in enumerate(texts)])
    with pytest.raises(UserError) as caught:
        check_prompts(Short(), [PromptReader(tmp_path, "train")])  # type: ignore[arg-type]
    there = f"{tmp_path}, train: prompt"
    assert str(caught.value).split("\n") == [f"{there} 'p1' is too long", f"{there} 'p3' is too long"]


class Echo:
    """Draws tokens straight from its keys, so that a test sees what each image was seeded by."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // 16, width // 16

    def generate(
        self, prompts: Sequence[Prompt], keys: Sequence[Key], grid: tuple[int, int], sampling: FlowSampling
    ) -> tuple[Tensor, Tensor]:
        tokens = [seeds.normal((grid[0] * grid[1], 5), *key) for key in keys]
        return torch.stack(tokens), torch.zeros(len(prompts), 3, 32, 32)

    def views(self, samples: Samples, settings: ViewSettings, keys: SampleKeys) -> TrainView:
        return noised_views(samples, settings, keys)


def draw(prompts: Sequence[Prompt], step: int = 3, seed: int = 0) -> Samples:
    return roll_out(Echo(), prompts, 2, (32, 32), FlowSampling(), seed, step)  # type: ignore[arg-type]


def viewed(samples: Samples, step: int = 3, same: bool = False) -> tuple[Tensor, ...]:
    words = ("timesteps_per_image=3", "timestep_shift=1", "caption_dropout=0.3")
    cfg = load_config(RECIPES / "tiny.yaml", [f"train.{word}" for word in words])
    view = training_views(cfg, Echo(), samples, step, same)  # type: ignore[arg-type]
    return view.inputs["x_NMTC"], view.target, view.inputs["time_NM"], view.inputs["dropped_NM"]


def test_a_picture_and_its_copies_do_not_depend_on_the_batch() -> None:
    together = draw(PROMPTS)
    apart = [draw(PROMPTS[:1]), draw(PROMPTS[1:])]
    assert torch.equal(together.tokens, torch.cat([r.tokens for r in apart]))
    for whole, parts in zip(viewed(together), zip(*map(viewed, apart), strict=True), strict=True):
        assert torch.equal(whole, torch.cat(list(parts)))
    assert together.group_N.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert together.sample_N.tolist() == [0, 1] * 4


def test_samples_compared_with_each_other_can_share_noise_times_and_dropout() -> None:
    rollout = draw(PROMPTS)
    _, target_NMTC, time_NM, dropped_NM = viewed(rollout, same=True)
    noise_NMTC = target_NMTC + rollout.tokens[:, None]
    for values in (noise_NMTC, time_NM, dropped_NM.float()):
        assert torch.allclose(values[0::2], values[1::2], atol=1e-6)
    assert not torch.allclose(noise_NMTC[0], noise_NMTC[2])
    assert not torch.allclose(viewed(rollout)[2][0], viewed(rollout)[2][1])


def test_samples_steps_and_seeds_differ() -> None:
    targets = draw(PROMPTS).tokens
    assert len({tuple(row.flatten().tolist()) for row in targets}) == 8
    assert not torch.equal(targets, draw(PROMPTS, step=4).tokens)
    assert not torch.equal(targets, draw(PROMPTS, seed=1).tokens)


def test_a_prompt_met_twice_in_a_step_is_drawn_from_other_noise() -> None:
    """A batch across an epoch's end: the same prompt, once of each epoch."""
    again = replace(PROMPTS[0], epoch=1)
    assert again == PROMPTS[0]
    twice = draw([PROMPTS[0], again])
    first, second = twice.tokens.chunk(2)
    assert not torch.equal(first, second)
    a, b = viewed(twice)[0].chunk(2)
    assert not torch.equal(a - first[:, None], b - second[:, None])
    assert torch.equal(first, draw([PROMPTS[0]]).tokens)


def test_noised_copies_lie_on_the_line_from_data_to_noise() -> None:
    rollout = draw(PROMPTS)
    x, target, t, _ = viewed(rollout)
    # x_t = x0 + t (noise - x0)
    expected = rollout.tokens[:, None] + t[:, :, None, None] * target
    torch.testing.assert_close(x, expected)
    assert 0 < float(t.min()) and float(t.max()) < 1


def test_timesteps_by_hand() -> None:
    u = torch.tensor([0.5, 0.25])
    assert timesteps(u, "uniform", 1.0).tolist() == [0.5, 0.25]
    # 3 * 0.5 / (1 + 2 * 0.5) = 0.75; 3 * 0.25 / (1 + 2 * 0.25) = 0.5
    assert timesteps(u, "uniform", 3.0).tolist() == pytest.approx([0.75, 0.5])
    # sigmoid of the normal quantile: of 0.5 it is sigmoid(0); of 0.8413 (one sigma) sigmoid(1)
    one_sigma = torch.tensor([0.5, 0.8413447])
    assert timesteps(one_sigma, "logit_normal", 1.0).tolist() == pytest.approx([0.5, 0.7310586], abs=1e-5)


def test_a_design_refuses_only_the_samplers_settings_that_somebody_set(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Temperature:
        temperature: float = 1.0

    family = replace(FAMILY, kind="other", sampling_type=Temperature)
    monkeypatch.setattr(collect, "family_of", lambda path, kind: family)
    sections: tuple[Literal["rollout"], Literal["eval"]] = ("rollout", "eval")
    for section in sections:
        assert sampling_of(load_config(RECIPE), section) == Temperature(1.0)
        with pytest.raises(UserError, match="text_scale: the sampler of other has no such setting"):
            sampling_of(load_config(RECIPE, ["rollout.text_scale=3"]), section)
    with pytest.raises(UserError, match="eval.num_timesteps"):
        sampling_of(load_config(RECIPE, ["eval.num_timesteps=5"]), "eval")
    assert sampling_of(load_config(RECIPE, ["eval.num_timesteps=5"])) == Temperature(1.0)
    assert sampling_of(load_config(RECIPE, ["eval.sampler.temperature=0.5"]), "eval") == Temperature(0.5)


def test_a_ranks_micro_batches_are_written_about_in_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn two prompts at a time, asked about at once; the scores are those of each micro-batch asked alone."""
    shards = write_prompts(tmp_path, 8)
    writes = ["judge.readout=generate", "judge.max_new_tokens=1", "judge.retries=0", "judge.batch=1000"]
    cfg = load_config(RECIPE, short_run(shards, tmp_path, *writes)[1:])
    model = load_model(MODEL)
    collector = collector_of(cfg, model)
    asked: list[int] = []
    answer = model.answer

    def counted(images: Sequence[Tensor], questions: Sequence[str], *more: Any, **settings: Any) -> list[str]:
        asked.append(len(questions))
        return answer(images, questions, *more, **settings)

    monkeypatch.setattr(model, "answer", counted)
    prompts = PromptReader(shards, "train").batch(0, 4, 0, 0, 1)
    with torch.no_grad(), ExitStack() as gathered:
        first, second = collector.collect(prompts, 0, Clock(), gathered)
        assert len(asked) == 1 and asked[0] > 8
        alone = collector.judging.judged(model, second.samples)
        assert len(asked) == 2
        assert collector.judging.judged_together(model, []) == []
    assert [len(batch.samples.prompts) for batch in (first, second)] == [2, 2]
    assert torch.equal(alone.scores.global_N, second.scores.global_N)
    assert torch.equal(alone.scores.local_R, second.scores.local_R)
    assert alone.scores.raw == second.scores.raw
