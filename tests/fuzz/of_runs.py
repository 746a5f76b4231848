"""Targets: what a run keeps and reads again (checkpoint states, rollouts), its maps of weights, its judges' servers."""

from __future__ import annotations

import io
import json
import math
import tarfile
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from srum_ds.config.schema import RewardConfig
from srum_ds.engine.checkpoint_state import STATE_FILE, CorruptCheckpoint, read_state, records, sealed
from srum_ds.judges.chat import BrokenReply, NoReply, error_text, read_probabilities, read_text
from srum_ds.prompts.shards import scan_tar, shard_to_json
from srum_ds.rewards.token_weights import token_weights
from srum_ds.rollouts.codec import EXTENSIONS
from srum_ds.rollouts.shards import INDEX, RolloutReader, RolloutWriter
from srum_ds.types import Judged, Regions, Samples, Scores
from tests.fuzz.inputs import Maker
from tests.fuzz.target import Target, is_share, write
from tests.support.rollouts import HEADER, judged

_STATE: dict[str, Any] = {
    "format": 2,
    "step": 20,
    "optimizer_steps": 20,
    "adam_steps": 19,
    "world_size": 2,
    "kinds": ["live", "exp_avg"],
    "parameters": {"a.weight": [4, 3], "b": []},
    "extra": {"best": 0.5, "plan": None},
    "fixed": {"run.seed": 0},
    "files": [{"name": f"rank_{n:05d}.safetensors", "bytes": 10, "sha256": "a" * 64} for n in range(2)],
}


def make_state(make: Maker) -> str | bytes:
    """A checkpoint's state: changed and sealed anew, or changed after it was sealed, or damaged."""
    if make.chance(0.4):
        state = make.changed(_STATE, keep=0.05)
        try:
            return make.json(sealed(state))
        except (TypeError, ValueError, OverflowError, RecursionError, UnicodeError):
            return make.json(state)
    if make.chance(0.3):
        return make.json(make.changed({key: value for key, value in _STATE.items()} | {"format": 1}))
    whole = json.dumps(sealed(_STATE))
    return make.damaged(whole.encode()) if make.chance(0.5) else make.json(make.changed(json.loads(whole), keep=0.02))


def check_state(case: str | bytes, folder: Path) -> None:
    """A state that is believed has the counts, shapes and files that a load goes by."""
    checkpoint = folder / "step_000020"
    write(checkpoint / STATE_FILE, case)
    state = read_state(checkpoint)
    assert state["step"] == 20 and min(state["adam_steps"], state["optimizer_steps"]) >= 0
    # A run that began with another one's moments has more steps of Adam than of its own; its state is sealed.
    assert "sha256" in state or state["adam_steps"] <= state["optimizer_steps"]
    files = list(records(state))
    assert len(files) == state["world_size"] and all(len(one.sha256) == 64 and one.bytes >= 0 for one in files)
    assert all(side >= 0 for shape in state["parameters"].values() for side in shape)
    assert read_state(checkpoint) == state


@cache
def _rollouts() -> tuple[bytes, bytes]:
    """The index and the tar of one step."""
    with tempfile.TemporaryDirectory() as name:
        RolloutWriter(Path(name), HEADER).write(0, 0, [judged(0), judged(2)])
        return (Path(name) / INDEX).read_bytes(), (Path(name) / "step-000000-rank-00000.tar").read_bytes()


def make_rollouts(make: Maker) -> tuple[str | bytes, bytes]:
    """A folder's index and tar. Where the tar is changed, the index describes the changed one half of the time."""
    index, tar = _rollouts()
    if make.chance(0.5):
        lines = [json.loads(line) for line in index.splitlines()]
        changed = make.below(2)
        lines[changed] = make.changed(lines[changed], keep=0.02)
        text = "".join(make.json(line) + "\n" for line in lines)
        return (make.damaged(text.encode("utf-8", "surrogatepass")) if make.chance(0.1) else text), tar
    damaged = make.damaged(tar) if make.chance(0.4) else _changed_record(make, tar)
    if make.chance(0.2):
        return index, damaged
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        path = Path(name) / "step-000000-rank-00000.tar"
        path.write_bytes(damaged)
        try:
            shard = shard_to_json(scan_tar(path, EXTENSIONS))
        except Exception:
            return index, damaged
    head = index.split(b"\n", 1)[0].decode()
    step = json.dumps({"step": 0, "policy": 0, "shards": [shard]})
    return f"{head}\n{step}\n", damaged


def _changed_record(make: Maker, tar: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(tar)) as old, tarfile.open(fileobj=out, mode="w") as new:
        members = old.getmembers()
        chosen = make.below(len(members))
        for n, member in enumerate(members):
            stream = old.extractfile(member)
            data = stream.read() if stream is not None else b""
            if n == chosen and member.name.endswith(".json"):
                data = make.json(make.changed(json.loads(data), keep=0.0)).encode("utf-8", "surrogatepass")
            elif n == chosen:
                data = make.damaged(data)
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    return out.getvalue()


def check_rollouts(case: tuple[str | bytes, bytes], folder: Path) -> None:
    """What is read has one score for each image and region, finite or failed, and pictures in [0, 1]."""
    index, tar = case
    place = folder / "rollouts"
    write(place / INDEX, index)
    write(place / "step-000000-rank-00000.tar", tar)
    reader = RolloutReader(place)
    reader.check(range(1))
    assert reader.policy(0) >= 0 and reader.header.differences(reader.header) == []
    for world_size in (1, 2):
        for rank in range(world_size):
            for batch in reader.batches(0, 2, rank, world_size):
                _holds(batch)


def _holds(batch: Judged) -> None:
    count = len(batch.samples.sample_N)
    scores, regions = batch.scores, batch.regions
    assert len(scores.global_N) == len(scores.global_status_N) == len(batch.samples.images_NCHW) == count
    assert len(scores.local_R) == len(regions.owner_R) == len(regions.boxes_R4) == len(scores.phrase_R)
    # A picture that is not finite was written as such: it is kept, and its score is FAILED.
    images = batch.samples.images_NCHW
    assert bool(((images >= 0) & (images <= 1) | images.isnan()).all())
    lost_N = images.isnan().flatten(1).any(dim=1)
    assert bool((scores.global_status_N[lost_N] == 2).all())
    assert batch.samples.tokens.shape[0] == count
    for values, status in ((scores.global_N, scores.global_status_N), (scores.local_R, scores.local_status_R)):
        known = values[status != 2]
        assert bool((known.abs() <= 1).all()), (values, status)
        assert bool(values[status == 2].isnan().all()), (values, status)
    boxes = regions.boxes_R4
    assert bool(boxes.isfinite().all()) and bool((boxes >= 0).all()) and bool((boxes <= 1).all()), boxes
    assert scores.missing_N is None or bool(((scores.missing_N >= 0) & (scores.missing_N <= 1)).all())
    assert math.isfinite(float(len(batch.samples.prompt_of_each())))


_EDGES = (0.0, 1.0, 0.5, 0.1, 0.9, -0.5, 1.5, 1e-9, 1e30, -1e30, math.nan, math.inf, -math.inf)
_SCORES = (0.0, 1.0, -1.0, 0.3, -0.7, 1e-30, math.nan)


def make_map(make: Maker) -> tuple[str, dict[str, Any], RewardConfig]:
    """A kind of weights, a micro-batch in plain numbers, and settings of the reward."""
    images = make.below(4) + 1
    regions = sorted(make.below(images) for _ in range(make.below(5)))
    batch = {
        "group": sorted(make.below(images) for _ in range(images)),
        "owner": regions,
        "boxes": [[make.pick(_EDGES) if make.chance(0.4) else make.source.random() for _ in range(4)] for _ in regions],
        "local": [make.pick(_SCORES) for _ in regions],
        "global": [make.pick(_SCORES) for _ in range(images)],
        "missing": [make.pick((0.0, 1.0, 0.25)) for _ in range(images)] if make.chance(0.5) else None,
        "broken": [make.chance(0.1) for _ in range(images)],
        "grid": (make.below(4) + 1, make.below(4) + 1),
        "side": make.pick((1, 8, 13)),
    }
    reward = RewardConfig(
        global_weight=make.pick((0.0, 1.0, 2.0, 1e6)),
        local_weight=make.pick((0.0, 1.0, 2.0, 1e6)),
        missing_penalty=make.pick((0.0, 0.5, 1e6)),
        combine=make.pick(("max", "strongest", "mean", "smallest")),
        background=make.pick((0.0, -1.0, 0.5)),
        resize=make.pick(("area", "bilinear")),
        global_factor=make.pick(("additive", "multiplicative")) if make.chance(0.5) else RewardConfig().global_factor,
    )
    return make.pick(("signed", "group", "positive", "pair", "none")), batch, reward


def check_map(case: tuple[str, dict[str, Any], RewardConfig], folder: Path) -> None:
    """Weights are finite and within their bounds, whatever boxes and scores are; what failed does not count."""
    kind, plain, reward = case
    group_N = torch.tensor(plain["group"])
    group_N = torch.unique(group_N, return_inverse=True)[1]
    count, grid, side = len(group_N), plain["grid"], plain["side"]
    images = torch.full((count, 3, side, side), 0.5)
    images[torch.tensor(plain["broken"])] = torch.nan
    zeros = torch.zeros(count, dtype=torch.int64)
    samples = Samples((), group_N, zeros, images, torch.zeros(count, grid[0] * grid[1], 2), grid)
    owner_R = torch.tensor(plain["owner"], dtype=torch.int64)
    local_R, global_N = torch.tensor(plain["local"]), torch.tensor(plain["global"])
    missing_N = None if plain["missing"] is None else torch.tensor(plain["missing"])
    scores = Scores(
        global_N, 2 * global_N.isnan().long(), local_R, 2 * local_R.isnan().long(), 0 * owner_R - 1, missing_N=missing_N
    )
    regions = Regions(owner_R, torch.tensor(plain["boxes"], dtype=torch.float32).reshape(-1, 4))
    made = token_weights(kind, Judged(samples, regions, scores), reward)
    assert not bool((made.counts_N & (global_N.isnan() | torch.tensor(plain["broken"]))).any())
    if kind == "positive" and made.map_Nhw is not None:
        whole_R = regions.boxes_R4.isfinite().all(dim=1)
        kept = replace(scores, local_R=local_R[whole_R])
        fewer = Judged(samples, Regions(owner_R[whole_R], regions.boxes_R4[whole_R]), kept)
        without = token_weights(kind, fewer, reward).map_Nhw
        assert without is not None and torch.equal(made.map_Nhw, without), "a broken box was painted"
    if made.map_Nhw is not None:
        assert tuple(made.map_Nhw.shape) == (count, *grid)
        assert bool(made.map_Nhw.isfinite().all()), made.map_Nhw
        bound = 1.0 if kind != "group" else math.inf
        assert bool((made.map_Nhw.abs() <= bound + 1e-6).all()), made.map_Nhw
    if made.partner_N is not None:
        assert bool(((made.partner_N >= 0) & (made.partner_N < count)).all())


_ANSWER = {
    "choices": [
        {
            "message": {"content": "fine", "refusal": None},
            "finish_reason": "stop",
            "logprobs": {
                "content": [{"token": "Yes", "logprob": -0.1, "top_logprobs": [{"token": "no", "logprob": -2.0}]}]
            },
        }
    ],
    "error": {"message": "x"},
}


def check_answer(text: str, folder: Path) -> None:
    """What a server answers is a reply, or a broken one; probabilities are shares."""
    assert isinstance(error_text(text.encode("utf-8", "surrogatepass")), str)
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return
    refused = 0
    try:
        assert isinstance(read_text(answer).text, str)
    except (BrokenReply, NoReply):
        refused += 1
    try:
        assert all(is_share(value) for value in read_probabilities(answer, ("Yes", "yes", "No", "no")))
    except (BrokenReply, NoReply):
        refused += 1


def _index_with(line: int, key: str, value: Any) -> tuple[str, bytes]:
    index, tar = _rollouts()
    lines = [json.loads(text) for text in index.splitlines()]
    lines[line][key] = value
    return "".join(json.dumps(each) + "\n" for each in lines), tar


_BROKEN_BOX = {
    "group": [0],
    "owner": [0],
    "boxes": [[math.nan, 0.0, 1.0, 1.0]],
    "local": [1.0],
    "global": [0.3],
    "missing": None,
    "broken": [False],
    "grid": (2, 2),
    "side": 8,
}
TARGETS = (
    Target(
        "states",
        make_state,
        check_state,
        6,
        60,
        known=("[" * 100_000, '{"format": ' + "9" * 5000 + "}"),
        refusals=(CorruptCheckpoint,),
    ),
    Target(
        "rollouts",
        make_rollouts,
        check_rollouts,
        1.2,
        60,
        known=(
            ("[" * 100_000, b""),
            *(_index_with(*said) for said in ((0, "images_per_prompt", None), (0, "grid", [2]), (1, "policy", None))),
        ),
    ),
    Target("maps", make_map, check_map, 2.5, 80, known=(("positive", _BROKEN_BOX, RewardConfig()),)),
    Target(
        "answers",
        lambda make: make.json(make.changed(_ANSWER)),
        check_answer,
        4,
        80,
        known=(
            '{"error": ' + "[" * 100_000 + "}",
            json.dumps({"choices": [{"logprobs": {"content": [{"token": "a", "logprob": 10**400}]}}]}),
        ),
    ),
)
