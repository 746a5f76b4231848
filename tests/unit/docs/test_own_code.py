"""docs/own_code.md: each example as a user has it, copied into a folder outside the package and named in a recipe."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from srum_ds.config import Config, load_config
from srum_ds.config.schema import ObjectiveConfig
from srum_ds.evaluation.checkers import load_checker
from srum_ds.models import load_model
from srum_ds.models.flow import FlowSampling
from srum_ds.models.matching import CategoricalTokens, FlowMatching
from srum_ds.models.protocol import Judge
from srum_ds.monitoring.trackers import TrackerRun, open_trackers
from srum_ds.objectives import Terms, get_objective
from srum_ds.rewards.judge.external import function_scores, load_function
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rewards.judge.readouts import Request, readout_of
from srum_ds.rewards.regions.boxes import select
from srum_ds.rewards.regions.pipeline import proposer_of
from srum_ds.rewards.templates import Template, load_template
from srum_ds.types import Prompt
from tests.support.batches import samples_of
from tests.support.judges import ColourJudge, MuteJudge, ScoringJudge, WritingJudge, one_scene_twice
from tests.support.pages import OWN_CODE, blocks, files, write_files
from tests.support.paths import MODEL, RECIPE

PROMPTS = [Prompt("a", "a circle")] * 2


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The settings that the page's command names, in a folder that holds its files alone."""
    write_files(OWN_CODE, tmp_path)
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^srum-ds train tiny (.*?)$", OWN_CODE.read_text().replace("\\\n", ""), re.MULTILINE)
    options = ["objective.options.strength=3", "regions.options.count=4"]
    return load_config(RECIPE, [*shlex.split(command), *options])


def test_every_kind_has_an_example_of_at_most_fifteen_lines() -> None:
    shown = files(OWN_CODE)
    assert list(shown) == [
        "objective.py",
        "readout.py",
        "proposer.py",
        "judge.py",
        "checker.py",
        "tracker.py",
        "model.py",
    ]
    assert {name: len(code.splitlines()) for name, code in shown.items() if len(code.splitlines()) > 15} == {}


def test_tracker(cfg: Config, tmp_path: Path) -> None:
    told: list[str] = []
    run = TrackerRun("run", cfg.log.project, tmp_path, {})
    trackers = open_trackers(cfg.log.trackers, run, told.append)
    for step in (1, 2):
        trackers.log(step, {"loss": step / 4})
    trackers.close()
    assert (tmp_path / "losses.csv").read_text() == "1,0.25\n2,0.5\n"
    assert told == []


@pytest.mark.parametrize("discrete", [False, True])
def test_objective(cfg: Config, discrete: bool) -> None:
    """w E + s D for velocities and for codes, its gradient w dE where nothing has moved yet."""
    torch.manual_seed(0)
    matching = CategoricalTokens() if discrete else FlowMatching()
    shape = (2, 3) if discrete else (2, 3, 5)
    prediction = torch.randn(shape, requires_grad=True)
    target = torch.randint(0, 5, shape) if discrete else torch.randn(shape)
    weights_BT = torch.tensor([[0.5, -1.0, 0.0], [1.0, 0.0, -0.5]])
    old = torch.randn(shape)
    objective = get_objective(cfg.objective.name)
    losses_BT = objective.losses(Terms(matching, prediction, target, weights_BT, old), cfg.objective)
    energy_BT, divergence_BT = matching.energy(prediction, target), matching.divergence(prediction, old)
    torch.testing.assert_close(losses_BT, weights_BT * energy_BT + 3 * divergence_BT)

    at_old = Terms(matching, prediction, target, weights_BT, prediction.detach().clone())
    (gradient,) = torch.autograd.grad(objective.losses(at_old, ObjectiveConfig()).sum(), prediction, retain_graph=True)
    (expected,) = torch.autograd.grad((weights_BT * matching.energy(prediction, target)).sum(), prediction)
    torch.testing.assert_close(gradient, expected)


def test_readout(cfg: Config) -> None:
    judge = ScoringJudge(lambda question, image: (0.7, 0.1))
    requests = [Request(0, "is this a circle?", "a circle")] * 3
    replies = readout_of(cfg).read(judge, [torch.zeros(3, 8, 8)], requests)
    torch.testing.assert_close(replies.score_Q, torch.tensor([0.6] * 3))
    assert replies.status_Q.tolist() == [0, 0, 0] and len(replies.raw) == 3


def test_region_proposer(cfg: Config) -> None:
    found = proposer_of(cfg)(torch.zeros(2, 3, 8, 8), PROMPTS, MuteJudge())
    regions = select(found, max_count=cfg.regions.max_count)
    assert regions.owner_R.tolist() == [0] * 4 + [1] * 4
    assert regions.boxes_R4[1].tolist() == [0.25, 0.0, 0.5, 1.0]


def test_external_judge_of_whole_images(cfg: Config) -> None:
    samples = samples_of(torch.zeros(2, 4, 3), (2, 2), [0, 1])
    samples.images_NCHW[1, :, :32] = 1.0
    score_N, status_N, failures = function_scores(load_function(str(cfg.judge.external)), "fullness", samples)
    assert score_N.tolist() == [-1.0, 1.0] and status_N.tolist() == [0, 0] and failures == ()


def test_external_judge_of_crops_alone(cfg: Config, tmp_path: Path) -> None:
    """The page's list of judges has all of every score: the model's own judge, who would fail, is asked nothing."""
    (listed,) = blocks(OWN_CODE, "yaml")
    recipe = tmp_path / "own.yaml"
    recipe.write_text(f"base: {RECIPE}\n{listed}")
    samples, regions = one_scene_twice()
    judged = JudgePipeline(load_config(recipe)).scores(MuteJudge(), samples, regions)
    assert judged.global_N.tolist() == pytest.approx(load_function("judge.py:fullness")(samples.images_NCHW, []))
    circle = judged.phrase_R.tolist().index(0)
    assert regions.owner_R[circle] == 0 and samples.prompts[0].phrases[0] == "a red circle"
    assert float(judged.local_R[circle]) > 0.1


def test_checker(cfg: Config) -> None:
    images_NCHW = torch.zeros(2, 3, 8, 8)
    images_NCHW[1, 0, 3, 3] = 1.0
    assert load_checker(cfg.watch.checker)(PROMPTS, images_NCHW) == [False, True]


def test_model(cfg: Config) -> None:
    """It draws what the design that it varies draws of the prompt in capital letters."""
    sampling = FlowSampling(num_timesteps=2)
    own, bagel = load_model(MODEL, cfg.model.kind), load_model(MODEL)
    keys = [("generate", 0, "a circle", 0)]
    drawn = own.generate([PROMPTS[0]], keys, own.grid(32, 32), sampling)[1]
    shouted = bagel.generate([Prompt("a", "A CIRCLE")], keys, own.grid(32, 32), sampling)[1]
    plain = bagel.generate([PROMPTS[0]], keys, own.grid(32, 32), sampling)[1]
    assert torch.equal(drawn, shouted) and not torch.equal(drawn, plain)


def test_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks(OWN_CODE, "jinja")
    monkeypatch.chdir(tmp_path)
    Path("my.jinja").write_text(code)
    judge = ScoringJudge(lambda question, image: (0.7, 0.1))
    JudgePipeline(load_config(RECIPE, ["judge.global_template=my.jinja"])).judged(judge, one_scene_twice()[0])
    expected = "Does this picture show exactly a red circle and a blue square, and nothing else? Answer yes or no."
    assert expected in judge.questions
    assert load_template("my.jinja").label.startswith("my v1 ")


# ---- what templates are given


def _shown_variables() -> dict[str, set[str]]:
    """Setting -> variables, as the page's table has it."""
    rows = re.findall(r"^\| (`\w+[^|]*?) \| (.*?) \| .*\|$", OWN_CODE.read_text(), re.MULTILINE)
    return {row[0].replace("`", ""): set(re.findall(r"`(\w+)`", row[1])) for row in rows if "template" in row[0]}


def _given_variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Setting -> the variables that its template is really given while a scene is judged."""
    given: dict[str, set[str]] = {}
    known: dict[str, str] = {}
    render = Template.render

    def noted(self: Template, **values: Any) -> str:
        given.setdefault(known.get(self.text, ""), set()).update(values)
        return render(self, **values)

    monkeypatch.setattr(Template, "render", noted)

    def ask(setting: str, text: str, judge: Judge, words: Sequence[str], label: str = "") -> None:
        path = Path(f"{len(known)}.jinja")
        path.write_text(f"{text}{{# {label or setting} #}}")
        known[path.read_text()] = label or setting
        JudgePipeline(load_config(RECIPE, [f"{setting}={path}", *words])).judged(judge, _bare())

    def _bare() -> Any:
        return one_scene_twice()[0]

    writing = WritingJudge(lambda question, attempt: "Score: 1")
    ask("judge.global_template", "{{ prompt }}", ColourJudge(), [])
    ask("judge.local_template", "{{ phrase }}", ColourJudge(), [])
    boxes = ["judge.regional=boxes", "judge.readout=generate"]
    ask("judge.local_template", "{{ boxes }}", writing, boxes, "judge.local_template, judge.regional=boxes")
    ask("judge.caption_template", "describe", _Likely(), ["judge.readout=likelihood"])
    ask("regions.filter_template", "{{ phrase }}", ColourJudge(), ["regions.filter=true"])
    ask("regions.phrases_template", "{{ prompt }}", _Asked(), ["regions.phrases=ask"])
    ask("regions.ground_template", "{{ prompt }}", _Asked(), ["regions.kind=ground"])
    return {setting: names for setting, names in given.items() if setting}


class _Likely(MuteJudge):
    def text_logprob(self, images: Any, texts: Any, questions: Any = None, image_index: Any = None) -> torch.Tensor:
        return torch.zeros(len(texts))


class _Asked(ColourJudge):
    def answer(self, images: Any, questions: Any, *others: Any) -> list[str]:
        return ["[]"] * len(questions)


def test_the_variables_of_templates_are_those_that_the_page_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = _shown_variables()
    given = _given_variables(monkeypatch)
    # Who judges over HTTP is asked as the own judge is about a whole image; test_external_judge has a server.
    assert shown.pop("template of a judge over HTTP") == shown["judge.global_template"]
    # Nobody is told the prompt's text whose likelihood is read.
    assert given.pop("judge.caption_template") - {"prompt", "phrase"} == shown.pop("judge.caption_template")
    assert given == shown
    explained = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`\w+`[^|]*?) \| ", OWN_CODE.read_text(), re.M))))
    assert set().union(*shown.values()) <= explained
