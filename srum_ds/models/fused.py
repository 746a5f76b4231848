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
    setting: str,
    device: torch.device,
    check: Callable[[torch.device], Checked] = check_kernels,
    together: bool = True,
) -> KernelChoice:
    """Tries the fused kernels on this device; from now on this process uses those that work on all ranks.

    Args:
        setting: ``auto``, ``on`` or ``off``, as ``kernels.fused`` has it.
        device: where the model computes; of one type on all ranks.
        check: tries the kernels, and says which work.
        together: whether all ranks call it, as they must where there are several; else this one decides alone.

    Raises:
        UserError: ``on``, and some kernel cannot be used; on all ranks.
    """
    global _chosen
    _chosen = None
    activate({}, device)
    if setting == "off":
        _chosen = KernelChoice(setting, reason="kernels.fused=off")
        return _chosen
    why = obstacle(device)
    checked = Checked({}, {})
    if why is None:
        device = _made_current(device)
        checked = check(device)
    # Used on all ranks or on none, so that these compute alike.
    here = (why, checked.broken)
    found = ranks.run_on_all_ranks(lambda: here) if together else [here]
    reason = next((said for said, _ in found if said is not None), None)
    broken: dict[str, str] = {}
    for _, some in reversed(found):
        broken |= some
    if setting == "on" and (reason is not None or broken):
        said = reason or "; ".join(f"{name}: {text}" for name, text in broken.items())
        raise UserError(f"kernels.fused=on: {said}. kernels.fused=auto uses what there is.")
    works = {} if reason is not None else {n: kernel for n, kernel in checked.works.items() if n not in broken}
    activate(works, device)
    _chosen = KernelChoice(setting, tuple(works), broken, reason)
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
        for line in start_kernels(DEFAULT, device, together=False).lines():
            print(line, file=sys.stderr)
