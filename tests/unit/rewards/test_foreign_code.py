"""Readouts, region proposers, objectives, checkers, benchmarks and judges of a user's own that break their word."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.evaluation.benchmarks import Grade, Outcome, RegionTruth, load_benchmark, load_checks
from srum_ds.evaluation.benchmarks.guarded import GuardedAsks, GuardedChecks, guarded_benchmark
from srum_ds.evaluation.checkers import load_checker
from srum_ds.judges import Ask, JudgeSettings, Question, Reply, load_judge
from srum_ds.models import load_model
from srum_ds.models.protocol import UnifiedModel
from srum_ds.objectives import Objective, Terms, get_objective
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rewards.judge.readouts import GenerateReadout, Replies, readout_of, writes
from srum_ds.rewards.regions.boxes import Candidates, candidates_of
from srum_ds.rewards.regions.pipeline import proposer_of
from srum_ds.types import Prompt
from tests.support.batches import FLOW
from tests.support.judges import one_scene_twice
from tests.support.paths import MODEL, RECIPE

THIS = "tests.unit.rewards.test_foreign_code"
PROMPT = Prompt("a", "a red circle", phrases=("a red circle",), meta={"counts": [1]})
IMAGES = torch.full((2, 3, 8, 8), 0.5)

SAID: dict[str, Any] = {}


@pytest.fixture(scope="module")
def model() -> UnifiedModel:
    return load_model(MODEL)


# ---- readouts


class Own:
    """Gives whatever the test says."""

    needs_question, think, cure = True, False, ""
    asks = finds_objects = False

    def read(self, judge: Any, pictures: list[Any], requests: list[Any]) -> Any:
        for picture in pictures:
            picture.zero_()
        found = SAID["found"](len(requests))
        requests.clear()
        pictures.clear()
        return found

    def __call__(self, images_NCHW: Any, prompts: Any, judge: Any) -> Any:
        images_NCHW.zero_()
        prompts[0].meta.clear()
        return SAID["found"](len(prompts))


def own(cfg: Any) -> Any:
    return Own()


def nothing(cfg: Any) -> Any:
    return None


def broken(cfg: Any) -> Any:
    raise SystemExit(0)


class Written(GenerateReadout):
    pass


def written(cfg: Any) -> Any:
    return Written()


def plain(n: int) -> Replies:
    return Replies(torch.zeros(n), torch.zeros(n, dtype=torch.int64), ("",) * n)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (lambda n: None, "returned None; expected Replies"),
        (lambda n: (torch.zeros(n), torch.zeros(n), ()), "returned a tuple of 3"),
        (lambda n: replace(plain(n), score_Q=torch.full((n,), torch.inf)), "score_Q returned inf"),
        (lambda n: replace(plain(n), score_Q=torch.full((n,), 1j)), "complex64"),
        (lambda n: replace(plain(n), score_Q=torch.full((n,), 1.5)), "returned the score 1.5 for question 0"),
        (
            lambda n: replace(plain(n), score_Q=torch.full((n,), torch.nan)),
            "the score nan with the status PARSED",
        ),
        (lambda n: replace(plain(n), status_Q=torch.full((n,), 2)), "the score 0.0 with the status FAILED"),
        (lambda n: replace(plain(n), status_Q=torch.full((n,), 9)), "status_Q returned a tensor"),
        (lambda n: replace(plain(n), status_Q=torch.zeros(n)), "status_Q returned a tensor .* of float32"),
        (lambda n: replace(plain(n), raw=()), "raw returned a tuple of 0"),
        (lambda n: replace(plain(n), raw=(None,) * n), "raw returned a tuple"),
        (lambda n: plain(n + 1), "score_Q returned a tensor"),
        (lambda n: 1 / 0, r"raised ZeroDivisionError.*\(test_foreign_code.py, line"),
    ],
)
def test_a_readout_that_gives_no_replies(model: UnifiedModel, found: Callable[[int], Any], said: str) -> None:
    SAID["found"] = found
    pipeline = JudgePipeline(load_config(RECIPE, [f"judge.readout={THIS}:own"]))
    with pytest.raises(UserError, match=f"^judge.readout={THIS}:own.*{said}"):
        pipeline.scores(model, *one_scene_twice())


def test_a_readout_that_works_in_place_changes_nothing(model: UnifiedModel) -> None:
    SAID["found"] = plain
    samples, regions = one_scene_twice()
    before = samples.images_NCHW.clone()
    scores = JudgePipeline(load_config(RECIPE, [f"judge.readout={THIS}:own"])).scores(model, samples, regions)
    assert torch.equal(samples.images_NCHW, before) and scores.global_N.tolist() == [0.0, 0.0]


def test_code_that_makes_no_readout_or_proposer() -> None:
    for name, said in (("nothing", "needs_question of what it returned None"), ("broken", "tried to end the process")):
        with pytest.raises(UserError, match=f"^judge.readout={THIS}:{name}.*{said}"):
            readout_of(load_config(RECIPE, [f"judge.readout={THIS}:{name}"]))
    with pytest.raises(UserError, match=f"^regions.kind={THIS}:nothing: asks of what it returned None"):
        proposer_of(load_config(RECIPE, [f"regions.kind={THIS}:nothing"]))


def test_a_readout_that_has_the_judge_write_is_known() -> None:
    assert writes(readout_of(load_config(RECIPE, [f"judge.readout={THIS}:written"])))


# ---- region proposers


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (lambda n: None, "returned None; expected a list of 2 Candidates"),
        (lambda n: [candidates_of([], [])], "returned a list of 1"),
        (lambda n: [[(0, 0, 1, 1)]] * n, "returned a list of 1, the first a tuple of 4"),
        (lambda n: [Candidates(torch.zeros(1, 3), torch.zeros(1))] * n, r"boxes_R4 returned a tensor \[1, 3\]"),
        (lambda n: [Candidates(torch.zeros(1, 4), torch.zeros(2))] * n, r"area_R returned a tensor \[2\]"),
        (lambda n: [Candidates(torch.zeros(1, 4), torch.zeros(1) * 1j)] * n, "area_R returned .* complex64"),
        (lambda n: SAID["box"], "raised KeyError"),
    ],
)
def test_a_proposer_that_gives_no_boxes(found: Callable[[int], Any], said: str) -> None:
    SAID["found"] = found
    proposer = proposer_of(load_config(RECIPE, [f"regions.kind={THIS}:own"]))
    with pytest.raises(UserError, match=f"^regions.kind={THIS}:own.*{said}"):
        proposer(IMAGES, [PROMPT, PROMPT], None)  # type: ignore[arg-type]
    assert bool((IMAGES == 0.5).all()) and dict(PROMPT.meta) == {"counts": [1]}


# ---- objectives


def loss(terms: Terms, settings: Any) -> Any:
    terms.target.zero_()
    terms.weights_BT.zero_()  # type: ignore[union-attr]
    return SAID["found"](terms)


LOSS = Objective(loss, "signed", "a test")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (lambda terms: None, r"returned None; expected losses \[2, 4\]"),
        (lambda terms: terms.energy.sum(), r"returned a tensor \[\] of float32"),
        (lambda terms: terms.energy.detach(), "these have no gradient"),
        (lambda terms: terms.energy > 0, "of bool"),
        (lambda terms: terms.energy * 1j, "of complex64"),
        (lambda terms: terms.nothing, "raised AttributeError"),
    ],
)
def test_an_objective_that_gives_no_losses(found: Callable[[Terms], Any], said: str) -> None:
    SAID["found"] = found
    target, weights = torch.ones(2, 4, 3), torch.ones(2, 4)
    terms = Terms(FLOW, torch.zeros(2, 4, 3, requires_grad=True), target, weights)
    objective = get_objective(f"{THIS}:LOSS")
    with pytest.raises(UserError, match=f"^objective.name={THIS}:LOSS.*{said}"):
        objective.losses(terms, load_config(RECIPE, []).objective)
    assert bool((target == 1).all()) and bool((weights == 1).all())
    SAID["found"] = lambda terms: terms.energy
    losses = objective.losses(terms, load_config(RECIPE, []).objective)
    assert losses.shape == (2, 4) and losses.requires_grad


def test_what_is_no_objective_is_refused_with_the_recipe() -> None:
    with pytest.raises(UserError, match=f"objective.name={THIS}:loss: is function, expected"):
        load_config(RECIPE, [f"objective.name={THIS}:loss"])


# ---- checkers, benchmarks


def check(prompts: Any, images_NCHW: Any) -> Any:
    images_NCHW.zero_()
    prompts[0].meta.clear()
    return SAID["found"]


@pytest.mark.parametrize("found", [None, [True], [1.0, 0.0], (True, True), "ab", [None, None], torch.zeros(2)])
def test_a_checker_that_gives_no_truths(found: Any) -> None:
    SAID["found"] = found
    checker = load_checker(f"{THIS}:check")
    with pytest.raises(UserError, match=f"^watch.checker={THIS}:check returned .* a list of 2 truth values"):
        checker([PROMPT, PROMPT], IMAGES)
    SAID["found"] = torch.tensor([True, False])
    assert checker([PROMPT, PROMPT], IMAGES) == [True, False]
    assert bool((IMAGES == 0.5).all()) and dict(PROMPT.meta) == {"counts": [1]}


class Checking:
    name = "own"

    def refuse(self, prompts: Any, where: str) -> None:
        raise UserError("no lamps")

    def check(self, prompts: Any, images_NCHW: Any) -> Any:
        images_NCHW.zero_()
        return SAID["found"]

    def region_truths(self, rng: Any, prompt: Any, image_CHW: Any, boxes: Any) -> Any:
        return SAID["found"]


CHECKING = Checking()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "returned None"),
        ([Outcome(True, 1.0)], "returned a list of 1"),
        ([(True, 1.0)] * 2, "returned a tuple of 2"),
        ([Outcome(True, float("nan"))] * 2, "partial returned nan"),
        ([Outcome(True, float("inf"))] * 2, "partial returned inf"),
        ([Outcome(True, 1.5)] * 2, "partial returned 1.5"),
        ([Outcome(True, "all")] * 2, "partial returned a list of 1, the first the text 'all'"),  # type: ignore[arg-type]
        ([Outcome(None, 1.0)] * 2, "exact returned a list of 1, the first None"),  # type: ignore[arg-type]
    ],
)
def test_a_benchmark_that_gives_no_outcomes(found: Any, said: str) -> None:
    SAID["found"] = found
    checks = load_checks(f"{THIS}:CHECKING")
    with pytest.raises(UserError, match=f"^eval.benchmark={THIS}:CHECKING: check.*{said}"):
        checks.check([PROMPT, PROMPT], IMAGES)
    SAID["found"] = [Outcome(True, 1), Outcome(False, 0.25)]
    assert list(checks.check([PROMPT, PROMPT], IMAGES)) == [Outcome(True, 1.0), Outcome(False, 0.25)]
    assert bool((IMAGES == 0.5).all())


def test_the_other_methods_of_a_benchmark() -> None:
    checks = load_checks(f"{THIS}:CHECKING")
    with pytest.raises(UserError, match=f"{THIS}:CHECKING: refuse: no lamps"):
        checks.refuse([PROMPT], "here")
    broken: list[Any] = [None, [[]], [[("a", True)]] * 2, [5, 5]]
    for found in broken:
        SAID["found"] = found
        with pytest.raises(UserError, match="region_truths returned .* a list of 2 lists of RegionTruth"):
            checks.region_truths(random.Random(0), PROMPT, IMAGES[0], [[0, 0, 1, 1]] * 2)
    SAID["found"] = [[RegionTruth("a", True)], []]
    assert checks.region_truths(random.Random(0), PROMPT, IMAGES[0], [[0, 0, 1, 1]] * 2) == SAID["found"]


class Asking:
    def questions(self, prompt: Prompt) -> Any:
        return SAID["found"]

    def grade(self, prompt: Prompt, replies: Any) -> Any:
        replies.clear()
        return SAID["found"]


def test_what_is_asked_and_graded() -> None:
    asks = GuardedAsks("--benchmark own", Asking())
    for found, said in (
        (None, "returned None"),
        (Grade(float("inf")), "value returned inf"),
        (Grade(1.0, {"quality": float("nan")}), "quality returned nan"),
        (Grade("good"), "value returned the text 'good'"),  # type: ignore[arg-type]
    ):
        SAID["found"] = found
        with pytest.raises(UserError, match=f"^--benchmark own: grade.*{said}"):
            asks.grade(PROMPT, {})
    questions: list[Any] = ["why?", ["why?"], None]
    for asked in questions:
        SAID["found"] = asked
        with pytest.raises(UserError, match="^--benchmark own: questions returned .* a list of Question"):
            asks.questions(PROMPT)
    broken: dict[str, Any] = {"read": lambda source: None, "figures": lambda names: [1]}
    own = guarded_benchmark("--benchmark own", replace(load_benchmark("shapes"), **broken))
    assert isinstance(own.grading, GuardedChecks)
    with pytest.raises(UserError, match="^--benchmark own: read returned None; expected a list of Prompt"):
        own.read(None)
    with pytest.raises(UserError, match="^--benchmark own: figures returned 1; expected a list of Figure"):
        own.figures(["a"])


# ---- judges of picture files


class Judging:
    kind, model, under_test = "own", "mine", False

    def ask(self, asks: Any) -> Iterator[Any]:
        for ask in asks:
            assert isinstance(ask, Ask)
        found: Iterator[Any] = SAID["found"]()
        return found

    def close(self) -> None:
        raise SystemExit(0)


def judging(settings: JudgeSettings) -> Judging:
    return Judging()


def one_then_ends() -> Iterator[Any]:
    yield 0, Reply(("yes",))
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (lambda: None, "ask returned None"),
        (lambda: iter(["yes"]), "ask returned the text 'yes'"),
        (lambda: iter([(0, "yes")]), "ask returned a tuple of 2, the first 0"),
        (lambda: iter([(0, Reply(probabilities=(float("nan"),)))]), "ask returned a tuple of 2"),
        (lambda: iter([(7, Reply(("yes",)))]), "gave a reply to ask 7 of 2"),
        (lambda: iter([(0, Reply(("yes",)))] * 2), "gave a reply to ask 0 of 2"),
        (lambda: iter([(0, Reply(("yes",)))]), "gave 1 replies to 2 asks"),
        (one_then_ends, r"tried to end the process by sys.exit\(0\)"),
    ],
)
def test_a_judge_that_gives_no_replies(found: Callable[[], Any], said: str) -> None:
    SAID["found"] = found
    judge = load_judge(f"{THIS}:judging", JudgeSettings())
    asks = [Ask(Question(key, ("why?",)), b"") for key in "ab"]
    with pytest.raises(UserError, match=f"^--judge {THIS}:judging: .*{said}"):
        list(judge.ask(asks))
    with pytest.raises(UserError, match="close tried to end the process"):
        judge.close()
