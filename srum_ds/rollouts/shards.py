"""Rollout shards: what a step drew and how it was judged, kept for training later or elsewhere.

    DIR/index.jsonl                      first line: who made it; then one line a finished step
        config.yaml                      the settings, resolved
        step-000000-rank-00000.tar       what rank 0 drew in step 0 (see ``codec``)

The index's line is what makes a step exist: it is written, and on the disk, once every rank's tar is.
Whatever was stopped in between leaves tars that no line lists, which the next writer removes. A reader
of any world size takes the same images in the same order, whatever ranks wrote them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from webdataset import TarWriter

from srum_ds.common import ranks
from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes, replacing, write_atomic
from srum_ds.common.texts import parse_json
from srum_ds.config.marks import find_template
from srum_ds.prompts.shards import Shard, check_sizes, scan_tar, shard_from_json, shard_to_json
from srum_ds.rollouts.codec import EXTENSIONS, decode, encode, sample_key
from srum_ds.types import Judged, TokenSpec

FORMAT = "srum-ds-rollout-shards"
VERSION = 2
"""2: the header says what a token is; 1 knew continuous tokens alone."""
INDEX = "index.jsonl"
_COPY = "copy the folder again, or write it anew with `srum-ds rollout`"


@dataclass(frozen=True)
class StepEntry:
    """A finished step: which drawing weights made it (they are counted, 0 the first), and its tars."""

    step: int
    policy: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Header:
    """What all steps of a folder share; the fields are JSON's.

    ``tokens``: what one token is. ``model``: SHA-256 of the model folder that ``model.path`` named. ``settings``:
    what drew and judged, key by key. ``judge``: its readout, and name and hash of its questions. ``made_by``: package
    and commit.
    """

    seed: int
    model: str
    prompts_per_step: int
    images_per_prompt: int
    grid: tuple[int, int]
    tokens: TokenSpec
    settings: Mapping[str, Any]
    judge: Mapping[str, Any]
    made_by: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def differences(self, other: Header) -> list[str]:
        """What differs, in words: "name was this and is now that"."""
        names = [f.name for f in fields(self) if f.compare and f.name != "settings"]
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        keys = dict.fromkeys([*self.settings, *other.settings])
        pairs += [(key, self.settings.get(key), other.settings.get(key)) for key in keys]
        return [f"{name} was {old!r} and is now {new!r}" for name, old, new in pairs if old != new]


@dataclass
class Index:
    """The header and the finished steps of a folder."""

    header: Header
    steps: dict[int, StepEntry]


def load_index(folder: Path) -> Index:
    """Reads ``folder/index.jsonl``; a last line torn by a kill is no step. UserError on a bad index."""
    path = folder / INDEX
    try:
        lines = file_bytes(path).split(b"\n")
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: missing. {folder} is no folder of rollouts; write one with `srum-ds rollout`"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    steps = {}
    try:
        header = _read_header(parse_json(lines[0]))
        # Every whole line ends in a newline, so what follows the last one was cut off.
        for line in lines[1:-1]:
            item = parse_json(line)
            shards = tuple(shard_from_json(shard) for shard in item["shards"])
            step = _count(item["step"], "step")
            steps[step] = StepEntry(step, _count(item["policy"], "policy"), shards)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: not an index of rollouts ({error!r}); {_COPY}") from error
    return Index(header, steps)


class RolloutWriter:
    """Writes a folder of rollouts, all ranks together. A folder that was begun goes on."""

    def __init__(self, folder: Path, header: Header, keep: Iterable[int] | None = None) -> None:
        """Makes the folder, or takes up what is there: ``keep`` says which steps stay (default: all).

        Steps that go, and tars of no step, are removed. Raises UserError, on all ranks, where the
        folder holds rollouts with another header.
        """
        self.folder = folder
        self.header = header
        ranks.run_on_all_ranks(lambda: self._begin(None if keep is None else set(keep)), rank_zero=True)
        found: list[Index] = []
        ranks.run_on_all_ranks(lambda: found.append(load_index(folder)))
        self.index = found[0]

    def _begin(self, keep: set[int] | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        entries: list[StepEntry] = []
        if (self.folder / INDEX).exists():
            found = load_index(self.folder)
            self._check_header(found.header)
            entries = [entry for step, entry in found.steps.items() if keep is None or step in keep]
        lines = [_header_line(self.header), *(_step_line(entry) for entry in entries)]
        write_atomic(self.folder / INDEX, "".join(lines))
        listed = {shard.file for entry in entries for shard in entry.shards}
        for path in self.folder.glob("*.tar"):
            if path.name not in listed:
                path.unlink()

    def _check_header(self, found: Header) -> None:
        changed = found.differences(self.header)
        if changed:
            raise UserError(
                f"{self.folder} holds rollouts of other settings: {'; '.join(changed)}. Give the settings they were "
                f"made with, or choose another folder."
            )

    def write(self, step: int, policy: int, batches: Sequence[Judged]) -> None:
        """Writes this rank's micro-batches of a step and, when all ranks have, the step's line.

        Raises UserError on all ranks where one cannot write; the steps before are untouched.
        """
        entry = StepEntry(step, policy, tuple(ranks.run_on_all_ranks(lambda: self._write_tar(step, policy, batches))))
        ranks.run_on_all_ranks(lambda: self._append(_step_line(entry)), rank_zero=True)
        self.index.steps[step] = entry

    def _write_tar(self, step: int, policy: int, batches: Sequence[Judged]) -> Shard:
        path = self.folder / f"step-{step:06d}-rank-{ranks.rank():05d}.tar"
        place = ranks.rank() * (self.header.prompts_per_step // ranks.world_size())
        h = self.header
        made = {**h.made_by, "model": h.model, "policy": policy, "judge": h.judge, "settings": h.settings}
        with replacing(path) as stream, TarWriter(stream, user="root", group="root", mtime=0, encoder=False) as tar:
            for judged in batches:
                for sample in encode(judged, step, place, self.header.seed, made):
                    tar.write(sample)
                place += len(judged.samples.prompts)
        return scan_tar(path, EXTENSIONS)

    def _append(self, line: str) -> None:
        with open(self.folder / INDEX, "ab") as stream:
            stream.write(line.encode())
            stream.flush()
            os.fsync(stream.fileno())


class RolloutReader:
    """Reads a folder of rollouts by step, rank and world size."""

    def __init__(self, folder: Path, index: Index | None = None) -> None:
        """index: a writer's, to read what it is still writing (default: as it stands in the folder)."""
        self.folder = folder
        self.index = load_index(folder) if index is None else index

    @property
    def header(self) -> Header:
        """What all steps share."""
        return self.index.header

    def check(self, steps: range) -> None:
        """Raises UserError naming steps that are not there, and tars that are missing or cut off."""
        missing = [step for step in steps if step not in self.index.steps]
        if missing:
            raise UserError(
                f"{self.folder} holds {len(self.index.steps)} steps, and {len(missing)} of the steps {steps.start} to "
                f"{steps.stop - 1} are not among them, the first being {missing[0]}. Repeat the `srum-ds rollout` that "
                f"wrote it, or train fewer steps (train.steps={missing[0]})."
            )
        check_sizes(self.folder, [shard for step in steps for shard in self.index.steps[step].shards], _COPY)

    def policy(self, step: int) -> int:
        """Which drawing weights made a step, counted from 0."""
        return self.index.steps[step].policy

    def batches(self, step: int, micro_batch_prompts: int, rank: int = 0, world_size: int = 1) -> list[Judged]:
        """The micro-batches that ``rank`` of ``world_size`` takes in a step, as that rank would have drawn them.

        Raises UserError for a tar that is not what the index says and for samples that are missing.
        """
        share = self.header.prompts_per_step // world_size
        places = range(rank * share, (rank + 1) * share)
        members = self._members(step, places)
        batches = []
        for start in range(places.start, places.stop, micro_batch_prompts):
            group = range(start, min(start + micro_batch_prompts, places.stop))
            keys = [sample_key(step, place, k) for place in group for k in range(self.header.images_per_prompt)]
            batches.append(decode([members[key] for key in keys], f"{self.folder}, step {step}"))
        return batches

    def _members(self, step: int, places: range) -> dict[str, dict[str, bytes]]:
        """Sample key -> extension -> bytes, of the places asked for."""
        there = {sample.key.partition(".")[0] for shard in self.index.steps[step].shards for sample in shard.samples}
        wanted = set()
        # One after the other: a damaged header may ask for more than memory holds.
        for key in (sample_key(step, place, k) for place in places for k in range(self.header.images_per_prompt)):
            if key not in there:
                raise UserError(f"{self.folder}: step {step} has no sample {key}; {_COPY}")
            wanted.add(key)
        found: dict[str, dict[str, bytes]] = {}
        for shard in self.index.steps[step].shards:
            own = [sample for sample in shard.samples if sample.key.partition(".")[0] in wanted]
            if not own:
                continue
            data = self._verified(shard)
            for sample in own:
                key, _, extension = sample.key.partition(".")
                found.setdefault(key, {})[extension] = data[sample.offset : sample.offset + sample.size]
        return found

    def _verified(self, shard: Shard) -> bytes:
        path = self.folder / shard.file
        try:
            data = file_bytes(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); {_COPY}") from error
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            raise UserError(f"{path}: changed since it was written (SHA-256 differs); {_COPY}")
        return data


def _read_header(head: dict[str, Any]) -> Header:
    """The header of an index; ValueError for another format or a newer version."""
    found, version = head.pop("format"), head.pop("version")
    if found != FORMAT or version not in (1, VERSION):
        raise ValueError(f"format {found!r} version {version!r}, expected {FORMAT} version 1 to {VERSION}")
    if version == 1:
        tokens = TokenSpec("continuous", head.pop("token_channels"))
        # Version 1 named the package's templates by their former path.
        settings = {
            key: find_template(value) if key.endswith("_template") and isinstance(value, str) else value
            for key, value in head.pop("settings").items()
        }
        return _checked(Header(**{**head, "grid": tuple(head["grid"])}, tokens=tokens, settings=settings))
    spec = head.pop("tokens")
    return _checked(Header(**{**head, "grid": tuple(head["grid"])}, tokens=TokenSpec(spec["kind"], spec["size"])))


def _checked(header: Header) -> Header:
    """The header, whose every field is of its kind; ValueError naming one that is not."""
    for name, value, least in (
        ("prompts_per_step", header.prompts_per_step, 1),
        ("images_per_prompt", header.images_per_prompt, 1),
        ("tokens", header.tokens.size, 1),
        ("seed", header.seed, None),
        *(("grid", side, 1) for side in header.grid),
    ):
        if type(value) is not int or (least is not None and value < least):
            raise ValueError(f"{name} is {value!r}")
    if len(header.grid) != 2 or header.tokens.kind not in ("continuous", "discrete"):
        raise ValueError(f"grid {header.grid!r}, tokens {header.tokens!r}")
    if not isinstance(header.model, str):
        raise ValueError(f"model is {header.model!r}")
    for name, fields_of in (("settings", header.settings), ("judge", header.judge), ("made_by", header.made_by)):
        if not isinstance(fields_of, dict):
            raise ValueError(f"{name} is {fields_of!r}")
        # A setting that is NaN differs from itself: nobody could go on with such a folder.
        json.dumps(fields_of, allow_nan=False)
    return header


def _count(value: Any, name: str) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} is {value!r}")
    return value


def _header_line(header: Header) -> str:
    record = {"format": FORMAT, "version": VERSION, **vars(header), "tokens": vars(header.tokens)}
    return json.dumps(record, separators=(",", ":")) + "\n"


def _step_line(entry: StepEntry) -> str:
    record = {"step": entry.step, "policy": entry.policy, "shards": [shard_to_json(s) for s in entry.shards]}
    return json.dumps(record, separators=(",", ":")) + "\n"
