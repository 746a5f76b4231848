"""Kinds of fault that strike files, disks and judges."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.chaos import judge as judge_file
from tests.chaos.damage import CUT, EMPTY, FLIP, GONE, alter_state, damage_file, header_bytes, lose_key, restore
from tests.chaos.doors import COMMAND, DEEPSPEED, RANKS, SHELL, Job
from tests.chaos.fault import ERRNO, Fault
from tests.chaos.hook import VARIABLE
from tests.chaos.moments import STEP, Moment
from tests.chaos.verdict import HUNG, WRONG_INPUT, Expected
from tests.chaos.workshop import BEGUN, FRESH, HALF, STEPS, Workshop

# A checkpoint of the embedded model takes 37 MB, the export 17 MB.
SMALL_DISKS = (20, 45, 60, 85, 100, 120)


def checkpoint(rng: Random, shop: Workshop) -> Fault:
    """Damages the newest checkpoint, or all of them: a rank's file, state.json, its fields."""
    door, ranks = _door(rng)
    everything = rng.random() < 0.3
    ways: list[Callable[[Path], str]] = []
    for _ in range(2):
        what = rng.choice(["tensors", "tensors", "state.json", "fields", "fields"])
        how = rng.choice([FLIP, FLIP, CUT, EMPTY, GONE])
        ways.append(_damaging_checkpoint(what, how, rng))

    def before(case: Path) -> str:
        shutil.copytree(case / "run" / "checkpoints", case / "backup")
        newest_first = sorted((case / "run" / "checkpoints").glob("step_*"), reverse=True)
        chosen = newest_first if everything else newest_first[:1]
        return "; ".join(f"{folder.name}: {way(folder)}" for folder, way in zip(chosen, ways, strict=False))

    return Fault(
        "checkpoint",
        "all checkpoints damaged" if everything else "the newest checkpoint damaged",
        # With one checkpoint lost, the run goes back to the one before.
        Expected((WRONG_INPUT,) if everything else (), ("no usable checkpoint",), lost=1),
        door,
        ranks,
        before=before,
        undo=lambda case: restore(case / "run" / "checkpoints", case / "backup"),
        again=1,
    )


def _damaging_checkpoint(what: str, how: str, rng: Random) -> Callable[[Path], str]:
    own = Random(rng.random())

    def damage(folder: Path) -> str:
        if what == "fields":
            return alter_state(folder / "state.json", own)
        path = folder / ("state.json" if what == "state.json" else "rank_00000.safetensors")
        return damage_file(path, how, own, header_bytes(path) if what == "tensors" and own.random() < 0.3 else None)

    return damage


def prompts(rng: Random, shop: Workshop) -> Fault:
    """Damages the prompt shards: the tar, or index.json."""
    door, ranks = _door(rng)
    name = rng.choice(["train-000000.tar", "train-000000.tar", "index.json"])
    how = rng.choice([FLIP, FLIP, FLIP, CUT, EMPTY, GONE])
    own = Random(rng.random())

    def before(case: Path) -> str:
        shutil.copytree(case / "shards", case / "backup")
        return damage_file(case / "shards" / name, how, own)

    return Fault(
        "prompts",
        f"{name} {how}",
        Expected((WRONG_INPUT,), (r"shards", r"index\.json", r"train-000000")),
        door,
        ranks,
        rng.choice([FRESH, BEGUN]),
        before=before,
        undo=lambda case: restore(case / "shards", case / "backup"),
    )


def model(rng: Random, shop: Workshop) -> Fault:
    """Damages the model's folder: a weight file's header or length, one key, or its JSON."""
    door, ranks = _door(rng)
    name = rng.choice(["ema.safetensors", "ema.safetensors", "ae.safetensors", "llm_config.json", "config.json"])
    weights = name.endswith(".safetensors")
    how = rng.choice([FLIP, CUT, EMPTY, GONE, "key lost"] if weights else [CUT, EMPTY, GONE])
    own = Random(rng.random())

    def before(case: Path) -> str:
        shutil.copytree(case / "model", case / "backup")
        path = case / "model" / name
        if how == "key lost":
            return lose_key(path, own)
        return damage_file(path, how, own, header_bytes(path) if weights and how == FLIP else None)

    return Fault(
        "model",
        f"{name} {how}",
        Expected((WRONG_INPUT,), (r"model\.path", r"/model\b")),
        door,
        ranks,
        rng.choice([FRESH, FRESH, BEGUN]),
        before=before,
        undo=lambda case: restore(case / "model", case / "backup"),
    )


def disk(rng: Random, shop: Workshop) -> Fault:
    """A small disk, one that others fill in mid-run, a limit on the size of files, writes that fail."""
    way = rng.choice(["small", "small", "filled", "file limit", "write error", "write error"])
    if way in ("small", "filled") and not shop.mounts:
        way = "file limit"
    expected = Expected((WRONG_INPUT,), ("room", "space", "No space", "File too large", "error", "written", "quota"))
    if way == "small":
        size = rng.choice(SMALL_DISKS)
        return Fault("disk", f"run.dir on a disk of {size} MB", expected, source=FRESH, mount=f"size={size}m")
    if way == "filled":
        moment = Moment(STEP, rng.randrange(HALF + 1, STEPS), rng.uniform(0.0, 0.3))
        fault = Fault("disk", "others fill the disk", expected, source=BEGUN, mount="size=220m", moment=moment)
        fault.strike = _fill
        return fault
    door, ranks = _door(rng)
    where = [rng.randrange(ranks)]
    if way == "file limit":
        limit = rng.choice([1, 4, 8, 12, 16]) << 20
        what, hook = f"files of at most {limit >> 20} MB", {"ranks": where, "file_bytes": limit}
    else:
        call = rng.choice(["replace", "rename", "fsync", "open"])
        number = rng.choice(["ENOSPC", "EIO", "EDQUOT"])
        name = {"fsync": "*", "rename": "*", "replace": "*"}.get(call) or rng.choice(
            ["state.json", "metrics.jsonl", "*.json", "environment.json", "config.yaml"]
        )
        nth = rng.randrange(1, 8)
        what = f"{number} at each {call} of {name} from call {nth} on, rank {where[0]}"
        hook = {"ranks": where, "write": {"call": call, "name": name, "nth": nth, "errno": ERRNO[number]}}
    variables = {VARIABLE: json.dumps(hook)}
    return Fault("disk", what, expected, door, ranks, rng.choice([FRESH, BEGUN]), variables=variables)


def _fill(job: Job, role: str) -> str:
    """Writes into the disk that holds the job's run until it is full."""
    path = Path(job.name) / "run" / "filling"
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 20))
        except OSError:
            pass
    return f"{path.stat().st_size >> 20} MB written"


def read(rng: Random, shop: Workshop) -> Fault:
    """A disk or a network that does not answer when a file is read, on one rank."""
    door, ranks = _door(rng)
    number = rng.choice(["EIO", "ESTALE", "EACCES", "ETIMEDOUT"])
    name = rng.choice(
        ["state.json", "rank_*.safetensors", "index.json", "train-*.tar", "*.safetensors", "config.json", "vocab.json"]
        + ["metrics.jsonl", "config.yaml", "inputs.json", "tiny.yaml", "cpu.json"]
    )
    rank = rng.randrange(ranks)
    nth = rng.choice([1, 1, 1, 2, 3])
    hook = {"ranks": [rank], "read": {"name": name, "nth": nth, "errno": ERRNO[number]}}
    return Fault(
        "read",
        f"{number} at each reading of {name} from call {nth} on, rank {rank}",
        Expected((WRONG_INPUT,), (r"[\w*.-]+\.(json|jsonl|safetensors|tar|yaml)",)),
        door,
        ranks,
        rng.choice([BEGUN, BEGUN, FRESH]),
        variables={VARIABLE: json.dumps(hook)},
    )


def judge(rng: Random, shop: Workshop) -> Fault:
    """An external judge that raises, hangs, ends the process, or gives something else than scores."""
    door, ranks = _door(rng)
    what = rng.choice([*judge_file.FAULTS, "hangs", "hangs"])
    source = rng.choice([FRESH, BEGUN])
    step = rng.randrange((HALF if source == BEGUN else 0) + 1, STEPS + 1)
    every = ranks > 1 and rng.random() < 0.3
    where = list(range(ranks)) if every else [rng.randrange(ranks)]
    fault = {"what": what, "step": step, "ranks": where}
    statuses = [WRONG_INPUT] if what != "hangs" else [1, HUNG]
    return Fault(
        "judge",
        f"judge.external {what} in step {step} on {'all ranks' if every or ranks == 1 else f'rank {where[0]}'}",
        Expected(tuple(statuses), (r"judge\.external", "score", "judge")),
        door,
        ranks,
        source,
        variables={judge_file.VARIABLE: json.dumps(fault)},
        # A hang is found in its phase's limit; in its first step that is limits.first_seconds.
        extra_limit=12 * shop.unit if what == "hangs" else 0.0,
    )


def _door(rng: Random) -> tuple[str, int]:
    """Mostly ranks by themselves, which start fastest: how a job is started matters less here."""
    door = rng.choice([RANKS] * 8 + [COMMAND, SHELL, DEEPSPEED])
    return door, rng.choice([1, 1, 2]) if door == RANKS else 2
