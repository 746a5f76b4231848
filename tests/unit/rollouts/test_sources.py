"""Rounds are drawn once and whole, and rollouts that do not fit a run are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from srum_ds.common.clock import Clock
from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.models import load_model
from srum_ds.models.protocol import UnifiedModel
from srum_ds.rollouts.header import check_rollouts, rollout_header
from srum_ds.rollouts.shards import Index, RolloutReader, RolloutWriter
from srum_ds.rollouts.sources import RoundSource
from srum_ds.types import Judged
from tests.support.paths import MODEL, RECIPE
from tests.support.rollouts import HEADER, judged
from tests.support.runs import collector_of


@pytest.fixture(scope="module")
def model() -> UnifiedModel:
    return load_model(MODEL)


class Table:
    """Stands for online drawing: a step's samples are made from its number."""

    def __init__(self, length: int) -> None:
        train = SimpleNamespace(steps=2 * length, rounds=2)
        self.collector = SimpleNamespace(
            cfg=SimpleNamespace(train=train, rollout=SimpleNamespace(micro_batch_prompts=2))
        )
        self.engine = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))
        self.drawn: list[int] = []

    def batches(self, step: int, clock: Clock) -> list[Judged]:
        self.drawn.append(step)
        return [judged(0, step), judged(2, step)]


def rounds(folder: Path, online: Any, start: int = 0, kept: int | None = None, stop: bool = False) -> RoundSource:
    writer = RolloutWriter(folder, HEADER, None if kept is None else range(kept))
    return RoundSource(online, writer, start, lambda: stop, lambda text: None)


def test_a_round_is_drawn_once_and_whole(tmp_path: Path) -> None:
    online = Table(3)
    source = rounds(tmp_path, online)
    first = source.batches(0, Clock())
    assert online.drawn == [0, 1, 2] and first is not None
    assert torch.equal(first[1].samples.tokens, judged(2, 0).samples.tokens)
    source.batches(1, Clock())
    source.batches(2, Clock())
    assert online.drawn == [0, 1, 2]
    source.batches(3, Clock())
    assert online.drawn == [0, 1, 2, 3, 4, 5]
    assert [source.policy_changes_after(step) for step in range(6)] == [False, False, True, False, False, True]


def test_a_round_stopped_while_drawing_goes_on(tmp_path: Path) -> None:
    assert rounds(tmp_path, Table(3), stop=True).batches(0, Clock()) is None
    online = Table(3)
    assert rounds(tmp_path, online, kept=3).batches(0, Clock()) is not None
    assert online.drawn == [1, 2]
    # In the middle of a round its images can no longer be drawn: the weights have moved.
    with pytest.raises(UserError, match="the first being 2"):
        rounds(tmp_path, Table(3), start=1, kept=2)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["rollout.image_size=[32,64]"], r"grid of \[2, 4\] tokens, but theirs is \[4, 4\]"),
        (["rollout.prompts_per_step=4"], r"rollout\.prompts_per_step=4, but they were made with 8"),
        (["rollout.images_per_prompt=4"], r"rollout\.images_per_prompt=4, but they were made with 8"),
        (["train.steps=3"], r"the first being 0"),
    ],
)
def test_rollouts_that_do_not_fit_are_named(
    model: UnifiedModel, overrides: list[str], said: str, tmp_path: Path
) -> None:
    header = rollout_header(collector_of(load_config(RECIPE), model))
    other = collector_of(load_config(RECIPE, overrides), model)
    with pytest.raises(UserError, match=said):
        check_rollouts(other, RolloutReader(tmp_path, Index(header, {})))


def test_another_model_is_named_and_other_questions_are_told(model: UnifiedModel, tmp_path: Path) -> None:
    writer = RolloutWriter(tmp_path, rollout_header(collector_of(load_config(RECIPE), model)))
    writer.write(0, 0, [])
    collector = collector_of(load_config(RECIPE, ["judge.min_mass=0.1", "train.steps=1"]), model)
    told = check_rollouts(collector, RolloutReader(tmp_path))
    assert told == ["judge.min_mass was 0.05 and is now 0.1"]
    foreign = Index(rollout_header(collector), {})
    object.__setattr__(foreign.header, "model", "0" * 64)
    with pytest.raises(UserError, match="another model"):
        check_rollouts(collector, RolloutReader(tmp_path, foreign))


def test_modes_ask_for_what_they_need() -> None:
    with pytest.raises(UserError, match=r"data\.rollouts"):
        load_config(RECIPE, ["train.mode=offline"])
    with pytest.raises(UserError, match=r"train\.steps=120 is not a multiple of train\.rounds=7"):
        load_config(RECIPE, ["train.mode=rounds", "train.rounds=7"])
