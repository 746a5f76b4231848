"""Versions, what the memory moves, and what a product of two large matrices reaches."""

from __future__ import annotations

import platform

import torch

from srum_ds.common.environment import package_versions
from tests.gpu.check.measuring import Figures, Where, gigabytes


def run(figures: Figures, where: Where) -> None:
    figures["versions"] = versions(where)
    if not where.rehearse:
        card = torch.cuda.get_device_properties(where.device)
        figures["memory_gb"] = gigabytes(card.total_memory)
        figures["capability"] = [card.major, card.minor]
        figures["multiprocessors"] = card.multi_processor_count
        figures["table_peak_tflops"] = None if where.peak is None else where.peak / 1e12
    figures["copy_gb_per_second"] = copied(where)
    side = where.scaled(8192, 256)
    figures["product_side"] = side
    figures["product_tflops"] = multiplied(side, where)


def copied(where: Where) -> float:
    """GB/s of a copy on the device, which reads and writes every byte once."""
    numbers = where.scaled(2 << 30, 1 << 22)
    source = torch.ones(numbers, dtype=torch.uint8, device=where.device)
    target = torch.empty_like(source)
    return round(2 * numbers / where.milliseconds(lambda: target.copy_(source)) / 1e6, 1)


def multiplied(side: int, where: Where) -> float:
    """TFLOP/s of the product of two square matrices of random numbers in bf16."""
    one, other = (torch.randn(side, side, device=where.device).to(torch.bfloat16) for _ in range(2))
    return round(2 * side**3 / where.milliseconds(lambda: one @ other) / 1e9, 3)


def versions(where: Where) -> dict[str, str | None]:
    """Of Python, of the packages that results depend on, and of what torch was built with."""
    import triton

    found = {"python": platform.python_version(), **package_versions(), "triton": triton.__version__}
    if not where.rehearse:
        found["cuda"] = torch.version.cuda
        found["cudnn"] = str(torch.backends.cudnn.version())
        found["nccl"] = ".".join(str(number) for number in torch.cuda.nccl.version())
    return found
