"""Judges over HTTP in whole commands: training with a stand-in server, and a scoring process that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from srum_ds.judges import read_store
from tests.support.judge_server import JudgeServer, Seen, Trouble
from tests.support.paths import ROOT
from tests.support.ranks import run_ranks
from tests.support.runs import metrics, short_run, write_prompts


def test_training_with_two_servers_beside_the_own_judge(tmp_path: Path) -> None:
    """Both ranks ask; what a server does not answer is masked, counted and told; each has metrics of its own."""
    shards = write_prompts(tmp_path / "shards", 8)
    troubled: set[bytes] = set()

    def trouble(seen: Seen, before: int) -> Trouble | None:
        if len(troubled) < 2 or seen.picture in troubled:
            troubled.add(seen.picture)
            return Trouble("status", 400, "cannot decode the image")
        return None

    with (
        JudgeServer(reply=lambda seen: "I look at it.\nScore: 0.5") as good,
        JudgeServer(reply=lambda seen: "yes", trouble=trouble) as moody,
    ):
        judges = (
            f"judge.external=[{{kind: http, url: {good.url}, template: global_layout_score, weight: 0.25, name: good}},"
            f"{{kind: http, url: {moody.url}, weight: 0.25, name: moody, concurrency: 2}}]"
        )
        run_ranks(2, short_run(shards, tmp_path / "run", "train.steps=2", judges))
        assert len(good.seen) == len(moody.seen) == 2 * 4 * 2
        assert all("Score: 0.0" in seen.texts[0] for seen in good.seen)
    lines = metrics(tmp_path / "run")
    assert [line["judge_good"] for line in lines] == [0.5, 0.5] and [line["judge_moody"] for line in lines] == [1, 1]
    assert [line["judge_good_failed_share"] for line in lines] == [0, 0]
    assert sum(line["judge_moody_failed_share"] for line in lines) == 2 / 8
    assert sum(line["masked"] for line in lines) == sum(line["parse_failures"] for line in lines) == 2
    assert all("judge_own" in line for line in lines)
    failures = (tmp_path / "run" / "judge_failures.jsonl").read_text()
    assert failures.count("HTTP 400: cannot decode the image") == 2 and failures.count("(moody)") == 2


SCORER = """
import sys
from pathlib import Path
from srum_ds.judges import Ask, JudgeSettings, Question, ReplyStore, ask_missing, load_judge

judge = load_judge("http", JudgeSettings(url=sys.argv[1], model="stand-in", concurrency=4))
with ReplyStore(Path(sys.argv[2])) as store:
    asks = (Ask(Question("score", ("How good is it?",)), b"picture %d" % n) for n in range(60))
    replies = ask_missing(judge, asks, store)
    assert not any(reply.error for reply in replies)
"""


def test_a_scorer_that_is_killed_loses_what_was_in_flight_alone(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    with JudgeServer(seconds=0.02) as server:
        command = [sys.executable, "-c", SCORER, server.url, str(path)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=environment)
        while not path.exists() or path.read_bytes().count(b"\n") < 20:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = len(list(read_store(path)))
        assert 20 <= kept < 60
        subprocess.run(command, env=environment, check=True)
        asked = Counter(seen.picture for seen in server.seen)
        before = len(server.seen)
        subprocess.run(command, env=environment, check=True)
        assert len(server.seen) == before
    records = list(read_store(path))
    assert len(records) == len({record.picture_sha256 for record in records}) == 60
    # nothing was asked twice but what was in flight, four at most
    assert len(asked) == 60 and sum(asked.values()) - 60 <= 4
