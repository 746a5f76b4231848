"""The reports in headless Chromium: no script of a prompt runs, nothing scrolls sideways, the figures are right."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from srum_ds.evaluation.benchmarks import equal_shares
from srum_ds.evaluation.canary import CanaryResult
from srum_ds.evaluation.compare import compare
from srum_ds.evaluation.report_html import write_report
from srum_ds.evaluation.run_report import write_run_report
from tests.support.run_folders import evaluated, held_out, run_folder, showing
from tests.support.scored_folders import BENCHMARK, SCRIPT, scored_folder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Playwright may be there without what it needs.
LACKING = [name for name in ("playwright", "greenlet", "pyee") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH to open the report with"),
    pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}, which drive Chromium"),
]

LONG = "a_very_long_category_or_prompt_without_any_place_to_break_it_" * 3
BLANK = "a blank picture must score below 20"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report whose canary failed and whose prompts are hostile, and a comparison of it with two others."""
    root = tmp_path_factory.mktemp("reports")
    names = [(name, i) for name in ("color", "complex_a", "complex_b") for i in range(4)]
    texts = {("color", 0): SCRIPT, ("color", 1): LONG}
    first: dict[tuple[str, int], float | None] = {key: 40.0 + 10 * key[1] for key in names}
    canary = [CanaryResult(BLANK, False, f"95 {SCRIPT} {LONG}")]
    a = scored_folder(root / "a", {**first, ("complex_a", 9): None}, canary=canary, texts=texts)
    second: dict[tuple[str, int], float | None] = {key: 50.0 + 10 * key[1] for key in names}
    b = scored_folder(root / LONG[:120], second, size=300, texts=texts)
    c = scored_folder(root / "c", {**first, ("color", 0): 20.0}, texts=texts)
    compare(a, b, c, out=root / "out")
    pages = {"score": write_report(a), "comparison": root / "out" / "report.html"}
    # Runs that have pictures of one category in common, and no overall.
    many = replace(BENCHMARK, figures=equal_shares)
    whole: dict[tuple[str, int], float | None] = {(f"category_{n}", i): 50.0 for n in range(9) for i in range(2)}
    sparse = {key: value if key[0] == "category_0" else None for key, value in whole.items()}
    folders = [scored_folder(root / name, of, benchmark=many) for name, of in (("d", whole), ("e", sparse))]
    compare(*folders, out=root / "lacking")
    return {**pages, "lacking": root / "lacking" / "report.html"}


def _open(browser: Any, path: Path, width: int, scheme: str = "light") -> tuple[Any, list[str]]:
    page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if _outside(request.url) else None)
    page.goto(path.as_uri())
    return page, complaints


def _outside(url: str) -> bool:
    return not url.startswith(("file:", "data:"))


@pytest.mark.parametrize("width", [390, 1280])
def test_a_long_list_of_what_lacks_stays_on_the_page(browser: Any, pages: dict[str, Path], width: int) -> None:
    page, complaints = _open(browser, pages["lacking"], width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert "no overall" in page.locator(".tag.bad").first.inner_text()
    assert complaints == []
    page.context.close()


@pytest.mark.parametrize("which", ["score", "comparison"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_scrolls_sideways_and_no_prompt_runs(
    browser: Any, pages: dict[str, Path], which: str, width: int
) -> None:
    page, complaints = _open(browser, pages[which], width)
    for details in page.locator("summary").all():
        details.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.title().startswith("toy 1")
    assert page.get_by_text("<script>document.title='owned'</script>").count() > 0
    assert page.locator("script").count() == 1
    assert page.locator("img:not([src^='data:'])").count() == 0
    assert complaints == []
    page.context.close()


def test_figures_and_failures_stand_on_the_page(browser: Any, pages: dict[str, Path]) -> None:
    page, _ = _open(browser, pages["score"], 1280)
    rows = {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts()
        for row in page.locator(".bars tbody tr").all()
    }
    # 40, 50, 60, 70: s^2 = 500 / 3, error sqrt(500 / 12).
    assert rows["color"][1] == "55.00 ± 6.45" and rows["color"][3:] == ["4", "0", "0"]
    assert rows["complex_a"][3:] == ["4", "1", "0"]
    assert rows["overall"][1].startswith("55.00")
    published = page.locator("#published tbody tr").all_inner_texts()
    assert published[1].split("\t")[0] == "BAGEL" and "82.18" in published[1] and "SRUM, table 1" in published[1]
    banner = page.get_by_role("alert")
    assert "failed its canary" in banner.inner_text() and BLANK in banner.inner_text()
    assert banner.bounding_box()["y"] < page.locator("h1").bounding_box()["y"]
    assert "the reply is prose" in page.locator("#failures .why").inner_text()
    mark = page.locator(".bars tr", has_text="overall").locator(".mark")
    assert mark.get_attribute("style") == "left:82.18%"
    page.get_by_label("Mark a published row").select_option("SDXL")
    assert mark.get_attribute("style").replace(" ", "").rstrip(";") == "left:74.38%"
    assert not page.locator(".bars tr", has_text="color").locator(".mark").is_visible()
    page.context.close()


def test_gains_and_losses_are_sorted_and_boxed(browser: Any, pages: dict[str, Path]) -> None:
    page, _ = _open(browser, pages["comparison"], 1280)
    overall = page.locator(".run").first.inner_text()
    assert "+10.00" in overall and "12 won" in overall
    assert "no difference established" in page.locator(".run").nth(1).inner_text()
    worst = page.locator("#losses .pair").first
    assert "color-0" in worst.inner_text() and "-20.00" in worst.inner_text()
    assert worst.locator("svg .box").count() == 3
    box, picture = (worst.locator(name).first.bounding_box() for name in ("svg .box", "img"))
    # The box begins at a tenth of the picture and is four tenths wide.
    assert box["x"] - picture["x"] == pytest.approx(0.1 * picture["width"], abs=4)
    assert box["width"] == pytest.approx(0.4 * picture["width"], abs=6)
    assert page.locator("#means thead th").count() == 5
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_the_switch(browser: Any, pages: dict[str, Path], scheme: str) -> None:
    page, _ = _open(browser, pages["score"], 390, scheme)
    brightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    before = sum(page.evaluate(brightness))
    assert (before > 600) == (scheme == "light")
    # By keyboard alone.
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    after = sum(page.evaluate(brightness))
    assert (after > 600) == (scheme == "dark")
    page.keyboard.press("Enter")
    assert sum(page.evaluate(brightness)) == before
    page.context.close()


def test_a_picture_opens_and_closes_by_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    page, complaints = _open(browser, pages["score"], 390)
    stage = page.locator("button.stage").first
    stage.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    assert dialog.locator("img").bounding_box()["width"] > 200
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("document.activeElement.className") == "stage"
    assert complaints == []
    page.context.close()


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with hostile prompts, a long name, held-out looks, an evaluation and an alarm."""
    steps: list[float] = [-0.2 + 0.01 * n for n in range(40)]
    kept = [1.0 if n < 20 else 0.1 for n in range(40)]
    alarming = [{"group_diversity": share, "diversity_ratio": share} for share in kept]
    folder = run_folder(tmp_path_factory.mktemp("runs") / LONG[:120], steps, more=alarming)
    held_out(folder, (0, 0.1, 0.0, 0.0), (20, 0.2, 0.1, 0.04), (40, 0.4, 0.3, 0.04))
    evaluated(folder, 0.2, 0.02)
    for step, score in ((0, -0.5), (20, 0.25), (40, 0.75)):
        showing(folder, step, score, (SCRIPT, LONG))
    (folder / "judge_failures.jsonl").write_text(json.dumps({"step": 1, "reply": f"{SCRIPT} {LONG}"}) + "\n")
    return write_run_report(folder)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_runs_report_fits_and_no_prompt_runs(browser: Any, run_page: Path, width: int) -> None:
    page, complaints = _open(browser, run_page, width)
    for details in page.locator("summary").all():
        details.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.title() == f"{LONG[:120]}: srum-ds run"
    assert page.get_by_text("<script>document.title='owned'</script>").count() > 3
    assert page.locator("h1").inner_text() == "It works: the trained model is better"
    assert "+0.200" in page.locator(".big").inner_text()
    assert complaints == []
    page.context.close()


def test_a_runs_pictures_are_overlaid_by_keyboard(browser: Any, run_page: Path) -> None:
    """Boxes stand where they are said to, the map covers the picture, and each can be had without a mouse."""
    page, _ = _open(browser, run_page, 1280)
    first = page.locator("#pictures .pair").first
    assert [name.inner_text() for name in first.locator(".name").all()] == [
        "before training",
        "after 20 steps",
        "after all 40 steps",
    ]
    assert first.locator(".pill").all_inner_texts() == ["-0.50", "+0.25", "+0.75"]
    first.scroll_into_view_if_needed()
    frame = first.locator(".frame").first
    picture, box = (frame.locator(name).first.bounding_box() for name in ("img", "svg .box"))
    assert box["x"] - picture["x"] == pytest.approx(picture["width"] / 4, abs=4)
    assert not frame.locator("img.map").is_visible()
    page.locator("#over-boxes").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#over-map").is_checked()
    assert frame.locator("img.map").bounding_box() == picture and not frame.locator("svg").is_visible()
    page.keyboard.press("ArrowRight")
    assert not frame.locator("img.map").is_visible() and not frame.locator("svg").is_visible()
    first.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert "Whole image: yes 0.6" in first.locator(".words").first.inner_text()
    page.context.close()


def test_a_runs_curves_stand_where_their_figures_are(browser: Any, run_page: Path) -> None:
    page, _ = _open(browser, run_page, 1280)
    held = page.locator(".chart", has_text="Held-out reward")
    dots = [dot.bounding_box() for dot in held.locator("circle").all()]
    base = held.locator("line.base").bounding_box()
    assert len(dots) == 3 and held.locator("line.error").count() == 3
    middle = [dot["y"] + dot["height"] / 2 for dot in dots]
    assert middle[0] == pytest.approx(base["y"], abs=1.5), "the base's value is that of step 0"
    # 0.1, 0.2 and 0.4 lie as 1 to 2 apart.
    assert (middle[1] - middle[2]) == pytest.approx(2 * (middle[0] - middle[1]), abs=2)
    assert "base 0.100" in held.inner_text()
    page.get_by_text("further curves").click()
    assert page.locator(".chart", has_text="Diversity of a prompt").locator("line.alarm").count() == 1
    assert "was out of its range" in page.locator("#watch .notes").inner_text()
    page.context.close()
