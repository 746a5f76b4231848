"""What an accelerator would be asked to do: launches, waits, copies and attention calls, by line of ``srum_ds``.

The emulated device reports every operation here (``dispatch.py``); ``counted()`` collects what is reported inside it.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

PACKAGE = "/srum_ds/"
"""What the path of a line of the project contains."""


@dataclass(frozen=True)
class Line:
    """A line of the package; ``number`` 0 where the caller is none of it (a test that calls torch itself)."""

    file: str
    function: str
    number: int

    def __str__(self) -> str:
        return f"{self.file}:{self.number}"

    @property
    def place(self) -> str:
        """File and function: what stays when lines are added above."""
        return f"{self.file} {self.function}"


ELSEWHERE = Line("outside srum_ds", "", 0)


@dataclass
class Tally:
    """Sums over some operations; bytes are those copied.

    launches: kernels, at least (an operation that needs several counts once). syncs: waits for a result on the host.
    uploads: copies from the host to the device, of which ``blocking_uploads`` wait for all that the device has queued,
    as CUDA's do without ``non_blocking``. downloads: copies to the host.
    """

    launches: int = 0
    syncs: int = 0
    uploads: int = 0
    blocking_uploads: int = 0
    upload_bytes: int = 0
    downloads: int = 0
    download_bytes: int = 0

    def add(self, other: Tally) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def minus(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, each.name) - getattr(other, each.name) for each in fields(self)))


@dataclass(frozen=True)
class Download:
    """One copy from the device to the host, of which nothing larger than it needs to be should be made."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int
    line: Line


@dataclass(frozen=True)
class AttentionCall:
    """One attention kernel. query, key: shapes as given; mask_bytes: of a dense mask, 0 without one.

    kernel: ``sdpa`` ([B, heads, tokens, head]) or ``varlen`` ([tokens, heads, head]).
    """

    kernel: str
    query: tuple[int, ...]
    key: tuple[int, ...]
    dtype: torch.dtype
    causal: bool
    mask_bytes: int
    line: Line

    @property
    def masked(self) -> bool:
        return self.mask_bytes > 0

    @property
    def keys(self) -> int:
        """Keys of the call: of a sample for ``sdpa``, of all samples for ``varlen``."""
        return self.key[-2] if self.kernel == "sdpa" else self.key[0]


@dataclass
class Counts:
    """What was asked of the emulated device while this was collecting."""

    lines: dict[Line, Tally] = field(default_factory=lambda: defaultdict(Tally))
    kernels: Counter[str] = field(default_factory=Counter)
    attention: list[AttentionCall] = field(default_factory=list)
    downloaded: list[Download] = field(default_factory=list)
    devices: set[int] = field(default_factory=set)

    @property
    def total(self) -> Tally:
        total = Tally()
        for tally in self.lines.values():
            total.add(tally)
        return total

    @property
    def launches(self) -> int:
        return self.total.launches

    @property
    def syncs(self) -> int:
        return self.total.syncs

    @property
    def uploads(self) -> int:
        return self.total.uploads

    @property
    def blocking_uploads(self) -> int:
        return self.total.blocking_uploads

    @property
    def largest_download(self) -> Download | None:
        return max(self.downloaded, key=lambda copy: copy.bytes, default=None)

    def by_line(self) -> dict[str, Tally]:
        """Tallies by ``file:line``."""
        found: dict[str, Tally] = defaultdict(Tally)
        for line, tally in self.lines.items():
            found[str(line)].add(tally)
        return dict(found)

    def by_place(self) -> dict[str, Tally]:
        """Tallies by ``file function``."""
        found: dict[str, Tally] = defaultdict(Tally)
        for line, tally in self.lines.items():
            found[line.place].add(tally)
        return dict(found)

    def where(self, what: str) -> str:
        """The lines with some of one of ``Tally``'s counts, the most first, for an assertion's message."""
        ranked = sorted(((getattr(t, what), str(line)) for line, t in self.lines.items()), reverse=True)
        return "\n".join([f"{what}:", *(f"  {count:8d}  {line}" for count, line in ranked if count)])


_collecting: list[Counts] = []


@contextmanager
def counted(counts: Counts | None = None) -> Iterator[Counts]:
    """Collects what is asked of the emulated device inside, on top of ``counts``; blocks may stand in one another."""
    counts = Counts() if counts is None else counts
    _collecting.append(counts)
    try:
        yield counts
    finally:
        _collecting[:] = [each for each in _collecting if each is not counts]


def current_line() -> Line:
    """The innermost line of ``srum_ds`` on the stack; ``ELSEWHERE`` where there is none.

    Backward passes run in the caller's thread (see ``emulation``), so theirs is the line that asked for gradients,
    or the one inside a backward of the package's own.
    """
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        at = code.co_filename.rfind(PACKAGE)
        if at >= 0:
            return Line(code.co_filename[at + 1 :], code.co_qualname, frame.f_lineno)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ELSEWHERE


def size_of(tensor: Tensor) -> int:
    """Bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()


def report(device: int, launched: str | None = None, synced: bool = False) -> None:
    """One operation on a device: its kernel, if it launches one, and whether the host waits for it."""
    if not _collecting:
        return
    line = current_line() if launched or synced else ELSEWHERE
    for counts in _collecting:
        counts.devices.add(device)
        if launched:
            counts.lines[line].launches += 1
            counts.kernels[launched] += 1
        if synced:
            counts.lines[line].syncs += 1


def report_upload(size: int, blocking: bool) -> None:
    """A copy of ``size`` bytes from the host to the device."""
    line = current_line() if _collecting else ELSEWHERE
    for counts in _collecting:
        tally = counts.lines[line]
        tally.uploads += 1
        tally.blocking_uploads += blocking
        tally.upload_bytes += size


def report_download(source: Tensor, blocking: bool = True) -> None:
    """A copy of ``source`` to the host, which waits for it where it is ``blocking``."""
    if not _collecting:
        return
    line = current_line()
    copy = Download(tuple(source.shape), source.dtype, size_of(source), line)
    for counts in _collecting:
        tally = counts.lines[line]
        tally.syncs += blocking
        tally.downloads += 1
        tally.download_bytes += copy.bytes
        counts.downloaded.append(copy)


def report_attention(kernel: str, query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> None:
    """An attention call. ``mask``: the dense one, if any."""
    if not _collecting:
        return
    size = 0 if mask is None else size_of(mask)
    call = AttentionCall(kernel, tuple(query.shape), tuple(key.shape), query.dtype, causal, size, current_line())
    for counts in _collecting:
        counts.attention.append(call)
