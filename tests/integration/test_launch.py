"""launch/train.sh and launch/eval.sh, each as Python under the launcher and as a shell script.

A stand-in for the loop writes down what it was given, in a copy of the tree.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.paths import ROOT

BIN = Path(sys.executable).parent

TRAIN = """
import json, os, sys, time
from pathlib import Path
from srum_ds.common.stopping import handle_stops

def main(argv):
    out = Path(os.environ["SEEN"])
    stopping = []
    handle_stops(lambda *_: stopping.append(1))
    seen = {"argv": argv, "cwd": os.getcwd(), "package": __file__}
    names = ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "TORCH_EXTENSIONS_DIR", "MASTER_PORT")
    seen |= {name: os.environ.get(name) for name in names}
    (out / f"rank{seen['RANK']}.json").write_text(json.dumps(seen))
    if "train.steps=999" in argv:
        for _ in range(600):
            time.sleep(0.1)
            if stopping:
                time.sleep(1.0)  # saves
                (out / f"saved{seen['RANK']}").touch()
                return 75
        return 1
    if "train.steps=998" in argv:
        from srum_ds.common.errors import UserError
        raise UserError("put it right")
    return 0
"""
EVAL = """
import os, sys

def evaluation_request(words, recipe):
    return words[0], words[1:]

def evaluate_run(run, overrides, *others, **more):
    print("EVAL", os.environ.get("RANK"), run, overrides)
    sys.exit(3)
"""
DRAW = """
import os

def draw_folders(plan, processes):
    print("DRAW", os.environ.get("RANK"), os.environ.get("LOCAL_SIZE"), processes)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package and the scripts, with stand-ins for the loop and the evaluation."""
    tree = tmp_path / "clone"
    shutil.copytree(ROOT / "srum_ds", tree / "srum_ds", ignore=shutil.ignore_patterns("__pycache__", "assets"))
    shutil.copytree(ROOT / "launch", tree / "launch")
    shutil.copytree(ROOT / "ds_configs", tree / "ds_configs")
    # What a run of the default recipe wants to see before it starts.
    (tree / "srum_ds" / "assets").symlink_to(ROOT / "srum_ds" / "assets")
    (tree / "data_shards").symlink_to(ROOT / "data_shards")
    (tree / "some.yaml").write_text("base: launch/recipes/tiny.yaml\n")
    (tree / "srum_ds" / "train.py").write_text(TRAIN)
    (tree / "srum_ds" / "evaluation" / "evaluate.py").write_text(EVAL)
    (tree / "srum_ds" / "evaluation" / "draw_folder.py").write_text(DRAW)
    (tmp_path / "seen").mkdir()
    return tree


def environment(tree: Path, **extra: str) -> dict[str, str]:
    drop = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "NUM_RANKS", "LAUNCHER_ARGS", "PYTHONPATH")
    clean = {name: value for name, value in os.environ.items() if name not in drop}
    path = f"{BIN}{os.pathsep}{clean.get('PATH', os.defpath)}"
    return clean | {"PATH": path, "SEEN": str(tree.parent / "seen")} | extra


def seen(tree: Path, rank: int) -> Any:
    return json.loads((tree.parent / "seen" / f"rank{rank}.json").read_text())


def test_ranks_leave_together_before_their_processes_end(tree: Path) -> None:
    """A process that ends inside its group is aborted now and then, and a finished run is called failed."""
    loop = """
import atexit, json, os
from pathlib import Path
import torch.distributed as dist
from srum_ds.engine import start_distributed

def tell():
    Path(os.environ["SEEN"], f"rank{os.environ['RANK']}.json").write_text(json.dumps(dist.is_initialized()))

def main(arguments):
    start_distributed()
    assert dist.is_initialized()
    atexit.register(tell)
    return 75
"""
    (tree / "srum_ds" / "train.py").write_text(loop)
    command = [str(BIN / "deepspeed"), "--num_gpus", "2", str(tree / "launch" / "train.sh"), "some.yaml"]
    built = environment(tree, TORCH_EXTENSIONS_DIR=str(Path(sys.prefix) / "torch_extensions"))
    done = subprocess.run(command, env=built, capture_output=True, text=True, timeout=120)
    assert done.returncode == 75, done.stdout + done.stderr
    assert [seen(tree, rank) for rank in range(2)] == [False, False]


ALONE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run_alone(code: str) -> subprocess.CompletedProcess[str]:
    """Runs ``code`` in a process that no launcher has started."""
    clean = {name: value for name, value in os.environ.items() if name not in ALONE} | {"LOCAL_SIZE": "1"}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True)


def test_a_killed_rank_leaves_no_shared_memory() -> None:
    """DeepSpeed's CPU op maps 69 MB a rank under a name that nobody removes: memory lost until a reboot."""
    done = run_alone(
        r"""
import os, re, signal
from srum_ds.engine import start_distributed
start_distributed()
print(re.findall(r"deepspeed_allreduce_buffer\S*", open("/proc/self/maps").read()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    names = json.loads(done.stdout.splitlines()[-1].replace("'", '"'))
    if not names:
        pytest.skip("DeepSpeed's shared-memory op does not run on this machine")
    assert not [name for name in names if Path("/dev/shm", name).exists()]


def test_a_group_of_one_makes_no_ranks_of_what_its_process_starts() -> None:
    done = run_alone(
        f"""
import os, subprocess, sys
from srum_ds.engine import start_distributed
start_distributed()
print([name for name in {ALONE!r} if name in os.environ], flush=True)
again = "from srum_ds.engine import start_distributed; start_distributed(); print('met')"
sys.exit(subprocess.call([sys.executable, "-c", again]))
"""
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "DeepSpeed" not in line]
    assert said == ["['LOCAL_RANK']", "met"]


def test_launcher_runs_the_script_from_anywhere(tree: Path) -> None:
    """Without flags, as a CPU machine starts it: one rank a NUMA node, --local_rank among the arguments."""
    command = [str(BIN / "deepspeed"), str(tree / "launch" / "train.sh"), "some.yaml", "train.steps=2"]
    elsewhere = tree.parent
    done = subprocess.run(command, cwd=elsewhere, env=environment(tree), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    found = seen(tree, 0)
    assert found["argv"] == ["some.yaml", "train.steps=2"]
    assert found["cwd"] == str(elsewhere)
    assert found["package"].startswith(str(tree))
    cores = len(os.sched_getaffinity(0))
    assert found["OMP_NUM_THREADS"] == str(max(1, cores // int(found["WORLD_SIZE"])))
    assert found["TORCH_EXTENSIONS_DIR"]


def test_shell_starts_the_ranks_and_hands_on_a_stop(tree: Path) -> None:
    command = ["bash", str(tree / "launch" / "train.sh"), "launch/recipes/tiny.yaml", "train.steps=999"]
    with subprocess.Popen(command, cwd=tree, env=environment(tree, NUM_RANKS="2"), start_new_session=True) as process:
        try:
            deadline = time.monotonic() + 60
            while not all((tree.parent / "seen" / f"rank{rank}.json").exists() for rank in (0, 1)):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 75
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    for rank in (0, 1):
        assert seen(tree, rank)["argv"] == ["launch/recipes/tiny.yaml", "train.steps=999"]
        assert seen(tree, rank)["WORLD_SIZE"] == "2"
        assert seen(tree, rank)["MASTER_PORT"] != "29500"
        assert (tree.parent / "seen" / f"saved{rank}").exists()


@pytest.mark.parametrize("door, number", [("front", signal.SIGTERM), ("front", signal.SIGHUP), ("node", signal.SIGINT)])
def test_deepspeed_by_hand_hands_on_a_stop(tree: Path, door: str, number: int) -> None:
    """As `pip install` registers it, the package attaches to both of DeepSpeed's launchers when they import torch."""
    hook = tree.parent / "site" / "srum_ds_hook-0.dist-info"
    hook.mkdir(parents=True)
    (hook / "METADATA").write_text("Metadata-Version: 2.1\nName: srum-ds-hook\nVersion: 0\n")
    (hook / "entry_points.txt").write_text("[torch.backends]\nsrum_ds_hook = srum_ds.common.front_end:attach\n")
    path = f"{tree}{os.pathsep}{hook.parent}"
    command = [str(BIN / "deepspeed"), "--num_gpus", "2", "launch/train.sh", "launch/recipes/tiny.yaml"]
    command += ["train.steps=999"]
    built = environment(tree, PYTHONPATH=path)
    with subprocess.Popen(command, cwd=tree, env=built, start_new_session=True) as process:
        below: list[psutil.Process] = []
        try:
            deadline = time.monotonic() + 60
            while not all((tree.parent / "seen" / f"rank{rank}.json").exists() for rank in (0, 1)):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            below = psutil.Process(process.pid).children(recursive=True)
            node = next(p for p in below if "deepspeed.launcher.launch" in p.cmdline())
            os.kill(process.pid if door == "front" else node.pid, number)
            assert process.wait(timeout=30) == 75
        finally:
            for one in [*below, process]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
    assert all((tree.parent / "seen" / f"saved{rank}").exists() for rank in (0, 1))


def test_shell_passes_on_a_user_error(tree: Path) -> None:
    command = ["bash", str(tree / "launch" / "train.sh"), "train.steps=998"]
    done = subprocess.run(
        command, cwd=tree, env=environment(tree, NUM_RANKS="1"), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "srum-ds: put it right" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "variables, flags",
    [
        ({"NUM_RANKS": "1"}, "--num_gpus 1"),
        ({"CUDA_VISIBLE_DEVICES": "0,2,5,7"}, "--num_gpus 4"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "--num_gpus 2"),
        (
            {"NUM_RANKS": "3", "LAUNCHER_ARGS": "--include localhost:1 --master_port 7"},
            "--include localhost:1",
        ),
    ],
)
def test_shell_chooses_the_ranks(tree: Path, variables: dict[str, str], flags: str) -> None:
    # As many ranks as there are prompts may be given.
    command = ["bash", str(tree / "launch" / "train.sh"), "--check", "rollout.micro_batch_prompts=1"]
    done = subprocess.run(
        command, cwd=tree, env=environment(tree, **variables), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert flags in done.stdout and ("--num_gpus" in done.stdout) == ("--num_gpus" in flags)
    assert done.stdout.count("--master_port") == 1


def test_visible_gpus_are_counted_as_the_driver_reads_the_list(tree: Path) -> None:
    counts = {"": 0, "-1": 0, "NoDevFiles": 0, "0,-1,1": 1, "0, 3,none,1": 2, "GPU-4f2a,MIG-1b,2": 3, "0,": 1}
    lines = [f"CUDA_VISIBLE_DEVICES='{value}'; visible_gpus" for value in counts]
    script = "\n".join([f"root={tree}", f". {tree}/launch/environment.sh", *lines])
    done = subprocess.run(["bash", "-euc", script], env=environment(tree), capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(count) for count in counts.values()], done.stderr


def test_eval_runs_in_one_process_and_on_rank_0_alone(tree: Path) -> None:
    script = str(tree / "launch" / "eval.sh")
    done = subprocess.run(
        ["bash", script, "runs/x", "eval.prompts=3"], env=environment(tree), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (3, "EVAL None runs/x ['eval.prompts=3']\n"), done.stderr
    for rank, expected in (("0", (3, "EVAL 0 runs/x []\n")), ("1", (0, ""))):
        ranked = subprocess.run(
            [sys.executable, script, f"--local_rank={rank}", "runs/x"],
            env=environment(tree, RANK=rank),
            capture_output=True,
            text=True,
        )
        assert (ranked.returncode, ranked.stdout) == expected, ranked.stderr


DRAWING = ["draw", "runs/x", "--benchmark", "shapes", "--out", "out", "--processes", "3"]


def test_every_rank_draws_and_rank_0_alone_scores_and_complains(tree: Path) -> None:
    # What a request is made of needs the package's own evaluation, which is a stand-in here.
    (tree / "srum_ds" / "evaluation" / "draw_request.py").write_text(
        "def draw_request(*words):\n    pass\n\n\nclass PromptChoice:\n    def __init__(self, *words):\n        pass\n"
        "\n\nclass DrawOptions(PromptChoice):\n    pass\n"
    )
    script = str(tree / "launch" / "eval.sh")

    def of_rank(rank: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, script, f"--local_rank={rank}", *words]
        variables = environment(tree, RANK=rank, LOCAL_SIZE="2")
        return subprocess.run(command, env=variables, capture_output=True, text=True)

    for rank in ("0", "1"):
        done = of_rank(rank, *DRAWING)
        assert (done.returncode, done.stdout) == (0, f"DRAW {rank} 2 3\n"), done.stderr
    # A mistyped option: the same status on each rank, said once.
    for rank, said in (("0", True), ("1", False)):
        wrong = of_rank(rank, *DRAWING, "--sample", "2")
        assert wrong.returncode == 2 and ("--sample" in wrong.stdout + wrong.stderr) == said
    other = of_rank("1", "score", "out", "--benchmark", "shapes", "--judge", "checker")
    assert (other.returncode, other.stdout, other.stderr) == (0, "", "")


SRUN = """#!/usr/bin/env bash
# Starts the tasks of a step as Slurm does, one after the other.
echo "SRUN $1 $2"
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 SLURM_STEP_TASKS_PER_NODE="2(x1)" "${@:3}"
done
"""


def test_the_job_script_makes_every_task_a_rank(tree: Path) -> None:
    tools = tree / "tools"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/sh\necho node7\necho node8\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tree / "srum_ds" / "commands" / "main.py").write_text(
        "import os\n\ndef main(words):\n    names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_SIZE', 'MASTER_ADDR')\n"
        "    print(*[os.environ[name] for name in names], words)\n    return 0\n"
    )
    variables = environment(
        tree, SLURM_SUBMIT_DIR=str(tree), SLURM_JOB_NODELIST="node[7-8]", SLURM_JOB_ID="41", SLURM_CPUS_PER_TASK="2"
    )
    variables["PATH"] = f"{tools}{os.pathsep}{variables['PATH']}"
    command = ["bash", str(tree / "launch" / "slurm" / "eval.sbatch"), *DRAWING]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        "SRUN --kill-on-bad-exit=1 --wait=0",
        f"0 0 2 2 node7 {['eval', *DRAWING]}",
        f"1 1 2 2 node7 {['eval', *DRAWING]}",
    ]


def test_missing_deepspeed_says_what_to_do(tree: Path) -> None:
    done = subprocess.run(
        ["bash", str(tree / "launch" / "train.sh")],
        env=environment(tree) | {"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "run 'make setup' first" in done.stderr
