"""Phrases and regions of a recipe on the embedded model: every way of looking gives a map."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch

from srum_ds.common.clock import Clock
from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.models import load_model
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rewards.phrases.cache import spacy_parser
from srum_ds.rewards.regions.pipeline import RegionPipeline
from srum_ds.rewards.token_weights import token_weights
from srum_ds.types import Prompt, Status
from tests.support.paths import MODEL, RECIPE
from tests.support.runs import collector_of

SHORT = ["rollout.num_timesteps=4", "rollout.images_per_prompt=2", "rollout.micro_batch_prompts=2"]


BARE = (Prompt("one", "a red circle and a blue square"), Prompt("two", "three green circles"))


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(MODEL)


@pytest.mark.parametrize(
    "words",
    [
        ["regions.phrases=split"],
        ["regions.phrases_tokens=3"],
        ["regions.phrases=split", "regions.filter=true"],
        ["regions.phrases=split", "regions.filter=true", "regions.filter_template=shapes_local"],
        ["regions.phrases=split", "regions.kind=grid", "regions.max_count=4"],
        ["regions.phrases=split", "regions.kind=ground", "regions.ground_tokens=3"],
        ["regions.kind=none", "reward.local_weight=0"],
    ],
    ids=" ".join,
)
def test_every_way_of_looking_gives_a_map(model: Any, words: list[str]) -> None:
    cfg = load_config(RECIPE, [*SHORT, *words])
    collector = collector_of(cfg, model)
    with ExitStack() as gathered:
        (judged,) = collector.collect(BARE, 0, Clock(), gathered)
    regions, scores = judged.regions, judged.scores
    found = [(p.phrases, p.meta.get("counts")) for p in judged.samples.prompts]
    if cfg.regions.kind == "none":
        assert found == [((), None), ((), None)]
    elif spacy_parser() is None:
        # The tiny model has no list to give: asked for one, it leaves the prompt to the split.
        assert found == [(("a red circle", "a blue square"), [1, 1]), (("a green circle",), [3])]
    if cfg.regions.kind == "ground":
        assert (len(regions), regions.asked, regions.failed) == (0, 4, 4)
    elif cfg.regions.kind == "none":
        assert len(regions) == 0
    elif cfg.regions.kind == "grid":
        assert len(regions) == 16
        unclaimed = scores.phrase_R < 0
        assert bool((scores.local_R[unclaimed & (scores.local_status_R != Status.FAILED)] == 0).all())
    elif not cfg.regions.filter:
        assert len(regions) > 0 and regions.asked == 0
    else:
        assert regions.asked >= len(regions)
    weights = token_weights("signed", judged, cfg.reward).map_Nhw
    assert weights is not None and weights.shape == (4, 4, 4)
    assert bool(torch.isfinite(weights).all())


def test_the_shards_own_phrases_are_left_as_they_are(model: Any) -> None:
    cfg = load_config(RECIPE, SHORT)
    known = Prompt("known", "two red circles", phrases=("a red circle",), meta={"counts": [2]})
    assert JudgePipeline(cfg).regions.phrases(model, (known,)) == (known,)


def test_templates_that_are_not_there_are_said_at_the_start() -> None:
    for key, kind in (
        ("filter_template", "components"),
        ("phrases_template", "components"),
        ("ground_template", "ground"),
    ):
        words = [f"regions.{key}=no/such.jinja", f"regions.kind={kind}", "regions.filter=true"]
        with pytest.raises(UserError, match="no/such.jinja"):
            RegionPipeline(load_config(RECIPE, words))
