"""A judge of the user's own that fails, or leaves, on one rank of two: both end, and the cause is told once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.ranks import start_ranks
from tests.support.runs import short_run, write_prompts

JUDGE = """
import os
calls = []
def score(images, prompts):
    calls.append(len(images))
    if os.environ["RANK"] == "1" and len(calls) > 2:
        LEAVE
    return [0.1] * len(images)
"""


@pytest.mark.parametrize(
    ("leave", "script", "said"),
    [
        ("raise KeyError('lamp')", "launch/train.sh", "raised KeyError: 'lamp' (judge.py, line 7, in score)"),
        ("os._exit(0)", "srum_ds/rollouts/worker.py", "tried to end the process by os._exit(0) (judge.py, line 7"),
    ],
)
def test_a_judge_that_fails_on_one_rank(tmp_path: Path, leave: str, script: str, said: str) -> None:
    (tmp_path / "judge.py").write_text(JUDGE.replace("LEAVE", leave))
    shards = write_prompts(tmp_path / "shards", 8)
    out = tmp_path / "out"
    words = short_run(shards, out, "train.steps=3", f"judge.external={tmp_path}/judge.py:score")
    if script.endswith("worker.py"):
        words = ["rollout", str(out), *words]
    ranks = start_ranks(2, words, script)
    statuses = ranks.wait(timeout=120)
    # The other rank says whom it lost, and ends as that one did.
    assert list(statuses) == [2, 2], ranks.printed[-3000:]
    assert ranks.printed.count(f"judge.external={tmp_path}/judge.py:score {said}") == 1
    assert "rank 1 (process" in ranks.printed and "Traceback" not in ranks.printed
    assert "line 7, in score" in (out / "crash" / "rank_1.txt").read_text()
