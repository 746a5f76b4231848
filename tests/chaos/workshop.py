"""What all faults of a campaign share: prompts, the reference, a run half done, a finished one; copies for each fault.

The recipe is a short one: six steps of two prompts with two images each, a checkpoint after every step.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.chaos import judge
from tests.chaos.doors import EVALUATION, RANKS, Job, start
from tests.support.paths import MODEL, RECIPE
from tests.support.runs import write_prompts

STEPS = 6
HALF = 4
SAVE_EVERY = 1
LEAST_UNIT = 5.0
FRESH, BEGUN, FINISHED = "fresh", "begun", "finished"
"""How a fault's folder is made: without a run, with one after ``HALF`` steps, with a finished one."""


@dataclass(frozen=True)
class Workshop:
    """A folder in which faults are made.

    unit: seconds that the undisturbed run took on this machine, no less than ``LEAST_UNIT``; all limits are multiples
    of it. evaluation: those of `srum-ds eval`. mounts: whether a disk of its own can be made here. export, outcomes:
    name -> SHA-256 of what must come out.
    """

    folder: Path
    unit: float
    evaluation: float
    mounts: bool
    export: dict[str, str]
    outcomes: str

    def words(self, case: Path) -> list[str]:
        """The command's words of a run in this case's folder: always the same ones."""
        return words_of(case, self.unit)

    @property
    def patience(self) -> float:
        """Seconds within which an undisturbed job must have ended, and what is left of it too."""
        return 60 + 10 * self.unit

    def copy(self, source: str, case: Path) -> None:
        """Makes a case's folder: prompts, model and, but for ``FRESH``, a run."""
        if case.exists():
            shutil.rmtree(case)
        origin = self.folder / ("finished" if source == FRESH else source)
        for name in ("shards", "model") if source == FRESH else ("shards", "model", "run"):
            copy_tree(origin / name, case / name)
        saved = case / "run" / "config.yaml"
        if saved.exists():
            saved.write_text(saved.read_text().replace(f"{origin}/", f"{case}/"))
        (case / "run" / "outcomes.json").unlink(missing_ok=True)


def words_of(case: Path, unit: float) -> list[str]:
    """The recipe and the settings of a run in ``case``."""
    return [
        str(RECIPE),
        f"run.dir={case}/run",
        f"data.shards={case}/shards",
        f"model.path={case}/model",
        f"judge.external={Path(judge.__file__).resolve()}:score",
        "judge.max_failed_share=0.2",
        f"train.steps={STEPS}",
        f"train.save_every={SAVE_EVERY}",
        "train.timesteps_per_image=1",
        "rollout.prompts_per_step=2",
        "rollout.micro_batch_prompts=1",
        "rollout.images_per_prompt=2",
        "rollout.num_timesteps=3",
        "regions.max_count=2",
        "eval.prompts=2",
        "eval.num_timesteps=3",
        "log.tensorboard=false",
        "log.progress=false",
        f"limits.grace_seconds={round(1 + unit)}",
        f"limits.first_seconds={round(6 * unit)}",
        f"limits.init={round(6 * unit)}",
        f"limits.save={round(3 * unit)}",
    ]


def evaluation_words(run: Path) -> list[str]:
    """The words of `srum-ds eval` of a run, which starts two helpers."""
    return [str(run), "--processes", "2"]


def open_workshop(folder: Path, evaluates: bool = True) -> Workshop:
    """The workshop in a folder, as it was made there, or made now. evaluates: for faults of evaluations too."""
    known = folder / "workshop.json"
    if known.exists():
        return Workshop(**{**json.loads(known.read_text()), "folder": folder})
    shutil.rmtree(folder, ignore_errors=True)
    finished = folder / FINISHED
    finished.mkdir(parents=True)
    write_prompts(finished / "shards", 2, ("train", "test"))
    copy_tree(MODEL, finished / "model")
    # Once to have the libraries in memory, and with limits that nothing reaches.
    made = folder / "warm"
    copy_tree(finished / "shards", made / "shards")
    copy_tree(MODEL, made / "model")
    _run(made, 60.0, folder / "logs" / "warm.txt")
    unit = max(LEAST_UNIT, _run(finished, 60.0, folder / "logs" / "reference.txt"))
    begun = folder / BEGUN
    copy_tree(finished / "shards", begun / "shards")
    copy_tree(MODEL, begun / "model")
    fault = json.dumps({"what": "raises", "step": HALF + 1, "ranks": [0]})
    _run(begun, 60.0, folder / "logs" / "begun.txt", {judge.VARIABLE: fault}, status=2)
    evaluation = 0.0
    if evaluates:
        log = folder / "logs" / "evaluation.txt"
        evaluation = _wait(start(EVALUATION, 1, evaluation_words(finished / "run"), str(finished), log, {}), 600, 0)
    export = export_of(finished / "run")
    if not export or export != export_of(made / "run"):
        raise RuntimeError(f"two undisturbed runs differ: nothing can be compared here; see {folder / 'logs'}")
    outcomes = digest(finished / "run" / "outcomes.json") if evaluates else ""
    workshop = Workshop(folder, round(unit, 1), round(evaluation, 1), mounts_disks(folder), export, outcomes)
    known.write_text(json.dumps(asdict(workshop), default=str, indent=1) + "\n")
    return workshop


def _run(case: Path, unit: float, log: Path, more: Mapping[str, str] | None = None, status: int = 0) -> float:
    return _wait(start(RANKS, 1, words_of(case, unit), str(case), log, more or {}), 600, status)


def _wait(job: Job, limit: float, status: int) -> float:
    """Seconds until a job has ended with this status."""
    while not job.has_ended():
        time.sleep(0.02)
        if time.monotonic() - job.began > limit:
            job.kill()
    if job.statuses() != [status]:
        raise RuntimeError(f"an undisturbed {job.door} ended with {job.statuses()}:\n{job.text()[-3000:]}")
    return time.monotonic() - job.began


def mounts_disks(folder: Path) -> bool:
    """Whether this process may mount a disk in memory."""
    place = folder / "mounted"
    place.mkdir(exist_ok=True)
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "chaos", str(place)], capture_output=True)
    except OSError:
        return False
    if done.returncode == 0:
        subprocess.run(["umount", str(place)], check=True)
    return done.returncode == 0


def copy_tree(source: Path, target: Path) -> None:
    """Copies a folder; large files, which nobody changes in place, by a link."""
    for path in sorted(source.rglob("*")):
        copied = target / path.relative_to(source)
        if path.is_dir():
            copied.mkdir(parents=True, exist_ok=True)
            continue
        copied.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            try:
                os.link(path, copied)
                continue
            except OSError:
                # Another file system.
                pass
        shutil.copy2(path, copied)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def export_of(run: Path) -> dict[str, str]:
    """Name -> SHA-256 of the weights that a run has exported."""
    return {path.name: digest(path) for path in sorted((run / "export").glob("*.safetensors"))}
