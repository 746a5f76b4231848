"""Which fused kernels a process uses: by the setting ``kernels.fused``, and by what works on its device."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from srum_ds.common import ranks
from srum_ds.common.errors import UserError
from srum_ds.kernels.dispatch import activate
from srum_ds.kernels.selfcheck import Checked, check_kernels, obstacle

DEFAULT = "auto"


@dataclass(frozen=True)
class KernelChoice:
    """What was chosen.

    setting: ``kernels.fused``. fused: the operations that run fused. switched_off: why each of the others does not,
    where its kernel was tried. reason: why none was tried.
    """

    setting: str
    fused: tuple[str, ...] = ()
    switched_off: dict[str, str] = field(default_factory=dict)
    reason: str | None = None

    def described(self) -> dict[str, Any]:
        """As ``environment.json`` keeps it."""
        return {
            "setting": self.setting,
            "fused": list(self.fused),
            "switched_off": self.switched_off,
            "reason": self.reason,
        }

    def lines(self) -> list[str]:
        """What is said of it: one line for each kernel that was switched off."""
        return [
            f"fused kernel {name} is switched off, and its plain operations run: {why}"
            for name, why in self.switched_off.items()
        ]


_chosen: KernelChoice | None = None


def chosen() -> KernelChoice:
    """What this process uses."""
    return _chosen or KernelChoice(DEFAULT, reason="no model has been loaded")


def start_kernels(
    setting: str, device: torch.device, check: Callable[[torch.device], Checked] = check_kernels
) -> KernelChoice:
    """Tries the fused kernels on this device; from now on this process uses those that work on all ranks.

    All ranks call it.

    Args:
        setting: ``auto``, ``on`` or ``off``, as ``kernels.fused`` has it.
        device: where the model computes.
        check: tries the kernels, and says which work.

    Raises:
        UserError: ``on``, and some kernel cannot be used; on all ranks.
    """
    global _chosen
    _chosen = None
    activate({}, device)
    why = "kernels.fused=off" if setting == "off" else obstacle(device)
    if why is not None and setting != "on":
        _chosen = KernelChoice(setting, reason=why)
        return _chosen
    if why is None:
        device = _made_current(device)
    checked = check(device) if why is None else Checked({}, {"none can be used": why})
    # Used on all ranks or on none, so that these compute alike.
    broken: dict[str, str] = {}
    for found in reversed(ranks.run_on_all_ranks(lambda: checked.broken)):
        broken |= found
    if broken and setting == "on":
        said = "; ".join(f"{name}: {reason}" for name, reason in broken.items())
        raise UserError(f"kernels.fused=on: {said}. kernels.fused=auto uses what there is.")
    works = {name: kernel for name, kernel in checked.works.items() if name not in broken}
    activate(works, device)
    _chosen = KernelChoice(setting, tuple(works), broken)
    return _chosen


def _made_current(device: torch.device) -> torch.device:
    """The device with its number, and the one that this process launches on, as Triton does without being asked."""
    if device.type != "cuda":
        return device
    if str(device) == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    torch.cuda.set_device(device)
    return device


def start_by_default(device: torch.device) -> None:
    """``start_kernels`` with ``auto`` where nothing was chosen yet; says on stderr what is switched off."""
    undecided = _chosen is None or (_chosen.setting == DEFAULT and not _chosen.fused and not _chosen.switched_off)
    # A model on the CPU may have come first.
    if undecided and (_chosen is None or obstacle(device) is None):
        for line in start_kernels(DEFAULT, device).lines():
            print(line, file=sys.stderr)
