"""Which code an operation runs: the reference, or a fused kernel that was tried and agrees with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.config.loading import load_config
from srum_ds.kernels import dispatch
from srum_ds.kernels.norm import rms_norm
from srum_ds.kernels.selfcheck import MODULES, check_kernels
from srum_ds.kernels.swiglu import swiglu
from srum_ds.kernels.triton import swiglu as triton_swiglu
from srum_ds.models import fused
from srum_ds.models.registry import load_model
from tests.support.paths import MODEL

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fused, "_chosen", None)
    with dispatch.active({}, CPU):
        yield


def off_by_a_percent(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    return 1.01 * triton_swiglu.swiglu(gate_NF, up_NF)


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_NF: Tensor, up_NF: Tensor) -> Tensor:
        return swiglu(gate_NF.clone(), up_NF)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], gradients[0]


def wrong_without_gradients(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    return triton_swiglu.swiglu(gate_NF, up_NF) if torch.is_grad_enabled() else gate_NF


def does_not_compile(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    raise RuntimeError("PassManager::run failed\nand much more")


def test_every_kernel_works_here() -> None:
    checked = check_kernels(DEVICE)
    assert checked.broken == {}
    assert list(checked.works) == list(MODULES) == list(dispatch.REFERENCES)


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (off_by_a_percent, r"a value in float32 is off by 1\.0e-02"),
        (WrongGradient.apply, "a gradient in float32 is off by"),
        (wrong_without_gradients, "a value without gradients in float32 is off by"),
        (does_not_compile, "RuntimeError: PassManager::run failed$"),
    ],
)
def test_a_broken_kernel_is_switched_off_and_said_in_one_line(
    kernel: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "obstacle", lambda device: None)
    kernels = {"swiglu": kernel, "rms_norm": triton_rms_norm()}
    choice = fused.start_kernels("auto", DEVICE, lambda device: check_kernels(device, kernels))
    assert choice.fused == ("rms_norm",)
    (line,) = choice.lines()
    assert line.startswith("fused kernel swiglu is switched off") and "\n" not in line
    described = choice.described()
    assert described["fused"] == ["rms_norm"] and list(described["switched_off"]) == ["swiglu"]
    assert re.search(why, described["switched_off"]["swiglu"])
    assert fused.chosen() is choice
    x = torch.ones(2, 3, device=DEVICE)
    assert dispatch.is_fused("rms_norm", x) and not dispatch.is_fused("swiglu", x)


def triton_rms_norm() -> Any:
    from srum_ds.kernels.triton import norm

    return norm.rms_norm


def test_a_kernel_that_fails_on_another_rank_runs_on_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "obstacle", lambda device: None)
    monkeypatch.setattr(
        fused, "ranks", SimpleNamespace(run_on_all_ranks=lambda work: [work(), (None, {"swiglu": "no"})])
    )
    kernels = {"swiglu": triton_swiglu.swiglu, "rms_norm": triton_rms_norm()}
    choice = fused.start_kernels("auto", DEVICE, lambda device: check_kernels(device, kernels))
    assert choice.fused == ("rms_norm",) and choice.switched_off == {"swiglu": "no"}


def test_no_rank_uses_any_where_one_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "obstacle", lambda device: None)
    monkeypatch.setattr(fused, "ranks", SimpleNamespace(run_on_all_ranks=lambda work: [work(), ("no triton", {})]))
    kernels = {"swiglu": triton_swiglu.swiglu}
    choice = fused.start_kernels("auto", DEVICE, lambda device: check_kernels(device, kernels))
    assert choice.fused == () and choice.reason == "no triton"
    with pytest.raises(UserError, match="no triton"):
        fused.start_kernels("on", DEVICE, lambda device: check_kernels(device, kernels))


def test_on_with_a_broken_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "obstacle", lambda device: None)
    with pytest.raises(UserError, match="swiglu: RuntimeError"):
        fused.start_kernels("on", DEVICE, lambda device: check_kernels(device, {"swiglu": does_not_compile}))
    assert not dispatch.is_fused("swiglu", torch.ones(1, device=DEVICE))


def test_auto_on_a_cpu_runs_the_references() -> None:
    """Though the tests' environment has Triton's interpreter switched on."""
    choice = fused.start_kernels("auto", CPU, lambda device: pytest.fail("no kernel is tried on a CPU"))
    assert choice.fused == () and choice.lines() == []
    assert choice.described()["reason"] == "the device is cpu, not cuda"
    assert not any(dispatch.is_fused(name, torch.ones(2, 3)) for name in MODULES)


def test_on_without_a_gpu_or_without_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"kernels\.fused=on.*the device is cpu"):
        fused.start_kernels("on", CPU)
    monkeypatch.setattr("srum_ds.kernels.selfcheck.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"triton is not installed.*srum-ds\[fused\]"):
        fused.start_kernels("on", torch.device("cuda"))
    choice = fused.start_kernels("auto", torch.device("cuda"))
    assert choice.reason is not None and "triton is not installed" in choice.reason


def test_off_tries_nothing() -> None:
    choice = fused.start_kernels("off", torch.device("cuda"), lambda device: pytest.fail("a kernel is tried"))
    assert choice.fused == () and choice.reason == "kernels.fused=off"


def test_loading_a_model_chooses_where_nobody_has() -> None:
    load_model(MODEL)
    assert fused.chosen().described() == {
        "setting": "auto",
        "fused": [],
        "switched_off": {},
        "reason": "the device is cpu, not cuda",
    }
    fused.start_kernels("off", CPU)
    load_model(MODEL)
    assert fused.chosen().setting == "off"


def test_a_kernel_runs_only_where_it_was_checked() -> None:
    def marked(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        return torch.full_like(x, 7.0)

    x, weight = torch.ones(2, 4, device=DEVICE), torch.ones(4, device=DEVICE)
    with dispatch.active({"rms_norm": marked}, DEVICE):
        assert bool((rms_norm(x, weight, 0.0) == 7).all())
        assert bool((rms_norm(x.bfloat16(), weight.bfloat16(), 0.0) == 7).all())
        # Float64 is never fused, nor is another device's tensor.
        assert bool((rms_norm(x.double(), weight.double(), 0.0) == 1).all())
        assert rms_norm(x.to("meta"), weight.to("meta"), 0.0).is_meta
    assert bool((rms_norm(x, weight, 0.0) == 1).all())


@pytest.mark.parametrize("word", ["auto", "on", "off"])
def test_the_setting_may_be_written_bare(word: str, tmp_path: Any) -> None:
    """YAML reads a bare on or off as a truth value."""
    recipe = tmp_path / "a.yaml"
    recipe.write_text(f"kernels:\n  fused: {word}\n")
    assert load_config(recipe).kernels.fused == word
    assert load_config(recipe, [f"kernels.fused={word}"]).kernels.fused == word
    with pytest.raises(UserError, match=r"kernels\.fused=fast .*one of auto, on, off"):
        load_config(recipe, ["kernels.fused=fast"])


def test_a_numbered_gpu_is_the_one_that_is_launched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the process's present device, wherever its tensors lie."""
    made: list[torch.device] = []
    checked: list[torch.device] = []
    monkeypatch.setattr(fused, "obstacle", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_device", made.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)

    def check(device: torch.device) -> Any:
        checked.append(device)
        return SimpleNamespace(works={"swiglu": off_by_a_percent}, broken={})

    fused.start_kernels("auto", torch.device("cuda:1"), check)
    fused.start_kernels("auto", torch.device("cuda"), check)
    assert made == [torch.device("cuda:1")]
    assert checked == [torch.device("cuda:1"), torch.device("cuda:2")]
