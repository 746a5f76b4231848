"""How a job ended, from its launcher's status and its ranks' words; and which command lines are launchers."""

from __future__ import annotations

from pathlib import Path

import pytest

from srum_ds.common.front_end import is_front_end, is_node_launcher, script_of
from srum_ds.common.supervise import LOST, settled
from tests.support.paths import ROOT

SCRIPT = str(ROOT / "launch" / "train.sh")
NODE = ["python", "-u", "-m", "deepspeed.launcher.launch", "--world_info=x", SCRIPT, "tiny.yaml"]


@pytest.mark.parametrize(
    "status, said, finished, expected",
    [
        (0, [0, 0], True, 0),
        (0, [], True, 0),
        (0, [None, None], False, LOST),
        (0, [], False, LOST),
        (0, [75, 75], False, 75),
        (1, [75, 75], False, 75),
        (137, [75, 75], False, 75),
        (1, [75, None], False, 1),
        (137, [None], False, 137),
    ],
)
def test_status_of_a_job(
    status: int, said: list[int | None], finished: bool, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert settled(status, said, finished, Path("runs/x"), "; rank 1 was last in phase judge") == expected
    told = capsys.readouterr().err
    assert ("no finished model" in told and "rank 1 was last in phase judge" in told) == (
        expected == LOST and status == 0
    )


def test_launchers_by_their_command_lines() -> None:
    front = ["/venv/bin/python", "/venv/bin/deepspeed", "--num_gpus", "2", SCRIPT, "tiny.yaml"]
    assert is_node_launcher(NODE) and not is_front_end(NODE)
    assert is_front_end(front) and not is_node_launcher(front)
    assert script_of(front) == 4
    assert script_of(["python", "/elsewhere/train.sh"]) is None
    assert script_of(["python", "-c", "import torch"]) is None


@pytest.mark.parametrize("flag", ["--help", "--hostfile=hosts", "--num_nodes=2"])
def test_several_nodes_and_help_are_left_alone(flag: str) -> None:
    assert not is_front_end(["/venv/bin/python", "/venv/bin/deepspeed", flag, SCRIPT])


def test_a_node_that_starts_its_own_ranks_is_attached_to_though_a_hostfile_names_others() -> None:
    front = ["/venv/bin/python", "/venv/bin/deepspeed", "--hostfile", "hosts", "--no_ssh", "--node_rank=1", SCRIPT]
    assert is_front_end(front)
    assert not is_front_end([*front[:2], "--help", *front[2:]])


def test_a_rank_is_no_launcher() -> None:
    rank = ["/venv/bin/python", "-u", SCRIPT, "tiny.yaml"]
    assert not is_front_end(rank) and not is_node_launcher(rank)
