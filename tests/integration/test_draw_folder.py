"""`srum-ds eval draw` by one process and by ranks: the same bytes, and a job that is killed or fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.launching import command, environment, finish, launch
from tests.support.paths import MODEL, ROOT

DRAW = ["--benchmark", "shapes", "--limit", "10", "--batch", "3", "num_timesteps=3"]


def words(folder: Path, model: Path = MODEL) -> list[str]:
    return ["draw", str(model), "--out", str(folder), *DRAW]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but its lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes."""
    folder = tmp_path_factory.mktemp("alone") / "d"
    done = command("eval", *words(folder), "--processes", "1")
    assert done.returncode == 0, done.stderr
    found = contents(folder)
    assert len([name for name in found if name.endswith(".png")]) == 10
    return found


def test_two_processes_make_the_bytes_of_one(alone: dict[str, bytes], tmp_path: Path) -> None:
    done = command("eval", *words(tmp_path), "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == alone


def test_two_ranks_make_the_bytes_of_one_and_rank_0_alone_prints(alone: dict[str, bytes], tmp_path: Path) -> None:
    output = finish(launch(2, words(tmp_path), "launch/eval.sh"))
    assert contents(tmp_path) == alone
    assert output.count("10 pictures of 10 prompts of shapes, 10 of them drawn now") == 1
    # The second time there is nothing to do, and nothing is touched.
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    again = command("eval", *words(tmp_path), "--processes", "1")
    assert again.returncode == 0 and "nothing to draw" in again.stdout, again.stderr
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}


def test_ranks_that_are_refused_end_alike_and_say_it_once(alone: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in alone.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    process = launch(2, [*words(tmp_path), "--seed", "5"], "launch/eval.sh")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    assert output.count("holds other pictures: seed was 1234 and is now 5") == 1
    assert "Traceback" not in output


FAILING = """
import os
from srum_ds.commands.main import main
from srum_ds.common.errors import UserError
from srum_ds.evaluation import draw_folder, draw_pictures

def work(batch):
    if os.environ["RANK"] == "1":
        raise {error}
    return draw_pictures.draw_pictures(batch)

if __name__ == "__main__":
    import sys
    draw_folder.draw_pictures = work
    sys.exit(main(["eval", *[word for word in sys.argv[1:] if not word.startswith("--local_rank")]]))
"""


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [("UserError('rank 1 has no room')", 2, "srum-ds: rank 1 has no room"), ("ZeroDivisionError()", 1, "ZeroDivision")],
)
def test_a_rank_that_fails_ends_the_others(tmp_path: Path, error: str, status: int, said: str) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING.format(error=error))
    process = launch(2, [*words(tmp_path / "d"), "--processes", "1"], str(script))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status and said in output, output[-4000:]
    assert output.count("Traceback") == (1 if status == 1 else 0)
    if status == 1:
        return
    # What rank 0 had drawn in that round is whole, and the same command goes on with it.
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "d").rglob("*.png")}
    assert 0 < len(first) < 10
    done = command("eval", *words(tmp_path / "d"), "--processes", "1")
    assert done.returncode == 0 and f"{10 - len(first)} of them drawn now" in done.stdout, done.stderr
    assert first == {path: path.stat().st_mtime_ns for path in first}


def test_killed_in_the_middle_it_goes_on_and_draws_nothing_twice(alone: dict[str, bytes], tmp_path: Path) -> None:
    run = "import sys; from srum_ds.commands.main import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", run, "eval", *words(tmp_path), "--processes", "1"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("[!.]*.png")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("[!.]*.png")}
    assert 0 < len(first) < 10
    done = command("eval", *words(tmp_path), "--processes", "1")
    assert done.returncode == 0, done.stderr
    assert f"10 pictures of 10 prompts of shapes, {10 - len(first)} of them drawn now" in done.stdout
    assert contents(tmp_path) == alone
    assert first == {path: path.stat().st_mtime_ns for path in first}
