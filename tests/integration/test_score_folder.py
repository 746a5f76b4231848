"""`srum-ds eval` on a public prompt set: through training to a scored report, and a scoring that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from srum_ds.evaluation.scored import PROMPTS, picture_path
from srum_ds.prompts.records import write_records
from srum_ds.types import Prompt
from tests.support.judge_server import JudgeServer, Seen, say_score
from tests.support.launching import command, environment
from tests.support.paths import ROOT
from tests.support.ranks import run_ranks
from tests.support.runs import short_run

PICTURES = 40
CATEGORIES = ("color", "shape")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures that another tool made, and their prompts."""
    made = tmp_path / "pictures"
    prompts = [Prompt(f"p{n:02d}", f"picture {n}", CATEGORIES[n % 2]) for n in range(PICTURES)]
    write_records(made / PROMPTS, prompts)
    for n, prompt in enumerate(prompts):
        path = picture_path(made, prompt.id, 0)
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (n * 6, 100, 200)).save(path)
    return made


def asked(server: JudgeServer) -> Counter[str]:
    """How often each (question, picture) reached the server."""
    return Counter(sha256(repr((seen.texts, seen.picture)).encode()).hexdigest() for seen in server.seen)


def test_a_killed_scoring_goes_on_and_judges_nothing_twice(folder: Path) -> None:
    with JudgeServer(say_score, seconds=0.05) as server:
        words = ["score", str(folder), "--benchmark", "compbench", "--judge", "http", "--judge-url", server.url]
        words += ["--judge-model", "stand-in", "--concurrency", "2"]
        program = "import sys; from srum_ds.commands.main import main; sys.exit(main(sys.argv[1:]))"
        process = subprocess.Popen([sys.executable, "-c", program, "eval", *words], env=environment(), cwd=ROOT)
        deadline = time.monotonic() + 120
        while len(server.seen) < 25 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
        assert 25 <= len(server.seen) < PICTURES and not (folder / "results.json").exists()
        done = command("eval", *words)
        assert done.returncode == 0, done.stderr
        counts = asked(server)
        # What was in flight when it was killed is asked again, and nothing else.
        assert sum(counts.values()) - len(counts) <= 2
        results = json.loads((folder / "results.json").read_text())
        assert (results["n"], results["failures"], results["complete"]) == (PICTURES, 0, True)
        before, seen = (folder / "results.json").read_bytes(), len(server.seen)
        done = command("eval", *words)
        assert done.returncode == 0, done.stderr
        assert len(server.seen) == seen
        assert (folder / "results.json").read_bytes() == before


def test_the_same_replies_make_the_same_table_whoever_gave_them(folder: Path) -> None:
    # The server answers the question as the model under test does: by what the own judge said, picture by picture.
    own = command(
        "eval", "score", str(folder), "--benchmark", "compbench_yes", "--judge", "self", "--judge-model",
        "srum_ds/assets/tiny_bagel",
    )  # fmt: skip
    assert own.returncode == 0, own.stderr
    mine = json.loads((folder / "results.json").read_text())
    assert mine["judge"]["under_test"] is True
    assert "under test" in (folder / "eval.md").read_text()
    replies = folder / "replies.jsonl"
    kept = {
        (record["question_sha256"], record["picture_sha256"]): record["probabilities"]
        for record in map(json.loads, replies.read_text().splitlines())
    }
    by_picture = {picture: probabilities for (_, picture), probabilities in kept.items()}
    assert len(by_picture) >= PICTURES
    by_texts: dict[tuple[str, str], list[float]] = {}
    for line in map(json.loads, replies.read_text().splitlines()):
        by_texts[line["question_sha256"], line["picture_sha256"]] = line["probabilities"]
    from srum_ds.judges import Question

    def say(seen: Seen) -> dict[str, float]:
        question = Question("match", seen.texts, max_tokens=1, answers=("yes", "no"))
        yes, no = by_texts[question.sha256(), sha256(seen.picture).hexdigest()]
        return {"yes": yes, "no": no}

    replies.unlink()
    with JudgeServer(say) as server:
        http = command(
            "eval", "score", str(folder), "--benchmark", "compbench_yes", "--judge", "http", "--judge-url", server.url,
            "--judge-model", "stand-in",
        )  # fmt: skip
    assert http.returncode == 0, http.stderr
    theirs = json.loads((folder / "results.json").read_text())
    for name in ("overall", "by_category", "figures"):
        assert _rounded(theirs[name]) == _rounded(mine[name])
    assert [case["passed"] for case in theirs["canary"]["cases"]] == [
        case["passed"] for case in mine["canary"]["cases"]
    ]


def _rounded(value: object) -> object:
    """Figures to six digits: probabilities came over HTTP as their logarithms."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def test_from_a_public_prompt_set_through_training_to_two_scored_reports(tmp_path: Path) -> None:
    """Prompts of T2I-CompBench's form; every command as docs/evaluation.md has it."""
    source = tmp_path / "dataset"
    source.mkdir()
    for category, texts in {"color": ["a red bird", "a blue bowl"], "shape": ["a round bag", "a square clock"]}.items():
        (source / f"{category}_train.txt").write_text("\n".join(texts) + "\n")
        (source / f"{category}_val.txt").write_text("\n".join(text + " on a table" for text in texts))
    shards, run = tmp_path / "shards", tmp_path / "run"
    done = command("shards", "write", "compbench", str(source), "--out", str(shards))
    assert done.returncode == 0, done.stderr
    run_ranks(1, short_run(shards, run, "train.save_every=4", "train.steps=2"))
    evaluation = ["eval", str(run), "--prompts", str(source), "eval.num_timesteps=3"]
    own = command(*evaluation, "--benchmark", "compbench_yes", "--judge", "self")
    assert own.returncode == 0, own.stderr + own.stdout
    with JudgeServer(say_score) as server:
        http = command(*evaluation, "--benchmark", "compbench", "--judge", "http", "--judge-url", server.url)
        assert http.returncode == 0, http.stderr + http.stdout
    for name, judge in (("compbench_yes", "self"), ("compbench", "http")):
        folder = run / "eval" / name
        sides = [json.loads((folder / side / "results.json").read_text()) for side in ("base", "trained")]
        assert [side["n"] for side in sides] == [4, 4]
        assert [side["judge"]["kind"] for side in sides] == [judge, judge]
        assert sides[0]["judge"] == sides[1]["judge"]
        compared = json.loads((folder / "compare.json").read_text())
        assert compared["n"] == 4
        for side in ("base", "trained"):
            assert (folder / side / "report.html").stat().st_size > 10_000
        assert (folder / "report.html").stat().st_size > 10_000
    again = command(*evaluation, "--benchmark", "compbench_yes", "--judge", "self")
    assert again.returncode == 0 and again.stdout.count("nothing to draw") == 2, again.stdout
