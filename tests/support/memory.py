"""Bytes of tensors alive in this process, tracked operation by operation; used by tests/integration/sharding_worker.py.

Resident memory would not do: what an allocator keeps or gives back is its own affair, and differs from run to run.
"""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_PATIENCE_SECONDS = 5.0


@dataclass
class Figures:
    """Bytes above those at the start: of tensors, at their highest and at the end; of Python objects, if asked."""

    tensor_peak: int = 0
    tensors_stayed: int = 0
    python_peak: int = 0


class TensorBytes(TorchDispatchMode):
    """While it is entered, ``alive`` is the number of bytes in storages that an operation has made or met.

    A storage counts from the first operation that gives or takes it until it is freed, whoever holds it; views of one
    storage count once. Pages of mapped files, which the system takes back when it likes, do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self._highest = 0
        self._limit = 0
        self._patience = 0.0
        self._lock = threading.RLock()
        self._sizes: dict[int, int] = {}
        self._references: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # A storage that comes from outside may be a window on a file.
        for tensor in _tensors((args, kwargs)):
            self._meet(tensor.untyped_storage(), made_here=False)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._meet(tensor.untyped_storage(), made_here=func is not torch.ops.aten.set_.source_Storage)
        self._wait_for_other_threads()
        self._highest = max(self._highest, self.alive)
        return result

    def _meet(self, storage: torch.UntypedStorage, made_here: bool) -> None:
        key = storage._cdata
        if key in self._references or storage.device.type == "meta":
            return
        size = storage.nbytes() if made_here or not _is_mapped_file(storage.data_ptr()) else 0
        with self._lock:
            self._references[key] = weakref.ref(storage, lambda _: self._forget(key))
            self._sizes[key] = size
            self.alive += size

    def _forget(self, key: int) -> None:
        with self._lock:
            self.alive -= self._sizes.pop(key)
            del self._references[key]

    def _wait_for_other_threads(self) -> None:
        """A collective's own thread may hold a tensor for a moment after its caller has been woken.

        What exceeds the limit therefore counts only if it is still there after a while. All such waiting together
        has an end, so that a model which really exceeds its limit is soon found out.
        """
        while self.alive > self._limit and self._patience > 0:
            time.sleep(0.001)
            self._patience -= 0.001

    @contextmanager
    def measured(self, limit: float, python: bool = False) -> Iterator[Figures]:
        """Fills in the figures of the block when it ends.

        limit: the peak of tensors that it must not exceed. python: whether to trace Python's own memory, which is slow.
        """
        gc.collect()
        figures = Figures()
        before = self._highest = self.alive
        self._limit = before + int(limit)
        self._patience = _PATIENCE_SECONDS
        if python:
            tracemalloc.start()
        yield figures
        gc.collect()
        if python:
            figures.python_peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        figures.tensor_peak = self._highest - before
        figures.tensors_stayed = self.alive - before


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)


def _is_mapped_file(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split()
        first, last = (int(bound, 16) for bound in words[0].split("-"))
        if first <= address < last:
            return len(words) > 5 and words[5].startswith("/")
    return False
