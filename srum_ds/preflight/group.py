"""Looks at ranks together, under a launcher: that they are of one kind, their clocks, how fast they talk."""

from __future__ import annotations

import platform
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any

import torch
import torch.distributed as dist

from srum_ds.common import ranks
from srum_ds.engine import compute_device
from srum_ds.preflight.findings import Finding, State, error, ok, warning

SKEW = 1.0
"""Seconds by which clocks may differ: beyond, heartbeats and logs of nodes tell different times."""
REPEATS = 5
MESSAGE = {"cpu": 32 << 20, "cuda": 256 << 20}
"""Bytes of a rank's message, by the kind of device."""
SLOW = {"cpu": 0.1e9, "cuda": 10e9}
"""Bytes/s of the bus below which a collective is slow for ranks on one node."""
SLOW_BETWEEN_NODES = 1e9


def look_at_group() -> Iterator[Finding]:
    """Ranks' versions, clocks and bandwidths; all ranks call it, and get the same."""
    yield from _of_one_kind()
    yield from _clocks()
    device = compute_device()
    count = ranks.world_size()
    nodes = len(set(_gathered(socket.gethostname())))
    slow = SLOW_BETWEEN_NODES if nodes > 1 else SLOW.get(device.type, SLOW["cuda"])
    size = MESSAGE.get(device.type, MESSAGE["cuda"])
    message = torch.ones(size // 4, device=device)
    seconds = _fastest(lambda: dist.all_reduce(message), device)
    # Each byte crosses the bus 2 (n - 1) / n times in a ring, as NCCL's tests count it.
    yield _told("all-reduce", 2 * (count - 1) / count * size / seconds, size, seconds, slow, nodes)
    parts = [torch.empty_like(message) for _ in range(count)]
    seconds = _fastest(lambda: dist.all_gather(parts, message), device)
    yield _told("all-gather", (count - 1) * size / seconds, size, seconds, slow, nodes)


def _told(part: str, speed: float, size: int, seconds: float, slow: float, nodes: int) -> Finding:
    said = f"{speed / 1e9:.2f} GB/s of bus ({size >> 20} MB a rank in {seconds * 1e3:.1f} ms, {nodes} node(s))"
    figures = {"bus_bytes_per_second": speed, "seconds": seconds, "message_bytes": float(size)}
    if speed >= slow:
        return ok(part, said).with_figures(figures)
    cure = "see to the network adapters (NCCL_SOCKET_IFNAME, NCCL_IB_HCA)" if nodes > 1 else "see what else runs here"
    return warning(part, f"{said}, less than {slow / 1e9:g}: {cure}").with_figures(figures)


def _fastest(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of some calls, as the slowest rank has it."""
    best = float("inf")
    for _ in range(REPEATS):
        dist.barrier()
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    slowest = max(_gathered(best))
    return float(slowest)


def _gathered(value: Any) -> list[Any]:
    """Every rank's value, in their order."""
    found: list[Any] = [None] * ranks.world_size()
    dist.all_gather_object(found, value)
    return found


def _of_one_kind() -> Iterator[Finding]:
    own = {
        "python": platform.python_version(),
        **{name: _version(name) for name in ("srum-ds", "torch", "deepspeed", "transformers")},
        "device": compute_device().type,
    }
    found = _gathered(own)
    hosts = _gathered(socket.gethostname())
    differing = [key for key in own if len({one[key] for one in found}) > 1]
    for key in differing:
        listed = ", ".join(sorted({f"{host} has {one[key]}" for host, one in zip(hosts, found, strict=True)}))
        yield error("ranks", f"{key} differs between ranks: {listed}; install the same everywhere")
    if not differing:
        nodes = sorted(set(hosts))
        yield ok("ranks", f"{len(found)} on {len(nodes)} node(s) ({', '.join(nodes)}), of the same versions")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def _clocks() -> Iterator[Finding]:
    spreads = []
    for _ in range(REPEATS):
        dist.barrier()
        now = _gathered(time.time())
        spreads.append(max(now) - min(now))
    # Ranks leave a barrier within milliseconds: the least spread is what their clocks differ by, at most.
    spread = min(spreads)
    said = f"ranks' clocks differ by {spread * 1e3:.1f} ms at most"
    figures = {"seconds": spread}
    if spread > SKEW:
        yield warning("clocks", f"{said}: start chrony or ntpd on the nodes").with_figures(figures)
    else:
        yield ok("clocks", said).with_figures(figures)


def of_all_nodes(own: Sequence[Finding]) -> list[Finding]:
    """The first rank's findings, and of the other nodes what is not ok, by their host's name; all ranks call it."""
    found = _gathered((socket.gethostname(), list(own)))
    listed = list(found[0][1])
    said = {(finding.part, finding.text) for finding in listed}
    for host, findings in found[1:]:
        for finding in findings:
            if finding.state in (State.WARNING, State.ERROR) and (finding.part, finding.text) not in said:
                said.add((finding.part, finding.text))
                listed.append(Finding(finding.part, finding.state, f"{host}: {finding.text}", finding.figures))
    return listed
