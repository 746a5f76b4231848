"""Phrases and regions of a recipe on the embedded model: every kind of region gives a map."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

from srum_ds.common.clock import Clock
from srum_ds.common.errors import UserError
from srum_ds.config import Config, load_config
from srum_ds.models import load_model
from srum_ds.models.protocol import Judge
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rewards.phrases.cache import spacy_parser
from srum_ds.rewards.regions.boxes import Candidates, candidates_of
from srum_ds.rewards.regions.pipeline import RegionPipeline
from srum_ds.rewards.token_weights import token_weights
from srum_ds.types import Prompt, Regions, Status
from tests.support.judges import RIGHT, ScoringJudge, picture, samples_showing
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
def test_every_kind_of_region_gives_a_map(model: Any, words: list[str]) -> None:
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


class Thirds:
    """A user's own proposer: three boxes side by side over every image, one more than RIGHT has phrases."""

    def __init__(self, asks: bool, finds_objects: bool) -> None:
        self.asks = asks
        self.finds_objects = finds_objects

    def __call__(self, images_NCHW: Tensor, prompts: Sequence[Prompt], judge: Judge) -> list[Candidates]:
        assert len(prompts) == len(images_NCHW)
        return [candidates_of([(k / 3, 0.0, (k + 1) / 3, 1.0) for k in range(3)], [1.0] * 3)] * len(images_NCHW)


def objects(cfg: Config) -> Thirds:
    return Thirds(asks=False, finds_objects=True)


def cells(cfg: Config) -> Thirds:
    return Thirds(asks=True, finds_objects=False)


@pytest.mark.parametrize(
    ("kind", "penalty"),
    [
        ("components", 0.4),
        # Its weights are nowhere: regions that are there already are judged without them.
        ("sam", 0.4),
        ("ground", 0.4),
        ("grid", 0.0),
        ("none", 0.4),
        (f"{__name__}:objects", 0.4),
        (f"{__name__}:cells", 0.0),
    ],
)
def test_a_box_that_no_phrase_claims_costs_only_where_boxes_are_objects(kind: str, penalty: float) -> None:
    words = [f"regions.kind={kind}", "reward.surplus_penalty=0.4", "regions.sam_model=nobody/sam-vit-none"]
    cfg = load_config(RECIPE, [*words, "reward.local_weight=0"] if kind == "none" else words)
    thirds = torch.tensor([[0.0, 0.0, 1 / 3, 1.0], [1 / 3, 0.0, 2 / 3, 1.0], [2 / 3, 0.0, 1.0, 1.0]])
    samples = samples_showing((RIGHT,), ((picture(("red", 0, 0)),),))
    judge = ScoringJudge(lambda question, image: (0.5, 0.25))
    scores = JudgePipeline(cfg).scores(judge, samples, Regions(torch.zeros(3, dtype=torch.int64), thirds))
    unclaimed = scores.phrase_R < 0
    assert scores.local_R[unclaimed].tolist() == pytest.approx([-penalty])
    assert scores.local_R[~unclaimed].tolist() == pytest.approx([1 / 3] * 2)


def test_what_finding_boxes_took_is_counted_where_a_proposer_asks() -> None:
    samples = samples_showing((RIGHT,), ((picture(), picture()),))
    for name, asked in (("objects", 0), ("cells", 2)):
        cfg = load_config(RECIPE, [f"regions.kind={__name__}:{name}", "regions.max_count=2"])
        judged = JudgePipeline(cfg).judged(ScoringJudge(lambda question, image: (0.5, 0.25)), samples)
        # The first two of three that are equally large.
        assert judged.regions.owner_R.tolist() == [0, 0, 1, 1]
        assert (judged.regions.asked, judged.regions.failed) == (asked, 0)
        assert judged.samples.prompts == (RIGHT,)


def test_weights_that_are_not_there_are_missed_before_the_first_step() -> None:
    cfg = load_config(RECIPE, ["regions.kind=sam", "regions.sam_model=nobody/sam-vit-none"])
    with pytest.raises(UserError, match=r"regions\.sam_model=nobody/sam-vit-none"):
        JudgePipeline(cfg).ready()
    # Questions that do not fit their readout, too.
    with pytest.raises(UserError, match="never mentions {{ phrase }}"):
        JudgePipeline(load_config(RECIPE, ["judge.local_template=shapes_global"])).ready()
