"""The job files of clusters, with stand-ins for what they call.

launch/slurm/train.sbatch: what becomes of a job that ended with each status. launch/kubernetes/train.yaml: whether its
parts fit each other, and what its command comes to.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from srum_ds.common.errors import STOPPED_BY_WATCH, WRONG_INPUT
from srum_ds.config import check_world, load_config, split_arguments
from tests.support.paths import ROOT

JOB = "srum-ds-41.crashes"


class Slurm:
    """A submit folder, and the commands of Slurm that the job script calls: each writes down its words."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "submitted"
        self.tools = folder / "tools"
        self.tools.mkdir()
        (self.folder / "launch").mkdir(parents=True)
        (self.folder / "launch" / "train.sh").touch()
        self.said = folder / "said"
        for name, end in (("srun", "exit $STATUS"), ("scontrol", "echo node7"), ("scancel", "")):
            tool = self.tools / name
            tool.write_text(f'#!/usr/bin/env bash\necho {name} "$@" >> "{self.said}"\n{end}\n')
            tool.chmod(0o755)

    def run(self, status: int, **extra: str) -> tuple[int, list[str], str]:
        """One run of the job whose ranks end with ``status``: its own status, what Slurm was told, what it printed."""
        self.said.unlink(missing_ok=True)
        path = f"{self.tools}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        named = {"SLURM_SUBMIT_DIR": str(self.folder), "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "41"}
        script = ["bash", str(ROOT / "launch/slurm/train.sbatch"), "launch/recipes/bagel.yaml", "train.steps=9"]
        environment = os.environ | named | {"PATH": path, "STATUS": str(status)} | extra
        done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=30)
        return done.returncode, self.said.read_text().splitlines(), done.stdout + done.stderr


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


@pytest.mark.parametrize("status", [0, 2, 76])
def test_a_job_that_would_end_alike_is_not_queued_again(slurm: Slurm, status: int) -> None:
    ended, told, _ = slurm.run(status)
    assert ended == status
    ranks = "srun --kill-on-bad-exit=0 --wait=60 bash launch/train.sh launch/recipes/bagel.yaml train.steps=9"
    assert told == ["scontrol show hostnames node[7-8]", ranks]


@pytest.mark.parametrize("status", [75, 1, 77, 137])
def test_a_stopped_a_hung_and_a_crashed_job_are_queued_again(slurm: Slurm, status: int) -> None:
    ended, told, printed = slurm.run(status)
    assert (ended, told[-1]) == (0, "scontrol requeue 41")
    assert f"(status {status}); queueing job 41 again." in printed
    # Only a crash counts.
    assert (slurm.folder / JOB).exists() == (status != 75)


def test_crashes_are_counted_and_a_stop_between_them_is_none(slurm: Slurm) -> None:
    assert [slurm.run(status, SRUM_DS_CRASHES="2")[0] for status in (77, 75, 1)] == [0, 0, 0]
    ended, told, printed = slurm.run(77, SRUM_DS_CRASHES="2")
    assert ended == 77 and "scontrol requeue 41" not in told
    assert f"srum-ds: 3 crashes, listed in {JOB}; not queueing job 41 again." in printed
    assert [line.split(" status ")[1] for line in (slurm.folder / JOB).read_text().splitlines()] == [
        "77 on node[7-8]",
        "1 on node[7-8]",
        "77 on node[7-8]",
    ]
    # Put right and submitted again under the same number (`scontrol requeue`), it ends and leaves nothing.
    assert slurm.run(0)[0] == 0
    assert not (slurm.folder / JOB).exists()


def test_without_retries_a_crash_is_told_at_once(slurm: Slurm) -> None:
    ended, told, _ = slurm.run(1, SRUM_DS_CRASHES="0")
    assert ended == 1 and "scontrol requeue 41" not in told


CLONE = "/opt/srum-ds"
"""Where the manifest's image has the repository."""


@pytest.fixture
def manifest() -> dict[str, Any]:
    """The parts of the manifest by kind."""
    parts = yaml.safe_load_all((ROOT / "launch/kubernetes/train.yaml").read_text())
    return {part["kind"]: part for part in parts}


def test_the_parts_of_the_manifest_fit_each_other(manifest: dict[str, Any]) -> None:
    job, service = manifest["Job"], manifest["Service"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(variables["NODES"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(variables["GPUS"])
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    fails = job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert fails["containerName"] == container["name"] and fails["values"] == [WRONG_INPUT, STOPPED_BY_WATCH]


def test_every_pod_of_the_manifest_starts_the_ranks_of_its_node(manifest: dict[str, Any], tmp_path: Path) -> None:
    from deepspeed.launcher.runner import fetch_hostfile, parse_args

    container = manifest["Job"]["spec"]["template"]["spec"]["containers"][0]
    stand_in, hosts = tmp_path / "deepspeed", tmp_path / "hosts"
    stand_in.write_text('#!/usr/bin/env bash\nprintf "%q " "$@"\n')
    stand_in.chmod(0o755)
    (script,) = container["args"]
    script = script.replace(f"{CLONE}/.venv/bin/deepspeed", str(stand_in)).replace("/tmp/hosts", str(hosts))
    variables = {one["name"]: one["value"] for one in container["env"]} | {"JOB_COMPLETION_INDEX": "1"}
    command = [*container["command"], script]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True, timeout=30)
    flags = parse_args(shlex.split(done.stdout))
    assert (flags.no_ssh, flags.node_rank, flags.master_addr) == (True, 1, "srum-ds-0.srum-ds")
    assert fetch_hostfile(flags.hostfile) == {"srum-ds-0.srum-ds": 8, "srum-ds-1.srum-ds": 8}
    assert flags.user_script == f"{CLONE}/launch/train.sh" and (ROOT / "launch/train.sh").exists()
    recipe, overrides = split_arguments(flags.user_args)
    check_world(load_config(recipe, overrides), 16)
