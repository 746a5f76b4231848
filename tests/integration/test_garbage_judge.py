"""A judge that answers garbage for 30 % of requests: real runs on two ranks go on, and learn nothing of these."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from srum_ds.rewards.templates import load_template
from tests.support.ranks import run_ranks
from tests.support.runs import metrics, short_run, write_prompts


@pytest.fixture(scope="module")
def garbage_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of two steps on two ranks, whose judge answers garbage for 30 % of requests."""
    folder = tmp_path_factory.mktemp("garbage")
    shards = write_prompts(folder / "shards", 8)
    words = short_run(shards, folder, "train.steps=2", "rollout.images_per_prompt=4", "rollout.num_timesteps=3")
    run_ranks(2, [*words, str(folder)], "tests/integration/judge_worker.py")
    return folder


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_garbage_judge(garbage_runs: Path) -> None:
    """The run goes on, masks exactly the spoiled requests, reports exactly their share, learns nothing of them."""
    lines = metrics(garbage_runs / "plain")
    ranks = [lines_of(garbage_runs / f"plain_rank{rank}.jsonl") for rank in (0, 1)]
    assert [line["step"] for line in lines] == [1, 2]
    for step, line in enumerate(lines):
        # a step asks about whole pictures, then about crops
        calls = [call for rank in ranks for call in rank[2 * step : 2 * step + 2]]
        assert [call["whole"] for call in calls] == [True, False] * 2
        asked, spoiled = (sum(n) for n in zip(*((c["asked"], len(c["spoiled"])) for c in calls), strict=True))
        assert (line["judged"], line["parse_failures"]) == (asked, spoiled)
        assert line["parse_failed_share"] == pytest.approx(spoiled / asked, abs=1e-12)
        assert line["parse_failed_share"] == pytest.approx(0.3, abs=2.0 / asked)
        assert line["masked"] == sum(len(call["spoiled"]) for call in calls if call["whole"]) > 0
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)

    # every failure is on record, with what was asked and answered
    failures = lines_of(garbage_runs / "plain/judge_failures.jsonl")
    assert len(failures) == sum(line["parse_failures"] for line in lines)
    assert sum(failure["region"] is None for failure in failures) == sum(line["masked"] for line in lines)
    assert {failure["rank"] for failure in failures} == {0, 1}
    whole = next(failure for failure in failures if failure["region"] is None)
    assert whole["question"] == f"does the picture show {whole['prompt']}?"
    assert whole["reply"] == "yes=2.06e-09 no=2.06e-09"
    assert whole["template"] == load_template("shapes_global").label

    # junk in place of every masked picture changes not one bit; in place of one other picture it does
    weights = {run: load_file(garbage_runs / run / "export/ema.safetensors") for run in ("plain", "masked", "one")}
    same = {run: [torch.equal(w[name], weights["plain"][name]) for name in w] for run, w in weights.items()}
    assert all(same["masked"])
    assert not all(same["one"])
