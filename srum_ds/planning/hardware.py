"""Devices: their memory, their bandwidths, and what they compute at most. The only table of it.

Peaks are of dense products as the vendors publish them (data sheets of A100, L40S, H100, H200 and B200); memory is what
CUDA says such a card has. A GPU that is not here has no peak: nobody guesses one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from srum_ds.common.errors import UserError

CPU_PRODUCT = 768
"""Side of the square matrices whose product tells a CPU's peak."""


@dataclass(frozen=True)
class Hardware:
    """One kind of device. Rates are per device.

    peaks: FLOP/s of dense products by precision (``bf16``, ``fp32``; on a GPU fp32 is TF32). memory: bytes. bandwidth:
    bytes/s of that memory. bus: bytes/s at which each of a node's devices takes part in a collective. called: what a
    device's name must hold, and what it must not.
    """

    name: str
    peaks: Mapping[str, float]
    memory: int
    bandwidth: float
    bus: float
    called: tuple[str, ...] = ()
    not_called: tuple[str, ...] = ()
    cpu: bool = False

    def is_called(self, name: str) -> bool:
        """Whether a device that torch names so is of this kind."""
        return all(part in name for part in self.called) and not any(part in name for part in self.not_called)


def _gpu(
    name: str,
    tera: tuple[float, float],
    gigabytes: float,
    terabytes_a_second: float,
    bus_gigabytes: float,
    called: tuple[str, ...],
    not_called: tuple[str, ...] = (),
) -> Hardware:
    peaks = {"bf16": tera[0] * 1e12, "fp32": tera[1] * 1e12}
    memory = int(gigabytes * 1e9)
    return Hardware(name, peaks, memory, terabytes_a_second * 1e12, bus_gigabytes * 1e9, called, not_called)


_LESSER_HOPPER = ("PCIe", "NVL")

GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100-40g", (312, 156), 42.3, 1.555, 240, ("A100", "40GB")),
        _gpu("a100-80g", (312, 156), 84.9, 2.039, 240, ("A100", "80GB")),
        _gpu("l40s", (362, 183), 47.7, 0.864, 25, ("L40S",)),
        _gpu("h100-80g", (989, 494), 85.0, 3.35, 375, ("H100", "80GB"), _LESSER_HOPPER),
        _gpu("h200", (989, 494), 150.1, 4.8, 375, ("H200",), _LESSER_HOPPER),
        _gpu("b200", (2250, 1125), 191.5, 7.7, 750, ("B200",), ("GB200",)),
    )
}
"""By the name that ``srum-ds plan --gpu`` takes."""


def gpu_named(name: str) -> Hardware:
    """The GPU of this name in the table. UserError for another."""
    if name not in GPUS:
        raise UserError(f"--gpu {name}: is not in the table; expected one of {', '.join(GPUS)}.")
    return GPUS[name]


def peak_of(device: torch.device, precision: str) -> tuple[float | None, str]:
    """(FLOP/s of this device, or None where nobody knows, and a line that says where the figure comes from).

    precision: ``bf16`` or ``fp32``. A CPU's is measured by a product, in fp32 whatever the precision: a few tens of
    milliseconds.
    """
    if device.type == "cpu":
        peak = measured_product()
        return peak, f"a rank's CPU computes {peak / 1e9:.0f} GFLOP/s in a product of {CPU_PRODUCT} squared"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    for gpu in GPUS.values():
        if gpu.is_called(name):
            return gpu.peaks[precision], f"{name} counts as {gpu.name}: {gpu.peaks[precision] / 1e12:.0f} TFLOP/s"
    return None, f"{name} is in no table of peaks: MFU is left out"


@torch.no_grad()
def measured_product(repeats: int = 4) -> float:
    """FLOP/s of the best of some fp32 products on this process's threads; no random number is drawn."""
    side = CPU_PRODUCT
    one = torch.ones(side, side)
    other = torch.full((side, side), 0.5)
    best = 0.0
    for _ in range(repeats):
        begin = time.perf_counter()
        torch.mm(one, other)
        best = max(best, 2 * side**3 / (time.perf_counter() - begin))
    return best
