"""Scoring a folder of pictures: what is asked, what counts, what is kept, and what a broken picture or judge does."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.evaluation import score as score_module
from srum_ds.evaluation.benchmarks import Benchmark, Detection, Grade, equal_shares
from srum_ds.evaluation.draw_request import PromptChoice
from srum_ds.evaluation.results import read_scores
from srum_ds.evaluation.score import score_folder
from srum_ds.evaluation.score_request import JudgeChoice, ScoreRequest
from srum_ds.evaluation.scored import PROMPTS, picture_path
from srum_ds.judges import Ask, Question, Reply
from srum_ds.prompts.records import write_records
from srum_ds.types import Prompt

QUIET = Console(quiet=True)
PROMPT_LIST = [Prompt(f"p{n}", f"picture of {n} apples", "few" if n < 2 else "many") for n in range(4)]


class RatedGrading:
    """The judge writes a number of 0 to 10."""

    def questions(self, prompt: Prompt) -> Sequence[Question]:
        return [Question("rate", (f"From 0 to 10, how well does it show {prompt.text}?",))]

    def grade(self, prompt: Prompt, replies: Mapping[str, Reply]) -> Grade:
        reply = replies["rate"]
        if reply.error:
            return Grade(None, failure=reply.error)
        if not reply.text.isdigit():
            return Grade(None, failure="no number", words=reply.text)
        return Grade(float(reply.text), words=reply.text)


class Brightness:
    """A detector that finds a lamp where a picture is bright; it counts the pictures it looked at."""

    name = "brightness"

    def __init__(self) -> None:
        self.looked = 0

    def detect(self, images: Sequence[Tensor], classes: Sequence[str]) -> list[list[Detection]]:
        self.looked += len(images)
        return [[Detection(classes[0], float(image.mean()), (0.0, 0.0, 1.0, 1.0))] for image in images]


class LampGrading:
    """1 where a lamp is found with a score above a half."""

    def classes(self, prompts: Sequence[Prompt]) -> Sequence[str]:
        return ["lamp"]

    def grade(self, prompt: Prompt, detections: Sequence[Detection], image_CHW: Tensor) -> Grade:
        return Grade(float(any(one.score > 0.5 for one in detections)))


def nothing(source: Path | None) -> list[Prompt]:
    """These benchmarks bring no prompts."""
    raise UserError("no prompts")


RATED = Benchmark("rated", "1", nothing, RatedGrading(), equal_shares, full=10.0)
LAMPS = Benchmark("lamps", "1", nothing, LampGrading(), equal_shares)


@dataclass
class Scripted:
    """A judge that answers by a function of the picture's mean grey and remembers what it was asked."""

    says: Callable[[str, int], Reply]
    kind: str = "scripted"
    model: str = "one"
    under_test: bool = False
    asked: list[str] = field(default_factory=list)

    def ask(self, asks: Iterable[Ask]) -> Iterator[tuple[int, Reply]]:
        for position, one in enumerate(asks):
            self.asked.append(one.question.turns[0])
            grey = Image.open(io.BytesIO(one.picture)).convert("L").getpixel((0, 0))
            assert isinstance(grey, int | float)
            yield position, self.says(one.question.turns[0], int(grey))

    def close(self) -> None:
        """Holds nothing."""


def honest(question: str, grey: int) -> Reply:
    """The grey of the picture over 20, as a number; 0 for what is white or grey all over (the canaries)."""
    return Reply(("0" if grey in (128, 255) else str(grey // 20),))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_records(tmp_path / PROMPTS, PROMPT_LIST)
    for n, prompt in enumerate(PROMPT_LIST):
        path = picture_path(tmp_path, prompt.id, 0)
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (40 * n + 20,) * 3).save(path)
    monkeypatch.setattr(score_module, "load_benchmark", lambda name: {"rated": RATED, "lamps": LAMPS}[name])
    return tmp_path


def request(folder: Path, benchmark: str = "rated", **judge: Any) -> ScoreRequest:
    return ScoreRequest(folder, PromptChoice(benchmark), JudgeChoice(judge.pop("kind", "http"), **judge))


def test_every_picture_is_graded_once_and_the_figures_are_those_of_the_replies(folder: Path) -> None:
    judge = Scripted(honest)
    results = score_folder(request(folder), QUIET, judge)
    # 1, 3 | 5, 7: greys 20, 60, 100, 140 over 20.
    assert results["by_category"]["few"]["mean"] == 2.0
    assert results["by_category"]["many"]["mean"] == 6.0
    assert results["overall"]["mean"] == 4.0
    assert (results["n"], results["failures"], results["complete"]) == (4, 0, True)
    assert results["canary"]["passed"] is True
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (folder / "report.html").stat().st_size > 1000
    assert "| few |" in (folder / "eval.md").read_text()


def test_a_second_scoring_asks_nothing_and_says_the_same(folder: Path) -> None:
    score_folder(request(folder), QUIET, Scripted(honest))
    before = (folder / "results.json").read_bytes()
    again = Scripted(honest)
    score_folder(request(folder), QUIET, again)
    assert again.asked == []
    assert (folder / "results.json").read_bytes() == before


def test_what_failed_is_counted_left_out_and_asked_again_the_next_time(folder: Path) -> None:
    def flaky(question: str, grey: int) -> Reply:
        return Reply(error="the server hung up", attempts=3) if grey == 100 else honest(question, grey)

    results = score_folder(request(folder), QUIET, Scripted(flaky))
    assert (results["n"], results["failures"]) == (3, 1)
    assert results["by_category"]["many"] | {"mean": 7.0, "n": 1, "failures": 1} == results["by_category"]["many"]
    assert read_scores(folder)[2].failure == "the server hung up"
    mended = Scripted(honest)
    results = score_folder(request(folder), QUIET, mended)
    # The picture, and the canary that showed it as a picture of something else.
    assert {question for question in mended.asked if "2 apples" in question}
    assert len(mended.asked) <= 2
    assert (results["n"], results["overall"]["mean"]) == (4, 4.0)


def test_failures_count_as_zero_by_an_explicit_option_alone(folder: Path) -> None:
    def flaky(question: str, grey: int) -> Reply:
        return Reply(("good",)) if grey == 100 else honest(question, grey)

    results = score_folder(replace(request(folder), failures="zero"), QUIET, Scripted(flaky))
    assert results["by_category"]["many"]["mean"] == 3.5
    assert results["failures"] == 1


def test_a_broken_picture_is_a_failure_and_is_never_sent(folder: Path) -> None:
    path = picture_path(folder, "p3", 0)
    path.write_bytes(path.read_bytes()[:45])
    judge = Scripted(honest)
    results = score_folder(request(folder), QUIET, judge)
    assert (results["n"], results["failures"]) == (3, 1)
    assert str(path.name) in read_scores(folder)[3].failure
    assert not any("3 apples" in question for question in judge.asked[-3:])


@pytest.mark.parametrize("broken", ["p0", "p1", "p2", "p3"])
def test_a_broken_picture_that_a_canary_would_show_is_a_failure_alone(folder: Path, broken: str) -> None:
    path = picture_path(folder, broken, 0)
    path.write_bytes(path.read_bytes()[:45])
    results = score_folder(request(folder), QUIET, Scripted(honest))
    assert (results["n"], results["failures"]) == (3, 1)
    # Another picture is shown in its place.
    assert sum("a picture of" in case["what"] for case in results["canary"]["cases"]) == 3
    assert results["canary"]["passed"] is True


def test_a_missing_picture_is_listed_and_the_result_is_not_complete(folder: Path) -> None:
    picture_path(folder, "p0", 0).unlink()
    results = score_folder(request(folder), QUIET, Scripted(honest))
    assert results["missing"] == [{"id": "p0", "sample": 0, "category": "few"}]
    assert results["complete"] is False


def test_a_judge_that_likes_everything_is_named_on_top(folder: Path) -> None:
    results = score_folder(request(folder), QUIET, Scripted(lambda question, grey: Reply(("9",))))
    assert results["canary"]["passed"] is False
    text = (folder / "eval.md").read_text()
    assert text.lower().index("canar") < text.index("| few |")


def test_a_judge_that_answers_nothing_ends_in_an_error_after_everything_is_written(folder: Path) -> None:
    with pytest.raises(UserError, match="not one of 4 pictures could be graded"):
        score_folder(request(folder), QUIET, Scripted(lambda question, grey: Reply(error="refused")))
    assert json.loads((folder / "results.json").read_text())["overall"]["mean"] is None


def test_pictures_drawn_for_another_benchmark_are_refused(folder: Path) -> None:
    (folder / "drawn.json").write_text(json.dumps({"schema": 1, "samples": 1, "benchmark": "dpg", "version": "1"}))
    with pytest.raises(UserError, match="drawn for the benchmark 'dpg', not 'rated'"):
        score_folder(request(folder), QUIET, Scripted(honest))


def test_who_cannot_grade_is_named_before_anything_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--judge checker: rated cannot be checked from pixels"):
        score_folder(request(folder, kind="checker"), QUIET)
    with pytest.raises(UserError, match="lamps asks no judge"):
        score_folder(request(folder, "lamps", kind="http"), QUIET)
    with pytest.raises(UserError, match="either --detector FOLDER .* or --detections FILE"):
        score_folder(request(folder, "lamps", kind="checker"), QUIET)
    with pytest.raises(UserError, match="--srum-compat: SRUM's released scripts say nothing of rated"):
        score_folder(replace(request(folder), srum_compat=True), QUIET, Scripted(honest))
    monkeypatch.setattr(score_module, "load_benchmark", lambda name: replace(RATED, srum_compat=True))
    with pytest.raises(UserError, match="--srum-compat counts failures as the released scripts do"):
        score_folder(replace(request(folder), srum_compat=True, failures="zero"), QUIET, Scripted(honest))


def test_a_detector_looks_at_each_picture_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Brightness()
    monkeypatch.setattr(score_module, "load_detector", lambda name, device: detector)
    wanted = request(folder, "lamps", kind="checker", detector="brightness")
    results = score_folder(wanted, QUIET)
    # Only 140 / 255 is above a half.
    assert results["by_category"]["few"]["mean"] == 0.0
    assert results["by_category"]["many"]["mean"] == 0.5
    assert detector.looked == 4
    store = folder / "detections.jsonl"
    store.write_bytes(store.read_bytes()[:-20])
    assert score_folder(wanted, QUIET)["overall"] == results["overall"]
    assert detector.looked == 5


def test_detections_of_a_file_grade_and_a_picture_that_it_lacks_has_failed(folder: Path, tmp_path: Path) -> None:
    lines = [
        {"picture": f"p{n}_000.png", "detections": [{"label": "lamp", "score": 0.9, "box": [0, 0, 1, 1]}] * (n % 2)}
        for n in range(3)
    ]
    file = tmp_path / "boxes.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = score_folder(request(folder, "lamps", kind="checker", detections=file), QUIET)
    assert results["by_category"]["few"]["mean"] == 0.5
    assert (results["n"], results["failures"]) == (3, 1)
    assert read_scores(folder)[1].boxes[0]["label"] == "lamp"


def test_detections_of_other_pictures_are_counted_and_of_which_is_never_guessed(folder: Path, tmp_path: Path) -> None:
    boxes: dict[str, list[Any]] = {f"p{n}_000.png": [] for n in range(6)}
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(boxes))
    wanted = request(folder, "lamps", kind="checker", detections=file)
    console = Console(record=True, width=200, file=io.StringIO())
    assert score_folder(wanted, console)["n"] == 4
    assert "2 of its entries are of none of these pictures: p4_000.png, p5_000.png" in console.export_text()
    boxes["p0_000.png"] = [{"label": "Lamp", "score": 0.9, "box": [0, 0, 1, 1]}]
    file.write_text(json.dumps(boxes))
    with pytest.raises(UserError, match="'Lamp', which the prompts spell 'lamp'"):
        score_folder(wanted, QUIET)


def test_pixels_are_checked_by_the_shapes_world(tmp_path: Path) -> None:
    from srum_ds.monitoring.images import to_pil
    from srum_ds.worlds.shapes.benchmark import read

    prompts = read(None)[:2]
    write_records(tmp_path / PROMPTS, prompts)
    for prompt in prompts:
        path = picture_path(tmp_path, prompt.id, 0)
        path.parent.mkdir(exist_ok=True)
        to_pil(torch.zeros(3, 64, 64)).save(path)
    results = score_folder(request(tmp_path, "shapes", kind="checker"), QUIET)
    assert (results["overall"]["mean"], results["n"]) == (0.0, 2)
    assert results["judge"] == {"kind": "checker", "model": "shapes", "under_test": False}
