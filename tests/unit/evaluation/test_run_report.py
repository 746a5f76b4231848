"""A run's report: what its verdict says of which figures, and that nothing in a folder makes it fail."""

from __future__ import annotations

import base64
import io
import json
import math
import random
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from srum_ds.commands.main import main
from srum_ds.common import heartbeats
from srum_ds.common.errors import UserError
from srum_ds.evaluation.report_html.thumbnails import Thumbnails
from srum_ds.evaluation.run_report import write_run_report
from srum_ds.evaluation.run_report.charts import Chart, drawn, grouped, running_mean, ticks_of
from srum_ds.evaluation.run_report.facts import read_run
from srum_ds.evaluation.run_report.listing import age, list_runs, size, table_of
from srum_ds.evaluation.run_report.pictures import chosen, map_source
from srum_ds.evaluation.run_report.side_by_side import compare_by_training, not_evaluated
from srum_ds.evaluation.run_report.state import State, state_of
from srum_ds.evaluation.run_report.verdict import Verdict, quantile, trend, verdict_of
from tests.support.run_folders import SCRIPT, evaluated, held_out, run_folder, showing

RISING = [-0.3 + 0.02 * n + 0.05 * (-1) ** n for n in range(30)]
FLAT = [0.1 * (-1) ** n for n in range(30)]


def verdict(folder: Path) -> Verdict:
    return verdict_of(read_run(folder))


def texts(found: Verdict) -> str:
    return "\n".join(told.text for told in found.sentences)


def test_few_steps_are_too_few_to_say(tmp_path: Path) -> None:
    found = verdict(run_folder(tmp_path, RISING[:3]))
    assert (found.level, found.headline) == ("unsure", "Too little to say")
    assert "3 steps are too few for a trend" in texts(found) and "9 steps are the fewest" in texts(found)
    assert "1 step is too few" in texts(verdict(run_folder(tmp_path / "one", [0.5])))


def test_a_rising_training_reward_alone_is_no_success(tmp_path: Path) -> None:
    found = verdict(run_folder(tmp_path, RISING))
    assert found.level == "unsure" and found.headline.startswith("The reward rises; whether")
    # Means of the first and the last ten: -0.21 and 0.19.
    assert "-0.210 over the first 10 steps, +0.190 over the last 10, +0.400" in texts(found)
    falling = verdict(run_folder(tmp_path / "down", [-value for value in RISING]))
    assert (falling.level, falling.headline) == ("bad", "The reward falls")
    assert verdict(run_folder(tmp_path / "flat", FLAT)).headline == "The reward has not moved beyond chance"


@pytest.mark.parametrize(
    ("difference", "level", "headline"),
    [
        (0.15, "good", "It works, as far as its own judge can tell"),
        (0.05, "unsure", "No difference on held-out prompts is established yet"),
        (-0.15, "bad", "It gets worse on held-out prompts"),
    ],
)
def test_held_out_prompts_decide_over_the_trend(tmp_path: Path, difference: float, level: str, headline: str) -> None:
    folder = run_folder(tmp_path, RISING)
    held_out(folder, (0, 0.1, 0.0, 0.0), (20, 0.2, 0.3, 0.01), (30, 0.1 + difference, difference, 0.05))
    found = verdict(folder)
    assert (found.level, found.headline) == (level, headline)
    assert found.difference is not None and found.difference.mean == difference
    assert (
        f"On 48 held-out prompts the self-reward after step 30 differs from the base’s by {difference:+.3f}"
        in texts(found)
    )


def test_a_look_without_figures_is_no_evidence(tmp_path: Path) -> None:
    """The base alone, and a look at which the judge gave no image a score."""
    folder = run_folder(tmp_path, RISING)
    held_out(folder, (0, 0.1, 0.0, 0.0))
    lost = {"step": 20, "prompts": 48, "reward": None, "reward_se": None, "difference": None, "difference_se": None}
    with open(folder / "held_out.jsonl", "a") as stream:
        stream.write(json.dumps(lost) + "\n")
    found = verdict(folder)
    assert found.headline.startswith("The reward rises") and found.difference is None
    assert "No look at held-out prompts has a difference from the base yet." in texts(found)
    assert "Held-out reward: 0.100 at step 0, 0.100 at step 0" in write_run_report(folder).read_text()


def test_an_evaluation_decides_over_all_and_a_gamed_judge_is_named(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, RISING)
    held_out(folder, (0, 0.1, 0.0, 0.0), (30, 0.4, 0.3, 0.05))
    evaluated(folder, 0.2, 0.02)
    found = verdict(folder)
    assert (found.level, found.headline) == ("good", "It works: the trained model is better")
    assert "may reward something else" not in texts(found)
    evaluated(folder, -0.1, 0.02)
    found = verdict(folder)
    assert (found.level, found.headline) == ("bad", "The trained model is worse than the base")
    assert "the judge may reward something else" in texts(found)
    assert [told.level for told in found.sentences[:2]] == ["bad", "bad"], "the gravest come first"
    evaluated(folder, 0.01, 0.02)
    assert verdict(folder).headline == "No difference from the base is established"


def test_alarms_of_the_watch_are_found_again(tmp_path: Path) -> None:
    spread = [{"latent_std": 1.0 if n < 15 else 0.5} for n in range(30)]
    folder = run_folder(tmp_path, FLAT, more=spread)
    found = verdict(folder)
    assert [alarm.signal for alarm in found.alarms] == ["latent_std_ratio"]
    assert 16 <= found.alarms[0].step <= 25 and found.alarms[0].value < 0.95
    assert "1 alarm (latent_std_ratio)" in texts(found)
    assert f"After step {found.alarms[0].step}, the spread of the drawn tokens" in write_run_report(folder).read_text()


def test_a_run_that_the_watch_ended_says_what_was_kept(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, FLAT)
    (folder / "stopped_by_watch.json").write_text(json.dumps({"step": 30, "kept_step": 20, "text": "watch: too low"}))
    found = verdict(folder)
    assert found.headline == "The watch ended this run"
    assert found.sentences[0].text == "watch: too low. Kept: the weights after step 20."


def test_the_judges_failures_are_counted(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, FLAT, more=[{"parse_failures": 10, "masked": 4}] * 30)
    reply = {"step": 1, "reply": "no <b>idea</b>", "question": "is it red?"}
    (folder / "judge_failures.jsonl").write_text(json.dumps(reply) + "\n")
    assert "300 of 3,000 answers of the judge (10.0%) could not be used; 120 of 1920 images" in texts(verdict(folder))
    assert "no &lt;b&gt;idea&lt;/b&gt;" in write_run_report(folder).read_text()


def test_former_runs_counted_from_0_and_have_grids_alone(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, RISING, first_step=0)
    (folder / "samples").mkdir()
    for step in (0, 20, 29):
        Image.new("RGB", (600, 400), (step, 0, 0)).save(folder / "samples" / f"fixed_{step:06d}.png")
    facts = read_run(folder)
    assert (facts.steps_done, facts.steps_wanted) == (30, 30)
    page = write_run_report(folder).read_text()
    assert [text in page for text in ("after 1 step<", "after 21 steps<", "after all 30 steps<")] == [True] * 3
    assert "have no record of what the judge said" in page


def test_the_page_needs_nothing_else_and_texts_are_escaped(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "<b>run", RISING)
    for step, score in ((0, -0.5), (10, 0.0), (20, 0.2), (25, 0.3), (30, 0.75)):
        showing(folder, step, score)
    page = write_run_report(folder).read_text()
    assert page.count("<script>") == 1 and SCRIPT not in page and "&lt;script&gt;document.title" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "url(" not in page and "@import" not in page
    assert "4 of 5 showings are shown" in page
    assert page.index("before training: a red circle") < page.index("after all 30 steps: a red circle")
    # The first prompt went from -0.5 to 0.75.
    assert '<b class="up">+1.25</b>' in page


DAMAGED = ("config.yaml", "metrics.jsonl", "held_out.jsonl", "result.json", "environment.json", "judge_failures.jsonl")


@pytest.mark.parametrize(
    "name", [*DAMAGED, "stopped_by_watch.json", "samples/fixed_000000.json", "eval/own/trained/results.json"]
)
@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff\xfe", b'{"a": ', b"[1, 2]\n", b'{"difference": {"mean": 1, "stderr": []}}\n']
)
def test_a_damaged_file_is_named_and_the_rest_is_told(tmp_path: Path, name: str, content: bytes) -> None:
    folder = run_folder(tmp_path, RISING[:10])
    showing(folder, 0, 0.5)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    page = write_run_report(folder).read_text()
    harmless = not content.strip() and name.endswith(("jsonl", "yaml"))
    if name == "metrics.jsonl" or not harmless and not content.startswith(b'{"difference"'):
        assert Path(name).name in page.split("Some of this run could not be read")[1].split("</section>")[0]
    assert "</html>" in page


def test_forty_ways_of_breaking_a_run_break_no_report(tmp_path: Path) -> None:
    """Bytes of every file changed, cut and doubled at random: there is a page, or a UserError."""
    folder = run_folder(tmp_path, RISING[:9])
    held_out(folder, (0, 0.1, 0.0, 0.0), (9, 0.4, 0.3, 0.05))
    evaluated(folder, 0.2, 0.02)
    showing(folder, 0, 0.5)
    files = [path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl", ".yaml", ".png")]
    rng = random.Random(0)
    for _ in range(40):
        path = rng.choice(files)
        before = path.read_bytes()
        data = bytearray(before)
        place = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                del data[place:]
            case 1:
                data[place] = rng.randrange(256)
            case 2:
                data[place : place + 1] = rng.choice([b"null", b"1e999", b"[]", b"{}", b'"', b"\n", b"-9"])
            case _:
                text = bytes(data)
                found = rng.choice(sorted(set(re.findall(rb"-?\d+\.?\d*", text))) or [b"x"])
                data = bytearray(text.replace(found, rng.choice([b"null", b'"x"', b"[]", b"{}", b"1e400", b"true"])))
        path.write_bytes(data)
        assert "</html>" in write_run_report(folder).read_text()
        path.write_bytes(before)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        write_run_report(tmp_path)
    with pytest.raises(UserError, match="holds no run"):
        write_run_report(tmp_path / "nowhere")


def test_states(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, FLAT, finished=False)
    assert state_of(folder) is State.STOPPED
    (folder / "heartbeats").mkdir()
    beat = heartbeats.Heartbeat(0, 1, "elsewhere", "train", 3, 0, 1.0, 5, time.time())
    heartbeats.write(folder / "heartbeats", beat)
    assert state_of(folder) is State.RUNNING
    assert state_of(folder, ending=True) is State.STOPPED
    heartbeats.write(folder / "heartbeats", heartbeats.Heartbeat(**{**vars(beat), "time": time.time() - 999}))
    assert state_of(folder) is State.STOPPED, "no word for a quarter of an hour"
    heartbeats.write(folder / "heartbeats", heartbeats.Heartbeat(**{**vars(beat), "status": 75}))
    assert state_of(folder) is State.STOPPED, "it was asked to stop"
    heartbeats.write(folder / "heartbeats", heartbeats.Heartbeat(**{**vars(beat), "status": 1}))
    assert state_of(folder) is State.FAILED
    (folder / "export").mkdir()
    assert state_of(folder) is State.FINISHED


def test_runs_are_found_below_a_folder_and_told_in_a_line(tmp_path: Path) -> None:
    first = run_folder(tmp_path / "deep" / "er" / "one", RISING, steps=60, finished=False)
    held_out(first, (0, 0.1, 0.0, 0.0), (30, 0.4, 0.3, 0.05))
    second = run_folder(tmp_path / "two", RISING[:2])
    evaluated(second, 0.2, 0.02)
    run_folder(tmp_path / ".hidden", RISING)
    one, two = list_runs(tmp_path)
    assert (one.name, one.state, one.steps_done, one.steps) == ("deep/er/one", "stopped", 30, 60)
    assert (one.reward_first, one.reward_last, one.reward_steps) == pytest.approx((-0.21, 0.19, 10))
    assert (one.held_out, one.held_out_stderr, one.evaluation) == (0.3, 0.05, None)
    assert (two.name, two.state, two.evaluation, two.held_out) == ("two", "finished", 0.2, None)
    assert one.bytes == sum(path.stat().st_size for path in first.rglob("*") if path.is_file())
    assert one.age_seconds < 60 and not one.problems
    assert [line.name for line in list_runs(second)] == ["two"]
    with pytest.raises(UserError, match="no such folder"):
        list_runs(tmp_path / "nowhere")
    assert [age(s) for s in (0, 59, 3600, 90000)] == ["0 s", "59 s", "1 h", "1 d"]
    assert [size(n) for n in (12, 1234, 34_000_000, 5_600_000_000)] == ["12 B", "1.2 kB", "34 MB", "5.6 GB"]


def test_a_trend_is_the_last_steps_less_the_first() -> None:
    found = trend([0.0, 1.0, 2.0, 9.0, 9.0, 9.0, 3.0, 4.0, 5.0])
    # Both thirds have variance 1: the error is sqrt(2 / 3).
    assert found is not None and found.mean == pytest.approx(3.0) and found.stderr == pytest.approx(math.sqrt(2 / 3))
    assert found.degrees == 4 and found.sure, "3 is more than 2.78 x 0.816"
    assert trend([0.0] * 8) is None


@pytest.mark.parametrize(("degrees", "expected"), [(4, 2.776), (10, 2.228), (38, 2.024), (None, 1.96)])
def test_students_quantile(degrees: int | None, expected: float) -> None:
    assert quantile(degrees) == pytest.approx(expected, rel=0.02)


def test_charts_hold_what_they_are_given() -> None:
    found = drawn(Chart("Reward", "note", [(1, 0.0), (2, 1.0), (3, 0.5)], False, (0.1, 0.1, 0.1), 0.0, "base"))
    xs, ys = [dot["x"] for dot in found["dots"]], [dot["y"] for dot in found["dots"]]
    assert xs == [46.0, 198.0, 350.0] and ys[1] < ys[2] < ys[0] and found["base"] == ys[0]
    assert [bar["high"] < dot < bar["low"] for bar, dot in zip(found["bars"], ys, strict=True)] == [True] * 3
    assert found["words"] == "Reward: 0.000 at step 1, 0.500 at step 3; base 0.000"
    assert drawn(Chart("one", "n", [(5, 2.0)]))["dots"][0]["text"] == "step 5: 2.000"
    assert drawn(Chart("far limit", "n", [(1, 1.0), (2, 1.01)], False, high=6.0))["high"] is None
    assert ticks_of(0.0, 1.0) == [0.0, 0.25, 0.5, 0.75, 1.0] and ticks_of(1.0, 1.0) == []
    assert grouped([(n, float(n)) for n in range(1, 7)], 3) == [(2, 1.5), (4, 3.5), (6, 5.5)]
    assert running_mean([(1, 1.0), (2, 3.0), (3, 5.0)], 2) == [(1, 1.0), (2, 2.0), (3, 4.0)]


def test_a_map_is_blue_above_neutral_and_orange_below() -> None:
    source = map_source([[1.0, -0.5], [0.0, 2.0]], 0.0, 1.0)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
    assert pixels.shape == (2, 2, 4)
    assert pixels[0, 0].tolist() == [26, 108, 229, 191] and pixels[0, 1].tolist() == [230, 81, 0, 96]
    assert pixels[1, 0, 3] == 0 and pixels[1, 1, 3] == 191, "beyond the scale is its end"


def test_showings_in_between_are_spread_evenly() -> None:
    assert chosen(list(range(4))) == [0, 1, 2, 3]  # type: ignore[arg-type]
    assert chosen(list(range(13))) == [0, 4, 8, 12]  # type: ignore[arg-type]


def test_thumbnails_take_a_side(tmp_path: Path) -> None:
    Image.new("RGB", (900, 600)).save(tmp_path / "a.png")
    found = Thumbnails(side=600).of(tmp_path / "a.png")
    assert found is not None and (found["width"], found["height"]) == (600, 400)


def test_runs_without_an_evaluation_are_compared_by_what_was_looked_at(tmp_path: Path) -> None:
    one, two = run_folder(tmp_path / "one", RISING), run_folder(tmp_path / "two", FLAT[:20])
    held_out(one, (0, 0.1, 0.0, 0.0), (30, 0.2, 0.1, 0.03))
    held_out(two, (0, 0.1, 0.0, 0.0), (20, 0.5, 0.4, 0.04))
    evaluated(two, 0.2, 0.02)
    assert not_evaluated([one, two]) == [one] and not_evaluated([tmp_path, two]) == []
    stream = io.StringIO()
    found = compare_by_training([one, two], tmp_path / "out", Console(file=stream, width=160))
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == found
    # 0.4 - 0.1, errors 0.03 and 0.04: 0.05.
    assert "+0.300 ± 0.050" in stream.getvalue() and "+0.100 ± 0.030" in stream.getvalue()
    assert f"{one} has no evaluation" in stream.getvalue() and f"{two} has no evaluation" not in stream.getvalue()
    assert f"{two} has done 20 steps, {one} 30." in found["notes"]
    with pytest.raises(UserError, match="holds no run"):
        compare_by_training([one, tmp_path], tmp_path / "out")


def test_compare_says_what_is_missing_of_a_run_without_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = run_folder(tmp_path / "one", RISING), run_folder(tmp_path / "two", FLAT)
    assert main(["compare", str(one), str(two), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert f"`srum-ds eval {one}` makes one" in said and f"{two} has no held-out figures" in said


def test_report_and_runs_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(tmp_path / "one", RISING)
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"written: {folder}/report.html\n"
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["runs", str(tmp_path)]) == 0
    assert ["one", "finished", "30/30", "-0.21", "+0.19"] == capsys.readouterr().out.splitlines()[1].split()[:5]
    assert main(["runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps_done"] == 30
    (tmp_path / "empty").mkdir()
    assert main(["runs", str(tmp_path / "empty")]) == 0
    assert "no runs below" in capsys.readouterr().out


def test_a_look_at_one_prompt_is_shown_without_its_error(tmp_path: Path) -> None:
    one, two = run_folder(tmp_path / "one [a]", RISING), run_folder(tmp_path / "two", FLAT)
    for run in (one, two):
        looks = ({"step": step, "prompts": 1, "reward": 0.1, "difference": gained, "difference_se": None}
                 for step, gained in ((0, 0.0), (30, 0.378)))  # fmt: skip
        (run / "held_out.jsonl").write_text("".join(json.dumps(look) + "\n" for look in looks))
    stream = io.StringIO()
    found = compare_by_training([one, two], tmp_path / "out", Console(file=stream, width=200))
    assert "+0.378" in stream.getvalue() and "no held-out figures" not in stream.getvalue()
    assert f"{one} looked at too few held-out prompts to know the error of its difference." in found["notes"]
    assert f"`srum-ds eval '{one}'` makes one" in stream.getvalue()
    shown = io.StringIO()
    Console(file=shown, width=160).print(table_of(list_runs(tmp_path)))
    assert shown.getvalue().count("+0.38") == 2
    told = [each.text for each in verdict_of(read_run(one)).sentences]
    assert any("+0.378; too few prompts" in text for text in told)


def test_runs_that_others_judged_are_not_called_alike(tmp_path: Path) -> None:
    one, two = run_folder(tmp_path / "one", RISING), run_folder(tmp_path / "two", RISING)
    for run, judge in ((one, "null"), (two, "judge.py:fullness")):
        held_out(run, (0, 0.1, 0.0, 0.0), (30, 0.2, 0.1, 0.03))
        (run / "config.yaml").write_text(f"judge:\n  external: {judge}\n")
    found = compare_by_training([one, two], tmp_path / "out", Console(file=io.StringIO()))
    assert any("judge.external 'judge.py:fullness' for None. Do not compare" in note for note in found["notes"])


def test_a_narrow_terminal_cuts_no_figure_of_the_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder(tmp_path / "one", RISING)
    run_folder(tmp_path / ("a long name " * 6), RISING)
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:5] == ["one", "finished", "30/30", "-0.21", "+0.19"] for line in lines)
    assert max(map(len, lines)) <= 88 and "a long name" in lines[1]
