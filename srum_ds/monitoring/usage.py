"""How well a run uses its devices: rates and shares of a step from counted FLOPs and measured seconds, and their table.

``job`` adds ``rates`` to every step's metrics; the table is made from the lines of ``metrics.jsonl`` when a run ends.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from rich.table import Table

from srum_ds.monitoring.records import read_metrics as read_metrics

PHASES = ("rollout", "judge", "train")
TIME, FLOPS, SPEED = "time_", "flops_", "speed_"
"""Beginnings of keys in ``metrics.jsonl``: seconds, counted FLOPs, and rates, which differ from run to run."""

MEMORY = "memory_peak_bytes"
GATHERED, REDUCED = "bytes_gathered", "bytes_reduced"


def rates(metrics: Mapping[str, Any], ranks: int, peak: float | None, images: int, tokens: int) -> dict[str, float]:
    """A step's rates over all ranks.

    metrics: ``time_*`` of the slowest rank and ``flops_*`` of all ranks. peak: FLOP/s of one device, None where nobody
    knows: then there is no MFU. images, tokens: of the step; a token counts once for each view it is trained in.

    MFU is counted FLOPs / (ranks x peak x seconds), of a phase or of the whole step (PaLM, arXiv 2204.02311).
    """
    seconds = {phase: float(metrics[TIME + phase]) for phase in PHASES if TIME + phase in metrics}
    whole = sum(float(value) for key, value in metrics.items() if key.startswith(TIME))
    if whole <= 0:
        return {}
    found = {SPEED + "images_per_second_per_gpu": images / whole / ranks, SPEED + "tokens_per_second": tokens / whole}
    if peak is None:
        return found
    for phase, took in seconds.items():
        flops = metrics.get(FLOPS + phase)
        if flops and took > 0:
            found[f"{SPEED}mfu_{phase}"] = flops / (ranks * peak * took)
    counted = sum(float(metrics.get(FLOPS + phase, 0.0)) for phase in PHASES)
    if counted:
        found[SPEED + "mfu"] = counted / (ranks * peak * whole)
    return found


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held: of tensors on a GPU since the last call, resident on a CPU."""
    if device.type == "cuda":
        held = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return int(held)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def usage_table(lines: Sequence[Mapping[str, Any]]) -> Table | None:
    """Seconds, FLOPs and MFU by phase over a whole run, and its rates; None where nothing was counted."""
    rows = usage_rows(lines)
    if not rows:
        return None
    table = Table(title=f"use of the devices over {len(lines)} steps")
    for position, heading in enumerate(("phase", "s per step", "share", "TFLOP per step", "MFU")):
        table.add_column(heading, justify="left" if position == 0 else "right", no_wrap=True)
    for number, row in enumerate(rows):
        table.add_row(*row, style="bold" if number == len(rows) - 1 else "")
    caption = usage_rates(lines)
    if caption:
        table.caption = caption
    return table


def usage_rows(lines: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """(phase, seconds, share, TFLOP, MFU) of each phase and of all, as texts; none where no FLOPs were counted."""
    if not any(key.startswith(FLOPS) for line in lines for key in line):
        return []
    names = list(dict.fromkeys(key.removeprefix(TIME) for line in lines for key in line if key.startswith(TIME)))
    seconds = {name: _sum(lines, TIME + name) for name in names}
    flops = {name: _sum(lines, FLOPS + name) for name in names}
    whole = sum(seconds.values())
    count = len(lines)
    rows = []
    for name in names:
        mfu = _mfu(lines, f"{SPEED}mfu_{name}", TIME + name)
        share = seconds[name] / whole if whole else 0.0
        counted = f"{flops[name] / count / 1e12:.3g}" if flops[name] else ""
        rows.append([name, f"{seconds[name] / count:.2f}", f"{share:.0%}", counted, mfu])
    total = sum(flops.values()) / count / 1e12
    rows.append(["step", f"{whole / count:.2f}", "100%", f"{total:.3g}", _mfu(lines, SPEED + "mfu", "")])
    return rows


def usage_rates(lines: Sequence[Mapping[str, Any]]) -> str:
    """Images and tokens per second, peak memory and bytes moved, in a line."""
    images = _mean(lines, SPEED + "images_per_second_per_gpu")
    tokens = _mean(lines, SPEED + "tokens_per_second")
    said = []
    if images is not None and tokens is not None:
        said.append(f"{images:.3g} images/s a rank, {tokens:.3g} trained tokens/s")
    held = [line[MEMORY] for line in lines if MEMORY in line]
    if held:
        said.append(f"at most {max(held) / 1e9:.2f} GB a rank")
    gathered, reduced = _mean(lines, GATHERED), _mean(lines, REDUCED)
    if gathered is not None and reduced is not None:
        said.append(f"{gathered / 1e9:.3g} GB gathered and {reduced / 1e9:.3g} GB reduced a rank and step")
    return "; ".join(said)


def _mfu(lines: Sequence[Mapping[str, Any]], key: str, time_key: str) -> str:
    """The mean MFU of a phase ("": of the step), each step weighed by its seconds; empty where none is known."""
    pairs = [(line[key], _seconds(line, time_key)) for line in lines if line.get(key) is not None]
    seconds = sum(took for _, took in pairs)
    return f"{sum(mfu * took for mfu, took in pairs) / seconds:.1%}" if seconds else ""


def _seconds(line: Mapping[str, Any], key: str) -> float:
    return float(line[key]) if key else sum(float(v) for k, v in line.items() if k.startswith(TIME))


def _values(lines: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    return [float(line[key]) for line in lines if line.get(key) is not None]


def _sum(lines: Iterable[Mapping[str, Any]], key: str) -> float:
    return sum(_values(lines, key))


def _mean(lines: Iterable[Mapping[str, Any]], key: str) -> float | None:
    values = _values(lines, key)
    return sum(values) / len(values) if values else None
