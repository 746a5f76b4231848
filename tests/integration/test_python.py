"""`from srum_ds import Trainer`: the same run as the command's, and a process that can be used again."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from srum_ds.api.launched import follow
from srum_ds.common.errors import STOPPED, Crash, UserError
from srum_ds.config import load_config
from tests.integration.python_worker import SMALL
from tests.support.pages import NOTEBOOK, PYTHON, blocks, cells
from tests.support.ranks import run_alone, start_ranks
from tests.support.runs import metrics, short_run, write_prompts

WORKER = "tests/integration/python_worker.py"
# What differs between any two runs of one recipe.
MEASURED = re.compile(r"time_|speed_|memory|bytes_|seconds|elapsed|wall|flops_")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a program has trained, and a rank of the command beside it."""
    folder = tmp_path_factory.mktemp("python")
    shards = write_prompts(folder / "shards", 4)
    command = start_ranks(1, short_run(shards, folder / "command", *SMALL, "deepspeed.ranks=1"))
    run_alone([str(folder), str(shards), str(NOTEBOOK)], WORKER)
    assert command.wait() == [0], command.printed[-4000:]
    return folder


@pytest.fixture(scope="module")
def facts(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "facts.json").read_text())
    return found


def comparable(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A run's lines without what is measured by a clock."""
    return [{key: value for key, value in line.items() if not MEASURED.match(key)} for line in lines]


def test_it_is_the_same_run_as_the_command_s_bit_for_bit(run: Path, facts: dict[str, Any]) -> None:
    """In three calls, with a callback that clears what it is given and seeds every generator."""
    own, command = metrics(run / "same"), metrics(run / "command")
    assert comparable(own) == comparable(command) and len(own) == 4
    assert comparable(facts["seen"]) == comparable(own)
    weights = "export/ema.safetensors"
    assert (run / "same" / weights).read_bytes() == (run / "command" / weights).read_bytes()
    files = [(run / name / "config.yaml").read_text().splitlines() for name in ("same", "command")]
    assert {line.strip().partition(":")[0] for line in set(files[0]) ^ set(files[1])} == {"dir"}


def test_a_callback_and_ctrl_c_stop_and_save_and_the_same_call_goes_on(run: Path, facts: dict[str, Any]) -> None:
    """The first stops after its step; Ctrl-C in the second step is seen in the third."""
    export = str(run / "same" / "export")
    assert facts["calls"] == [["stopped", 1, "None"], ["stopped", 3, "None"], ["finished", 4, export]]
    assert "finished, 4 steps" in facts["again"], "a run that has ended is not run again"


def test_the_process_goes_on_after_a_run_that_failed(facts: dict[str, Any]) -> None:
    assert re.match(r"callbacks\[0\] \(fail\) raised RuntimeError: no more today \(python_worker", facts["failed"])
    assert facts["handlers"], "signals are whose they were"


def test_the_notebook_s_cells_run_with_prompts_and_a_reward_of_this_process(run: Path, facts: dict[str, Any]) -> None:
    found = facts["notebook"]
    (line,) = found["metrics"]
    # Nothing but the function was asked, and about no region.
    assert line["pictures"] == line["judged"] > 0 and line["regions"] == 0
    assert line["judge_sparse"] == line["reward_global"] and "judge_own" not in line
    folder = run / "runs" / "notebook"
    assert re.search(r" judge +sparse; the model's own is not asked$", (folder / "run.log").read_text(), re.MULTILINE)
    saved = load_config(folder / "config.yaml")
    assert saved.judge.external == "python:sparse" and saved.judge.external_weight == 1
    assert saved.data.prompts == str(folder / "prompts.jsonl")
    inputs = json.loads((folder / "inputs.json").read_text())["inputs"]
    assert {"data.shards", "judge.external.sparse"} <= set(inputs)
    assert "holds a run that began with other prompts" in found["other prompts"]
    assert (folder / "export").is_dir() and (folder / "eval" / "shapes" / "compare.json").is_file()
    assert found["cells"] == len(cells(NOTEBOOK))


# ---- several ranks: the command is followed

STEPS = """
import json, signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
signal.signal(signal.SIGINT, lambda *_: asked.append(2))
for step in range(50):
    with open(sys.argv[1], "a") as stream:
        stream.write(json.dumps({"step": step}) + "\\n")
    print("step", step, flush=True)
    time.sleep(0.1)
    if asked:
        sys.exit(75)
"""


def test_a_run_of_several_ranks_is_followed_and_asked_to_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def on_step(record: Any) -> bool:
        seen.append(record["step"])
        return len(seen) == 3

    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": -1}\n')
    assert follow([sys.executable, "-c", STEPS, str(file)], file, on_step) == STOPPED
    assert seen[:3] == [0, 1, 2] and "step 0" in capsys.readouterr().out
    fails = "import sys; print('srum-ds: train.lr=x is not allowed'); sys.exit({})"
    with pytest.raises(UserError, match=r"^train\.lr=x is not allowed$"):
        follow([sys.executable, "-c", fails.format(2)], file, on_step)
    with pytest.raises(Crash, match="ended with status 1; it said last:\nsrum-ds: train"):
        follow([sys.executable, "-c", fails.format(1)], file, on_step)
    # An error of a callback is the program's, and leaves no process behind.
    with pytest.raises(ZeroDivisionError):
        follow([sys.executable, "-c", STEPS, str(file)], file, lambda record: bool(1 / 0))


# ---- the notebook as it is kept


def test_the_notebook_was_run_and_is_what_the_page_shows() -> None:
    shown = cells(NOTEBOOK)
    kinds = {kind for cell in shown for output in cell["outputs"] for kind in output.get("data", {})}
    assert all(cell["execution_count"] for cell in shown) and {"image/png", "text/plain"} <= kinds
    assert not any(output["output_type"] == "error" for cell in shown for output in cell["outputs"])
    assert NOTEBOOK.stat().st_size < 300_000
    sources = [cell["source"].strip() for cell in shown]
    assert [code.strip() for code in blocks(PYTHON) if code.strip() not in sources] == []
    assert len(blocks(PYTHON)) >= 5
