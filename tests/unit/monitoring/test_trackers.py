"""Experiment trackers: one's own from a file outside the package, a missing package, one that fails, no secrets."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.evaluation.lookout import open_monitor
from srum_ds.evaluation.run_words import settings_told
from srum_ds.monitoring.trackers import TrackerRun, open_trackers
from tests.support.paths import RECIPE, ROOT

OWN = '''
import json

class Lines:
    """Appends everything it is given to a file."""

    def __init__(self, run):
        self.path = run.folder / "mine.jsonl"
        self.write(["run", run.name, run.project, run.start, run.settings["train.lr"]])

    def write(self, what):
        with open(self.path, "a") as stream:
            stream.write(json.dumps(what) + "\\n")

    def log(self, step, figures):
        self.write(["log", step, figures])

    def image(self, step, name, path):
        self.write(["image", step, name, path.is_file()])

    def close(self):
        self.write(["close"])


class Broken(Lines):
    def log(self, step, figures):
        raise RuntimeError(f"no server at step {step}")


def nothing(run):
    return 3
'''


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "own_tracker.py"
    path.parent.mkdir()
    path.write_text(OWN)
    return path


def a_run(tmp_path: Path, start: int = 0, **settings: Any) -> TrackerRun:
    return TrackerRun("tiny", "srum-ds", tmp_path, {"train.lr": 5e-4, **settings}, start)


def lines(tmp_path: Path) -> list[Any]:
    return [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text().splitlines()]


def test_a_tracker_of_ones_own_gets_steps_looks_and_samples(tmp_path: Path, own: Path) -> None:
    words = [f"run.dir={tmp_path}", f"log.trackers=[{own}:Lines]", "log.tensorboard=false", "log.progress=false"]
    monitor = open_monitor(load_config(str(RECIPE), words), tmp_path)
    monitor.step({"step": 1, "loss": 0.5, "grad_norm": float("nan"), "judge": "logprob", "tokens": 3})
    monitor.held_out({"step": 1, "prompts": 2, "reward": 0.25, "reward_se": None, "judges": {"own": 0.5}})
    monitor.images("fixed", torch.zeros(1, 3, 8, 8), [[]], [[]], ["a circle"], 1)
    monitor.close()
    assert lines(tmp_path) == [
        ["run", tmp_path.name, "srum-ds", 0, 5e-4],
        ["log", 1, {"loss": 0.5, "tokens": 3.0}],
        ["log", 1, {"held_out_prompts": 2.0, "held_out_reward": 0.25, "held_out_judge_own": 0.5}],
        ["image", 1, "fixed", True],
        ["close"],
    ]


def test_the_one_in_the_documentation_works(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    (tmp_path / "documented.py").write_text(page.split("```python\n")[1].split("```")[0])
    trackers = open_trackers([f"{tmp_path / 'documented.py'}:Lines"], a_run(tmp_path), pytest.fail)
    trackers.log(1, {"loss": 0.5})
    trackers.image(1, "fixed", tmp_path)
    trackers.close()
    assert (tmp_path / "lines.txt").read_text() == "1 {'loss': 0.5}\n"


def test_one_that_fails_is_told_once_and_ends_nothing(tmp_path: Path, own: Path) -> None:
    told: list[str] = []
    trackers = open_trackers([f"{own}:Broken", f"{own}:Lines"], a_run(tmp_path), told.append)
    for step in range(1, 4):
        trackers.log(step, {"loss": 1.0})
    trackers.close()
    assert len(told) == 1
    assert f"log.trackers={own}:Broken: RuntimeError: no server at step 1. The run goes on" in told[0]
    assert [line[1] for line in lines(tmp_path) if line[0] == "log"] == [1, 2, 3]


def test_a_slow_one_delays_no_step(tmp_path: Path) -> None:
    gate = threading.Event()
    seen: list[int] = []

    class Slow:
        def log(self, step: int, figures: Mapping[str, float]) -> None:
            assert gate.wait(10)
            seen.append(step)

        image = close = lambda self, *given: None  # noqa: E731

    module = ModuleType("slow_tracker")
    module.Slow = lambda run: Slow()  # type: ignore[attr-defined]
    sys.modules["slow_tracker"] = module
    trackers = open_trackers(["slow_tracker:Slow"], a_run(tmp_path), lambda text: None)
    for step in range(1, 4):
        trackers.log(step, {"loss": 1.0})
    assert seen == []
    gate.set()
    trackers.close()
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_package_is_told_with_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in (name, f"{name}.entities", f"{name}.tracking"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"log.trackers={name}: .*pip install 'srum-ds\[{name}\]'"):
        open_trackers([name], a_run(tmp_path), print)


def test_names_that_are_none_and_code_that_makes_no_tracker(tmp_path: Path, own: Path) -> None:
    with pytest.raises(UserError, match="log.trackers=wandbb: no such tracker.*did you mean 'wandb'"):
        open_trackers(["wandbb"], a_run(tmp_path), print)
    with pytest.raises(UserError, match="nothing: gave .*3.* which has no log, no image, no close"):
        open_trackers([f"{own}:nothing"], a_run(tmp_path), print)
    with pytest.raises(UserError, match=r"log.trackers=\['wandbb'\].* expected a list: each .*wandb"):
        load_config(str(RECIPE), ["log.trackers=[wandbb]"])


def test_what_reads_the_environment_is_told_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cr3t-t0ken")
    told = settings_told(load_config(str(RECIPE), ["log.project=${oc.env:MY_TOKEN}"]))
    assert told["log.project"] == "${oc.env:MY_TOKEN}" and "s3cr3t" not in str(told)


class Calls:
    """Records whatever is called of it, and gives itself for everything."""

    def __init__(self) -> None:
        self.made: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any, **named: Any) -> Calls:
            self.made.append((name, given, named))
            return self

        return call


def test_wandb_is_called_by_its_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    monkeypatch.setitem(sys.modules, "wandb", calls)
    for start in (0, 20):
        trackers = open_trackers(["wandb"], a_run(tmp_path, start), print)
        trackers.log(start + 1, {"loss": 0.5})
        trackers.close()
    first, again = [named for name, _, named in calls.made if name == "init"]
    assert first["config"] == {"train.lr": 5e-4} and first["project"] == "srum-ds" and first["resume"] is None
    # The same run goes on.
    assert again["resume"] == "allow" and again["id"] == first["id"]
    logged = [given[0] for name, given, _ in calls.made if name == "log"]
    assert logged == [{"loss": 0.5, "step": 1}, {"loss": 0.5, "step": 21}]
    assert calls.made[-1][0] == "finish"
