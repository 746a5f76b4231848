"""Which device a rank computes on, observed on an accelerator that is not there."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest
import torch

from srum_ds.common.errors import UserError
from srum_ds.engine import distributed


@dataclass
class FourDevices:
    """DeepSpeed's accelerator of a node, of which only the device switch is looked at."""

    count: int = 4
    current: int = 0
    switched: list[int] = field(default_factory=list)

    def device_name(self) -> str:
        return "cuda"

    def device_count(self) -> int:
        return self.count

    def set_device(self, index: int) -> None:
        self.current = index
        self.switched.append(index)

    def current_device_name(self) -> str:
        return f"cuda:{self.current}"


@pytest.mark.parametrize("local", range(4))
def test_a_rank_computes_on_the_device_of_its_local_number(monkeypatch: pytest.MonkeyPatch, local: int) -> None:
    node = FourDevices()
    monkeypatch.setattr(distributed, "get_accelerator", lambda: node)
    monkeypatch.setenv("LOCAL_RANK", str(local))
    distributed.choose_device()
    assert distributed.compute_device() == torch.device("cuda", local)


def test_the_device_is_chosen_before_the_ranks_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    class MetTooEarly(Exception):
        pass

    node = FourDevices()

    def meet(**settings: object) -> None:
        raise MetTooEarly(str(node.switched))

    monkeypatch.setattr(distributed, "get_accelerator", lambda: node)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(distributed.deepspeed, "init_distributed", meet)
    for name, value in {"RANK": "6", "LOCAL_RANK": "2", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MetTooEarly, match=r"\[2\]"):
        distributed.start_distributed()


def test_a_process_that_sees_one_device_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    node = FourDevices(count=1)
    monkeypatch.setattr(distributed, "get_accelerator", lambda: node)
    monkeypatch.setenv("LOCAL_RANK", "3")
    distributed.choose_device()
    assert node.switched == [0]
    # DeepSpeed reads the number of the device from there, and would take the fourth of one.
    assert os.environ["LOCAL_RANK"] == "0"


def test_a_rank_without_a_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "get_accelerator", FourDevices)
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(UserError, match=r"LOCAL_RANK=4.* 4 devices"):
        distributed.choose_device()
