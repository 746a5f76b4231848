"""The report as text: what it embeds, what it leaves out and says so, and that nothing in it comes from outside."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from srum_ds.evaluation.benchmarks import Grade
from srum_ds.evaluation.canary import CanaryResult
from srum_ds.evaluation.report_html import write_report
from srum_ds.evaluation.report_html.score_page import in_order
from srum_ds.evaluation.report_html.thumbnails import Thumbnails, overlay
from srum_ds.evaluation.results import Score, build_results, score_rows, write_results
from srum_ds.evaluation.scored import Scored
from srum_ds.types import Prompt
from tests.support.scored_folders import BENCHMARK, JUDGE, SCRIPT, scored_folder

VALUES = {(name, i): 40.0 + 10 * i for name in ("color", "complex_a", "complex_b") for i in range(3)}


def test_page_needs_nothing_else_and_prompts_are_text(tmp_path: Path) -> None:
    folder = scored_folder(tmp_path / "a", VALUES | {("color", 7): None}, texts={("color", 0): SCRIPT})
    page = write_report(folder).read_text()
    assert page.count("<script>") == 1
    assert "&lt;script&gt;document.title" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "url(" not in page and "@import" not in page
    assert "script-src 'sha256-" in page


def test_failures_stand_there_in_full(tmp_path: Path) -> None:
    values = VALUES | {("color", 10 + i): None for i in range(70)}
    page = write_report(scored_folder(tmp_path / "a", values)).read_text()
    failures = page[page.index('id="failures"') :]
    assert "all 70" in failures
    assert all(f"color-{10 + i} · 0" in failures for i in range(70))


def test_canary_and_self_judge_are_marked(tmp_path: Path) -> None:
    judge = {"kind": "self", "model": "abc", "under_test": True}
    canary = [CanaryResult("a blank picture", False, "95 <b>")]
    page = write_report(scored_folder(tmp_path / "a", VALUES, judge, canary)).read_text()
    assert page.index("failed its canary") < page.index("<h1>")
    assert "95 &lt;b&gt;" in page
    assert page.count("†") > len(VALUES)
    honest = write_report(scored_folder(tmp_path / "b", VALUES)).read_text()
    assert "†" not in honest and "failed its canary" not in honest and "Canary passed" in honest


def test_a_thousand_large_pictures_make_a_file_that_can_be_sent(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    scored = []
    for number in range(1000):
        prompt = Prompt(f"p{number}", f"text {number}", ("color", "complex_a", "complex_b")[number % 3])
        picture = f"images/{number % 100}_000.png"
        scored.append(Scored(prompt, 0, picture, Grade(float(number) / 10, words="w" * 300)))
    # Noise compresses worst of all.
    (tmp_path / "images").mkdir()
    Image.fromarray(noise).save(tmp_path / "images" / "noise.png")
    for number in range(100):
        (tmp_path / scored[number].picture).symlink_to(tmp_path / "images" / "noise.png")
    write_results(tmp_path, build_results(BENCHMARK, scored, JUDGE), score_rows(scored))
    path = write_report(tmp_path)
    assert 1_000_000 < path.stat().st_size < 15_000_000
    assert "48 of 1000 scored pictures" in path.read_text()


def test_budget_and_lost_pictures_are_counted(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (300, 200), "red").save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    one = len((Thumbnails().of(tmp_path / "a.png") or {})["src"])
    thumbnails = Thumbnails(budget=one)
    first = thumbnails.of(tmp_path / "a.png")
    assert first is not None and (first["width"], first["height"], first["tiny"]) == (300, 200, False)
    assert thumbnails.of(tmp_path / "a.png") is first
    assert thumbnails.of(tmp_path / "b.png") is None
    assert thumbnails.of(tmp_path / "broken.png") is None
    assert thumbnails.of(tmp_path / "nowhere.png") is None
    assert (thumbnails.shown, thumbnails.left_out, thumbnails.unreadable) == (1, 1, 2)


def test_lost_pictures_are_told_on_the_page(tmp_path: Path) -> None:
    folder = scored_folder(tmp_path / "a", VALUES)
    (folder / "images" / "color-0_000.png").unlink()
    assert "1 could not be read from the folder" in write_report(folder).read_text()


def test_boxes_in_hundredths_stay_inside() -> None:
    found = overlay([{"label": "cat", "score": 0.5, "box": [0.25, -1, 0.75, 2]}, {"box": [0, 0, 1, 1], "score": None}])
    assert [found[0][key] for key in ("x", "y", "width", "height", "score")] == [25, 0, 50, 100, "0.50"]
    assert (found[1]["label"], found[1]["score"], found[1]["colour"]) == ("", "", 2)


def test_among_equals_every_category_comes_first() -> None:
    scores = [Score(f"{name}{i}", 0, name, "", "", 0.0) for name in "ab" for i in range(2)]
    assert [score.id for score in in_order(scores, lambda score: score.value)] == ["a0", "b0", "a1", "b1"]
