"""Reading prompts in an order without state.

What step ``s`` of a run sees is a pure function of (seed, global sample index): nothing is saved
for resume, and any number of ranks and workers sees the same union of prompts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from srum_ds.common.errors import UserError
from srum_ds.common.files import refuse_special
from srum_ds.common.seeds import derive
from srum_ds.prompts.shards import Sample, check_sizes, load_index, prompt_from_json, require_unchanged
from srum_ds.types import Prompt


@lru_cache(maxsize=4)
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation of 0..count-1 (int64), a function of its arguments alone.

    Sorts the raw stream of a PCG64, which numpy keeps the same between versions (it does not
    promise that for ``Generator.permutation``).
    """
    bits = np.random.PCG64(derive("order", seed, epoch)).random_raw(count)
    return np.argsort(bits, kind="stable")


def global_indices(step: int, prompts_per_step: int, rank: int = 0, world_size: int = 1) -> range:
    """Global sample indices that ``rank`` takes in ``step``: its contiguous slice of the step's batch.

    Raises UserError where ``prompts_per_step`` cannot be divided among the ranks.
    """
    if prompts_per_step < 1 or prompts_per_step % world_size:
        raise UserError(
            f"rollout.prompts_per_step={prompts_per_step} cannot be divided among {world_size} ranks; "
            f"choose a multiple of {world_size}"
        )
    if step < 0 or not 0 <= rank < world_size:
        raise ValueError(f"step {step}, rank {rank} of {world_size}: out of range")
    share = prompts_per_step // world_size
    start = step * prompts_per_step + rank * share
    return range(start, start + share)


class PromptReader:
    """The prompts of one split of a folder of shards, by position and by step.

    Opens the index and checks that every shard is there at its full size, and each shard's SHA-256 when it is opened;
    raises UserError otherwise. Safe to send to worker processes and to use from several threads.
    """

    def __init__(self, folder: Path | str, split: str):
        self.folder = Path(folder)
        self.split = split
        splits = load_index(self.folder)
        if split not in splits:
            raise UserError(f"{self.folder}: no split {split!r}; there are {', '.join(sorted(splits))}")
        shards = splits[split]
        if not any(shard.samples for shard in shards):
            raise UserError(f"{self.folder}: the split {split!r} is empty; write it anew with `srum-ds shards write`")
        check_sizes(self.folder, shards)
        self._sha256 = {shard.file: shard.sha256 for shard in shards}
        self._samples: list[tuple[str, Sample]] = [(shard.file, s) for shard in shards for s in shard.samples]
        self._position = {sample.key: i for i, (_, sample) in enumerate(self._samples)}
        self._descriptors: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, position: int) -> Prompt:
        """The prompt at ``position`` in the order of the shards."""
        file, sample = self._samples[position]
        where = f"{self.folder / file}: {sample.key}.json at byte {sample.offset}"
        data = self._read(file, sample, where)
        prompt = prompt_from_json(data, where)
        if prompt.id != sample.key:
            raise UserError(f"{where}: holds the prompt {prompt.id!r}; `srum-ds shards check` says more")
        return prompt

    def __iter__(self) -> Iterator[Prompt]:
        return (self[i] for i in range(len(self)))

    def batch(self, step: int, prompts_per_step: int, seed: int, rank: int = 0, world_size: int = 1) -> list[Prompt]:
        """The prompts that ``rank`` takes in ``step``.

        Global sample index g = step * prompts_per_step + i lies in epoch g // len(self), at
        ``permutation(len(self), seed, epoch)[g % len(self)]``. Each epoch sees every prompt once.
        """
        prompts = []
        for g in global_indices(step, prompts_per_step, rank, world_size):
            epoch, place = divmod(g, len(self))
            prompt = self[int(permutation(len(self), seed, epoch)[place])]
            prompts.append(replace(prompt, epoch=epoch))
        return prompts

    def close(self) -> None:
        """Closes the shards; they open again at the next read."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors = {}

    def _read(self, file: str, sample: Sample, where: str) -> bytes:
        try:
            if file not in self._descriptors:
                self._descriptors[file] = self._opened(file)
            # pread keeps no position, so that processes and threads can share the descriptor.
            data = os.pread(self._descriptors[file], sample.size, sample.offset)
        except OSError as error:
            raise UserError(f"{where}: cannot be read ({error.strerror}); is it still there?") from error
        if len(data) != sample.size:
            raise UserError(
                f"{where}: truncated: expected {sample.size} bytes, found {len(data)}; "
                "copy the shard again, or write it anew with `srum-ds shards write`"
            )
        return data

    def __enter__(self) -> PromptReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _opened(self, file: str) -> int:
        """The descriptor of a shard that is what the index says."""
        path = self.folder / file
        refuse_special(path)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            with open(descriptor, "rb", closefd=False) as stream:
                require_unchanged(path, hashlib.file_digest(stream, "sha256").hexdigest(), self._sha256[file])
        except (OSError, UserError):
            os.close(descriptor)
            raise
        return descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptors": {}}
