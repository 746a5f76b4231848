"""What the parts share: where they run, how they time and profile, and how they note a figure."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from srum_ds.common.environment import cpu_model
from srum_ds.kernels.dispatch import active
from srum_ds.kernels.selfcheck import MODULES, check_kernels, load_kernel
from srum_ds.planning.hardware import peak_of

L2_BYTES = 256 << 20
"""Written between timed calls, so that none finds its input in the cache of the last one."""

HEAD_START_CYCLES = 4_000_000
"""Of the GPU's clock, 2 ms, that it waits before a timed call, so that what the host takes to launch is not timed."""

ATTENTION = re.compile(r"flash|fmha|attention|sdpa|cudnn.*mha", re.IGNORECASE)


class Figures:
    """Figures of a part. Each is on disk as soon as it is set, so that a part that is ended leaves what it had."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __setitem__(self, name: str, value: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: value}) + "\n")


class Where:
    """The device of a part. rehearse: the CPU, everything scaled down."""

    def __init__(self, rehearse: bool) -> None:
        self.rehearse = rehearse
        self.device = torch.device("cpu") if rehearse else torch.device("cuda", 0)
        self._flushed: Tensor | None = None

    def described(self) -> str:
        """The device's name."""
        return cpu_model() if self.rehearse else torch.cuda.get_device_name(self.device)

    def scaled(self, full: int, small: int) -> int:
        """A size: ``full`` on a GPU, ``small`` in a rehearsal."""
        return small if self.rehearse else full

    @property
    def peak(self) -> float | None:
        """FLOP/s of bf16 products that the table has for this device; None where it has none, and in a rehearsal."""
        return None if self.rehearse else peak_of(self.device, "bf16")[0]

    def mfu(self, flops: float, milliseconds: float) -> float | None:
        """FLOPs in so many milliseconds as a share of the peak."""
        return None if self.peak is None else round(flops / (milliseconds / 1e3) / self.peak, 4)

    def synchronize(self) -> None:
        if not self.rehearse:
            torch.cuda.synchronize(self.device)

    def milliseconds(self, work: Callable[[], object], budget: float = 150.0, cold: bool = False) -> float:
        """Median time of a call, after two that are not counted; about ``budget`` ms in all, at least 3 calls.

        cold: the second-level cache is overwritten before each call, and all its launches wait on the device before
        the first begins, as they do in a pass of a large model.
        """
        if self.rehearse:
            return round(_wall(work), 3)
        for _ in range(2):
            once = _wall(work, self.synchronize)
        times = []
        for _ in range(max(3, min(50, int(budget / max(once, 0.05))))):
            if cold:
                self._flush()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            times.append((begin, end))
        self.synchronize()
        return round(statistics.median(begin.elapsed_time(end) for begin, end in times), 4)

    def host_milliseconds(self, work: Callable[[], object]) -> float:
        """Median time until a call returns, which does not wait for what it launched."""
        times = []
        for _ in range(1 if self.rehearse else 20):
            self.synchronize()
            times.append(_wall(work))
        return round(statistics.median(times), 4)

    def _flush(self) -> None:
        if self._flushed is None:
            self._flushed = torch.empty(L2_BYTES, dtype=torch.int8, device=self.device)
        torch.cuda._sleep(HEAD_START_CYCLES)
        self._flushed.zero_()

    # ---- memory

    def begin_peak(self) -> int:
        """Forgets the highest mark; bytes that are allocated now."""
        if self.rehearse:
            return 0
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def peak_bytes(self) -> int | None:
        """The most bytes of tensors since ``begin_peak``; None in a rehearsal."""
        if self.rehearse:
            return None
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.device)

    # ---- kernels

    def working_kernels(self) -> tuple[dict[str, Callable[..., Any]], dict[str, str]]:
        """The fused kernels that pass their check here, and why the others do not; in a rehearsal all, unchecked."""
        if self.rehearse:
            return {name: load_kernel(name) for name in MODULES}, {}
        checked = check_kernels(self.device)
        return checked.works, checked.broken

    @contextmanager
    def fused(self, kernels: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
        """Inside, these kernels stand in for their references."""
        with active(kernels, self.device):
            yield

    # ---- profile

    def profiled(self, work: Callable[[], object], count: int = 12) -> dict[str, Any]:
        """One call: names of its attention kernels, and the longest kernels as [name, milliseconds, calls]."""
        on_cpu = self.rehearse
        try:
            with profile(activities=[ProfilerActivity.CPU if on_cpu else ProfilerActivity.CUDA]) as seen:
                work()
                self.synchronize()
        except Exception as error:  # A profiler that may not look must not hide what is measured after it.
            return {"attention_kernels": [], "problem": f"{type(error).__name__}: {error}"[:600]}
        rows = [
            (row.key, (row.self_cpu_time_total if on_cpu else row.self_device_time_total) / 1e3, row.count)
            for row in seen.key_averages()
        ]
        rows.sort(key=lambda row: -row[1])
        return {
            "attention_kernels": [name[:120] for name, _, _ in rows if ATTENTION.search(name)],
            "longest": [[name[:120], round(ms, 3), calls] for name, ms, calls in rows[:count]],
        }


def _wall(work: Callable[[], object], settle: Callable[[], None] = lambda: None) -> float:
    settle()
    begin = time.perf_counter()
    work()
    settle()
    return (time.perf_counter() - begin) * 1e3


def gigabytes(size: float | None) -> float | None:
    """Bytes in GB (1e9), to the megabyte."""
    return None if size is None else round(size / 1e9, 3)
