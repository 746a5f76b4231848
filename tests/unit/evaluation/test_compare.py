"""Comparing runs: paired differences by hand, what is refused, and runs that were measured from pixels."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from srum_ds.commands.main import main
from srum_ds.common.errors import UserError
from srum_ds.config import load_config, save_config
from srum_ds.evaluation.benchmarks import Figure, Grade
from srum_ds.evaluation.canary import CanaryResult
from srum_ds.evaluation.compare import compare
from srum_ds.evaluation.compared_runs import compared_sides
from srum_ds.evaluation.report import Measured, build_result, write_result
from srum_ds.evaluation.results import build_results, score_rows, write_results
from srum_ds.evaluation.scored import Scored
from srum_ds.prompts.shards import write_shards
from srum_ds.types import Prompt
from tests.support.paths import RECIPE
from tests.support.scored_folders import BENCHMARK, JUDGE, scored_folder

FIRST = {
    ("color", 0): 50.0,
    ("color", 1): 60.0,
    ("complex_a", 0): 10.0,
    ("complex_a", 1): 20.0,
    ("complex_b", 0): 30.0,
    ("complex_b", 1): 40.0,
}
# color +10, +20; complex_a 0, -4; complex_b +2, +6.
SECOND = dict(zip(FIRST, [60.0, 80.0, 10.0, 16.0, 32.0, 46.0], strict=True))


def run(*folders: Path, out: Path, **options: Any) -> tuple[dict[str, Any], str]:
    stream = io.StringIO()
    found = compare(*folders, out=out, console=Console(file=stream, width=140), **options)
    assert json.loads((out / "compare.json").read_text()) == found
    return found, stream.getvalue()


def test_paired_differences_by_hand(tmp_path: Path) -> None:
    folders = [scored_folder(tmp_path / "a", FIRST), scored_folder(tmp_path / "b", SECOND)]
    found, shown = run(*folders, out=tmp_path / "out")
    color = found["by_category"]["color"]["differences"][0]
    assert (color["mean"], color["stderr"]) == (15, pytest.approx(5))
    overall = found["figures"]["overall"]["differences"][0]
    # 1/2 15 + 1/4 (-2) + 1/4 4 = 8; errors 5, 2, 2.
    assert overall["mean"] == pytest.approx(8)
    assert overall["stderr"] == pytest.approx(math.sqrt(25 / 4 + 4 / 16 + 4 / 16))
    assert (overall["wins"], overall["ties"], overall["losses"]) == (4, 1, 1)
    assert overall["smallest_difference"] == pytest.approx(2.8016 * overall["stderr"], rel=1e-4)
    assert found["figures"]["overall"]["means"][0]["mean"] == pytest.approx(55 / 2 + 15 / 4 + 35 / 4)
    assert list(found["figures"])[-1] == "overall"
    assert "+8.00 ± 2.60" in shown and "4/1/1" in shown
    assert "toy" in (tmp_path / "out" / "report.html").read_text()


def test_only_common_pictures_count_and_the_others_are_told(tmp_path: Path) -> None:
    fewer: dict[tuple[str, int], float | None] = {key: value for key, value in SECOND.items() if key != ("color", 1)}
    fewer["color", 2] = 1.0
    fewer["complex_a", 1] = None
    folders = [scored_folder(tmp_path / "a", FIRST), scored_folder(tmp_path / "b", fewer)]
    found, shown = run(*folders, out=tmp_path / "out")
    assert found["n"] == 4
    assert [(side["left_out"], side["failures"]) for side in found["runs"]] == [(2, 0), (2, 1)]
    assert "left out: 2 of 6 of a, 2 of 6 of b" in shown
    assert found["by_category"]["color"]["differences"][0]["mean"] == 10


def test_a_figure_without_a_common_category_is_none(tmp_path: Path) -> None:
    values = {key: None if key[0] == "complex_b" else value for key, value in SECOND.items()}
    folders = [scored_folder(tmp_path / "a", FIRST), scored_folder(tmp_path / "b", values)]
    found, _ = run(*folders, out=tmp_path / "out")
    assert found["figures"]["overall"]["differences"][0]["mean"] is None
    assert found["figures"]["overall"]["lacks"] == ["complex_b"]
    assert "No picture with a score in all runs in complex_b: there is no overall." in found["notes"]
    assert "no overall: nothing in complex_b" in (tmp_path / "out" / "report.html").read_text()


def test_three_runs_against_the_first(tmp_path: Path) -> None:
    folders = [scored_folder(tmp_path / name, FIRST if name != "b" else SECOND) for name in "abc"]
    found, shown = run(*folders, out=tmp_path / "out")
    means = [row["mean"] for row in found["figures"]["overall"]["differences"]]
    assert means == [pytest.approx(8), 0]
    assert [side["name"] for side in found["runs"]] == ["a", "b", "c"]


def test_what_was_not_scored_alike_is_refused_by_name(tmp_path: Path) -> None:
    first = scored_folder(tmp_path / "a", FIRST)
    other = replace(BENCHMARK, version="2")
    with pytest.raises(UserError, match=r"b: version of the benchmark '2', but .*a has '1'"):
        compare(first, scored_folder(tmp_path / "b", FIRST, benchmark=other), out=tmp_path / "out")
    with pytest.raises(UserError, match="benchmark 'another'"):
        another = replace(BENCHMARK, name="another")
        compare(first, scored_folder(tmp_path / "c", FIRST, benchmark=another), out=tmp_path / "out")
    with pytest.raises(UserError, match="judged by self abc, but .* by http qwen"):
        judge = {"kind": "self", "model": "abc", "under_test": True}
        compare(first, scored_folder(tmp_path / "d", FIRST, judge=judge), out=tmp_path / "out")
    found, shown = run(first, tmp_path / "d", out=tmp_path / "out", any_judge=True)
    assert "the difference may be theirs" in shown and "by the model under test itself" in shown
    with pytest.raises(UserError, match="different texts"):
        texts = {("color", 0): "another text"}
        compare(first, scored_folder(tmp_path / "e", FIRST, texts=texts), out=tmp_path / "out")
    with pytest.raises(UserError, match="nothing can be paired"):
        compare(first, scored_folder(tmp_path / "f", {("color", 9): 1.0}), out=tmp_path / "out")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(UserError, match="srum-ds eval score"):
        compare(first, tmp_path / "nothing", out=tmp_path / "out")
    with pytest.raises(UserError, match="one scored folder alone"):
        compare(first, out=tmp_path / "out")


def test_failed_canaries_and_other_seeds_are_told(tmp_path: Path) -> None:
    canary = [CanaryResult("a blank picture must score below 20", False, "95")]
    folders = [
        scored_folder(tmp_path / "a", FIRST, drawn={"model": "x", "weights_sha256": "1", "seed": 0}),
        scored_folder(tmp_path / "b", SECOND, canary=canary, drawn={"model": "y", "weights_sha256": "2", "seed": 1}),
    ]
    found, _ = run(*folders, out=tmp_path / "out")
    assert "judge of b failed its canary" in found["notes"][0]
    assert "b was drawn otherwise than a: seed 1 for 0." in found["notes"]
    assert "The judge of b failed its canary" in (tmp_path / "out" / "report.html").read_text()


def test_runs_with_scored_folders_by_their_benchmark(tmp_path: Path) -> None:
    for name, values in (("x", FIRST), ("y", SECOND)):
        for side in ("base", "trained"):
            scored_folder(tmp_path / name / "eval" / "toy" / side, values if side == "trained" else FIRST)
    found, _ = run(tmp_path / "x", tmp_path / "y", out=tmp_path / "out")
    assert found["figures"]["overall"]["differences"][0]["mean"] == pytest.approx(8)
    # One run alone: its base against itself.
    found, _ = run(tmp_path / "y", out=tmp_path / "out")
    assert [side["name"] for side in found["runs"]] == ["base", "trained"]
    assert found["figures"]["overall"]["differences"][0]["mean"] == pytest.approx(8)
    scored_folder(tmp_path / "y" / "eval" / "other" / "trained", SECOND)
    with pytest.raises(UserError, match="--benchmark one of other, toy"):
        compare(tmp_path / "x", tmp_path / "y", out=tmp_path / "out")
    run(tmp_path / "x", tmp_path / "y", out=tmp_path / "out", benchmark="toy")


def _measured_run(folder: Path, shards: Path, prompts: list[Prompt], base: list[int], trained: list[int]) -> Path:
    folder.mkdir()
    save_config(load_config(RECIPE, [f"data.shards={shards}"]), folder / "config.yaml")
    first, second = (Measured([float(value) for value in side]) for side in (base, trained))
    categories = [prompt.category for prompt in prompts]
    write_result(
        folder, build_result(categories, first, second, seed=0, seconds=1.0, settings={"split": "test", "steps": 2})
    )
    outcomes = {"key": "k", "prompts": [prompt.id for prompt in prompts], "base": base, "trained": trained}
    (folder / "outcomes.json").write_text(json.dumps(outcomes))
    return folder


def test_runs_measured_from_pixels(tmp_path: Path) -> None:
    prompts = [Prompt(f"p{i}", f"text {i}", "ab"[i % 2]) for i in range(6)]
    write_shards(tmp_path / "shards", "test", prompts)
    first = _measured_run(tmp_path / "x", tmp_path / "shards", prompts, [0] * 6, [0, 1, 0, 0, 1, 0])
    second = _measured_run(tmp_path / "y", tmp_path / "shards", prompts, [0] * 6, [1, 1, 0, 1, 1, 0])
    found, shown = run(first, second, out=tmp_path / "out")
    overall = found["figures"]["overall"]["differences"][0]
    assert overall["mean"] == pytest.approx(1 / 3)
    assert (overall["wins"], overall["ties"], overall["losses"]) == (2, 4, 0)
    assert list(found["by_category"]) == ["a", "b"]
    assert not found["notes"]
    assert "text 0" in (tmp_path / "out" / "report.html").read_text()
    alone, _ = run(second, out=tmp_path / "out")
    assert alone["figures"]["overall"]["differences"][0]["mean"] == pytest.approx(4 / 6)
    for file in (tmp_path / "shards").iterdir():
        file.unlink()
    lost, shown = run(first, second, out=tmp_path / "out")
    assert lost["figures"]["overall"]["differences"][0]["mean"] == pytest.approx(1 / 3)
    assert "The prompts of x are not at hand" in shown


def test_figures_of_parts_are_paired_by_question(tmp_path: Path) -> None:
    def shares(categories: Any) -> list[Figure]:
        return [Figure("overall", {"hue": 0.5, "count": 0.5}, of_parts=True)]

    benchmark = replace(BENCHMARK, figures=shares, part_figures=("hue", "count"), published=[])
    for name, more in (("a", 0.0), ("b", 10.0)):
        grades = [
            Grade(1.0, {"hue": 10.0 + more, "count": 30.0}, weights={"hue": 3.0}),
            Grade(1.0, {"hue": 50.0}),
            Grade(1.0, {"count": 30.0 + more}),
        ]
        scored = [Scored(Prompt(f"p{i}", f"text {i}", "all"), 0, "", grade) for i, grade in enumerate(grades)]
        (tmp_path / name).mkdir()
        write_results(tmp_path / name, build_results(benchmark, scored, JUDGE), score_rows(scored))
    found, _ = run(tmp_path / "a", tmp_path / "b", out=tmp_path / "out")
    # hue: (3 x 10 + 0) / 4 = 7.5, count: (0 + 10) / 2 = 5.
    assert found["figures"]["overall"]["differences"][0]["mean"] == pytest.approx(6.25)
    assert found["by_category"]["all"]["differences"][0]["ties"] == 3


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(scored_folder(tmp_path / "a", FIRST)), str(scored_folder(tmp_path / "b", SECOND))]
    assert main(["compare", *folders, "--out", str(tmp_path / "out")]) == 0
    assert "+8.00" in capsys.readouterr().out
    assert main(["compare", "--out", str(tmp_path / "out")]) == 2
    assert "nothing to compare" in capsys.readouterr().err


def test_a_link_that_leads_to_itself_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="loop: holds neither"):
        compared_sides([tmp_path / "loop", tmp_path / "loop"])
